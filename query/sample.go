package query

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

const (
	// sampleParts is how many parts of a window a sample is taken from.
	sampleParts = 16
	// samplePasses is how many times the parts that have more than was taken are divided again.
	samplePasses = 4
)

// samplePart is a part of a window, and what was taken from it.
type samplePart struct {
	search search
	bodies [][]byte
	bytes  int  // of the bodies
	isFull bool // there is more
}

// sample returns what body, as SQL, selects of records all over a window: as many from each of its parts, and of the parts that have many
// again as many from each of their parts. isAll reports whether that is all records of the search. What takes longer than the search's
// budget, or than a statement may, is left out.
//
// Which records of a part those are is the database's choice. To have the newest it would have to sort all of them.
func (s *store) sample(ctx context.Context, q *search, most int, body func(*statement) string) (bodies [][]byte, isAll bool, err error) {
	q.indexed = s.indexed(ctx)
	end := time.Now().Add(s.timeout)
	if q.budget > 0 && q.deadline.Before(end) {
		end = q.deadline
	}
	parts := divide(q, sampleParts)
	var taken []samplePart
	total, bytes, isAll := 0, 0, true
	var cut error // why a part was left out
	for pass := 1; ; pass++ {
		var full []samplePart
		for i := range parts {
			p := &parts[i]
			left := time.Until(end)
			if left < leastLeft {
				isAll = false
				break
			}
			err := s.takeSample(ctx, p, left/time.Duration(len(parts)-i), max(1, (most-total)/(len(parts)-i)), max(1, (pageBytes-bytes)/(len(parts)-i)), body)
			if isOutOfTime(err) {
				isAll, cut = false, err
				continue
			}
			if err != nil {
				return nil, false, err
			}
			total, bytes = total+len(p.bodies), bytes+p.bytes
			if p.isFull {
				full = append(full, *p)
			} else {
				taken = append(taken, *p)
			}
		}
		parts = nil
		if pass < samplePasses && total < most/2 {
			for _, p := range full {
				if finer := divide(&p.search, max(2, sampleParts/len(full))); len(finer) > 1 {
					parts = append(parts, finer...)
					total, bytes = total-len(p.bodies), bytes-p.bytes
					continue
				}
				taken = append(taken, p)
				isAll = false
			}
		} else if len(full) > 0 {
			taken = append(taken, full...)
			isAll = false
		}
		if len(parts) == 0 {
			break
		}
	}
	for _, p := range taken {
		bodies = append(bodies, p.bodies...)
	}
	if len(bodies) == 0 && cut != nil && q.budget == 0 {
		return nil, false, cut
	}
	return bodies, isAll, nil
}

// divide returns parts of a search that are equally long, to the millisecond, the newest first.
func divide(q *search, n int) (parts []samplePart) {
	n = int(min(int64(n), max(1, q.to-q.from)))
	end := q.to
	for i := n - 1; i >= 0; i-- {
		part := *q
		part.from, part.to = q.from+(q.to-q.from)/int64(n)*int64(i), end
		end = part.from
		parts = append(parts, samplePart{search: part})
	}
	return parts
}

// takeSample takes some records of a part, with so many bytes and one more record at most.
func (s *store) takeSample(ctx context.Context, p *samplePart, timeout time.Duration, rows, bytes int, body func(*statement) string) error {
	return s.readFor(ctx, max(timeout, leastLeft), func(ctx context.Context, tx pgx.Tx) error {
		of, err := s.part(ctx, tx, &p.search, time.Now().Add(timeout))
		if err != nil {
			return err
		}
		if err := of.bring(ctx, rows+1); err != nil {
			return err
		}
		st := new(statement)
		fmt.Fprintf(&st.sql, "SELECT CASE WHEN total - octet_length(body) < %s THEN body END FROM (SELECT body, sum(octet_length(body)) OVER (ROWS UNBOUNDED PRECEDING) AS total FROM (SELECT %s AS body FROM ",
			st.args.Add(bytes), body(st))
		st.found(of.search, of.arrived)
		fmt.Fprintf(&st.sql, " LIMIT %s) AS sample) AS sums", st.args.Add(rows+1))
		found, err := tx.Query(ctx, st.sql.String(), st.args...)
		if err != nil {
			return err
		}
		var b pgtype.DriverBytes // no copy
		_, err = pgx.ForEachRow(found, []any{&b}, func() error {
			if len(p.bodies) == rows || b == nil {
				p.isFull = true
				return nil
			}
			p.bodies = append(p.bodies, slices.Clone([]byte(b)))
			p.bytes += len(b)
			return nil
		})
		return err
	})
}

// distribution tells how the numbers in a field are distributed. Texts that are numbers count.
type distribution struct {
	Count int     `json:"count"`
	Min   float64 `json:"min"`
	P50   float64 `json:"p50"`
	P95   float64 `json:"p95"`
	Max   float64 `json:"max"`
	// Bins is the histogram, empty if all numbers are the same. GET /logs/fields leaves it out.
	Bins []bin `json:"bins,omitempty"`
}

// distributionOf returns the distribution of numbers, or nil if there are none. It sorts them.
func distributionOf(numbers []float64) *distribution {
	n := len(numbers)
	if n == 0 {
		return nil
	}
	slices.Sort(numbers)
	// As percentile_cont does it.
	percentile := func(p float64) float64 {
		place := p * float64(n-1)
		low := int(math.Floor(place))
		high := min(low+1, n-1)
		return numbers[low] + float64((place-float64(low))*(numbers[high]-numbers[low])) // rounded before it is added, as PostgreSQL does on every machine
	}
	return &distribution{Count: n, Min: numbers[0], P50: percentile(0.5), P95: percentile(0.95), Max: numbers[n-1]}
}
