package archive

import (
	"bytes"
	"context"
	"fmt"

	"github.com/parquet-go/parquet-go"
)

// Records calls f with the rows of a set, in their order. The row and its data are f's until it returns.
func (g *Group) Records(ctx context.Context, rows Bits, f func(r *Row) error) error {
	var chosen []int32
	rows.Each(func(row int) { chosen = append(chosen, int32(row)) })
	if len(chosen) == 0 {
		return nil
	}
	ids := make([]byte, 0, 16*len(chosen))
	came, times := vector{}, vector{}
	rest := vector{}
	vectors := make([]vector, len(g.File.Columns))
	if err := g.pages(ctx, g.File.id, rows, func(row int, p parquet.Page) (bool, error) {
		data, err := idsOf(p)
		if err != nil {
			return false, err
		}
		for len(ids)/16 < len(chosen) && int(chosen[len(ids)/16]) < row+int(p.NumRows()) {
			at := 16 * (int(chosen[len(ids)/16]) - row)
			ids = append(ids, data[at:at+16]...)
		}
		return true, nil
	}); err != nil {
		return err
	}
	if err := g.load(ctx, g.File.came, Micros, rows, chosen, &came); err != nil {
		return err
	}
	if err := g.load(ctx, g.File.time, Micros, rows, chosen, &times); err != nil {
		return err
	}
	if err := g.load(ctx, g.File.rest, Text, rows, chosen, &rest); err != nil {
		return err
	}
	for i, c := range g.File.Columns {
		if err := g.load(ctx, g.File.leaves[i], c.Kind, rows, chosen, &vectors[i]); err != nil {
			return err
		}
	}
	r := rebuilder{columns: g.File.Columns, vectors: vectors, tree: g.File.tree, rest: &rest}
	var row Row
	for i := range chosen {
		if i%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		copy(row.ID[:], ids[16*i:])
		row.InsertedAt = came.ints[i]
		row.Time = NoTime
		if times.has[i] == 1 {
			row.Time = times.ints[i]
		}
		var err error
		if row.Data, err = r.safeRecord(row.Data[:0], i); err != nil {
			return err
		}
		if err := f(&row); err != nil {
			return err
		}
	}
	return nil
}

func (r *rebuilder) safeRecord(b []byte, row int) (record []byte, err error) {
	defer recoverCorrupt(&err)
	return r.record(b, row), nil
}

// load reads the values of a column for chosen rows, which are those of the set.
func (g *Group) load(ctx context.Context, leaf int, kind Kind, rows Bits, chosen []int32, v *vector) error {
	if g.nulls(leaf) == int64(g.Rows) {
		v.has = make([]byte, len(chosen))
		if kind == Text {
			v.ends = make([]uint32, len(chosen))
		}
		return nil
	}
	if kind == Bool {
		rows = nil // a page of bits can't begin in the middle
	}
	next := 0
	v.has = make([]byte, 0, len(chosen))
	var place []int32 // of the rows' values in the page
	err := g.pages(ctx, leaf, rows, func(row int, p parquet.Page) (bool, error) {
		end := row + int(p.NumRows())
		place = place[:0]
		if p.NumNulls() > 0 {
			n := int32(0)
			for _, level := range p.DefinitionLevels() {
				if level == 0 {
					place = append(place, -1)
					continue
				}
				place = append(place, n)
				n++
			}
		}
		values := p.Data()
		var codes []int32
		if d := p.Dictionary(); d != nil {
			codes = values.Int32()
			values = d.Page().Data()
		}
		var data, packed []byte
		var offsets []uint32
		var doubles []float64
		var ints []int64
		if p.NumNulls() < p.NumValues() {
			switch kind {
			case Text:
				data, offsets = values.ByteArray()
			case Double:
				doubles = values.Double()
			case Bool:
				packed = values.Boolean()
			default:
				ints = values.Int64()
			}
		}
		for ; next < len(chosen) && int(chosen[next]) < end; next++ {
			i := chosen[next] - int32(row)
			if len(place) > 0 {
				i = place[i]
			}
			if i < 0 {
				v.appendNull(kind)
				continue
			}
			if codes != nil {
				i = codes[i]
			}
			v.has = append(v.has, 1)
			switch kind {
			case Text:
				v.text = append(v.text, data[offsets[i]:offsets[i+1]]...)
				v.ends = append(v.ends, uint32(len(v.text)))
			case Double:
				v.numbers = append(v.numbers, doubles[i])
			case Bool:
				v.ints = append(v.ints, int64(packed[i>>3]>>(i&7)&1))
			default:
				v.ints = append(v.ints, ints[i])
			}
		}
		return next < len(chosen), nil
	})
	if err == nil && next < len(chosen) {
		err = fmt.Errorf("%w: a column ends before its rows", ErrCorrupt)
	}
	return err
}

// parquetMagic begins a Parquet file, and ends it.
const parquetMagic = "PAR1"

// Verify reads the whole file, puts every record together and compares the rows with those that the Writer was given. It returns how many
// rows there are.
func (f *File) Verify(ctx context.Context) (rows int, err error) {
	// Other programs look at the first bytes, and nothing here does else.
	begin := make([]byte, len(parquetMagic))
	if n, err := f.reader.ReadAt(ctx, begin, 0); n < len(begin) {
		return 0, fmt.Errorf("read the beginning of the file: %w", err)
	}
	if string(begin) != parquetMagic {
		return 0, fmt.Errorf("%w: it begins with %q, want %q", ErrCorrupt, begin, parquetMagic)
	}
	for i := range f.Groups {
		g := f.Group(i)
		hash := newRowHash()
		var previous []byte
		if err := g.Records(ctx, AllBits(g.Rows), func(r *Row) error {
			if previous != nil && bytes.Equal(previous, r.ID[:]) {
				return fmt.Errorf("%w: the id %x twice", ErrCorrupt, r.ID)
			}
			previous = append(previous[:0], r.ID[:]...)
			hash.add(r)
			rows++
			return nil
		}); err != nil {
			return rows, fmt.Errorf("row group %d: %w", i, err)
		}
		if hash.digest.Sum64() != g.Hash {
			return rows, fmt.Errorf("row group %d: %w: its rows are not those that were written", i, ErrCorrupt)
		}
	}
	return rows, nil
}
