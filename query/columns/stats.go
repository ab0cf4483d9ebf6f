package columns

import (
	"context"
	"slices"
	"sync"

	"github.com/valyala/fastjson"

	"millrace/internal/archive"
	"millrace/query/language"
)

// Stats adds the rows found to a table. Its buckets, if there are any, must begin and end as the window does or beyond it.
func (s *Search) Stats(ctx context.Context, t *Table) error {
	selectors := make([]*language.Selector, len(t.figures))
	for i, f := range t.figures {
		if f.Function == Share {
			selectors[i] = f.Query.Selector()
		}
	}
	var mu sync.Mutex
	var failed error
	err := s.each(ctx, func(ctx context.Context, selector *language.Selector, g *archive.Group) error {
		rows, times, err := s.found(ctx, selector, g)
		if err != nil || rows.IsEmpty() {
			return err
		}
		b := &batch{rows: rows}
		if t.edges != nil {
			first, last := g.Bounds(s.Axis)
			low, high := bucketOf(t.edges, max(first, s.From)), bucketOf(t.edges, min(last, s.To-1))
			b.bucket = low
			if low != high || t.needs.id {
				b.times = times
			}
			if low != high && times == nil {
				if b.times, err = g.Times(ctx, s.Axis, nil); err != nil {
					return err
				}
			}
		}
		if t.needs.id {
			if b.times == nil {
				if b.times, err = g.Times(ctx, s.Axis, nil); err != nil {
					return err
				}
			}
			b.ids = make([][16]byte, g.Rows)
			if err := g.EachID(ctx, func(row int, id [16]byte) { b.ids[row] = id }); err != nil {
				return err
			}
		}
		for _, path := range t.by {
			v, err := readField(ctx, g, path, rows, fieldNeeds{})
			if err != nil {
				return err
			}
			b.by = append(b.by, v)
		}
		for _, f := range t.fields {
			v, err := readField(ctx, g, f.path, rows, f.needs)
			if err != nil {
				return err
			}
			b.fields = append(b.fields, v)
		}
		b.shares = make([]archive.Bits, len(selectors))
		for i, selector := range selectors {
			if selector == nil {
				continue
			}
			if b.shares[i], err = selector.Select(ctx, g, rows.Clone()); err != nil {
				return err
			}
		}
		mu.Lock()
		defer mu.Unlock()
		if failed == nil {
			failed = t.add(b)
		}
		return failed
	})
	if failed != nil { // that is not the file's failure
		return failed
	}
	return err
}

// TableRows adds rows to a table, one by one.
type TableRows struct {
	t      *Table
	n      int // rows
	size   int // bytes of their values
	b      *batch
	by     []coder
	fields []coder
	parser fastjson.Parser
}

// rowsAtOnce is how many rows TableRows collects.
const rowsAtOnce = 8192

// mostAtOnce is about how many bytes of values TableRows collects at most: they are in no count yet.
const mostAtOnce = 8 << 20

// Rows returns what adds rows to the table.
func (t *Table) Rows() *TableRows {
	r := &TableRows{t: t}
	r.begin()
	return r
}

// begin makes room for rows.
func (r *TableRows) begin() {
	r.n, r.size = 0, 0
	r.b = &batch{times: make([]int64, rowsAtOnce), ids: make([][16]byte, rowsAtOnce), by: make([]fieldValues, len(r.t.by)), fields: make([]fieldValues, len(r.t.fields)), shares: make([]archive.Bits, len(r.t.figures))}
	r.by, r.fields = make([]coder, len(r.t.by)), make([]coder, len(r.t.fields))
	for i := range r.by {
		r.b.by[i].codes = slices.Repeat([]int32{-1}, rowsAtOnce)
		r.by[i].fieldValues = &r.b.by[i]
	}
	for i := range r.fields {
		r.b.fields[i].codes = slices.Repeat([]int32{-1}, rowsAtOnce)
		r.fields[i] = coder{fieldValues: &r.b.fields[i], needs: fieldNeeds{kinds: true}}
	}
	for i, f := range r.t.figures {
		if f.Function == Share {
			r.b.shares[i] = archive.NewBits(rowsAtOnce)
		}
	}
}

// Fields returns the fields that Add takes the values of.
func (t *Table) Fields() (paths [][]string) {
	for _, f := range t.fields {
		paths = append(paths, f.path)
	}
	return paths
}

// Add adds a row: its time on the search's axis, the texts of the fields that the table groups by, the values of Fields as JSON that PostgreSQL
// wrote, and whether the row satisfies the query of each Share, in their order. nil is no value.
func (r *TableRows) Add(at int64, id [16]byte, by [][]byte, values [][]byte, shares []bool) error {
	row := r.n
	r.b.times[row], r.b.ids[row] = at, id
	for i, text := range by {
		if text != nil {
			r.by[i].codes[row] = r.by[i].code(string(text), isString)
			r.size += len(text)
		}
	}
	for i, value := range values {
		if value == nil {
			continue
		}
		v, err := r.parser.ParseBytes(value)
		if err != nil {
			return err
		}
		r.fields[i].set(row, v)
		r.size += len(value)
	}
	for i, f := range r.t.figures {
		if f.Function != Share {
			continue
		}
		if shares[0] {
			r.b.shares[i].Set(row)
		}
		shares = shares[1:]
	}
	if r.n++; r.n == rowsAtOnce || r.size > mostAtOnce {
		return r.Flush()
	}
	return nil
}

// Flush adds the rows that were collected. It must be called after the last one.
func (r *TableRows) Flush() error {
	if r.n == 0 {
		return nil
	}
	r.b.rows = archive.NewBits(rowsAtOnce)
	r.b.rows.SetRange(0, r.n)
	err := r.t.add(r.b)
	r.begin()
	return err
}
