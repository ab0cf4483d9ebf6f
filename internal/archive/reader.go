package archive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/format"
)

// ErrCorrupt is the error of a file that does not say what a Writer writes.
var ErrCorrupt = errors.New("not a file of the archive, or damaged")

// File is a file that is read. Its end is kept in memory: the page index, the Bloom filters, the marks of the row groups.
type File struct {
	Columns []Column
	Groups  []GroupMarks

	file   *parquet.File
	reader RangeReader // of the file, and of its end from memory
	tree   *tree
	// The places of the columns in the file.
	id, came, time, rest int
	leaves               []int // of Columns
}

// readBytes is how much of a column is read at once.
const readBytes = 256 << 10

// Open reads the end of a file of a size, tail bytes in one piece; see Summary.TailBytes. If tail is less, the rest is read when it is
// needed.
func Open(r io.ReaderAt, size, tail int64) (f *File, err error) {
	return open(context.Background(), plainReader{r}, size, tail)
}

// plainReader is a reader that does not wait.
type plainReader struct{ io.ReaderAt }

func (r plainReader) ReadAt(_ context.Context, b []byte, at int64) (int, error) {
	return r.ReaderAt.ReadAt(b, at)
}

func open(ctx context.Context, r RangeReader, size, tail int64) (f *File, err error) {
	defer recoverCorrupt(&err)
	tail = min(size, tail)
	end := make([]byte, tail)
	if _, err := r.ReadAt(ctx, end, size-tail); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the end of the file: %w", err)
	}
	reader := &tailReader{r, end, size - tail}
	own := &ownReader{RangeReader: reader, opening: &boundReader{RangeReader: reader, ctx: ctx}}
	// The first bytes of a file are not looked at: from a distant store they would take a round trip of their own.
	file, err := parquet.OpenFile(own, size, parquet.ReadBufferSize(readBytes), parquet.SkipMagicBytes(true))
	switch {
	case err != nil && own.opening.failed != nil:
		return nil, fmt.Errorf("read the end of the file: %w", own.opening.failed)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	own.opening = nil
	f = &File{file: file, reader: reader}
	described, _ := file.Lookup(columnsKey)
	var marks fileMarks
	if err := json.Unmarshal([]byte(described), &marks); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrCorrupt, columnsKey, err)
	}
	if marks.Version > formatVersion {
		return nil, fmt.Errorf("the file has format %d; this program reads formats up to %d", marks.Version, formatVersion)
	}
	groups, _ := file.Lookup(groupsKey)
	if err := json.Unmarshal([]byte(groups), &f.Groups); err != nil && len(file.RowGroups()) > 0 {
		return nil, fmt.Errorf("%w: %s: %w", ErrCorrupt, groupsKey, err)
	}
	if len(f.Groups) != len(file.RowGroups()) {
		return nil, fmt.Errorf("%w: marks of %d row groups, there are %d", ErrCorrupt, len(f.Groups), len(file.RowGroups()))
	}
	leaf := func(name string, kind parquet.Kind) (int, error) {
		column, ok := file.Schema().Lookup(name)
		if !ok || column.Node.Type().Kind() != kind {
			return 0, fmt.Errorf("%w: no column %q of type %s", ErrCorrupt, name, kind)
		}
		return column.ColumnIndex, nil
	}
	for _, own := range []struct {
		at   *int
		name string
		kind parquet.Kind
	}{{&f.id, idColumn, parquet.FixedLenByteArray}, {&f.came, cameColumn, parquet.Int64}, {&f.time, timeColumn, parquet.Int64}, {&f.rest, restColumn, parquet.ByteArray}} {
		if *own.at, err = leaf(own.name, own.kind); err != nil {
			return nil, err
		}
	}
	for _, c := range marks.Columns {
		kind, ok := ParseKind(c.Kind)
		if !ok || c.Form > Trimmed {
			return nil, fmt.Errorf("%w: a column of kind %q, form %d", ErrCorrupt, c.Kind, c.Form)
		}
		column := Column{Name: strings.Join(c.Path, "."), Path: c.Path, Kind: kind, Form: c.Form}
		physical := [kinds]parquet.Kind{parquet.ByteArray, parquet.Double, parquet.Int64, parquet.Boolean, parquet.Int64, parquet.Int64}[kind]
		at, err := leaf(column.Name, physical)
		if err != nil {
			return nil, err
		}
		f.Columns, f.leaves = append(f.Columns, column), append(f.leaves, at)
	}
	for i, g := range f.Groups {
		if int64(g.Rows) != file.RowGroups()[i].NumRows() || g.Rows > GroupRows || len(g.Sets) != len(f.Columns) || len(g.RestKeys) != 0 && len(g.RestKeys) != pathFilterBytes {
			return nil, fmt.Errorf("%w: marks of another row group", ErrCorrupt)
		}
	}
	f.tree = newTree(f.Columns)
	return f, nil
}

// recoverCorrupt makes an error of a panic: the Parquet reader has them for bytes that no writer writes.
func recoverCorrupt(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("%w: %v", ErrCorrupt, p)
	}
}

// tailReader reads what lies at the end of a file from memory.
type tailReader struct {
	RangeReader
	end []byte
	at  int64
}

func (r *tailReader) ReadAt(ctx context.Context, b []byte, at int64) (int, error) {
	if at < r.at {
		return r.RangeReader.ReadAt(ctx, b, at)
	}
	if at > r.at+int64(len(r.end)) {
		return 0, io.EOF
	}
	n := copy(b, r.end[at-r.at:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// boundReader reads for one goroutine until a context has ended, and keeps what went wrong.
type boundReader struct {
	RangeReader
	ctx    context.Context
	failed error
}

func (r *boundReader) ReadAt(b []byte, at int64) (int, error) {
	n, err := r.RangeReader.ReadAt(r.ctx, b, at)
	if err != nil && err != io.EOF {
		r.failed = err
	}
	return n, err
}

// ownReader is what a parquet.File reads by itself: while it is opened, and later what the end that was kept lacks.
type ownReader struct {
	RangeReader
	opening *boundReader // nil: the file is open
}

func (r *ownReader) ReadAt(b []byte, at int64) (int, error) {
	if r.opening != nil {
		return r.opening.ReadAt(b, at)
	}
	return r.RangeReader.ReadAt(context.Background(), b, at)
}

// Group is a row group that is read.
type Group struct {
	*GroupMarks
	File *File

	index  int
	chunks []parquet.ColumnChunk
}

// Group returns a row group.
func (f *File) Group(i int) *Group {
	return &Group{GroupMarks: &f.Groups[i], File: f, index: i, chunks: f.file.RowGroups()[i].ColumnChunks()}
}

// seekRows is how far the next row of a set must be for the pages up to it to be skipped.
const seekRows = 1024

// pages calls f with pages of a column, in order, and the row that each begins with. They hold all rows of the set, which may be nil for
// all rows. f returns false to end.
func (g *Group) pages(ctx context.Context, leaf int, rows Bits, f func(row int, p parquet.Page) (bool, error)) (err error) {
	reader := &boundReader{RangeReader: g.File.reader, ctx: ctx}
	defer func() {
		if err != nil && reader.failed != nil {
			err = fmt.Errorf("read a page: %w", reader.failed)
		}
	}()
	defer recoverCorrupt(&err)
	chunk, ok := g.chunks[leaf].(*parquet.FileColumnChunk)
	if !ok {
		return fmt.Errorf("%w: a column that is in no file", ErrCorrupt)
	}
	pages := chunk.PagesFrom(reader)
	defer pages.Close()
	for row := 0; row < g.Rows; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if rows != nil {
			next := rows.Next(row)
			if next < 0 {
				return nil
			}
			if next -= next % 64; next-row >= seekRows { // whole bytes of what is packed in bits
				if err := pages.SeekToRow(int64(next)); err != nil {
					return fmt.Errorf("%w: %w", ErrCorrupt, err)
				}
				row = next
			}
		}
		p, err := pages.ReadPage()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return fmt.Errorf("%w: %d of %d rows in a column", ErrCorrupt, row, g.Rows)
			}
			return fmt.Errorf("read a page: %w", err)
		}
		n := int(p.NumRows())
		if n <= 0 || row+n > g.Rows || p.NumValues() != int64(n) {
			parquet.Release(p)
			return fmt.Errorf("%w: a page of %d rows at %d of %d", ErrCorrupt, n, row, g.Rows)
		}
		more, err := f(row, p)
		row += n
		parquet.Release(p)
		if !more || err != nil {
			return err
		}
	}
	return nil
}

// places tells which rows the values of a page have. Nulls are no values.
type places struct {
	row  int     // the page's first
	rows []int32 // of the values, counted from row; nil: each row has one
}

// placesOf returns those of a page that begins with a row. They use the memory of buffer.
func placesOf(row int, p parquet.Page, buffer *[]int32) places {
	if p.NumNulls() == 0 {
		return places{row: row}
	}
	rows := (*buffer)[:0]
	for i, level := range p.DefinitionLevels() {
		if level > 0 {
			rows = append(rows, int32(i))
		}
	}
	*buffer = rows
	return places{row, rows}
}

// Row returns the row of the i-th value.
func (p *places) Row(i int) int {
	if p.rows == nil {
		return p.row + i
	}
	return p.row + int(p.rows[i])
}

// setter returns a function that adds the row of the i-th value to a set.
func (p *places) setter(out Bits) func(i int) {
	row, rows := p.row, p.rows
	if rows == nil {
		return func(i int) { out.Set(row + i) }
	}
	return func(i int) { out.Set(row + int(rows[i])) }
}

// setByCodes calls set with the values of a page whose code in the dictionary satisfies a test.
func setByCodes(p parquet.Page, verdicts []bool, set func(i int)) {
	values := p.Data()
	for i, code := range values.Int32() {
		if verdicts[code] {
			set(i)
		}
	}
}

// idsOf returns the ids of a page, 16 bytes each.
func idsOf(p parquet.Page) ([]byte, error) {
	values := p.Data()
	data, size := values.FixedLenByteArray()
	if size != 16 {
		return nil, fmt.Errorf("%w: ids of %d bytes", ErrCorrupt, size)
	}
	return data, nil
}

// TextTest is a test of texts.
type TextTest struct {
	// Match reports whether a text satisfies the test.
	Match func(text []byte) bool
	// Search, if it is not nil, does the same for many texts that lie side by side: text i is data[offsets[i]:offsets[i+1]]. It calls hit
	// for those that satisfy the test, in order.
	Search func(data []byte, offsets []uint32, hit func(i int))
}

// Texts adds the rows of a set to out whose text in a column satisfies a test. It may add further rows that satisfy it.
func (g *Group) Texts(ctx context.Context, column int, rows Bits, test TextTest, out Bits) error {
	return g.texts(ctx, g.File.leaves[column], rows, test, out)
}

func (g *Group) texts(ctx context.Context, leaf int, rows Bits, test TextTest, out Bits) error {
	var buffer []int32
	var verdicts []bool
	return g.pages(ctx, leaf, rows, func(row int, p parquet.Page) (bool, error) {
		if p.NumNulls() == p.NumValues() {
			return true, nil
		}
		at := placesOf(row, p, &buffer)
		set := at.setter(out)
		if d := p.Dictionary(); d != nil {
			if verdicts == nil {
				distinct := d.Page().Data()
				data, offsets := distinct.ByteArray()
				verdicts = make([]bool, d.Len())
				some := false
				if test.Search != nil {
					test.Search(data, offsets, func(i int) { verdicts[i], some = true, true })
				} else {
					for i := range verdicts {
						verdicts[i] = test.Match(data[offsets[i]:offsets[i+1]])
						some = some || verdicts[i]
					}
				}
				if !some && g.isDictionaryOnly(leaf) {
					return false, nil
				}
			}
			setByCodes(p, verdicts, set)
			return true, nil
		}
		values := p.Data()
		data, offsets := values.ByteArray()
		switch {
		case test.Search != nil:
			test.Search(data, offsets, set)
		case rows == nil:
			for i := range len(offsets) - 1 {
				if test.Match(data[offsets[i]:offsets[i+1]]) {
					set(i)
				}
			}
		default:
			for i := range len(offsets) - 1 {
				if rows.Has(at.Row(i)) && test.Match(data[offsets[i]:offsets[i+1]]) {
					set(i)
				}
			}
		}
		return true, nil
	})
}

// isDictionaryOnly reports whether all pages of a column have the dictionary.
func (g *Group) isDictionaryOnly(leaf int) bool {
	for _, s := range g.File.file.Metadata().RowGroups[g.index].Columns[leaf].MetaData.EncodingStats {
		if s.PageType != format.DictionaryPage && s.Encoding != format.RLEDictionary {
			return false
		}
	}
	return true
}

// numbers adds the rows of a set to out whose number in a column matches.
func numbers[V int64 | float64](g *Group, ctx context.Context, leaf int, rows Bits, of func(p parquet.Page) []V, match func(V) bool, out Bits) error {
	var buffer []int32
	var verdicts []bool
	return g.pages(ctx, leaf, rows, func(row int, p parquet.Page) (bool, error) {
		if p.NumNulls() == p.NumValues() {
			return true, nil
		}
		at := placesOf(row, p, &buffer)
		set := at.setter(out)
		if d := p.Dictionary(); d != nil {
			if verdicts == nil {
				for _, v := range of(d.Page()) {
					verdicts = append(verdicts, match(v))
				}
			}
			setByCodes(p, verdicts, set)
			return true, nil
		}
		for i, v := range of(p) {
			if match(v) {
				set(i)
			}
		}
		return true, nil
	})
}

func doublesOf(p parquet.Page) []float64 { d := p.Data(); return d.Double() }
func intsOf(p parquet.Page) []int64      { d := p.Data(); return d.Int64() }

// Doubles does what Texts does for a column of kind Double.
func (g *Group) Doubles(ctx context.Context, column int, rows Bits, match func(float64) bool, out Bits) error {
	return numbers(g, ctx, g.File.leaves[column], rows, doublesOf, match, out)
}

// Ints does what Texts does for a column of kind Integer, Micros or Nanos.
func (g *Group) Ints(ctx context.Context, column int, rows Bits, match func(int64) bool, out Bits) error {
	return numbers(g, ctx, g.File.leaves[column], rows, intsOf, match, out)
}

// Bools does what Texts does for a column of kind Bool.
func (g *Group) Bools(ctx context.Context, column int, rows Bits, match func(bool) bool, out Bits) error {
	is := [2]bool{match(false), match(true)}
	var buffer []int32
	return g.pages(ctx, g.File.leaves[column], nil, func(row int, p parquet.Page) (bool, error) {
		at := placesOf(row, p, &buffer)
		set := at.setter(out)
		values := p.Data()
		packed := values.Boolean()
		for i := range int(p.NumValues() - p.NumNulls()) {
			if is[packed[i>>3]>>(i&7)&1] {
				set(i)
			}
		}
		return true, nil
	})
}

// Present adds the rows that have a value in a column.
func (g *Group) Present(ctx context.Context, column int, rows Bits, out Bits) error {
	if g.nulls(g.File.leaves[column]) == 0 {
		out.SetRange(0, g.Rows)
		return nil
	}
	return g.pages(ctx, g.File.leaves[column], nil, func(row int, p parquet.Page) (bool, error) {
		if p.NumNulls() == 0 {
			out.SetRange(row, row+int(p.NumRows()))
			return true, nil
		}
		for i, level := range p.DefinitionLevels() {
			if level > 0 {
				out.Set(row + i)
			}
		}
		return true, nil
	})
}

// nulls returns how many rows have no value in a column, -1 if that is not known.
func (g *Group) nulls(leaf int) int64 {
	if chunk, ok := g.chunks[leaf].(*parquet.FileColumnChunk); ok {
		return chunk.NullCount()
	}
	return -1
}

// IsEmpty reports whether no row has a value in a column.
func (g *Group) IsEmpty(column int) bool { return g.nulls(g.File.leaves[column]) == int64(g.Rows) }

// MayHaveText reports whether a column of texts may have a text, by its least and greatest one and its Bloom filter.
func (g *Group) MayHaveText(column int, text string) (may bool, err error) {
	defer recoverCorrupt(&err)
	chunk, ok := g.chunks[g.File.leaves[column]].(*parquet.FileColumnChunk)
	if !ok {
		return true, nil
	}
	if least, greatest, ok := chunk.Bounds(); ok && (string(least.ByteArray()) > text || string(greatest.ByteArray()) < text) {
		return false, nil
	}
	if filter := chunk.BloomFilter(); filter != nil {
		return filter.Check(parquet.ByteArrayValue([]byte(text)))
	}
	return true, nil
}

// DoubleBounds returns the least and greatest number of a column of kind Double. ok is false if they are not known.
func (g *Group) DoubleBounds(column int) (least, greatest float64, ok bool) {
	if chunk, is := g.chunks[g.File.leaves[column]].(*parquet.FileColumnChunk); is {
		low, high, ok := chunk.Bounds()
		if ok {
			return low.Double(), high.Double(), true
		}
	}
	return 0, 0, false
}

// IntBounds does what DoubleBounds does for a column of kind Integer, Micros or Nanos.
func (g *Group) IntBounds(column int) (least, greatest int64, ok bool) {
	if chunk, is := g.chunks[g.File.leaves[column]].(*parquet.FileColumnChunk); is {
		low, high, ok := chunk.Bounds()
		if ok {
			return low.Int64(), high.Int64(), true
		}
	}
	return 0, 0, false
}

// MayHaveInRests reports whether the rest of a row may have a member at a path.
func (g *Group) MayHaveInRests(path []string) bool {
	if g.RestKeys == nil {
		return false
	}
	h := uint64(pathSeed)
	for _, name := range path {
		h = stepPath(h, []byte(name))
	}
	return pathFilter(g.RestKeys).has(h)
}

// MayHaveTextInRests reports whether a value in the rest of a row may have a text in it, in any case.
func (g *Group) MayHaveTextInRests(text string) bool {
	return g.RestRows > 0 && g.RestSet.admitsEscaped(text)
}

// RestPage is rests side by side: the i-th is Data[Offsets[i]:Offsets[i+1]]. It is good until the function that got it returns.
type RestPage struct {
	Data    []byte
	Offsets []uint32

	places
}

// Len returns how many rests there are.
func (p *RestPage) Len() int { return max(0, len(p.Offsets)-1) }

// Rest returns the i-th rest.
func (p *RestPage) Rest(i int) []byte { return p.Data[p.Offsets[i]:p.Offsets[i+1]] }

// RestPages calls f with the rests of rows, among them those of a set, which may be nil for all rows.
func (g *Group) RestPages(ctx context.Context, rows Bits, f func(p *RestPage) error) error {
	if g.RestRows == 0 {
		return nil
	}
	var buffer []int32
	return g.pages(ctx, g.File.rest, rows, func(row int, p parquet.Page) (bool, error) {
		if p.NumNulls() == p.NumValues() {
			return true, nil
		}
		rests := RestPage{places: placesOf(row, p, &buffer)}
		values := p.Data()
		rests.Data, rests.Offsets = values.ByteArray()
		return true, f(&rests)
	})
}

// Rests calls f with the rests of the rows of a set.
func (g *Group) Rests(ctx context.Context, rows Bits, f func(row int, rest []byte) error) error {
	return g.RestPages(ctx, rows, func(p *RestPage) error {
		for i := range p.Len() {
			if row := p.Row(i); rows == nil || rows.Has(row) {
				if err := f(row, p.Rest(i)); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// EachID calls f with each row and its id.
func (g *Group) EachID(ctx context.Context, f func(row int, id [16]byte)) error {
	return g.pages(ctx, g.File.id, nil, func(row int, p parquet.Page) (bool, error) {
		ids, err := idsOf(p)
		for i := 0; i+16 <= len(ids); i += 16 {
			f(row+i/16, [16]byte(ids[i:]))
		}
		return true, err
	})
}

// Axis is a time that rows have.
type Axis int

// The axes.
const (
	ByTime    Axis = iota // when the event happened; when the row came if it has no time of its own
	ByArrival             // inserted_at
)

// Bounds returns the first and the last time of the rows.
func (g *GroupMarks) Bounds(axis Axis) (first, last int64) {
	if axis == ByArrival {
		return g.MinCame, g.MaxCame
	}
	return g.MinTime, g.MaxTime
}

// Times sets times to those of all rows, in Unix microseconds, and returns it. It uses its memory.
func (g *Group) Times(ctx context.Context, axis Axis, times []int64) ([]int64, error) {
	times = slices.Grow(times[:0], g.Rows)
	if axis == ByArrival || g.OwnTimes < g.Rows {
		if err := g.pages(ctx, g.File.came, nil, func(_ int, p parquet.Page) (bool, error) {
			times = append(times, intsOf(p)...)
			return true, nil
		}); err != nil {
			return nil, err
		}
	}
	if axis == ByArrival || g.OwnTimes == 0 {
		return times, nil
	}
	times = times[:g.Rows]
	var buffer []int32
	err := g.pages(ctx, g.File.time, nil, func(row int, p parquet.Page) (bool, error) {
		if p.NumNulls() == 0 {
			copy(times[row:], intsOf(p))
			return true, nil
		}
		at := placesOf(row, p, &buffer)
		for i, v := range intsOf(p) {
			times[at.Row(i)] = v
		}
		return true, nil
	})
	return times, err
}

// DoubleValues returns the numbers of a column of kind Double by row, and the rows that have one: all such rows of a set, and maybe others.
func (g *Group) DoubleValues(ctx context.Context, column int, rows Bits) (values []float64, are Bits, err error) {
	values, are = make([]float64, g.Rows), NewBits(g.Rows)
	var buffer []int32
	err = g.pages(ctx, g.File.leaves[column], rows, func(row int, p parquet.Page) (bool, error) {
		var distinct []float64
		var codes []int32
		var plain []float64
		n := int(p.NumValues() - p.NumNulls())
		switch d := p.Dictionary(); {
		case n == 0:
			return true, nil
		case d != nil:
			data := p.Data()
			distinct, codes = doublesOf(d.Page()), data.Int32()
		default:
			plain = doublesOf(p)
		}
		at := placesOf(row, p, &buffer)
		if at.rows == nil {
			are.SetRange(row, row+n)
			copy(values[row:], plain)
			for i, code := range codes {
				values[row+i] = distinct[code]
			}
			return true, nil
		}
		for i, r := range at.rows {
			v := 0.0
			if codes != nil {
				v = distinct[codes[i]]
			} else {
				v = plain[i]
			}
			values[row+int(r)] = v
			are.Set(row + int(r))
		}
		return true, nil
	})
	return values, are, err
}

// Values returns the distinct values of a column as texts, and for each row the number of its value, -1 if it has none. Two numbers may
// have the same text.
func (g *Group) Values(ctx context.Context, column int) (texts []string, codes []int32, err error) {
	c := &g.File.Columns[column]
	var text func(p parquet.Page) func(i int) string
	var b []byte
	switch c.Kind {
	case Text:
		text = func(p parquet.Page) func(i int) string {
			values := p.Data()
			data, offsets := values.ByteArray()
			if p.Dictionary() != nil || len(offsets) == 0 {
				return func(i int) string { return string(data[offsets[i]:offsets[i+1]]) }
			}
			start := offsets[0]
			all := string(data[start:offsets[len(offsets)-1]]) // one piece of memory for all of them
			return func(i int) string { return all[offsets[i]-start : offsets[i+1]-start] }
		}
	case Double:
		text = func(p parquet.Page) func(i int) string {
			values := doublesOf(p)
			return func(i int) string { b = AppendDouble(b[:0], values[i], c.Form); return string(b) }
		}
	case Bool:
		text = func(p parquet.Page) func(i int) string {
			values := p.Data()
			packed := values.Boolean()
			return func(i int) string { return [2]string{"false", "true"}[packed[i>>3]>>(i&7)&1] }
		}
	case Integer:
		text = func(p parquet.Page) func(i int) string {
			values := intsOf(p)
			return func(i int) string { return strconv.FormatInt(values[i], 10) }
		}
	default:
		text = func(p parquet.Page) func(i int) string {
			values := intsOf(p)
			return func(i int) string { b = AppendTime(b[:0], values[i], c.Kind, c.Form); return string(b) }
		}
	}
	codes = make([]int32, 0, g.Rows)
	var known map[string]int32 // of pages without the dictionary
	hasDictionary := false
	err = g.pages(ctx, g.File.leaves[column], nil, func(row int, p parquet.Page) (bool, error) {
		var ofValues []int32
		if d := p.Dictionary(); d != nil {
			if !hasDictionary {
				hasDictionary = true
				at := text(d.Page())
				for i := range d.Len() {
					texts = append(texts, at(i))
				}
			}
			values := p.Data()
			ofValues = values.Int32()
		} else if n := int(p.NumValues() - p.NumNulls()); n > 0 {
			if known == nil {
				known = make(map[string]int32, g.Rows/2) // a column without a dictionary has many values
				for i, text := range texts {
					known[text] = int32(i)
				}
			}
			at := text(p)
			for i := range n {
				value := at(i)
				code, ok := known[value]
				if !ok {
					code = int32(len(texts))
					texts = append(texts, value)
					known[value] = code
				}
				ofValues = append(ofValues, code)
			}
		}
		if p.NumNulls() == 0 {
			codes = append(codes, ofValues...)
			return true, nil
		}
		i := 0
		for _, level := range p.DefinitionLevels() {
			if level == 0 {
				codes = append(codes, -1)
				continue
			}
			codes = append(codes, ofValues[i])
			i++
		}
		return true, nil
	})
	return texts, codes, err
}
