package query

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"millrace/internal/keys"
	"millrace/internal/service"
	"millrace/query/searches"
	"millrace/query/tail"
)

const (
	// placesPerConnection is how many requests are taken at once for each database connection. One of them has the
	// connection. The others wait for it, or still send their answer. A place holds pageBytes and a record at most.
	placesPerConnection = 8

	// writeTime is how long a client may take to receive its answer.
	writeTime = 30 * time.Second

	// clientLeft is the status that metrics show for a client that left before its answer. The number is nginx's.
	clientLeft = 499
)

// server answers the requests. Many goroutines may use it at once.
type server struct {
	store *store
	cache *cache
	tail  *tail.Tail

	searches *searches.Runner // nil: there is no file of searches
	sharing  *sharing         // nil: as well

	maxFollowers int
	distributed  *atomic.Bool // Citus keeps the rows on other servers, whose transaction ids the tail can't follow

	compressor *compressor

	keys     *keys.File
	origins  origins
	metrics  *metrics
	log      *slog.Logger
	places   chan struct{} // one for each request under way
	exports  chan struct{} // one for each export under way
	timeText string        // QUERY_TIMEOUT, as a refusal tells it

	// requestTime is how long a request may take, from its header to the end of its answer. Exports and the tail have no
	// such limit.
	requestTime time.Duration

	exportTimeout time.Duration
	stopping      context.Context // done when streams must end
	working       *sync.WaitGroup // goroutines that requests start and the service waits for
}

// formBytes is the longest form that a POST may have. The longest query is far shorter.
const formBytes = 64 << 10

// formTime is how long a client may take to send a form.
const formTime = 10 * time.Second

// takeForm makes a GET of a POST whose body has the parameters, as a form of a web page sends them. So a query may be longer than a proxy
// lets a URL be.
func (s *server) takeForm(w http.ResponseWriter, r *http.Request) error {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/x-www-form-urlencoded" {
		return &failure{http.StatusUnsupportedMediaType, fmt.Sprintf("a POST takes its parameters as application/x-www-form-urlencoded; got %.64q", r.Header.Get("Content-Type"))}
	}
	// An error means that the connection takes no deadline: it is broken, or not one of net/http's.
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(formTime))
	body, err := io.ReadAll(io.LimitReader(r.Body, formBytes+1))
	if err != nil {
		return &failure{http.StatusRequestTimeout, "the body did not come within " + formTime.String()}
	}
	_ = control.SetReadDeadline(time.Now().Add(s.requestTime)) // the connection is read on, and ends the request with its deadline
	if len(body) > formBytes {
		return &failure{http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has more than %d bytes", formBytes)}
	}
	if r.URL.RawQuery != "" && len(body) > 0 {
		r.URL.RawQuery += "&"
	}
	r.URL.RawQuery += string(body)
	return nil
}

// endpoint is a route that takes GET and HEAD, and POST if it takes parameters.
type endpoint struct {
	route  string
	takes  []string // parameters
	handle func(http.ResponseWriter, *http.Request) error
}

// endpoints returns all routes but /health, /ready and /metrics.
func (s *server) endpoints() []endpoint {
	return []endpoint{
		{"/logs", pageParameters, s.getLogs},
		{"/logs/count", countParameters, s.getCount},
		{"/logs/histogram", histogramParameters, s.getHistogram},
		{"/logs/stats", statsParameters, s.getStats},
		{"/logs/patterns", patternParameters, s.getPatterns},
		{"/logs/sql", sqlParameters, s.getSQL},
		{"/logs/fields", countParameters, s.getFields},
		{"/logs/fields/{path}/values", countParameters, s.getValues},
		{"/logs/tail", tailParameters, s.getTail},
		{"/logs/export", exportParameters, s.getExport},
		{"/logs/{id}", nil, s.getLog},
		{"/logs/{id}/context", contextParameters, s.getContext},
		{"/searches", nil, s.getSearches},
		{"/openapi.json", nil, s.getOpenAPI},
	}
}

// handler returns the service's routes. reports answers /health, /ready and /metrics.
func (s *server) handler(reports http.Handler) http.Handler {
	mux := http.NewServeMux()
	for _, path := range []string{"/health", "/ready", "/metrics"} {
		mux.Handle("GET "+path, reports)
	}
	// The methods are checked here, because the mux can't hold "/logs/count" for any method beside "GET /logs/{id}".
	notAllowed := func(w http.ResponseWriter, r *http.Request) {
		if w.Header().Get("Allow") == "" {
			w.Header().Set("Allow", "GET, HEAD")
		}
		s.answerFailure(w, r, &failure{http.StatusMethodNotAllowed, fmt.Sprintf("%.16q is not allowed here; allowed is GET", r.Method)})
	}
	mux.HandleFunc("/health", notAllowed)
	mux.HandleFunc("/metrics", notAllowed)
	mux.HandleFunc("/ready", notAllowed)
	add := func(e endpoint) {
		mux.HandleFunc(e.route, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost && len(e.takes) > 0 {
				if err := s.takeForm(w, r); err != nil {
					s.answerFailure(w, r, err)
					return
				}
			} else if r.Method != http.MethodGet && r.Method != http.MethodHead {
				if len(e.takes) > 0 {
					w.Header().Set("Allow", "GET, HEAD, POST")
				}
				notAllowed(w, r)
				return
			}
			if err := e.handle(w, r); err != nil {
				s.answerFailure(w, r, err)
			}
		})
	}
	for _, e := range s.endpoints() {
		add(e)
	}
	add(endpoint{"/{$}", nil, thePage().index})
	add(endpoint{assetsPath + "{version}/{name}", nil, thePage().asset})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.answerFailure(w, r, &failure{http.StatusNotFound, fmt.Sprintf("no such path: %.64q", r.URL.Path)})
	})
	return s.wrap(mux)
}

// wrap returns a handler that checks a request's key and gives the request to mux. It sets deadlines, counts requests and stops
// panics.
func (s *server) wrap(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(writer http.ResponseWriter, r *http.Request) {
		began := time.Now()
		w := &statusRecorder{ResponseWriter: writer}
		// An error means that the connection takes no deadline: it is broken, or not one of net/http's.
		deadline := http.NewResponseController(writer)
		_ = deadline.SetReadDeadline(began.Add(s.requestTime))
		_ = deadline.SetWriteDeadline(began.Add(s.requestTime))
		defer func() {
			p := recover()
			if p != nil && p != http.ErrAbortHandler {
				s.log.Error("panic", "route", route(r), "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				if w.status == 0 && r.Context().Err() == nil {
					s.answerFailure(w, r, errors.New("panic"))
					p = nil
				}
			}
			s.metrics.requests.WithLabelValues(route(r), strconv.Itoa(w.code(r))).Inc()
			s.metrics.seconds.WithLabelValues(route(r)).Observe(time.Since(began).Seconds())
			if p != nil {
				panic(http.ErrAbortHandler) // the answer has begun: cutting the connection is all that is left
			}
		}()
		if s.origins.allow(w, r) {
			return
		}
		key, err := s.admit(w, r)
		if err != nil {
			s.answerFailure(w, r, err)
			return
		}
		if !needsNoKey(r.URL.Path) && !service.Admitted(r) {
			panic(http.ErrAbortHandler) // the connection was closed to make room for another
		}
		r = r.WithContext(context.WithValue(r.Context(), contextKey{}, key))
		if p := r.URL.EscapedPath(); p != path.Clean(p) {
			// The mux would redirect. But no path here ends with a slash or has an empty part.
			s.answerFailure(w, r, &failure{http.StatusNotFound, fmt.Sprintf("no such path: %.64q", r.URL.Path)})
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// route returns a request's label in metrics. It is the pattern of the route, and never the path, which the client chooses.
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

// needsNoKey reports whether a path is answered without an API key.
func needsNoKey(path string) bool {
	switch path {
	case "/health", "/ready", "/metrics":
		return true
	}
	return isPage(path)
}

// header is a request's header as package keys reads it.
type header http.Header

// Peek implements keys.Header.
func (h header) Peek(name string) []byte { return []byte(http.Header(h).Get(name)) }

// admit returns the API key of a request, or nil if it needs none. It returns a *failure if the key does not let it read.
func (s *server) admit(w http.ResponseWriter, r *http.Request) (*keys.Key, error) {
	if needsNoKey(r.URL.Path) {
		return nil, nil
	}
	key, verdict := s.keys.Check(header(r.Header), keys.Read)
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

// contextKey is the key under which a request's context has the API key.
type contextKey struct{}

// keyOf returns the API key of a request, or nil if it needed none.
func keyOf(r *http.Request) *keys.Key {
	key, _ := r.Context().Value(contextKey{}).(*keys.Key)
	return key
}

// respond takes a place and answers with the body that produce returns. The header X-Cache and a metric show what the cache did for
// it.
func (s *server) respond(w http.ResponseWriter, r *http.Request, produce func() (body []byte, cacheResult string, err error)) error {
	leave, err := s.takePlace()
	if err != nil {
		return err
	}
	defer leave()
	body, cacheResult, err := produce()
	if err != nil {
		return err
	}
	s.metrics.cache.WithLabelValues(cacheResult).Inc()
	w.Header().Set("X-Cache", cacheResult)
	return s.writeJSON(w, r, body)
}

// respondCached responds with what compute returns for q. It comes out of the cache if the window is closed.
func (s *server) respondCached(w http.ResponseWriter, r *http.Request, route string, q *search, compute func(context.Context, *search) ([]byte, error)) error {
	return s.respond(w, r, func() ([]byte, string, error) {
		ctx := r.Context()
		computeAnswer := func(ctx context.Context) ([]byte, error) { return compute(ctx, q) }
		// This machine's clock only spares the database a question. If it is wrong, an answer may do without the cache, and no
		// more: the database's clock decides.
		if s.cache.redis != nil && q.isFixed && q.to < time.Now().UnixMilli() {
			// The generation is read before the answer is looked up or computed. If rows change in between, the answer has
			// the change and is kept under the old key, which nobody asks for again. In the other order, an answer without
			// the change could be kept under the new key.
			asking, within := s.store.withinBudget(ctx, q)
			closed, g, err := s.store.isClosed(asking, q)
			within.end()
			if err = within.passOver(err); err != nil {
				return nil, bypass, err
			}
			if closed && q.budget > 0 {
				return s.cache.getOrTry(ctx, cacheKey(route+" within a budget", q, g), computeAnswer)
			}
			if closed {
				return s.cache.getOrCompute(ctx, cacheKey(route, q, g), computeAnswer)
			}
		}
		body, err := computeAnswer(ctx)
		return body, bypass, err
	})
}

// takePlace takes a place among the requests under way, until leave is called. It fails with the status 429 if none is free.
func (s *server) takePlace() (leave func(), err error) {
	select {
	case s.places <- struct{}{}:
		return func() { <-s.places }, nil
	default:
		return nil, tooMany(strconv.Itoa(cap(s.places)) + " requests are under way, the most that are taken at once")
	}
}

// writeJSON answers with a body of JSON.
func (s *server) writeJSON(w http.ResponseWriter, r *http.Request, body []byte) error {
	return s.compressor.write(w, r, "application/json", body)
}

// statusRecorder remembers the status of what was answered.
type statusRecorder struct {
	http.ResponseWriter
	status int // 0: nothing yet
}

func (r *statusRecorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *statusRecorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController find the writer within.
func (r *statusRecorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// code returns the status for metrics.
func (r *statusRecorder) code(request *http.Request) int {
	switch {
	case r.status != 0:
		return r.status
	case request.Context().Err() != nil:
		return clientLeft
	}
	return http.StatusOK // net/http's answer when a handler wrote nothing
}
