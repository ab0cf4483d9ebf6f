package query

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/query/language"
)

const (
	// firstSlice is the length of the first slice of a window that is looked for rows, and growth is how many times longer each next one is.
	// So a page of a table that gets thousands of rows a second takes one slice, and a day without rows takes five more.
	firstSlice = 2 * time.Second
	growth     = 16

	// fewRows and manyRows bound the rows of an export's slice: one with fewer is followed by a longer one, one with more by a shorter one.
	fewRows, manyRows = 5_000, 50_000
)

// slicer cuts a search into searches of parts of its window, one behind the other in the search's order.
type slicer struct {
	rest   search // what is left of the window
	length int64  // of the next slice, in milliseconds
	end    bool
	now    int64  // Unix milliseconds
	before search // what rest was before the last slice
	found  int    // rows in the slices so far
	gaps   int    // that were skipped
	fences bool   // whether slices may be fenced, see fence
}

// newSlicer returns a slicer. now need not be exact.
func newSlicer(q *search, now time.Time) *slicer {
	return &slicer{rest: *q, length: firstSlice.Milliseconds(), now: now.UnixMilli()}
}

// next returns the next slice, and reports whether there is one.
func (s *slicer) next() (*search, bool) {
	if s.end {
		return nil, false
	}
	s.before = s.rest
	slice := s.rest
	switch {
	case s.rest.ascending:
		begin := s.rest.from
		if s.rest.after != nil {
			begin = max(begin, s.rest.after.at.UnixMilli())
		}
		slice.to = min(begin+s.length, s.rest.to)
		s.end = slice.to == s.rest.to
		s.rest.from = slice.to
	default:
		begin := s.rest.to
		if s.rest.after != nil {
			begin = min(begin, s.rest.after.at.UnixMilli()+1) // which is in the slice
		}
		slice.from = max(begin-s.length, s.rest.from)
		if begin > s.now { // few rows are ahead of now
			slice.from = max(s.now-s.length, s.rest.from)
		}
		s.end = slice.from == s.rest.from
		s.rest.to = slice.from
	}
	s.rest.after = nil // the next slices begin behind it
	return &slice, true
}

// fence chooses how the next slice is read. While rows are found, what is looked for is common: then the rows of a short slice are read, which lie
// beside each other. Else an index on data may find it sooner. PostgreSQL can't tell: it takes the rows of a slice for scattered, and reads an
// index for a million matches in its place.
func (s *slicer) fence(found bool) { s.rest.fenced = s.fences && found }

// grow makes the next slice longer.
func (s *slicer) grow() { s.length = min(s.length*growth, 1<<50) }

// reach makes the next slice reach as far as files alone have the rows, if they have those of the last one. Files need no slices: their rows come in
// order, and not more of them are read than are needed.
func (s *slicer) reach(last *part) { s.length = max(s.length, last.filesBeyond()) }

// manyGaps is how many gaps are looked for in a search, and one more with each thousand of its rows. Where rows are few and far between, longer
// slices are cheaper than a look for each gap.
const manyGaps = 3

// passGap moves behind a gap, in which there are no rows at all, if the last slice is part of one. of is that slice, and rows is how many rows
// were found in it. The slice behind the gap is short: it may be the end of millions of rows.
func (s *slicer) passGap(ctx context.Context, of *part, rows int) error {
	s.found += rows
	if rows > 0 || s.end || s.gaps >= manyGaps+s.found/1000 {
		return nil
	}
	if may, err := of.mayHaveRows(ctx); err != nil || may {
		return err
	}
	s.gaps++
	return s.skipGap(ctx, of)
}

// skipGap moves to the next rows, however far away they are. It asks a few cheap questions: it cuts what is left as always until a part has
// rows, and then that part in halves. If it fails, it has moved over nothing that it had not seen to be empty.
func (s *slicer) skipGap(ctx context.Context, last *part) (err error) {
	defer func() {
		if err != nil {
			s.rest, s.end = s.before, false
		}
	}()
	for {
		part, ok := s.next()
		if !ok {
			return nil
		}
		of, err := last.store.slice(ctx, last.tx, part, last.deadline, last.known)
		if err != nil {
			return err
		}
		holds, err := of.mayHaveRows(ctx)
		if err != nil {
			return err
		}
		if !holds {
			s.grow()
			continue
		}
		for part.to-part.from > firstSlice.Milliseconds() {
			middle := part.from + (part.to-part.from)/2
			near, far := *part, *part // near comes first in the search's order
			if s.rest.ascending {
				near.to, far.from = middle, middle
			} else {
				near.from, far.to = middle, middle
			}
			if holds, err = of.of(&near).mayHaveRows(ctx); err != nil {
				return err
			}
			part = &far
			if holds {
				part = &near
			}
		}
		if s.rest.ascending {
			s.rest.from = part.from
		} else {
			s.rest.to = part.to
		}
		s.length, s.end = firstSlice.Milliseconds(), false
		s.fence(true)
		return nil
	}
}

// holdsRows reports whether a window has rows, whatever the search looks for in them. For one row PostgreSQL would rather read a partition
// from its beginning than look into an index. It may not, because there may be none for millions of rows.
func holdsRows(ctx context.Context, tx pgx.Tx, q *search, arrived spans) (holds bool, err error) {
	all := *q
	all.filter, all.fenced, all.after = language.Query{}, false, nil
	st := existsStatement(&all, arrived)
	var batch pgx.Batch
	batch.Queue("SET LOCAL enable_seqscan = off")
	batch.Queue(st.sql.String(), st.args...).QueryRow(func(r pgx.Row) error { return r.Scan(&holds) })
	batch.Queue("SET LOCAL enable_seqscan TO DEFAULT")
	return holds, tx.SendBatch(ctx, &batch).Close()
}

// exported chooses the next slice of an export, behind one that had so many rows: a longer one, a shorter one, or one behind a gap.
func (s *slicer) exported(ctx context.Context, of *part, rows int) error {
	switch {
	case rows == 0:
		s.grow()
	case rows < fewRows:
		s.length = min(2*s.length, 1<<50)
	case rows > manyRows:
		s.length = max(s.length/4, 1)
	}
	s.reach(of)
	return s.passGap(ctx, of, rows)
}
