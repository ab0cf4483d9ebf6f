package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/frame"
	"millrace/internal/localstack"
	"millrace/internal/testenv"
)

// asMain makes the test binary be millrace, so that real processes run with the race detector on.
const asMain = "MILLRACE_TEST_AS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asMain) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// process is a running millrace.
type process struct {
	*exec.Cmd
	out  *output
	done chan struct{} // closed when it has ended
}

// output collects what a process writes.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// startMillrace starts a millrace in dir with env added to an environment that has no settings.
func startMillrace(t testing.TB, dir string, env []string, args ...string) *process {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{Cmd: exec.Command(exe, args...), out: new(output), done: make(chan struct{})}
	p.Dir = dir
	p.Env = append([]string{asMain + "=1", "PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "TMPDIR=" + os.TempDir()}, env...)
	p.Stdout, p.Stderr = p.out, p.out
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.Wait() // its status is asked for where it matters
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = p.Process.Kill() // it may have ended
		<-p.done
		if t.Failed() {
			t.Logf("millrace %s wrote:\n%s", strings.Join(args, " "), p.out)
		}
	})
	return p
}

func (p *process) signal(t testing.TB, sig os.Signal) {
	t.Helper()
	if err := p.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// stop sends SIGINT, waits for the end and returns how long that took.
func (p *process) stop(t testing.TB) time.Duration {
	t.Helper()
	begin := time.Now()
	p.signal(t, os.Interrupt)
	<-p.done
	if code := p.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
	return time.Since(begin)
}

func post(t testing.TB, url string, body []byte) (status int, answer map[string]any) {
	t.Helper()
	resp, err := http.Post(url, "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, readJSON(t, resp)
}

func get(t testing.TB, url string) (status int, answer map[string]any) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, readJSON(t, resp)
}

func readJSON(t testing.TB, resp *http.Response) (answer map[string]any) {
	t.Helper()
	defer resp.Body.Close() // read to its end
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	return answer
}

func needServers(t testing.TB) {
	t.Helper()
	missing := localstack.MissingPackages(localstack.Need{Postgres: true, RabbitMQ: true, Redis: true})
	if len(missing) == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("not installed: %v", missing)
	}
	t.Skipf("not installed: %v; make test installs them", missing)
}

func TestRunStoresShowsStopsAndKeeps(t *testing.T) {
	if testing.Short() {
		t.Skip("starts private servers twice")
	}
	needServers(t)
	dir := t.TempDir()
	api, query := testenv.FreeAddress(t), testenv.FreeAddress(t)
	env := []string{"API_ADDR=" + api, "QUERY_ADDR=" + query, "WORKER_ADDR=127.0.0.1:0"}
	var id string
	for run := range 2 {
		p := startMillrace(t, dir, env, "run")
		testenv.Eventually(t, time.Minute, "millrace run says that it runs", func() bool {
			select {
			case <-p.done:
				t.Fatal("millrace run ended")
			default:
			}
			return strings.Contains(p.out.String(), "Millrace is running")
		})
		if run == 0 {
			if want := "Millrace is running. Search and follow the logs at http://" + query + "/\n"; !strings.Contains(p.out.String(), want) {
				t.Errorf("want %q first", want)
			}
			targetsAnswer(t, dir)
			servers, err := os.ReadFile(filepath.Join(dir, ".millrace", "env"))
			if err != nil {
				t.Fatal(err)
			}
			for _, password := range regexp.MustCompile(`:([^:/@]+)@`).FindAllStringSubmatch(string(servers), -1) {
				if strings.Contains(p.out.String(), password[1]) {
					t.Errorf("a password of %s is shown", servers)
				}
			}
			status, answer := post(t, "http://"+api+"/log", []byte(`{"level":"info","message":"testing the platform"}`))
			if status != http.StatusAccepted {
				t.Fatalf("POST /log: got %d %v, want 202", status, answer)
			}
			id = answer["id"].(string)
		}
		testenv.Eventually(t, 5*time.Second, "the record is there", func() bool {
			status, answer := get(t, "http://"+query+"/logs/"+id)
			return status == http.StatusOK && answer["data"].(map[string]any)["message"] == "testing the platform"
		})
		if took := p.stop(t); took > 15*time.Second+testenv.Patience {
			t.Errorf("the stop took %v, want at most 15 s on an idle machine", took)
		}
		if left := processesIn(t, dir); len(left) > 0 {
			t.Errorf("these processes are left: %v", left)
		}
	}
}

// targetsAnswer looks at what millrace run in dir leaves for Prometheus and for shells.
func targetsAnswer(t *testing.T, dir string) {
	var groups []struct {
		Targets []string
		Labels  map[string]string
	}
	testenv.Eventually(t, 10*time.Second, "millrace run lists its targets", func() bool {
		b, err := os.ReadFile(filepath.Join(dir, ".millrace", "targets.json"))
		return err == nil && json.Unmarshal(b, &groups) == nil
	})
	var jobs []string
	for _, g := range groups {
		jobs = append(jobs, g.Labels["job"])
		for _, target := range g.Targets {
			resp, err := http.Get(g.Labels["__scheme__"] + "://" + target + "/metrics")
			if err != nil {
				t.Fatalf("%s: %v", g.Labels["job"], err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("%s at %s answers %d", g.Labels["job"], target, resp.StatusCode)
			}
		}
	}
	if want := []string{"api", "worker", "query", "rabbitmq"}; !slices.Equal(jobs, want) {
		t.Errorf("targets.json has %v, want %v", jobs, want)
	}
	out, err := exec.Command("sh", "-c", `. "$0"; echo $POSTGRES_URL $RABBITMQ_URL $REDIS_URL`, filepath.Join(dir, ".millrace", "env")).CombinedOutput()
	if err != nil || !regexp.MustCompile(`^postgres://\S+ amqp://\S+ redis://\S+\n$`).Match(out) {
		t.Errorf("env says %q: %v", out, err)
	}
}

// processesIn returns the command lines of processes that name dir.
func processesIn(t testing.TB, dir string) (found []string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && bytes.Contains(b, []byte(dir)) {
			found = append(found, string(bytes.ReplaceAll(b, []byte{0}, []byte{' '})))
		}
	}
	return found
}

func TestStackRunsACommandAndExitsWithItsStatus(t *testing.T) {
	if testing.Short() {
		t.Skip("starts private servers")
	}
	needServers(t)
	p := startMillrace(t, t.TempDir(), nil, "stack", "--", "sh", "-c", "echo $POSTGRES_URL $RABBITMQ_URL $REDIS_URL; exit 7")
	<-p.done
	if code := p.ProcessState.ExitCode(); code != 7 {
		t.Errorf("exit status %d, want the command's 7", code)
	}
	if !regexp.MustCompile(`^postgres://\S+ amqp://\S+ redis://\S+\n`).MatchString(p.out.String()) {
		t.Errorf("the command was told %q", p.out)
	}
}

func TestMistakesOnTheCommandLineAreNamed(t *testing.T) {
	tests := []struct {
		args []string
		env  []string
		code int
		want string
	}{
		{nil, nil, 2, "millrace help"},
		{[]string{"bake"}, nil, 2, `"bake"`},
		{[]string{"api", "now"}, nil, 2, `"now"`},
		{[]string{"run", "--port", "1"}, nil, 2, "port"},
		{[]string{"stack"}, nil, 2, "no command to run"},
		{[]string{"migrate", "sideways"}, nil, 2, "up, down, status"},
		{[]string{"keys", "new", "me", "--scope", "admin"}, nil, 2, "admin"},
		{[]string{"keys", "new", "me", "--scope", "write", "--rate", "-1"}, nil, 2, "rate -1"},
		{[]string{"keys", "new", "me", "--scope", "write", "--burst", "5"}, nil, 2, "without a rate"},
		{[]string{"dead", "show", "x"}, nil, 2, `"x"`},
		{[]string{"dead", "drop"}, nil, 2, "--all"},
		{[]string{"help", "bake"}, nil, 2, `"bake"`},
		{[]string{"dead", "list"}, nil, 1, "POSTGRES_URL is not set"},
		{[]string{"api"}, nil, 1, "RABBITMQ_URL is not set"},
		{[]string{"worker"}, nil, 1, "POSTGRES_URL is not set"},
		{[]string{"api"}, []string{"FRAME_BYTES=lots"}, 1, `FRAME_BYTES: got "lots", takes a size`},
		{[]string{"run"}, []string{"BATCH_ROWS=0"}, 1, `BATCH_ROWS: got "0", takes`},
		{[]string{"query"}, []string{"POSTGRES_URL=postgres://h/d", "QUERY_ADDR=0.0.0.0:0"}, 1, "KEYS_FILE"},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			p := startMillrace(t, t.TempDir(), tt.env, tt.args...)
			<-p.done
			got := p.out.String()
			if code := p.ProcessState.ExitCode(); code != tt.code || !strings.Contains(got, tt.want) || strings.Count(got, "\n") != 1 {
				t.Errorf("exit status %d and %q, want %d and one line with %q", code, got, tt.code, tt.want)
			}
		})
	}
}

// TestKilledProcessesLoseAndDoubleNothing kills the API and the worker again and again with SIGKILL while clients
// post batches under Idempotency-Keys and retry until they are acked, and counts what is stored.
func TestKilledProcessesLoseAndDoubleNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	db := testenv.Schema(t)
	conn := testenv.Connect(t, db)
	apiAddr := testenv.FreeAddress(t)
	env := []string{"RABBITMQ_URL=" + os.Getenv("RABBITMQ_URL"), "POSTGRES_URL=" + string(db), "API_ADDR=" + apiAddr, "WORKER_ADDR=127.0.0.1:0"}
	services := map[string]*process{}
	for _, name := range []string{"api", "worker"} {
		services[name] = startMillrace(t, t.TempDir(), env, name)
	}

	const clients, batch = 4, 100
	ctx, stop := context.WithCancel(context.Background())
	var posting sync.WaitGroup
	var mu sync.Mutex
	acked := make(map[string]bool) // "client/record"
	retries := 0
	for c := range clients {
		posting.Go(func() {
			for n := 0; ctx.Err() == nil; n += batch {
				var body bytes.Buffer
				var names []string
				for i := range batch {
					names = append(names, fmt.Sprintf("%d/%d", c, n+i))
					fmt.Fprintf(&body, `{"name":%q,"pad":%q}`+"\n", names[i], strings.Repeat("x", 700*(i%3))) // several segments
				}
				tries := postUntilAcked(t, "http://"+apiAddr+"/log/batch", body.Bytes())
				mu.Lock()
				retries += tries - 1
				for _, name := range names {
					acked[name] = true
				}
				mu.Unlock()
			}
		})
	}
	const kills = 12
	for i := range kills {
		name := []string{"api", "worker"}[i%2]
		time.Sleep(time.Duration(300+rand.IntN(900)) * time.Millisecond) // any moment is as good as another
		services[name].signal(t, syscall.SIGKILL)
		<-services[name].done
		services[name] = startMillrace(t, t.TempDir(), env, name)
	}
	stop()
	posting.Wait()

	testenv.Eventually(t, time.Minute, fmt.Sprintf("the %d acked records are stored", len(acked)), func() bool {
		var n int
		if err := conn.QueryRow(context.Background(), "SELECT count(*) FROM logs").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n >= len(acked)
	})
	rows, err := conn.Query(context.Background(), "SELECT data->>'name', count(*) FROM logs GROUP BY 1")
	if err != nil {
		t.Fatal(err)
	}
	var name string
	var times int
	stored := 0
	if _, err := pgx.ForEachRow(rows, []any{&name, &times}, func() error {
		stored++
		if times != 1 || !acked[name] {
			t.Errorf("record %s is stored %d times, acked: %v", name, times, acked[name])
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	var dead int
	if err := conn.QueryRow(context.Background(), "SELECT count(*) FROM dead_letters").Scan(&dead); err != nil {
		t.Fatal(err)
	}
	if stored != len(acked) || dead != 0 {
		t.Errorf("%d records are stored and %d are dead letters, want the %d acked and none", stored, dead, len(acked))
	}
	t.Logf("%d records acked, %d kills, %d retries", len(acked), kills, retries)
	if retries == 0 {
		t.Error("no request had to be sent again: the kills hit nothing")
	}
	for _, name := range []string{"api", "worker"} {
		services[name].stop(t)
	}
}

// postUntilAcked sends a batch under one Idempotency-Key until it is answered 202 and says how often it did.
func postUntilAcked(t testing.TB, url string, body []byte) (tries int) {
	key := frame.NewBase().String()
	client := http.Client{Timeout: 15 * time.Second}
	defer client.CloseIdleConnections()
	for deadline := time.Now().Add(ackedWithin); ; {
		tries++
		status, err := func() (int, error) {
			req, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(body))
			if err != nil {
				return 0, err
			}
			req.Header.Set("Idempotency-Key", key)
			resp, err := client.Do(req)
			if err != nil {
				return 0, err
			}
			defer resp.Body.Close() // read to its end
			_, err = io.Copy(io.Discard, resp.Body)
			return resp.StatusCode, err
		}()
		if err == nil && status == http.StatusAccepted {
			return tries
		}
		if err == nil && status != http.StatusServiceUnavailable {
			err = errors.New(http.StatusText(status))
		}
		if err == nil {
			err = errors.New("503")
		}
		if time.Now().After(deadline) {
			t.Errorf("a batch was not acked within a minute: %v", err)
			return tries
		}
		time.Sleep(50 * time.Millisecond) // the client's own pause before a retry
	}
}

// TestEveryFormIsStoredAsItWasSent posts generated records through millrace's own processes in every form and
// compares what PostgreSQL holds with what was sent.
func TestEveryFormIsStoredAsItWasSent(t *testing.T) {
	db := testenv.Schema(t)
	conn := testenv.Connect(t, db)
	apiAddr := testenv.FreeAddress(t)
	env := []string{"RABBITMQ_URL=" + os.Getenv("RABBITMQ_URL"), "POSTGRES_URL=" + string(db), "API_ADDR=" + apiAddr, "WORKER_ADDR=127.0.0.1:0"}
	for _, name := range []string{"api", "worker"} {
		defer startMillrace(t, t.TempDir(), env, name).stop(t)
	}
	testenv.Eventually(t, 20*time.Second, "the API is ready", func() bool {
		resp, err := http.Get("http://" + apiAddr + "/ready")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	var records []string
	for i := range 5000 {
		records = append(records, fmt.Sprintf(`{"n":%d,"level":%q,"message":"caf\u00e9 \"%d\" ü","nested":{"list":[1,2.50,-3e-7,null,true],"empty":{}},"big":12345678901234567890}`,
			i, []string{"info", "warn", "error"}[i%3], i*7))
	}
	forms := map[string]string{
		"NDJSON":     strings.Join(records, "\n"),
		"array":      "[" + strings.Join(records, ",") + "]",
		"many lines": strings.ReplaceAll(strings.Join(records, "\n"), `,"`, ",\n\t\""),
	}
	for name, body := range forms {
		if _, err := conn.Exec(context.Background(), "TRUNCATE logs"); err != nil {
			t.Fatal(err)
		}
		status, answer := post(t, "http://"+apiAddr+"/log/batch", []byte(body))
		if status != http.StatusAccepted || answer["accepted"] != float64(len(records)) {
			t.Fatalf("%s: got %d %v", name, status, answer)
		}
		testenv.Eventually(t, 20*time.Second, name+": all are stored, each as it was sent", func() bool {
			var equal, all int
			err := conn.QueryRow(context.Background(), `
				SELECT count(*) FILTER (WHERE l.data = s.data), count(*)
				FROM logs l LEFT JOIN (SELECT r::jsonb AS data, (r::jsonb)->>'n' AS n FROM unnest($1::text[]) r) s ON s.n = l.data->>'n'`,
				records).Scan(&equal, &all)
			if err != nil {
				t.Fatal(err)
			}
			return equal == len(records) && all == len(records)
		})
	}
}

// TestAKeyReusedLosesNothing posts other bodies under one Idempotency-Key: the first is stored, once, and what is
// not stored of the others is among the dead letters.
func TestAKeyReusedLosesNothing(t *testing.T) {
	db := testenv.Schema(t)
	conn := testenv.Connect(t, db)
	apiAddr := testenv.FreeAddress(t)
	env := []string{"RABBITMQ_URL=" + os.Getenv("RABBITMQ_URL"), "POSTGRES_URL=" + string(db), "API_ADDR=" + apiAddr, "WORKER_ADDR=127.0.0.1:0"}
	for _, name := range []string{"api", "worker"} {
		defer startMillrace(t, t.TempDir(), env, name).stop(t)
	}
	key := frame.NewBase().String()
	send := func(body string) {
		t.Helper()
		testenv.Eventually(t, 20*time.Second, "the API takes it", func() bool {
			req, err := http.NewRequest(http.MethodPost, "http://"+apiAddr+"/log/batch", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Idempotency-Key", key)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return false // it is starting
			}
			_ = resp.Body.Close()
			return resp.StatusCode == http.StatusAccepted
		})
	}
	count := func(query string, args ...any) (n int) {
		t.Helper()
		if err := conn.QueryRow(context.Background(), query, args...).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	first := "{\"n\":1}\n{\"n\":2}\n"
	send(first)
	testenv.Eventually(t, 20*time.Second, "the first body is stored", func() bool { return count("SELECT count(*) FROM logs") == 2 })
	send(" " + strings.ReplaceAll(first, "\n", "\r\n")) // the same records
	others := []string{"{\"n\":3}\n{\"n\":4}\n", "{\"n\":5}\n", "{\"n\":1}\n{\"n\":2}\n{\"n\":6}\n"}
	for _, body := range others { // as many records, fewer, more
		send(body)
	}
	for _, body := range others {
		testenv.Eventually(t, 20*time.Second, "what was not stored is a dead letter, whole", func() bool {
			return count("SELECT count(*) FROM dead_letters WHERE reason = 'key_reused' AND payload = $1", []byte(body)) == 1
		})
	}
	if n := count("SELECT count(*) FROM dead_letters"); n != len(others) {
		t.Errorf("there are %d dead letters, want %d: none for the same records", n, len(others))
	}
	if all, distinct := count("SELECT count(*) FROM logs"), count("SELECT count(DISTINCT data->>'n') FROM logs WHERE data->>'n' IN ('1', '2')"); all != 2 || distinct != 2 {
		t.Errorf("%d records are stored, %d of them of the first body, want its 2", all, distinct)
	}
}

func TestAHangupHasTheKeysReadAgainAndEndsNothing(t *testing.T) {
	db := testenv.Schema(t)
	keysFile := filepath.Join(t.TempDir(), "keys")
	newKey := func(name string) (line, secret string) {
		t.Helper()
		p := startMillrace(t, t.TempDir(), nil, "keys", "new", name, "--scope", "write,read", "--rate", "100")
		<-p.done
		m := regexp.MustCompile(`^key, shown once: +(\S+)\nfor KEYS_FILE: +(\S+ \S+ write,read rate=100 burst=100)\n$`).FindStringSubmatch(p.out.String())
		if m == nil {
			t.Fatalf("millrace keys new printed %q", p.out)
		}
		return m[2], m[1]
	}
	first, firstSecret := newKey("first")
	second, secondSecret := newKey("second")
	write := func(line string) {
		t.Helper()
		if err := os.WriteFile(keysFile, []byte(line+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(first)
	apiAddr, queryAddr := testenv.FreeAddress(t), testenv.FreeAddress(t)
	env := []string{"RABBITMQ_URL=" + os.Getenv("RABBITMQ_URL"), "POSTGRES_URL=" + string(db), "KEYS_FILE=" + keysFile,
		"API_ADDR=" + apiAddr, "QUERY_ADDR=" + queryAddr, "WORKER_ADDR=127.0.0.1:0"}
	services := map[string]*process{}
	for _, name := range []string{"api", "worker", "query"} {
		services[name] = startMillrace(t, t.TempDir(), env, name)
	}
	ask := func(method, url, secret string) int {
		req, err := http.NewRequest(method, url, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-API-Key", secret)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0 // it is starting
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	lets := func(what, in, out string) {
		t.Helper()
		testenv.Eventually(t, 20*time.Second, what, func() bool {
			return ask("POST", "http://"+apiAddr+"/log", in) == 202 && ask("GET", "http://"+queryAddr+"/logs", in) == 200 &&
				ask("POST", "http://"+apiAddr+"/log", out) == 401 && ask("GET", "http://"+queryAddr+"/logs", out) == 401
		})
	}
	lets("the first key lets in", firstSecret, secondSecret)
	// Until it is up, a hangup ends it as any other program.
	testenv.Eventually(t, 20*time.Second, "the worker is up", func() bool { return strings.Contains(services["worker"].out.String(), "worker is up") })
	write(second)
	for _, p := range services {
		p.signal(t, syscall.SIGHUP)
	}
	lets("the second key lets in, the first no more", secondSecret, firstSecret)
	for _, name := range []string{"api", "query"} {
		testenv.Eventually(t, 5*time.Second, name+" says so", func() bool { return strings.Contains(services[name].out.String(), "read the keys again") })
	}
	for _, name := range []string{"api", "worker", "query"} {
		services[name].stop(t)
	}
}

// Without servers the services start all the same.
func TestEachServiceServesItsProfilesWhereItIsTold(t *testing.T) {
	env := []string{"RABBITMQ_URL=amqp://127.0.0.1:1/", "POSTGRES_URL=postgres://127.0.0.1:1/none", "API_ADDR=127.0.0.1:0",
		"WORKER_ADDR=127.0.0.1:0", "QUERY_ADDR=127.0.0.1:0", "SHUTDOWN_DELAY=0s"}
	for _, name := range []string{"api", "worker", "query"} {
		addr := testenv.FreeAddress(t)
		p := startMillrace(t, t.TempDir(), append(env, "PPROF_ADDR="+addr), name)
		testenv.Eventually(t, 20*time.Second, name+" serves profiles", func() bool {
			resp, err := http.Get("http://" + addr + "/debug/pprof/heap")
			if err != nil {
				return false // it is starting
			}
			_ = resp.Body.Close()
			return resp.StatusCode == http.StatusOK
		})
		p.stop(t)

		p = startMillrace(t, t.TempDir(), append(env, "PPROF_ADDR=0.0.0.0:6060"), name)
		<-p.done
		if want := "millrace: PPROF_ADDR: got \"0.0.0.0:6060\", takes host:port of this machine alone such as 127.0.0.1:6060\n"; p.out.String() != want || p.ProcessState.ExitCode() != 1 {
			t.Errorf("%s: got %q, status %d, want %q and 1", name, p.out, p.ProcessState.ExitCode(), want)
		}
	}
}
