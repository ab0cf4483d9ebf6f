package query

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
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
	// budgetSlack is how long after the end of a budget a statement is given up that did not heed its timeout.
	budgetSlack = 200 * time.Millisecond
)

// progress is how far a search came.
type progress struct {
	slices   int   // how many slices were searched
	complete bool  // all of the window was searched, or as much as was asked for
	reached  int64 // Unix milliseconds: the window is searched from its beginning in the search's order up to there
}

// walk calls visit with slices of a window, one behind the other in the search's order, until visit has enough, all are visited, or the
// search's budget is used up. visit returns how many rows it found, too. Without a budget each statement may take the usual time, and one
// that takes longer is an error. Within a budget it may take half of what is left; then nothing of its slice counts, and a shorter one is
// tried. fences says whether slices may be fenced: that is for few rows, since PostgreSQL does not read them in several processes then.
//
// The rows are looked for in slices, so that the newest are found without a look at all others. No index has the rows in their order.
func (s *store) walk(ctx context.Context, q *search, fences bool, visit func(ctx context.Context, of *part) (rows int, enough bool, err error)) (p progress, err error) {
	ctx, within := s.withinBudget(ctx, q)
	defer within.end()
	q.indexed = s.indexed(ctx)
	w := walker{store: s, slices: newSlicer(q, time.Now()), visit: visit}
	w.slices.fences = fences && !q.usesIndexed()
	w.slices.fence(true)
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
	w.deadline = within.deadline
	for {
		left := time.Until(w.deadline)
		if left < leastLeft {
			return p, nil
		}
		err = s.readFor(ctx, left, func(ctx context.Context, tx pgx.Tx) error { return w.walk(ctx, tx, &p) })
		var failed *rangeFailure
		if errors.As(err, &failed) && w.isOut && w.slices.narrow(failed.file) {
			w.isOut, w.failed = false, err
			continue
		}
		if err == nil && p.slices == 0 {
			err = w.failed
		}
		if !isOutOfTime(err) {
			return p, p.passOver(within.passOver(err))
		}
		if w.isOut {
			w.isOut = false
			w.slices.shrink()
		}
	}
}

// widen calls visit with longer and longer ends of a window, until one is all of it or the search's budget is used up. So visit may compute
// what can't be put together from slices. What it made of the longest end that it came through with is the answer; p says which that is.
// Each end costs anew, but each is several times as long as the one before.
//
// Ends begin at one of the edges, if there are any and the end is that long.
func (s *store) widen(ctx context.Context, q *search, edges []int64, visit func(ctx context.Context, of *part) error) (p progress, err error) {
	ctx, within := s.withinBudget(ctx, q)
	defer within.end()
	q.indexed = s.indexed(ctx)
	p.reached = q.to
	// Few rows are ahead of now.
	for length := firstSlice.Milliseconds()/8 + max(0, q.to-time.Now().UnixMilli()); ; {
		end := *q
		end.from = max(q.from, q.to-length)
		if i, isEdge := slices.BinarySearch(edges, end.from); !isEdge && i < len(edges)-1 && end.from > q.from {
			end.from = edges[i]
		}
		if p.slices > 0 && end.from >= p.reached {
			return p, nil // no edge is between the two
		}
		began := time.Now()
		left := within.deadline.Sub(began)
		if left < leastLeft {
			return p, nil
		}
		end.deadline = within.deadline
		if p.slices == 0 {
			end.deadline = began.Add(left / 2) // so that a shorter one can be tried
		}
		err := s.readFor(ctx, time.Until(end.deadline), func(ctx context.Context, tx pgx.Tx) error {
			of, err := s.part(ctx, tx, &end, end.deadline)
			if err != nil {
				return err
			}
			return visit(ctx, of)
		})
		switch {
		case isOutOfTime(err) && p.slices == 0:
			length = max(length/8, leastSlice)
			continue
		case isOutOfTime(err):
			return p, nil
		case err != nil:
			return p, within.passOver(err)
		}
		p.slices++
		p.reached = end.from
		if p.complete = end.from == q.from; p.complete {
			return p, nil
		}
		times := float64(time.Until(within.deadline)) * 0.6 / float64(max(time.Since(began), time.Millisecond))
		if times < min(1.5, float64(q.to-q.from)/float64(q.to-end.from)) {
			return p, nil
		}
		length = int64(float64(q.to-end.from) * min(times, growth))
	}
}

// budgeted is a search's time.
type budgeted struct {
	deadline time.Time // zero: there is none
	end      context.CancelFunc
}

// withinBudget returns a context in which a search with a budget is given up soon after its deadline, whatever it waits for.
func (s *store) withinBudget(ctx context.Context, q *search) (context.Context, budgeted) {
	if q.budget == 0 {
		return ctx, budgeted{end: func() {}}
	}
	deadline := time.Now().Add(min(q.budget, s.timeout))
	if !q.deadline.IsZero() && q.deadline.Before(deadline) {
		deadline = q.deadline
	}
	ctx, cancel := context.WithDeadlineCause(ctx, deadline.Add(budgetSlack), errBudget)
	return ctx, budgeted{deadline, cancel}
}

// errBudget is the cause of a context that ends with a budget.
var errBudget = errors.New("the budget is used up")

// passOver returns an error, unless it is only that the budget is used up.
func (b budgeted) passOver(err error) error {
	if errors.Is(err, context.DeadlineExceeded) && !b.deadline.IsZero() && time.Now().After(b.deadline) {
		return nil
	}
	return err
}

// passOver returns an error, unless it is that a file of the archive can't be read and some of the window was searched before.
func (p *progress) passOver(err error) error {
	var failed *rangeFailure
	if p.slices > 0 && errors.As(err, &failed) {
		return nil
	}
	return err
}

// isOutOfTime reports whether a read took longer than it was given.
func isOutOfTime(err error) bool {
	return pg.CodeOf(err) == pg.QueryCanceled || errors.Is(err, errOutOfTime)
}

// setTimeout has the next statements end by a deadline, if there is one.
func setTimeout(ctx context.Context, tx pgx.Tx, deadline time.Time) error {
	if deadline.IsZero() {
		return nil
	}
	_, err := tx.Exec(ctx, fmt.Sprintf("SET LOCAL statement_timeout = %d", max(time.Until(deadline), leastLeft).Milliseconds()))
	return err
}

// walker is a walk over slices.
type walker struct {
	slices   *slicer
	store    *store
	visit    func(ctx context.Context, of *part) (rows int, enough bool, err error)
	deadline time.Time // when the budget is used up; zero: there is none
	isOut    bool      // a slice was begun and is not yet searched
	failed   error     // why the window was narrowed
}

// walk visits slices in one transaction.
func (w *walker) walk(ctx context.Context, tx pgx.Tx, p *progress) error {
	var known catalog
	for {
		began := time.Now()
		end := began.Add(w.store.timeout)
		if !w.deadline.IsZero() {
			left := w.deadline.Sub(began)
			if left < leastLeft {
				return nil
			}
			end = began.Add(left / 2)
			if err := setTimeout(ctx, tx, end); err != nil {
				return err
			}
		}
		slice, ok := w.slices.next()
		if !ok {
			p.complete = w.failed == nil
			return nil
		}
		w.isOut = true
		of, err := w.store.slice(ctx, tx, slice, end, &known)
		if err != nil {
			return err
		}
		rows, enough, err := w.visit(ctx, of)
		if err != nil || enough {
			return err
		}
		w.isOut = false
		p.slices++
		w.slices.fence(rows > 0)
		if w.deadline.IsZero() {
			w.slices.grow()
			w.slices.reach(of)
		} else {
			w.slices.fitTime(time.Since(began), time.Until(w.deadline))
		}
		err = w.slices.passGap(ctx, of, rows)
		p.reached = w.slices.begin()
		if err != nil {
			return err
		}
	}
}

// narrow takes the last slice back, and ends the window where a file's rows begin. It reports whether the window is narrower now.
func (s *slicer) narrow(file archiveFile) bool {
	s.rest, s.end = s.before, false
	if s.rest.ascending {
		end := floor(file.first, 1000) / 1000
		if end >= s.rest.to {
			return false
		}
		s.rest.to = max(end, s.rest.from)
		s.end = s.rest.to == s.rest.from
		return true
	}
	end := floor(file.last, 1000)/1000 + 1
	if end <= s.rest.from {
		return false
	}
	s.rest.from = min(end, s.rest.to)
	s.end = s.rest.to == s.rest.from
	return true
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
func (s *search) behind(reached int64) position {
	if s.ascending {
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
