package query

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/eventtime"
)

// span is a range of inserted_at. It contains from, but not to.
type span struct{ from, to time.Time }

// spans are spans in order, with gaps between them.
type spans []span

// maxSpans is how many spans a statement takes. If there are more, those that are nearest to each other become one.
const maxSpans = 50

// lateHoursSQL selects the ranges of partitions that have rows of some hours of time and came more than eventtime.Near before or after.
const lateHoursSQL = "SELECT DISTINCT from_at, to_at FROM late_hours WHERE hour > $1::timestamptz - interval '1 hour' AND hour < $2"

// arrivedSpans returns the spans of inserted_at that the rows of a window by time lie in. A row's time is near its inserted_at, or the
// worker that stored it has noted its partition in late_hours. db must read in the snapshot in which the rows are read.
func arrivedSpans(ctx context.Context, db pgx.Tx, q *search) (spans, error) {
	if q.clock == byArrival {
		return nil, nil
	}
	from, to, _ := q.bounds()
	to = to.Add(time.Microsecond) // it may be one of the rows' times
	rows, err := db.Query(ctx, lateHoursSQL, from, to)
	if err != nil {
		return nil, err
	}
	all := spans{{from.Add(-eventtime.Near), to.Add(eventtime.Near)}}
	var late span
	_, err = pgx.ForEachRow(rows, []any{&late.from, &late.to}, func() error {
		all = append(all, late)
		return nil
	})
	return all.merge(maxSpans), err
}

// merge returns at most so many spans that have all that the spans have.
func (s spans) merge(most int) spans {
	slices.SortFunc(s, func(a, b span) int { return a.from.Compare(b.from) })
	var merged spans
	for _, next := range s {
		if n := len(merged); n > 0 && !next.from.After(merged[n-1].to) {
			if next.to.After(merged[n-1].to) {
				merged[n-1].to = next.to
			}
			continue
		}
		merged = append(merged, next)
	}
	for len(merged) > most {
		nearest := 1
		for i := 1; i < len(merged); i++ {
			if merged[i].from.Sub(merged[i-1].to) < merged[nearest].from.Sub(merged[nearest-1].to) {
				nearest = i
			}
		}
		merged[nearest-1].to = merged[nearest].to
		merged = slices.Delete(merged, nearest, nearest+1)
	}
	return merged
}

// without returns the parts of the spans that are in none of the others, which are in order.
func (s spans) without(others spans) (rest spans) {
	for _, one := range s {
		i, _ := slices.BinarySearchFunc(others, one.from, func(o span, from time.Time) int { // the first that ends behind it
			if o.to.After(from) {
				return 1
			}
			return -1
		})
		for ; i < len(others) && others[i].from.Before(one.to); i++ {
			if others[i].from.After(one.from) {
				rest = append(rest, span{one.from, others[i].from})
			}
			one.from = others[i].to
		}
		if one.from.Before(one.to) {
			rest = append(rest, one)
		}
	}
	return rest
}

// readPart calls f with what a transaction's snapshot has of a search's window.
func (s *store) readPart(ctx context.Context, q *search, f func(context.Context, *part) error) error {
	return s.readWindow(ctx, q, s.part, f)
}

// readLogs does what readPart does. But with files it has only what logs does not have.
func (s *store) readLogs(ctx context.Context, q *search, f func(context.Context, *part) error) error {
	return s.readWindow(ctx, q, s.logsPart, f)
}

func (s *store) readWindow(ctx context.Context, q *search, of func(context.Context, pgx.Tx, *search, time.Time) (*part, error), f func(context.Context, *part) error) error {
	q.indexed = s.indexed(ctx)
	timeout := s.timeout
	if !q.deadline.IsZero() {
		timeout = min(timeout, max(time.Until(q.deadline), time.Millisecond))
	}
	return s.readFor(ctx, timeout, func(ctx context.Context, tx pgx.Tx) error {
		p, err := of(ctx, tx, q, time.Now().Add(timeout))
		if err != nil {
			return err
		}
		return f(ctx, p)
	})
}
