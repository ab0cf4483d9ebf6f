package deploy

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/config"
	"millrace/internal/e2e"
	"millrace/internal/keys"
	"millrace/internal/testenv"
)

// clientPrograms is where make clients leaves the programs that send.
const clientPrograms = "bin/shippers"

// client is a real client of one of the protocols.
type client struct {
	name string

	// start returns the command that sends the lines of a file to the API at url. It is told where, by what key, and in which
	// folder it may write. It returns an error if the client is not here.
	start func(to destination) (*exec.Cmd, error)

	daemon   bool   // it goes on when all is sent, and must be ended
	fragile  bool   // it ends, or drops records, when the API is away for a moment
	gives    bool   // it gives up what was refused, or got no answer
	regroups bool   // it sends again what got no answer with other records beside it, so that it is stored twice
	refuses  bool   // it sends where a record with \u0000 is refused, not repaired
	answers  script // what the proxy does, if not the usual; why is said where it is set
	slow     bool   // it waits for minutes: it is tested where MILLRACE_SLOW_CLIENTS is set
}

// destination is where a client sends what.
type destination struct {
	url, key string
	lines    string        // the file
	pace     time.Duration // the pause after each line
	dir      string
}

func clients() []client {
	program := func(path string, args ...string) func(destination) (*exec.Cmd, error) {
		return func(to destination) (*exec.Cmd, error) {
			path, err := filepath.Abs(path)
			if err != nil {
				return nil, err
			}
			if _, err := os.Stat(path); err != nil {
				return nil, err
			}
			return exec.Command(path, args...), nil
		}
	}
	node := func(name string) func(destination) (*exec.Cmd, error) {
		return func(to destination) (*exec.Cmd, error) {
			path, err := filepath.Abs(clientPrograms + "/.node/send.mjs")
			if err != nil {
				return nil, err
			}
			if _, err := os.Stat(filepath.Dir(path) + "/node_modules"); err != nil {
				return nil, err
			}
			return exec.Command("node", path, name), nil
		}
	}
	return []client{
		{name: "otlp", start: program(clientPrograms + "/otlp"), gives: true},
		{name: "bulk", start: program(clientPrograms + "/bulk")},
		{name: "otlp-json", start: node("otlp-json")},
		{name: "otlp-protobuf", start: node("otlp-protobuf")},
		// Elasticsearch's client sends three times again, but not after 429. Then pino-elasticsearch ends.
		{name: "pino-elasticsearch", start: node("pino-elasticsearch"), fragile: true, answers: script{"lose", "503", "late", "ok", "lose"}},
		{name: "pino-loki", start: node("pino-loki"), gives: true},
		{name: "pino-http-send", start: pinoHTTPSend},
		// What Elasticsearch's client did not get through goes back among the records that came meanwhile.
		{name: "winston-elasticsearch", start: node("winston-elasticsearch"), answers: script{"lose", "503", "late", "ok", "lose"}},
		// It waits a minute after each failure.
		{name: "winston-loki", start: node("winston-loki"), regroups: true, answers: script{"ok", "lose"}, slow: true},
		{name: "winston-http", start: node("winston-http"), gives: true, refuses: true},
		{name: "splunk-logging", start: node("splunk-logging"), gives: true},
		// It may read all lines at once, and send them in one request.
		{name: "collector", start: collector, daemon: true, answers: script{"lose", "503", "late", "429", "lose"}},
		{name: "syslog-ng", start: syslogNG, daemon: true},
		{name: "rsyslog", start: rsyslog, daemon: true, regroups: true},
	}
}

// pinoHTTPSend returns the command of pino-http-send, which reads its standard input.
func pinoHTTPSend(to destination) (*exec.Cmd, error) {
	path, err := filepath.Abs(clientPrograms + "/.node/node_modules/.bin/pino-http-send")
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	script := fmt.Sprintf(`while read -r line; do printf '%%s\n' "$line"; sleep %.3f; done <"$LOG_FILE" |
		"$0" --bodyType ndjson --batchSize 4 --timeout 200 --retries 20 --interval 200 --username x --password "$MILLRACE_KEY" \
		--url "$MILLRACE_URL/log/batch?dedupe=body&ok=200&repair=true"`, to.pace.Seconds())
	return exec.Command("bash", "-c", script, path), nil
}

// debian returns the command of a program of Debian that is unpacked in a folder.
func debian(program string, args ...string) (cmd *exec.Cmd, root string, err error) {
	root, err = filepath.Abs(clientPrograms + "/.debian")
	if err != nil {
		return nil, "", err
	}
	program = root + program
	if _, err := os.Stat(program); err != nil {
		return nil, "", err
	}
	libraries, err := filepath.Glob(root + "/usr/lib/*-linux-gnu*")
	if err != nil {
		return nil, "", err
	}
	more, err := filepath.Glob(root + "/lib/*-linux-gnu*")
	if err != nil {
		return nil, "", err
	}
	libraries = append(append(libraries, more...), root+"/usr/lib", root+"/usr/lib/syslog-ng")
	cmd = exec.Command(program, args...)
	cmd.Env = []string{"LD_LIBRARY_PATH=" + strings.Join(libraries, ":")}
	return cmd, root, nil
}

// collector returns the command of an OpenTelemetry Collector that reads a file and sends OTLP.
func collector(to destination) (*exec.Cmd, error) {
	path, err := filepath.Abs(clientPrograms + "/collector")
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	configuration := fmt.Sprintf(`receivers:
  file_log:
    include: [%q]
    start_at: beginning
    poll_interval: 100ms
    operators:
      - type: json_parser
        parse_to: body
        timestamp: {parse_from: body.time, layout_type: gotime, layout: "2006-01-02T15:04:05.000Z07:00"}
        severity: {parse_from: body.level}
exporters:
  otlp_http:
    endpoint: %q
    headers: {X-API-Key: %q}
    retry_on_failure: {initial_interval: 100ms, max_interval: 1s}
    sending_queue: {num_consumers: 1}
service:
  pipelines:
    logs: {receivers: [file_log], exporters: [otlp_http]}
`, to.lines, to.url, to.key)
	file := filepath.Join(to.dir, "collector.yaml")
	if err := os.WriteFile(file, []byte(configuration), 0o600); err != nil {
		return nil, err
	}
	return exec.Command(path, "--config", "file:"+file), nil
}

// syslogNG returns the command of syslog-ng, with its destination of Elasticsearch.
func syslogNG(to destination) (*exec.Cmd, error) {
	cmd, root, err := debian("/usr/sbin/syslog-ng")
	if err != nil {
		return nil, err
	}
	scl := root + "/usr/share/syslog-ng/include/scl"
	configuration := fmt.Sprintf(`@version: 3.38
@include "%s/elasticsearch/*.conf"
options { stats-freq(0); };
source lines { file("%s" flags(no-parse) follow-freq(0.1)); };
destination millrace {
  elasticsearch-http(url("%s/_bulk") index("app") type("") template("$MESSAGE") workers(1) batch-lines(4) batch-timeout(100)
    headers("Content-Type: application/x-ndjson" "X-API-Key: %s" "X-Dedupe: body") time-reopen(1) retries(20) timeout(10));
};
log { source(lines); destination(millrace); flags(flow-control); };
`, scl, to.lines, to.url, to.key)
	file := filepath.Join(to.dir, "syslog-ng.conf")
	if err := os.WriteFile(file, []byte(configuration), 0o600); err != nil {
		return nil, err
	}
	modules, err := filepath.Glob(root + "/usr/lib/syslog-ng/*.*/libhttp.so")
	if err != nil || len(modules) == 0 {
		return nil, fmt.Errorf("no libhttp.so of syslog-ng: %w", err)
	}
	cmd.Args = append(cmd.Args, "--foreground", "--stderr", "--no-caps", "--cfgfile", file, "--module-path", filepath.Dir(modules[0]),
		"--persist-file", filepath.Join(to.dir, "persist"), "--pidfile", filepath.Join(to.dir, "pid"), "--control", filepath.Join(to.dir, "control"))
	return cmd, nil
}

// rsyslog returns the command of rsyslog, with its omelasticsearch.
func rsyslog(to destination) (*exec.Cmd, error) {
	cmd, root, err := debian("/usr/sbin/rsyslogd")
	if err != nil {
		return nil, err
	}
	host, port, _ := strings.Cut(strings.TrimPrefix(to.url, "http://"), ":")
	configuration := fmt.Sprintf(`global(workDirectory="%s")
module(load="imfile")
module(load="omelasticsearch")
template(name="line" type="string" string="%%msg%%")
input(type="imfile" File="%s" Tag="app")
action(type="omelasticsearch" server="%s" serverport="%s" uid="x" pwd="%s" searchIndex="app" searchType="" bulkmode="on" template="line"
  queue.type="LinkedList" queue.dequeueBatchSize="4" action.resumeRetryCount="-1" action.resumeInterval="1" errorFile="%s")
`, to.dir, to.lines, host, port, to.key, filepath.Join(to.dir, "errors"))
	file := filepath.Join(to.dir, "rsyslog.conf")
	if err := os.WriteFile(file, []byte(configuration), 0o600); err != nil {
		return nil, err
	}
	modules, err := filepath.Glob(root + "/usr/lib/*/rsyslog")
	if err != nil || len(modules) == 0 {
		return nil, fmt.Errorf("no modules of rsyslog: %w", err)
	}
	cmd.Args = append(cmd.Args, "-n", "-f", file, "-i", filepath.Join(to.dir, "pid"), "-M", modules[0])
	return cmd, nil
}

// script is what a scripted proxy does with the requests that have a body, one word each; it passes on those beyond.
//
//	ok    pass it on
//	lose  pass it on, and cut the connection in place of the answer
//	late  pass it on, and answer 504, as a balancer does that waited too long
//	503   refuse it, with a Retry-After of a second
//	429   the same
type script []string

// scripted is a proxy between a client and the API.
type scripted struct {
	*httptest.Server
	mu     sync.Mutex
	script script
	count  int // requests with a body
	seen   []string
	busy   int  // requests under way
	failed bool // whether the latest answer was none that the client wants
}

func newScripted(t *testing.T, addr string, s script) *scripted {
	p := &scripted{script: s}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		word := p.begin(body)
		defer p.end(word)
		if word == "503" || word == "429" {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(map[string]int{"503": http.StatusServiceUnavailable, "429": http.StatusTooManyRequests}[word])
			return
		}
		req, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+addr+r.URL.RequestURI(), bytes.NewReader(body))
		if err != nil {
			t.Error(err)
			return
		}
		req.Header = r.Header.Clone()
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			panic(http.ErrAbortHandler) // the client is gone
		}
		defer resp.Body.Close()
		switch word {
		case "lose":
			panic(http.ErrAbortHandler)
		case "late":
			w.WriteHeader(http.StatusGatewayTimeout)
			return
		}
		for name, values := range resp.Header {
			w.Header()[name] = values
		}
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body) // the client may be gone
	}))
	p.Config.ErrorLog = nil
	t.Cleanup(p.Close)
	return p
}

func (p *scripted) begin(body []byte) (word string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy++
	if len(body) == 0 {
		return "ok"
	}
	word = "ok"
	if p.count < len(p.script) {
		word = p.script[p.count]
	}
	p.count++
	p.seen = append(p.seen, fmt.Sprintf("%s %.400q", word, body))
	return word
}

func (p *scripted) end(word string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy--
	p.failed = word != "ok"
}

// done reports whether the script is at its end, and nothing is under way or to be sent again.
func (p *scripted) done() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count >= len(p.script) && p.busy == 0 && !p.failed
}

// clientStack is what clients send to: an API that makes keys from the bodies of every protocol, and a worker.
type clientStack struct {
	broker   config.Broker
	db       config.PostgresURL
	settings map[string]string
	addr     string
	stop     func() // the API
	secret   string
}

func newClientStack(t *testing.T) *clientStack {
	t.Helper()
	s := &clientStack{broker: testenv.Broker(t, 1), db: testenv.Schema(t)}
	key, secret, err := keys.New("shipper", []string{keys.Write})
	if err != nil {
		t.Fatal(err)
	}
	s.secret = secret
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte(key.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.settings = map[string]string{"KEYS_FILE": file, "DERIVE_KEYS": "otlp,elastic,loki,hec"}
	s.addr, s.stop = e2e.StartAPI(t, s.broker, "127.0.0.1:0", s.settings)
	e2e.RunWorker(t, s.broker, slog.New(slog.DiscardHandler), map[string]string{"POSTGRES_URL": string(s.db), "WORKER_STREAMS": "1"})
	return s
}

// sending is a client at work.
type sending struct {
	app   string // the name that its records have
	base  time.Time
	cmd   *exec.Cmd
	out   *testenv.Output
	ended chan struct{}
	err   error // valid once ended is closed
}

// send starts a client that sends some records to url. Record bad, if it is not negative, has a character that PostgreSQL can't store.
func (s *clientStack) send(t *testing.T, c client, scenario, url string, records, bad int, pace time.Duration) *sending {
	t.Helper()
	to := destination{url: url, key: s.secret, pace: pace, dir: t.TempDir()}
	to.lines = filepath.Join(to.dir, "app.ndjson")
	r := &sending{app: c.name + "-" + scenario, base: time.Now().Add(-time.Hour).Truncate(time.Second).Add(123 * time.Millisecond).UTC()}
	var lines [][]byte
	for n := range records {
		message := fmt.Sprintf("line %d", n)
		if n == bad {
			message += "\x00"
		}
		line, err := json.Marshal(map[string]any{
			"time": r.base.Add(time.Duration(n) * time.Second).Format("2006-01-02T15:04:05.000Z07:00"), "level": "info", "message": message, "app": r.app, "n": n})
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, append(line, '\n'))
	}
	file, err := os.Create(to.lines)
	if err != nil {
		t.Fatal(err)
	}
	// A program reads the file and paces itself. A daemon follows it while it grows.
	grow := func(pace time.Duration) {
		for _, line := range lines {
			if _, err := file.Write(line); err != nil {
				t.Error(err)
			}
			time.Sleep(pace)
		}
		if err := file.Close(); err != nil {
			t.Error(err)
		}
	}
	if !c.daemon {
		grow(0)
	}
	cmd, err := c.start(to)
	if err != nil {
		t.Skipf("%v: make clients installs what the test of %s needs", err, c.name)
	}
	r.cmd, r.out, r.ended = cmd, new(testenv.Output), make(chan struct{})
	cmd.Dir, cmd.Stdout, cmd.Stderr = to.dir, r.out, r.out
	cmd.Env = append(append(os.Environ(), cmd.Env...), "MILLRACE_URL="+url, "MILLRACE_KEY="+s.secret, "LOG_FILE="+to.lines, "PACE="+pace.String(), "NO_PROXY=*", "NODE_NO_WARNINGS=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Skipf("%v: %s is not tested", err, c.name)
	}
	go func() {
		r.err = cmd.Wait()
		close(r.ended)
	}()
	if c.daemon {
		var grown sync.WaitGroup
		grown.Go(func() { grow(pace) })
		t.Cleanup(grown.Wait)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // it may have ended
		<-r.ended
		if t.Failed() {
			t.Logf("%s wrote:\n%s", r.app, r.out)
		}
	})
	return r
}

// await waits until the client has sent all, and returns a connection to the database, where all that was sent is stored.
func (r *sending) await(t *testing.T, s *clientStack, c client, records int, done func() bool) *pgx.Conn {
	t.Helper()
	conn := testenv.Connect(t, s.db) // a connection is one goroutine's
	if c.daemon {
		testenv.Eventually(t, 60*time.Second, c.name+" has sent the records", func() bool {
			return done() && testenv.Count(t, conn, r.rows("true")) >= records
		})
		if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), testenv.LeastWait)
	defer cancel()
	select {
	case <-r.ended:
		if r.err != nil && !c.daemon && !c.gives {
			t.Errorf("%s: %v", c.name, r.err)
		}
	case <-ctx.Done():
		t.Errorf("%s does not end", c.name)
	}
	settle(t, s.addr, s.secret, conn)
	return conn
}

// rows returns a statement that counts the rows of the client that meet a condition.
func (r *sending) rows(condition string) string {
	return fmt.Sprintf("SELECT count(*) FROM logs WHERE data->>'app' = '%s' AND (%s)", r.app, condition)
}

// check checks the rows of a client: as many as wanted, or fewer if some may be missing, none twice, each as it was sent.
func (r *sending) check(t *testing.T, c client, conn *pgx.Conn, want int, mayMiss bool) {
	t.Helper()
	n := testenv.Count(t, conn, r.rows("true"))
	distinct := testenv.Count(t, conn, strings.Replace(r.rows("true"), "count(*)", "count(DISTINCT data->>'n')", 1))
	if n != distinct && !c.regroups || distinct > want || distinct < want && !mayMiss {
		t.Errorf("%d rows of %d records, want %d of each", n, distinct, want)
	}
	other := r.rows(fmt.Sprintf("time <> timestamptz '%s' + (data->>'n')::int * interval '1 second'", r.base.Format(time.RFC3339Nano)))
	if wrong := testenv.Count(t, conn, other); wrong != 0 {
		t.Errorf("%d rows have another time than their event's", wrong)
	}
	if wrong := testenv.Count(t, conn, r.rows("data->>'message' <> 'line ' || (data->>'n') AND NOT data ? '_repaired' OR data->>'level' NOT IN ('info', '30')")); wrong != 0 {
		t.Errorf("%d rows have another message or level than was sent", wrong)
	}
	var row string
	err := conn.QueryRow(context.Background(), "SELECT coalesce((SELECT data::text FROM logs WHERE data->>'app' = $1 ORDER BY id LIMIT 1), 'none')", r.app).Scan(&row)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %d rows of %d records, such as %s", r.app, n, distinct, row)
}

// TestClientsStoreOnceAlthoughAnswersAreLost sends by real clients through a proxy that loses three answers of requests that were
// stored, and refuses two requests.
func TestClientsStoreOnceAlthoughAnswersAreLost(t *testing.T) {
	s := newClientStack(t)
	for _, c := range clients() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // they wait for each Retry-After
			if c.slow && os.Getenv("MILLRACE_SLOW_CLIENTS") == "" {
				t.Skip("it takes minutes: make shippers tests it")
			}
			answers := c.answers
			if answers == nil {
				answers = script{"lose", "503", "late", "429", "ok", "lose"}
			}
			proxy := newScripted(t, s.addr, answers)
			const records = 20
			r := s.send(t, c, "once", proxy.URL, records, -1, 10*time.Millisecond)
			r.check(t, c, r.await(t, s, c, records, proxy.done), records, c.gives)
			if proxy.count < len(answers) {
				t.Errorf("it made %d requests, want the proxy's whole script", proxy.count)
			}
			if t.Failed() || c.regroups {
				t.Logf("the proxy saw:\n%s", strings.Join(proxy.seen, "\n"))
			}
		})
	}
}

// TestClientsLoseNothingByABadRecord sends a record that PostgreSQL can't store among good ones.
func TestClientsLoseNothingByABadRecord(t *testing.T) {
	s := newClientStack(t)
	for _, c := range clients() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			const records, bad = 10, 5
			want := records
			if c.refuses {
				want--
			}
			r := s.send(t, c, "bad", "http://"+s.addr, records, bad, 10*time.Millisecond)
			conn := r.await(t, s, c, want, func() bool { return true })
			r.check(t, c, conn, want, false)
			repaired := testenv.Count(t, conn, r.rows("data ? '_repaired' AND data->>'message' = 'line 5\uFFFD'"))
			if repaired != want-records+1 {
				t.Errorf("%d rows were repaired, want %d", repaired, want-records+1)
			}
		})
	}
}

// TestClientsGoOnWhenTheAPIIsRestarted restarts the API while clients send.
func TestClientsGoOnWhenTheAPIIsRestarted(t *testing.T) {
	s := newClientStack(t)
	conn := testenv.Connect(t, s.db)
	const records = 200
	var begun []*sending
	all := slices.DeleteFunc(clients(), func(c client) bool {
		return !here(t, c) || c.slow && os.Getenv("MILLRACE_SLOW_CLIENTS") == ""
	})
	if len(all) == 0 {
		t.Skip("make clients installs what this needs")
	}
	for _, c := range all {
		begun = append(begun, s.send(t, c, "restart", "http://"+s.addr, records, -1, 10*time.Millisecond))
	}
	for _, r := range begun {
		testenv.Eventually(t, 60*time.Second, "the client sends", func() bool { return testenv.Count(t, conn, r.rows("true")) >= 10 })
	}
	s.stop()
	_, s.stop = e2e.StartAPI(t, s.broker, s.addr, s.settings)
	for i, c := range all {
		t.Run(c.name, func(t *testing.T) {
			begun[i].check(t, c, begun[i].await(t, s, c, records, func() bool { return true }), records, c.gives || c.fragile)
		})
	}
}

// here reports whether a client is installed.
func here(t *testing.T, c client) bool {
	t.Helper()
	dir := t.TempDir()
	_, err := c.start(destination{url: "http://127.0.0.1:1", key: "key", lines: filepath.Join(dir, "lines"), dir: dir})
	return err == nil
}
