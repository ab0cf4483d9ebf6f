package e2e

import (
	"bufio"
	"bytes"
	"context"
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

	"millrace/internal/broker"
	"millrace/internal/config"
	"millrace/internal/frame"
	"millrace/internal/localstack"
	"millrace/internal/testenv"
)

// long reports whether the long forms of the fault tests are asked for.
var long = os.Getenv("MILLRACE_LONG_TESTS") != ""

// metric returns the value of a metric that has no labels, from /metrics of the service at addr.
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
// again and again under load. The first of its URLs leads to a node that is never there.
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

	client := testenv.NewAcked("http://" + apiAddr)
	goroutines := metric(t, apiAddr, "go_goroutines")
	ctx, stop := context.WithCancel(context.Background())
	posting := client.Run(ctx, t, 8)
	defer posting.Wait()
	defer stop()
	rounds := 2
	if long {
		rounds = 5
	}
	for i := range rounds {
		time.Sleep(time.Second) // RabbitMQ 3.10 may forget a queue that is younger: see internal/broker/README.md
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
	client.Client.CloseIdleConnections()
	client.CompareRows(t, conn)
	if slowest := client.Slowest(); slowest > timeout+testenv.Patience {
		t.Errorf("a request took %v, want at most CONFIRM_TIMEOUT (%v) and a moment", slowest, timeout)
	}
	if client.Broken.Load() > 0 {
		t.Errorf("%d requests were not answered", client.Broken.Load())
	}
	testenv.Eventually(t, 30*time.Second, "the API has as many goroutines as before", func() bool {
		return metric(t, apiAddr, "go_goroutines") <= goroutines+4
	})
}

// TestARollingRestartLosesAndDoublesNothing restarts two APIs by turns while clients post to either.
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
	client := testenv.NewAcked("http://"+addrs[0], "http://"+addrs[1])
	ctx, stop := context.WithCancel(context.Background())
	posting := client.Run(ctx, t, 8)
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
	client.CompareRows(t, conn)
}

// TestMemoryIsBoundedWhileRabbitMQBlocks pushes large batches on many connections while RabbitMQ is blocked by its memory
// alarm. MILLRACE_LONG_TESTS=1 takes 1,000 connections and more time.
func TestMemoryIsBoundedWhileRabbitMQBlocks(t *testing.T) {
	stack := testenv.Private(t, localstack.Need{RabbitMQ: true})
	// It is built without the race detector, whose memory would count.
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
	blocked := false // guarded by mu; requests that begin while it is true are timed
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
		time.Sleep(phase) // what is accepted meanwhile is counted
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

// rawConn is a keep-alive connection that costs its client little: the bytes of its requests are made beforehand.
type rawConn struct {
	net.Conn
	r      *bufio.Reader
	closed bool // the API closed it, or it broke
}

func dialRaw(addr string) *rawConn {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return &rawConn{closed: true}
	}
	return &rawConn{Conn: conn, r: bufio.NewReader(conn)}
}

// post sends a request and returns the answer's status, 0 if there is none.
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

// resident returns the resident memory of a process in bytes. The field VmRSS is the memory now, VmHWM the most it ever was.
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
