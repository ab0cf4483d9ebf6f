package archive

import (
	"bytes"
	"slices"
	"strconv"

	"github.com/cespare/xxhash/v2"

	"millrace/internal/jsontext"
)

func hash64(b []byte) uint64 { return xxhash.Sum64(b) }

// tree is the columns as the members of an object, in the order in which jsonb has them.
type tree struct {
	name    []byte
	key     []byte // the name as JSON writes it
	column  int    // -1: only its members are columns
	members []*tree
}

// newTree returns the tree of columns.
func newTree(columns []Column) *tree {
	root := &tree{column: -1}
	for i, c := range columns {
		at := root
		for _, name := range c.Path {
			k := slices.IndexFunc(at.members, func(m *tree) bool { return string(m.name) == name })
			if k < 0 {
				k = len(at.members)
				at.members = append(at.members, &tree{name: []byte(name), key: AppendString(nil, []byte(name)), column: -1})
			}
			at = at.members[k]
		}
		at.column = i
	}
	root.sort()
	return root
}

func (t *tree) sort() {
	slices.SortFunc(t.members, func(a, b *tree) int {
		if isBefore(a.name, b.name) {
			return -1
		}
		return 1
	})
	for _, m := range t.members {
		m.sort()
	}
}

// vector holds the values of a column for rows 0, 1, 2, … as far as they have one.
type vector struct {
	has     []byte // 1: the row has a value
	numbers []float64
	ints    []int64 // integers, times; bools as 0 and 1
	text    []byte
	ends    []uint32 // of the rows' texts
}

// reset empties a vector.
func (v *vector) reset() {
	v.has, v.numbers, v.ints, v.text, v.ends = v.has[:0], v.numbers[:0], v.ints[:0], v.text[:0], v.ends[:0]
}

// textAt returns the text of a row.
func (v *vector) textAt(row int) []byte {
	start := uint32(0)
	if row > 0 {
		start = v.ends[row-1]
	}
	return v.text[start:v.ends[row]]
}

// appendNull adds a row without a value.
func (v *vector) appendNull(kind Kind) {
	v.has = append(v.has, 0)
	switch kind {
	case Text:
		v.ends = append(v.ends, uint32(len(v.text)))
	case Double:
		v.numbers = append(v.numbers, 0)
	default:
		v.ints = append(v.ints, 0)
	}
}

// shredder distributes records to columns.
type shredder struct {
	columns []Column
	tree    *tree
	vectors []vector
	rest    vector // texts
	row     int    // the row that is being read

	out     []byte // what is left of the row
	scratch []byte
}

func newShredder(columns []Column) *shredder {
	return &shredder{columns: columns, tree: newTree(columns), vectors: make([]vector, len(columns))}
}

// reset forgets the rows.
func (s *shredder) reset() {
	for i := range s.vectors {
		s.vectors[i].reset()
	}
	s.rest.reset()
	s.row = 0
}

// add adds the row of a record. A record that could not be put together again lies in the rest as a whole.
func (s *shredder) add(data []byte) {
	ok := false
	if len(data) > 0 && data[0] == '{' {
		s.out = append(s.out[:0], '{')
		var end int
		end, ok = s.object(s.tree, data)
		s.out = append(s.out, '}')
		ok = ok && end == len(data)
	}
	s.fill(s.row + 1)
	switch {
	case !ok:
		s.setWhole(data)
	case len(s.out) == 2:
		s.rest.appendNull(Text)
	default:
		s.setRest(s.out)
	}
	if ok {
		s.scratch = s.rebuild(s.scratch[:0], s.row)
		if !bytes.Equal(s.scratch, data) {
			s.removeLast()
			s.fill(s.row + 1)
			s.setWhole(data)
		}
	}
	s.row++
}

// fill adds nulls to the columns that have fewer rows.
func (s *shredder) fill(rows int) {
	for i := range s.vectors {
		if len(s.vectors[i].has) < rows {
			s.vectors[i].appendNull(s.columns[i].Kind)
		}
	}
}

func (s *shredder) setRest(text []byte) {
	s.rest.has = append(s.rest.has, 1)
	s.rest.text = append(s.rest.text, text...)
	s.rest.ends = append(s.rest.ends, uint32(len(s.rest.text)))
}

// setWhole makes the rest of the row the record. None of the columns may have a value.
func (s *shredder) setWhole(data []byte) {
	if hasValue(s.vectors, s.row) {
		s.removeColumns()
		s.fill(s.row + 1)
	}
	s.setRest(data)
}

// removeColumns takes the values of the row out of the columns.
func (s *shredder) removeColumns() {
	for i := range s.vectors {
		v := &s.vectors[i]
		v.has = v.has[:s.row]
		switch s.columns[i].Kind {
		case Text:
			v.ends = v.ends[:s.row]
			v.text = v.text[:last(v.ends)]
		case Double:
			v.numbers = v.numbers[:s.row]
		default:
			v.ints = v.ints[:s.row]
		}
	}
}

// removeLast takes the row out.
func (s *shredder) removeLast() {
	s.removeColumns()
	s.rest.has, s.rest.ends = s.rest.has[:s.row], s.rest.ends[:s.row]
	s.rest.text = s.rest.text[:last(s.rest.ends)]
}

func last(ends []uint32) uint32 {
	if len(ends) == 0 {
		return 0
	}
	return ends[len(ends)-1]
}

// object distributes the members of an object. What no column takes is appended to out. It returns where the object ends.
func (s *shredder) object(t *tree, data []byte) (end int, ok bool) {
	first, i, cursor := true, 1, 0
	for i < len(data) && data[i] != '}' {
		m, ok := memberAt(data, i)
		if !ok {
			return 0, false
		}
		i = m.next
		var at *tree
		for k := cursor; k < len(t.members); k++ {
			if bytes.Equal(t.members[k].key, m.key) {
				at, cursor = t.members[k], k+1
				break
			}
		}
		if at != nil && at.column >= 0 && s.take(at.column, m) {
			continue
		}
		mark := len(s.out)
		if !first {
			s.out = append(s.out, ", "...)
		}
		s.out = append(s.out, m.key...)
		s.out = append(s.out, ": "...)
		if at == nil || len(at.members) == 0 || m.value[0] != '{' || len(m.value) == 2 {
			s.out = append(s.out, m.value...)
		} else {
			start := len(s.out)
			s.out = append(s.out, '{')
			if end, ok := s.object(at, m.value); !ok || end != len(m.value) {
				return 0, false
			}
			if s.out = append(s.out, '}'); len(s.out) == start+2 {
				s.out = s.out[:mark]
				continue
			}
		}
		first = false
	}
	return i + 1, true
}

// take puts a value into a column, and reports whether the column takes it.
func (s *shredder) take(column int, m member) bool {
	c, v := &s.columns[column], &s.vectors[column]
	if len(v.has) > s.row {
		return false // a second member of the name
	}
	first := m.value[0]
	switch c.Kind {
	case Text:
		if first != '"' {
			return false
		}
		text := m.value[1 : len(m.value)-1]
		if m.valueEscaped {
			before := len(v.text)
			v.text = jsontext.AppendUnescaped(v.text, text)
			if s.scratch = AppendString(s.scratch[:0], v.text[before:]); !bytes.Equal(s.scratch, m.value) {
				v.text = v.text[:before]
				return false
			}
		} else {
			v.text = append(v.text, text...)
		}
		v.ends = append(v.ends, uint32(len(v.text)))
	case Double:
		n, ok := parseDouble(m.value, c.Form)
		if !ok {
			return false
		}
		v.numbers = append(v.numbers, n)
	case Integer:
		n, ok := parseInteger(m.value)
		if !ok {
			return false
		}
		v.ints = append(v.ints, n)
	case Bool:
		switch {
		case first == 't':
			v.ints = append(v.ints, 1)
		case first == 'f':
			v.ints = append(v.ints, 0)
		default:
			return false
		}
	default:
		if first != '"' || m.valueEscaped {
			return false
		}
		n, ok := ParseTime(m.value[1:len(m.value)-1], c.Kind, c.Form)
		if !ok {
			return false
		}
		v.ints = append(v.ints, n)
	}
	v.has = append(v.has, 1)
	return true
}

func (s *shredder) rebuild(b []byte, row int) []byte {
	r := rebuilder{columns: s.columns, vectors: s.vectors, tree: s.tree, rest: &s.rest}
	return r.record(b, row)
}

// rebuilder puts records together again.
type rebuilder struct {
	columns []Column
	vectors []vector
	rest    *vector
	tree    *tree
}

// hasValue reports whether one of the vectors has a value for a row.
func hasValue(vectors []vector, row int) bool {
	for i := range vectors {
		if vectors[i].has[row] == 1 {
			return true
		}
	}
	return false
}

// record appends the record of a row.
func (r *rebuilder) record(b []byte, row int) []byte {
	var rest []byte
	if r.rest.has[row] == 1 {
		rest = r.rest.textAt(row)
		if !hasValue(r.vectors, row) {
			return append(b, rest...)
		}
	}
	b = append(b, '{')
	b, _ = r.members(b, r.tree, row, rest)
	return append(b, '}')
}

// members appends the members of an object: those that are in columns, and those of rest, an object's text or nothing.
func (r *rebuilder) members(b []byte, t *tree, row int, rest []byte) ([]byte, bool) {
	first := true
	separate := func() {
		if !first {
			b = append(b, ", "...)
		}
		first = false
	}
	var next member
	var name []byte
	more := false
	i := 1
	advance := func() {
		if next, more = memberAt(rest, i); !more {
			return
		}
		i = next.next
		if name = next.key[1 : len(next.key)-1]; next.keyEscaped {
			name = jsontext.AppendUnescaped(nil, name)
		}
	}
	advance()
	copyNext := func() {
		separate()
		b = append(b, rest[next.start:next.valueAt+len(next.value)]...)
		advance()
	}
	for _, m := range t.members {
		for more && isBefore(name, m.name) {
			copyNext()
		}
		same := more && bytes.Equal(name, m.name)
		if m.column >= 0 && r.vectors[m.column].has[row] == 1 {
			separate()
			b = append(append(b, m.key...), ": "...)
			b = r.value(b, m.column, row)
			if same {
				advance() // never so, unless the file is wrong
			}
			continue
		}
		if len(m.members) == 0 || same && next.value[0] != '{' {
			if same {
				copyNext()
			}
			continue
		}
		mark, wasFirst := len(b), first
		separate()
		b = append(append(b, m.key...), ": {"...)
		var inner []byte
		if same {
			inner = next.value
		}
		var some bool
		b, some = r.members(b, m, row, inner)
		b = append(b, '}')
		if !some && !same {
			b, first = b[:mark], wasFirst
		}
		if same {
			advance()
		}
	}
	for more {
		copyNext()
	}
	return b, !first
}

// value appends the value of a column.
func (r *rebuilder) value(b []byte, column, row int) []byte {
	c, v := &r.columns[column], &r.vectors[column]
	switch c.Kind {
	case Text:
		return AppendString(b, v.textAt(row))
	case Double:
		return AppendDouble(b, v.numbers[row], c.Form)
	case Integer:
		return strconv.AppendInt(b, v.ints[row], 10)
	case Bool:
		if v.ints[row] == 1 {
			return append(b, "true"...)
		}
		return append(b, "false"...)
	}
	b = append(b, '"')
	b = AppendTime(b, v.ints[row], c.Kind, c.Form)
	return append(b, '"')
}
