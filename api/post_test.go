package api

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
)

// servePosts serves handler on connections that are tracked.
func servePosts(t *testing.T, handler func(*fasthttp.RequestCtx, *trackedConn)) (addr string) {
	t.Helper()
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
	s.ErrorHandler, s.ExpectHandler, s.Logger = nil, nil, nil
	served := make(chan error)
	go func() { served <- s.Serve(newListener(inner, 10, time.Minute, func() {})) }()
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
	if runtime.GOOS != "linux" {
		t.Skip("answers are only posted on Linux")
	}
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
		answer(ctx, status, bytes.Repeat([]byte("x"), size))
		ok := conn.prepare(ctx)
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
	if runtime.GOOS != "linux" {
		t.Skip("answers are only posted on Linux")
	}
	requests := 0
	addr := servePosts(t, func(ctx *fasthttp.RequestCtx, conn *trackedConn) {
		answer(ctx, 202, []byte(strconv.Itoa(requests)))
		if !conn.prepare(ctx) {
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

func TestAnAnswerThatWasPostedBeforeTheEndIsTheLast(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("answers are only posted on Linux")
	}
	for _, part := range []int{1, 1000} {
		addr := servePosts(t, func(ctx *fasthttp.RequestCtx, conn *trackedConn) {
			answer(ctx, 202, []byte("{}"))
			if !conn.prepare(ctx) {
				t.Error("the answer could not be prepared")
			}
			whole := conn.answer
			conn.answer = whole[:min(part, len(whole))]
			conn.post()
			conn.answer = whole
			conn.listener.stopPosts()
			ctx.Response.Header.SetConnectionClose() // as fasthttp does
		})
		conn := dial(t, addr)
		if _, err := io.WriteString(conn, "POST /log HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(conn)
		head, body, _ := strings.Cut(string(got), "\r\n\r\n")
		if err != nil || body != "{}" || !strings.Contains(head, "\r\nContent-Length: 2") || strings.Count(head, "HTTP/1.1") != 1 {
			t.Errorf("%d bytes posted: got %q, %v", part, got, err)
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
	}{
		{"/log", `{"a":1}`, 202},
		{"/log", `{"a":1}`, 202},
		{"/log", `no`, 400},
		{"/log/batch", batch(3, 0), 202},
		{"/log/batch", batch(3, 1), 207},
		{"/log/batch?ids=true", batch(300, 0), 202}, // more than fasthttp's buffer
		{"/log/batch", batch(1, 50), 207},
		{"/nothing", "", 404},
	}
	for range 60 {
		var stream strings.Builder
		var want []int
		for range 1 + random.IntN(20) {
			k := kinds[random.IntN(len(kinds))]
			fmt.Fprintf(&stream, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", k.path, len(k.body), k.body)
			want = append(want, k.status)
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
		}()
		r := bufio.NewReader(conn)
		for i, status := range want {
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatalf("answer %d of %d: %v", i, len(want), err)
			}
			b, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != status {
				t.Fatalf("answer %d of %d: got %d %.100s, %v, want %d", i, len(want), resp.StatusCode, b, err, status)
			}
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
