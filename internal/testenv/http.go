package testenv

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
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
