package tail

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"millrace/internal/frame"
	"millrace/query/language"
)

// Options are what a Tail needs.
type Options struct {
	// Connect opens a connection for the reader.
	Connect func(context.Context) (*pgx.Conn, error)
	// Read runs f in a read-only transaction. It serves followers that come back.
	Read func(ctx context.Context, f func(context.Context, pgx.Tx) error) error
	// Encode returns a row as followers get it. All of them share the text.
	Encode func(Row) []byte
	// MaxFollowers is the most followers at once.
	MaxFollowers int
	// Followers shows how many followers there are, Missed how many rows they were too slow for.
	Followers prometheus.Gauge
	Missed    prometheus.Counter
	Log       *slog.Logger
}

// Tail is the one reader of the database for all followers.
type Tail struct {
	options Options
	wake    chan struct{} // holds one when the reader must start

	pollsBegun atomic.Int64
	place      atomic.Pointer[string] // of a follower that has had everything; nil while nobody follows

	mu        sync.Mutex
	audiences language.Set[map[*Follower]bool]
	followers int           // that are sent events
	counters  int           // followers that only count
	started   chan struct{} // closed when the reader has a snapshot to go on from; nil while nobody follows
	start     string        // the place of that snapshot, once started is closed
}

// New returns a tail that reads once Run is called.
func New(o Options) *Tail { return &Tail{options: o, wake: make(chan struct{}, 1)} }

// Place returns the place of a follower that has had everything that was given out up to now. It is empty before the first
// poll, and while nobody follows.
func (t *Tail) Place() string {
	if place := t.place.Load(); place != nil {
		return *place
	}
	return ""
}

// ErrTooManyFollowers is Join's error when Options.MaxFollowers are there.
var ErrTooManyFollowers = errors.New("too many followers")

// Join adds a follower, which gets every row of q that becomes visible after Join has returned. It waits for the reader's
// first poll, until ctx is done. Whoever has joined must call Leave.
func (t *Tail) Join(ctx context.Context, q language.Query) (*Follower, error) {
	f := &Follower{tail: t, ready: make(chan struct{}, 1)}
	t.mu.Lock()
	if t.followers == t.options.MaxFollowers {
		t.mu.Unlock()
		return nil, ErrTooManyFollowers
	}
	t.followers++
	t.add(f, q)
	f.start = t.Place() // read once the follower is given rows: those that it is not given are before the place
	started := t.started
	t.mu.Unlock()
	t.options.Followers.Inc()
	select {
	case <-started:
		if f.start == "" {
			f.start = t.start
		}
		return f, nil
	case <-ctx.Done():
		t.Leave(f)
		return nil, ctx.Err()
	}
}

// Count adds a follower that only counts: each row of q that becomes visible is one. It does not wait for the reader's first poll, and does not
// count towards Options.MaxFollowers. Whoever has called it must call Leave.
func (t *Tail) Count(q language.Query, c Counter) *Follower {
	f := &Follower{tail: t, counter: c}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counters++
	t.add(f, q)
	return f
}

// add adds a follower to those of its query, and wakes the reader if nobody followed. t.mu is locked.
func (t *Tail) add(f *Follower, q language.Query) {
	f.audience = t.audiences.Entry(q)
	if f.audience.Value == nil {
		f.audience.Value = make(map[*Follower]bool)
	}
	f.audience.Value[f] = true
	if t.started == nil {
		t.started = make(chan struct{})
		select {
		case t.wake <- struct{}{}:
		default:
		}
	}
}

// Leave takes a follower out.
func (t *Tail) Leave(f *Follower) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(f.audience.Value, f)
	if len(f.audience.Value) == 0 {
		t.audiences.Remove(f.audience)
	}
	if f.counter != nil {
		t.counters--
		return
	}
	t.followers--
	t.options.Followers.Dec()
}

// Run gives out what becomes visible while there are followers, until ctx is done.
func (t *Tail) Run(ctx context.Context) {
	for {
		select {
		case <-t.wake:
			t.follow(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// follow polls until nobody follows any more.
func (t *Tail) follow(ctx context.Context) {
	r := &reader{tail: t, sweepReach: sweepMin}
	defer r.close(ctx)
	failing := false
	for {
		began := time.Now()
		err := r.poll(ctx)
		if ctx.Err() != nil {
			return
		}
		pause := pollEvery
		if r.lastRows < busyPoll { // polls take a third of the time at most, unless there is much to give out
			pause = max(pollEvery, 2*time.Since(began))
		}
		switch {
		case err != nil:
			r.close(ctx)
			pause = time.Second
			if !failing {
				t.options.Log.Warn("the tail can't read; it goes on where it was when the database is there", "error", err)
			}
		case failing:
			t.options.Log.Info("the tail reads again")
		}
		failing = err != nil
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		t.mu.Lock()
		if t.followers+t.counters == 0 {
			t.started = nil
			t.place.Store(nil)
			t.mu.Unlock()
			return
		}
		t.mu.Unlock()
	}
}

// reached records that everything visible in a snapshot has been given out.
func (t *Tail) reached(s *snapshot) {
	place := wholePlace(s)
	t.place.Store(&place)
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-t.started:
	default:
		t.start = place
		close(t.started)
	}
}

// giveOut gives a row to the followers whose query it satisfies. lastPoll is the number of the last poll that did not show
// it.
func (t *Tail) giveOut(r *language.Record, row Row, lastPoll int64) error {
	r.ID, r.Time, r.InsertedAt = row.ID, row.Time, frame.Time(row.ID)
	if err := r.Read(row.Data); err != nil {
		return fmt.Errorf("record %s: %w", row.ID, err)
	}
	var e *Event
	t.mu.Lock()
	defer t.mu.Unlock()
	t.audiences.Each(r, func(a *audience) {
		for f := range a.Value {
			if f.counter != nil {
				f.counter.Inc()
				continue
			}
			if e == nil {
				e = &Event{Text: t.options.Encode(row), id: row.ID, lastPoll: lastPoll}
			}
			if f.push(e) {
				t.options.Missed.Inc()
			}
		}
	})
	return nil
}
