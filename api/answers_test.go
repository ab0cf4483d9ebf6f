package api

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// A client that has its answer may send again at once, even on another connection: by then the request holds no bytes.
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

// A client may send requests without waiting for answers, in pieces of any size. It gets one answer to each, in order.
func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("plain=%v", plain), func(t *testing.T) {
			testPipelinedRequests(t, start(t, func(c *Config) { c.PlainAnswers = plain }))
		})
	}
}

func testPipelinedRequests(t *testing.T, a *testAPI) {
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
