package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/valyala/fasthttp"
	"github.com/valyala/fasthttp/fasthttpadaptor"

	"millrace/internal/frame"
	"millrace/internal/keys"
	"millrace/internal/scan"
	"millrace/internal/service"
)

const (
	// headerBytes is the largest request header.
	headerBytes = 8 << 10

	// headerTimeout is how long a request's header and the first 8 KiB of its body may take, from the first byte.
	headerTimeout = 10 * time.Second

	// maxConnections bounds the memory of connections, some 16 KiB each, to 160 MiB.
	maxConnections = 10_000

	idleTimeout  = 2 * time.Minute
	writeTimeout = 30 * time.Second
)

// Run serves the API until ctx is done, then stops in order: ready fails, no more requests are taken, those
// under way get their confirms, the connections to RabbitMQ close. It returns when all goroutines have ended.
func Run(ctx context.Context, c Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	log := service.Logger(c.Log, c.Process, "api")
	keySet, err := keys.Load(c.KeysFile)
	if err != nil {
		return err
	}
	ln, err := service.Listen("API_ADDR", c.Addr, c.Access)
	if err != nil {
		return err
	}

	var (
		ready    = new(service.Ready)
		registry = service.NewRegistry()
		inflight = &inflight{limit: int64(c.MaxInflightBytes)}
	)
	m := newMetrics(registry, inflight.used.Load)
	p := newPublisher(c, log, m, ready)
	common := http.NewServeMux()
	service.Handle(common, ready, registry)
	s := &server{
		log:       log,
		publisher: p,
		keys:      keySet,
		bodies:    &bodyReader{maxBytes: int64(c.MaxBodyBytes), inflight: inflight},
		limits:    scan.Limits{RecordBytes: int(c.MaxRecordBytes), PieceBytes: frame.SegmentBytes},
		metrics:   m,
		common:    fasthttpadaptor.NewFastHTTPHandler(common),
	}
	httpServer := &fasthttp.Server{
		Handler:                      s.handle,
		ErrorHandler:                 s.fault,
		ExpectHandler:                s.expect,
		ReadBufferSize:               headerBytes,
		Concurrency:                  maxConnections,
		ReadTimeout:                  headerTimeout,
		WriteTimeout:                 writeTimeout,
		IdleTimeout:                  idleTimeout,
		MaxRequestBodySize:           int(c.MaxBodyBytes),
		StreamRequestBody:            true, // so that a body is read only once there is room for it
		DisablePreParseMultipartForm: true,
		NoDefaultServerHeader:        true,
		CloseOnShutdown:              true,
		Logger:                       fasthttpLogger{log},
	}

	// The publisher outlives the server: requests under way still need their confirms.
	publishing, stopPublishing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopPublishing()
	flush, endFlush := context.WithCancel(context.WithoutCancel(ctx))
	defer endFlush()
	var publisher sync.WaitGroup
	publisher.Go(func() { p.run(publishing, flush) })
	connections := &trackingListener{Listener: ln, open: make(map[net.Conn]bool)}
	serving, stopServing := context.WithCancelCause(ctx)
	defer stopServing(nil)
	var server sync.WaitGroup
	server.Go(func() { stopServing(httpServer.Serve(connections)) })
	log.Info("listening", "address", ln.Addr().String(), "anonymous", keySet == nil)
	if c.OnListen != nil {
		c.OnListen(ln.Addr())
	}

	<-serving.Done()
	ready.Set("shutdown", errStopping.Error())
	deadline, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.ShutdownTimeout)
	defer cancel()
	err = httpServer.ShutdownWithContext(deadline)
	// Shutdown knows nothing of a Serve that has only just begun.
	if closeErr := ln.Close(); closeErr != nil && !errors.Is(closeErr, net.ErrClosed) {
		log.Warn("close of the listener", "error", closeErr)
	}
	if err != nil && !errors.Is(err, net.ErrClosed) {
		log.Warn("requests were still under way at the end of SHUTDOWN_TIMEOUT", "connections", connections.closeAll(), "error", err)
	}
	server.Wait()
	stopPublishing()
	stopFlush := context.AfterFunc(deadline, endFlush)
	publisher.Wait()
	stopFlush()
	log.Info("stopped")
	if err := context.Cause(serving); ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// trackingListener knows its open connections, so that they can be closed when waiting for them must end.
type trackingListener struct {
	net.Listener
	mu   sync.Mutex
	open map[net.Conn]bool
}

func (l *trackingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	tracked := &trackedConn{conn, l}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[tracked] = true
	return tracked, nil
}

// closeAll closes the open connections and says how many they were.
func (l *trackingListener) closeAll() int {
	l.mu.Lock()
	conns := slices.Collect(maps.Keys(l.open))
	l.mu.Unlock()
	for _, c := range conns {
		_ = c.Close() // there is nobody left to tell
	}
	return len(conns)
}

type trackedConn struct {
	net.Conn
	listener *trackingListener
}

func (c *trackedConn) Close() error {
	c.listener.mu.Lock()
	delete(c.listener.open, c)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}

// fasthttpLogger passes on what fasthttp logs of single connections.
type fasthttpLogger struct{ log *slog.Logger }

func (l fasthttpLogger) Printf(format string, args ...any) {
	l.log.Debug(fmt.Sprintf(format, args...))
}
