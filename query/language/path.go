package language

import (
	"strings"

	"github.com/valyala/fastjson"

	"millrace/internal/fieldindex"
)

// path is the way to a member, by the names of a field.
type path struct {
	names []string
	firm  []bool // by name: it was in quotes, so it is a whole name; nil: all are
}

// firmPath returns the path whose names are all whole.
func firmPath(names ...string) path { return path{names: names} }

// isLoose reports whether the dot before the name i may be part of a name.
func (p path) isLoose(i int) bool { return p.firm != nil && !p.firm[i-1] && !p.firm[i] }

// ways returns the members that the path may mean; see fieldindex.Ways.
func (p path) ways() [][]string { return fieldindex.Ways(p.names, p.isLoose) }

// Ways returns the members that a field without quotes may mean, each by the names on the way to it.
func Ways(names []string) [][]string {
	return fieldindex.Ways(names, func(int) bool { return true })
}

// String returns the path as the normal form has it. A name that may be a part of another one has no quotes.
func (p path) String() string {
	var b strings.Builder
	for i, name := range p.names {
		if i > 0 {
			b.WriteByte('.')
		}
		if i > 0 && p.isLoose(i) || i+1 < len(p.names) && p.isLoose(i+1) {
			for k, r := range name {
				if isEscapable(r) && r != '_' && r != '@' && r != '/' && (r != '-' || k == 0) {
					b.WriteByte('\\')
				}
				b.WriteRune(r)
			}
			continue
		}
		b.WriteString(quote(name))
	}
	return b.String()
}

// isColumn reports whether the path is that of a column: its name without quotes.
func (p path) isColumn(name string) bool {
	return len(p.names) == 1 && p.names[0] == name && p.firm != nil && !p.firm[0]
}

// anyAt reports whether f returns true for one of the values at a path. It calls f no more after that.
func anyAt(v *fastjson.Value, way []string, f func(*fastjson.Value) bool) bool {
	if len(way) == 0 {
		return f(v)
	}
	switch v.Type() {
	case fastjson.TypeObject:
		member := v.GetObject().Get(way[0])
		return member != nil && anyAt(member, way[1:], f)
	case fastjson.TypeArray:
		for _, e := range v.GetArray() {
			if e.Type() == fastjson.TypeObject && anyAt(e, way, f) {
				return true
			}
		}
	}
	return false
}

// matchAt returns the matcher that is true when f is true for a value at the path, or for a member of an array there.
func matchAt(p path, f func(*fastjson.Value) bool) Matcher {
	member := func(v *fastjson.Value) bool {
		if v.Type() != fastjson.TypeArray {
			return f(v)
		}
		for _, e := range v.GetArray() {
			if f(e) {
				return true
			}
		}
		return false
	}
	ways := p.ways()
	return func(r *Record) bool {
		for _, way := range ways {
			if anyAt(r.root, way, member) {
				return true
			}
		}
		return false
	}
}
