package front

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
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

// serveEarly serves handler on connections of a Listener. It skips the test on systems where no answer is written
// early.
func serveEarly(t *testing.T, handler func(*fasthttp.RequestCtx, *Conn)) (addr string) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("answers are written early on Linux alone")
	}
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(Timeouts{Header: 10 * time.Second, Idle: 2 * time.Minute, Write: 30 * time.Second}, 1<<20)
	s.Handler = func(ctx *fasthttp.RequestCtx) {
		conn := ctx.Conn().(*Conn)
		conn.Begin()
		defer conn.End()
		handler(ctx, conn)
	}
	s.Logger = log.New(io.Discard, "", 0)
	served := make(chan error)
	go func() { served <- s.Serve(NewListener(inner, Options{Limit: 100, Deadline: time.Minute})) }()
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

// answer answers a request as the API does if no answer was prepared.
func answer(ctx *fasthttp.RequestCtx, status int, json []byte) {
	ctx.SetStatusCode(status)
	ctx.SetContentType("application/json")
	ctx.SetBody(json)
}

// prepare prepares an answer.
func prepare(ctx *fasthttp.RequestCtx, conn *Conn, status int, json []byte) bool {
	ctx.SetStatusCode(status)
	ctx.SetContentType("application/json")
	return conn.Prepare(ctx, json)
}

// held are bytes that requests hold.
type held struct{ atomic.Int64 }

func (h *held) Release(n int64) { h.Add(-n) }

var date = regexp.MustCompile(`Date: [^\r]*`)

func TestAnswersArePreparedAsFasthttpWritesThem(t *testing.T) {
	type preparation struct {
		ok     bool
		answer string
	}
	var prepared chan preparation
	addr := serveEarly(t, func(ctx *fasthttp.RequestCtx, conn *Conn) {
		if _, err := io.Copy(io.Discard, ctx.RequestBodyStream()); err != nil {
			t.Error(err)
		}
		status, size := 202, 50
		if string(ctx.Path()) == "/large" {
			status, size = 207, maxPrepared+1
		}
		json := bytes.Repeat([]byte("x"), size)
		ok := prepare(ctx, conn, status, json)
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

func TestAnAnswerThatWasWrittenEarlyInPartIsWrittenOnce(t *testing.T) {
	requests := 0
	addr := serveEarly(t, func(ctx *fasthttp.RequestCtx, conn *Conn) {
		if !prepare(ctx, conn, 202, []byte(strconv.Itoa(requests))) {
			t.Error("the answer could not be prepared")
		}
		whole := conn.answer
		conn.answer = whole[:min(requests, len(whole))]
		conn.writeEarly()
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

// When a request ends the connection, fasthttp's answer has a header that says so. The answer that was written early
// lacks it.
func TestWhatWasWrittenEarlyBeforeTheEndIsNotWrittenAgain(t *testing.T) {
	const one = "POST /log HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
	for _, c := range []struct{ early, requests int }{{1, 1}, {1000, 1}, {1, 2}, {1000, 2}} {
		served := 0
		addr := serveEarly(t, func(ctx *fasthttp.RequestCtx, conn *Conn) {
			served++
			json := []byte(strconv.Itoa(served))
			if served > 1 {
				answer(ctx, 202, json)
			} else {
				if !prepare(ctx, conn, 202, json) {
					t.Error("the answer could not be prepared")
				}
				whole := conn.answer
				conn.answer = whole[:min(c.early, len(whole))]
				conn.writeEarly()
				conn.answer = whole
			}
			if served == c.requests {
				conn.listener.StopEarly()
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
func TestAFramesAnswersAreWrittenWhenItIsConfirmed(t *testing.T) {
	const clients = 40
	for _, outcome := range []error{nil, errors.New("not confirmed")} {
		held := new(held)
		var mu sync.Mutex
		var calls []func(confirmed bool) // as the publisher keeps them
		called := make(chan struct{})
		enlisted := make(chan bool, clients)
		var settled atomic.Bool
		addr := serveEarly(t, func(ctx *fasthttp.RequestCtx, conn *Conn) {
			held.Add(1)
			late := settled.Load()
			if !prepare(ctx, conn, 202, []byte("{}")) {
				t.Error("the answer could not be prepared")
			}
			settled := conn.Hold(held, 1)
			if late {
				held.Release(1)
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
				if conn.earlyBytes > 0 {
					t.Error("an answer was written early that nobody was to write")
				}
			} else if conn.earlyBytes != len(conn.answer) {
				t.Errorf("of %d bytes %d were written", len(conn.answer), conn.earlyBytes)
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
		if n := held.Load(); n != 0 {
			t.Errorf("%d bytes are held after all", n)
		}
	}
}
