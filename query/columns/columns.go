// Package columns answers searches from files of the archive: counts, histograms, the latest rows, all rows. The answers are those that
// PostgreSQL gives for the same rows, exactly.
//
// A Search starts goroutines for the row groups that it reads at once, and waits for them. It may be used by many goroutines.
package columns

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/valyala/fastjson"

	"millrace/internal/archive"
	"millrace/query/language"
)

// Search is what is looked for, and where.
type Search struct {
	Files    []*archive.File // no row is in two of them
	Query    language.Query
	Axis     archive.Axis
	From, To int64 // the window on the axis, without To, in Unix microseconds
	// Groups is how many row groups are read at once. Each takes some 10 MB.
	Groups int
	// Without are ids whose rows count as not there, in order.
	Without [][16]byte
	// Places, if it is not nil, has a place for each row group that all searches together read at once.
	Places chan struct{}
	// MostValues and MostText bound how many values a histogram tells apart, and their bytes together. If there are more, it fails with
	// ErrManyValues. 0: no bound.
	MostValues, MostText int
	// Keeps, if it is not nil, tells which values a histogram tells apart. Others only count.
	Keeps func(value string) bool
}

// ErrManyValues is the error of a histogram with more values than it may have.
var ErrManyValues = errors.New("too many values")

// groups returns the row groups that have rows in the window.
func (s *Search) groups() (groups []*archive.Group) {
	for _, f := range s.Files {
		for i := range f.Groups {
			if first, last := f.Groups[i].Bounds(s.Axis); last >= s.From && first < s.To {
				groups = append(groups, f.Group(i))
			}
		}
	}
	return groups
}

// found returns the rows of a group that satisfy the search. times are those of all rows, or nil where they were not needed.
func (s *Search) found(ctx context.Context, selector *language.Selector, g *archive.Group) (rows archive.Bits, times []int64, err error) {
	rows = archive.AllBits(g.Rows)
	if first, last := g.Bounds(s.Axis); first < s.From || last >= s.To {
		if times, err = g.Times(ctx, s.Axis, nil); err != nil {
			return nil, nil, err
		}
		rows = archive.NewBits(g.Rows)
		for row, at := range times {
			if s.From <= at && at < s.To {
				rows.Set(row)
			}
		}
	}
	if err := s.leaveOut(ctx, g, rows); err != nil {
		return nil, nil, err
	}
	if rows.IsEmpty() {
		return rows, times, nil
	}
	rows, err = selector.Select(ctx, g, rows)
	return rows, times, err
}

// leaveOut removes the rows of the ids in Without.
func (s *Search) leaveOut(ctx context.Context, g *archive.Group, rows archive.Bits) error {
	begin, _ := slices.BinarySearchFunc(s.Without, g.MinID, func(id [16]byte, least []byte) int { return bytes.Compare(id[:], least) })
	if begin == len(s.Without) || bytes.Compare(s.Without[begin][:], g.MaxID) > 0 {
		return nil
	}
	return g.EachID(ctx, func(row int, id [16]byte) {
		if _, found := slices.BinarySearchFunc(s.Without, id, compareIDs); found {
			rows.Remove(row)
		}
	})
}

func compareIDs(a, b [16]byte) int { return bytes.Compare(a[:], b[:]) }

// each calls f with the row groups of the window, several at once.
func (s *Search) each(ctx context.Context, f func(ctx context.Context, selector *language.Selector, g *archive.Group) error) error {
	selector := s.Query.Selector()
	groups := s.groups()
	return s.eachOf(ctx, groups, func(ctx context.Context, i int) error { return f(ctx, selector, groups[i]) })
}

// Count returns how many rows are found.
func (s *Search) Count(ctx context.Context) (n int64, err error) {
	var mu sync.Mutex
	err = s.each(ctx, func(ctx context.Context, selector *language.Selector, g *archive.Group) error {
		rows, _, err := s.found(ctx, selector, g)
		mu.Lock()
		defer mu.Unlock()
		n += int64(rows.Count())
		return err
	})
	return n, err
}

// Bucket is what a histogram has of a stretch of time.
type Bucket struct {
	Count   int64
	Missing int64            // rows that have no value of the field, or null
	Values  map[string]int64 // how many rows have a value of the field, by its text
}

// Histogram counts the rows by bucket, and by the value of a field if by is not nil. edges are the beginnings of the buckets and the end
// of the last one, in order; the window must lie between the first and the last.
func (s *Search) Histogram(ctx context.Context, edges []int64, by []string) ([]Bucket, error) {
	buckets := make([]Bucket, len(edges)-1)
	var mu sync.Mutex
	var held heldValues
	err := s.each(ctx, func(ctx context.Context, selector *language.Selector, g *archive.Group) error {
		rows, times, err := s.found(ctx, selector, g)
		if err != nil || rows.IsEmpty() {
			return err
		}
		first, last := g.Bounds(s.Axis)
		low, high := bucketOf(edges, max(first, s.From)), bucketOf(edges, min(last, s.To-1))
		var values fieldValues
		if by != nil {
			if values, err = readField(ctx, g, by, rows, fieldNeeds{}); err != nil {
				return err
			}
		}
		if low == high {
			counts := count(rows, values)
			mu.Lock()
			defer mu.Unlock()
			return s.add(&held, &buckets[low], counts, values)
		}
		if times == nil {
			if times, err = g.Times(ctx, s.Axis, nil); err != nil {
				return err
			}
		}
		parts := split(rows, times, edges[low:high+2], values)
		mu.Lock()
		defer mu.Unlock()
		for i, counts := range parts {
			if counts == nil {
				continue
			}
			if err := s.add(&held, &buckets[low+i], counts, values); err != nil {
				return err
			}
		}
		return nil
	})
	return buckets, err
}

// bucketOf returns the bucket that a time is in.
func bucketOf(edges []int64, at int64) int {
	i, found := slices.BinarySearch(edges, at)
	if !found {
		i--
	}
	return min(max(i, 0), len(edges)-2)
}

// heldValues is how many values a histogram holds.
type heldValues struct{ values, text int }

// add adds counts by code to a bucket. The first is that of no value.
func (s *Search) add(held *heldValues, b *Bucket, counts []int64, values fieldValues) error {
	b.Count += counts[0]
	if values.codes == nil {
		return nil
	}
	b.Missing += counts[0]
	if b.Values == nil {
		b.Values = make(map[string]int64)
	}
	for i, n := range counts[1:] {
		if n == 0 {
			continue
		}
		b.Count += n
		text := values.texts[i]
		if s.Keeps != nil && !s.Keeps(text) {
			continue
		}
		before := len(b.Values)
		b.Values[text] += n
		if len(b.Values) == before {
			continue
		}
		held.values++
		held.text += len(text)
		if s.MostValues > 0 && held.values > s.MostValues || s.MostText > 0 && held.text > s.MostText {
			return ErrManyValues
		}
	}
	return nil
}

// count returns the counts of all rows by code, the first of which is that of no value.
func count(rows archive.Bits, values fieldValues) []int64 {
	if values.codes == nil {
		return []int64{int64(rows.Count())}
	}
	counts := make([]int64, len(values.texts)+1)
	rows.Each(func(row int) { counts[values.codes[row]+1]++ })
	return counts
}

// split returns the counts by bucket and by code. A bucket without rows has none.
func split(rows archive.Bits, times []int64, edges []int64, values fieldValues) [][]int64 {
	n := len(values.texts) + 1
	counts := make([][]int64, len(edges)-1)
	current := 0
	rows.Each(func(row int) {
		at := times[row]
		if at < edges[current] || at >= edges[current+1] { // rows come nearly in the order of their times
			current = bucketOf(edges, at)
		}
		if counts[current] == nil {
			counts[current] = make([]int64, n)
		}
		code := int32(-1)
		if values.codes != nil {
			code = values.codes[row]
		}
		counts[current][code+1]++
	})
	return counts
}

// Text returns the text of a value that is not null, as PostgreSQL's #>> does.
func Text(v *fastjson.Value) string {
	if v.Type() == fastjson.TypeString {
		return string(v.GetStringBytes())
	}
	return string(archive.AppendValue(nil, v))
}

// Row is a row that was found.
type Row struct {
	archive.Row
	At int64 // its time on the search's axis
}

// compareRows orders rows by time, then by id.
func compareRows(a, b *Row) int {
	return cmp.Or(cmp.Compare(a.At, b.At), bytes.Compare(a.ID[:], b.ID[:]))
}

// Texts calls give with the texts and numbers that a column has at a path in the rows found, and how many rows of a row group have each. It calls
// other with the rows for which no column has such a value. Row groups are read side by side, but the calls come one after the other. A row and its data are other's until it
// returns.
func (s *Search) Texts(ctx context.Context, path []string, give func(text string, n int64), other func(r *archive.Row) error) error {
	var mu sync.Mutex
	return s.each(ctx, func(ctx context.Context, selector *language.Selector, g *archive.Group) error {
		rows, _, err := s.found(ctx, selector, g)
		if err != nil || rows.IsEmpty() {
			return err
		}
		var texts []string
		var counts []int64
		column := slices.IndexFunc(g.File.Columns, func(c archive.Column) bool { return c.Kind != archive.Bool && slices.Equal(c.Path, path) })
		if column >= 0 && !g.IsEmpty(column) {
			var codes []int32
			if texts, codes, err = g.Values(ctx, column); err != nil {
				return err
			}
			counts = make([]int64, len(texts))
			for row, code := range codes {
				if code >= 0 && rows.Has(row) {
					counts[code]++
					rows.Remove(row)
				}
			}
		}
		mu.Lock()
		defer mu.Unlock()
		for i, n := range counts {
			if n > 0 {
				give(texts[i], n)
			}
		}
		return g.Records(ctx, rows, other)
	})
}

// Each calls f with all rows that are found, row group by row group in the order of the files. The row is f's until it returns.
func (s *Search) Each(ctx context.Context, f func(r *archive.Row) error) error {
	selector := s.Query.Selector()
	var failed error
	for _, g := range s.groups() {
		err := s.eachOf(ctx, []*archive.Group{g}, func(ctx context.Context, _ int) error {
			rows, _, err := s.found(ctx, selector, g)
			if err != nil {
				return err
			}
			return g.Records(ctx, rows, func(r *archive.Row) error {
				failed = f(r)
				return failed
			})
		})
		switch {
		case failed != nil:
			return failed
		case err != nil:
			return err
		}
	}
	return nil
}
