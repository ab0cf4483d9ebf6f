package api

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"millrace/internal/testenv"
)

// TestSlowClientsAreCutAndHonestOnesAreNot runs clients that send a byte at a time beside real traffic. With
// MILLRACE_LONG_TESTS set, it uses the real time limits and 200 clients of each kind.
func TestSlowClientsAreCutAndHonestOnesAreNot(t *testing.T) {
	clients, pause := 40, 50*time.Millisecond
	// Honest clients stay within these limits even if the machine stalls for seconds.
	limits := timeouts{header: 4 * time.Second, step: 4 * time.Second, drain: 500 * time.Millisecond, idle: 4 * time.Second, write: 4 * time.Second}
	upload, piece, between := 1<<20, 16<<10, 80*time.Millisecond // 64 KiB in a twelfth of what they may take, 5 s in all
	if os.Getenv("MILLRACE_LONG_TESTS") != "" {
		clients, pause, limits = 200, time.Second, defaultTimeouts
		upload, piece, between = 16<<20, 64<<10, 250*time.Millisecond // 256 KiB a second
	}
	a := start(t, func(c *Config) { c.timeouts = &limits })
	addr := strings.TrimPrefix(a.url, "http://")
	const request = "POST /log/batch HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"

	var wg sync.WaitGroup
	// cut sends bytes one at a time until the API ends the connection. It checks when that was and what the API had
	// answered.
	cut := func(what, once, slowly string, within time.Duration, want string) {
		wg.Go(func() {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close() // the API has closed it
			begin := time.Now()
			answer := make(chan string, 1)
			go func() {
				b, _ := io.ReadAll(conn) // a reset is an end too
				answer <- string(b)
			}()
			_, _ = io.WriteString(conn, once)
			for i := 0; ; i++ {
				select {
				case got := <-answer:
					if took := time.Since(begin); took > within+testenv.Patience {
						t.Errorf("%s: cut after %v, want %v", what, took, within)
					}
					if !strings.HasPrefix(got, want) {
						t.Errorf("%s: answered %.100q, want %s", what, got, want)
					}
					return
				case <-time.After(pause):
				}
				if i < len(slowly) {
					_, _ = io.WriteString(conn, slowly[i:i+1]) // it may be cut by now
				}
				if time.Since(begin) > within+2*testenv.Patience {
					t.Errorf("%s: not cut after %v", what, time.Since(begin))
					return
				}
			}
		})
	}
	long := strings.Repeat("x", 10_000)
	for range clients {
		cut("a header", "", "POST /log HTTP/1.1\r\nX-Header: "+long, limits.header, "HTTP/1.1 408 ")
		cut("a body", request, long, limits.header+limits.drain, "HTTP/1.1 408 ")
		cut("a later part of a body", request+strings.Repeat(" ", 2*step), long, limits.header+limits.step+limits.drain, "HTTP/1.1 408 ")
	}
	cut("nothing at all", "", "", limits.header, "HTTP/1.1 408 ")
	cut("nothing after a request", "GET /health HTTP/1.1\r\nHost: x\r\n\r\n", "", limits.idle, "HTTP/1.1 200 ")
	cut("garbage after a request", "GET /health HTTP/1.1\r\nHost: x\r\n\r\n\x00\x01\x02 garbage\r\n\r\n", "", 0, "HTTP/1.1 200 ")

	stop := make(chan struct{})
	var traffic sync.WaitGroup
	served := 0
	traffic.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if got, err := a.try("/log", `{"a":1}`, nil); err != nil || got.status != http.StatusAccepted {
				t.Errorf("real traffic: got %d %s, error %v, want 202", got.status, got.body, err)
				return
			}
			served++
		}
	})
	body, send := io.Pipe()
	go func() {
		line := `{"a":"` + strings.Repeat("x", piece-9) + "\"}\n"
		for sent := 0; sent < upload; sent += piece {
			_, _ = io.WriteString(send, line)
			time.Sleep(between) // the slow client
		}
		_ = send.Close() // always nil
	}()
	begin := time.Now()
	if got := a.do(t, http.MethodPost, "/log/batch", body, nil); got.status != http.StatusAccepted || !strings.Contains(got.body, fmt.Sprintf(`"accepted":%d,`, upload/piece)) {
		t.Errorf("the honest upload: got %d %s, want 202", got.status, got.body)
	}
	if took := time.Since(begin); took < limits.header {
		t.Errorf("the honest upload took %v only, which shows nothing", took)
	}
	wg.Wait()
	close(stop)
	traffic.Wait()
	t.Logf("%d requests were served beside", served)
	if served == 0 {
		t.Error("no real traffic was served")
	}
}

func TestAClientThatReadsNoAnswersIsCut(t *testing.T) {
	limits := defaultTimeouts
	limits.write = 500 * time.Millisecond
	a := start(t, func(c *Config) { c.timeouts = &limits })
	conn, err := net.Dial("tcp", strings.TrimPrefix(a.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() // the API has closed it
	// Each request is answered with 390 KB of ids; some fit into the kernel's buffers.
	body := strings.Repeat("{}\n", 10_000)
	request := fmt.Sprintf("POST /log/batch?ids=true HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	if err := conn.SetWriteDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err = io.WriteString(conn, request); err != nil {
			break
		}
	}
	if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
		t.Error("the API still holds the connection of a client that reads no answers")
	}
}

func TestIDsAreSentInFull(t *testing.T) {
	a := start(t, nil)
	for _, n := range []int{1, 97, 98, 99, 12_345} {
		got := a.post(t, "/log/batch?ids=1", []byte(strings.Repeat("{}", n)), nil)
		var answer struct{ IDs []uuid.UUID }
		if err := json.Unmarshal([]byte(got.body), &answer); err != nil {
			t.Fatal(err)
		}
		if got.status != http.StatusAccepted || got.header.Get("Content-Length") != strconv.Itoa(len(got.body)) || len(answer.IDs) != n {
			t.Errorf("%d records: got %d with Content-Length %s, %d bytes and %d ids", n, got.status, got.header.Get("Content-Length"), len(got.body), len(answer.IDs))
		}
		stored := a.published(t)
		for _, id := range answer.IDs {
			if _, ok := stored[id]; !ok {
				t.Errorf("no record has the id %s", id)
			}
		}
	}
}
