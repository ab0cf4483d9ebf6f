package testenv

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Fault is what a FaultyProxy does with a request.
type Fault int

// The faults of a server of S3, and of the way to it.
const (
	NoFault     Fault = iota
	Fails             // answers 500, InternalError
	SlowDown          // answers 503, SlowDown
	Denies            // answers 403, AccessDenied
	Cuts              // closes the connection instead of an answer
	LosesAnswer       // passes the request on, and closes the connection instead of the answer
	Truncates         // passes half of the answer's body on, and closes the connection
	Hangs             // never answers
)

func (f Fault) String() string {
	return [...]string{"no fault", "fails", "slow down", "denies", "cuts", "loses answer", "truncates", "hangs"}[f]
}

// FaultyProxy passes HTTP requests to a server, but for those that it is told to spoil. Many goroutines may call its methods at once.
type FaultyProxy struct {
	Addr string

	mu       sync.Mutex
	faults   func(r *http.Request) Fault
	requests int
}

// StartFaultyProxy starts a proxy in front of the server at an address. It ends with the test.
func StartFaultyProxy(t testing.TB, to string) *FaultyProxy {
	t.Helper()
	p := new(FaultyProxy)
	transport := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.serve(w, r, transport, to) }))
	p.Addr = server.Listener.Addr().String()
	t.Cleanup(func() {
		server.CloseClientConnections() // ends what hangs
		server.Close()
		transport.CloseIdleConnections()
	})
	return p
}

// Spoil has each request meet the fault that a function returns for it, and begins to count requests anew. nil is no fault.
func (p *FaultyProxy) Spoil(faults func(r *http.Request) Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults, p.requests = faults, 0
}

// SpoilAll has all requests meet a fault, and begins to count requests anew.
func (p *FaultyProxy) SpoilAll(fault Fault) { p.Spoil(func(*http.Request) Fault { return fault }) }

// SpoilNth has the n-th request from now on, counted from 1, meet a fault, and no other one.
func (p *FaultyProxy) SpoilNth(n int, fault Fault) {
	p.Spoil(func(*http.Request) Fault {
		if p.requests == n {
			return fault
		}
		return NoFault
	})
}

// Requests returns how many requests have come since the last call of a Spoil.
func (p *FaultyProxy) Requests() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.requests
}

// fault returns the next request's fault.
func (p *FaultyProxy) fault(r *http.Request) Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests++
	if p.faults == nil {
		return NoFault
	}
	return p.faults(r)
}

func (p *FaultyProxy) serve(w http.ResponseWriter, r *http.Request, transport http.RoundTripper, to string) {
	refuse := func(status int, code string) {
		_, _ = io.Copy(io.Discard, r.Body) // else the client may see a broken connection instead of the answer
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		fmt.Fprintf(w, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>%s</Code><Message>as the test wants it</Message></Error>", code)
	}
	fault := p.fault(r)
	switch fault {
	case Fails:
		refuse(http.StatusInternalServerError, "InternalError")
		return
	case SlowDown:
		refuse(http.StatusServiceUnavailable, "SlowDown")
		return
	case Denies:
		refuse(http.StatusForbidden, "AccessDenied")
		return
	case Cuts:
		panic(http.ErrAbortHandler)
	case Hangs:
		_, _ = io.Copy(io.Discard, r.Body) // then the server sees when the client leaves
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	}
	out := r.Clone(r.Context())
	out.RequestURI, out.URL.Scheme, out.URL.Host = "", "http", to // the header Host stays as it was signed
	answer, err := transport.RoundTrip(out)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer answer.Body.Close()
	if fault == LosesAnswer {
		_, _ = io.Copy(io.Discard, answer.Body) // the server has done what was asked for
		panic(http.ErrAbortHandler)
	}
	for name, values := range answer.Header {
		if !strings.EqualFold(name, "Connection") {
			w.Header()[name] = values
		}
	}
	if answer.ContentLength >= 0 {
		w.Header().Set("Content-Length", strconv.FormatInt(answer.ContentLength, 10))
	}
	w.WriteHeader(answer.StatusCode)
	body := io.Reader(answer.Body)
	if fault == Truncates {
		body = io.LimitReader(body, answer.ContentLength/2)
	}
	if _, err := io.Copy(w, body); err != nil || fault == Truncates {
		panic(http.ErrAbortHandler)
	}
}
