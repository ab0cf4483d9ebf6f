package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"millrace/api/front"
	"millrace/api/publish"
	"millrace/api/sockets"
	"millrace/internal/cells"
	"millrace/internal/keys"
	"millrace/internal/policy"
	"millrace/internal/service"
)

// maxHeaderLines is the most fields that a request's header may have. Shippers and proxies send some 20.
const maxHeaderLines = 128

// timeouts bound how long a client may take over each thing.
type timeouts struct {
	header time.Duration // for a request's header and the first step of its body, from its first byte, or from the opening of a new connection
	step   time.Duration // for each further step of a body
	drain  time.Duration // for the rest of a refused body
	idle   time.Duration // between requests
	write  time.Duration // for taking an answer

	part  time.Duration // how long bytes of a long upload wait before they are taken as a part
	pause time.Duration // how long a long upload may be silent after a complete line
}

var defaultTimeouts = timeouts{
	header: 10 * time.Second,
	step:   10 * time.Second,
	drain:  2 * time.Second,
	idle:   2 * time.Minute,
	write:  30 * time.Second,

	part:  time.Second,
	pause: 5 * time.Minute,
}

// Run serves the API until ctx is done, then stops in order: /ready fails, no more requests are taken, those under way get
// their confirms, the connections to RabbitMQ close. It returns when all goroutines have ended. The error says what could
// not be started, or why the server ended by itself.
func Run(ctx context.Context, c Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	log := service.Logger(c.Log, c.Process, "api")
	keyFile, err := keys.Open(c.KeysFile)
	if err != nil {
		return err
	}
	ln, closeProfiles, err := service.Open("API_ADDR", c.Addr, c.Access, c.Process, log)
	if err != nil {
		return err
	}
	defer closeProfiles()
	var (
		ready    = new(service.Ready)
		registry = service.NewRegistry()
		inflight = newInflight(int64(c.MaxInflightBytes), largestBody(c.bodyLimits()))
	)
	rule, err := c.EventTime.Rule()
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	cellsFile, err := cells.Open(c.CellsFile)
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	served := newEndpoints(c.protocolsOrAll())
	m := newMetrics(registry, inflight, served)
	if err := errors.Join(keyFile.Register(registry), cellsFile.Register(registry), registry.Register(keyUse{keyFile}), service.RegisterCertificate(registry, c.Access)); err != nil {
		return errors.Join(err, ln.Close())
	}
	var p publisher
	found := new(harms)
	if cellsFile == nil {
		p = newPublisher(c, log, publish.NewMetrics(registry), ready)
	} else {
		p = newCells(c, cellsFile, log, registry, ready, found)
	}
	handler := newServer(c, log, p, keyFile, served, m, inflight, ready, registry)
	handler.derive(c.DeriveKeys.Names(), rule)
	closeMetrics, err := service.ServeMetrics("API_METRICS_ADDR", c.MetricsAddr, c.Access, handler.reportMux, log)
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	defer closeMetrics() // the last to go, so that a stop can be watched
	open, err := handler.openSockets(c, sockets.NewMetrics(registry), log)
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	httpServer := handler.http()
	found.report = func(all []policy.Harm) {
		ready.Set("policies", policy.Sentence(all))
		handler.noteHarms(all)
	}

	// The publisher outlives the server: requests under way still need their confirms.
	publishing, stopPublishing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopPublishing()
	flush, endFlush := context.WithCancel(context.WithoutCancel(ctx))
	defer endFlush()
	var publisher sync.WaitGroup
	publisher.Go(func() { p.Run(publishing, flush) })
	if cellsFile == nil { // else the cells watch their own queues
		policies := policy.New(policy.Options{Broker: c.Broker, Log: log, Registry: registry, Canary: true, Interval: c.policyInterval, Report: found.report})
		publisher.Go(func() { policies.Run(publishing) })
	}
	publisher.Go(func() { cellsFile.Watch(publishing, nil, log) }) // SIGHUP is for the keys; the file is looked at all the time
	publisher.Go(func() { keyFile.Watch(publishing, c.Reload, log) })
	connections := front.NewListener(ln, front.Options{
		Limit:    service.WithinDescriptors("MAX_CONNECTIONS", c.MaxConnections, log),
		Deadline: min(httpServer.ReadTimeout, httpServer.WriteTimeout),
		OnTurnAway: func() {
			m.other.count(fasthttp.StatusServiceUnavailable)
			m.unavailable.WithLabelValues("connections").Inc()
		},
		Plain: c.PlainAnswers,
	})
	serving, stopServing := context.WithCancelCause(ctx)
	defer stopServing(nil)
	var server sync.WaitGroup
	server.Go(func() { stopServing(httpServer.Serve(connections)) })
	reading, stopReading := context.WithCancel(context.WithoutCancel(ctx))
	defer stopReading()
	server.Go(func() { open.run(reading, flush, stopServing) })
	log.Info("listening", "address", ln.Addr().String(), "anonymous", keyFile == nil)
	if c.OnListen != nil {
		c.OnListen(ln.Addr())
	}

	<-serving.Done()
	ready.Set("shutdown", publish.ErrStopping.Error())
	if ctx.Err() != nil {
		time.Sleep(c.ShutdownDelay) // so that load balancers see that /ready fails while requests are still taken
	}
	deadline, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.ShutdownTimeout)
	defer cancel()
	stopReading()
	stopFlush := context.AfterFunc(deadline, endFlush)
	defer stopFlush()
	connections.StopEarly()
	err = httpServer.ShutdownWithContext(deadline)
	// Shutdown misses a Serve that has only just begun, so the listener is closed here too.
	if closeErr := ln.Close(); closeErr != nil && !errors.Is(closeErr, net.ErrClosed) {
		log.Warn("close of the listener", "error", closeErr)
	}
	if err != nil && !errors.Is(err, net.ErrClosed) {
		log.Warn("requests were still under way at the end of SHUTDOWN_TIMEOUT", "connections", connections.CloseAll(), "error", err)
	}
	server.Wait()
	connections.Wait()
	stopPublishing()
	publisher.Wait()
	log.Info("stopped")
	if err := context.Cause(serving); ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// newPublisher returns a publisher with the settings of c.
func newPublisher(c Config, log *slog.Logger, m *publish.Metrics, ready publish.Readiness) *publish.Publisher {
	return publish.New(publisherOptions(c, log, m, ready))
}

// publisherOptions returns the settings of c for a publisher.
func publisherOptions(c Config, log *slog.Logger, m *publish.Metrics, ready publish.Readiness) publish.Options {
	return publish.Options{
		Broker:      c.Broker,
		Connections: c.PublishConnections,
		Channels:    c.PublishChannels,
		FrameBytes:  int(c.FrameBytes),
		Compression: c.FrameCompression,
		Timeout:     c.ConfirmTimeout,
		Log:         log,
		Metrics:     m,
		Ready:       ready,
	}
}

// fasthttpLogger logs what fasthttp reports of single connections, at level debug. It leaves out the bytes that fasthttp
// quotes, since a header holds the client's key.
type fasthttpLogger struct{ log *slog.Logger }

func (l fasthttpLogger) Printf(format string, args ...any) {
	for i, arg := range args {
		if err, ok := arg.(error); ok {
			args[i] = headline(err)
		}
	}
	l.log.Debug(fmt.Sprintf(format, args...))
}
