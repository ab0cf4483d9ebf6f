package query

import (
	"cmp"
	"encoding/json"
	"errors"
	"math"
	"math/big"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"millrace/internal/archive"
	"millrace/query/columns"
	"millrace/query/language"
)

// figureOf computes a figure of stats record by record, as its SQL does. What it needs to know of the records of a group is a tally. Tallies of parts of
// the records can be merged.
type figureOf struct {
	calc
	ways  [][]string
	match language.Matcher // share's
}

// tally is what is known of some records for a figure.
type tally struct {
	n      int64             // count: records; else the values that count
	of     int64             // share: the records that its query finds
	sum    *exactSum         // sum, avg
	values map[float64]int64 // p: how many records have the value
	texts  map[string]bool   // uniq
	edge   *language.Number  // min, max: of the numbers
	text   *string           // min, max: of the other texts
}

// errNotPartial says that a figure can't be computed record by record.
var errNotPartial = errors.New("the figure is computed by PostgreSQL alone")

// The bytes that a tally takes at least, and that each value of a percentile and each text that is told apart add to it, about.
const (
	tallyBytes = 96
	valueBytes = 40
	textBytes  = 48
)

// newFigure returns the computation of a figure. Its error is errNotPartial if there is none.
func newFigure(c calc) (*figureOf, error) {
	f := &figureOf{calc: c}
	switch c.function {
	case "first", "last":
		return nil, errNotPartial
	case "share":
		f.match = c.query.Matcher()
	}
	if c.path != nil {
		f.ways = language.Ways(c.path)
	}
	return f, nil
}

// add adds a record to a tally. It returns how many bytes more the tally takes. Its error is errNotPartial if the value is too large.
func (f *figureOf) add(t *tally, r *language.Record) (bytes int, err error) {
	switch f.function {
	case "share":
		t.n++
		if f.match(r) {
			t.of++
		}
		return 0, nil
	case "rate":
		t.n++
		return 0, nil
	}
	if f.path == nil {
		t.n++
		return 0, nil
	}
	v, found := r.Value(f.ways)
	if !found {
		return 0, nil
	}
	switch f.function {
	case "count":
		t.n++
	case "uniq":
		if text, ok := v.Text(); ok && !t.texts[text] {
			if t.texts == nil {
				t.texts = make(map[string]bool)
			}
			t.texts[text] = true
			return textBytes + len(text), nil
		}
	case "min", "max":
		return f.addEdge(t, v)
	default:
		if v.IsNumeric() {
			return f.addNumber(t, v.Number())
		}
	}
	return 0, nil
}

// addEdge adds a value to the least or the greatest. Texts count only where there is no number.
func (f *figureOf) addEdge(t *tally, v language.Value) (bytes int, err error) {
	if v.IsNumeric() {
		n := v.Number()
		if _, ok := n.Plain(); !ok {
			return 0, errNotPartial
		}
		return f.mergeEdge(t, &n, nil), nil
	}
	if text, ok := v.Text(); ok && t.edge == nil {
		text = columns.CutText(text)
		return f.mergeEdge(t, nil, &text), nil
	}
	return 0, nil
}

// mergeEdge takes a number and a text that are not nil if they are beyond those of a tally. It returns how many bytes more the tally takes.
func (f *figureOf) mergeEdge(t *tally, n *language.Number, text *string) (bytes int) {
	sign := 1
	if f.function == "min" {
		sign = -1
	}
	if n != nil && (t.edge == nil || sign*n.Compare(*t.edge) > 0) {
		bytes += n.Bytes()
		if t.edge != nil {
			bytes -= t.edge.Bytes()
		}
		t.edge = n
	}
	if text != nil && (t.text == nil || sign*strings.Compare(*text, *t.text) > 0) {
		kept := strings.Clone(*text) // the text may be the beginning of one that is much longer
		bytes += len(kept)
		if t.text != nil {
			bytes -= len(*t.text)
		}
		t.text = &kept
	}
	return bytes
}

// addNumber adds a number to a sum, an average or a percentile.
func (f *figureOf) addNumber(t *tally, n language.Number) (bytes int, err error) {
	x, ok := n.Float()
	if !ok && f.function != "sum" {
		return 0, nil
	}
	t.n++
	if f.function != "p" {
		if t.sum == nil {
			t.sum = new(exactSum)
		}
		before := t.sum.bytes()
		err := t.sum.add(n)
		return t.sum.bytes() - before, err
	}
	if t.values == nil {
		t.values = make(map[float64]int64)
	}
	if t.values[x]++; t.values[x] == 1 {
		bytes = valueBytes
	}
	return bytes, nil
}

// merge adds the records of another tally to a tally. It returns how many bytes more the tally takes.
func (f *figureOf) merge(t, other *tally) (bytes int) {
	t.n += other.n
	t.of += other.of
	if other.sum != nil {
		if t.sum == nil {
			t.sum = new(exactSum)
		}
		before := t.sum.bytes()
		t.sum.addScaled(&other.sum.whole, other.sum.scale)
		bytes += t.sum.bytes() - before
	}
	if t.values == nil && other.values != nil {
		t.values = make(map[float64]int64, len(other.values))
	}
	for x, n := range other.values {
		if t.values[x] == 0 {
			bytes += valueBytes
		}
		t.values[x] += n
	}
	if t.texts == nil && other.texts != nil {
		t.texts = make(map[string]bool, len(other.texts))
	}
	for text := range other.texts {
		if !t.texts[text] {
			bytes += textBytes + len(text)
			t.texts[text] = true
		}
	}
	return bytes + f.mergeEdge(t, other.edge, other.text)
}

// figure returns the figure that a tally of all records makes, as JSON. span is how many seconds they are of.
func (f *figureOf) figure(t *tally, span float64) json.RawMessage {
	null := json.RawMessage("null")
	switch f.function {
	case "count":
		return strconv.AppendInt(nil, t.n, 10)
	case "uniq":
		return strconv.AppendInt(nil, int64(len(t.texts)), 10)
	case "rate":
		return floatJSON(float64(t.n) / span)
	case "share":
		if t.n == 0 {
			return null
		}
		return floatJSON(float64(t.of) / float64(t.n))
	case "sum":
		if t.n == 0 {
			return null
		}
		return json.RawMessage(language.Plain(&t.sum.whole, t.sum.scale))
	case "avg":
		if t.n == 0 {
			return null
		}
		total, _ := strconv.ParseFloat(language.Plain(&t.sum.whole, t.sum.scale), 64) // beyond the largest double it is infinite
		switch {                                                                      // the bounds of the SQL
		case math.Abs(total) > 1e308:
			return null
		case math.Abs(total) < 1e-300:
			total = 0
		}
		return floatJSON(total / float64(t.n))
	case "p":
		if t.n == 0 {
			return null
		}
		return floatJSON(t.percentile(f.quantile))
	case "min", "max":
		if t.edge != nil {
			text, _ := t.edge.Plain() // addEdge took no other
			return json.RawMessage(text)
		}
		if t.text != nil {
			return archive.AppendString(nil, []byte(*t.text))
		}
		return null
	}
	panic("query: no figure for " + f.function)
}

// percentile returns what percentile_cont does: between two values it goes from one to the other in a straight line.
func (t *tally) percentile(quantile float64) float64 {
	place := quantile * float64(t.n-1)
	first, second := int64(math.Floor(place)), int64(math.Ceil(place))
	values := make([]float64, 0, len(t.values))
	for x := range t.values {
		values = append(values, x)
	}
	slices.Sort(values)
	var low, high float64
	passed, hasLow := int64(0), false
	for _, x := range values {
		passed += t.values[x]
		if !hasLow && passed > first {
			low, hasLow = x, true
		}
		if passed > second {
			high = x
			break
		}
	}
	if first == second {
		return low
	}
	return low + float64((place-float64(first))*(high-low)) // rounded before it is added, as PostgreSQL does on every machine
}

// floatJSON returns a double as to_jsonb does.
func floatJSON(x float64) json.RawMessage {
	if x == 0 {
		return json.RawMessage("0") // without a sign
	}
	return strconv.AppendFloat(nil, x, 'f', -1, 64)
}

// exactSum is a sum without rounding: whole has so many digits behind the point. The zero value is 0.
type exactSum struct {
	whole big.Int
	scale int
}

// bytes returns how many bytes the digits take.
func (s *exactSum) bytes() int { return cap(s.whole.Bits()) * bits.UintSize / 8 }

// add adds a number. Its error is errNotPartial if the number has too many digits.
func (s *exactSum) add(n language.Number) error {
	whole, scale, ok := n.Scaled()
	if !ok {
		return errNotPartial
	}
	s.addScaled(whole, scale)
	return nil
}

func (s *exactSum) addScaled(whole *big.Int, scale int) {
	power := func(n int) *big.Int { return new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(n)), nil) }
	switch {
	case scale > s.scale:
		s.whole.Mul(&s.whole, power(scale-s.scale))
		s.scale = scale
	case scale < s.scale:
		whole = new(big.Int).Mul(whole, power(s.scale-scale))
	}
	s.whole.Add(&s.whole, whole)
}

// holds reports whether a figure meets the condition, as its SQL does.
func (h having) holds(figure json.RawMessage) bool {
	if len(figure) == 0 || string(figure) == "null" {
		return false
	}
	if h.text {
		text := string(figure)
		if figure[0] == '"' && json.Unmarshal(figure, &text) != nil {
			return false
		}
		return h.isMetBy(strings.Compare(text, h.value))
	}
	if figure[0] != '-' && (figure[0] < '0' || figure[0] > '9') { // numbers alone compare
		return false
	}
	return h.isMetBy(language.ParseNumber(string(figure)).Compare(language.ParseNumber(h.value)))
}

// partialStats computes a table of stats of partial tables.
type partialStats struct {
	st      *stats
	by      [][][]string // the ways to the fields
	figures []*figureOf
	having  []int // the figure of each condition
}

// newPartialStats returns the computation of the table that st asks for. Its error is errNotPartial if PostgreSQL alone can compute it.
func newPartialStats(st *stats) (*partialStats, error) {
	if st.series || st.budget != 0 {
		return nil, errNotPartial
	}
	if len(st.by) > 0 && st.calcs[st.order].function != "count" {
		return nil, errNotPartial
	}
	p := &partialStats{st: st}
	for _, path := range st.by {
		p.by = append(p.by, language.Ways(path))
	}
	for _, c := range st.calcs {
		f, err := newFigure(c)
		if err != nil {
			return nil, err
		}
		p.figures = append(p.figures, f)
	}
	for _, h := range st.having {
		i := slices.IndexFunc(st.calcs, func(c calc) bool { return c.text == h.calc.text })
		if i < 0 {
			return nil, errNotPartial
		}
		p.having = append(p.having, i)
	}
	return p, nil
}

// partialTable is what is known of some records, by their groups.
type partialTable struct {
	groups map[string]*partialGroup
	bytes  int
	err    error // errNotPartial: it has a value that PostgreSQL alone can compute with
}

type partialGroup struct {
	values  []*string // of the fields; nil: null, or not there
	tallies []tally
	bytes   int
}

// partialGroupBytes is about what a group takes beside its values and tallies.
const partialGroupBytes = 128

// add adds a record to a table.
func (p *partialStats) add(t *partialTable, r *language.Record) {
	var room [128]byte
	key := room[:0]
	var values [maxBy]string
	var isThere [maxBy]bool
	for i, ways := range p.by {
		if v, found := r.Value(ways); found {
			values[i], isThere[i] = v.Text()
		}
		values[i] = columns.CutText(values[i])
		key = appendKey(key, values[i], isThere[i])
	}
	g := t.groups[string(key)]
	if g == nil {
		g = &partialGroup{values: make([]*string, len(p.by)), tallies: make([]tally, len(p.figures)), bytes: partialGroupBytes + 2*len(key) + tallyBytes*len(p.figures)}
		for i := range p.by {
			if isThere[i] {
				value := strings.Clone(values[i])
				g.values[i] = &value
			}
		}
		if t.groups == nil {
			t.groups = make(map[string]*partialGroup)
		}
		t.groups[string(key)] = g
		t.bytes += g.bytes
	}
	for i, f := range p.figures {
		bytes, err := f.add(&g.tallies[i], r)
		g.bytes += bytes
		t.bytes += bytes
		if err != nil {
			t.err = err
		}
	}
}

// appendKey appends a value to the key of a group. PostgreSQL has no text with a 0 in it.
func appendKey(key []byte, value string, isThere bool) []byte {
	if isThere {
		key = append(append(key, value...), 1)
	}
	return append(key, 0)
}

// merge adds the records of another table to a table. If takes is true, the other one is not used any more, and its groups may become this one's.
func (p *partialStats) merge(t, other *partialTable, takes bool) {
	t.err = cmp.Or(t.err, other.err)
	if t.groups == nil {
		t.groups = make(map[string]*partialGroup, len(other.groups))
	}
	for key, from := range other.groups {
		g := t.groups[key]
		if g == nil && takes {
			t.groups[key] = from
			t.bytes += from.bytes
			continue
		}
		if g == nil {
			g = &partialGroup{values: from.values, tallies: make([]tally, len(p.figures)), bytes: partialGroupBytes + 2*len(key) + tallyBytes*len(p.figures)}
			t.groups[key] = g
			t.bytes += g.bytes
		}
		bytes := p.mergeGroup(g, from)
		g.bytes += bytes
		t.bytes += bytes
	}
}

func (p *partialStats) mergeGroup(g, from *partialGroup) (bytes int) {
	for i, f := range p.figures {
		bytes += f.merge(&g.tallies[i], &from.tallies[i])
	}
	return bytes
}

// tableRow is a group with its figures.
type tableRow struct {
	*partialGroup
	figures []json.RawMessage
}

// table returns the table of stats that a partial table of all records makes. from and to are the window in Unix milliseconds.
func (p *partialStats) table(t *partialTable, from, to int64) *statsTable {
	span := float64(to-from) / 1000
	table := p.st.emptyTable()
	var rows []tableRow
	add := func(g *partialGroup) {
		row := tableRow{g, make([]json.RawMessage, len(p.figures))}
		for i, f := range p.figures {
			row.figures[i] = f.figure(&g.tallies[i], span)
		}
		for i, h := range p.st.having {
			if !h.holds(row.figures[p.having[i]]) {
				return
			}
		}
		rows = append(rows, row)
	}
	for _, g := range t.groups {
		add(g)
	}
	if len(p.by) == 0 && len(t.groups) == 0 {
		add(&partialGroup{tallies: make([]tally, len(p.figures))}) // no records are a group, too
	}
	slices.SortFunc(rows, p.compare)
	for i, row := range rows {
		if i == p.st.limit {
			rest := &partialGroup{tallies: make([]tally, len(p.figures))}
			for _, row := range rows[i:] {
				p.mergeGroup(rest, row.partialGroup)
			}
			var cells []json.RawMessage
			for range p.by {
				cells = append(cells, json.RawMessage(`"(others)"`))
			}
			for i, f := range p.figures {
				cells = append(cells, f.figure(&rest.tallies[i], span))
			}
			table.Others = [][]json.RawMessage{cells}
			break
		}
		var cells []json.RawMessage
		for _, value := range row.values {
			if value == nil {
				cells = append(cells, json.RawMessage("null"))
			} else {
				cells = append(cells, archive.AppendString(nil, []byte(*value)))
			}
		}
		table.Rows = append(table.Rows, append(cells, row.figures...))
	}
	return table
}

// compare puts the groups of a table in order: by a count, then by their values.
func (p *partialStats) compare(a, b tableRow) int {
	order := cmp.Compare(a.tallies[p.st.order].n, b.tallies[p.st.order].n)
	if !p.st.rising {
		order = -order
	}
	for i := 0; order == 0 && i < len(p.by); i++ {
		switch x, y := a.values[i], b.values[i]; {
		case x == nil && y == nil:
		case x == nil:
			order = 1
		case y == nil:
			order = -1
		default:
			order = strings.Compare(*x, *y)
		}
	}
	return order
}
