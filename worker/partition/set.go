package partition

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/internal/frame"
)

// Set knows which partitions there are, so that a batch costs no query for it, and makes those that are
// missing. It may be used by many goroutines at once, each with a connection of its own.
type Set struct {
	logs, ledger table

	mu    sync.Mutex
	known map[string][]timeRange // by table
	stale map[string]bool        // tables whose catalog is to be read before known is relied on

	LockPatience time.Duration // lockPatience, unless a test is in a hurry

	forgotten   time.Time // before this the ledger may have forgotten segments, as the last transaction was told
	lockedSince time.Time // when a lock first kept a partition from being made; zero: none does
}

// New returns a set that knows no partition yet. New partitions of logs have the interval.
func New(interval time.Duration) *Set {
	return &Set{
		logs:   table{name: "logs", interval: interval},
		ledger: table{name: "ledger", interval: ledgerInterval},
		known:  make(map[string][]timeRange),
		stale:  map[string]bool{"logs": true, "ledger": true},

		LockPatience: lockPatience,
	}
}

// present is how far from now a record's time may be for it to be one of the stream of new records. For those an
// obstacle is an outage: they would all become dead letters.
const present = 10 * time.Minute

// Misplaced says what a segment lacks a partition of, and why.
type Misplaced struct {
	Err      error
	Ledgered bool // the ledger can take the segment
}

// Provide makes sure that segments with these base ids have their partitions. It returns those that can't have them; the others
// don't wait for them. It must be called outside of a transaction.
func (p *Set) Provide(ctx context.Context, conn *pgx.Conn, bases iter.Seq[uuid.UUID]) (map[uuid.UUID]Misplaced, error) {
	var apart map[uuid.UUID]Misplaced
	for _, t := range []table{p.logs, p.ledger} {
		var last, obstructed timeRange
		var why obstacle
		for base := range bases {
			at := frame.Time(base)
			if last.contains(at) {
				continue
			}
			if _, known := p.lookup(t, at); known || !obstructed.contains(at) {
				r, err := p.ensure(ctx, conn, t, at)
				if err == nil {
					last = r
					continue
				}
				if !errors.As(err, &why) || time.Since(at).Abs() < present {
					return nil, err
				}
				why.error = err
				// Its neighbours in time fare alike: they are not tried one by one.
				obstructed = timeRange{at.Truncate(time.Minute), at.Truncate(time.Minute).Add(time.Minute)}
			}
			if apart == nil {
				apart = make(map[uuid.UUID]Misplaced)
			}
			apart[base] = Misplaced{Err: why.error, Ledgered: t.name != p.ledger.name}
		}
	}
	return apart, nil
}

// EnsureLogs makes sure that logs has a partition that holds at.
func (p *Set) EnsureLogs(ctx context.Context, conn *pgx.Conn, at time.Time) error {
	_, err := p.ensure(ctx, conn, p.logs, at)
	return err
}

// ensure returns the range of the partition that holds at, after making it if need be.
func (p *Set) ensure(ctx context.Context, conn *pgx.Conn, t table, at time.Time) (timeRange, error) {
	if r, ok := p.lookup(t, at); ok && !p.isStale(t) {
		return r, nil
	}
	if err := p.refresh(ctx, conn, t); err != nil {
		return timeRange{}, err
	}
	if r, ok := p.lookup(t, at); ok {
		return r, nil
	}
	r, err := createPartition(ctx, conn, t, at)
	if IsObstacle(err) || p.lockedForLong(err) {
		err = obstacle{err}
	}
	if err != nil {
		return r, fmt.Errorf("partition of %s for %s: %w", t.name, at.Format(time.RFC3339), err)
	}
	p.mu.Lock()
	p.known[t.name] = append(p.known[t.name], r)
	p.mu.Unlock()
	return r, nil
}

func (p *Set) lookup(t table, at time.Time) (timeRange, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := p.known[t.name]
	for i := len(known) - 1; i >= 0; i-- { // the youngest are asked for most
		if known[i].contains(at) {
			return known[i], true
		}
	}
	return timeRange{}, false
}

// refresh reads the catalog.
func (p *Set) refresh(ctx context.Context, conn *pgx.Conn, t table) error {
	all, err := listPartitions(ctx, conn, t)
	if err != nil {
		return err
	}
	p.learn(t, all)
	return nil
}

func (p *Set) learn(t table, all []partition) {
	var known []timeRange
	for _, e := range all {
		if !e.pending {
			known = append(known, e.timeRange)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known[t.name] = known
	p.stale[t.name] = false
}

// MarkStale makes the next ensure read the catalog.
func (p *Set) MarkStale() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stale["logs"], p.stale["ledger"] = true, true
}

// ForgottenUntil returns the time before which the ledger may have forgotten segments, as LearnForgotten was told.
func (p *Set) ForgottenUntil() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.forgotten
}

// LearnForgotten takes note of the time before which the ledger may have forgotten segments.
func (p *Set) LearnForgotten(until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forgotten = until
}

func (p *Set) isStale(t table) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stale[t.name]
}
