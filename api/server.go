package api

import (
	"bytes"
	"cmp"
	"encoding/hex"
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

	json "github.com/goccy/go-json"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"

	"millrace/api/front"
	"millrace/api/publish"
	"millrace/internal/frame"
	"millrace/internal/keys"
	"millrace/internal/policy"
	"millrace/internal/record"
	"millrace/internal/scan"
	"millrace/internal/service"
)

const (
	// maxKeyAge is how old an Idempotency-Key may be. The ledger remembers for 7 days, which leaves the frames
	// 6 days to wait in a queue.
	maxKeyAge = 24 * time.Hour

	// maxKeyAhead is how far a client's clock may be ahead of this one.
	maxKeyAhead = 5 * time.Minute

	// maxDrain is how much of a refused body is read all the same, so that a client that sends first and
	// listens later gets to see the answer instead of a reset connection.
	maxDrain = 64 << 20

	// maxQuery is how long a query string may be. fasthttp keeps some 60 bytes a parameter with the connection.
	maxQuery = 512
)

var newline = []byte("\n")

// server answers the API's requests.
type server struct {
	log       *slog.Logger
	publisher *publish.Publisher
	keys      *keys.File
	bodies    *bodyReader
	limits    scan.Limits
	metrics   *metrics
	common    *http.ServeMux // health, ready, metrics
	reports   reports
	records   sync.Pool // of *record.List
	scratch   sync.Pool // of *scratch
	uploads   sync.Pool // of *upload
	timeouts  timeouts
	scanning  chan struct{} // holds one for each large body that is being scanned

	// loses is why accepted records may be lost by a policy on the server; nil while they may not.
	loses atomic.Pointer[policyError]
}

// policyError says how a policy may lose records that were accepted.
type policyError struct{ how string }

func (e *policyError) Error() string {
	return "RabbitMQ may lose what is accepted: " + e.how
}

// harmed takes note of what harms the queues. While something may lose records no more are accepted: a 2xx would be no
// promise. What makes them expire does not lose them.
func (s *server) harmed(found []policy.Harm) {
	loses := slices.DeleteFunc(slices.Clone(found), func(h policy.Harm) bool { return !h.Loses })
	if len(loses) == 0 {
		s.loses.Store(nil)
		return
	}
	s.loses.Store(&policyError{policy.Sentence(loses)})
}

// usable returns nil when records that are accepted can be expected to be confirmed, and to stay where they are.
func (s *server) usable() error {
	if err := s.publisher.Usable(); err != nil {
		return err
	}
	if err := s.loses.Load(); err != nil {
		return err
	}
	return nil
}

// scratch is what a request works with, and keeps while it waits for its confirms where its answer is not prepared. Its memory
// is used again by the next.
type scratch struct {
	tickets []publish.Ticket
	answer  []byte
}

// errMadeRoom is for a request that came while its connection was closed for another. Nobody gets to see it.
var errMadeRoom = refuse(fasthttp.StatusServiceUnavailable, "the connection was closed for another one (MAX_CONNECTIONS)")

func newServer(c Config, log *slog.Logger, p *publish.Publisher, keyFile *keys.File, m *metrics, inflight *inflight, ready *service.Ready, registry *prometheus.Registry) *server {
	common := http.NewServeMux()
	service.Handle(common, ready, registry)
	s := &server{
		log:       log,
		publisher: p,
		keys:      keyFile,
		limits:    scan.Limits{RecordBytes: int(c.MaxRecordBytes), PieceBytes: frame.SegmentBytes},
		metrics:   m,
		common:    common,
		timeouts:  defaultTimeouts,
		scanning:  make(chan struct{}, runtime.GOMAXPROCS(0)),
	}
	if c.timeouts != nil {
		s.timeouts = *c.timeouts
		s.timeouts.part = cmp.Or(s.timeouts.part, defaultTimeouts.part)
		s.timeouts.pause = cmp.Or(s.timeouts.pause, defaultTimeouts.pause)
	}
	s.bodies = &bodyReader{maxBytes: int64(c.MaxBodyBytes), inflight: inflight, stepTimeout: s.timeouts.step, decoding: make(chan struct{}, runtime.GOMAXPROCS(0))}
	return s
}

// http returns the HTTP server around s.
func (s *server) http() *fasthttp.Server {
	h := front.NewServer(front.Timeouts{Header: s.timeouts.header, Idle: s.timeouts.idle, Write: s.timeouts.write}, int(s.bodies.maxBytes))
	h.Handler, h.ErrorHandler, h.ExpectHandler = s.handle, s.fault, s.expect
	h.Logger = fasthttpLogger{s.log}
	return h
}

func (s *server) handle(ctx *fasthttp.RequestCtx) {
	start := time.Now()
	path := ctx.Path()
	route := s.metrics.routes[string(path)]
	if route == nil {
		route = s.metrics.routes["other"]
	}
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
			s.refuse(ctx, refuse(fasthttp.StatusInternalServerError, "internal error"))
		}
		route.count(ctx.Response.StatusCode())
		key.Answered(ctx.Response.StatusCode(), records)
		route.seconds.Observe(time.Since(start).Seconds())
	}()
	if bytes.Count(ctx.Request.Header.RawHeaders(), newline) > maxHeaderLines {
		s.refuse(ctx, refuse(fasthttp.StatusRequestHeaderFieldsTooLarge, "the header has more than %d fields", maxHeaderLines))
		// fasthttp keeps some 60 bytes a field with the connection, which is more than the whole header.
		ctx.Request.Header = fasthttp.RequestHeader{}
		ctx.SetConnectionClose()
		return
	}
	switch string(path) {
	case "/log", "/log/batch":
		if !takes(ctx) {
			methods := "POST"
			if string(path) == "/log/batch" {
				methods = "POST, PUT"
			}
			ctx.Response.Header.Set(fasthttp.HeaderAllow, methods)
			s.refuse(ctx, refuse(fasthttp.StatusMethodNotAllowed, "%s %s: takes %s", ctx.Method(), path, methods))
			return
		}
		var bad *refusal
		key, bad = s.admit(ctx, start)
		if bad == nil && tracked && !conn.Place.Enter() {
			bad = errMadeRoom
		}
		if bad == nil {
			records, bad = s.ingest(ctx, key, string(path) == "/log", start)
		}
		if bad != nil {
			s.refuse(ctx, bad)
		}
	case "/health", "/ready", "/metrics":
		if !ctx.IsGet() && !ctx.IsHead() {
			ctx.Response.Header.Set(fasthttp.HeaderAllow, "GET, HEAD")
			s.refuse(ctx, refuse(fasthttp.StatusMethodNotAllowed, "%s %s: takes GET", ctx.Method(), path))
			return
		}
		if bad := s.bodyless(ctx, path); bad != nil {
			s.refuse(ctx, bad)
			return
		}
		s.report(ctx, string(path))
	default:
		s.refuse(ctx, refuse(fasthttp.StatusNotFound, "no such path: %s; there are POST /log, POST /log/batch, GET /health, GET /ready and GET /metrics", path))
	}
}

// takes reports whether a request to /log or /log/batch has a method that its path takes. curl -T sends PUT.
func takes(ctx *fasthttp.RequestCtx) bool {
	return ctx.IsPost() || ctx.IsPut() && string(ctx.Path()) == "/log/batch"
}

// admit says whose request it is, nil where no keys are asked for, and refuses it by what the header alone says of
// its key.
func (s *server) admit(ctx *fasthttp.RequestCtx, now time.Time) (*keys.Key, *refusal) {
	if s.keys == nil {
		return nil, nil // looking for headers that are not asked for takes time, too
	}
	header := &ctx.Request.Header
	key, verdict := s.keys.Check(header.Peek(fasthttp.HeaderAuthorization), header.Peek("X-API-Key"), keys.Write)
	switch verdict {
	case keys.Unknown:
		ctx.Response.Header.Set(fasthttp.HeaderWWWAuthenticate, "Bearer")
		return nil, refuse(fasthttp.StatusUnauthorized, "no known API key in Authorization: Bearer or X-API-Key")
	case keys.Forbidden:
		return key, refuse(fasthttp.StatusForbidden, "the API key lacks the scope %s", keys.Write)
	}
	if wait := key.Wait(now); wait > 0 {
		return key, limited(ctx, key, wait)
	}
	return key, nil
}

// limited refuses a request for which its key's limit has no room within wait.
func limited(ctx *fasthttp.RequestCtx, key *keys.Key, wait time.Duration) *refusal {
	seconds := int64((wait + time.Second - 1) / time.Second)
	ctx.Response.Header.Set(fasthttp.HeaderRetryAfter, strconv.FormatInt(seconds, 10))
	return refuse(fasthttp.StatusTooManyRequests, "the API key %s is limited to %d records/s, %d at once", key.Name, key.Rate, key.Burst)
}

// ingest takes the records of a request and answers when they are durable. It returns how many they are.
func (s *server) ingest(ctx *fasthttp.RequestCtx, key *keys.Key, single bool, now time.Time) (int, *refusal) {
	base, bad := baseOfKey(ctx.Request.Header.PeekAll("Idempotency-Key"), now)
	if bad != nil {
		return 0, bad
	}
	wantIDs, bad := wantIDs(ctx, single)
	if bad != nil {
		return 0, bad
	}
	if err := s.usable(); err != nil {
		return 0, s.unavailable(err)
	}
	var body *body
	if u := s.newUpload(ctx, key, single, base, wantIDs); u != nil {
		body, bad = u.read()
		inParts, accepted := u.inParts, u.accepted
		s.letGo(u)
		if inParts {
			return accepted, nil
		}
	} else {
		body, bad = s.bodies.read(ctx)
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
		s.release(w)
		body.close()
		body = nil
	}
	defer func() {
		if body != nil {
			letGo()
		}
	}()
	status, accepted, bad := s.publish(ctx, w, body, single, key, base)
	if bad != nil {
		return 0, bad
	}
	var err error
	if conn, ok := ctx.Conn().(*front.Conn); ok && !wantIDs && len(w.tickets) == 1 && conn.Prepare(ctx, status, w.answer) {
		// It keeps nothing that the next request could use, which will find that in the processor's cache.
		f, held := w.tickets[0].Frame, body.hand()
		letGo()
		if called, ok := f.OnSettled(conn.Hold(held.of, held.bytes)); ok {
			<-called
		} else {
			held.release()
			<-f.Done()
		}
		err = f.Err()
	} else {
		if !wantIDs {
			answer(ctx, status, w.answer) // unless it fails
		}
		err = publish.Wait(w.tickets)
	}
	if err != nil {
		return 0, s.unavailable(err)
	}
	s.metrics.accepted.Add(float64(accepted))
	if wantIDs {
		answerWithIDs(ctx, status, w)
	}
	return accepted, nil
}

// publish hands the body's records to the publisher, prepares the answer in w, and lets go of all else. It says which
// status the answer has once the records are confirmed, and how many they are.
func (s *server) publish(ctx *fasthttp.RequestCtx, w *scratch, body *body, single bool, key *keys.Key, base *uuid.UUID) (status, accepted int, bad *refusal) {
	text := body.bytes()
	if len(text) > step {
		defer s.beginScan(len(text))()
	}
	records := s.newRecords()
	defer s.freeRecords(records)
	var err *scan.Error
	if single {
		err = records.Single(text)
	} else {
		err = records.Split(text)
	}
	if err != nil {
		s.metrics.rejected[err.Reason].Inc()
		bad := s.refused(err)
		if hint := hint(ctx, text, err, single); hint != "" {
			bad.msg = hint + ": " + bad.msg
		}
		return 0, 0, bad
	}
	s.countRejected(records)
	// Not with the time of the request's header: the body may have taken long.
	if wait := key.Take(records.Accepted, time.Now()); wait > 0 {
		return 0, 0, limited(ctx, key, wait)
	}
	var down error
	if w.tickets, down = s.publisher.Add(w.tickets[:0], records, base); down != nil {
		return 0, 0, s.unavailable(down)
	}
	status = fasthttp.StatusAccepted
	if single {
		w.answer = appendID(append(w.answer[:0], `{"id":`...), w.tickets[0].Base)
		w.answer = append(w.answer, '}')
	} else {
		w.answer = appendBatchAnswer(w.answer[:0], records)
		status = batchStatus(records)
		if status == fasthttp.StatusBadRequest {
			if hint := hint(ctx, text, &records.Errors[0].Err, false); hint != "" {
				w.answer = withError(w.answer, hint)
			}
		}
	}
	body.shrink(int64(len(records.NDJSON)))
	return status, records.Accepted, nil
}

// beginScan waits until a body of n bytes may be scanned: one large body a processor at a time. The result ends that.
func (s *server) beginScan(n int) (end func()) {
	if n <= step {
		return func() {}
	}
	s.scanning <- struct{}{}
	return func() { <-s.scanning }
}

func (s *server) newRecords() *record.List {
	if records, ok := s.records.Get().(*record.List); ok {
		records.Reset()
		return records
	}
	return &record.List{Limits: s.limits}
}

func (s *server) freeRecords(records *record.List) {
	if cap(records.NDJSON) <= maxPooled+step {
		s.records.Put(records)
	}
}

// countRejected counts the records that were refused in a body that was not.
func (s *server) countRejected(records *record.List) {
	for reason, n := range records.RejectedBy {
		if n > 0 {
			s.metrics.rejected[reason].Add(float64(n))
		}
	}
}

// batchStatus is the status of the answer to a batch whose accepted records are confirmed.
func batchStatus(records *record.List) int {
	switch {
	case records.Rejected == 0:
		return fasthttp.StatusAccepted
	case records.Accepted == 0:
		return fasthttp.StatusBadRequest
	}
	return fasthttp.StatusMultiStatus
}

func (s *server) release(w *scratch) {
	clear(w.tickets)
	s.scratch.Put(w)
}

// unavailable answers while records can't be made durable.
func (s *server) unavailable(err error) *refusal {
	s.metrics.unavailable.WithLabelValues(unavailableReason(err)).Inc()
	return refuse(fasthttp.StatusServiceUnavailable, "%v", err)
}

// refused answers for a body that is refused whole.
func (s *server) refused(err *scan.Error) *refusal {
	if err.Reason == scan.TooLarge {
		return refuse(fasthttp.StatusRequestEntityTooLarge, "%v (MAX_RECORD_BYTES)", err)
	}
	return refuse(fasthttp.StatusBadRequest, "%v", err)
}

// baseOfKey reads the header Idempotency-Key, given by its lines, and returns the base of the ids of what comes under it,
// or nil where there is none.
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
	// Not the other ways to write a UUID that the library reads: braces, urn:uuid:, no hyphens.
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

// wantIDs reads the query string: ids=true asks for the ids of a batch.
func wantIDs(ctx *fasthttp.RequestCtx, single bool) (bool, *refusal) {
	if len(ctx.URI().QueryString()) == 0 {
		return false, nil // QueryArgs would set up its tables all the same
	}
	if n := len(ctx.URI().QueryString()); n > maxQuery {
		return false, refuse(fasthttp.StatusBadRequest, "the query string has %d bytes, and takes at most %d", n, maxQuery)
	}
	want := false
	for k, v := range ctx.QueryArgs().All() {
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
	s.drain(ctx)
	setRetryAfter(ctx, r.status)
	b := append([]byte(`{"error":`), quote(r.msg)...)
	answer(ctx, r.status, append(b, '}'))
}

// drain reads what still comes of a body that is refused.
func (s *server) drain(ctx *fasthttp.RequestCtx) {
	if stream := ctx.RequestBodyStream(); stream != nil && ctx.Request.Header.ContentLength() <= maxDrain &&
		ctx.Conn().SetReadDeadline(time.Now().Add(s.timeouts.drain)) == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(stream, maxDrain)) // as a courtesy; it may fail
	}
}

// setRetryAfter says when to come again where the status says that a request may be sent again.
func setRetryAfter(ctx *fasthttp.RequestCtx, status int) {
	if status == fasthttp.StatusServiceUnavailable {
		ctx.Response.Header.Set(fasthttp.HeaderRetryAfter, front.RetryAfter)
	}
}

func answer(ctx *fasthttp.RequestCtx, status int, json []byte) {
	beginJSON(ctx, status)
	ctx.SetBody(json)
}

// beginJSON makes the header of an answer, but for its length.
func beginJSON(ctx *fasthttp.RequestCtx, status int) {
	ctx.SetStatusCode(status)
	ctx.SetContentType("application/json")
}

// fault answers a request that fasthttp could not read.
func (s *server) fault(ctx *fasthttp.RequestCtx, err error) {
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
		r = s.bodies.tooLarge()
	}
	s.metrics.routes["other"].count(r.status)
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
	case path != "/log" && path != "/log/batch", !takes(ctx):
		s.handle(ctx) // which needs no body to refuse it
	case int64(ctx.Request.Header.ContentLength()) > s.bodies.maxBytes:
		s.refuse(ctx, s.bodies.tooLarge())
		s.metrics.routes[path].count(ctx.Response.StatusCode())
	default:
		if key, bad := s.admit(ctx, time.Now()); bad != nil {
			s.refuse(ctx, bad)
			s.metrics.routes[path].count(ctx.Response.StatusCode())
			key.Answered(ctx.Response.StatusCode(), 0)
			break
		}
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

func appendBatchAnswer(b []byte, records *record.List) []byte {
	b = append(b, `{"accepted":`...)
	b = strconv.AppendInt(b, int64(records.Accepted), 10)
	b = append(b, `,"rejected":`...)
	b = strconv.AppendInt(b, int64(records.Rejected), 10)
	if len(records.Errors) > 0 {
		b = append(b, `,"errors":[`...)
		for i, e := range records.Errors {
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
	return append(b, '}')
}

// withError adds an error of the whole to the answer of a batch.
func withError(b []byte, msg string) []byte {
	b = append(append(b[:len(b)-1], `,"error":`...), quote(msg)...)
	return append(b, '}')
}

// idLength is the length of an id in an answer, with its quotes and a comma.
const idLength = len(`"01a20966-5bf7-7eb9-8db3-0bb4f191b246",`)

// answerWithIDs adds the records' ids to the prepared answer. They are made as they are sent: the ids of one body of
// MAX_BODY_BYTES can be thirteen times its size.
func answerWithIDs(ctx *fasthttp.RequestCtx, status int, w *scratch) {
	ids := &idReader{buf: append([]byte(nil), w.answer[:len(w.answer)-1]...)}
	ids.buf = append(ids.buf, `,"ids":[`...)
	n := 0
	for _, t := range w.tickets {
		ids.runs = append(ids.runs, frame.Segment{Base: t.Base, Records: t.Records})
		n += t.Records
	}
	beginJSON(ctx, status)
	ctx.SetBodyStream(ids, len(ids.buf)+max(0, n*idLength-1)+len(`]}`))
}

// idReader reads an answer that ends in ids.
type idReader struct {
	buf  []byte          // what was made and not read; its end is the next id's place
	runs []frame.Segment // whose ids follow
	k    int             // the next of the first run
	done bool
}

func (r *idReader) Read(p []byte) (int, error) {
	if len(r.buf) == 0 {
		if r.done {
			return 0, io.EOF
		}
		r.fill()
	}
	n := copy(p, r.buf)
	r.buf = r.buf[n:]
	return n, nil
}

// fill makes the next ids, some 4 KiB of them.
func (r *idReader) fill() {
	b := make([]byte, 0, 4<<10)
	for len(r.runs) > 0 && len(b)+idLength+len(`]}`) <= cap(b) {
		run := r.runs[0]
		b = appendID(b, frame.ID(run.Base, r.k))
		if r.k++; r.k == run.Records {
			r.runs, r.k = r.runs[1:], 0
		}
		if len(r.runs) > 0 {
			b = append(b, ',')
		}
	}
	if len(r.runs) == 0 {
		b = append(b, `]}`...)
		r.done = true
	}
	r.buf = b
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
