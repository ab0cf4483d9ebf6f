package columns

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"hash/maphash"
	"math"
	"slices"
	"strconv"
	"strings"

	"millrace/internal/archive"
	"millrace/query/language"
)

// Function is what a figure computes of the values of a field in the rows of a group.
type Function int

// The functions. They give what the SQL of stats gives for the same rows.
const (
	CountRows   Function = iota // rows; no field
	CountValues                 // rows that have a value, null among them
	Sum                         // of the numbers, exactly; a string that is a JSON number is one, here and below
	Average                     // of the numbers that a double holds
	Least                       // of the numbers, or else of the texts
	Greatest
	Quantile // of the numbers that a double holds
	Distinct // texts
	First    // value, by the time and the id of its row
	Last
	Share // of the rows satisfy a query
)

// Figure is a figure that a table has of each group.
type Figure struct {
	Function Function
	Field    []string
	Quantile float64        // from 0 to 1
	Query    language.Query // of Share
}

// TextCharacters is how many characters a table has of a value. Longer ones that begin the same are one group.
const TextCharacters = 1000

// ErrLarge is the error of a table that takes more memory than it may.
var ErrLarge = errors.New("the table is too large")

// Table computes figures of rows by the values of fields and by buckets of time. It keeps what figures need of the rows: nothing of a
// count, a double of each number for a quantile, a hash of each text for Distinct. It is used by one goroutine at a time.
type Table struct {
	by      [][]string
	figures []Figure
	edges   []int64 // where buckets begin, and where the last one ends; nil: there are none
	reserve func(bytes int) error

	fields []tableField

	groups   map[string]uint32
	keys     []string              // by group
	cellsOf  map[cellKey]uint32    // the cells of groups in buckets, if there are buckets; else a group is a cell
	cells    []cellKey             // by cell
	ofGroups [][]uint32            // the cells of each group; nil until it is asked for
	counts   []int64               // rows by cell
	states   []state               // by figure; nil for CountRows
	keyBytes int                   // of keys
	reserved int                   // bytes
	hash     [2]maphash.Seed       // of texts
	needs    struct{ at, id bool } // of rows
}

// tableField is a field that figures are of.
type tableField struct {
	path  []string
	needs fieldNeeds
}

// cellKey is a group in a bucket.
type cellKey struct{ group, bucket uint32 }

// NewTable returns a table without rows. edges are nil, or where its buckets begin, and where the last one ends, in Unix microseconds.
// reserve is told how many bytes the table takes whenever it has grown, and its error ends the computation.
func NewTable(by [][]string, figures []Figure, edges []int64, reserve func(bytes int) error) *Table {
	t := &Table{by: by, figures: figures, edges: edges, reserve: reserve, groups: make(map[string]uint32), hash: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}}
	if edges != nil {
		t.cellsOf = make(map[cellKey]uint32)
	}
	t.needs.at = edges != nil
	for _, f := range figures {
		field := -1
		if f.Field != nil {
			field = slices.IndexFunc(t.fields, func(known tableField) bool { return slices.Equal(known.path, f.Field) })
			if field < 0 {
				field = len(t.fields)
				t.fields = append(t.fields, tableField{f.Field, fieldNeeds{kinds: true, doubles: true}})
			}
		}
		var s state
		switch f.Function {
		case CountRows:
		case CountValues:
			s = &valueCounts{field: field}
		case Sum:
			s = &sums{field: field}
		case Average:
			s = &sums{field: field, average: true}
		case Least, Greatest:
			s = &extremes{field: field, greatest: f.Function == Greatest}
		case Quantile:
			log := &numberLog{field: field}
			s = quantiles{log, f.Quantile}
			for _, known := range t.states {
				if q, is := known.(quantiles); is && q.field == field {
					s = sharedLog{quantiles{q.numberLog, f.Quantile}}
				}
			}
		case Distinct:
			s = &distinct{field: field, seeds: t.hash}
			t.fields[field].needs.doubles = false
		case First, Last:
			s = &edgeValues{field: field, last: f.Function == Last}
			t.fields[field].needs.doubles = false
			t.needs.at, t.needs.id = true, true
		case Share:
			s = &shares{number: len(t.states)}
		}
		t.states = append(t.states, s)
	}
	if len(by) == 0 && edges == nil { // there is a row even of no records
		t.cell(t.group(nil), 0)
		for _, s := range t.states {
			if s != nil {
				s.grow(1)
			}
		}
	}
	return t
}

// batch is rows that are added to a table.
type batch struct {
	rows   archive.Bits
	times  []int64        // by row; nil: all are in one bucket, and none are needed
	ids    [][16]byte     // by row; nil: none are needed
	bucket int            // if times are nil
	by     []fieldValues  // by field of the table's by
	fields []fieldValues  // by field of the table
	shares []archive.Bits // by figure: the rows that satisfy its query
	count  int            // of rows
	cells  []uint32       // of the rows in their order
}

// each calls f with the rows and their cells.
func (b *batch) each(f func(row int, cell uint32)) {
	i := 0
	b.rows.Each(func(row int) {
		f(row, b.cells[i])
		i++
	})
}

// add adds rows.
func (t *Table) add(b *batch) error {
	t.findCells(b)
	for _, cell := range b.cells {
		t.counts[cell]++
	}
	size := t.keyBytes + len(t.keys)*64 + len(t.cells)*24
	for _, s := range t.states {
		if s != nil {
			s.grow(len(t.cells))
			s.add(b)
			size += s.bytes()
		}
	}
	if size > t.reserved {
		t.reserved = size
		return t.reserve(size)
	}
	return nil
}

// findCells sets the cells of the batch's rows, and makes those that are new.
func (t *Table) findCells(b *batch) {
	b.count = b.rows.Count()
	b.cells = make([]uint32, 0, b.count)
	// The groups first, by the codes of the batch: most are met many times.
	switch len(b.by) {
	case 0:
		group := t.group(nil)
		for range b.count {
			b.cells = append(b.cells, group)
		}
	case 1:
		known := make([]uint32, len(b.by[0].texts)+1) // the group and one, by code and one
		var key []byte
		b.rows.Each(func(row int) {
			code := b.by[0].codes[row]
			if known[code+1] == 0 {
				key = b.by[0].appendKey(key[:0], code)
				known[code+1] = t.group(key) + 1
			}
			b.cells = append(b.cells, known[code+1]-1)
		})
	default:
		// Codes of several fields are numbered pair by pair.
		pairs := make([]map[[2]uint32]uint32, len(b.by))
		for i := range pairs {
			pairs[i] = make(map[[2]uint32]uint32)
		}
		last := len(b.by) - 1
		var key []byte
		b.rows.Each(func(row int) {
			n := uint32(b.by[0].codes[row] + 1)
			for i := 1; i <= last; i++ {
				pair := [2]uint32{n, uint32(b.by[i].codes[row] + 1)}
				next, ok := pairs[i][pair]
				if !ok {
					if i < last {
						next = uint32(len(pairs[i]))
					} else {
						key = key[:0]
						for f := range b.by {
							key = b.by[f].appendKey(key, b.by[f].codes[row])
						}
						next = t.group(key)
					}
					pairs[i][pair] = next
				}
				n = next
			}
			b.cells = append(b.cells, n)
		})
	}
	if t.edges == nil {
		for _, group := range b.cells {
			t.cell(group, 0)
		}
		return
	}
	i, current := 0, b.bucket
	b.rows.Each(func(row int) {
		if b.times != nil {
			if at := b.times[row]; at < t.edges[current] || at >= t.edges[current+1] {
				current = bucketOf(t.edges, at)
			}
		}
		b.cells[i] = t.cell(b.cells[i], uint32(current))
		i++
	})
}

// cell returns the cell of a group in a bucket.
func (t *Table) cell(group, bucket uint32) uint32 {
	if t.edges == nil {
		if int(group) == len(t.cells) { // groups come one after the other
			t.cells = append(t.cells, cellKey{group, 0})
			t.counts = append(t.counts, 0)
		}
		return group
	}
	key := cellKey{group, bucket}
	cell, ok := t.cellsOf[key]
	if !ok {
		cell = uint32(len(t.cells))
		t.cellsOf[key] = cell
		t.cells = append(t.cells, key)
		t.counts = append(t.counts, 0)
	}
	return cell
}

// group returns the group with a key.
func (t *Table) group(key []byte) uint32 {
	group, ok := t.groups[string(key)]
	if !ok {
		group = uint32(len(t.keys))
		t.keys = append(t.keys, string(key))
		t.groups[t.keys[group]] = group
		t.keyBytes += len(key)
	}
	return group
}

// appendKey appends a value as keys have it: its length and one, or 0 if there is none, and what a table has of it.
func (v *fieldValues) appendKey(key []byte, code int32) []byte {
	if code < 0 {
		return append(key, 0)
	}
	text := CutText(v.texts[code])
	return append(binary.AppendUvarint(key, uint64(len(text))+1), text...)
}

// CutText returns what a table has of a text.
func CutText(text string) string {
	if len(text) <= TextCharacters {
		return text
	}
	n := 0
	for i := range text {
		if n == TextCharacters {
			return text[:i]
		}
		n++
	}
	return text
}

// Groups returns how many groups there are.
func (t *Table) Groups() int { return len(t.keys) }

// Key returns the values of a group's fields. A group may have none of a field.
func (t *Table) Key(group int) (values []string, has []bool) {
	key := []byte(t.keys[group])
	for range t.by {
		n, size := binary.Uvarint(key)
		key = key[size:]
		if has = append(has, n > 0); n > 0 {
			values = append(values, string(key[:n-1]))
			key = key[n-1:]
		} else {
			values = append(values, "")
		}
	}
	return values, has
}

// Done must be called when all rows are there, before figures are asked for.
func (t *Table) Done() {
	t.ofGroups = make([][]uint32, len(t.keys))
	for cell, key := range t.cells {
		t.ofGroups[key.group] = append(t.ofGroups[key.group], uint32(cell))
	}
	for _, s := range t.states {
		if s != nil {
			s.done(len(t.cells))
		}
	}
}

// Cells returns the cells of a group. Without buckets it is one.
func (t *Table) Cells(group int) []uint32 { return t.ofGroups[group] }

// Bucket returns the number of a cell's bucket.
func (t *Table) Bucket(cell uint32) int { return int(t.cells[cell].bucket) }

// Value returns a figure of some cells together.
func (t *Table) Value(figure int, cells []uint32) Value {
	rows := int64(0)
	for _, cell := range cells {
		rows += t.counts[cell]
	}
	if t.figures[figure].Function == CountRows {
		return ofDouble(float64(rows))
	}
	return t.states[figure].value(cells, rows)
}

// Value is the value of a figure. The zero Value is null.
type Value struct {
	Is bool

	kind   valueKind // isNull is that of JSON
	double float64   // the nearest to a number
	text   string    // of a string itself, else JSON; of a number it may be empty: then it is that of double
}

func ofDouble(f float64) Value {
	if f == 0 {
		f = 0 // not -0
	}
	return Value{Is: true, kind: isNumber, double: f}
}

func ofDecimal(text string) Value {
	f, _ := strconv.ParseFloat(text, 64)
	return Value{Is: true, kind: isNumber, double: f, text: text}
}

// NumberOf returns a number as a figure has it.
func NumberOf(f float64) Value { return ofDouble(f) }

// Number returns the number that the value is as JSON. ok is false if it is none.
func (v *Value) Number() (text string, ok bool) { return string(v.JSON()), v.Is && v.kind == isNumber }

// JSON returns the value as PostgreSQL writes it, and null if there is none.
func (v *Value) JSON() []byte {
	switch {
	case !v.Is || v.kind == isNull:
		return []byte("null")
	case v.kind == isString:
		return archive.AppendString(nil, []byte(v.text))
	case v.text == "":
		return strconv.AppendFloat(nil, v.double, 'f', -1, 64)
	}
	return []byte(v.text)
}

// Text returns the value's text, as #>> does. ok is false if there is none.
func (v *Value) Text() (text string, ok bool) {
	switch {
	case !v.Is || v.kind == isNull:
		return "", false
	case v.kind == isString:
		return v.text, true
	}
	return string(v.JSON()), true
}

// rank orders values of different kinds, as jsonb does.
func (v *Value) rank() int {
	switch {
	case v.kind == isNull:
		return 0
	case v.kind == isString:
		return 1
	case v.kind == isNumber:
		return 2
	case v.text[0] == '[':
		return 4
	case v.text[0] == '{':
		return 5
	}
	return 3 // true, false
}

// Compare orders two values that are: by their kinds, numbers by their sizes, others by their texts.
func (v *Value) Compare(o *Value) int {
	if n := cmp.Compare(v.rank(), o.rank()); n != 0 {
		return n
	}
	if v.kind == isNumber {
		if n := cmp.Compare(v.double, o.double); n != 0 || v.text == "" && o.text == "" {
			return n
		}
		a, b := string(v.JSON()), string(o.JSON())
		return cmp.Or(language.CompareNumbers(a, b), cmp.Compare(a, b))
	}
	return cmp.Compare(v.text, o.text)
}

// state is what a figure keeps.
type state interface {
	grow(cells int)                         // has so many cells from now on
	add(b *batch)                           // adds rows
	bytes() int                             // that it takes
	done(cells int)                         // all rows are there
	value(cells []uint32, rows int64) Value // of cells with so many rows
}

// grown returns a slice with so many elements.
func grown[T any](s []T, n int) []T {
	if n <= len(s) {
		return s
	}
	return slices.Grow(s, n-len(s))[:n]
}

// valueCounts are of CountValues.
type valueCounts struct {
	field  int
	counts []int64
}

func (s *valueCounts) grow(cells int) { s.counts = grown(s.counts, cells) }
func (s *valueCounts) bytes() int     { return 8 * cap(s.counts) }
func (s *valueCounts) done(int)       {}

func (s *valueCounts) add(b *batch) {
	v := &b.fields[s.field]
	b.each(func(row int, cell uint32) {
		if v.codes[row] >= 0 || v.isDouble != nil && v.isDouble.Has(row) {
			s.counts[cell]++
		}
	})
}

func (s *valueCounts) value(cells []uint32, _ int64) Value {
	n := int64(0)
	for _, cell := range cells {
		n += s.counts[cell]
	}
	return ofDouble(float64(n))
}

// shares are of Share.
type shares struct {
	number int // of the figure
	counts []int64
}

func (s *shares) grow(cells int) { s.counts = grown(s.counts, cells) }
func (s *shares) bytes() int     { return 8 * cap(s.counts) }
func (s *shares) done(int)       {}

func (s *shares) add(b *batch) {
	are := b.shares[s.number]
	b.each(func(row int, cell uint32) {
		if are.Has(row) {
			s.counts[cell]++
		}
	})
}

func (s *shares) value(cells []uint32, rows int64) Value {
	n := int64(0)
	for _, cell := range cells {
		n += s.counts[cell]
	}
	if rows == 0 {
		return Value{}
	}
	return ofDouble(float64(n) / float64(rows))
}

// sums are of Sum and Average.
type sums struct {
	field   int
	average bool
	sums    []sum
}

func (s *sums) grow(cells int) { s.sums = grown(s.sums, cells) }
func (s *sums) bytes() int     { return 56 * cap(s.sums) }
func (s *sums) done(int)       {}

func (s *sums) add(b *batch) {
	v := &b.fields[s.field]
	b.each(func(row int, cell uint32) {
		if v.isDouble != nil && v.isDouble.Has(row) {
			s.sums[cell].addDouble(v.doubles[row])
		} else if code := v.codes[row]; code >= 0 {
			if n := v.number(code); n.is && (n.isDouble || !s.average) {
				s.sums[cell].add(n)
			}
		}
	})
}

func (s *sums) value(cells []uint32, _ int64) Value {
	all := &s.sums[cells[0]]
	if len(cells) > 1 {
		all = new(sum)
		for _, cell := range cells {
			all.merge(&s.sums[cell])
		}
	}
	switch {
	case all.n == 0:
		return Value{}
	case s.average:
		total := all.total().double()
		switch {
		case math.Abs(total) > 1e308: // the bounds of the SQL
			return Value{}
		case math.Abs(total) < 1e-300:
			total = 0
		}
		return ofDouble(total / float64(all.n))
	}
	return ofDecimal(all.total().String())
}

// extremes are of Least and Greatest.
type extremes struct {
	field    int
	greatest bool
	all      []extreme
	texts    int // bytes of texts
}

// extreme is the least or greatest of some values.
type extreme struct {
	hasNumber, hasText bool
	double             float64 // the nearest to the number
	number             string  // JSON; empty: that of double
	text               string
}

func (s *extremes) grow(cells int) { s.all = grown(s.all, cells) }
func (s *extremes) bytes() int     { return 48*cap(s.all) + s.texts }
func (s *extremes) done(int)       {}

// isBetter reports whether a value, by its comparison with the one that is kept, takes its place.
func (s *extremes) isBetter(n int) bool { return n < 0 && !s.greatest || n > 0 && s.greatest }

// numberText returns the extreme number as JSON.
func (e *extreme) numberText() string {
	if e.number != "" {
		return e.number
	}
	return string(archive.AppendDouble(nil, e.double, 0))
}

func (s *extremes) addDouble(e *extreme, v float64) {
	n := cmp.Compare(v, e.double)
	if n == 0 && e.number != "" { // it may be only about the same
		n = language.CompareNumbers(string(archive.AppendDouble(nil, v, 0)), e.number)
	}
	if !e.hasNumber || s.isBetter(n) {
		s.texts -= len(e.number)
		e.hasNumber, e.double, e.number = true, v, ""
	}
}

func (s *extremes) addNumber(e *extreme, double float64, text string) {
	n := cmp.Compare(double, e.double)
	if n == 0 && e.hasNumber {
		n = language.CompareNumbers(text, e.numberText())
	}
	if !e.hasNumber || s.isBetter(n) {
		s.texts += len(text) - len(e.number)
		e.hasNumber, e.double, e.number = true, double, strings.Clone(text)
	}
}

func (s *extremes) addText(e *extreme, text string) {
	if !e.hasText || s.isBetter(cmp.Compare(text, e.text)) {
		s.texts += len(text) - len(e.text)
		e.hasText, e.text = true, strings.Clone(text) // the group's memory is not kept
	}
}

func (s *extremes) add(b *batch) {
	v := &b.fields[s.field]
	b.each(func(row int, cell uint32) {
		e := &s.all[cell]
		if v.isDouble != nil && v.isDouble.Has(row) {
			s.addDouble(e, v.doubles[row])
			return
		}
		code := v.codes[row]
		switch {
		case code < 0 || v.kinds[code] == isNull:
		case v.number(code).is:
			s.addNumber(e, v.number(code).double, v.texts[code])
		case !e.hasNumber: // else texts count no more
			s.addText(e, CutText(v.texts[code]))
		}
	})
}

func (s *extremes) value(cells []uint32, _ int64) Value {
	all := s.all[cells[0]]
	for _, cell := range cells[1:] {
		o := &s.all[cell]
		if o.hasNumber {
			s.addNumber(&all, o.double, o.numberText())
		}
		if o.hasText {
			s.addText(&all, o.text)
		}
	}
	switch {
	case all.hasNumber:
		return ofDecimal(plainNumber(all.numberText()))
	case all.hasText:
		return Value{Is: true, kind: isString, text: all.text}
	}
	return Value{}
}

// distinct are of Distinct: pairs of a cell and the hash of a text. Two texts with one hash of 128 bits are not to be expected.
type distinct struct {
	field  int
	seeds  [2]maphash.Seed
	met    map[hashed]struct{}
	starts []int // by cell, in hashes, when all are there
	hashes [][2]uint64
}

type hashed struct {
	cell uint32
	hash [2]uint64
}

func (s *distinct) grow(int)   {}
func (s *distinct) bytes() int { return 72 * len(s.met) }

func (s *distinct) add(b *batch) {
	v := &b.fields[s.field]
	if s.met == nil {
		s.met = make(map[hashed]struct{})
	}
	hashes := make([][2]uint64, len(v.texts))
	var seen archive.Bits // pairs of a cell and a code, if those are few
	cells := uint32(0)
	for _, cell := range b.cells {
		cells = max(cells, cell+1)
	}
	few := int(cells)*len(v.texts) <= 1<<20
	if few {
		seen = archive.NewBits(int(cells) * len(v.texts))
	}
	b.each(func(row int, cell uint32) {
		code := v.codes[row]
		if code < 0 || v.kinds[code] == isNull {
			return
		}
		if few {
			pair := int(cell)*len(v.texts) + int(code)
			if seen.Has(pair) {
				return
			}
			seen.Set(pair)
		}
		h := &hashes[code]
		if *h == [2]uint64{} {
			*h = [2]uint64{maphash.String(s.seeds[0], v.texts[code]), maphash.String(s.seeds[1], v.texts[code])}
		}
		s.met[hashed{cell, *h}] = struct{}{}
	})
}

func (s *distinct) done(cells int) {
	s.starts = make([]int, cells+1)
	for h := range s.met {
		s.starts[h.cell+1]++
	}
	for i := range cells {
		s.starts[i+1] += s.starts[i]
	}
	s.hashes = make([][2]uint64, len(s.met))
	next := slices.Clone(s.starts)
	for h := range s.met {
		s.hashes[next[h.cell]] = h.hash
		next[h.cell]++
	}
	s.met = nil
}

func (s *distinct) value(cells []uint32, _ int64) Value {
	if len(cells) == 1 {
		return ofDouble(float64(s.starts[cells[0]+1] - s.starts[cells[0]]))
	}
	all := make(map[[2]uint64]struct{})
	for _, cell := range cells {
		for _, h := range s.hashes[s.starts[cell]:s.starts[cell+1]] {
			all[h] = struct{}{}
		}
	}
	return ofDouble(float64(len(all)))
}

// edgeValues are of First and Last.
type edgeValues struct {
	field int
	last  bool
	all   []edgeValue
	texts int
}

// edgeValue is the value of the first row, or the last.
type edgeValue struct {
	has  bool
	at   int64
	id   [16]byte
	kind valueKind
	text string
}

func (s *edgeValues) grow(cells int) { s.all = grown(s.all, cells) }
func (s *edgeValues) bytes() int     { return 56*cap(s.all) + s.texts }
func (s *edgeValues) done(int)       {}

// compare orders values by time and id, then by their JSON.
func (e *edgeValue) compare(o *edgeValue) int {
	if n := cmp.Or(cmp.Compare(e.at, o.at), bytes.Compare(e.id[:], o.id[:])); n != 0 {
		return n
	}
	a, b := e.result(), o.result()
	return bytes.Compare(a.JSON(), b.JSON())
}

// result returns the value.
func (e *edgeValue) result() Value {
	switch {
	case !e.has:
		return Value{}
	case e.kind == isNumber:
		return ofDecimal(e.text)
	}
	return Value{Is: true, kind: e.kind, text: e.text}
}

// isBetter reports whether another value takes e's place.
func (s *edgeValues) isBetter(e, o *edgeValue) bool {
	n := 0
	if e.has {
		n = o.compare(e)
	}
	return !e.has || n < 0 && !s.last || n > 0 && s.last
}

func (s *edgeValues) add(b *batch) {
	v := &b.fields[s.field]
	b.each(func(row int, cell uint32) {
		e, code := &s.all[cell], v.codes[row]
		if at := b.times[row]; code < 0 || e.has && (at > e.at && !s.last || at < e.at && s.last) {
			return
		}
		o := edgeValue{true, b.times[row], b.ids[row], v.kinds[code], v.texts[code]}
		if len(o.text) > TextCharacters { // it is a string then, whatever it was
			o.kind, o.text = isString, CutText(o.text)
		}
		if s.isBetter(e, &o) {
			o.text = strings.Clone(o.text)
			s.texts += len(o.text) - len(e.text)
			*e = o
		}
	})
}

func (s *edgeValues) value(cells []uint32, _ int64) Value {
	var all edgeValue
	for _, cell := range cells {
		if e := &s.all[cell]; e.has && s.isBetter(&all, e) {
			all = *e
		}
	}
	return all.result()
}

// quantiles are of Quantile.
type quantiles struct {
	*numberLog
	of float64
}

// sharedLog is what another figure keeps already.
type sharedLog struct{ quantiles }

func (sharedLog) add(*batch) {}
func (sharedLog) bytes() int { return 0 }
func (sharedLog) done(int)   {}

// numberLog is the numbers of a field with their cells.
type numberLog struct {
	field   int
	cells   []uint32
	numbers []float64
	times   []uint32 // how often each is there; nil: once
	most    int      // how many there may be before equal ones are put together

	starts []int // by cell, in numbers, when all are there
}

// fewNumbers is how many numbers of a quantile are kept one by one.
var fewNumbers = 1 << 21

func (s *numberLog) grow(int)   {}
func (s *numberLog) bytes() int { return 12*cap(s.numbers) + 4*cap(s.times) }

func (s *numberLog) put(cell uint32, v float64) {
	s.cells, s.numbers = append(s.cells, cell), append(s.numbers, v)
	if s.times != nil {
		s.times = append(s.times, 1)
	}
}

func (s *numberLog) add(b *batch) {
	v := &b.fields[s.field]
	b.each(func(row int, cell uint32) {
		if v.isDouble != nil && v.isDouble.Has(row) {
			if d := v.doubles[row]; d == 0 || math.Abs(d) >= 1e-300 && math.Abs(d) <= 1e300 {
				s.put(cell, d)
			}
		} else if code := v.codes[row]; code >= 0 {
			if n := v.number(code); n.isDouble {
				s.put(cell, n.double)
			}
		}
	})
	if len(s.numbers) > max(s.most, fewNumbers) {
		cells := uint32(0)
		for _, cell := range s.cells {
			cells = max(cells, cell+1)
		}
		s.sort(int(cells))
		s.compact()
		s.most = 2 * len(s.numbers)
	}
}

// sort puts the numbers in the order of their cells, and within a cell in their own.
func (s *numberLog) sort(cells int) {
	s.starts = make([]int, cells+1)
	for _, cell := range s.cells {
		s.starts[cell+1]++
	}
	for i := range cells {
		s.starts[i+1] += s.starts[i]
	}
	next := slices.Clone(s.starts)
	numbers := make([]float64, len(s.numbers))
	var times []uint32
	if s.times != nil {
		times = make([]uint32, len(s.times))
	}
	for i, cell := range s.cells {
		to := next[cell]
		next[cell]++
		numbers[to] = s.numbers[i]
		if times != nil {
			times[to] = s.times[i]
		}
	}
	for cell := range cells {
		from, to := s.starts[cell], s.starts[cell+1]
		for i := from; i < to; i++ {
			s.cells[i] = uint32(cell)
		}
		if times == nil {
			slices.Sort(numbers[from:to])
		} else {
			sortCounted(numbers[from:to], times[from:to])
		}
	}
	s.numbers, s.times = numbers, times
}

// sortCounted sorts numbers, and how often each is there with them.
func sortCounted(numbers []float64, times []uint32) {
	type counted struct {
		v float64
		n uint32
	}
	all := make([]counted, len(numbers))
	for i, v := range numbers {
		all[i] = counted{v, times[i]}
	}
	slices.SortFunc(all, func(a, b counted) int { return cmp.Compare(a.v, b.v) })
	for i, c := range all {
		numbers[i], times[i] = c.v, c.n
	}
}

// compact puts equal numbers of a cell together. They must be sorted.
func (s *numberLog) compact() {
	if s.times == nil {
		s.times = make([]uint32, len(s.numbers))
		for i := range s.times {
			s.times[i] = 1
		}
	}
	n := 0
	for i := range s.numbers {
		if n > 0 && s.cells[n-1] == s.cells[i] && s.numbers[n-1] == s.numbers[i] && uint64(s.times[n-1])+uint64(s.times[i]) <= math.MaxUint32 {
			s.times[n-1] += s.times[i]
			continue
		}
		s.cells[n], s.numbers[n], s.times[n] = s.cells[i], s.numbers[i], s.times[i]
		n++
	}
	s.cells, s.numbers, s.times = s.cells[:n], s.numbers[:n], s.times[:n]
}

func (s *numberLog) done(cells int) { s.sort(cells) }

func (s quantiles) value(cells []uint32, _ int64) Value {
	from, to := s.starts[cells[0]], s.starts[cells[0]+1]
	numbers := s.numbers[from:to]
	var times []uint32
	if s.times != nil {
		times = s.times[from:to]
	}
	if len(cells) > 1 {
		numbers, times = nil, nil
		for _, cell := range cells {
			from, to := s.starts[cell], s.starts[cell+1]
			numbers = append(numbers, s.numbers[from:to]...)
			if s.times != nil {
				times = append(times, s.times[from:to]...)
			}
		}
		if s.times == nil {
			slices.Sort(numbers)
		} else {
			sortCounted(numbers, times)
		}
	}
	n := int64(len(numbers))
	if s.times != nil {
		n = 0
		for _, t := range times {
			n += int64(t)
		}
	}
	if n == 0 {
		return Value{}
	}
	at := func(i int64) float64 {
		if times == nil {
			return numbers[i]
		}
		for j, t := range times {
			if i -= int64(t); i < 0 {
				return numbers[j]
			}
		}
		panic("columns: a number beyond the last")
	}
	// As percentile_cont computes it.
	place := s.of * float64(n-1)
	low, high := math.Floor(place), math.Ceil(place)
	v := at(int64(low))
	if low != high {
		next := at(int64(high))
		v += float64(float64(place-low) * float64(next-v))
	}
	return ofDouble(v)
}
