package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/broker"
	"millrace/internal/config"
	"millrace/internal/frame"
	"millrace/internal/localstack"
	"millrace/internal/testenv"
)

// long says whether the long forms of the fault tests are asked for.
var long = os.Getenv("MILLRACE_LONG_TESTS") != ""

// faultClient posts keyed requests to any of several APIs and sends each again until it is acked.
type faultClient struct {
	urls []string
	http *http.Client

	mu      sync.Mutex
	acked   map[string]bool // names of records
	slowest time.Duration
	refused atomic.Int64
	broken  atomic.Int64 // connection errors
}

func newFaultClient(addrs ...string) *faultClient {
	c := &faultClient{http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: time.Minute}, acked: make(map[string]bool)}
	for _, a := range addrs {
		c.urls = append(c.urls, "http://"+a)
	}
	return c
}

// run posts requests of one record and of 100 by turns from clients goroutines until ctx is done; each ends with an ack.
func (c *faultClient) run(ctx context.Context, t *testing.T, clients int) *sync.WaitGroup {
	var posting sync.WaitGroup
	for client := range clients {
		posting.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				var body bytes.Buffer
				var names []string
				for i := range []int{1, 100}[(n+client)%2] {
					names = append(names, fmt.Sprintf("%d/%d/%d", client, n, i))
					fmt.Fprintf(&body, `{"name":%q,"pad":%q}`+"\n", names[i], strings.Repeat("x", 700*(i%3))) // several segments
				}
				if !c.postUntilAcked(t, body.Bytes(), rand.IntN(len(c.urls))) {
					return
				}
				c.mu.Lock()
				for _, name := range names {
					c.acked[name] = true
				}
				c.mu.Unlock()
			}
		})
	}
	return &posting
}

func (c *faultClient) postUntilAcked(t *testing.T, body []byte, first int) bool {
	key := frame.NewBase().String()
	for try, deadline := first, time.Now().Add(2*time.Minute); ; try++ {
		begin := time.Now()
		status, retryAfter, err := c.post(c.urls[try%len(c.urls)], key, body)
		c.mu.Lock()
		c.slowest = max(c.slowest, time.Since(begin))
		c.mu.Unlock()
		switch {
		case err != nil:
			c.broken.Add(1)
		case status == http.StatusAccepted:
			return true
		case status == http.StatusServiceUnavailable && retryAfter != "":
			c.refused.Add(1)
		default:
			t.Errorf("got %d with Retry-After %q, want 202, or 503 with Retry-After", status, retryAfter)
			return false
		}
		if time.Now().After(deadline) {
			t.Errorf("a request was not acked within two minutes: status %d, error %v", status, err)
			return false
		}
		time.Sleep(50 * time.Millisecond) // the client's own pause before a retry
	}
}

func (c *faultClient) post(url, key string, body []byte) (status int, retryAfter string, err error) {
	req, err := http.NewRequest(http.MethodPost, url+"/log/batch", bytes.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Idempotency-Key", key)
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, "", err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, resp.Header.Get("Retry-After"), errors.Join(err, resp.Body.Close())
}

// check waits until all that was acked is stored, and compares.
func (c *faultClient) check(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	testenv.Eventually(t, 2*time.Minute, fmt.Sprintf("the %d acked records are stored", len(c.acked)), func() bool {
		var n int
		if err := conn.QueryRow(context.Background(), "SELECT count(*) FROM logs").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n >= len(c.acked)
	})
	rows, err := conn.Query(context.Background(), "SELECT data->>'name', count(*) FROM logs GROUP BY 1")
	if err != nil {
		t.Fatal(err)
	}
	var name string
	var times, stored int
	if _, err := pgx.ForEachRow(rows, []any{&name, &times}, func() error {
		stored++
		if times != 1 || !c.acked[name] {
			t.Errorf("record %s is stored %d times, acked: %v", name, times, c.acked[name])
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	var dead int
	if err := conn.QueryRow(context.Background(), "SELECT count(*) FROM dead_letters").Scan(&dead); err != nil {
		t.Fatal(err)
	}
	if stored != len(c.acked) || dead > 0 {
		t.Errorf("%d of %d acked records are stored, %d dead letters", stored, len(c.acked), dead)
	}
	t.Logf("%d records acked; %d answers 503, %d broken connections, the slowest answer after %v",
		len(c.acked), c.refused.Load(), c.broken.Load(), c.slowest.Round(time.Millisecond))
}

// metric returns the value of a metric without labels.
func metric(t testing.TB, addr, name string) float64 {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() // read to its end
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("no metric %s", name)
	}
	v, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestABrokerThatComesAndGoesLosesAndDoublesNothing starts an API before its RabbitMQ, then stops or kills RabbitMQ
// again and again under load. The first URL of the cluster is of a node that is never there.
func TestABrokerThatComesAndGoesLosesAndDoublesNothing(t *testing.T) {
	stack := testenv.Private(t, localstack.Need{RabbitMQ: true})
	db := testenv.Schema(t)
	conn := testenv.Connect(t, db)
	if err := stack.Kill("rabbitmq"); err != nil {
		t.Fatal(err)
	}
	const timeout = 3 * time.Second
	apiAddr := testenv.FreeAddress(t)
	env := []string{
		"RABBITMQ_URL=amqp://127.0.0.1:1/," + stack.RabbitMQURL, "POSTGRES_URL=" + string(db),
		"API_ADDR=" + apiAddr, "WORKER_ADDR=127.0.0.1:0", "CONFIRM_TIMEOUT=" + timeout.String(),
		"PUBLISH_CONNECTIONS=1", // so that a ready API has all its goroutines
	}
	testenv.StartMillrace(t, t.TempDir(), env, "api")
	testenv.StartMillrace(t, t.TempDir(), env, "worker")
	unready := func() {
		t.Helper()
		testenv.Eventually(t, 5*time.Second, "/ready says that there is no RabbitMQ", func() bool {
			status, text := testenv.Readiness(apiAddr)
			return status == http.StatusServiceUnavailable && strings.Contains(text, "no connection to RabbitMQ")
		})
		if status, answer := testenv.Post(t, "http://"+apiAddr+"/log", []byte(`{}`)); status != http.StatusServiceUnavailable || !strings.Contains(fmt.Sprint(answer), "no connection to RabbitMQ") {
			t.Errorf("without RabbitMQ: got %d %v, want 503 and the reason", status, answer)
		}
	}
	restart := func() {
		t.Helper()
		if err := stack.Restart(context.Background(), "rabbitmq"); err != nil {
			t.Fatal(err)
		}
		testenv.AwaitReady(t, apiAddr)
	}
	unready()
	restart()

	client := newFaultClient(apiAddr)
	goroutines := metric(t, apiAddr, "go_goroutines")
	ctx, stop := context.WithCancel(context.Background())
	posting := client.run(ctx, t, 8)
	defer posting.Wait()
	defer stop()
	rounds := 2
	if long {
		rounds = 5
	}
	for i := range rounds {
		time.Sleep(time.Second) // RabbitMQ 3.10 may forget a queue that is younger: see DESIGN.md
		if i%2 == 0 {
			if err := stack.Signal("rabbitmq", syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		} else if err := stack.Kill("rabbitmq"); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, 30*time.Second, "RabbitMQ is down", func() bool {
			status, _ := testenv.Readiness(apiAddr)
			return status == http.StatusServiceUnavailable
		})
		restart()
	}
	stop()
	posting.Wait()
	client.http.CloseIdleConnections()
	client.check(t, conn)
	if client.slowest > timeout+testenv.Patience {
		t.Errorf("a request took %v, want at most CONFIRM_TIMEOUT (%v) and a moment", client.slowest, timeout)
	}
	if client.broken.Load() > 0 {
		t.Errorf("%d requests were not answered", client.broken.Load())
	}
	testenv.Eventually(t, 30*time.Second, "the API has as many goroutines as before", func() bool {
		return metric(t, apiAddr, "go_goroutines") <= goroutines+4
	})
}

// TestARollingRestartLosesAndDoublesNothing restarts two APIs by turns behind clients that go to either.
func TestARollingRestartLosesAndDoublesNothing(t *testing.T) {
	stack := testenv.Private(t, localstack.Need{RabbitMQ: true})
	db := testenv.Schema(t)
	conn := testenv.Connect(t, db)
	addrs := []string{testenv.FreeAddress(t), testenv.FreeAddress(t)}
	env := []string{"RABBITMQ_URL=" + stack.RabbitMQURL, "POSTGRES_URL=" + string(db), "WORKER_ADDR=127.0.0.1:0"}
	testenv.StartMillrace(t, t.TempDir(), env, "worker")
	var apis [2]*testenv.Process
	for i := range apis {
		apis[i] = testenv.StartMillrace(t, t.TempDir(), append(env, "API_ADDR="+addrs[i]), "api")
		testenv.AwaitReady(t, addrs[i])
	}
	client := newFaultClient(addrs...)
	ctx, stop := context.WithCancel(context.Background())
	posting := client.run(ctx, t, 8)
	defer posting.Wait()
	defer stop()
	rounds := 4
	if long {
		rounds = 20
	}
	for i := range rounds {
		time.Sleep(time.Duration(100+rand.IntN(400)) * time.Millisecond) // any moment is as good as another
		p := apis[i%2]
		p.Signal(t, syscall.SIGTERM)
		<-p.Done
		if code := p.ProcessState.ExitCode(); code != 0 {
			t.Errorf("exit status %d, want 0", code)
		}
		apis[i%2] = testenv.StartMillrace(t, t.TempDir(), append(env, "API_ADDR="+addrs[i%2]), "api")
		testenv.AwaitReady(t, addrs[i%2])
	}
	stop()
	posting.Wait()
	client.check(t, conn)
}

// TestMemoryIsBoundedWhileRabbitMQBlocks has many connections push large batches while RabbitMQ is blocked by its
// memory alarm. MILLRACE_LONG_TESTS=1 makes them 1,000 for longer, and has answers timed.
func TestMemoryIsBoundedWhileRabbitMQBlocks(t *testing.T) {
	stack := testenv.Private(t, localstack.Need{RabbitMQ: true})
	// Built anew without the race detector, whose memory is not Millrace's.
	exe := filepath.Join(t.TempDir(), "millrace")
	if out, err := exec.Command("go", "build", "-o", exe, "millrace").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	addr := testenv.FreeAddress(t)
	out := new(testenv.Output)
	api := exec.Command(exe, "api")
	api.Env = []string{"RABBITMQ_URL=" + stack.RabbitMQURL, "API_ADDR=" + addr, "QUEUE_MAX_BYTES=0", "CONFIRM_TIMEOUT=5m"}
	api.Dir = t.TempDir()
	api.Stdout, api.Stderr = out, out
	if err := api.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = api.Process.Kill() // it may have ended
		_ = api.Wait()
		if t.Failed() {
			t.Logf("millrace api wrote:\n%.5000s", out)
		}
	}()
	testenv.AwaitReady(t, addr)

	connections, phase := 300, 2*time.Second
	if long {
		connections, phase = 1000, 10*time.Second
	}
	const records = 4000
	batch := []byte(strings.Repeat(`{"message":"`+strings.Repeat("x", 246)+`"}`+"\n", records))
	var accepted, refused, other atomic.Int64
	var mu sync.Mutex
	var slowest time.Duration
	blocked := false // under mu: requests that began since the block is known are timed
	ctx, stop := context.WithCancel(context.Background())
	var posting sync.WaitGroup
	defer posting.Wait()
	defer stop()
	head := fmt.Appendf(nil, "POST /log/batch HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", len(batch))
	for range connections {
		posting.Go(func() {
			conn := (*rawConn)(nil)
			for ctx.Err() == nil {
				mu.Lock()
				timed := blocked
				mu.Unlock()
				begin := time.Now()
				if conn == nil {
					conn = dialRaw(addr)
				}
				status := conn.post(head, batch)
				took := time.Since(begin)
				switch status {
				case http.StatusAccepted:
					accepted.Add(1)
				case http.StatusServiceUnavailable:
					refused.Add(1)
				default:
					other.Add(1)
				}
				if status != http.StatusAccepted {
					if timed {
						mu.Lock()
						slowest = max(slowest, took)
						mu.Unlock()
					}
					time.Sleep(time.Second) // as Retry-After says
				}
				if conn.closed {
					conn.close()
					conn = nil
				}
			}
			conn.close()
		})
	}
	rate := func(what string) int64 {
		begin, before := time.Now(), accepted.Load()
		time.Sleep(phase) // how much is accepted meanwhile is what is measured
		n := accepted.Load() - before
		t.Logf("%s: %.0f records/s accepted, resident memory %d MiB, at most %d MiB", what,
			float64(n*records)/time.Since(begin).Seconds(), resident(t, api.Process.Pid, "VmRSS")>>20, resident(t, api.Process.Pid, "VmHWM")>>20)
		return n
	}
	rate("before the block")
	ctl := func(args ...string) {
		t.Helper()
		if err := stack.RabbitMQCtl(context.Background(), args...); err != nil {
			t.Fatal(err)
		}
	}
	ctl("set_vm_memory_high_watermark", "0.000001")
	testenv.Eventually(t, 20*time.Second, "/ready says that RabbitMQ blocks", func() bool {
		status, text := testenv.Readiness(addr)
		return status == http.StatusServiceUnavailable && strings.Contains(text, "low on memory")
	})
	mu.Lock()
	blocked = true
	mu.Unlock()
	seen := refused.Load()
	if n := rate("blocked"); n > int64(connections) {
		t.Errorf("%d batches were accepted while RabbitMQ blocks", n)
	}
	mu.Lock()
	blocked = false
	took := slowest
	mu.Unlock()
	t.Logf("%d answers 503 while blocked, the slowest after %v; %d requests without an answer", refused.Load()-seen, took.Round(time.Millisecond), other.Load())
	if refused.Load() == seen || other.Load() > 0 {
		t.Errorf("%d answers 503 while blocked, %d requests without an answer", refused.Load()-seen, other.Load())
	}
	if took > testenv.Patience { // far below CONFIRM_TIMEOUT
		t.Errorf("an answer took %v, want it at once", took)
	}
	ctl("set_vm_memory_high_watermark", "0.4")
	before := accepted.Load()
	testenv.Eventually(t, 5*time.Second, "batches are accepted again", func() bool { return accepted.Load() > before })
	rate("after the block")
	stop()
	posting.Wait()
	if peak := resident(t, api.Process.Pid, "VmHWM"); peak > 512<<20 {
		t.Errorf("resident memory was %d MiB at most, want at most 512", peak>>20)
	}
	if got, want := published(t, stack.RabbitMQURL), accepted.Load()*records; got < want {
		t.Errorf("%d records were published, %d acked", got, want)
	}
}

// rawConn is a keep-alive connection that costs its client little: it sends bytes that are ready, then reads the answer.
type rawConn struct {
	net.Conn
	r      *bufio.Reader
	closed bool // by the API, or broken
}

func dialRaw(addr string) *rawConn {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return &rawConn{closed: true}
	}
	return &rawConn{Conn: conn, r: bufio.NewReader(conn)}
}

// post returns the answer's status; 0 is none.
func (c *rawConn) post(head, body []byte) int {
	if c.closed {
		return 0
	}
	_, err := c.Write(head)
	if err == nil {
		_, err = c.Write(body)
	}
	resp, readErr := http.ReadResponse(c.r, nil)
	if readErr != nil {
		c.closed = true
		return 0
	}
	_, readErr = io.Copy(io.Discard, resp.Body)
	c.closed = err != nil || readErr != nil || resp.Close
	return resp.StatusCode
}

func (c *rawConn) close() {
	if c != nil && c.Conn != nil {
		_ = c.Conn.Close() // nothing is left to be sent
	}
}

// resident returns a field of a process's memory in bytes: VmRSS is now, VmHWM the most it ever was.
func resident(t testing.TB, pid int, field string) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(field + `:\s+(\d+) kB`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("no %s in /proc/%d/status", field, pid)
	}
	kb, err := strconv.ParseInt(string(m[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kb << 10
}

// published empties the queue logs.0 and returns how many records were in it.
func published(t testing.TB, url string) (records int64) {
	t.Helper()
	ch := testenv.Channel(t, config.Broker{URLs: config.Brokers(url)})
	queue := broker.NewTopology(config.Broker{}).Queue(0)
	q, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := ch.Qos(100, 0, false); err != nil {
		t.Fatal(err)
	}
	messages, err := ch.Consume(queue, "", false, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= q.Messages; n++ {
		m := <-messages
		body, err := frame.Decompress(m.ContentEncoding, m.Body)
		if err != nil {
			t.Error(err)
		}
		records += int64(bytes.Count(body, []byte("\n")))
		if n%50 == 0 || n == q.Messages {
			if err := m.Ack(true); err != nil {
				t.Fatal(err)
			}
		}
	}
	return records
}
