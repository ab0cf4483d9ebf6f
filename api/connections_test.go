package api

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"millrace/internal/testenv"
)

var dial, turnedAway = testenv.Dial, testenv.TurnedAway

func TestConnectionsBeyondTheLimitAreToldSo(t *testing.T) {
	a := start(t, func(c *Config) { c.MaxConnections = 3 })
	a.client.CloseIdleConnections()
	addr := strings.TrimPrefix(a.url, "http://")
	read := func(conn net.Conn) int {
		t.Helper()
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	ask := func(conn net.Conn) int {
		t.Helper()
		if _, err := io.WriteString(conn, "POST /log HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"); err != nil {
			t.Fatal(err)
		}
		return read(conn)
	}
	var open []net.Conn
	testenv.Eventually(t, 5*time.Second, "three connections are served", func() bool { // the one that asked /ready may linger
		conn := dial(t, addr)
		if ask(conn) == http.StatusAccepted {
			open = append(open, conn)
		}
		return len(open) == 3
	})
	for _, conn := range open { // busy: otherwise the longest idle would make room
		if _, err := io.WriteString(conn, "POST /log HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 { // one that sends much before it listens, too
		conn := dial(t, addr)
		_, _ = fmt.Fprintf(conn, "POST /log HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", 1<<20, strings.Repeat(" ", 1<<20)) // it may be cut off
		turnedAway(t, conn)
	}
	for _, conn := range open {
		if _, err := io.WriteString(conn, "1\r\n}\r\n0\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if got := read(conn); got != http.StatusAccepted {
			t.Errorf("a connection within the limit: got %d, want 202", got)
		}
	}
	for _, conn := range open {
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
	testenv.Eventually(t, 5*time.Second, "there is room again", func() bool { return ask(dial(t, addr)) == http.StatusAccepted })
	if got := a.get(t, "/metrics").body; !strings.Contains(got, `millrace_api_requests_total{code="503",intake="",route="other"}`) {
		t.Error("those turned away are not counted")
	}
	if got := a.get(t, "/metrics").body; strings.Contains(got, `millrace_api_unavailable_total{reason="connections"} 0`) {
		t.Error("those turned away are not counted by their reason")
	}
}
