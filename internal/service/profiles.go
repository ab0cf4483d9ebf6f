package service

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"sync"
	"time"

	"millrace/internal/config"
)

// profileGrace is how long a profile that is being made may take when the service stops. It is short, because
// nobody waits for it.
const profileGrace = 100 * time.Millisecond

// serveProfiles serves the process's profiles at PPROF_ADDR, for go tool pprof, until stop is called. stop waits for
// the server's end. Without the setting it does nothing. Profiles need no key, so an address that other
// machines reach is an error.
func serveProfiles(p config.Process, log *slog.Logger) (stop func(), err error) {
	if p.Profiles == "" {
		return func() {}, nil
	}
	if !config.Address(p.Profiles).Loopback() {
		return nil, fmt.Errorf("PPROF_ADDR: got %q, takes %s", p.Profiles, p.Profiles.Takes())
	}
	ln, err := net.Listen("tcp", string(p.Profiles))
	if err != nil {
		return nil, fmt.Errorf("PPROF_ADDR: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index) // heap, allocs, goroutine and so on by their names
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := Serve(ctx, ln, mux, Options{Grace: profileGrace, Log: log}); err != nil && ctx.Err() == nil {
			log.Warn("profiles are served no more", "error", err)
		}
	})
	log.Info("profiles", "address", ln.Addr().String())
	return func() {
		cancel()
		serving.Wait()
	}, nil
}
