package service

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"millrace/internal/config"
)

// metricsGrace is how long an answer that is being made may take when the service stops.
const metricsGrace = time.Second

// metricsAnswerTime is how long a client may take to receive its answer.
const metricsAnswerTime = 30 * time.Second

// CheckMetricsAddress returns an error if ServeMetrics would refuse addr, the value of the setting name. An empty addr is
// taken. Any other is held to the rule of CheckAddress, because whoever reaches it gets its answers.
func CheckMetricsAddress(name string, addr config.Address, access config.Access) error {
	if addr == "" {
		return nil
	}
	return CheckAddress(name, addr, access)
}

// ServeMetrics answers at addr what handler answers, without TLS and without keys, until stop is called. stop waits for the
// server's end. It is for probes and scrapes that have no certificate. With an empty addr it does nothing. name is the name
// of the address's setting; the error names it.
func ServeMetrics(name string, addr config.Address, access config.Access, handler http.Handler, log *slog.Logger) (stop func(), err error) {
	if addr == "" {
		return func() {}, nil
	}
	if err := CheckMetricsAddress(name, addr, access); err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", string(addr))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		o := Options{Grace: metricsGrace, AnswerTime: metricsAnswerTime, Log: log}
		if err := Serve(ctx, ln, handler, o); err != nil && ctx.Err() == nil {
			log.Error("metrics and health are served no more", "setting", name, "error", err)
		}
	})
	log.Info("metrics and health", "address", ln.Addr().String())
	return func() {
		cancel()
		serving.Wait()
	}, nil
}
