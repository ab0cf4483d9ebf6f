package deploy

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/internal/config"
	"millrace/internal/e2e"
	"millrace/internal/frame"
	"millrace/internal/keys"
	"millrace/internal/testenv"
)

const shipperPages = "deploy/shippers"

// shipped is what the proxy saw of one request.
type shipped struct {
	at        time.Time
	key, body string
}

// flaky is a proxy between a shipper and the API that loses answers and refuses requests.
type flaky struct {
	*httptest.Server
	mu   sync.Mutex
	seen []shipped
}

// newFlaky returns a proxy to the API at addr. The first request is stored and its answer lost. The second and the third are
// refused with a Retry-After of a second. All later ones are passed on.
func newFlaky(t *testing.T, addr string) *flaky {
	p := new(flaky)
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		p.mu.Lock()
		p.seen = append(p.seen, shipped{time.Now(), r.Header.Get("Idempotency-Key"), string(body)})
		n := len(p.seen)
		p.mu.Unlock()
		if status := map[int]int{2: http.StatusServiceUnavailable, 3: http.StatusTooManyRequests}[n]; status != 0 {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(status)
			return
		}
		req, err := http.NewRequest(r.Method, "http://"+addr+r.URL.RequestURI(), bytes.NewReader(body))
		if err != nil {
			t.Error(err)
			return
		}
		req.Header = r.Header.Clone()
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close()
		if n == 1 {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body) // the shipper may be gone
	}))
	p.Config.ErrorLog = nil
	t.Cleanup(p.Close)
	return p
}

func (p *flaky) requests() []shipped {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]shipped(nil), p.seen...)
}

// pipeline starts an API that asks for a key, and a worker. It returns the API's address, a key, and the database.
func pipeline(t *testing.T) (addr, secret string, db config.PostgresURL) {
	t.Helper()
	db = testenv.Schema(t)
	b := testenv.Broker(t, 1)
	key, secret, err := keys.New("shipper", []string{keys.Write})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte(key.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	addr = e2e.RunAPI(t, b, map[string]string{"KEYS_FILE": file})
	e2e.RunWorker(t, b, slog.New(slog.DiscardHandler), map[string]string{"POSTGRES_URL": string(db), "WORKER_STREAMS": "1"})
	return addr, secret, db
}

// settle waits until everything that the API has taken so far is stored: there is one queue and one stream.
func settle(t *testing.T, addr, secret string, conn *pgx.Conn) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, "http://"+addr+"/log", strings.NewReader(`{"last":true}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", secret)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	id, _ := testenv.ReadJSON(t, resp)["id"].(string)
	testenv.AwaitCount(t, conn, 1, "SELECT count(*) FROM logs WHERE id = '"+id+"'")
}

// code writes the files that a page shows, each fenced with its name, into a folder and returns the folder.
func code(t *testing.T, page string) (dir string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(shipperPages, page))
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	files := regexp.MustCompile("(?ms)^```\\w+ (\\S+)\n(.*?\n)```$").FindAllSubmatch(text, -1)
	if len(files) == 0 {
		t.Fatalf("%s holds no file", page)
	}
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(dir, string(f[1])), f[2], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestTheProgramsOfThePagesStoreOnceWhateverTheAnswers(t *testing.T) {
	programs := []struct {
		page    string
		needs   string
		command []string
	}{
		{"curl.md", "curl", []string{"bash", "send.sh", "app.ndjson"}},
		{"go.md", "go", []string{"go", "run", "send.go"}},
		{"python.md", "python3", []string{"python3", "send.py"}},
		{"node.md", "node", []string{"node", "send.mjs"}},
	}
	addr, secret, db := pipeline(t)
	for _, p := range programs {
		t.Run(p.page, func(t *testing.T) {
			t.Parallel() // each sleeps for the Retry-After of its proxy
			if _, err := exec.LookPath(p.needs); err != nil {
				t.Skipf("%v: its page is not tested", err)
			}
			dir := code(t, p.page)
			run := func(url, body string) (out string, err error) {
				t.Helper()
				if err := os.WriteFile(filepath.Join(dir, "app.ndjson"), []byte(body), 0o600); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(context.Background(), testenv.LeastWait)
				defer cancel()
				cmd := exec.CommandContext(ctx, p.command[0], p.command[1:]...)
				cmd.Dir, cmd.Stdin = dir, strings.NewReader(body)
				cmd.Env = append(os.Environ(), "MILLRACE_URL="+url, "MILLRACE_KEY="+secret, "NO_PROXY=*", "GOFLAGS=")
				b, err := cmd.CombinedOutput()
				return string(b), err
			}
			proxy := newFlaky(t, addr)
			body := `{"page":"` + p.page + `","n":0}` + "\n" + `{"nul":"\u0000"}` + "\n" + `{"page":"` + p.page + `","n":2}` + "\n"
			out, err := run(proxy.URL, body)
			if err != nil || !strings.Contains(out, `\u0000 can't be stored`) && !strings.Contains(out, `\\u0000 can't be stored`) {
				t.Errorf("got %v, want the refused record told:\n%s", err, out)
			}
			seen := proxy.requests()
			if len(seen) != 4 {
				t.Fatalf("%d requests, want 4:\n%s", len(seen), out)
			}
			for i, s := range seen {
				id, err := uuid.Parse(s.key)
				if err != nil || !frame.IsV7(id) || s.key != seen[0].key || s.body != body {
					t.Errorf("request %d: key %q, want the UUIDv7 of the first, %q, with the same body %q", i, s.key, seen[0].key, s.body)
				}
				if i >= 2 && s.at.Sub(seen[i-1].at) < 900*time.Millisecond { // clocks and timers are a little off
					t.Errorf("request %d came %v after one that was told to wait a second", i, s.at.Sub(seen[i-1].at))
				}
			}
			// A body that is refused for good is sent once, and the program says so.
			fresh := newFlaky(t, addr)
			fresh.seen = make([]shipped, 3)
			if out, err := run(fresh.URL, "[1,"); err == nil || !strings.Contains(out, "400") {
				t.Errorf("a body that is no JSON: got %v, want a failure with its status:\n%s", err, out)
			}
			if n := len(fresh.requests()) - 3; n != 1 {
				t.Errorf("a body that is no JSON was sent %d times, want once", n)
			}
			conn := testenv.Connect(t, db) // a connection is one goroutine's
			settle(t, addr, secret, conn)
			if n := testenv.Count(t, conn, "SELECT count(*) FROM logs WHERE data->>'page' = '"+p.page+"'"); n != 2 {
				t.Errorf("%d rows, want 2", n)
			}
		})
	}
}

// TestTheConfigurationsOfThePagesStore runs the configurations of the shippers that are installed. Few are, as a rule.
func TestTheConfigurationsOfThePagesStore(t *testing.T) {
	shippers := []struct {
		program string
		args    []string
		keyed   bool // it makes its own keys, and ends with the file
	}{
		{"bento", []string{"-c", "bento.yaml"}, true},
		{"otelcol", []string{"--config", "opentelemetry-otlphttp.yaml"}, false},
		{"otelcol-contrib", []string{"--config", "opentelemetry-otlphttp.yaml"}, false},
		{"vector", []string{"--config", "vector.yaml"}, false},
		{"fluent-bit", []string{"-c", "fluent-bit.yaml"}, false},
	}
	for _, s := range shippers {
		t.Run(s.program, func(t *testing.T) {
			program, err := exec.LookPath(s.program)
			if err != nil {
				t.Skipf("%v: its configuration is not tested", err)
			}
			addr, secret, db := pipeline(t)
			conn := testenv.Connect(t, db)
			proxy := newFlaky(t, addr)
			dir := t.TempDir()
			configuration, err := os.ReadFile(filepath.Join(shipperPages, s.args[len(s.args)-1]))
			if err != nil {
				t.Fatal(err)
			}
			// Its state is kept in the test's folder.
			configuration = bytes.ReplaceAll(configuration, []byte("/var/lib/fluent-bit"), []byte(dir))
			for name, text := range map[string][]byte{
				s.args[len(s.args)-1]: configuration,
				"app.ndjson":          []byte(strings.Repeat(`{"app":"`+s.program+`","level":"info"}`+"\n", 3)),
			} {
				if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			host, port, _ := strings.Cut(strings.TrimPrefix(proxy.URL, "http://"), ":")
			p := exec.Command(program, s.args...)
			p.Dir = dir
			p.Env = append(os.Environ(), "MILLRACE_URL="+proxy.URL, "MILLRACE_HOST="+host, "MILLRACE_PORT="+port, "MILLRACE_KEY="+secret,
				"LOG_FILE="+filepath.Join(dir, "app.ndjson"), "VECTOR_DATA_DIR="+dir)
			out := new(testenv.Output)
			p.Stdout, p.Stderr = out, out
			if err := p.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() {
				_ = p.Wait() // its rows are counted below
				close(ended)
			}()
			defer func() {
				_ = p.Process.Kill() // it may have ended
				<-ended
				if t.Failed() {
					t.Logf("%s wrote:\n%s", s.program, out)
				}
			}()
			const want = 3
			count := "SELECT count(*) FROM logs WHERE data->>'app' = '" + s.program + "'"
			// Some wait for more than ten seconds before each try.
			testenv.Eventually(t, 2*time.Minute, s.program+" has sent the records", func() bool {
				return len(proxy.requests()) >= 4 && testenv.Count(t, conn, count) >= want
			})
			if s.keyed {
				<-ended
			}
			settle(t, addr, secret, conn)
			if n := testenv.Count(t, conn, count); n != want {
				t.Errorf("%d rows, want %d", n, want)
			}
			if !s.keyed {
				return
			}
			for _, r := range proxy.requests() {
				if id, err := uuid.Parse(r.key); err != nil || !frame.IsV7(id) || r.key != proxy.requests()[0].key {
					t.Errorf("a request under the key %q, want the UUIDv7 of the first", r.key)
				}
			}
		})
	}
}
