package api

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"millrace/api/front"
	"millrace/internal/keys"
	"millrace/internal/testenv"
)

// allocated returns how many bytes the process has allocated since its start.
func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// heapInUse returns how many bytes of heap the process holds.
func heapInUse() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // objects in pools survive the first collection
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// inflightBytes returns how many bytes requests hold, as the API's metrics say.
func (a *testAPI) inflightBytes(t testing.TB) int64 {
	t.Helper()
	m := regexp.MustCompile(`(?m)^millrace_api_inflight_bytes (\S+)$`).FindStringSubmatch(a.get(t, "/metrics").body)
	n, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return int64(n)
}

func (a *testAPI) addr() string { return strings.TrimPrefix(a.url, "http://") }

func TestBodiesWhereNoneBelongAreNotKept(t *testing.T) {
	line, _ := newKey(t, "a", keys.Write, "")
	file := newKeyFile(t, line)
	a := start(t, file.use)
	const size = 16 << 20 // MAX_BODY_BYTES
	piece := bytes.Repeat([]byte("x"), 256<<10)
	chunk := fmt.Appendf(nil, "%x\r\n%s\r\n", len(piece), piece)
	for _, target := range []string{
		"GET /health", "HEAD /health", "POST /health", "GET /ready", "GET /metrics", "HEAD /metrics", "DELETE /metrics",
		"GET /log", "POST /log", "POST /log/batch", "PUT /log/batch", "OPTIONS /log", "GET /", "POST /nowhere", "GET //health",
	} {
		for _, form := range []string{"HTTP/1.0 length", "HTTP/1.1 length", "HTTP/1.1 chunked", "HTTP/1.1 expected length", "HTTP/1.1 expected chunked", "HTTP/1.1 far too long"} {
			version, framing, _ := strings.Cut(form, " ")
			before := allocated()
			conn := dial(t, a.addr())
			request := target + " " + version + "\r\nHost: x\r\n"
			if strings.Contains(framing, "expected") {
				request += "Expect: 100-continue\r\n"
			}
			chunked := strings.Contains(framing, "chunked")
			switch {
			case chunked:
				request += "Transfer-Encoding: chunked\r\n\r\n"
			case framing == "far too long":
				request += "Content-Length: 4000000000\r\n\r\n"
			default:
				request += fmt.Sprintf("Content-Length: %d\r\n\r\n", size)
			}
			go func() {
				_, err := io.WriteString(conn, request)
				for sent := 0; err == nil && sent < size; sent += len(piece) {
					if chunked {
						_, err = conn.Write(chunk)
					} else {
						_, err = conn.Write(piece)
					}
				}
				if err == nil && chunked {
					_, _ = io.WriteString(conn, "0\r\n\r\n") // it may be closed by now
				}
			}()
			_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second)) // the read tells
			got, err := http.ReadResponse(bufio.NewReader(conn), nil)
			switch {
			case err != nil && !strings.Contains(err.Error(), "reset"): // it does not wait to be read for ever
				t.Errorf("%s %s: %v", target, form, err)
			case err == nil && got.StatusCode < 400 && !strings.Contains(form, "expected"):
				t.Errorf("%s %s: got %d for a body that is not taken", target, form, got.StatusCode)
			}
			_ = conn.Close() // it may be closed
			if took := allocated() - before; took > size/4 {
				t.Errorf("%s %s: %d bytes were allocated for a body of %d that nobody wants", target, form, took, size)
			}
		}
	}
}

func TestAProbeWithASmallBodyIsAnswered(t *testing.T) {
	a := start(t, nil)
	for _, path := range []string{"/health", "/ready", "/metrics"} {
		for range 2 { // the connection is good for more
			if got := a.do(t, http.MethodGet, path, strings.NewReader(`{"probe":true}`), nil); got.status != http.StatusOK {
				t.Errorf("%s: got %d %s, want 200", path, got.status, got.body)
			}
		}
		got := a.do(t, http.MethodGet, path, bytes.NewReader(make([]byte, maxNeedless+1)), nil)
		if got.status != http.StatusRequestEntityTooLarge || !strings.Contains(got.body, "takes no body") {
			t.Errorf("%s with a large body: got %d %s, want 413 and why", path, got.status, got.body)
		}
	}
}

// windowOf8MiB returns the beginning of a zstd body whose decoder needs 8 MiB.
func windowOf8MiB() string {
	head := append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, (23 - 10) << 3}, binary.LittleEndian.AppendUint32(nil, 1<<3)[:3]...)
	return string(append(head, '{'))
}

func TestWhatIsReservedFollowsWhatCame(t *testing.T) {
	a := start(t, func(c *Config) { c.MaxInflightBytes, c.MaxBodyBytes = 16<<20, 1<<20 })
	const clients = 300 // with 64 KiB each they would use up the whole bound
	for name, begin := range map[string]string{
		"chunked":        "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
		"gzip":           "Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n\x1f\x8b\x08\r\n",
		"zstd":           "Content-Encoding: zstd\r\nTransfer-Encoding: chunked\r\n\r\na\r\n" + windowOf8MiB() + "\r\n",
		"deflate":        "Content-Encoding: deflate\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n\x78\x9c\r\n",
		"Content-Length": "Content-Length: 1000000\r\n\r\n{",
		"zstd of a length": "Content-Encoding: zstd\r\nContent-Length: 1000000\r\n\r\n" + windowOf8MiB() +
			strings.Repeat(" ", 8<<10),
	} {
		held := heapInUse()
		var open []net.Conn
		for range clients {
			conn := dial(t, a.addr())
			if _, err := io.WriteString(conn, "POST /log/batch HTTP/1.1\r\nHost: x\r\n"+begin); err != nil {
				t.Fatal(err)
			}
			open = append(open, conn)
		}
		if name != "Content-Length" { // of which nothing is known before 8 KiB have come
			least := int64(clients * firstBytes)
			if name == "chunked" { // its bytes come by way of the request's own memory
				least = clients * minBuffer
			}
			testenv.Eventually(t, 9*time.Second, name+": all have begun", func() bool { return a.inflightBytes(t) >= least })
		}
		if got, most := a.inflightBytes(t), int64(clients*max(firstBytes, 4*len(begin))); got > most {
			t.Errorf("%s: %d clients hold %d bytes, want at most %d", name, clients, got, most)
		}
		if got := a.post(t, "/log", []byte(`{"a":1}`), nil); got.status != http.StatusAccepted {
			t.Errorf("%s: a record beside got %d %s, want 202", name, got.status, got.body)
		}
		if got := a.post(t, "/log/batch", bytes.Repeat([]byte("{\"a\":1}\n"), 20_000), nil); got.status != http.StatusAccepted {
			t.Errorf("%s: a batch beside got %d %s, want 202", name, got.status, got.body)
		}
		if grown, most := heapInUse()-held, int64(clients*96<<10); grown > most { // most of it the connections themselves
			t.Errorf("%s: %d clients made the process grow by %d bytes, want at most %d", name, clients, grown, most)
		}
		for _, conn := range open {
			_ = conn.Close() // it may be closed
		}
		testenv.Eventually(t, 30*time.Second, "nothing is held", func() bool { return a.inflightBytes(t) == 0 })
	}
}

func TestSlowUploadsLeaveRoomForWhatHasCome(t *testing.T) {
	a := start(t, func(c *Config) { c.MaxInflightBytes, c.MaxBodyBytes = 4<<20, 1<<20 })
	for range 100 { // 6 MB, sent in earnest
		conn := dial(t, a.addr())
		_, _ = fmt.Fprintf(conn, "POST /log/batch HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", 60<<10, strings.Repeat(" ", 60<<10)) // it may be refused
	}
	testenv.Eventually(t, 9*time.Second, "slow uploads have their share", func() bool { return a.inflightBytes(t) > 2<<20 })
	for range 20 {
		if got := a.post(t, "/log", []byte(`{"a":1}`), nil); got.status != http.StatusAccepted {
			t.Fatalf("a record beside got %d %s, want 202", got.status, got.body)
		}
	}
	if got := a.inflightBytes(t); got > 3<<20 {
		t.Errorf("slow uploads hold %d bytes, want at most three quarters of 4 MiB", got)
	}
}

func TestADecoderIsReservedBeforeItIsMade(t *testing.T) {
	a := start(t, func(c *Config) { c.MaxInflightBytes, c.MaxBodyBytes = 4<<20, 1<<20 })
	encoded := []byte(windowOf8MiB())
	encoded[6] |= 1 // the only block
	before := allocated()
	got := a.post(t, "/log", encoded, http.Header{"Content-Encoding": {"zstd"}})
	if got.status != http.StatusRequestEntityTooLarge || !strings.Contains(got.body, "MAX_INFLIGHT_BYTES") {
		t.Errorf("a window that never fits: got %d %s, want 413 and the setting's name", got.status, got.body)
	}
	if took := allocated() - before; took > 2<<20 {
		t.Errorf("%d bytes were allocated for a decoder that there is no room for", took)
	}
}

func TestTheLargestWindowOfAZstdBodyIsKnownBeforeItIsDecoded(t *testing.T) {
	frame := func(window int, streamed bool, text string) []byte {
		var b bytes.Buffer
		e, err := zstd.NewWriter(&b, zstd.WithWindowSize(window))
		if err != nil {
			t.Fatal(err)
		}
		if !streamed {
			return e.EncodeAll([]byte(text), nil)
		}
		for _, part := range []string{text[:len(text)/2], text[len(text)/2:]} {
			_, _ = io.WriteString(e, part) // to memory
			_ = e.Flush()
		}
		_ = e.Close()
		return b.Bytes()
	}
	text := strings.Repeat("0123456789", 100_000)
	skipped := append([]byte{0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0}, "abc"...)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for name, tt := range map[string]struct {
		body []byte
		want int64
	}{
		"one frame":                  {frame(1<<20, true, text), 1 << 20},
		"the larger comes second":    {join(frame(1<<16, true, text), frame(4<<20, true, text)), 4 << 20},
		"the larger comes first":     {join(frame(4<<20, true, text), frame(1<<16, true, text)), 4 << 20},
		"behind a skippable frame":   {join(skipped, frame(2<<20, true, text)), 2 << 20},
		"one segment":                {frame(8<<20, false, text), int64(len(text))},
		"larger than what is taken":  {frame(64<<20, true, text), zstdWindow},
		"cut within its first block": {frame(1<<20, true, text)[:12], 1 << 20},
		"none":                       {[]byte("{}"), 0},
		"empty":                      {nil, 0},
	} {
		if got := largestWindow(tt.body); got != tt.want {
			t.Errorf("%s: got %d, want %d", name, got, tt.want)
		}
	}
}

// TestStrangersKeepNobodyOut has strangers hold all connections, in every way that needs no key.
func TestStrangersKeepNobodyOut(t *testing.T) {
	line, header := newKey(t, "a", keys.Write, "")
	file := newKeyFile(t, line)
	const most = 30
	a := start(t, func(c *Config) {
		file.use(c)
		c.MaxConnections = most
	})
	header.Set("Connection", "close")                           // each request on a connection of its own,
	a.client.Transport.(*http.Transport).CloseIdleConnections() // also the first: that one is a stranger's so far
	for name, said := range map[string]string{
		"nothing":                     "",
		"a request, and then nothing": "GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
		"half a header":               "POST /log HTTP/1.1\r\nX-Slow: ",
		"a body beside a wrong key":   "POST /log HTTP/1.1\r\nHost: x\r\nX-API-Key: mr_wrong\r\nContent-Length: 1000000\r\n\r\n{",
		"a body where none belongs":   "GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n" + strings.Repeat(" ", 9000),
		"an expected body":            "POST /log HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n",
	} {
		var open []net.Conn
		for range 2 * most {
			conn := dial(t, a.addr())
			_, _ = io.WriteString(conn, said) // it may be closed by now
			open = append(open, conn)
		}
		for i := range most {
			// On a busy machine the earlier requests may not have left yet, so that for a moment there is no room.
			testenv.Eventually(t, 9*time.Second, fmt.Sprintf("%s: request %d with a key is taken", name, i), func() bool {
				return a.do(t, http.MethodPost, "/log", strings.NewReader(`{"a":1}`), header).status == http.StatusAccepted
			})
		}
		for _, conn := range open {
			_ = conn.Close() // it may be closed
		}
	}
}

// TestAConnectionHoldsLittleBetweenRequests has each client send, one after another on its connection, the requests that
// leave most memory behind.
func TestAConnectionHoldsLittleBetweenRequests(t *testing.T) {
	a := start(t, nil)
	const clients = 200
	fields := new(strings.Builder)
	for i := 0; fields.Len() < front.HeaderBytes-1024; i++ {
		fmt.Fprintf(fields, "%x:\r\n", i)
	}
	requests := []string{
		"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /nowhere?" + strings.Repeat("a&", 3000) + " HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /log?" + strings.Repeat("a&", 3000) + " HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
		"POST /log HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat(" ", 100_000),
		"POST /log/batch?ids=true HTTP/1.1\r\nHost: x\r\nContent-Length: 30000\r\n\r\n" + strings.Repeat("{}\n", 10_000),
		"GET /health HTTP/1.1\r\nHost: x\r\n" + fields.String() + "\r\n", // the last: its connection ends
	}
	ask := func(conn net.Conn, requests []string) {
		reader := bufio.NewReader(conn)
		for _, request := range requests {
			if _, err := io.WriteString(conn, request); err != nil {
				return // the one before was answered with the connection's end
			}
			_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second)) // the read tells
			got, err := http.ReadResponse(reader, nil)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, got.Body)
		}
	}
	ask(dial(t, a.addr()), requests) // what is made once
	held := heapInUse()
	var wg sync.WaitGroup
	var open []net.Conn
	for i := range clients {
		conn := dial(t, a.addr())
		open = append(open, conn)
		wg.Go(func() { ask(conn, requests[:len(requests)-i%2]) })
	}
	wg.Wait()
	grown := heapInUse() - held
	t.Logf("%d bytes a connection, the test's own 4 KiB and a goroutine's stack included", grown/clients)
	if grown > clients*(64<<10) {
		t.Errorf("%d idle connections hold %d bytes, %d each", clients, grown, grown/clients)
	}
	runtime.KeepAlive(open)
}

func TestNoSecretIsLoggedOfAMalformedRequest(t *testing.T) {
	const secret = "mr_SECRETKEY"
	log := new(testenv.Output)
	hash := sha256.Sum256([]byte(secret))
	file := newKeyFile(t, keys.Key{Name: "a", Hash: hash, Scopes: []string{keys.Write}}.String())
	a := start(t, func(c *Config) {
		file.use(c)
		c.Log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	const head = "POST /log HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + secret + "\r\n"
	for _, request := range []string{
		head + "Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
		head,
		head + "No colon\r\n\r\n",
		head + secret + " : x\r\n\r\n",
		head + "Content-Length: " + secret + "\r\n\r\n",
		head + "Transfer-Encoding: " + secret + "\r\n\r\n",
		head + "Transfer-Encoding: chunked\r\n\r\n" + secret + "\r\n",
		head + "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n" + secret + "\x00: x\r\n\r\n",
		head + "Content-Length: 100\r\n\r\n" + `{"password":"` + secret,
		head + "Content-Encoding: " + secret + "\r\nContent-Length: 2\r\n\r\n{}",
		"POST /log " + secret + "\r\n" + head + "\r\n",
		"POST http://[" + secret + "/log HTTP/1.1\r\n\r\n",
		secret + "\x00 /log HTTP/1.1\r\n\r\n",
		head + "X: " + strings.Repeat(secret, 1000) + "\r\n\r\n",
	} {
		conn := dial(t, a.addr())
		_, _ = io.WriteString(conn, request)                       // it may be refused before its end
		_ = conn.(*net.TCPConn).CloseWrite()                       // a request that ends early
		_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second)) // the read tells
		if _, err := io.Copy(io.Discard, conn); isTimeout(err) {   // closed, or reset
			t.Errorf("%.60q…: no answer", request)
		}
	}
	if err := a.stop(); err != nil {
		t.Error(err)
	}
	if got := log.String(); strings.Contains(got, "SECRET") || strings.Contains(got, "password") {
		t.Errorf("the log has what a client sent:\n%s", got)
	} else if !strings.Contains(got, "level=DEBUG") {
		t.Errorf("nothing was logged, which shows nothing:\n%s", got)
	}
}

func isTimeout(err error) bool {
	timeout, ok := err.(net.Error)
	return ok && timeout.Timeout()
}
