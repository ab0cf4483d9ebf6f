package testenv

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Post posts a body as JSON and returns the answer, which must be JSON.
func Post(t testing.TB, url string, body []byte) (status int, answer map[string]any) {
	t.Helper()
	resp, err := http.Post(url, "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, ReadJSON(t, resp)
}

// Get returns the answer to a GET request, which must be JSON.
func Get(t testing.TB, url string) (status int, answer map[string]any) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, ReadJSON(t, resp)
}

// ReadJSON returns the JSON of an answer and closes its body.
func ReadJSON(t testing.TB, resp *http.Response) (answer map[string]any) {
	t.Helper()
	defer resp.Body.Close() // read to its end
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	return answer
}

// Readiness returns the answer of /ready of the service at addr, host:port. If nothing answers, the status is 0 and the text is the
// error.
func Readiness(addr string) (status int, text string) {
	resp, err := http.Get("http://" + addr + "/ready")
	if err != nil {
		return 0, err.Error()
	}
	b, _ := io.ReadAll(resp.Body) // as far as it comes
	_ = resp.Body.Close()
	return resp.StatusCode, string(b)
}

// AwaitReady waits until /ready of the service at addr answers 200.
func AwaitReady(t testing.TB, addr string) {
	t.Helper()
	Eventually(t, 30*time.Second, addr+" is ready", func() bool {
		status, _ := Readiness(addr)
		return status == http.StatusOK
	})
}

// Dial opens a TCP connection that ends with the test.
func Dial(t testing.TB, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // it may be closed
	return conn
}

// TurnedAway reads the answer to a connection beyond the API's limit, and fails the test if it does not say so.
func TurnedAway(t testing.TB, conn net.Conn) {
	t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() // read to its end
	b, err := io.ReadAll(resp.Body)
	var answer struct{ Error string }
	if err == nil {
		err = json.Unmarshal(b, &answer)
	}
	if err != nil || resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" || !resp.Close ||
		resp.Header.Get("Content-Type") != "application/json" || !strings.Contains(answer.Error, "MAX_CONNECTIONS") {
		t.Errorf("got %d %v %s, %v, want 503 in JSON with Retry-After", resp.StatusCode, resp.Header, b, err)
	}
}
