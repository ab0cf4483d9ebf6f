package api

import (
	"fmt"
	"io"
	"math"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"millrace/api/front"
)

// TestARequestCostsFewAllocations counts the allocations of a request on its way through the API, frames and confirms
// included. A stand-in for RabbitMQ parses each frame. The client allocates nothing.
func TestARequestCostsFewAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("with the race detector pools forget at random")
	}
	a := newFuzzedAPI(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error)
	a.Handler = a.api.handle
	go func() {
		served <- a.Serve(front.NewListener(ln, front.Options{Limit: 10, Deadline: 10 * time.Second}))
	}()
	defer func() {
		if err := a.Shutdown(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() // all answers have been read
	batch := strings.Repeat(`{"level":"info","message":"hello"}`+"\n", 100)
	for _, tt := range []struct {
		name, path, body string
		most             float64
	}{
		{"one record", "/log", `{"level":"info","message":"hello"}`, 15.5},
		{"a batch", "/log/batch", batch, 15.5},
		{"a batch whose ids are asked for", "/log/batch?ids=true", batch, 17.5},
	} {
		request := fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: x\r\nX-API-Key: %s\r\nContent-Length: %d\r\n\r\n%s", tt.path, a.secret, len(tt.body), tt.body)
		buf := make([]byte, 8<<10)
		size := 0 // of an answer
		ask := func() {
			if _, err := conn.Write(request); err != nil {
				t.Fatal(err)
			}
			if size == 0 {
				n, err := io.ReadAtLeast(conn, buf, 1)
				for ; err == nil && n < 4 || !strings.HasSuffix(string(buf[:n]), "}"); n++ {
					if _, err = io.ReadFull(conn, buf[n:n+1]); err != nil {
						t.Fatal(err)
					}
				}
				if !strings.HasPrefix(string(buf[:n]), "HTTP/1.1 202 ") {
					t.Fatalf("%s: got %s", tt.name, buf[:n])
				}
				size = n
			} else if _, err := io.ReadFull(conn, buf[:size]); err != nil {
				t.Fatal(err)
			}
		}
		for range 100 {
			ask()
		}
		const rounds, requests = 5, 400
		got, bytes := math.Inf(1), uint64(0)
		for range rounds { // the best: the garbage collector empties pools
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for range requests {
				ask()
			}
			runtime.ReadMemStats(&after)
			if n := float64(after.Mallocs-before.Mallocs) / requests; n < got {
				got, bytes = n, (after.TotalAlloc-before.TotalAlloc)/requests
			}
		}
		t.Logf("%s: %.2f allocations, %d bytes", tt.name, got, bytes)
		if got > tt.most {
			t.Errorf("%s: %.2f allocations, want at most %.1f", tt.name, got, tt.most)
		}
	}
}
