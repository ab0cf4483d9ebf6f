package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"millrace/internal/testenv"
)

func TestHealthSaysWhetherTheServicesHereAreAlive(t *testing.T) {
	status := http.StatusOK
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/health" {
			t.Errorf("asked for %s", r.URL.Path)
		}
		w.WriteHeader(status)
		_, _ = w.Write([]byte("why")) // if it fails, so does the test
	})
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	wantsCertificate := httptest.NewUnstartedServer(handler)
	wantsCertificate.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	wantsCertificate.Config.ErrorLog = log.New(io.Discard, "", 0)
	wantsCertificate.StartTLS()
	t.Cleanup(wantsCertificate.Close)

	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir()) // no .env
	closed := testenv.FreeAddress(t)
	for name, addr := range map[string]string{"API_ADDR": closed, "QUERY_ADDR": "0.0.0.0:" + port, "WORKER_ADDR": closed} {
		t.Setenv(name, addr)
	}
	health := func(args ...string) error { return dispatch(context.Background(), append([]string{"health"}, args...)) }

	if err := health(); err != nil {
		t.Errorf("with one service alive: %v", err)
	}
	if err := health(server.URL + "/health"); err != nil {
		t.Errorf("asked by its URL: %v", err)
	}
	if err := health(wantsCertificate.URL + "/health"); err != nil {
		t.Errorf("a service that wants a certificate: %v", err)
	}
	status = http.StatusServiceUnavailable
	if err := health(); err == nil || !strings.Contains(err.Error(), "503 Service Unavailable why") {
		t.Errorf("got %v, want the answer", err)
	}
	t.Setenv("QUERY_ADDR", closed)
	if err := health(); err == nil || !strings.Contains(err.Error(), "nothing listens at "+closed) {
		t.Errorf("got %v, want that nothing listens", err)
	}
	var usage usageError
	if err := health("a", "b"); !errors.As(err, &usage) {
		t.Errorf("two URLs: got %v", err)
	}
}

func TestReachable(t *testing.T) {
	for addr, want := range map[string]string{
		"127.0.0.1:80": "127.0.0.1:80", "0.0.0.0:80": "localhost:80", "[::]:80": "localhost:80", ":80": "localhost:80", "db.lan:80": "db.lan:80",
	} {
		if got := reachable(addr); got != want {
			t.Errorf("reachable(%q) = %q, want %q", addr, got, want)
		}
	}
}
