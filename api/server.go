package api

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	json "github.com/goccy/go-json"
	"github.com/google/uuid"
	"github.com/valyala/fasthttp"

	"millrace/internal/frame"
	"millrace/internal/keys"
	"millrace/internal/scan"
)

const (
	// maxKeyAge is how old an Idempotency-Key may be. The ledger remembers for 7 days, which leaves the frames
	// 6 days to wait in a queue.
	maxKeyAge = 24 * time.Hour

	// maxKeyAhead is how far a client's clock may be ahead of this one.
	maxKeyAhead = 5 * time.Minute

	// maxDrain is how much of a refused body is read all the same, so that a client that sends first and
	// listens later gets to see the answer instead of a reset connection; and for how long.
	maxDrain  = 64 << 20
	drainTime = 2 * time.Second

	// retryAfter is what a client that was answered 429 or 503 should wait, in seconds.
	retryAfter = "1"
)

// server answers the API's requests.
type server struct {
	log       *slog.Logger
	publisher *publisher
	keys      *keys.Set
	bodies    *bodyReader
	limits    scan.Limits
	metrics   *metrics
	common    fasthttp.RequestHandler // health, ready, metrics
	scratch   sync.Pool               // of *scratch
}

// scratch is the memory a request works in; it is used again by the next.
type scratch struct {
	records scan.Body
	tickets []ticket
	answer  []byte
}

func (s *server) handle(ctx *fasthttp.RequestCtx) {
	start := time.Now()
	route := "other"
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("panic while answering a request; this is a bug", "panic", p, "stack", string(debug.Stack()))
			s.refuse(ctx, refuse(fasthttp.StatusInternalServerError, "internal error"))
		}
		s.metrics.count(route, ctx.Response.StatusCode())
		s.metrics.seconds.WithLabelValues(route).Observe(time.Since(start).Seconds())
	}()
	switch path := ctx.Path(); string(path) {
	case "/log", "/log/batch":
		route = string(path)
		if !ctx.IsPost() {
			ctx.Response.Header.Set(fasthttp.HeaderAllow, http.MethodPost)
			s.refuse(ctx, refuse(fasthttp.StatusMethodNotAllowed, "%s %s: takes POST", ctx.Method(), path))
			return
		}
		if err := s.ingest(ctx, route == "/log", start); err != nil {
			s.refuse(ctx, err)
		}
	case "/health", "/ready", "/metrics":
		route = string(path)
		if !ctx.IsGet() && !ctx.IsHead() {
			ctx.Response.Header.Set(fasthttp.HeaderAllow, "GET, HEAD")
			s.refuse(ctx, refuse(fasthttp.StatusMethodNotAllowed, "%s %s: takes GET", ctx.Method(), path))
			return
		}
		s.common(ctx)
	default:
		s.refuse(ctx, refuse(fasthttp.StatusNotFound, "no such path: %s; there are POST /log, POST /log/batch, GET /health, GET /ready and GET /metrics", path))
	}
}

// ingest takes the records of a request and answers when they are durable.
func (s *server) ingest(ctx *fasthttp.RequestCtx, single bool, now time.Time) *refusal {
	header := &ctx.Request.Header
	switch s.keys.Check(string(header.Peek(fasthttp.HeaderAuthorization)), string(header.Peek("X-API-Key")), keys.Write) {
	case keys.Unknown:
		ctx.Response.Header.Set(fasthttp.HeaderWWWAuthenticate, "Bearer")
		return refuse(fasthttp.StatusUnauthorized, "no known API key in Authorization: Bearer or X-API-Key")
	case keys.Forbidden:
		return refuse(fasthttp.StatusForbidden, "the API key lacks the scope %s", keys.Write)
	}
	key, bad := idempotencyKey(header.Peek("Idempotency-Key"), now)
	if bad != nil {
		return bad
	}
	wantIDs, bad := wantIDs(ctx, single)
	if bad != nil {
		return bad
	}
	if err := s.publisher.usable(); err != nil {
		return refuse(fasthttp.StatusServiceUnavailable, "%v", err)
	}
	body, bad := s.bodies.read(ctx)
	if bad != nil {
		return bad
	}
	defer body.close()

	w, ok := s.scratch.Get().(*scratch)
	if !ok {
		w = new(scratch)
	}
	defer s.release(w)
	w.records.Reset()
	split := w.records.Batch
	if single {
		split = w.records.Single
	}
	if err := split(body.buf.Bytes(), s.limits); err != nil {
		s.metrics.rejected[err.Reason].Inc()
		return s.refused(err)
	}
	for reason, n := range w.records.RejectedBy {
		if n > 0 {
			s.metrics.rejected[reason].Add(float64(n))
		}
	}
	w.tickets = s.publisher.add(w.tickets[:0], w.records.NDJSON, w.records.Pieces, key)
	for _, t := range w.tickets {
		<-t.frame.done
		if t.frame.err != nil {
			return refuse(fasthttp.StatusServiceUnavailable, "%v", t.frame.err)
		}
	}
	s.metrics.accepted.Add(float64(w.records.Accepted))

	status := fasthttp.StatusAccepted
	if single {
		w.answer = appendID(append(w.answer[:0], `{"id":`...), w.tickets[0].base)
		w.answer = append(w.answer, '}')
	} else {
		w.answer = appendBatchAnswer(w.answer[:0], w, wantIDs)
		switch {
		case w.records.Rejected > 0 && w.records.Accepted == 0:
			status = fasthttp.StatusBadRequest
		case w.records.Rejected > 0:
			status = fasthttp.StatusMultiStatus
		}
	}
	answer(ctx, status, w.answer)
	return nil
}

func (s *server) release(w *scratch) {
	clear(w.tickets)
	if cap(w.records.NDJSON) <= maxPooled {
		s.scratch.Put(w)
	}
}

// refused answers for a body that is refused whole.
func (s *server) refused(err *scan.Error) *refusal {
	if err.Reason == scan.TooLarge {
		return refuse(fasthttp.StatusRequestEntityTooLarge, "%v (MAX_RECORD_BYTES)", err)
	}
	return refuse(fasthttp.StatusBadRequest, "%v", err)
}

// idempotencyKey reads the header; nil is none.
func idempotencyKey(value []byte, now time.Time) (*uuid.UUID, *refusal) {
	if len(value) == 0 {
		return nil, nil
	}
	id, err := uuid.ParseBytes(value)
	if err != nil || len(value) != 36 || !frame.IsV7(id) {
		return nil, refuse(fasthttp.StatusBadRequest, "Idempotency-Key: got %q, takes a UUIDv7", value)
	}
	switch at := frame.Time(id); {
	case at.Before(now.Add(-maxKeyAge)):
		return nil, refuse(fasthttp.StatusBadRequest, "Idempotency-Key: %s was made %s, takes one made at most 24 h ago", id, at.Format(time.RFC3339))
	case at.After(now.Add(maxKeyAhead)):
		return nil, refuse(fasthttp.StatusBadRequest, "Idempotency-Key: %s was made %s, which is in the future", id, at.Format(time.RFC3339))
	}
	return &id, nil
}

// wantIDs reads the query string: ids=true asks for the ids of a batch.
func wantIDs(ctx *fasthttp.RequestCtx, single bool) (bool, *refusal) {
	args := ctx.QueryArgs()
	want := false
	for k, v := range args.All() {
		if string(k) != "ids" || single {
			return false, refuse(fasthttp.StatusBadRequest, "unknown query parameter %q", k)
		}
		b, err := strconv.ParseBool(string(v))
		if err != nil {
			return false, refuse(fasthttp.StatusBadRequest, "ids: got %q, takes true or false", v)
		}
		want = b
	}
	return want, nil
}

// refuse answers a request that is not taken.
func (s *server) refuse(ctx *fasthttp.RequestCtx, r *refusal) {
	if stream := ctx.RequestBodyStream(); stream != nil && ctx.Request.Header.ContentLength() <= maxDrain &&
		ctx.Conn().SetReadDeadline(time.Now().Add(drainTime)) == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(stream, maxDrain)) // as a courtesy; it may fail
	}
	if r.status == fasthttp.StatusServiceUnavailable || r.status == fasthttp.StatusTooManyRequests {
		ctx.Response.Header.Set(fasthttp.HeaderRetryAfter, retryAfter)
	}
	b := append([]byte(`{"error":`), quote(r.msg)...)
	answer(ctx, r.status, append(b, '}'))
}

func answer(ctx *fasthttp.RequestCtx, status int, json []byte) {
	ctx.SetStatusCode(status)
	ctx.SetContentType("application/json")
	ctx.SetBody(json)
}

// fault answers a request that fasthttp could not read.
func (s *server) fault(ctx *fasthttp.RequestCtx, err error) {
	var small *fasthttp.ErrSmallBuffer
	var timeout interface{ Timeout() bool }
	r := refuse(fasthttp.StatusBadRequest, "the request can't be read: %s", headline(err))
	switch {
	case errors.As(err, &small):
		r = refuse(fasthttp.StatusRequestHeaderFieldsTooLarge, "the header is larger than %d bytes", headerBytes)
		drainHeader(ctx.Conn())
	case errors.As(err, &timeout) && timeout.Timeout():
		r = refuse(fasthttp.StatusRequestTimeout, "the request did not arrive in time")
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		r = s.bodies.tooLarge()
	}
	s.metrics.count("other", r.status)
	s.refuse(ctx, r)
}

// headline is the beginning of what fasthttp says of a request. The rest quotes the request, secrets included.
func headline(err error) string {
	text, _, _ := strings.Cut(err.Error(), ": buffer size=")
	text, _, _ = strings.Cut(text, "contents:")
	text, _, _ = strings.Cut(text, `"`)
	return strings.TrimRight(text, " :,.")
}

// expect answers Expect: 100-continue before the body is sent, when the header alone shows that it is not taken.
func (s *server) expect(ctx *fasthttp.RequestCtx) int {
	switch path := string(ctx.Path()); {
	case path != "/log" && path != "/log/batch", !ctx.IsPost():
		s.handle(ctx) // which needs no body to refuse it
	case int64(ctx.Request.Header.ContentLength()) > s.bodies.maxBytes:
		s.refuse(ctx, s.bodies.tooLarge())
		s.metrics.count(path, ctx.Response.StatusCode())
	default:
		return fasthttp.StatusContinue
	}
	return ctx.Response.StatusCode()
}

// drainHeader reads what has come of a header that is too large: closing a connection with unread bytes would
// reset it, and the client would not see why.
func drainHeader(conn net.Conn) {
	if conn.SetReadDeadline(time.Now().Add(50*time.Millisecond)) == nil {
		_, _ = io.CopyN(io.Discard, conn, 1<<20) // as a courtesy; it may fail
	}
}

func appendBatchAnswer(b []byte, w *scratch, ids bool) []byte {
	b = append(b, `{"accepted":`...)
	b = strconv.AppendInt(b, int64(w.records.Accepted), 10)
	b = append(b, `,"rejected":`...)
	b = strconv.AppendInt(b, int64(w.records.Rejected), 10)
	if len(w.records.Errors) > 0 {
		b = append(b, `,"errors":[`...)
		for i, e := range w.records.Errors {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(b, `{"index":`...)
			b = strconv.AppendInt(b, int64(e.Index), 10)
			b = append(b, `,"error":`...)
			b = append(b, quote(e.Err.Error())...)
			b = append(b, '}')
		}
		b = append(b, ']')
	}
	if ids {
		b = append(b, `,"ids":[`...)
		for _, t := range w.tickets {
			for k := range t.records {
				if b[len(b)-1] != '[' {
					b = append(b, ',')
				}
				b = appendID(b, frame.ID(t.base, k))
			}
		}
		b = append(b, ']')
	}
	return append(b, '}')
}

func appendID(b []byte, id uuid.UUID) []byte {
	b = append(b, '"')
	for i, n := range []int{4, 2, 2, 2, 6} { // the bytes between the hyphens
		if i > 0 {
			b = append(b, '-')
		}
		b = hex.AppendEncode(b, id[:n])
		copy(id[:], id[n:])
	}
	return append(b, '"')
}

// quote returns s as a JSON string.
func quote(s string) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		return []byte(`"internal error"`) // a string can always be encoded
	}
	return bytes.TrimSpace(b.Bytes())
}
