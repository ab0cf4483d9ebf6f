package language

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/google/uuid"

	"millrace/internal/archive"
)

// Selector finds the rows of a query in the columns of the archive, the same rows as the query's Matcher and SQL. Many goroutines may use
// it at once.
//
// A record's values lie in columns and in its rest, each in one place. Every test of a query holds for a record when it holds for one of
// its values. So the rows of a test are those that a column has together with those that the rests have, and AND, OR and NOT work on sets
// of rows. No record is put together.
type Selector struct {
	root selection
	// tests are the tests of values in the query. A row group's rests are read once for all of them.
	tests []*valueTest
}

// Selector returns the selector of the query.
func (q Query) Selector() *Selector {
	s := new(Selector)
	s.root = s.compile(q.node())
	return s
}

// Select returns the rows of a set that satisfy the query. The set must be of the group's rows. Select fails if the group can't be read.
func (s *Selector) Select(ctx context.Context, g *archive.Group, rows archive.Bits) (archive.Bits, error) {
	return s.root.rows(&groupSearch{ctx: ctx, Group: g, selector: s, all: rows}, rows)
}

// groupSearch is a selector's look at a row group.
type groupSearch struct {
	*archive.Group
	ctx      context.Context
	selector *Selector
	all      archive.Bits // the rows that are looked at

	inRests  []archive.Bits // by test: the rows of all whose rests satisfy it
	times    [2][]int64     // by axis
	haveRead bool           // the rests have been read
}

// selection is a part of a query, as it is looked for in columns.
type selection interface {
	// rows returns those of a set that satisfy the part. The result is the caller's.
	rows(g *groupSearch, among archive.Bits) (archive.Bits, error)
	// cost estimates how long that takes, to do what is quick first.
	cost() int
}

type (
	allOf    []selection
	oneOf    []selection
	noneOf   struct{ selection }
	timeTest struct {
		axis      archive.Axis
		low, high bound
	}
	idTest uuid.UUID
)

// compile returns the selection of a node.
func (s *Selector) compile(n node) selection {
	switch n := n.(type) {
	case all:
		return s.compileEach(n)
	case either:
		return oneOf(s.compileEach(n))
	case not:
		return noneOf{s.compile(n.node)}
	case column:
		return timeTest{axisOf(n.name), n.low, n.high}
	case moment:
		inColumn := timeTest{axisOf(n.name), bound{kind: temporal, inclusive: true, at: n.from}, bound{kind: temporal, at: n.to}}
		return oneOf{inColumn, s.add(equals{path: firmPath(n.name), value: n.word})}
	case identity:
		return oneOf{idTest(n.id), s.add(equals{path: firmPath("id"), value: n.word})}
	}
	return s.add(n)
}

func (s *Selector) compileEach(nodes []node) allOf {
	parts := make(allOf, len(nodes))
	for i, n := range nodes {
		parts[i] = s.compile(n)
	}
	slices.SortStableFunc(parts, func(a, b selection) int { return cmp.Compare(a.cost(), b.cost()) })
	return parts
}

// add adds a test of values.
func (s *Selector) add(n node) selection {
	t := newValueTest(n)
	t.number = len(s.tests)
	s.tests = append(s.tests, t)
	return t
}

func axisOf(column string) archive.Axis {
	if column == "time" {
		return archive.ByTime
	}
	return archive.ByArrival
}

func (s allOf) cost() (sum int) {
	for _, part := range s {
		sum += part.cost()
	}
	return sum
}
func (s oneOf) cost() int    { return allOf(s).cost() }
func (s noneOf) cost() int   { return s.selection.cost() }
func (s timeTest) cost() int { return 1 }
func (s idTest) cost() int   { return 1 }

func (s allOf) rows(g *groupSearch, among archive.Bits) (archive.Bits, error) {
	out := among.Clone()
	for _, part := range s {
		if out.IsEmpty() {
			break
		}
		var err error
		if out, err = part.rows(g, out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (s oneOf) rows(g *groupSearch, among archive.Bits) (archive.Bits, error) {
	left := among.Clone()
	for _, part := range s {
		if left.IsEmpty() {
			break
		}
		some, err := part.rows(g, left)
		if err != nil {
			return nil, err
		}
		left.AndNot(some)
	}
	out := among.Clone()
	out.AndNot(left)
	return out, nil
}

func (s noneOf) rows(g *groupSearch, among archive.Bits) (archive.Bits, error) {
	some, err := s.selection.rows(g, among)
	if err != nil {
		return nil, err
	}
	out := among.Clone()
	out.AndNot(some)
	return out, nil
}

func (s timeTest) rows(g *groupSearch, among archive.Bits) (archive.Bits, error) {
	first, last := microsBetween(s.low, s.high)
	return g.between(s.axis, first, last, among)
}

// microsBetween returns the first and the last time between two bounds, in Unix microseconds.
func microsBetween(low, high bound) (first, last int64) {
	first, last = math.MinInt64, math.MaxInt64
	if low.kind != open {
		if first = low.at.UnixMicro(); !low.inclusive {
			first++
		}
	}
	if high.kind != open {
		if last = high.at.UnixMicro(); !high.inclusive {
			last--
		}
	}
	return first, last
}

// between returns the rows of a set whose time lies between two, both included.
func (g *groupSearch) between(axis archive.Axis, first, last int64, among archive.Bits) (archive.Bits, error) {
	low, high := g.Bounds(axis)
	switch {
	case high < first || last < low:
		return archive.NewBits(g.Rows), nil
	case first <= low && high <= last:
		return among.Clone(), nil
	}
	if g.times[axis] == nil {
		times, err := g.Times(g.ctx, axis, nil)
		if err != nil {
			return nil, err
		}
		g.times[axis] = times
	}
	out := archive.NewBits(g.Rows)
	for row, at := range g.times[axis] {
		if first <= at && at <= last {
			out.Set(row)
		}
	}
	out.And(among)
	return out, nil
}

func (s idTest) rows(g *groupSearch, among archive.Bits) (archive.Bits, error) {
	out, err := g.RowsOf(g.ctx, [][2][16]byte{{s, s}})
	if err != nil {
		return nil, err
	}
	if out == nil {
		return archive.NewBits(g.Rows), nil
	}
	out.And(among)
	return out, nil
}

// valueTest is a test of a record's values.
type valueTest struct {
	number  int // among the selector's tests
	ways    [][]string
	any     bool // of values anywhere, not at the ways
	isThere bool // holds for every value at the ways, and for what has a value below
	effort  int

	match Matcher // for what is no column

	// What holds for values in columns. A test of texts that is nil holds for none.
	text    func([]byte) bool
	folded  func([]byte) bool // the same for folded texts, where that is quicker
	search  func(data []byte, offsets []uint32, hit func(int))
	needs   []string // every text that satisfies the test has these in it, in any case
	exactly string   // the only text that satisfies the test; if isExact
	isExact bool

	double       func(float64) bool
	doubleLow    float64 // numbers below satisfy the test no more than those above doubleHigh
	doubleHigh   float64
	integer      func(int64) bool
	bool         func(bool) bool
	numberAsText bool // numbers, bools: by their text
	isTime       bool // holds for times from first to last, in Unix microseconds
	first, last  int64
}

func (t *valueTest) cost() int { return t.effort }

// newValueTest returns the test of a leaf of a query.
func newValueTest(n node) *valueTest {
	t := &valueTest{match: compile(n), doubleLow: math.Inf(-1), doubleHigh: math.Inf(1)}
	switch n := n.(type) {
	case exists:
		t.ways, t.isThere, t.effort = n.path.ways(), true, 2
	case equals:
		t.ways, t.effort = n.path.ways(), 3
		value := []byte(n.value)
		t.text = func(s []byte) bool { return bytes.Equal(s, value) }
		t.exactly, t.isExact, t.needs = n.value, true, []string{n.value}
		t.bool = func(v bool) bool { return n.typed && strconv.FormatBool(v) == n.value }
		if n.typed && isNumber(n.value) && isStorable(n.value) {
			d := parseDecimal(n.value)
			t.numbers(&d, true, &d, true)
		}
	case text:
		t.any, t.effort, t.numberAsText = true, 20, n.pattern.mayBeInNumbers()
		t.contains(n.pattern)
	case contains:
		t.ways, t.effort, t.numberAsText = n.path.ways(), 10, n.pattern.mayBeInNumbers()
		t.contains(n.pattern)
	case same:
		t.ways, t.effort, t.numberAsText = n.path.ways(), 6, pattern{n.value}.mayBeInNumbers()
		value := fold(n.value)
		t.needs = []string{n.value}
		t.text = func(s []byte) bool { return isFolded(s, value) }
	case like:
		t.ways, t.effort, t.numberAsText = n.path.ways(), 6, n.pattern.mayBeInNumbers()
		t.needs = n.pattern
		parts := bytesOf(n.pattern)
		first, last := parts[0], parts[len(parts)-1]
		t.text = func(s []byte) bool {
			return len(s) >= len(first)+len(last) && bytes.HasPrefix(s, first) && bytes.HasSuffix(s, last) &&
				hasParts(s[len(first):len(s)-len(last)], parts[1:len(parts)-1])
		}
	case matching:
		t.ways, t.effort, t.numberAsText = n.path.ways(), 40, true
		t.text = n.matches.Match
	case network:
		t.ways, t.effort = n.path.ways(), 8
		t.text = func(s []byte) bool { return string(s) == n.word || n.has(string(s)) }
	case within:
		t.ways, t.effort = n.path.ways(), 4
		if n.low.kind == numeric || n.high.kind == numeric {
			t.withinNumbers(n)
			break
		}
		t.isTime = true
		t.first, t.last = microsBetween(n.low, n.high)
		t.text = func(s []byte) bool {
			if len(s) == 0 || s[0] < '0' || s[0] > '9' {
				return false
			}
			at, ok := parseInstant(string(s))
			return ok && t.first <= at.UnixMicro() && at.UnixMicro() <= t.last
		}
	default:
		panic("language: no columns for " + n.String())
	}
	return t
}

// contains makes the test that of texts that have a pattern in them, in any case.
func (t *valueTest) contains(p pattern) {
	p = p.folded()
	t.needs = p
	t.text = func(s []byte) bool { return isInFolded(p, s) }
	parts := bytesOf(p)
	t.folded = func(s []byte) bool { return hasParts(s, parts) }
	if !slices.ContainsFunc(p, func(part string) bool { return !isASCII(part) }) {
		t.search = func(data []byte, offsets []uint32, hit func(int)) { searchFolded(parts, data, offsets, hit) }
	}
}

// withinNumbers makes the test that of numbers between two bounds, and of texts that write such numbers.
func (t *valueTest) withinNumbers(n within) {
	var low, high *decimal
	if n.low.kind == numeric {
		low = &n.low.number
	}
	if n.high.kind == numeric {
		high = &n.high.number
	}
	t.numbers(low, n.low.inclusive, high, n.high.inclusive)
	t.text = func(s []byte) bool {
		if len(s) == 0 || len(s) > maxNumberText || s[0] != '-' && (s[0] < '0' || s[0] > '9') || !isNumberText(string(s)) {
			return false
		}
		d := parseDecimal(string(s))
		return (low == nil || n.low.admits(d.compare(*low))) && (high == nil || n.high.admits(-d.compare(*high)))
	}
}

// numbers makes the test of numbers one of those between two bounds. A bound that is nil is open.
//
// A column of doubles holds numbers that are the shortest texts of their doubles, and rounding to a double keeps the order. So if v < f,
// where f is the double nearest to a bound, then the number that v stands for is less than the bound. If v = f, it is the number that f
// stands for, which is compared once.
func (t *valueTest) numbers(low *decimal, lowIn bool, high *decimal, highIn bool) {
	if low != nil {
		f := low.double()
		b := bound{inclusive: lowIn}
		if t.doubleLow = f; math.IsInf(f, 0) || !b.admits(decimalOf(f).compare(*low)) {
			t.doubleLow = math.Nextafter(f, math.Inf(1))
		}
	}
	if high != nil {
		f := high.double()
		b := bound{inclusive: highIn}
		if t.doubleHigh = f; math.IsInf(f, 0) || !b.admits(-decimalOf(f).compare(*high)) {
			t.doubleHigh = math.Nextafter(f, math.Inf(-1))
		}
	}
	least, greatest := t.doubleLow, t.doubleHigh
	t.double = func(v float64) bool { return least <= v && v <= greatest }
	first, last := int64(math.MinInt64), int64(math.MaxInt64)
	some := true
	if low != nil {
		first, some = firstInteger(func(v int64) bool { b := bound{inclusive: lowIn}; return b.admits(decimalOfInt(v).compare(*low)) })
	}
	if high != nil && some {
		beyond, found := firstInteger(func(v int64) bool { b := bound{inclusive: highIn}; return !b.admits(-decimalOfInt(v).compare(*high)) })
		if found {
			some = beyond > math.MinInt64
			last = beyond - 1
		}
	}
	t.integer = func(v int64) bool { return some && first <= v && v <= last }
}

// firstInteger returns the first integer that f holds for. If it holds for one, it holds for all that are greater.
func firstInteger(f func(int64) bool) (first int64, found bool) {
	if !f(math.MaxInt64) {
		return 0, false
	}
	low, high := int64(math.MinInt64), int64(math.MaxInt64)
	for low < high {
		middle := low + int64(uint64(high-low)/2)
		if f(middle) {
			high = middle
		} else {
			low = middle + 1
		}
	}
	return low, true
}

// double returns the double that is nearest to a number, an infinity if it is too great.
func (d decimal) double() float64 {
	f, _ := strconv.ParseFloat(d.String(), 64) // an error says no more than the infinity does
	return f
}

// decimalOf returns the number that a double in a column stands for.
func decimalOf(f float64) decimal {
	if math.IsInf(f, 0) {
		return decimal{}
	}
	var buffer [400]byte
	return parseDecimal(string(strconv.AppendFloat(buffer[:0], f, 'f', -1, 64)))
}

func decimalOfInt(v int64) decimal { return parseDecimal(strconv.FormatInt(v, 10)) }

func (t *valueTest) rows(g *groupSearch, among archive.Bits) (archive.Bits, error) {
	out := archive.NewBits(g.Rows)
	left := among.Clone() // to be found yet
	for i := range g.File.Columns {
		c := &g.File.Columns[i]
		if g.IsEmpty(i) || !t.isAt(c.Path) {
			continue
		}
		if err := t.inColumn(g, i, c, left, out); err != nil {
			return nil, err
		}
		left.AndNot(out)
		if left.IsEmpty() {
			break
		}
	}
	if !left.IsEmpty() && t.mayBeInRests(g.Group) {
		if err := g.readRests(); err != nil {
			return nil, err
		}
		out.Or(g.inRests[t.number])
	}
	out.And(among)
	return out, nil
}

// isAt reports whether the test is one of values of a column.
func (t *valueTest) isAt(path []string) bool {
	if t.any {
		return true
	}
	for _, way := range t.ways {
		if len(way) == len(path) && slices.Equal(way, path) || t.isThere && len(way) < len(path) && slices.Equal(way, path[:len(way)]) {
			return true
		}
	}
	return false
}

// inColumn adds the rows of a set to out whose value in a column satisfies the test.
func (t *valueTest) inColumn(g *groupSearch, i int, c *archive.Column, among, out archive.Bits) error {
	if t.isThere {
		return g.Present(g.ctx, i, among, out)
	}
	ofNumber := t.text
	if t.folded != nil {
		ofNumber = t.folded
	}
	switch c.Kind {
	case archive.Text:
		if t.text == nil {
			return nil
		}
		for _, need := range t.needs {
			if !g.Sets[i].Admits(need) {
				return nil
			}
		}
		if t.isExact {
			if may, err := g.MayHaveText(i, t.exactly); err != nil || !may {
				return err
			}
		}
		return g.Texts(g.ctx, i, among, archive.TextTest{Match: t.text, Search: t.search}, out)
	case archive.Double:
		if t.double != nil {
			if least, greatest, ok := g.DoubleBounds(i); ok && (greatest < t.doubleLow || t.doubleHigh < least) {
				return nil
			}
			return g.Doubles(g.ctx, i, among, t.double, out)
		}
		if t.numberAsText {
			var b [40]byte
			return g.Doubles(g.ctx, i, among, func(v float64) bool { return ofNumber(archive.AppendDouble(b[:0], v, c.Form)) }, out)
		}
	case archive.Integer:
		if t.integer != nil {
			return g.Ints(g.ctx, i, among, t.integer, out)
		}
		if t.numberAsText {
			var b [40]byte
			return g.Ints(g.ctx, i, among, func(v int64) bool { return ofNumber(strconv.AppendInt(b[:0], v, 10)) }, out)
		}
	case archive.Bool:
		match := t.bool
		if t.numberAsText {
			match = func(v bool) bool { return t.text(strconv.AppendBool(nil, v)) }
		}
		if match != nil {
			return g.Bools(g.ctx, i, among, match, out)
		}
	default:
		return t.inTimes(g, i, c, among, out)
	}
	return nil
}

// inTimes does what inColumn does for a column of times, which are texts in the records.
func (t *valueTest) inTimes(g *groupSearch, i int, c *archive.Column, among, out archive.Bits) error {
	if t.text == nil {
		return nil
	}
	if t.isTime {
		first, last := t.first, t.last
		if c.Kind == archive.Nanos { // a time counts to the microsecond
			const least, greatest = math.MinInt64 / 1000, math.MaxInt64/1000 - 1
			if first > greatest || last < least {
				return nil
			}
			first, last = max(first, least)*1000, min(last, greatest)*1000+999
		}
		if least, greatest, ok := g.IntBounds(i); ok && (greatest < first || last < least) {
			return nil
		}
		return g.Ints(g.ctx, i, among, func(v int64) bool { return first <= v && v <= last }, out)
	}
	if t.isExact {
		want, ok := archive.ParseTime([]byte(t.exactly), c.Kind, c.Form)
		if !ok {
			return nil
		}
		if least, greatest, ok := g.IntBounds(i); ok && (want < least || greatest < want) {
			return nil
		}
		return g.Ints(g.ctx, i, among, func(v int64) bool { return v == want }, out)
	}
	for _, need := range t.needs {
		if strings.Trim(need, "0123456789-:.TZtz") != "" {
			return nil
		}
	}
	var b [40]byte
	return g.Ints(g.ctx, i, among, func(v int64) bool {
		text := archive.AppendTime(b[:0], v, c.Kind, c.Form)
		if t.folded == nil {
			return t.text(text)
		}
		text[len("2006-01-02")], text[len(text)-1] = 't', 'z'
		return t.folded(text)
	}, out)
}

// mayBeInRests reports whether the rest of a row of the group may satisfy the test.
func (t *valueTest) mayBeInRests(g *archive.Group) bool {
	if g.RestRows == 0 {
		return false
	}
	if t.any {
		for _, need := range t.needs {
			if !g.MayHaveTextInRests(need) {
				return false
			}
		}
		return true
	}
	return slices.ContainsFunc(t.ways, g.MayHaveInRests)
}

// readRests tests the rests of the rows, each once for all tests.
func (g *groupSearch) readRests() error {
	if g.haveRead {
		return nil
	}
	g.haveRead = true
	var tests []*valueTest
	g.inRests = make([]archive.Bits, len(g.selector.tests))
	for i, t := range g.selector.tests {
		g.inRests[i] = archive.NewBits(g.Rows)
		if t.mayBeInRests(g.Group) {
			tests = append(tests, t)
		}
	}
	hints := make([]restHint, len(tests))
	for i, t := range tests {
		hints[i] = newRestHint(t)
	}
	var r Record
	var asked []uint64 // by rest of the page: the tests that it is worth reading for, a bit each; all from the 64th on share one
	return g.RestPages(g.ctx, g.all, func(p *archive.RestPage) error {
		asked = slices.Grow(asked[:0], p.Len())[:p.Len()]
		clear(asked)
		for i := range hints {
			hints[i].find(p, func(rest int) { asked[rest] |= 1 << min(i, 63) })
		}
		for rest, of := range asked {
			row := p.Row(rest)
			if of == 0 || !g.all.Has(row) {
				continue
			}
			if err := r.Read(p.Rest(rest)); err != nil {
				return err
			}
			for i, t := range tests {
				if of>>min(i, 63)&1 == 1 && t.match(&r) {
					g.inRests[t.number].Set(row)
				}
			}
		}
		return nil
	})
}

// restHint finds rests whose JSON is worth reading for a test: all that satisfy it, and not many others.
type restHint struct {
	keys  [][]byte // one of these is in the rest: names as JSON has them
	parts [][]byte // these are in the rest one after another, in any case: ASCII in small letters
}

func newRestHint(t *valueTest) (h restHint) {
	for _, way := range t.ways {
		var longest []byte
		for _, name := range way {
			if key := append(archive.AppendString(nil, []byte(name)), ':'); len(key) > len(longest) {
				longest = key
			}
		}
		h.keys = append(h.keys, longest)
	}
	if t.any {
		// The first of them that JSON writes in no other way.
		for _, need := range t.needs {
			if need != "" && isASCII(need) && !strings.ContainsFunc(need, func(r rune) bool { return r < ' ' || r == '"' || r == '\\' }) {
				h.parts = [][]byte{[]byte(need)}
				break
			}
		}
	}
	return h
}

// find calls hit with the rests, by their place in the page.
func (h *restHint) find(p *archive.RestPage, hit func(rest int)) {
	switch {
	case h.parts != nil:
		searchFolded(h.parts, p.Data, p.Offsets, hit)
	case h.keys != nil:
		for _, key := range h.keys {
			searchBytes(key, p.Data, p.Offsets, hit)
		}
	default:
		for i := range p.Len() {
			hit(i)
		}
	}
}

// searchBytes finds the texts that have a part in them, see archive.TextTest.
func searchBytes(part, data []byte, offsets []uint32, hit func(int)) {
	if len(offsets) < 2 {
		return
	}
	end := int(offsets[len(offsets)-1])
	for at, i := int(offsets[0]), 0; ; {
		found := bytes.Index(data[at:end], part)
		if found < 0 {
			return
		}
		at += found
		for int(offsets[i+1]) <= at { // ends, as the part has a byte at least
			i++
		}
		if at+len(part) > int(offsets[i+1]) {
			at++ // from one text into the next
			continue
		}
		hit(i)
		at = int(offsets[i+1])
	}
}

func isASCII[T string | []byte](s T) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// appendLower appends bytes with the capitals of ASCII as small letters, eight at a time.
func appendLower(dst, src []byte) []byte {
	start := len(dst)
	dst = append(dst, src...)
	b := dst[start:]
	const ones = 0x0101010101010101
	i := 0
	for ; i+8 <= len(b); i += 8 {
		word := binary.LittleEndian.Uint64(b[i:])
		low := word & (0x7f * ones)
		isCapital := ((low + (0x80-'A')*ones) ^ (low + (0x80-'Z'-1)*ones)) &^ word & (0x80 * ones)
		binary.LittleEndian.PutUint64(b[i:], word|isCapital>>2)
	}
	for ; i < len(b); i++ {
		if 'A' <= b[i] && b[i] <= 'Z' {
			b[i] += 'a' - 'A'
		}
	}
	return dst
}

// The only signs beyond ASCII that fold to letters of ASCII.
var (
	longS  = []byte("ſ")
	kelvin = []byte("\u212a")
)

// foldsToASCII reports whether a text has signs beyond ASCII that fold to letters of ASCII.
func foldsToASCII(b []byte) bool { return bytes.Contains(b, longS) || bytes.Contains(b, kelvin) }

// isFolded reports whether a text is a folded one, in any case.
func isFolded(s []byte, folded string) bool {
	if len(s) != len(folded) && isASCII(s) && isASCII(folded) {
		return false
	}
	return fold(string(s)) == folded
}

// isInFolded reports whether the parts of a folded pattern are in a text, in any case.
func isInFolded(p pattern, s []byte) bool { return p.isIn(fold(string(s))) }

// bytesOf returns the parts of a pattern as bytes.
func bytesOf(p pattern) [][]byte {
	parts := make([][]byte, len(p))
	for i, part := range p {
		parts[i] = []byte(part)
	}
	return parts
}

// hasParts reports whether parts are in a text, one after another.
func hasParts(s []byte, parts [][]byte) bool {
	for _, part := range parts {
		i := bytes.Index(s, part)
		if i < 0 {
			return false
		}
		s = s[i+len(part):]
	}
	return true
}

// searchFolded finds the texts that have parts in them, one after another, in any case. The parts are of ASCII, in small letters. The
// texts lie side by side, see archive.TextTest. The longest part is looked for in all of them at once.
func searchFolded(parts [][]byte, data []byte, offsets []uint32, hit func(int)) {
	n := len(offsets) - 1
	if n <= 0 {
		return
	}
	start := offsets[0]
	data = data[start:offsets[n]]
	longest := slices.MaxFunc(parts, func(a, b []byte) int { return cmp.Compare(len(a), len(b)) })
	if len(longest) == 0 || foldsToASCII(data) {
		p := make(pattern, len(parts))
		for i, part := range parts {
			p[i] = string(part)
		}
		for i := range n {
			if isInFolded(p, data[offsets[i]-start:offsets[i+1]-start]) {
				hit(i)
			}
		}
		return
	}
	buffer := lowerBuffers.Get().(*[]byte)
	defer lowerBuffers.Put(buffer)
	*buffer = appendLower((*buffer)[:0], data)
	lower := *buffer
	for at, i := 0, 0; ; {
		found := bytes.Index(lower[at:], longest)
		if found < 0 {
			return
		}
		at += found
		for int(offsets[i+1]-start) <= at { // ends, as the part has a byte at least
			i++
		}
		textEnd := int(offsets[i+1] - start)
		if at+len(longest) > textEnd {
			at++ // from one text into the next
			continue
		}
		if len(parts) == 1 || hasParts(lower[offsets[i]-start:textEnd], parts) {
			hit(i)
		}
		at = textEnd
	}
}

// lowerBuffers are for pages in small letters.
var lowerBuffers = sync.Pool{New: func() any { return new([]byte) }}
