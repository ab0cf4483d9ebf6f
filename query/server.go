package query

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"millrace/internal/keys"
	"millrace/internal/service"
	"millrace/query/language"
	"millrace/query/tail"
)

const (
	// placesPerConnection is how many requests are taken at once for each database connection: one that has it
	// and some that wait for it or still send their answer. A place holds pageBytes and a record at most.
	placesPerConnection = 8

	// writeTime is how long a client may take to receive its answer.
	writeTime = 30 * time.Second

	// clientLeft is the status that metrics show for a client that went before its answer; nginx's number.
	clientLeft = 499
)

// server answers the requests. It may be used by many goroutines at once.
type server struct {
	store *store
	cache *cache
	tail  *tail.Tail

	maxFollowers int
	distributed  *atomic.Bool // that Citus keeps the rows on other servers, whose transaction ids the tail can't follow

	keys     *keys.File
	origins  origins
	metrics  *metrics
	log      *slog.Logger
	places   chan struct{} // one for each request under way
	exports  chan struct{} // one for each export under way
	longest  time.Duration // of a request, from its header to the end of its answer; exports and the tail are without
	timeText string        // QUERY_TIMEOUT, for the refusal that tells it

	stopping      context.Context // done when streams must end
	working       *sync.WaitGroup // what requests start and the service waits for
	exportTimeout time.Duration
}

// endpoint is a route that takes GET and HEAD.
type endpoint struct {
	route  string
	takes  []string // parameters
	handle func(http.ResponseWriter, *http.Request) error
}

// endpoints are all routes but /health, /ready and /metrics.
func (s *server) endpoints() []endpoint {
	return []endpoint{
		{"/logs", pageTakes, s.logs},
		{"/logs/count", windowTakes, s.count},
		{"/logs/histogram", histogramTakes, s.chart},
		{"/logs/fields", windowTakes, s.fields},
		{"/logs/fields/{path}/values", windowTakes, s.values},
		{"/logs/tail", tailTakes, s.follow},
		{"/logs/export", exportTakes, s.export},
		{"/logs/{id}", nil, s.one},
		{"/openapi.json", nil, s.document},
	}
}

// handler returns the service's routes.
func (s *server) handler(ready *service.Ready) http.Handler {
	mux := http.NewServeMux()
	service.Handle(mux, ready, s.metrics.registry)
	// The methods are checked here: the mux can't hold "/logs/count" for any method beside "GET /logs/{id}".
	notAllowed := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Allow", "GET, HEAD")
		s.fail(w, r, &failure{http.StatusMethodNotAllowed, fmt.Sprintf("%.16q is not allowed here; allowed is GET", r.Method)})
	}
	mux.HandleFunc("/health", notAllowed)
	mux.HandleFunc("/metrics", notAllowed)
	mux.HandleFunc("/ready", notAllowed)
	add := func(e endpoint) {
		mux.HandleFunc(e.route, func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet && r.Method != http.MethodHead {
				notAllowed(w, r)
			} else if err := e.handle(w, r); err != nil {
				s.fail(w, r, err)
			}
		})
	}
	for _, e := range s.endpoints() {
		add(e)
	}
	add(endpoint{"/{$}", nil, thePage().index})
	add(endpoint{assetsPath + "{version}/{name}", nil, thePage().asset})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, &failure{http.StatusNotFound, fmt.Sprintf("no such path: %.64q", r.URL.Path)})
	})
	return s.around(mux)
}

// around is what happens to every request: deadlines, keys, metrics, and a stop to panics.
func (s *server) around(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(writer http.ResponseWriter, r *http.Request) {
		began := time.Now()
		w := &answer{ResponseWriter: writer}
		// An error means that the connection takes no deadline: it is broken, or not one of net/http's.
		deadline := http.NewResponseController(writer)
		_ = deadline.SetReadDeadline(began.Add(s.longest))
		_ = deadline.SetWriteDeadline(began.Add(s.longest))
		defer func() {
			p := recover()
			if p != nil && p != http.ErrAbortHandler {
				s.log.Error("panic", "route", route(r), "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				if w.status == 0 && r.Context().Err() == nil {
					s.fail(w, r, errors.New("panic"))
					p = nil
				}
			}
			s.metrics.requests.WithLabelValues(route(r), strconv.Itoa(w.code(r))).Inc()
			s.metrics.seconds.WithLabelValues(route(r)).Observe(time.Since(began).Seconds())
			if p != nil {
				panic(http.ErrAbortHandler) // the answer has begun: cutting the connection is all that is left
			}
		}()
		if s.origins.answer(w, r) {
			return
		}
		key, err := s.admit(w, r)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		if !isOpen(r.URL.Path) && !service.Admitted(r) {
			panic(http.ErrAbortHandler) // its connection was closed for another
		}
		r = r.WithContext(context.WithValue(r.Context(), keyed{}, key))
		if p := r.URL.EscapedPath(); p != path.Clean(p) {
			// The mux would redirect. No path here ends with a slash or has an empty part.
			s.fail(w, r, &failure{http.StatusNotFound, fmt.Sprintf("no such path: %.64q", r.URL.Path)})
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// route is the label of a request: the pattern that took it, never the path, which the client chooses.
func route(r *http.Request) string {
	_, pattern, found := strings.Cut(r.Pattern, " ")
	if !found {
		pattern = r.Pattern
	}
	switch pattern {
	case "/{$}":
		return "/"
	case "/", "":
		return "other"
	}
	return pattern
}

// isOpen reports whether a path needs no key.
func isOpen(path string) bool {
	switch path {
	case "/health", "/ready", "/metrics":
		return true
	}
	return isPage(path)
}

// admit checks the key. Probes and scrapes need none.
func (s *server) admit(w http.ResponseWriter, r *http.Request) (*keys.Key, error) {
	if isOpen(r.URL.Path) {
		return nil, nil
	}
	key, verdict := s.keys.Check([]byte(r.Header.Get("Authorization")), []byte(r.Header.Get("X-API-Key")), keys.Read)
	switch verdict {
	case keys.Allowed:
		return key, nil
	case keys.Forbidden:
		return nil, &failure{http.StatusForbidden, "the API key has not the scope " + keys.Read}
	default:
		w.Header().Set("WWW-Authenticate", "Bearer")
		return nil, &failure{http.StatusUnauthorized, "an API key is needed: Authorization: Bearer KEY, or X-API-Key: KEY"}
	}
}

// keyed is the key of a request's context under which its API key is.
type keyed struct{}

// keyOf returns the key that a request was let in for; nil where none is asked for.
func keyOf(r *http.Request) *keys.Key {
	key, _ := r.Context().Value(keyed{}).(*keys.Key)
	return key
}

// logs answers GET /logs.
func (s *server) logs(w http.ResponseWriter, r *http.Request) error {
	q, err := parseSearch(r.URL.RawQuery, pageTakes, time.Now())
	if err != nil {
		return err
	}
	return s.search(w, r, "/logs", q, func(ctx context.Context) ([]byte, error) { return s.store.page(ctx, q) })
}

// count answers GET /logs/count.
func (s *server) count(w http.ResponseWriter, r *http.Request) error {
	q, err := parseSearch(r.URL.RawQuery, windowTakes, time.Now())
	if err != nil {
		return err
	}
	return s.search(w, r, "/logs/count", q, func(ctx context.Context) ([]byte, error) { return s.store.count(ctx, q) })
}

// chart answers GET /logs/histogram.
func (s *server) chart(w http.ResponseWriter, r *http.Request) error {
	q, err := parseSearch(r.URL.RawQuery, histogramTakes, time.Now())
	if err != nil {
		return err
	}
	return s.answer(w, func() ([]byte, string, error) { return s.histogram(r.Context(), q) })
}

// fields answers GET /logs/fields.
func (s *server) fields(w http.ResponseWriter, r *http.Request) error {
	q, err := parseSearch(r.URL.RawQuery, windowTakes, time.Now())
	if err != nil {
		return err
	}
	return s.search(w, r, "/logs/fields", q, func(ctx context.Context) ([]byte, error) { return s.store.fields(ctx, q) })
}

// values answers GET /logs/fields/{path}/values.
func (s *server) values(w http.ResponseWriter, r *http.Request) error {
	q, err := parseSearch(r.URL.RawQuery, windowTakes, time.Now())
	if err != nil {
		return err
	}
	if q.by, err = language.ParseField(r.PathValue("path")); err != nil {
		return badRequest("path: %v", err)
	}
	return s.search(w, r, "/logs/fields/values", q, func(ctx context.Context) ([]byte, error) { return s.store.values(ctx, q, q.by) })
}

// one answers GET /logs/{id}.
func (s *server) one(w http.ResponseWriter, r *http.Request) error {
	if _, err := parseParameters(r.URL.RawQuery, nil); err != nil {
		return err
	}
	id, err := parseID(r.PathValue("id"))
	if err != nil {
		return err
	}
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	body, err := s.store.one(r.Context(), id)
	if errors.Is(err, pgx.ErrNoRows) {
		return &failure{http.StatusNotFound, "no log has the id " + id.String()}
	}
	if err != nil {
		return err
	}
	return write(w, body)
}

// search answers with what compute returns, out of the cache where the window allows it.
func (s *server) search(w http.ResponseWriter, r *http.Request, route string, q *search, compute func(context.Context) ([]byte, error)) error {
	return s.answer(w, func() ([]byte, string, error) { return s.lookUp(r.Context(), route, q, compute) })
}

// answer takes a place and answers with what look finds, and says what the cache had to do with it.
func (s *server) answer(w http.ResponseWriter, look func() ([]byte, string, error)) error {
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	body, result, err := look()
	if err != nil {
		return err
	}
	s.metrics.cache.WithLabelValues(result).Inc()
	w.Header().Set("X-Cache", result)
	return write(w, body)
}

func (s *server) lookUp(ctx context.Context, route string, q *search, compute func(context.Context) ([]byte, error)) ([]byte, string, error) {
	// Where this machine's clock is wrong, the first look at it costs an answer the cache, nothing more: the
	// database's clock decides.
	if s.cache.redis != nil && q.fixed && q.to < time.Now().UnixMilli() {
		// Before the answer is looked up or computed: a change that comes between is in the answer, kept under
		// a key that nobody asks for again, and never the other way round.
		closed, g, err := s.store.closed(ctx, q)
		if err != nil {
			return nil, bypass, err
		}
		if closed {
			return s.cache.answer(ctx, cacheKey(route, q, g), compute)
		}
	}
	body, err := compute(ctx)
	return body, bypass, err
}

// enter takes a place. leave gives it back.
func (s *server) enter() (leave func(), err error) {
	select {
	case s.places <- struct{}{}:
		return func() { <-s.places }, nil
	default:
		return nil, tooMany(strconv.Itoa(cap(s.places)) + " requests are under way, the most that are taken at once")
	}
}

func tooMany(message string) error { return &failure{http.StatusTooManyRequests, message} }

func write(w http.ResponseWriter, body []byte) error {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body) // the client may be gone: nobody is left to tell
	return nil
}

// fail answers with an error. It is the one place that knows which error is which status.
func (s *server) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		// Nobody is there to read it, or one who has only closed his side: net/http would tell him 200.
		panic(http.ErrAbortHandler)
	}
	f := s.judge(err)
	if f.status >= 500 && f.status != http.StatusServiceUnavailable && f.status != http.StatusHTTPVersionNotSupported {
		s.log.Error("query failed", "route", route(r), "status", f.status, "error", err)
	} else if f.status >= 500 {
		s.log.Debug("query failed", "route", route(r), "status", f.status, "error", err) // watch tells of the database
	}
	if f.status == http.StatusServiceUnavailable || f.status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "1")
	}
	service.WriteJSON(w, f.status, map[string]string{"error": f.message})
}

func (s *server) judge(err error) *failure {
	var (
		f       *failure
		pgErr   *pgconn.PgError
		connErr *pgconn.ConnectError
	)
	tooLong := &failure{http.StatusGatewayTimeout, "the query took longer than " + s.timeText + "; narrow the time range"}
	switch {
	case errors.As(err, &f):
		return f
	case errors.Is(err, errBusy):
		return &failure{http.StatusServiceUnavailable, "all database connections are in use"}
	case errors.As(err, &connErr), errors.Is(err, errBroken):
		return &failure{http.StatusServiceUnavailable, "the database can't be reached"}
	case errors.As(err, &pgErr):
		// https://www.postgresql.org/docs/current/errcodes-appendix.html
		switch {
		case pgErr.Code == "57014": // query_canceled, by the timeout
			return tooLong
		case pgErr.Code == "42P01": // undefined_table
			return &failure{http.StatusServiceUnavailable, errNoSchema.Error()}
		case pgErr.Code == "42703": // undefined_column; no column's name comes from a client
			if fault := s.store.schemaFault(); fault != nil {
				return &failure{http.StatusServiceUnavailable, fault.Error()}
			}
		case strings.HasPrefix(pgErr.Code, "22"), strings.HasPrefix(pgErr.Code, "54"): // data exception, limit exceeded
			return &failure{http.StatusBadRequest, "q: the database can't look for that: " + pgErr.Message}
		case strings.HasPrefix(pgErr.Code, "08"), // connection
			strings.HasPrefix(pgErr.Code, "40"), // rollback, such as a replica's conflict with recovery
			strings.HasPrefix(pgErr.Code, "53"), // out of memory, disk or connections
			strings.HasPrefix(pgErr.Code, "55"), // locks
			strings.HasPrefix(pgErr.Code, "57"), // shutting down, starting up
			strings.HasPrefix(pgErr.Code, "58"): // input or output
			return &failure{http.StatusServiceUnavailable, "the database can't answer now"}
		}
	case errors.Is(err, context.DeadlineExceeded):
		return tooLong
	case pgconn.SafeToRetry(err), isNetwork(err):
		return &failure{http.StatusServiceUnavailable, "the database can't be reached"}
	}
	return &failure{http.StatusInternalServerError, "internal error"}
}

// answer remembers the status of what was answered.
type answer struct {
	http.ResponseWriter
	status int // 0: nothing yet
}

func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(b []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	return a.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// code is the status for metrics.
func (a *answer) code(r *http.Request) int {
	switch {
	case a.status != 0:
		return a.status
	case r.Context().Err() != nil:
		return clientLeft
	}
	return http.StatusOK // net/http's answer when a handler wrote nothing
}
