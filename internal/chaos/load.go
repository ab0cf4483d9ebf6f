package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"millrace/internal/frame"
)

const (
	// tryTimeout is how long a client waits for an answer. It is longer than the API's own CONFIRM_TIMEOUT, so that only a
	// frozen process or a cut line lets it pass.
	tryTimeout = 12 * time.Second

	// clockGrace is how long after an API's clock was set right its ids are of the right time: it reads its clock's offset
	// every 20 ms, and ids may be ahead by a second.
	clockGrace = 5 * time.Second

	// longestPause caps Retry-After, so that a run of a minute sees retries.
	longestPause = time.Second
)

// try is one attempt to send a request.
type try struct {
	at     time.Duration // since the start of the run
	took   time.Duration
	api    int
	status int // 0: no answer
	err    string
}

// sent is what is known about a request.
type sent struct {
	key   uuid.UUID // zero for a request without one
	base  uuid.UUID // of its ids; zero for a request without a key that was not acked
	keyed bool
	acked bool
	tries []try
	seen  []uint64  // bits: records found in logs
	date  time.Time // of a shipper's request: the newest time in it, once it is known
}

// load posts requests and notes what became of them.
type load struct {
	*maker
	urls    []string
	http    *http.Client
	clients int
	rate    float64 // requests a second, of all clients
	began   time.Time
	report  func(kind mismatch, format string, args ...any)

	clock atomic.Int64   // offset of the clients' clock, for the keys
	acked atomic.Int64   // requests
	begun []atomic.Int64 // by client: records of requests that were begun, without those that are refused

	clocksRightAt atomic.Int64 // when the APIs' clocks are all right again, in nanoseconds of Unix time: see system.setClock

	giveUp context.Context

	mu      sync.Mutex
	sent    [][]*sent   // by client and number
	latest  []*sent     // by client: the last with a key that was acked
	keys    []uuid.UUID // by client: the last that was used, by the client alone
	codes   map[string]int
	retries int
	waits   []wait // of requests that took more than one try
}

// wait is how long a client waited for a 2xx.
type wait struct{ from, to time.Duration }

func newLoad(m *maker, clients int, rate float64, addrs []string, report func(mismatch, string, ...any)) *load {
	l := &load{
		maker: m, clients: clients, rate: rate, report: report,
		sent: make([][]*sent, clients), begun: make([]atomic.Int64, clients), latest: make([]*sent, clients), keys: make([]uuid.UUID, clients), codes: make(map[string]int),
		http: &http.Client{Timeout: tryTimeout, Transport: &http.Transport{MaxIdleConnsPerHost: clients, DisableCompression: true}},
	}
	for _, a := range addrs {
		l.urls = append(l.urls, "http://"+a)
	}
	return l
}

// run posts until ctx is done. A request that was begun is sent until it is acked, or giveUp is done.
func (l *load) run(ctx, giveUp context.Context) {
	l.giveUp = giveUp
	every := time.Duration(float64(l.clients) / l.rate * float64(time.Second))
	var all sync.WaitGroup
	for c := range l.clients {
		all.Go(func() {
			next := time.Now().Add(time.Duration(c) * every / time.Duration(l.clients))
			for number := 0; ; number++ {
				select {
				case <-time.After(time.Until(next)):
				case <-ctx.Done():
					return
				}
				if ctx.Err() != nil {
					return
				}
				l.deliver(c, number)
				if next = next.Add(every); next.Before(time.Now()) {
					next = time.Now() // what was missed is not made up for
				}
			}
		})
	}
	all.Wait()
	l.http.CloseIdleConnections()
}

// deliver sends one request until it is acked.
func (l *load) deliver(client, number int) {
	s := l.shape(client, number)
	r := &sent{keyed: s.keyed}
	l.begun[client].Add(int64(s.accepted()))
	l.mu.Lock()
	l.sent[client] = append(l.sent[client], r)
	l.mu.Unlock()
	path, body, err := l.body(client, number, s)
	if err != nil {
		l.report(broken, "%v", err)
		return
	}
	if s.keyed {
		r.key = l.nextKey(client)
		r.base = frame.BaseOfKey(r.key)
	}
	began := time.Since(l.began)
	for n, api := 0, rand.IntN(len(l.urls)); ; n, api = n+1, (api+1)%len(l.urls) {
		t := try{at: time.Since(l.began), api: api}
		answer, pause, err := l.post(api, path, body, s, r)
		t.took = time.Since(l.began) - t.at
		t.status = answer.status
		if err != nil {
			t.err = brief(err)
		}
		l.note(r, t)
		switch {
		case err == nil && answer.ok(s):
			l.settle(client, number, s, r, answer)
			l.acked.Add(1)
			if n > 0 || t.took > time.Second {
				l.mu.Lock()
				l.waits = append(l.waits, wait{began, time.Since(l.began)})
				l.mu.Unlock()
			}
			return
		case err == nil && !mayRetry(answer):
			l.report(wrongAnswer, "client %d, request %d: got %d %s, want %d, or 408, 429 or 503 with Retry-After%s",
				client, number, answer.status, answer.body, s.want(), l.history(r))
			return
		case !s.keyed && s.door == native:
			return // it may be stored all the same, and a second try would be another request
		}
		select {
		case <-time.After(pause):
		case <-l.giveUp.Done():
			l.report(neverAcked, "client %d, request %d%s", client, number, l.history(r))
			return
		}
		l.mu.Lock()
		l.retries++
		l.mu.Unlock()
	}
}

// want returns the status of the answer that acks the request.
func (s shape) want() int {
	if s.door != native {
		return s.door.want()
	}
	if s.bad >= 0 {
		return http.StatusMultiStatus
	}
	return http.StatusAccepted
}

// answer is an API's answer to a request.
type answer struct {
	status     int
	retryAfter string
	body       []byte
}

// ok reports whether the answer acks a request of that shape.
func (a answer) ok(s shape) bool { return a.status == s.want() }

// mayRetry reports whether the answer lets the client send its request again.
func mayRetry(a answer) bool {
	switch a.status {
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		return a.retryAfter != ""
	case http.StatusRequestTimeout: // the request was slow to arrive: no wonder
		return true
	}
	return false
}

// post sends a request once. It returns the answer, and the pause before another try.
func (l *load) post(api int, path string, body []byte, s shape, r *sent) (a answer, pause time.Duration, err error) {
	pause = time.Duration(50+rand.IntN(200)) * time.Millisecond
	req, err := http.NewRequest(http.MethodPost, l.urls[api]+path, bytes.NewReader(body))
	if err != nil {
		return a, pause, err
	}
	req.GetBody = nil // or the client would try again by itself
	if s.encoding != "" {
		req.Header.Set("Content-Encoding", s.encoding)
	}
	if s.keyed {
		req.Header.Set("Idempotency-Key", r.key.String())
	}
	s.door.header(req.Header)
	resp, err := l.http.Do(req)
	if err != nil {
		return a, pause, err
	}
	a.status, a.retryAfter = resp.StatusCode, resp.Header.Get("Retry-After")
	a.body, err = io.ReadAll(resp.Body)
	err = errors.Join(err, resp.Body.Close())
	if seconds, err := strconv.Atoi(a.retryAfter); err == nil {
		pause += min(time.Duration(seconds)*time.Second, longestPause)
	}
	return a, pause, err
}

// settle checks an answer that acks a request, and notes that the request was acked and under which ids.
func (l *load) settle(client, number int, s shape, r *sent, a answer) {
	if s.door != native {
		l.mu.Lock()
		r.acked = true
		l.mu.Unlock()
		if bad := s.door.settle(s, a); bad != "" {
			l.report(wrongAnswer, "client %d, request %d: %s in %d %.200s%s", client, number, bad, a.status, a.body, l.history(r))
		}
		return
	}
	var got struct {
		ID                 uuid.UUID
		IDs                []uuid.UUID
		Accepted, Rejected int
	}
	err := json.Unmarshal(a.body, &got)
	bad := ""
	switch {
	case err != nil:
		bad = err.Error()
	case s.single:
		got.IDs = []uuid.UUID{got.ID}
	case got.Accepted != s.accepted() || got.Rejected != s.records-s.accepted():
		bad = "other counts"
	case s.ids && len(got.IDs) != s.accepted():
		bad = fmt.Sprintf("%d ids", len(got.IDs))
	}
	if len(got.IDs) > 0 && bad == "" {
		if !s.keyed {
			r.base = got.IDs[0]
			l.checkTime(client, number, r)
		}
		for k, id := range got.IDs {
			if want := (shape{bad: -1}).id(r.base, k); id != want {
				bad = fmt.Sprintf("accepted record %d has the id %s, want %s", k, id, want)
				break
			}
		}
	}
	l.mu.Lock()
	r.acked = true
	if s.keyed {
		l.latest[client] = r
	}
	l.mu.Unlock()
	if bad != "" {
		l.report(wrongAnswer, "client %d, request %d: %s in %d %.200s%s", client, number, bad, a.status, a.body, l.history(r))
	}
}

// checkTime checks that the ids of a request without a key, which was just acked, are of its time. The clocks of the APIs
// must have been right for a while when it was sent.
func (l *load) checkTime(client, number int, r *sent) {
	from, to := l.began.Add(r.tries[0].at), time.Now()
	if from.UnixNano() < l.clocksRightAt.Load()+int64(clockGrace) {
		return
	}
	if at := frame.Time(r.base); at.Before(from.Add(-clockGrace)) || at.After(to.Add(clockGrace)) {
		l.report(misdated, "client %d, request %d was sent at %s and answered at %s, and its ids are of %s%s",
			client, number, from.Format(time.RFC3339Nano), to.Format(time.RFC3339Nano), at.Format(time.RFC3339Nano), l.history(r))
	}
}

// nextKey returns a key that was not used before. One in three is the neighbour of the client's last: UUIDv7 generators may
// count up by one within a millisecond.
func (l *load) nextKey(client int) uuid.UUID {
	key := l.keys[client]
	if key != uuid.Nil && rand.IntN(3) == 0 {
		key = frame.ID(key, 1)
	} else {
		key = keyAt(time.Now().Add(time.Duration(l.clock.Load())))
	}
	l.keys[client] = key
	return key
}

// note adds a try to what is known about a request.
func (l *load) note(r *sent, t try) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.tries = append(r.tries, t)
	if t.err != "" {
		l.codes[t.err]++
	} else {
		l.codes[strconv.Itoa(t.status)]++
	}
}

// find returns a request, or nil if it was not sent.
func (l *load) find(client, number int) *sent {
	if client < 0 || client >= len(l.sent) || number < 0 || number >= len(l.sent[client]) {
		return nil
	}
	return l.sent[client][number]
}

// history returns the tries of a request as text.
func (l *load) history(r *sent) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b bytes.Buffer
	fmt.Fprintf(&b, "\n      key %s, base %s, acked: %v", r.key, r.base, r.acked)
	for _, t := range r.tries {
		fmt.Fprintf(&b, "\n      at %s api%d: ", stamp(t.at), t.api+1)
		if t.err != "" {
			b.WriteString(t.err)
		} else {
			fmt.Fprint(&b, t.status)
		}
		fmt.Fprintf(&b, " after %v", t.took.Round(time.Millisecond))
	}
	return b.String()
}

// newest returns, for each client, the first id of the last request with a key that was acked.
func (l *load) newest() (ids []uuid.UUID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.latest {
		if r != nil {
			ids = append(ids, r.base)
		}
	}
	return ids
}

// brief returns the kind of a try's error, without what differs each time.
func brief(err error) string {
	var op *net.OpError
	var timeout interface{ Timeout() bool }
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return "no answer in time"
	case errors.As(err, &op) && op.Op == "dial":
		return "connection refused"
	}
	return "connection lost"
}

// keyAt returns a new UUIDv7 of some time.
func keyAt(t time.Time) uuid.UUID {
	id := uuid.New()
	ms := t.UnixMilli()
	for i := range 6 {
		id[i] = byte(ms >> (8 * (5 - i)))
	}
	id[6] = id[6]&0x0f | 0x70
	return id
}

// stamp returns a time since the start of the run as the output writes it.
func stamp(d time.Duration) string { return fmt.Sprintf("%.2fs", d.Seconds()) }
