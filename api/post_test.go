package api

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
)

// servePosts serves handler on connections that are tracked. It skips the test where none is posted on.
func servePosts(t *testing.T, handler func(*fasthttp.RequestCtx, *trackedConn)) (addr string) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("answers are only posted on Linux")
	}
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := (&server{bodies: &bodyReader{maxBytes: 1 << 20}, timeouts: defaultTimeouts}).http()
	s.Handler = func(ctx *fasthttp.RequestCtx) {
		conn := ctx.Conn().(*trackedConn)
		conn.begin()
		defer conn.end()
		handler(ctx, conn)
	}
	s.ErrorHandler, s.ExpectHandler, s.Logger = nil, nil, fasthttpLogger{slog.New(slog.DiscardHandler)}
	served := make(chan error)
	go func() { served <- s.Serve(newListener(inner, 100, time.Minute, func() {})) }()
	t.Cleanup(func() {
		if err := s.Shutdown(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return inner.Addr().String()
}

var date = regexp.MustCompile(`Date: [^\r]*`)

func TestAnswersArePreparedAsFasthttpWritesThem(t *testing.T) {
	type preparation struct {
		ok     bool
		answer string
	}
	var prepared chan preparation
	addr := servePosts(t, func(ctx *fasthttp.RequestCtx, conn *trackedConn) {
		if _, err := io.Copy(io.Discard, ctx.RequestBodyStream()); err != nil {
			t.Error(err)
		}
		status, size := 202, 50
		if string(ctx.Path()) == "/large" {
			status, size = 207, maxPost+1
		}
		json := bytes.Repeat([]byte("x"), size)
		ok := conn.prepare(ctx, status, json)
		if !ok {
			answer(ctx, status, json)
		}
		prepared <- preparation{ok, string(conn.answer)}
	})
	const one = "POST /log HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
	for _, c := range []struct {
		name  string
		parts []string // written one after the other
		want  []bool   // for each request whether its answer could be prepared
	}{
		{"one after the other", []string{one, "", one, ""}, []bool{true, true}},
		{"in pieces", []string{one[:10], one[10:40], one[40:]}, []bool{true}},
		{"chunked", []string{"POST /log HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"}, []bool{true}},
		{"Expect", []string{strings.Replace(one, "\r\n\r\n{}", "\r\nExpect: 100-continue\r\n\r\n", 1), "{}"}, []bool{true}},
		{"two at once", []string{one + one, "", "", one}, []bool{true, false, true}},
		{"one and the beginning of the next", []string{one + one[:20], "", one[20:], "", one}, []bool{true, false, true}},
		{"one and the beginning of the next's body", []string{one + one[:len(one)-1], one[len(one)-1:], "", "", one}, []bool{true, false, true}},
		{"the last", []string{strings.Replace(one, "Host", "Connection: close\r\nHost", 1)}, []bool{false}},
		{"HTTP/1.0", []string{strings.Replace(one, "HTTP/1.1", "HTTP/1.0", 1)}, []bool{false}},
		{"a large answer", []string{strings.Replace(one, "/log", "/large", 1)}, []bool{false}},
	} {
		t.Run(c.name, func(t *testing.T) {
			prepared = make(chan preparation, len(c.want))
			conn := dial(t, addr)
			r := bufio.NewReader(conn)
			answers := 0
			read := func() string { // an answer as it came
				var head strings.Builder
				size := 0
				for line := ""; line != "\r\n"; {
					var err error
					if line, err = r.ReadString('\n'); err != nil {
						t.Fatal(err)
					}
					head.WriteString(line)
					if n, ok := strings.CutPrefix(line, "Content-Length: "); ok {
						size, err = strconv.Atoi(strings.TrimSpace(n))
						if err != nil {
							t.Fatal(err)
						}
					}
				}
				body := make([]byte, size)
				if _, err := io.ReadFull(r, body); err != nil {
					t.Fatal(err)
				}
				if strings.HasPrefix(head.String(), "HTTP/1.1 100 ") {
					return ""
				}
				answers++
				return head.String() + string(body)
			}
			check := func(came string) {
				p := <-prepared
				if want := c.want[answers-1]; p.ok != want {
					t.Errorf("request %d: prepared %v, want %v", answers, p.ok, want)
				}
				if got, want := date.ReplaceAllString(p.answer, ""), date.ReplaceAllString(came, ""); p.ok && got != want {
					t.Errorf("prepared %q, fasthttp wrote %q", got, want)
				}
			}
			for _, part := range c.parts {
				if part == "" {
					check(read())
					continue
				}
				if _, err := io.WriteString(conn, part); err != nil {
					t.Fatal(err)
				}
				time.Sleep(5 * time.Millisecond) // they shall come apart
			}
			for answers < len(c.want) {
				if came := read(); came != "" {
					check(came)
				}
			}
		})
	}
}

func TestAnAnswerThatWasPostedInPartIsWrittenOnce(t *testing.T) {
	requests := 0
	addr := servePosts(t, func(ctx *fasthttp.RequestCtx, conn *trackedConn) {
		if !conn.prepare(ctx, 202, []byte(strconv.Itoa(requests))) {
			t.Error("the answer could not be prepared")
		}
		whole := conn.answer
		conn.answer = whole[:min(requests, len(whole))]
		conn.post()
		requests++
	})
	conn := dial(t, addr)
	r := bufio.NewReader(conn)
	for i := range 200 { // longer than an answer
		if _, err := io.WriteString(conn, "POST /log HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); err != nil || string(b) != strconv.Itoa(i) {
			t.Fatalf("answer %d: %q, %v", i, b, err)
		}
	}
	if r.Buffered() != 0 {
		t.Errorf("%d bytes more came", r.Buffered())
	}
}

// When a request that ends the connection is answered, fasthttp says so in a header that what was posted lacks.
func TestWhatWasPostedBeforeTheEndIsNotWrittenAgain(t *testing.T) {
	const one = "POST /log HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
	for _, c := range []struct{ posted, requests int }{{1, 1}, {1000, 1}, {1, 2}, {1000, 2}} {
		served := 0
		addr := servePosts(t, func(ctx *fasthttp.RequestCtx, conn *trackedConn) {
			served++
			json := []byte(strconv.Itoa(served))
			if served > 1 {
				answer(ctx, 202, json)
			} else {
				if !conn.prepare(ctx, 202, json) {
					t.Error("the answer could not be prepared")
				}
				whole := conn.answer
				conn.answer = whole[:min(c.posted, len(whole))]
				conn.post()
				conn.answer = whole
			}
			if served == c.requests {
				conn.listener.stopPosts()
				ctx.Response.Header.SetConnectionClose()
			}
		})
		conn := dial(t, addr)
		if _, err := io.WriteString(conn, strings.Repeat(one, c.requests)); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(conn)
		for i := range c.requests {
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatalf("%+v: answer %d: %v", c, i+1, err)
			}
			if b, err := io.ReadAll(resp.Body); err != nil || string(b) != strconv.Itoa(i+1) {
				t.Errorf("%+v: answer %d: %q, %v", c, i+1, b, err)
			}
		}
		if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
			t.Errorf("%+v: %q follows, %v", c, rest, err)
		}
	}
}

// The answers of a frame's requests are written when it is confirmed, in groups, and none when it is not.
func TestAFramesAnswersArePostedWhenItIsConfirmed(t *testing.T) {
	const clients = 40
	for _, outcome := range []error{nil, errors.New("not confirmed")} {
		inflight := &inflight{limit: clients}
		var mu sync.Mutex
		var calls []func(confirmed bool) // as the publisher keeps them
		called := make(chan struct{})
		enlisted := make(chan bool, clients)
		var settled atomic.Bool
		addr := servePosts(t, func(ctx *fasthttp.RequestCtx, conn *trackedConn) {
			if !inflight.reserve(1) {
				t.Error("there is no room for a byte")
			}
			late := settled.Load()
			if !conn.prepare(ctx, 202, []byte("{}")) {
				t.Error("the answer could not be prepared")
			}
			settled := conn.hold(inflight, 1)
			if late {
				inflight.release(1)
			} else {
				mu.Lock()
				calls = append(calls, settled)
				mu.Unlock()
			}
			enlisted <- true
			<-called
			if outcome != nil {
				answer(ctx, 503, []byte("not"))
			} else if late {
				if conn.posted > 0 {
					t.Error("an answer was posted that nobody was to post")
				}
			} else if conn.posted != len(conn.answer) {
				t.Errorf("of %d bytes %d were posted", len(conn.answer), conn.posted)
			}
		})
		var conns []net.Conn
		for range clients {
			conns = append(conns, dial(t, addr))
		}
		ask := func() {
			for _, conn := range conns {
				if _, err := io.WriteString(conn, "POST /log HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"); err != nil {
					t.Fatal(err)
				}
			}
			for range clients {
				<-enlisted
			}
		}
		hear := func() {
			for _, conn := range conns {
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(resp.Body)
				want := "202 {}"
				if outcome != nil {
					want = "503 not"
				}
				if got := fmt.Sprintf("%d %s", resp.StatusCode, b); err != nil || got != want {
					t.Errorf("%v: got %s, %v, want %s", outcome, got, err, want)
				}
			}
		}
		ask()
		for _, call := range calls {
			call(outcome == nil)
		}
		close(called)
		hear()
		settled.Store(true)
		ask()
		hear()
		if n := inflight.used.Load(); n != 0 {
			t.Errorf("%d bytes are held after all", n)
		}
	}
}

// A client that has its answer may send again at once, on another connection too: nothing of the request is under way.
func TestBytesAreGivenBackBeforeTheAnswer(t *testing.T) {
	a := start(t, func(c *Config) { c.MaxInflightBytes, c.MaxBodyBytes = 1<<20, 1<<20 })
	body := `{"a":"` + strings.Repeat("x", 600<<10) + `"}`
	var conns []net.Conn
	for range 2 {
		conns = append(conns, dial(t, strings.TrimPrefix(a.url, "http://")))
	}
	for i := range 300 {
		conn := conns[i%2]
		if _, err := fmt.Fprintf(conn, "POST /log HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 202 {
			t.Fatalf("request %d: got %d %s, %v", i, resp.StatusCode, b, err)
		}
	}
}

// A client may send requests without waiting for answers, cut in any way; it gets one answer to each, in order.
func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	a := start(t, nil)
	const seed = 1
	random := rand.New(rand.NewPCG(seed, seed))
	batch := func(good, bad int) string {
		return strings.Repeat("{\"a\":1}\n", good) + strings.Repeat("no\n", bad)
	}
	kinds := []struct {
		path, body string
		status     int
		answer     string // how it begins
	}{
		{"/log", `{"a":1}`, 202, `{"id":"`},
		{"/log", `{"a":1}`, 202, `{"id":"`},
		{"/log", `no`, 400, `{"error":`},
		{"/log/batch", batch(3, 0), 202, `{"accepted":3,"rejected":0}`},
		{"/log/batch", batch(4, 1), 207, `{"accepted":4,"rejected":1,`},
		{"/log/batch?ids=true", batch(300, 0), 202, `{"accepted":300,`}, // more than fasthttp's buffer
		{"/log/batch", batch(1, 50), 207, `{"accepted":1,"rejected":50,`},
		{"/nothing", "", 404, `{"error":`},
	}
	seen := make(map[string]bool)
	for range 60 {
		var stream strings.Builder
		var want []int // of kinds
		for range 1 + random.IntN(20) {
			want = append(want, random.IntN(len(kinds)))
			k := kinds[want[len(want)-1]]
			fmt.Fprintf(&stream, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", k.path, len(k.body), k.body)
		}
		conn := dial(t, strings.TrimPrefix(a.url, "http://"))
		go func() {
			for rest := stream.String(); rest != ""; {
				n := min(len(rest), 1+rand.IntN(200))
				if _, err := io.WriteString(conn, rest[:n]); err != nil {
					t.Error(err)
					return
				}
				rest = rest[n:]
				if rand.IntN(4) == 0 {
					time.Sleep(time.Millisecond)
				}
			}
			if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
				t.Error(err)
			}
		}()
		r := bufio.NewReader(conn)
		for i, kind := range want {
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatalf("answer %d of %d: %v", i, len(want), err)
			}
			b, err := io.ReadAll(resp.Body)
			if k := kinds[kind]; err != nil || resp.StatusCode != k.status || !strings.HasPrefix(string(b), k.answer) {
				t.Fatalf("answer %d of %d: got %d %.100s, %v, want %d %s", i, len(want), resp.StatusCode, b, err, k.status, k.answer)
			}
			if kinds[kind].answer == `{"id":"` && seen[string(b)] {
				t.Errorf("answer %d of %d: %s came twice", i, len(want), b)
			}
			seen[string(b)] = true
		}
		if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
			t.Errorf("after the last answer comes %.100q, %v", rest, err)
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
