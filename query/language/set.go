package language

import (
	"slices"

	"github.com/valyala/fastjson"
)

// Set holds a value for each of many queries, and finds the queries that a record satisfies. Of hundreds of queries
// that each ask for another value of one field, it tries only those that ask for the record's own value. The zero Set
// is empty. One goroutine at a time may use it.
type Set[V any] struct {
	byName  map[string]*Entry[V]    // by the query's normal form
	byField map[string]*setField[V] // entries that require a value, by the normal form of its path
	others  map[*Entry[V]]struct{}  // entries that are tried on every record
	records uint64                  // how many records each was called with
}

// Entry is one query of a Set.
type Entry[V any] struct {
	Value V

	name     string // the query's normal form
	match    Matcher
	required *equals // an equality that every record of the query satisfies; nil: requiredBy found none
	triedOn  uint64  // the value of Set.records when the entry was tried last
}

// setField is a field that some queries require a value of.
type setField[V any] struct {
	path    path
	byValue map[scalar][]*Entry[V]
}

// Entry returns the entry of a query. It makes one with the zero value if there is none.
func (s *Set[V]) Entry(q Query) *Entry[V] {
	name := q.String()
	e := s.byName[name]
	if e != nil {
		return e
	}
	e = &Entry[V]{name: name, match: q.Matcher(), required: requiredBy(q.node())}
	if s.byName == nil {
		s.byName, s.byField, s.others = make(map[string]*Entry[V]), make(map[string]*setField[V]), make(map[*Entry[V]]struct{})
	}
	s.byName[name] = e
	if e.required == nil {
		s.others[e] = struct{}{}
		return e
	}
	path := e.required.path.String()
	if s.byField[path] == nil {
		s.byField[path] = &setField[V]{e.required.path, make(map[scalar][]*Entry[V])}
	}
	for _, value := range e.required.scalars() {
		s.byField[path].byValue[value] = append(s.byField[path].byValue[value], e)
	}
	return e
}

// Remove takes an entry out.
func (s *Set[V]) Remove(e *Entry[V]) {
	delete(s.byName, e.name)
	delete(s.others, e)
	if e.required == nil {
		return
	}
	path := e.required.path.String()
	f := s.byField[path]
	for _, value := range e.required.scalars() {
		rest := slices.DeleteFunc(f.byValue[value], func(other *Entry[V]) bool { return other == e })
		if f.byValue[value] = rest; len(rest) == 0 {
			delete(f.byValue, value)
		}
	}
	if len(f.byValue) == 0 {
		delete(s.byField, path)
	}
}

// Each calls f with the entry of each query that a record satisfies.
func (s *Set[V]) Each(r *Record, f func(*Entry[V])) {
	s.records++
	try := func(e *Entry[V]) {
		if e.triedOn != s.records && e.match(r) {
			f(e)
		}
		e.triedOn = s.records
	}
	for e := range s.others {
		try(e)
	}
	for _, required := range s.byField {
		matchAt(required.path, func(v *fastjson.Value) bool {
			for _, e := range required.byValue[scalarOf(v)] {
				try(e)
			}
			return false
		})(r)
	}
}
