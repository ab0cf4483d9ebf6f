package api

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"

	"millrace/api/front"
	"millrace/api/protocol"
	"millrace/api/publish"
	"millrace/internal/cells"
	"millrace/internal/eventtime"
	"millrace/internal/frame"
	"millrace/internal/keys"
	"millrace/internal/policy"
	"millrace/internal/record"
	"millrace/internal/scan"
	"millrace/internal/service"
)

const (
	// maxKeyAge is how old an Idempotency-Key may be. The ledger remembers for 7 days, so the frames may wait in a queue for
	// the other 6.
	maxKeyAge = cells.KeyAge

	// maxKeyAhead is how far a client's clock may be ahead of the server's.
	maxKeyAhead = cells.KeyAhead

	// maxDrain is how much of a refused body is read all the same. A client that sends first and listens later then sees the
	// answer instead of a reset connection.
	maxDrain = 64 << 20
)

var newline = []byte("\n")

// server answers the API's requests.
type server struct {
	log       *slog.Logger
	publisher publisher
	keys      *keys.File
	bodies    *bodyReader
	limits    scan.Limits
	endpoints *endpoints
	metrics   *metrics
	reportMux *http.ServeMux // health, ready, metrics
	reports   reports
	records   sync.Pool // of *record.List
	scratch   sync.Pool // of *scratch
	uploads   sync.Pool // of *upload
	timeouts  timeouts
	times     *eventtime.Rule // finds the times of records where a key is made from them
	scanning  chan struct{}   // holds one for each large body that is being scanned

	// lossyPolicy is the policy on RabbitMQ that may lose accepted records; nil while there is none.
	lossyPolicy atomic.Pointer[policyError]
}

// policyError says that a policy on RabbitMQ may lose accepted records, and how.
type policyError struct{ how string }

func (e *policyError) Error() string {
	return "RabbitMQ may lose what is accepted: " + e.how
}

// noteHarms notes what harms the queues. While something may lose records, none are accepted, because a 2xx would be no
// promise. Records that expire are not lost.
func (s *server) noteHarms(found []policy.Harm) {
	losing := slices.DeleteFunc(slices.Clone(found), func(h policy.Harm) bool { return !h.Loses })
	if len(losing) == 0 {
		s.lossyPolicy.Store(nil)
		return
	}
	s.lossyPolicy.Store(&policyError{policy.Sentence(losing)})
}

// usable returns why records should not be accepted now: they would not be confirmed, or a policy may lose them. It returns
// nil if they can be accepted.
func (s *server) usable() error {
	if err := s.publisher.Usable(); err != nil {
		return err
	}
	if err := s.lossyPolicy.Load(); err != nil {
		return err
	}
	return nil
}

// scratch holds the slices that a request works with. It goes back to the pool before the wait for the confirm if the answer
// was prepared (api/front), else after it.
type scratch struct {
	tickets []publish.Ticket
	ids     []frame.Segment // those of the tickets
	answer  []byte          // the memory of the answer
}

// errMadeRoom refuses a request that came while its connection was being closed to make room for another. The client never
// sees it.
var errMadeRoom = refuse(fasthttp.StatusServiceUnavailable, "the connection was closed for another one (MAX_CONNECTIONS)")

// newServer returns a server with the settings of c that hands records to p.
func newServer(c Config, log *slog.Logger, p publisher, keyFile *keys.File, served *endpoints, m *metrics, inflight *inflight, ready *service.Ready, registry *prometheus.Registry) *server {
	reportMux := http.NewServeMux()
	service.Handle(reportMux, ready, registry)
	s := &server{
		log:       log,
		publisher: p,
		keys:      keyFile,
		limits:    scan.Limits{RecordBytes: int(c.MaxRecordBytes), PieceBytes: frame.SegmentBytes, TotalBytes: int(c.MaxInflightBytes)},
		endpoints: served,
		metrics:   m,
		reportMux: reportMux,
		timeouts:  defaultTimeouts,
		scanning:  make(chan struct{}, runtime.GOMAXPROCS(0)),
	}
	if c.timeouts != nil {
		s.timeouts = *c.timeouts
		s.timeouts.part = cmp.Or(s.timeouts.part, defaultTimeouts.part)
		s.timeouts.pause = cmp.Or(s.timeouts.pause, defaultTimeouts.pause)
	}
	s.bodies = &bodyReader{limits: c.bodyLimits(), inflight: inflight, stepTimeout: s.timeouts.step, decoding: make(chan struct{}, runtime.GOMAXPROCS(0))}
	return s
}

// http returns the HTTP server whose requests s answers.
func (s *server) http() *fasthttp.Server {
	h := front.NewServer(front.Timeouts{Header: s.timeouts.header, Idle: s.timeouts.idle, Write: s.timeouts.write}, int(largestBody(s.bodies.limits)))
	h.Handler, h.ErrorHandler, h.ExpectHandler = s.handle, s.answerUnreadable, s.expectContinue
	h.Logger = fasthttpLogger{s.log}
	return h
}

// handle answers a request.
func (s *server) handle(ctx *fasthttp.RequestCtx) {
	start := time.Now()
	path := ctx.Path()
	e := s.endpoints.find(ctx.Method(), path)
	conn, tracked := ctx.Conn().(*front.Conn)
	if tracked {
		conn.Begin()
		defer func() {
			conn.End()
			conn.Place.Leave(start)
		}()
	}
	var key *keys.Key
	records := 0
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("panic while answering a request; this is a bug", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			s.answerRefusal(ctx, s.endpoints.other, refuse(fasthttp.StatusInternalServerError, "internal error")) // not by e's protocol, which may have panicked
		}
		e.metrics.count(ctx.Response.StatusCode())
		key.Answered(ctx.Response.StatusCode(), records)
		e.metrics.seconds.Observe(time.Since(start).Seconds())
	}()
	if bytes.Count(ctx.Request.Header.RawHeaders(), newline) > maxHeaderLines {
		s.answerRefusal(ctx, e, refuse(fasthttp.StatusRequestHeaderFieldsTooLarge, "the header has more than %d fields", maxHeaderLines))
		// fasthttp keeps some 60 bytes a field with the connection, which is more than the whole header.
		ctx.Request.Header = fasthttp.RequestHeader{}
		ctx.SetConnectionClose()
		return
	}
	var bad *refusal
	switch {
	case !e.found:
		bad = refuse(fasthttp.StatusNotFound, "no such path: %s; there are %s", path, s.endpoints.paths)
	case !e.takes(ctx.Method()):
		ctx.Response.Header.Set(fasthttp.HeaderAllow, strings.Join(e.methods, ", "))
		bad = refuse(fasthttp.StatusMethodNotAllowed, "%s %s: takes %s", ctx.Method(), path, e.methodList())
	case e.records:
		if e.asksKey(ctx.Method()) {
			key, bad = s.admit(ctx, start)
		}
		if bad == nil && tracked && !conn.Place.Enter() {
			bad = errMadeRoom
		}
		if bad == nil {
			records, bad = s.ingest(ctx, e, key, start)
		}
	default:
		if bad = s.discardBody(ctx, path, maxNeedless); bad == nil {
			s.report(ctx, e.path)
		}
	}
	if bad != nil {
		s.answerRefusal(ctx, e, bad)
	}
}

// requestOf returns what a protocol may know of a request.
func requestOf(ctx *fasthttp.RequestCtx) protocol.Request {
	return protocol.Request{Method: ctx.Method(), Path: ctx.Path(), Query: ctx.URI().QueryString(), Header: &ctx.Request.Header}
}

// admit returns the key of a request, nil if no keys are asked for. It refuses a request whose key is missing, unknown, lacks
// the scope, or has used up its limit. It looks at the header alone.
func (s *server) admit(ctx *fasthttp.RequestCtx, now time.Time) (*keys.Key, *refusal) {
	if s.keys == nil {
		return nil, nil // even looking for the headers would take time
	}
	key, verdict := s.keys.Check(&ctx.Request.Header, keys.Write)
	switch verdict {
	case keys.Unknown:
		ctx.Response.Header.Set(fasthttp.HeaderWWWAuthenticate, keys.Challenge)
		return nil, refuse(fasthttp.StatusUnauthorized, "no known API key in Authorization (Bearer, Basic, ApiKey or Splunk) or X-API-Key")
	case keys.Forbidden:
		return key, refuse(fasthttp.StatusForbidden, "the API key lacks the scope %s", keys.Write)
	}
	if wait := key.Wait(now); wait > 0 {
		return key, limited(ctx, key, wait)
	}
	return key, nil
}

// limited returns the refusal of a request for which its key's limit has room only after wait. It sets Retry-After.
func limited(ctx *fasthttp.RequestCtx, key *keys.Key, wait time.Duration) *refusal {
	seconds := int64((wait + time.Second - 1) / time.Second)
	ctx.Response.Header.Set(fasthttp.HeaderRetryAfter, strconv.FormatInt(seconds, 10))
	return refuse(fasthttp.StatusTooManyRequests, "the API key %s is limited to %d records/s, %d at once", key.Name, key.Rate, key.Burst)
}

// glance reports whether a header has an Idempotency-Key, and any of the fields that ask for options. One walk over the header costs
// less than looking for each.
func glance(header *fasthttp.RequestHeader) (hasKey, hasOptions bool) {
	for name := range header.All() {
		switch len(name) {
		case len("Idempotency-Key"):
			hasKey = hasKey || string(name) == "Idempotency-Key"
		case len("Prefer"), len("X-Parse"), len("X-Fields"), len("X-Time-Field"):
			hasOptions = hasOptions || slices.Contains(protocol.OptionFields, string(name))
		}
	}
	return hasKey, hasOptions
}

// ingest takes the records of a request and makes the answer once they are durable. It returns how many records were accepted.
func (s *server) ingest(ctx *fasthttp.RequestCtx, e *endpoint, key *keys.Key, now time.Time) (int, *refusal) {
	hasKey, hasOptions := glance(&ctx.Request.Header)
	var base *uuid.UUID
	var bad *refusal
	if hasKey {
		if base, bad = baseOfKey(ctx.Request.Header.PeekAll("Idempotency-Key"), now); bad != nil {
			return 0, bad
		}
	}
	request := requestOf(ctx)
	request.Plain = !hasOptions
	derives := false
	if base == nil {
		if derives, bad = s.derives(e, request); bad != nil {
			return 0, bad
		}
	}
	exchange, bad := e.protocol.Open(request)
	if bad != nil {
		return 0, bad
	}
	if _, ok := exchange.(protocol.Shim); ok {
		if bad := s.discardBody(ctx, request.Path, maxShimBody); bad != nil {
			return 0, bad
		}
		answer := exchange.Answer(nil, request, protocol.Outcome{Down: s.usable()})
		setRetryAfter(ctx, answer.Status)
		send(ctx, answer)
		return 0, nil
	}
	if !e.asksKey(ctx.Method()) && s.keys != nil {
		return 0, refuse(fasthttp.StatusUnauthorized, "%s takes no records", request.Path)
	}
	if err := s.usable(); err != nil {
		return 0, s.unavailable(err)
	}
	var body *body
	if u := s.newUpload(ctx, e, key, exchange, base != nil || derives); u != nil {
		body, bad = u.read()
		inParts, accepted := u.inParts, u.accepted
		s.freeUpload(u)
		if inParts {
			return accepted, nil
		}
	} else {
		implied := ""
		if encoded, ok := exchange.(protocol.Encoded); ok {
			implied = encoded.Encoding()
		}
		body, bad = s.bodies.read(ctx, s.bodies.limits[e.limit], implied)
	}
	if bad != nil {
		if bad == errBusy {
			s.metrics.unavailable.WithLabelValues("inflight").Inc()
		}
		return 0, bad
	}
	w, ok := s.scratch.Get().(*scratch)
	if !ok {
		w = new(scratch)
	}
	letGo := func() {
		s.freeScratch(w)
		body.close()
		body = nil
	}
	defer func() {
		if body != nil {
			letGo()
		}
	}()
	answer, accepted, bad := s.publish(ctx, e, w, body, exchange, key, base, derives)
	if bad != nil {
		return 0, bad
	}
	setHeader(ctx, answer)
	var err error
	if conn, ok := ctx.Conn().(*front.Conn); ok && answer.Stream == nil && len(w.tickets) == 1 && conn.Prepare(ctx, answer.Body) {
		// While it waits, the request keeps nothing that the next request could use. The next one finds it in the processor's
		// cache.
		f, held := w.tickets[0].Frame, body.handOver()
		letGo()
		if called, ok := f.OnSettled(conn.Hold(held.of, held.bytes)); ok {
			<-called
		} else {
			held.release()
			<-f.Done()
		}
		err = f.Err()
	} else {
		if answer.Stream == nil {
			ctx.SetBody(answer.Body) // a refusal replaces it
		}
		err = publish.Wait(w.tickets)
	}
	if err != nil {
		return 0, s.unavailable(err)
	}
	e.metrics.intake.accepted.Add(float64(accepted))
	if answer.Stream != nil {
		body.shrink(min(body.reserved, keptBytes(exchange)))
		// fasthttp closes the stream, whatever becomes of the answer.
		ctx.SetBodyStream(&heldStream{answer.Stream, body.handOver()}, answer.StreamBytes)
	}
	return accepted, nil
}

// keptBytes returns how many bytes an exchange keeps until its answer is sent.
func keptBytes(exchange protocol.Exchange) int64 {
	if h, ok := exchange.(protocol.Holder); ok {
		return int64(h.Holds())
	}
	return 0
}

// heldStream is an answer that is made as it is sent, with the reservation for what it is made from.
type heldStream struct {
	io.Reader
	held reservation
}

// Close gives the reservation back. It must be called once.
func (h *heldStream) Close() error {
	h.held.release()
	return nil
}

// publish hands the body's records to the publisher and gives the body's buffer back. It returns the answer to send once the
// records are confirmed, and how many were accepted. base is the request's key, or nil; if derives is set, one is made from the body.
func (s *server) publish(ctx *fasthttp.RequestCtx, e *endpoint, w *scratch, body *body, exchange protocol.Exchange, key *keys.Key, base *uuid.UUID, derives bool) (answer protocol.Answer, accepted int, bad *refusal) {
	text := body.bytes()
	if _, expands := exchange.(protocol.Expander); expands || len(text) > step {
		defer s.beginScan(max(len(text), step+1))()
	}
	records := s.newRecords()
	defer s.freeRecords(records)
	request := requestOf(ctx)
	decoded := text
	if e.stripBOM {
		decoded = protocol.SkipBOM(text)
	}
	bad = exchange.Decode(request, decoded, records)
	holds := int64(len(records.NDJSON)) + keptBytes(exchange)
	if bad == nil && (records.Overflow || holds > int64(s.limits.TotalBytes)) {
		bad = s.overflow()
	}
	if bad != nil {
		e.metrics.intake.countRefused(bad)
		return answer, 0, bad
	}
	if !body.hold(holds) {
		s.metrics.unavailable.WithLabelValues("inflight").Inc()
		return answer, 0, errBusy
	}
	e.metrics.intake.countRecords(records)
	e.metrics.intake.bytes.Add(float64(len(text)))
	if derives {
		base = s.keyOfBody(key, request, text, records, time.Now())
	} else if keyed, ok := exchange.(protocol.Keyed); ok && base == nil {
		base = s.keyOfRequest(key, request, keyed, records, time.Now())
	}
	// The time is read again: the body may have taken long to come.
	if wait := key.Take(records.Accepted, time.Now()); wait > 0 {
		return answer, 0, limited(ctx, key, wait)
	}
	var down error
	if w.tickets, down = s.add(w.tickets[:0], key, request, exchange, records, base); down != nil {
		return answer, 0, s.unavailable(down)
	}
	w.ids = w.ids[:0]
	for _, t := range w.tickets {
		w.ids = append(w.ids, frame.Segment{Base: t.Base, Records: t.Records})
	}
	answer = exchange.Answer(w.answer[:0], request, protocol.Outcome{Records: records, IDs: w.ids, Body: decoded})
	if answer.Stream == nil {
		w.answer = answer.Body
	}
	body.shrink(holds)
	return answer, records.Accepted, nil
}

// overflow returns the refusal of a body whose records take more memory than all requests may hold.
func (s *server) overflow() *refusal {
	return refuse(fasthttp.StatusRequestEntityTooLarge, "the body's records take more than %d bytes (MAX_INFLIGHT_BYTES)", s.limits.TotalBytes)
}

// beginScan waits until a body of n bytes may be scanned: at any time only one large body per processor is scanned. The caller
// must call end after the scan.
func (s *server) beginScan(n int) (end func()) {
	if n <= step {
		return func() {}
	}
	s.scanning <- struct{}{}
	return func() { <-s.scanning }
}

// newRecords returns an empty list of records.
func (s *server) newRecords() *record.List {
	if records, ok := s.records.Get().(*record.List); ok {
		records.Clear()
		return records
	}
	return &record.List{Limits: s.limits}
}

// freeRecords gives records back to the pool, unless its memory is too large to keep.
func (s *server) freeRecords(records *record.List) {
	if cap(records.NDJSON) <= maxPooled+step {
		s.records.Put(records)
	}
}

// freeScratch gives w back to the pool.
func (s *server) freeScratch(w *scratch) {
	clear(w.tickets)
	s.scratch.Put(w)
}

// unavailable counts and returns the 503 for a request whose records can't be made durable because of err.
func (s *server) unavailable(err error) *refusal {
	s.metrics.unavailable.WithLabelValues(unavailableReason(err)).Inc()
	return refuse(fasthttp.StatusServiceUnavailable, "%v", err)
}

// baseOfKey parses the header Idempotency-Key. lines are its values. It returns the base of the request's ids, or nil if there
// is no such header.
func baseOfKey(lines [][]byte, now time.Time) (*uuid.UUID, *refusal) {
	switch len(lines) {
	case 0:
		return nil, nil
	case 1:
	default:
		return nil, refuse(fasthttp.StatusBadRequest, "Idempotency-Key: %d of them, takes one", len(lines))
	}
	value := lines[0]
	id, err := uuid.ParseBytes(value)
	// The library also reads other forms of a UUID, which are refused: braces, urn:uuid:, no hyphens.
	if err != nil || len(value) != len(id.String()) || !frame.IsV7(id) {
		return nil, refuse(fasthttp.StatusBadRequest, "Idempotency-Key: got %.64q, takes a UUIDv7", value)
	}
	switch at := frame.Time(id); {
	case at.Before(now.Add(-maxKeyAge)):
		return nil, refuse(fasthttp.StatusBadRequest, "Idempotency-Key: %s was made %s, takes one made at most 24 h ago", id, at.Format(time.RFC3339))
	case at.After(now.Add(maxKeyAhead)):
		return nil, refuse(fasthttp.StatusBadRequest, "Idempotency-Key: %s was made %s, which is in the future", id, at.Format(time.RFC3339))
	}
	base := frame.BaseOfKey(id)
	return &base, nil
}

// answerRefusal answers a request that is not taken.
func (s *server) answerRefusal(ctx *fasthttp.RequestCtx, e *endpoint, r *refusal) {
	s.drain(ctx)
	answer := e.protocol.Refuse(nil, requestOf(ctx), r)
	if answer.Status != r.Status && r.Status == fasthttp.StatusUnauthorized { // some protocols know no 401
		ctx.Response.Header.Del(fasthttp.HeaderWWWAuthenticate)
	}
	setRetryAfter(ctx, answer.Status)
	send(ctx, answer)
}

// drain reads the rest of a body that is refused, within maxDrain and timeouts.drain.
func (s *server) drain(ctx *fasthttp.RequestCtx) {
	if stream := ctx.RequestBodyStream(); stream != nil && ctx.Request.Header.ContentLength() <= maxDrain &&
		ctx.Conn().SetReadDeadline(time.Now().Add(s.timeouts.drain)) == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(stream, maxDrain)) // as a courtesy; it may fail
	}
}

// setRetryAfter sets Retry-After on a 503, so that the client knows when to send again.
func setRetryAfter(ctx *fasthttp.RequestCtx, status int) {
	if status == fasthttp.StatusServiceUnavailable {
		ctx.Response.Header.Set(fasthttp.HeaderRetryAfter, front.RetryAfter)
	}
}

// send sets the answer to a request.
func send(ctx *fasthttp.RequestCtx, a protocol.Answer) {
	setHeader(ctx, a)
	if a.Stream != nil {
		ctx.SetBodyStream(a.Stream, a.StreamBytes)
	} else {
		ctx.SetBody(a.Body)
	}
}

// setHeader sets the status and header of an answer, except for its length.
func setHeader(ctx *fasthttp.RequestCtx, a protocol.Answer) {
	ctx.SetStatusCode(a.Status)
	if a.ContentType != "" {
		ctx.SetContentType(a.ContentType)
	}
	for _, field := range a.Header {
		ctx.Response.Header.Set(field[0], field[1])
	}
}

// answerUnreadable answers a request that fasthttp could not read because of err.
func (s *server) answerUnreadable(ctx *fasthttp.RequestCtx, err error) {
	var small *fasthttp.ErrSmallBuffer
	var timeout interface{ Timeout() bool }
	r := refuse(fasthttp.StatusBadRequest, "the request can't be read: %s", headline(err))
	switch {
	case errors.As(err, &small):
		r = refuse(fasthttp.StatusRequestHeaderFieldsTooLarge, "the header is larger than %d bytes", front.HeaderBytes)
		drainHeader(ctx.Conn())
	case errors.As(err, &timeout) && timeout.Timeout():
		r = refuse(fasthttp.StatusRequestTimeout, "the request did not arrive in time")
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		r = s.bodies.limits[protocol.MaxBodyBytes].tooLarge()
	}
	s.metrics.other.count(r.Status)
	s.answerRefusal(ctx, s.endpoints.other, r)
}

// headline returns the beginning of an error of fasthttp. The rest quotes the request, secrets included.
func headline(err error) string {
	text, _, _ := strings.Cut(err.Error(), ": buffer size=")
	text, _, _ = strings.Cut(text, "contents:")
	text, _, _ = strings.Cut(text, `"`)
	return strings.TrimRight(text, " :,.")
}

// expectContinue answers Expect: 100-continue. It refuses the request before its body is sent if the header alone shows that
// the body will not be taken. It returns the status to send.
func (s *server) expectContinue(ctx *fasthttp.RequestCtx) int {
	e := s.endpoints.find(ctx.Method(), ctx.Path())
	switch {
	case !e.records, !e.takes(ctx.Method()):
		s.handle(ctx) // it refuses the request, and needs no body for that
	case int64(ctx.Request.Header.ContentLength()) > s.bodies.limits[e.limit].bytes:
		s.answerRefusal(ctx, e, s.bodies.limits[e.limit].tooLarge())
		e.metrics.count(ctx.Response.StatusCode())
	case !e.asksKey(ctx.Method()):
		return fasthttp.StatusContinue
	default:
		if key, bad := s.admit(ctx, time.Now()); bad != nil {
			s.answerRefusal(ctx, e, bad)
			e.metrics.count(ctx.Response.StatusCode())
			key.Answered(ctx.Response.StatusCode(), 0)
			break
		}
		return fasthttp.StatusContinue
	}
	return ctx.Response.StatusCode()
}

// drainHeader reads what has come of a header that is too large. Closing a connection with unread bytes would reset it, and
// the client would not see the answer.
func drainHeader(conn net.Conn) {
	if conn.SetReadDeadline(time.Now().Add(50*time.Millisecond)) == nil {
		_, _ = io.CopyN(io.Discard, conn, 1<<20) // as a courtesy; it may fail
	}
}
