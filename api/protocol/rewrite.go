package protocol

import (
	"bytes"

	"millrace/internal/eventtime"
	"millrace/internal/record"
	"millrace/internal/scan"
)

// timeKey is the field that the worker looks for a time in before all others, by default.
const timeKey = "time"

// rewriter changes records as Options say: it adds constant fields, and has the time be found in the fields that the client names.
type rewriter struct {
	fields []Field
	times  []timeField

	members []member
	out     objects
}

// timeField is a field that may hold a record's time.
type timeField struct {
	name string
	rule *eventtime.Rule // finds a time in it
}

// newRewriter returns what changes records as o says, nil if nothing is to change.
func newRewriter(o *Options) *rewriter {
	if len(o.Fields) == 0 && len(o.TimeFields) == 0 {
		return nil
	}
	w := &rewriter{fields: o.Fields}
	for _, name := range o.TimeFields {
		rule, err := eventtime.New([]string{name}, nil, 0)
		if err != nil {
			continue // Options have no such names
		}
		w.times = append(w.times, timeField{name, rule})
	}
	return w
}

// fill fills records with what split makes of a body, rewritten. w may be nil. An error refuses the body whole.
func (w *rewriter) fill(records *record.List, split func(records *record.List) *scan.Error) *scan.Error {
	if w == nil {
		return split(records)
	}
	first := &record.List{Limits: records.Limits}
	first.KeepVerdicts = true
	err := split(first)
	records.Rewrite(first, w.rewrite)
	return err
}

// rewrite appends record, a compacted object, to dst as it is to be stored. If one of the client's fields holds a time, the first
// of them is in time as well, before everything else. What the record had in time is then in an object original. A constant field
// is left out if the record has its name.
func (w *rewriter) rewrite(dst, record []byte) []byte {
	var ok bool
	if w.members, ok = appendMembers(w.members[:0], record); !ok {
		return append(dst, record...) // can't be: it is compacted
	}
	w.out.b = dst
	w.out.begin()
	stamp := w.stamp(record)
	var original *member
	if stamp != nil {
		original = find(w.members, timeKey)
		w.out.key([]byte(`"` + timeKey + `"`))
		w.out.b = append(w.out.b, stamp.value...)
	}
	for _, m := range w.members {
		if original == nil || !isNamed(m.key, timeKey) {
			w.out.member(m)
		}
	}
	if original != nil {
		w.out.key(w.free(`"original"`))
		w.out.begin()
		w.out.member(*original)
		w.out.end()
	}
	for _, f := range w.fields {
		if !w.has(f.Name) && (stamp == nil || string(f.Name) != `"`+timeKey+`"`) {
			w.out.key(f.Name)
			w.out.b = append(w.out.b, f.Value...)
		}
	}
	w.out.end()
	dst, w.out.b = w.out.b, nil
	return dst
}

// appendAdded appends the members that a record, an object, gets before its own. What the record has in time stays: of two members
// with one name the first is found to be the time, and the last is stored.
func (w *rewriter) appendAdded(members, record []byte) []byte {
	var ok bool
	if w.members, ok = appendMembers(w.members[:0], record); !ok {
		return members // it will be refused, or be repaired
	}
	add := func(key, value []byte) {
		if len(members) > 0 {
			members = append(members, ',')
		}
		members = append(append(append(members, key...), ':'), value...)
	}
	stamp := w.stamp(record)
	if stamp != nil {
		add([]byte(`"`+timeKey+`"`), stamp.value)
	}
	for _, f := range w.fields {
		if !w.has(f.Name) && (stamp == nil || string(f.Name) != `"`+timeKey+`"`) {
			add(f.Name, f.Value)
		}
	}
	return members
}

// stamp returns the member that holds the record's time and has to be copied to time. It returns nil if there is none, or if the
// first that holds one is time.
func (w *rewriter) stamp(record []byte) *member {
	for _, t := range w.times {
		if _, result := t.rule.Find(record); result != eventtime.Own {
			continue
		}
		if t.name == timeKey {
			return nil
		}
		return w.readable(t)
	}
	return nil
}

// readable returns the first of the members of a name that holds a time.
func (w *rewriter) readable(t timeField) *member {
	for i, m := range w.members {
		if !isNamed(m.key, t.name) {
			continue
		}
		one := append(append(append(append([]byte("{"), m.key...), ':'), m.value...), '}')
		if _, result := t.rule.Find(one); result == eventtime.Own {
			return &w.members[i]
		}
	}
	return nil
}

// has reports whether the record has a key, which is given with its quotes.
func (w *rewriter) has(key []byte) bool {
	for _, m := range w.members {
		if bytes.Equal(m.key, key) {
			return true
		}
	}
	return false
}

// free returns key with as many underscores in front as it needs to be no key of the record.
func (w *rewriter) free(key string) []byte {
	for w.has([]byte(key)) {
		key = `"_` + key[1:]
	}
	return []byte(key)
}
