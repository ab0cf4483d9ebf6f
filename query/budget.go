package query

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/internal/pg"
)

const (
	// leastBudget and mostBudget bound what the parameter budget takes.
	leastBudget, mostBudget = 50 * time.Millisecond, time.Minute
	// leastLeft is how much of a budget must be left for another slice.
	leastLeft = 5 * time.Millisecond
)

// progress is how far a search came.
type progress struct {
	slices   int   // how many slices were searched
	complete bool  // all of the window was searched, or as much as was asked for
	reached  int64 // Unix milliseconds: the window is searched from its beginning in the search's order up to there
}

// walk calls visit with slices of a window, one behind the other in the search's order, until visit has enough, all are visited, or the
// search's budget is used up. Without a budget each statement may take the usual time, and one that takes longer is an error. Within a
// budget it may take half of what is left; then nothing of its slice counts, and a shorter one is tried.
//
// The rows are looked for in slices, so that the newest are found without a look at all others. No index has the rows in their order.
func (s *store) walk(ctx context.Context, q *search, visit func(ctx context.Context, tx pgx.Tx, slice *search, arrived spans) (enough bool, err error)) (p progress, err error) {
	q.indexed = s.indexed(ctx)
	w := walker{slices: newSlicer(q, time.Now()), visit: visit}
	p.reached = w.slices.begin()
	if q.after != nil {
		p.reached = q.after.at.UnixMilli()
	}
	if q.budget == 0 {
		err = s.read(ctx, func(ctx context.Context, tx pgx.Tx) error { return w.walk(ctx, tx, &p) })
		return p, err
	}
	w.slices.length /= 8
	w.slices.now = math.MaxInt64 // rows ahead of now may be many
	w.deadline = time.Now().Add(min(q.budget, s.timeout))
	for {
		left := time.Until(w.deadline)
		if left < leastLeft {
			return p, nil
		}
		err = s.readFor(ctx, left, func(ctx context.Context, tx pgx.Tx) error { return w.walk(ctx, tx, &p) })
		if pg.CodeOf(err) != pg.QueryCanceled {
			return p, err
		}
		w.slices.shrink()
	}
}

// walker is a walk over slices.
type walker struct {
	slices   *slicer
	visit    func(ctx context.Context, tx pgx.Tx, slice *search, arrived spans) (enough bool, err error)
	deadline time.Time // when the budget is used up; zero: there is none
}

// walk visits slices in one transaction.
func (w *walker) walk(ctx context.Context, tx pgx.Tx, p *progress) error {
	for {
		began := time.Now()
		if !w.deadline.IsZero() {
			left := w.deadline.Sub(began)
			if left < leastLeft {
				return nil
			}
			if _, err := tx.Exec(ctx, fmt.Sprintf("SET LOCAL statement_timeout = %d", max(left/2, leastLeft).Milliseconds())); err != nil {
				return err
			}
		}
		slice, ok := w.slices.next()
		if !ok {
			p.complete = true
			return nil
		}
		arrived, err := arrivedSpans(ctx, tx, slice)
		if err != nil {
			return err
		}
		if enough, err := w.visit(ctx, tx, slice, arrived); err != nil || enough {
			return err
		}
		p.reached = w.slices.begin()
		p.slices++
		if w.deadline.IsZero() {
			w.slices.grow()
		} else {
			w.slices.fitTime(time.Since(began), time.Until(w.deadline))
		}
	}
}

// shrink takes the last slice back, and makes it shorter.
func (s *slicer) shrink() {
	s.rest, s.end = s.before, false
	s.length = max(s.length/8, leastSlice)
}

// leastSlice is the shortest slice, in milliseconds. One millisecond may be that of the row before, which is searched again.
const leastSlice = 2

// begin returns where the next slice begins, in Unix milliseconds: its end if the newest come first.
func (s *slicer) begin() int64 {
	if s.rest.ascending {
		return s.rest.from
	}
	return s.rest.to
}

// fitTime makes the next slice as long as a quarter of the time that is left allows, by how long the last one took.
func (s *slicer) fitTime(took, left time.Duration) {
	want := float64(s.length) * float64(left) / 4 / float64(max(took, time.Millisecond))
	s.length = int64(min(max(want, float64(s.length)/4, leastSlice), float64(s.length)*growth, 1<<50))
}

// behind returns the position from which a search goes on that has come so far.
func (q *search) behind(reached int64) position {
	if q.ascending {
		return position{at: time.UnixMilli(reached).Add(-time.Microsecond), id: uuid.Max}
	}
	return position{at: time.UnixMilli(reached)}
}

// appendProgress appends how far a search with a budget came, as members of the answer.
func appendProgress(out []byte, p progress) []byte {
	out = append(out, `,"searched_to":"`...)
	out = appendEdge(out, p.reached)
	return strconv.AppendBool(append(out, `","complete":`...), p.complete)
}
