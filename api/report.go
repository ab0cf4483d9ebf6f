package api

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"millrace/api/front"
	"millrace/internal/service"
)

const (
	// maxNeedless is the size up to which a body is read and thrown away where none is wanted, so that a client that sends
	// a few bytes with every request is answered. fasthttp's adaptor for net/http would keep all of it.
	maxNeedless = 64 << 10

	// maxShimBody is the same for a shim. Some clients send index templates that describe thousands of fields.
	maxShimBody = 4 << 20

	// maxRaw is the length up to which an answer is handed to fasthttp as a slice; longer ones are streams.
	maxRaw = 1 << 10

	// maxReports is how many answers, of some 50 KiB each, may wait at once for clients to take them.
	maxReports = 64
)

// discardBody reads a request's body and throws it away. It refuses the request if the body has more than most bytes or does
// not come in time.
func (s *server) discardBody(ctx *fasthttp.RequestCtx, path []byte, most int) *refusal {
	stream := ctx.RequestBodyStream()
	if stream == nil {
		return nil
	}
	tooLarge := refuse(fasthttp.StatusRequestEntityTooLarge, "%s %s takes no body", ctx.Method(), path)
	if ctx.Request.Header.ContentLength() > most || ctx.Conn().SetReadDeadline(time.Now().Add(s.timeouts.drain)) != nil {
		return tooLarge
	}
	if n, err := io.Copy(io.Discard, io.LimitReader(stream, int64(most)+1)); err != nil || n > int64(most) {
		return tooLarge
	}
	return nil
}

// report answers GET and HEAD of /health, /ready and /metrics.
func (s *server) report(ctx *fasthttp.RequestCtx, path string) {
	made := &service.Answer{Head: make(http.Header)}
	request := &http.Request{Method: http.MethodGet, URL: &url.URL{Path: path}, Header: make(http.Header)}
	for _, name := range []string{fasthttp.HeaderAccept, fasthttp.HeaderAcceptEncoding} {
		if value := ctx.Request.Header.Peek(name); len(value) > 0 {
			request.Header.Set(name, string(value))
		}
	}
	s.reportMux.ServeHTTP(made, request.WithContext(context.Background()))
	ctx.SetStatusCode(cmp.Or(made.Status, http.StatusOK))
	for name, values := range made.Head {
		for _, v := range values {
			ctx.Response.Header.Add(name, v)
		}
	}
	// Not SetBody: the connection would keep the copy's memory until it is closed.
	if made.Body.Len() <= maxRaw {
		ctx.Response.SetBodyRaw(made.Body.Bytes())
		return
	}
	body := &reportBody{Reader: bytes.NewReader(made.Body.Bytes()), of: &s.reports}
	if conn, ok := ctx.Conn().(*front.Conn); ok {
		body.conn = conn
		s.reports.begin(body)
	}
	ctx.Response.SetBodyStream(body, made.Body.Len())
}

// reports are the large answers that clients have not taken yet, the oldest first. When there are too many, the connection
// of the oldest is cut: a client that reads at once is done long before.
type reports struct {
	mu      sync.Mutex
	waiting []*reportBody
}

// reportBody is one of the answers in reports.
type reportBody struct {
	*bytes.Reader
	conn *front.Conn
	of   *reports
}

// begin adds an answer. If there are too many it cuts the connection of the oldest.
func (r *reports) begin(body *reportBody) {
	r.mu.Lock()
	var oldest *reportBody
	if len(r.waiting) == maxReports {
		oldest = r.waiting[0]
		r.waiting = append(r.waiting[:0], r.waiting[1:]...)
	}
	r.waiting = append(r.waiting, body)
	r.mu.Unlock()
	if oldest != nil {
		oldest.conn.Place.Cut()
	}
}

// Close is called by fasthttp when the answer is written, or can't be.
func (b *reportBody) Close() error {
	b.of.mu.Lock()
	defer b.of.mu.Unlock()
	for i, w := range b.of.waiting {
		if w == b {
			b.of.waiting = append(b.of.waiting[:i], b.of.waiting[i+1:]...)
			break
		}
	}
	return nil
}
