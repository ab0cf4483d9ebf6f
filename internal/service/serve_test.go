package service

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace/internal/testenv"
)

// serve runs Serve until the test ends. It serves what every service has, and a path /secret that lets in clients
// with a key.
func serve(t *testing.T, wrap func(net.Listener) net.Listener, o Options) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	if wrap != nil {
		ln = wrap(ln)
	}
	mux := http.NewServeMux()
	Handle(mux, new(Ready), NewRegistry())
	mux.HandleFunc("/secret", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-API-Key") == "" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if !Admitted(r) {
			panic(http.ErrAbortHandler)
		}
		if r.URL.RawQuery == "wait" {
			<-r.Context().Done()
		}
	})
	o.Log, o.Grace = slog.New(slog.DiscardHandler), time.Second
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- Serve(ctx, ln, mux, o) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && err != context.DeadlineExceeded {
			t.Errorf("Serve: %v", err)
		}
	})
	return addr
}

var dial = testenv.Dial

// ask sends a request and returns the status of its answer, 0 for none.
func ask(t *testing.T, conn net.Conn, request string) (int, string) {
	t.Helper()
	_, _ = io.WriteString(conn, request)                       // the answer tells
	_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second)) // so does the read
	got, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, err.Error()
	}
	body, _ := io.ReadAll(got.Body)
	return got.StatusCode, string(body)
}

func TestServeBoundsHeaders(t *testing.T) {
	addr := serve(t, nil, Options{})
	fields := func(n, size int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "X-%d: %s\r\n", i, strings.Repeat("a", size))
		}
		return b.String()
	}
	for name, tt := range map[string]struct {
		header string
		want   int
	}{
		"a browser's":                  {fields(40, 100), 200},
		"long cookies":                 {fields(3, 3500), 200},
		"too many bytes":               {fields(5, 4000), 431},
		"too many bytes in one":        {fields(1, 30_000), 431},
		"too many fields":              {fields(maxHeaderLines+1, 1), 431},
		"many fields of hardly a byte": {strings.Repeat("a:\n", 4000), 431},
	} {
		got, body := ask(t, dial(t, addr), "GET /health HTTP/1.1\r\nHost: x\r\n"+tt.header+"\r\n")
		if got != tt.want {
			t.Errorf("%s: got %d %s, want %d", name, got, body, tt.want)
		}
	}
	conn := dial(t, addr)
	for range 5 { // the bound is one request's
		if got, body := ask(t, conn, "GET /health HTTP/1.1\r\nHost: x\r\n"+fields(100, 1)+"\r\n"); got != http.StatusOK {
			t.Errorf("one request after the other: got %d %s, want 200", got, body)
		}
	}
	lines := strings.Repeat("\n", 1000)
	if got, body := ask(t, dial(t, addr), fmt.Sprintf("GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(lines), lines)); got != http.StatusOK {
		t.Errorf("a body of many lines: got %d %s, want 200", got, body)
	}
}

func TestServeKeepsLittleOfHeadersThatDoNotEnd(t *testing.T) {
	addr := serve(t, nil, Options{MaxConnections: 500})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	endless := []byte("GET /health HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("x:"+strings.Repeat("y", 4000)+"\r\n", 250))
	var wg sync.WaitGroup
	for range 300 { // 300 MB
		conn := dial(t, addr)
		wg.Go(func() { _, _ = conn.Write(endless) }) // it is cut
	}
	wg.Wait()
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapInuse) - int64(before.HeapInuse); grown > 300*(64<<10) {
		t.Errorf("300 headers that don't end hold %d bytes", grown)
	}
}

func TestServeReadsNoBodies(t *testing.T) {
	addr := serve(t, nil, Options{AnswerTime: 10 * time.Second})
	piece := bytes.Repeat([]byte("x"), 256<<10)
	chunk := fmt.Appendf(nil, "%x\r\n%s\r\n", len(piece), piece)
	for _, target := range []string{"GET /health", "HEAD /health", "POST /health", "GET /ready", "GET /metrics", "HEAD /metrics", "POST /secret", "GET /nowhere"} {
		for _, form := range []string{"HTTP/1.0 length", "HTTP/1.1 length", "HTTP/1.1 chunked", "HTTP/1.1 expected"} {
			version, framing, _ := strings.Cut(form, " ")
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			conn := dial(t, addr)
			request, send := target+" "+version+"\r\nHost: x\r\n", piece
			switch framing {
			case "chunked":
				request, send = request+"Transfer-Encoding: chunked\r\n\r\n", chunk
			case "expected":
				request += "Expect: 100-continue\r\nContent-Length: 16777216\r\n\r\n"
			default:
				request += "Content-Length: 16777216\r\n\r\n"
			}
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				_, err := io.WriteString(conn, request)
				for i := 0; err == nil && i < 64; i++ {
					_, err = conn.Write(send)
				}
			}()
			<-sent
			_ = conn.Close() // it may be closed
			runtime.ReadMemStats(&after)
			if took := after.TotalAlloc - before.TotalAlloc; took > 4<<20 {
				t.Errorf("%s %s: %d bytes were allocated", target, form, took)
			}
		}
	}
}

const (
	keyed   = "GET /secret HTTP/1.1\r\nHost: x\r\nX-API-Key: k\r\n\r\n"
	unkeyed = "GET /secret HTTP/1.1\r\nHost: x\r\n\r\n"
)

func TestStrangersKeepNobodyOutOfServe(t *testing.T) {
	const most = 20
	secure := httptest.NewUnstartedServer(nil)
	secure.StartTLS() // for its certificate
	config := secure.TLS.Clone()
	config.NextProtos = nil // as Listen has it
	secure.Close()
	for name, wrap := range map[string]func(net.Listener) net.Listener{
		"plain": nil,
		"TLS":   func(ln net.Listener) net.Listener { return tls.NewListener(ln, config) },
	} {
		t.Run(name, func(t *testing.T) {
			addr := serve(t, wrap, Options{MaxConnections: most, Setting: "X_MAX"})
			dialTLS := func() net.Conn {
				if wrap == nil {
					return dial(t, addr)
				}
				conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}}) // its certificate is not the point
				if err != nil {
					t.Fatal(err)
				}
				if got := conn.ConnectionState().NegotiatedProtocol; got != "" {
					t.Errorf("%q is spoken, whose streams nothing bounds", got)
				}
				t.Cleanup(func() { _ = conn.Close() }) // it may be closed
				return conn
			}
			for _, said := range []string{"", unkeyed, "GET /secret HTTP/1.1\r\nX-Slow: ", "GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"} {
				for range 2 * most {
					_, _ = io.WriteString(dial(t, addr), said) // it may be closed by now
				}
				for range most {
					conn := dialTLS()
					if got, body := ask(t, conn, keyed); got != http.StatusOK {
						t.Fatalf("beside strangers that sent %q: got %d %s, want 200", said, got, body)
					}
					_ = conn.Close() // always nil
				}
			}
			// Requests that were let in are not cut, and one more connection is answered that there is no room.
			var open []net.Conn
			testenv.Eventually(t, 30*time.Second, "one more is told that there is no room", func() bool {
				conn, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				if wrap != nil {
					conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true}) // its certificate is not the point
				}
				t.Cleanup(func() { _ = conn.Close() })                                                  // it may be closed
				_, _ = io.WriteString(conn, strings.Replace(keyed, "/secret", "/secret?wait", 1))       // the read tells
				_ = conn.SetReadDeadline(time.Now().Add(time.Duration(len(open)+1) * time.Millisecond)) // so does the read
				answer := make([]byte, 1000)
				n, err := conn.Read(answer)
				if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
					open = append(open, conn)
				}
				return strings.Contains(string(answer[:n]), " 503 ")
			})
			if len(open) < most {
				t.Errorf("%d requests were let in at once, want %d", len(open), most)
			}
		})
	}
}

func TestARequestWithoutTLSIsToldSo(t *testing.T) {
	secure := httptest.NewUnstartedServer(nil)
	secure.StartTLS() // for its certificate
	config := secure.TLS.Clone()
	secure.Close()
	addr := serve(t, func(ln net.Listener) net.Listener { return tls.NewListener(ln, config) }, Options{})
	if got, body := ask(t, dial(t, addr), unkeyed); got != http.StatusBadRequest || !strings.Contains(body, "HTTPS") {
		t.Errorf("got %d %s, want 400 and why", got, body)
	}
}

func TestThoseIdleForLongestGoFirst(t *testing.T) {
	s := NewConnections(4)
	s.began = time.Now().Add(-time.Hour)
	at := func(minutes int) time.Time { return s.began.Add(time.Duration(minutes) * time.Minute) }
	var cut []string
	open := func(name string) *Connection { return s.Open(func() { cut = append(cut, name) }) }
	busy, known, old, young := open("busy"), open("known"), open("old"), open("young")
	for i, c := range []*Connection{known, old, young} {
		if c == known && !c.Enter() {
			t.Error("a connection that is open can't be entered")
		}
		c.Leave(at(i))
	}
	if !busy.Enter() {
		t.Error("a connection that is open can't be entered")
	}
	for i := range 3 {
		c := open("newer")
		if c == nil {
			t.Fatalf("connection %d found no room", i)
		}
		c.Enter()
	}
	if got := strings.Join(cut, " "); got != "old young known" {
		t.Errorf("closed %s, want the strangers by their age and then those that were let in", got)
	}
	if known.Enter() || old.Enter() {
		t.Error("a connection that was closed for another can be entered")
	}
	if open("one more") != nil || s.MakeRoom() || s.Len() != 4 {
		t.Error("room was made of what is busy")
	}
	busy.Leave(time.Now()) // just now
	if open("one more") != nil {
		t.Error("a client that was let in a moment ago was cut")
	}
	busy.Close()
	if open("one more") == nil {
		t.Error("there is no room where one was closed")
	}
}
