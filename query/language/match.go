package language

import (
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/valyala/fastjson"
)

// Matcher reports whether a record satisfies a query, as the SQL of sql.go does. Many goroutines may use it at once.
type Matcher func(*Record) bool

// Record is a record as matchers look at it. One goroutine at a time may use it. It may be used again for another record.
type Record struct {
	// The columns of the record's row, for tests of them.
	ID               uuid.UUID
	Time, InsertedAt time.Time

	parser fastjson.Parser
	root   *fastjson.Value
	folded []string // the record's texts, folded

	hasFolded bool // folded has been made
}

// Read takes a record's JSON, as PostgreSQL writes it. The record that it took before is gone.
func (r *Record) Read(data []byte) (err error) {
	r.folded, r.hasFolded = r.folded[:0], false
	r.root, err = r.parser.ParseBytes(data)
	return err
}

// compile returns the matcher of a node.
func compile(n node) Matcher {
	switch n := n.(type) {
	case all:
		parts := compileEach(n)
		return func(r *Record) bool {
			for _, part := range parts {
				if !part(r) {
					return false
				}
			}
			return true
		}
	case either:
		parts := compileEach(n)
		return func(r *Record) bool {
			for _, part := range parts {
				if part(r) {
					return true
				}
			}
			return false
		}
	case not:
		inner := compile(n.node)
		return func(r *Record) bool { return !inner(r) }
	case equals:
		number := n.typed && isNumber(n.value) && isStorable(n.value)
		var d decimal
		if number {
			d = parseDecimal(n.value)
		}
		return matchAt(n.path, func(v *fastjson.Value) bool {
			switch v.Type() {
			case fastjson.TypeString:
				return string(v.GetStringBytes()) == n.value
			case fastjson.TypeNumber:
				return number && numberOf(v).compare(d) == 0
			}
			return n.typed && v.Type().String() == n.value // the types of true, false and null have these names
		})
	case exists:
		ways := n.path.ways()
		return func(r *Record) bool {
			return slices.ContainsFunc(ways, func(way []string) bool {
				return anyAt(r.root, way, func(*fastjson.Value) bool { return true })
			})
		}
	case text:
		p := n.pattern.folded()
		return func(r *Record) bool {
			for _, s := range r.texts() {
				if p.isIn(s) {
					return true
				}
			}
			return false
		}
	case like:
		return matchAt(n.path, func(v *fastjson.Value) bool {
			s, ok := textOf(v)
			return ok && n.pattern.isWhole(s)
		})
	case contains:
		p := n.pattern.folded()
		return matchAt(n.path, func(v *fastjson.Value) bool {
			s, ok := textOf(v)
			return ok && p.isIn(fold(s))
		})
	case same:
		value := fold(n.value)
		return matchAt(n.path, func(v *fastjson.Value) bool {
			s, ok := textOf(v)
			return ok && fold(s) == value
		})
	case matching:
		return matchAt(n.path, func(v *fastjson.Value) bool {
			s, ok := textOf(v)
			return ok && n.matches.MatchString(s)
		})
	case network:
		return matchAt(n.path, func(v *fastjson.Value) bool {
			if v.Type() != fastjson.TypeString {
				return false
			}
			s := string(v.GetStringBytes())
			return s == n.word || n.has(s)
		})
	case within:
		return matchAt(n.path, n.holds)
	case column:
		return func(r *Record) bool {
			at := r.column(n.name)
			return (n.low.kind == open || n.low.admits(at.Compare(n.low.at))) && (n.high.kind == open || n.high.admits(-at.Compare(n.high.at)))
		}
	case moment:
		inData := compile(equals{path: firmPath(n.name), value: n.word})
		return func(r *Record) bool {
			at := r.column(n.name)
			return !at.Before(n.from) && at.Before(n.to) || inData(r)
		}
	case identity:
		inData := compile(equals{path: firmPath("id"), value: n.word})
		return func(r *Record) bool { return r.ID == n.id || inData(r) }
	}
	panic("language: no matcher for " + n.String())
}

// column returns the time in a column of the record's row.
func (r *Record) column(name string) time.Time {
	if name == "time" {
		return r.Time
	}
	return r.InsertedAt
}

// compileEach returns the matchers of nodes.
func compileEach(nodes []node) []Matcher {
	parts := make([]Matcher, len(nodes))
	for i, n := range nodes {
		parts[i] = compile(n)
	}
	return parts
}

// requiredBy returns an equality that every record satisfies which satisfies the node, or nil if it finds none.
func requiredBy(n node) *equals {
	switch n := n.(type) {
	case equals:
		return &n
	case all:
		for _, part := range n {
			if e := requiredBy(part); e != nil {
				return e
			}
		}
	}
	return nil
}

// scalar is a string, a number, true, false or null. Equal values are equal scalars, so it may be the key of a map.
type scalar struct {
	kind   fastjson.Type
	text   string
	number decimal
}

// scalarOf returns the scalar that a value is. An object or array is none: no scalar of a query equals what it returns then.
func scalarOf(v *fastjson.Value) scalar {
	switch v.Type() {
	case fastjson.TypeString:
		return scalar{kind: fastjson.TypeString, text: string(v.GetStringBytes())}
	case fastjson.TypeNumber:
		return scalar{kind: fastjson.TypeNumber, number: numberOf(v)}
	}
	return scalar{kind: v.Type()}
}

// scalars returns the values that satisfy n.
func (n equals) scalars() []scalar {
	all := []scalar{{kind: fastjson.TypeString, text: n.value}}
	switch {
	case n.typed && isNumber(n.value) && isStorable(n.value):
		all = append(all, scalar{kind: fastjson.TypeNumber, number: parseDecimal(n.value)})
	case n.typed && n.value == "true":
		all = append(all, scalar{kind: fastjson.TypeTrue})
	case n.typed && n.value == "false":
		all = append(all, scalar{kind: fastjson.TypeFalse})
	case n.typed && n.value == "null":
		all = append(all, scalar{kind: fastjson.TypeNull})
	}
	return all
}

// numberOf returns the number that v is.
func numberOf(v *fastjson.Value) decimal {
	var buffer [32]byte
	return parseDecimal(string(v.MarshalTo(buffer[:0])))
}

// textOf returns the text of a string, a number, true or false. ok is false for other values.
func textOf(v *fastjson.Value) (text string, ok bool) {
	switch v.Type() {
	case fastjson.TypeString:
		return string(v.GetStringBytes()), true
	case fastjson.TypeNumber, fastjson.TypeTrue, fastjson.TypeFalse:
		return v.String(), true
	}
	return "", false
}

// holds reports whether a value lies between the bounds.
func (n within) holds(v *fastjson.Value) bool {
	if n.low.kind == numeric || n.high.kind == numeric {
		var d decimal
		switch v.Type() {
		case fastjson.TypeNumber:
			d = numberOf(v)
		case fastjson.TypeString:
			s := string(v.GetStringBytes())
			if !isNumberText(s) {
				return false
			}
			d = parseDecimal(s)
		default:
			return false
		}
		return (n.low.kind == open || n.low.admits(d.compare(n.low.number))) &&
			(n.high.kind == open || n.high.admits(-d.compare(n.high.number)))
	}
	if v.Type() != fastjson.TypeString {
		return false
	}
	t, ok := parseInstant(string(v.GetStringBytes()))
	return ok && (n.low.kind == open || n.low.admits(t.Compare(n.low.at))) &&
		(n.high.kind == open || n.high.admits(-t.Compare(n.high.at)))
}

// admits reports whether a lower bound admits a value. c is negative if the value is less than the bound, 0 if it is equal, else
// positive. For an upper bound, negate c.
func (b bound) admits(c int) bool { return c > 0 || c == 0 && b.inclusive }

// texts returns the record's strings, numbers, trues and falses, folded.
func (r *Record) texts() []string {
	if r.hasFolded {
		return r.folded
	}
	var walk func(v *fastjson.Value)
	walk = func(v *fastjson.Value) {
		switch v.Type() {
		case fastjson.TypeObject:
			v.GetObject().Visit(func(_ []byte, v *fastjson.Value) { walk(v) })
		case fastjson.TypeArray:
			for _, e := range v.GetArray() {
				walk(e)
			}
		default:
			if s, ok := textOf(v); ok {
				r.folded = append(r.folded, fold(s))
			}
		}
	}
	walk(r.root)
	r.hasFolded = true
	return r.folded
}

// fold returns the same string for all strings that differ in case alone.
func fold(s string) string { return strings.Map(foldRune, s) }

// foldRune returns the same character for all that differ in case alone.
func foldRune(r rune) rune {
	if r < utf8.RuneSelf {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}
	least := r
	for next := unicode.SimpleFold(r); next != r; next = unicode.SimpleFold(next) {
		least = min(least, next)
	}
	if least < utf8.RuneSelf { // the signs for kelvin and the long s
		return foldRune(least)
	}
	return least
}

// folded returns the pattern with its parts folded.
func (p pattern) folded() pattern {
	folded := make(pattern, len(p))
	for i, part := range p {
		folded[i] = fold(part)
	}
	return folded
}

// isIn reports whether the pattern's parts are in s, one after another.
func (p pattern) isIn(s string) bool {
	for _, part := range p {
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s = s[i+len(part):]
	}
	return true
}

// isWhole reports whether the pattern, which has a wildcard, matches all of s.
func (p pattern) isWhole(s string) bool {
	first, last := p[0], p[len(p)-1]
	return len(s) >= len(first)+len(last) && strings.HasPrefix(s, first) && strings.HasSuffix(s, last) &&
		p[1:len(p)-1].isIn(s[len(first):len(s)-len(last)])
}

// mayBeInNumbers reports whether the text of a number, true or false could have the pattern in it.
func (p pattern) mayBeInNumbers() bool {
	for _, part := range p {
		if strings.Trim(fold(part), "0123456789.-truefals") != "" {
			return false
		}
	}
	return true
}
