package front

import (
	"math"
	"time"

	"github.com/valyala/fasthttp"
)

// HeaderBytes is the size of the largest request header.
const HeaderBytes = 8 << 10

// Timeouts bound how long a client may take over each thing.
type Timeouts struct {
	Header time.Duration // for a request's header and the first step of its body, from its first byte, or from the opening of a new connection
	Idle   time.Duration // between requests
	Write  time.Duration // for taking an answer
}

// NewServer returns an HTTP server for the connections of a Listener, which depend on these options. The caller sets its
// handlers and its log.
func NewServer(t Timeouts, bodyBytes int) *fasthttp.Server {
	return &fasthttp.Server{
		ReadBufferSize:               HeaderBytes,
		Concurrency:                  math.MaxInt32, // the listener bounds it: fasthttp would answer in plain text
		ReadTimeout:                  t.Header,
		WriteTimeout:                 t.Write,
		IdleTimeout:                  t.Idle,
		MaxRequestBodySize:           bodyBytes,
		StreamRequestBody:            true, // so that a body is read only once there is room for it
		DisablePreParseMultipartForm: true,
		NoDefaultServerHeader:        true,
		LazyRequestTime:              true, // nothing uses the time
		CloseOnShutdown:              true,
		SecureErrorLogMessage:        true, // the caller's logger cuts the quotes that are left
	}
}
