package service

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestOnePartIsEnough has two cells that count and one that does not, and looks at /ready as they come and go.
func TestOnePartIsEnough(t *testing.T) {
	ready := new(Ready)
	parts := NewParts(ready, "cells", "cell")
	mux := http.NewServeMux()
	Handle(mux, ready, NewRegistry())
	wants := func(when string, status int, body string) {
		t.Helper()
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/ready", nil))
		if got := strings.TrimSpace(w.Body.String()); w.Code != status || got != body {
			t.Errorf("%s: got %d %s, want %d %s", when, w.Code, got, status, body)
		}
	}
	a, b := parts.Part("a"), parts.Part("b")
	old := parts.Part("old")
	parts.Count([]string{"a", "b"})
	wants("all work", 200, `{"status":"ready"}`)
	a.Set("postgres", "refuses")
	a.Set("rabbitmq", "is away")
	wants("one does not", 200, `{"degraded":{"cell a":"postgres: refuses; rabbitmq: is away"},"status":"ready"}`)
	old.Set("postgres", "is gone")
	b.Set("rabbitmq", "is away")
	wants("none does that counts", 503, `{"degraded":{"cell a":"postgres: refuses; rabbitmq: is away","cell b":"rabbitmq: is away","cell old":"postgres: is gone"},`+
		`"reasons":{"cells":"no cell works; b: rabbitmq: is away"},"status":"not ready"}`)
	a.Set("postgres", "")
	a.Set("rabbitmq", "")
	parts.Forget("old")
	wants("one works again", 200, `{"degraded":{"cell b":"rabbitmq: is away"},"status":"ready"}`)
	a.Degrade("queues", "are full")
	wants("and less well", 200, `{"degraded":{"cell a":"queues: are full","cell b":"rabbitmq: is away"},"status":"ready"}`)
}
