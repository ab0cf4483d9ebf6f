package service

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"millrace/internal/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestReadyNamesWhatDoesNotHold(t *testing.T) {
	ready := new(Ready)
	mux := http.NewServeMux()
	Handle(mux, ready, NewRegistry())
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w.Code, w.Body.String()
	}
	if code, body := get("/ready"); code != http.StatusOK {
		t.Errorf("got %d %s, want 200", code, body)
	}
	ready.Set("postgres", "it is down")
	ready.Set("rabbitmq", "it is away")
	ready.Set("rabbitmq", "")
	if code, body := get("/ready"); code != http.StatusServiceUnavailable || !strings.Contains(body, "it is down") || strings.Contains(body, "rabbitmq") {
		t.Errorf("got %d %s, want 503 and the reason", code, body)
	}
	if code, body := get("/health"); code != http.StatusOK {
		t.Errorf("/health: got %d %s, want 200", code, body)
	}
	if code, body := get("/metrics"); code != http.StatusOK || !strings.Contains(body, "go_goroutines") {
		t.Errorf("/metrics: got %d %.100s", code, body)
	}
}

func TestTheLoggerHasTheLevelAndFormAskedFor(t *testing.T) {
	var b bytes.Buffer
	log := NewLogger(&b, config.Process{LogLevel: "warn", LogFormat: "json"})
	log.Info("quiet")
	log.Warn("loud")
	if got := b.String(); strings.Contains(got, "quiet") || !strings.HasPrefix(got, "{") || !strings.Contains(got, `"msg":"loud"`) {
		t.Errorf("got %s, want the warning as JSON", got)
	}
}

func TestOnlyLoopbackIsServedWithoutKeys(t *testing.T) {
	tests := []struct {
		addr   config.Address
		access config.Access
		ok     bool
	}{
		{"127.0.0.1:0", config.Access{}, true},
		{"localhost:0", config.Access{}, true},
		{"[::1]:0", config.Access{}, true},
		{"0.0.0.0:0", config.Access{}, false},
		{":0", config.Access{}, false},
		{"0.0.0.0:0", config.Access{AllowAnonymous: true}, true},
		{"0.0.0.0:0", config.Access{KeysFile: "keys"}, true},
		{"127.0.0.1:0", config.Access{TLSCertFile: "missing"}, false},
		{"127.0.0.1:0", config.Access{TLSClientCA: "missing"}, false},
	}
	for _, tt := range tests {
		ln, err := listen("X_ADDR", tt.addr, tt.access)
		if err == nil {
			if err := ln.Close(); err != nil {
				t.Error(err)
			}
		}
		if tt.addr == "[::1]:0" && err != nil && strings.Contains(err.Error(), "assign requested address") {
			continue // no IPv6 here
		}
		if (err == nil) != tt.ok {
			t.Errorf("%s %+v: got %v, want it served: %v", tt.addr, tt.access, err, tt.ok)
		}
	}
}

func TestServeLetsRequestsFinish(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	under, release := make(chan struct{}), make(chan struct{})
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(under)
		<-release
		_, _ = io.WriteString(w, "done")
	})
	served := make(chan error)
	go func() {
		served <- Serve(ctx, ln, handler, Options{Grace: 10 * time.Second, Log: slog.New(slog.DiscardHandler)})
	}()
	answered := make(chan string)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	go func() {
		resp, err := client.Get("http://" + ln.Addr().String())
		if err != nil {
			answered <- err.Error()
			return
		}
		defer resp.Body.Close() // read to its end
		b, _ := io.ReadAll(resp.Body)
		answered <- string(b)
	}()
	<-under
	cancel()
	close(release)
	if got := <-answered; got != "done" {
		t.Errorf("the request under way got %q, want its answer", got)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestAGroupStopsInOrder(t *testing.T) {
	var g Group
	var mu sync.Mutex
	var stopped []string
	for _, name := range []string{"up", "middle", "down"} {
		g.Go(name, func(ctx context.Context) error {
			<-ctx.Done()
			mu.Lock()
			defer mu.Unlock()
			stopped = append(stopped, name)
			return nil
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := g.Wait(ctx); err != nil {
		t.Errorf("Wait: %v", err)
	}
	if want := []string{"up", "middle", "down"}; !slices.Equal(stopped, want) {
		t.Errorf("stopped %v, want %v", stopped, want)
	}
}

func TestAServiceThatEndsEndsTheGroup(t *testing.T) {
	var g Group
	broken := errors.New("broken")
	g.Go("good", func(ctx context.Context) error { <-ctx.Done(); return nil })
	g.Go("bad", func(context.Context) error { return broken })
	err := g.Wait(context.Background())
	if !errors.Is(err, broken) || !strings.Contains(err.Error(), "bad") {
		t.Errorf("got %v, want the error and the service's name", err)
	}
}

func TestProfilesAreServedOnThisMachineAloneAndOnlyWhenAskedFor(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	stop, err := serveProfiles(config.Process{}, log)
	if err != nil {
		t.Fatalf("without the setting: %v", err)
	}
	stop()
	for _, addr := range []config.Loopback{"0.0.0.0:0", ":0", "192.0.2.1:0"} {
		if _, err := serveProfiles(config.Process{Profiles: addr}, log); err == nil || !strings.HasPrefix(err.Error(), "PPROF_ADDR: got ") {
			t.Errorf("%s: got %v, want it refused", addr, err)
		}
	}
	var said bytes.Buffer
	stop, err = serveProfiles(config.Process{Profiles: "127.0.0.1:0"}, slog.New(slog.NewTextHandler(&said, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	_, addr, _ := strings.Cut(strings.TrimSpace(said.String()), "address=")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for path, want := range map[string]string{"": "allocs", "profile?seconds=1": "\x1f\x8b", "allocs": "\x1f\x8b", "goroutine?debug=1": "goroutine profile"} {
		resp, err := client.Get("http://" + addr + "/debug/pprof/" + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("%s: got %d %.100q %v, want %q in it", path, resp.StatusCode, body, err, want)
		}
	}
}

func TestMetricsHaveAPortOfTheirOwnOnlyWhereItIsAskedFor(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	handler := http.NewServeMux()
	Handle(handler, new(Ready), NewRegistry())
	stop, err := ServeMetrics("X_METRICS_ADDR", "", config.Access{}, handler, log)
	if err != nil {
		t.Fatalf("without the setting: %v", err)
	}
	stop()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, c := range []struct {
		addr   config.Address
		access config.Access
		want   string
	}{
		{"0.0.0.0:0", config.Access{}, "X_METRICS_ADDR: 0.0.0.0:0 is not a loopback address and no keys are asked for"},
		{config.Address(taken.Addr().String()), config.Access{}, "X_METRICS_ADDR: listen tcp"},
	} {
		if _, err := ServeMetrics("X_METRICS_ADDR", c.addr, c.access, handler, log); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %s", c.addr, err, c.want)
		}
	}
	for _, access := range []config.Access{{AllowAnonymous: true}, {KeysFile: "keys"}} {
		if err := CheckMetricsAddress("X_METRICS_ADDR", "0.0.0.0:0", access); err != nil {
			t.Errorf("%+v: %v", access, err)
		}
	}

	var said bytes.Buffer
	stop, err = ServeMetrics("X_METRICS_ADDR", "127.0.0.1:0", config.Access{}, handler, slog.New(slog.NewTextHandler(&said, nil)))
	if err != nil {
		t.Fatal(err)
	}
	_, addr, _ := strings.Cut(strings.TrimSpace(said.String()), "address=")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for path, want := range map[string]int{"/health": 200, "/ready": 200, "/metrics": 200, "/logs": 404, "/log": 404} {
		resp, err := client.Get("http://" + addr + path)
		if err != nil {
			t.Fatal(err)
		}
		if err := resp.Body.Close(); err != nil || resp.StatusCode != want {
			t.Errorf("GET %s: got %d %v, want %d", path, resp.StatusCode, err, want)
		}
	}
	stop()
	if resp, err := client.Get("http://" + addr + "/health"); err == nil {
		resp.Body.Close()
		t.Error("it answers after its end")
	}
}
