package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/parquet-go/parquet-go"
)

// Stored is a file as the catalog has it.
type Stored struct {
	Name             string
	Bytes, TailBytes int64
	FirstID, LastID  [16]byte
}

// OpenStored opens a file of a store. It fails if the file has another length than was written. The caller closes the object.
func OpenStored(ctx context.Context, store Store, s Stored) (*File, Object, error) {
	object, err := store.Open(ctx, s.Name, s.Bytes)
	if err != nil {
		return nil, nil, err
	}
	f, err := open(ctx, object, s.Bytes, s.TailBytes)
	if err != nil {
		return nil, nil, errors.Join(err, object.Close())
	}
	return f, object, nil
}

// FindRows calls found with the rows of files whose id lies in one of the ranges, each from its first id to its last one. It reads the
// pages that may have such an id, and of the files whose bounds leave them out nothing. A row is found's until it returns.
func FindRows(ctx context.Context, store Store, files []Stored, ranges [][2][16]byte, found func(r *Row) error) error {
	for _, s := range files {
		if !slices.ContainsFunc(ranges, func(r [2][16]byte) bool { return overlap(r, s.FirstID[:], s.LastID[:]) }) {
			continue
		}
		if err := findIn(ctx, store, s, ranges, found); err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
	}
	return nil
}

func findIn(ctx context.Context, store Store, s Stored, ranges [][2][16]byte, found func(r *Row) error) (err error) {
	f, object, err := OpenStored(ctx, store, s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, object.Close()) }()
	for i := range f.Groups {
		g := f.Group(i)
		rows, err := g.RowsOf(ctx, ranges)
		if err != nil {
			return err
		}
		if rows == nil {
			continue
		}
		if err := g.Records(ctx, rows, found); err != nil {
			return err
		}
	}
	return nil
}

// overlap reports whether a range of ids has one of those from first to last.
func overlap(r [2][16]byte, first, last []byte) bool {
	return bytes.Compare(r[0][:], last) <= 0 && bytes.Compare(r[1][:], first) >= 0
}

// RowsOf returns the rows whose id lies in one of the ranges, each from its first id to its last one; nil if there is none.
func (g *Group) RowsOf(ctx context.Context, ranges [][2][16]byte) (rows Bits, err error) {
	defer recoverCorrupt(&err)
	var near [][2][16]byte
	for _, r := range ranges {
		if overlap(r, g.MinID, g.MaxID) {
			near = append(near, r)
		}
	}
	if near == nil {
		return nil, nil
	}
	pages, err := g.pagesOf(near)
	if err != nil {
		return nil, err
	}
	// Ranges that don't overlap are searched by halving.
	slices.SortFunc(near, func(a, b [2][16]byte) int { return bytes.Compare(a[0][:], b[0][:]) })
	disjoint := true
	for i := range near[1:] {
		disjoint = disjoint && bytes.Compare(near[i][1][:], near[i+1][0][:]) < 0
	}
	has := func(id []byte) bool {
		if !disjoint {
			return slices.ContainsFunc(near, func(r [2][16]byte) bool { return overlap(r, id, id) })
		}
		at, exact := slices.BinarySearchFunc(near, id, func(r [2][16]byte, id []byte) int { return bytes.Compare(r[0][:], id) })
		return exact || at > 0 && bytes.Compare(near[at-1][1][:], id) >= 0
	}
	err = g.pages(ctx, g.File.id, pages, func(row int, p parquet.Page) (bool, error) {
		ids, err := idsOf(p)
		for i := 0; i+16 <= len(ids); i += 16 {
			if has(ids[i : i+16]) {
				if rows == nil {
					rows = NewBits(g.Rows)
				}
				rows.Set(row + i/16)
			}
		}
		return true, err
	})
	return rows, err
}

// pagesOf returns the rows of the pages that may have an id of the ranges, by the least and the greatest id of each page.
func (g *Group) pagesOf(ranges [][2][16]byte) (Bits, error) {
	column, err := g.chunks[g.File.id].ColumnIndex()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	offsets, err := g.chunks[g.File.id].OffsetIndex()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	rows := NewBits(g.Rows)
	for i := range offsets.NumPages() {
		from, to := int(offsets.FirstRowIndex(i)), g.Rows
		if i+1 < offsets.NumPages() {
			to = int(offsets.FirstRowIndex(i + 1))
		}
		if from < 0 || to > g.Rows || from > to {
			return nil, fmt.Errorf("%w: a page from row %d to %d of %d", ErrCorrupt, from, to, g.Rows)
		}
		first, last := column.MinValue(i).ByteArray(), column.MaxValue(i).ByteArray()
		if slices.ContainsFunc(ranges, func(r [2][16]byte) bool { return overlap(r, first, last) }) {
			rows.SetRange(from, to)
		}
	}
	return rows, nil
}
