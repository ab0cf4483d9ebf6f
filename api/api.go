package api

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
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
	headerBytes = 16 << 10

	// headerTimeout is how long a request's header may take, from its first byte.
	headerTimeout = 10 * time.Second

	// slowest is the least speed of an upload, in bytes a second: 16 KiB/s lets 16 MiB take 17 minutes. An
	// upload has headerTimeout more than that.
	slowest = 16 << 10

	idleTimeout  = 2 * time.Minute
	writeTimeout = 30 * time.Second
)

// Run serves the API until ctx is done, then stops in order: ready fails, no more requests are taken, those
// under way get their confirms, the connections to RabbitMQ close. It returns when all goroutines have ended.
func Run(ctx context.Context, c Config) error {
	if err := c.validate(); err != nil {
		return err
	}
	log := c.Log
	if log == nil {
		log = service.NewLogger(os.Stderr, c.Process)
	}
	log = log.With("service", "api")
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
		inflight = new(inflight)
	)
	inflight.limit.Store(int64(c.MaxInflightBytes))
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
		Handler:      s.handle,
		ErrorHandler: s.fault,
		HeaderReceived: func(h *fasthttp.RequestHeader) fasthttp.RequestConfig {
			length := min(max(int64(h.ContentLength()), 0), int64(c.MaxBodyBytes))
			if h.ContentLength() == -1 { // chunked
				length = int64(c.MaxBodyBytes)
			}
			return fasthttp.RequestConfig{ReadTimeout: headerTimeout + time.Duration(length/slowest)*time.Second}
		},
		ReadBufferSize:               headerBytes,
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
	var publisherDone, serverDone sync.WaitGroup
	publisherDone.Go(func() { p.run(publishing, flush) })
	var serveErr error
	serving, stopServing := context.WithCancel(ctx)
	defer stopServing()
	serverDone.Go(func() {
		serveErr = httpServer.Serve(ln)
		stopServing()
	})
	log.Info("listening", "address", ln.Addr().String(), "anonymous", keySet == nil)
	if c.OnListen != nil {
		c.OnListen(ln.Addr())
	}

	<-serving.Done()
	ready.Set("shutdown", errStopping.Error())
	deadline, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.ShutdownTimeout)
	defer cancel()
	if err := httpServer.ShutdownWithContext(deadline); err != nil {
		log.Warn("requests were still under way at the end of SHUTDOWN_TIMEOUT", "connections", httpServer.GetOpenConnectionsCount(), "error", err)
	}
	serverDone.Wait()
	stopPublishing()
	stopFlush := context.AfterFunc(deadline, endFlush)
	publisherDone.Wait()
	stopFlush()
	log.Info("stopped")
	return serveErr
}

// fasthttpLogger passes on what fasthttp logs of single connections.
type fasthttpLogger struct{ log *slog.Logger }

func (l fasthttpLogger) Printf(format string, args ...any) {
	l.log.Debug(fmt.Sprintf(format, args...))
}
