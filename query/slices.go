package query

import "time"

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

// grow makes the next slice longer.
func (s *slicer) grow() { s.length = min(s.length*growth, 1<<50) }

// fit makes the next slice longer or shorter by how many rows the last one had.
func (s *slicer) fit(rows int) {
	switch {
	case rows == 0:
		s.grow()
	case rows < fewRows:
		s.length = min(2*s.length, 1<<50)
	case rows > manyRows:
		s.length = max(s.length/4, 1)
	}
}
