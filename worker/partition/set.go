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

	"millrace/internal/archive"
	"millrace/internal/frame"
)

// Set knows which partitions there are, so that a batch costs no query for that. It makes those that are missing. Many goroutines
// may use it at once, each with a connection of its own.
type Set struct {
	// LockPatience is how long late records, and their batches with them, wait for a lock that somebody holds on the tables. After
	// that they are misplaced. New sets it to 30 s: a schema change takes seconds, and what takes longer must not stop new records.
	LockPatience time.Duration

	// Files has the files of the archive; nil if there is none. It is set before the set is used.
	Files archive.Store

	logs, ledger table

	mu    sync.Mutex
	known map[string][]timeRange // by table
	stale map[string]bool        // tables whose partitions must be read from the catalog before known is relied on

	notedHours map[Hour]bool // see UnnotedHours
	notedSince time.Time     // when notedHours was emptied last

	touched map[timeRange]bool   // see Touch
	names   map[timeRange]string // of partitions of logs, as far as TakeTouched has needed them

	forgotten   time.Time // see ForgottenUntil
	lockedSince time.Time // when a lock first kept a partition from being made; zero: none does
}

// New returns a set that knows no partition yet. The partitions of logs that it makes have the length interval.
func New(interval time.Duration) *Set {
	return &Set{
		LockPatience: 30 * time.Second,
		logs:         table{name: "logs", interval: interval},
		ledger:       table{name: "ledger", interval: ledgerInterval},
		known:        make(map[string][]timeRange),
		stale:        map[string]bool{"logs": true, "ledger": true},
	}
}

// present is how far from now the time of a new record may be. An obstacle to new records counts as an outage, and the worker waits:
// otherwise all of them would become dead letters.
const present = 10 * time.Minute

// Misplaced is the reason that a segment can't have its partitions.
type Misplaced struct {
	Err       error
	HasLedger bool // the ledger has a partition for it, and logs has none
}

// Provide makes sure that segments with these base ids have their partitions. It returns the segments that can't have them, by base
// id, so that the others need not wait. An error is an outage. Provide must be called outside of a transaction.
func (s *Set) Provide(ctx context.Context, conn *pgx.Conn, bases iter.Seq[uuid.UUID]) (map[uuid.UUID]Misplaced, error) {
	var apart map[uuid.UUID]Misplaced
	for _, t := range []table{s.logs, s.ledger} {
		var last, obstructed timeRange
		var why obstacle
		for base := range bases {
			at := frame.Time(base)
			if last.contains(at) {
				continue
			}
			if _, known := s.lookup(t, at); known || !obstructed.contains(at) {
				r, err := s.ensure(ctx, conn, t, at)
				if err == nil {
					last = r
					continue
				}
				if !errors.As(err, &why) || time.Since(at).Abs() < present {
					return nil, err
				}
				why.error = err
				// Segments of the same minute meet the same obstacle. They are not tried one by one.
				obstructed = timeRange{at.Truncate(time.Minute), at.Truncate(time.Minute).Add(time.Minute)}
			}
			if apart == nil {
				apart = make(map[uuid.UUID]Misplaced)
			}
			apart[base] = Misplaced{Err: why.error, HasLedger: t.name != s.ledger.name}
		}
	}
	return apart, nil
}

// EnsureLogs makes sure that logs has a partition for a time. It must be called outside of a transaction.
func (s *Set) EnsureLogs(ctx context.Context, conn *pgx.Conn, at time.Time) error {
	_, err := s.ensure(ctx, conn, s.logs, at)
	return err
}

// ensure returns the range of the table's partition that holds a time. It makes the partition if there is none.
func (s *Set) ensure(ctx context.Context, conn *pgx.Conn, t table, at time.Time) (timeRange, error) {
	if r, ok := s.lookup(t, at); ok && !s.isStale(t) {
		return r, nil
	}
	if err := s.refresh(ctx, conn, t); err != nil {
		return timeRange{}, err
	}
	if r, ok := s.lookup(t, at); ok {
		return r, nil
	}
	r, err := create(ctx, conn, t, at)
	if IsObstacle(err) || s.lockedForLong(err) {
		err = obstacle{err}
	}
	if err != nil {
		return r, fmt.Errorf("partition of %s for %s: %w", t.name, at.Format(time.RFC3339), err)
	}
	s.mu.Lock()
	s.known[t.name] = append(s.known[t.name], r)
	s.mu.Unlock()
	return r, nil
}

// lookup returns the range of the known partition that holds a time, and reports whether there is one.
func (s *Set) lookup(t table, at time.Time) (timeRange, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := s.known[t.name]
	for i := len(known) - 1; i >= 0; i-- { // the youngest are asked for most
		if known[i].contains(at) {
			return known[i], true
		}
	}
	return timeRange{}, false
}

// refresh learns the table's partitions from the catalog.
func (s *Set) refresh(ctx context.Context, conn *pgx.Conn, t table) error {
	all, err := list(ctx, conn, t)
	if err != nil {
		return err
	}
	s.learn(t, all)
	return nil
}

// learn makes the partitions that the catalog has the known ones, except those that are being detached or are about to be: they take no rows.
func (s *Set) learn(t table, all []partition) {
	var known []timeRange
	for _, e := range all {
		if !e.pending && !e.closing {
			known = append(known, e.timeRange)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known[t.name] = known
	s.stale[t.name] = false
	if t.name == s.logs.name {
		s.notedHours = nil // one of the partitions may have gone, and its notes with it
	}
}

// MarkStale makes the set read the catalog again before it relies on what it knows. It is to be called after an error that the end of a
// partition may have caused.
func (s *Set) MarkStale() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stale["logs"], s.stale["ledger"] = true, true
}

// ForgottenUntil returns what LearnForgotten was told last: the ledger may have forgotten segments from before that time.
func (s *Set) ForgottenUntil() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.forgotten
}

// LearnForgotten tells the set the time, read from the database, before which the ledger may have forgotten segments.
func (s *Set) LearnForgotten(until time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgotten = until
}

// isStale reports whether the table's partitions must be read from the catalog before known is relied on.
func (s *Set) isStale(t table) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stale[t.name]
}

// Touch notes that rows were stored that came at a time.
func (s *Set) Touch(insertedAt time.Time) {
	r, known := s.lookup(s.logs, insertedAt)
	if !known {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.touched == nil {
		s.touched = make(map[timeRange]bool)
	}
	s.touched[r] = true
}

// HasTouched reports whether TakeTouched would return anything.
func (s *Set) HasTouched() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.touched) > 0
}

// TakeTouched returns the names of the partitions of logs in which rows were stored since it was called last.
func (s *Set) TakeTouched(ctx context.Context, conn *pgx.Conn) (names []string, err error) {
	s.mu.Lock()
	touched, known := s.touched, s.names
	s.touched = nil
	s.mu.Unlock()
	for r := range touched {
		if _, found := known[r]; found {
			continue
		}
		all, err := list(ctx, conn, s.logs)
		if err != nil {
			return nil, err
		}
		known = make(map[timeRange]string, len(all))
		for _, p := range all {
			known[p.timeRange] = p.name
		}
		break
	}
	for r := range touched {
		if name, found := known[r]; found { // else it was dropped
			names = append(names, name)
		}
	}
	s.mu.Lock()
	s.names = known
	s.mu.Unlock()
	return names, nil
}
