package query

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"millrace/internal/config"
	"millrace/internal/frame"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(tests{m}) }

// tests are the package's. The browser that they share ends after the last of them, before goroutines are looked for.
type tests struct{ *testing.M }

func (t tests) Run() int {
	defer endBrowser()
	return t.M.Run()
}

// client talks to a running service.
type client struct {
	t    testing.TB
	base string
	http *http.Client
	key  string
}

// start runs the service on a free port until the test ends. The settings overlay the defaults.
func start(t testing.TB, settings map[string]string) *client {
	t.Helper()
	environ := map[string]string{"QUERY_ADDR": "127.0.0.1:0", "SHUTDOWN_TIMEOUT": "5s", "SHUTDOWN_DELAY": "0s"}
	for k, v := range settings {
		environ[k] = v
	}
	var c Config
	if err := config.LoadFrom(environ, &c); err != nil {
		t.Fatal(err)
	}
	c.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	addr := make(chan net.Addr, 1)
	c.OnListen = func(a net.Addr) { addr <- a }
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, c) }()
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run returned %v, want nil after an ordered stop", err)
		}
	})
	select {
	case a := <-addr:
		return &client{t: t, base: "http://" + a.String(), http: &http.Client{Transport: transport}}
	case err := <-done:
		done <- err
		t.Fatalf("Run: %v", err)
		return nil
	}
}

type reply struct {
	status int
	header http.Header
	body   string
}

func (c *client) do(ctx context.Context, method, path string) (reply, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, nil)
	if err != nil {
		return reply{}, err
	}
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, string(body)}, err
}

func (c *client) get(path string) reply {
	c.t.Helper()
	r, err := c.do(context.Background(), "GET", path)
	if err != nil {
		c.t.Fatal(err)
	}
	return r
}

// ok is get for a path that must answer 200 with JSON, decoded into dst.
func (c *client) ok(path string, dst any) reply {
	c.t.Helper()
	r := c.get(path)
	if r.status != http.StatusOK || r.header.Get("Content-Type") != "application/json" {
		c.t.Fatalf("GET %s: got %d, %s: %s", path, r.status, r.header.Get("Content-Type"), r.body)
	}
	if err := json.Unmarshal([]byte(r.body), dst); err != nil {
		c.t.Fatalf("GET %s: %v in %s", path, err, r.body)
	}
	return r
}

type logsPage struct {
	Logs []struct {
		ID         string          `json:"id"`
		InsertedAt string          `json:"inserted_at"`
		Data       json.RawMessage `json:"data"`
	} `json:"logs"`
	Next *string `json:"next"`
}

func (p logsPage) ids() []string {
	ids := make([]string, len(p.Logs))
	for i, l := range p.Logs {
		ids[i] = l.ID
	}
	return ids
}

// with builds a path with parameters: name, value, …
func with(base string, pairs ...string) string {
	v := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		v.Set(pairs[i], pairs[i+1])
	}
	return base + "?" + v.Encode()
}

// idAt returns a UUIDv7 of a millisecond whose random part counts up with n.
func idAt(at time.Time, n int) uuid.UUID {
	id := uuid.UUID{6: 0x70, 8: 0x80}
	ms := uint64(at.UnixMilli())
	for i := range 6 {
		id[5-i] = byte(ms >> (8 * i))
	}
	return frame.ID(id, n)
}

// partition makes a partition of logs for the day that holds at, if it is not there.
func partition(t testing.TB, db *pgx.Conn, at time.Time) string {
	t.Helper()
	day := at.UTC().Truncate(24 * time.Hour)
	name := "logs_" + day.Format("20060102")
	sql := fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s PARTITION OF logs FOR VALUES FROM ('%s') TO ('%s')",
		name, day.Format(time.RFC3339), day.Add(24*time.Hour).Format(time.RFC3339))
	if _, err := db.Exec(context.Background(), sql); err != nil {
		t.Fatal(err)
	}
	return name
}

// insert adds a row for each document, with ids that count up from n within the millisecond at.
func insert(t testing.TB, db *pgx.Conn, at time.Time, n int, docs ...string) []string {
	t.Helper()
	batch := new(pgx.Batch)
	var ids []string
	for i, doc := range docs {
		id := idAt(at, n+i)
		ids = append(ids, id.String())
		batch.Queue("INSERT INTO logs (id, inserted_at, data) VALUES ($1, $2, $3)", [16]byte(id), frame.Time(id), doc)
	}
	if err := db.SendBatch(context.Background(), batch).Close(); err != nil {
		t.Error(err)
	}
	return ids
}

// wire is a TCP relay to a server, which can be cut and mended.
type wire struct {
	t      testing.TB
	addr   string
	target string

	mu    sync.Mutex
	ln    net.Listener
	conns map[net.Conn]bool
	hung  chan struct{} // closed when nothing is relayed any more
	wg    sync.WaitGroup
}

// newWire relays to the host of a URL and returns the URL to use in its stead.
func newWire(t testing.TB, raw string) (*wire, string) {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{t: t, addr: "127.0.0.1:0", target: u.Host, conns: make(map[net.Conn]bool), hung: make(chan struct{})}
	if !strings.Contains(u.Host, ":") {
		t.Skipf("%s has no port", u.Redacted())
	}
	w.mend()
	t.Cleanup(w.cut)
	u.Host = w.addr
	return w, u.String()
}

func (w *wire) mend() {
	w.t.Helper()
	ln, err := net.Listen("tcp", w.addr)
	if err != nil {
		w.t.Fatal(err)
	}
	w.ln, w.addr = ln, ln.Addr().String()
	w.wg.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", w.target)
			if err != nil {
				in.Close()
				continue
			}
			w.mu.Lock()
			w.conns[in], w.conns[out] = true, true
			w.mu.Unlock()
			relay := func(dst, src net.Conn) {
				_, _ = io.Copy(sink{w, dst}, src) // ends when either side does
				dst.Close()
				src.Close()
			}
			w.wg.Go(func() { relay(out, in) })
			w.wg.Go(func() { relay(in, out) })
		}
	})
}

// hang keeps all connections open and relays nothing more.
func (w *wire) hang() { close(w.hung) }

type sink struct {
	*wire
	net.Conn
}

func (s sink) Write(b []byte) (int, error) {
	select {
	case <-s.hung:
		return len(b), nil
	default:
		return s.Conn.Write(b)
	}
}

func (w *wire) cut() {
	w.ln.Close()
	w.mu.Lock()
	for c := range w.conns {
		c.Close()
		delete(w.conns, c)
	}
	w.mu.Unlock()
	w.wg.Wait()
}
