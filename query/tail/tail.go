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

	"millrace/query/language"
)

// Options are what a Tail needs.
type Options struct {
	// Connect opens a connection for the reader.
	Connect func(context.Context) (*pgx.Conn, error)
	// Read runs f in a read-only transaction, for a follower that comes back.
	Read func(ctx context.Context, f func(context.Context, pgx.Tx) error) error
	// Encode writes a row as all followers get it.
	Encode func(Row) []byte
	// MaxFollowers is the most followers at once.
	MaxFollowers int
	// Followers shows how many there are, and Missed how many rows they were too slow for.
	Followers prometheus.Gauge
	Missed    prometheus.Counter
	Log       *slog.Logger
}

// Tail is the one reader of all followers.
type Tail struct {
	options Options
	wake    chan struct{}

	begun    atomic.Int64           // polls
	position atomic.Pointer[string] // what a follower that has everything goes on from

	mu        sync.Mutex
	audiences language.Set[map[*Follower]bool]
	count     int
	based     chan struct{} // closed when the reader has a snapshot to go on from; nil while nobody follows
}

// New returns a tail that reads once Run is called.
func New(o Options) *Tail { return &Tail{options: o, wake: make(chan struct{}, 1)} }

// Position returns the place of who has had everything that was given out up to now; "" when nothing was yet.
func (t *Tail) Position() string {
	if position := t.position.Load(); position != nil {
		return *position
	}
	return ""
}

var ErrTooManyFollowers = errors.New("too many followers")

// Join adds a follower. What becomes visible after it has returned reaches the follower.
func (t *Tail) Join(ctx context.Context, filter language.Query) (*Follower, error) {
	f := &Follower{tail: t, ready: make(chan struct{}, 1)}
	t.mu.Lock()
	if t.count == t.options.MaxFollowers {
		t.mu.Unlock()
		return nil, ErrTooManyFollowers
	}
	t.count++
	f.audience = t.audiences.Entry(filter)
	if f.audience.Value == nil {
		f.audience.Value = make(map[*Follower]bool)
	}
	f.audience.Value[f] = true
	if t.based == nil {
		t.based = make(chan struct{})
		select {
		case t.wake <- struct{}{}:
		default:
		}
	}
	based := t.based
	t.mu.Unlock()
	t.options.Followers.Inc()
	select {
	case <-based:
		return f, nil
	case <-ctx.Done():
		t.Leave(f)
		return nil, ctx.Err()
	}
}

func (t *Tail) Leave(f *Follower) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(f.audience.Value, f)
	t.count--
	if len(f.audience.Value) == 0 {
		t.audiences.Remove(f.audience)
	}
	t.options.Followers.Dec()
}

// Run reads while there are followers, until ctx is done.
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
	r := &reader{Tail: t, sweep: sweepMin}
	defer r.close(ctx)
	failing := false
	for {
		began := time.Now()
		err := r.poll(ctx)
		if ctx.Err() != nil {
			return
		}
		pause := pollEvery
		if r.gave < busyPoll { // a third of a connection's time at most, unless there is much to give out
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
		if t.count == 0 {
			t.based = nil
			t.mu.Unlock()
			return
		}
		t.mu.Unlock()
	}
}

// dispatch gives a row to those whose query it satisfies.
func (t *Tail) dispatch(r *language.Record, e *Event, data []byte, prefix string) error {
	if err := r.Read(data); err != nil {
		return fmt.Errorf("record %s: %w", e.id, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.audiences.Each(r, func(a *audience) {
		if e.Text == nil {
			e.Text = t.options.Encode(Row{ID: e.id, Data: data, placePrefix: prefix})
		}
		for f := range a.Value {
			if f.push(e) {
				t.options.Missed.Inc()
			}
		}
	})
	return nil
}
