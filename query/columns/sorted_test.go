package columns_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"millrace/internal/archive"
	"millrace/internal/archive/archivetest"
	"millrace/query/columns"
)

// TestSortedRowsAreThoseOfTheMatcherInOrder pages through random searches in both orders, and reads all rows at once.
func TestSortedRowsAreThoseOfTheMatcherInOrder(t *testing.T) {
	files, rows := written(t, 3, 4000)
	begin, end := rows[0].InsertedAt, rows[len(rows)-1].InsertedAt
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 60 {
		q := []string{"", "level:error", `"connection reset"`, "-level:info http.status:>=400", "nosuch:x"}[rng.IntN(5)]
		axis := []archive.Axis{archive.ByTime, archive.ByArrival}[rng.IntN(2)]
		from, to := begin+rng.Int64N(end-begin), begin+rng.Int64N(end-begin)
		if rng.IntN(3) == 0 {
			from, to = math.MinInt64, math.MaxInt64
		}
		descending := rng.IntN(2) == 0
		s := &columns.Search{Files: files, Query: parse(t, q), Axis: axis, From: min(from, to), To: max(from, to), Groups: 2, Places: make(chan struct{}, 1)}
		want := matching(t, s, rows)
		if descending {
			slices.Reverse(want)
		}
		name := fmt.Sprintf("%q axis %d from %d to %d descending %t", q, axis, s.From, s.To, descending)
		compare := func(what string, got []*columns.Row) {
			t.Helper()
			if len(got) != len(want) {
				t.Fatalf("%s, %s: %d rows, want %d", name, what, len(got), len(want))
			}
			for i, r := range got {
				if r.ID != want[i].ID || r.Time != want[i].Time || r.InsertedAt != want[i].InsertedAt || !bytes.Equal(r.Data, want[i].Data) {
					t.Fatalf("%s, %s: row %d is %x, want %x", name, what, i, r.ID, want[i].ID)
				}
			}
		}
		var all []*columns.Row
		if err := s.Sorted(t.Context(), columns.Order{Descending: descending}, func(r *columns.Row) error {
			all = append(all, r)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		compare("all at once", all)
		var paged []*columns.Row
		order := columns.Order{Descending: descending}
		for {
			order.Limit, order.Bytes = 1+rng.IntN(500), 1+rng.IntN(200_000)
			n, size, isLast := 0, 0, false
			if err := s.Sorted(t.Context(), order, func(r *columns.Row) error {
				if isLast {
					t.Errorf("%s: another row behind the one with %d bytes before it", name, order.Bytes)
				}
				isLast = size >= order.Bytes
				n, size = n+1, size+len(r.Data)
				paged = append(paged, r)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				break
			}
			if n < order.Limit && !isLast && len(paged) < len(want) {
				t.Fatalf("%s: %d of at most %d rows with %d of %d bytes, and there are more", name, n, order.Limit, size, order.Bytes)
			}
			last := paged[len(paged)-1]
			order.After = &columns.Place{At: last.At, ID: last.ID}
			if rng.IntN(4) == 0 { // the last row comes again
				order.After.Inclusive = true
				paged = paged[:len(paged)-1]
				order.Limit = max(order.Limit, 2)
			}
		}
		compare("in pages", paged)
	}
	for _, i := range []int{0, len(rows) / 2, len(rows) - 1} {
		s := &columns.Search{Files: files, Groups: 1}
		if r, err := s.ByID(t.Context(), rows[i].ID, rows[i].InsertedAt); err != nil || r == nil || !bytes.Equal(r.Data, rows[i].Data) {
			t.Errorf("row %d by its id: %v, %v", i, r, err)
		}
		if r, err := s.ByID(t.Context(), rows[i].ID, rows[i].InsertedAt+1); err != nil || r != nil {
			t.Errorf("row %d by its id and another time: %v, %v", i, r, err)
		}
	}
}

func TestSortedRowsEndWithTheirContext(t *testing.T) {
	files, _ := written(t, 1, 4000)
	s := &columns.Search{Files: files, From: math.MinInt64, To: math.MaxInt64, Groups: 2}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Sorted(ctx, columns.Order{}, func(*columns.Row) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want that it is cancelled", err)
	}
}

// endingReader ends a context at one of its reads, and counts those that follow.
type endingReader struct {
	io.ReaderAt
	end   func()
	left  atomic.Int64
	after atomic.Int64
}

func (r *endingReader) ReadAt(b []byte, at int64) (int, error) {
	switch left := r.left.Add(-1); {
	case left == 0:
		r.end()
	case left < 0:
		r.after.Add(1)
	}
	return r.ReaderAt.ReadAt(b, at)
}

func TestASearchThatHasEndedReadsNextToNothingMore(t *testing.T) {
	registry := archive.NewRegistry(nil)
	maker := archivetest.NewRows(9)
	var readers []*endingReader
	var files []*archive.File
	for range 3 {
		_, summary, file := archivetest.File(t, registry, func(add func(*archive.Row)) {
			for range 5000 {
				add(maker.Row(maker.Messy()))
			}
		})
		r := &endingReader{ReaderAt: bytes.NewReader(file)}
		of, err := archive.Open(r, summary.Bytes, summary.TailBytes)
		if err != nil {
			t.Fatal(err)
		}
		readers, files = append(readers, r), append(files, of)
	}
	const groups = 2
	s := &columns.Search{Files: files, Query: parse(t, `"no text has this 0" OR retries`), From: math.MinInt64, To: math.MaxInt64, Groups: groups}
	for name, search := range map[string]func(ctx context.Context) error{
		"count": func(ctx context.Context) error { _, err := s.Count(ctx); return err },
		"histogram": func(ctx context.Context) error {
			_, err := s.Histogram(ctx, []int64{math.MinInt64, math.MaxInt64}, []string{"trace_id"})
			return err
		},
		"rows": func(ctx context.Context) error {
			return s.Sorted(ctx, columns.Order{Descending: true}, func(*columns.Row) error { return nil })
		},
	} {
		for at := int64(1); ; at++ {
			ctx, cancel := context.WithCancel(t.Context())
			for _, r := range readers {
				r.end = cancel
				r.left.Store(at)
				r.after.Store(0)
			}
			err := search(ctx)
			cancel()
			ended, after := false, int64(0)
			for _, r := range readers {
				ended = ended || r.left.Load() <= 0
				after = max(after, r.after.Load())
			}
			if !ended {
				if err != nil || at < 3 {
					t.Errorf("%s: %d reads, %v", name, at, err)
				}
				break
			}
			// A page that is being read may take a few.
			if err != nil && !errors.Is(err, context.Canceled) || after > 4*groups {
				t.Errorf("%s ended at read %d: %v, and a file was read %d times more, want %d at most", name, at, err, after, 4*groups)
			}
		}
	}
}
