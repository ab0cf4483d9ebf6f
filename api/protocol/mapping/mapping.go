// Package mapping makes one record of what a protocol sends in several places: the record's own fields, attributes, what the
// protocol itself says, such as a time and a severity, and what many records share, such as labels.
//
// The rules are the same for all protocols:
//
//   - Where sources have a field of the same name, the one that was added first has it. A protocol adds its sources in the order
//     of their priority. Another value of the name goes into an object that is named after its source. An equal value is left
//     out. Within one source the last value counts, as in jsonb.
//   - If the protocol asks for it, a key with dots becomes nested objects: service.name is the member name of service. Where
//     service is a value of its own already, name stays part of the key service.name.
//   - A text that is a JSON object becomes the record's own fields. Any other text is its message.
//   - The protocol's time is the field time. If the record has a time of its own, it is the field @timestamp.
//
// So every value that comes in is in the record. The record depends on nothing but what was added, and on its order. It takes time
// and memory linear in the length of what was added. Once a Mapper has grown, records without conflicts cost no allocation.
//
// Nothing here starts a goroutine. A Mapper belongs to one goroutine at a time.
package mapping

import (
	"sync"
	"unsafe"

	"millrace/internal/record"
	"millrace/internal/scan"
)

// Source is where a value comes from. Own and Outer are there for every protocol. First and the following numbers are a
// protocol's own; it names them in Config.
type Source uint8

const (
	// Own is the source of the record's own fields. It must be added before the others. Its keys are taken as they are.
	Own Source = iota

	// Outer is what surrounds the record's own fields where they were in a string of an object, as Docker's log files have them.
	// The object that holds what loses is "outer". Its keys are taken as they are.
	Outer

	// First is the first source of a protocol's own.
	First
)

// MostSources is the most sources that a protocol may name.
const MostSources = 6

// The names of fields that protocols set.
const (
	TimeField    = "time"
	LevelField   = "level"
	MessageField = "message"
	HostField    = "host.name"    // for a source with dots
	ServiceField = "service.name" // for a source with dots
	TraceField   = "trace_id"
	SpanField    = "span_id"

	// LogField is the field in which Docker's log files, and what reads them, have the text of a record.
	LogField = "log"

	otherTimeField = "@timestamp"
)

// Config says how a protocol's records are made.
type Config struct {
	// Sources are the protocol's own, in the order of their numbers from First on.
	Sources []SourceConfig

	// Encoder writes the values that are added with Encoded. It may be nil if there are none.
	Encoder Encoder
}

// SourceConfig describes a source.
type SourceConfig struct {
	Name   string // of the object that holds the values that lose
	Dotted bool   // keys with dots become nested objects
}

// Encoder writes values that a protocol has in a form of its own.
type Encoder interface {
	// Encode writes the member key. value and form are what was passed to Encoded. It must not use w.JSON.
	Encode(w *record.Writer, key, value string, form uint64)
}

// Mapper makes records. For each, Begin is called first, then what adds values, then End. Strings that are added must not change
// until the record's End, or, between BeginShared and EndShared, until Free.
type Mapper struct {
	records  *record.List
	config   Config
	keepText bool

	record tree
	own    string // members that are written as they are; ghosts of the record's tree stand for them
	check  bool   // own must be checked
	budget int    // how many bytes of JSON may still be looked through for a path of keys
	buf    []byte // strings that were made for the record

	shared        tree
	sharedMembers []member
	sharedBuf     []byte
	sharedJSON    []byte // shared as it is written, once it was; "" if it can't be reused
	inShared      bool
	withShared    bool // the record's shared values are in shared, rather than in its own tree

	scan, inner scan.Body // of texts that may be JSON, and of texts in them
	clock       clock
	fill        func(w *record.Writer)
}

var pool = sync.Pool{New: func() any {
	m := new(Mapper)
	m.fill = m.write
	return m
}}

// New returns a Mapper whose records go to records, which is between Begin and End. The caller must call Free after the last. If
// keepText is true, a text is always the message, also if it is JSON.
func New(records *record.List, c Config, keepText bool) *Mapper {
	m := pool.Get().(*Mapper)
	m.records, m.config, m.keepText = records, c, keepText
	m.shared.reset()
	m.sharedMembers, m.sharedJSON = m.sharedMembers[:0], m.sharedJSON[:0]
	m.inShared = false
	return m
}

// maxKept is how much memory, in bytes or members, a Mapper may keep for the next request in each of its parts.
const (
	maxKeptBytes   = 64 << 10
	maxKeptMembers = 1 << 10
)

// Free ends the use of m.
func (m *Mapper) Free() {
	m.records, m.config, m.own = nil, Config{}, ""
	m.record.release()
	m.shared.release()
	clear(m.sharedMembers)
	if cap(m.sharedMembers) > maxKeptMembers {
		m.sharedMembers = nil
	}
	for _, b := range []*[]byte{&m.buf, &m.sharedBuf, &m.sharedJSON} {
		if cap(*b) > maxKeptBytes {
			*b = nil
		}
	}
	for _, b := range []*scan.Body{&m.scan, &m.inner} {
		if cap(b.NDJSON) > maxKeptBytes {
			*b = scan.Body{}
		}
	}
	pool.Put(m)
}

// BeginShared begins what all records from the next Begin on share. It has less priority than what is added to a record itself.
func (m *Mapper) BeginShared() {
	m.shared.reset()
	m.sharedMembers, m.sharedBuf, m.sharedJSON = m.sharedMembers[:0], m.sharedBuf[:0], m.sharedJSON[:0]
	m.inShared = true
}

// EndShared ends what BeginShared began.
func (m *Mapper) EndShared() { m.inShared = false }

// Begin begins a record.
func (m *Mapper) Begin() {
	m.record.reset()
	m.own, m.check, m.budget, m.buf = "", false, mostSearched, m.buf[:0]
}

// String adds a string.
func (m *Mapper) String(s Source, key, value string) {
	m.add(member{source: s, kind: kindString, key: key, text: value})
}

// Int adds an integer.
func (m *Mapper) Int(s Source, key string, value int64) {
	m.add(member{source: s, kind: kindInt, key: key, number: uint64(value)})
}

// Uint adds an integer that is not negative.
func (m *Mapper) Uint(s Source, key string, value uint64) {
	m.add(member{source: s, kind: kindUint, key: key, number: value})
}

// Float adds a number.
func (m *Mapper) Float(s Source, key string, value float64) {
	m.add(member{source: s, kind: kindFloat, key: key, number: floatBits(value)})
}

// Bool adds true or false.
func (m *Mapper) Bool(s Source, key string, value bool) {
	number := uint64(0)
	if value {
		number = 1
	}
	m.add(member{source: s, kind: kindBool, key: key, number: number})
}

// Null adds null.
func (m *Mapper) Null(s Source, key string) { m.add(member{source: s, kind: kindNull, key: key}) }

// Encoded adds a value that the protocol's Encoder writes. form tells the Encoder which form it has.
func (m *Mapper) Encoded(s Source, key, value string, form uint64) {
	m.add(member{source: s, kind: kindEncoded, key: key, text: value, number: form})
}

// JSON adds a value that is JSON from outside. It must be well-formed. What jsonb can't hold in it is repaired, or the record
// refused, as record.Writer.JSON says.
func (m *Mapper) JSON(s Source, key, value string) {
	m.add(member{source: s, kind: kindJSON, key: key, text: value})
}

// Hex adds bytes as a string of hexadecimal digits.
func (m *Mapper) Hex(s Source, key, value string) {
	const digits = "0123456789abcdef"
	b := m.buffer()
	from := len(*b)
	for i := range len(value) {
		*b = append(*b, digits[value[i]>>4], digits[value[i]&15])
	}
	m.String(s, key, stringOf((*b)[from:]))
}

// Time adds the protocol's time, in nanoseconds since 1970. It must be added after the record's own fields and attributes, and
// before what shares the record's time with others.
func (m *Mapper) Time(s Source, nanos int64) {
	v := member{source: s, kind: kindTime, key: TimeField, number: uint64(nanos)}
	t := m.tree()
	if t.find(root, TimeField, hashOf(TimeField)) != none {
		if hash := hashOf(otherTimeField); t.find(root, otherTimeField, hash) == none {
			v.key = otherTimeField
		}
	}
	m.add(v)
}

// Message adds the text of the record: its own fields if it is a JSON object, else its message.
func (m *Mapper) Message(text string) {
	if !m.Fields(text) {
		m.String(Own, MessageField, text)
	}
}

// End completes the record and reports whether it was accepted. at is its offset in the body.
func (m *Mapper) End(at int) bool {
	m.withShared = true
	if m.meetsShared() {
		m.withShared = false
		for _, v := range m.sharedMembers {
			m.record.add(m, v)
		}
	}
	return m.records.Build(at, m.fill)
}

// meetsShared reports whether a name of the record could be one of the shared names.
func (m *Mapper) meetsShared() bool {
	r, s := &m.record, &m.shared
	if r.literalDots && s.dotted {
		return true
	}
	if r.mask&s.mask == 0 {
		return false
	}
	for i := s.nodes[root].first; i != none; i = s.nodes[i].next {
		if n := &s.nodes[i]; r.find(root, n.key, n.hash) != none {
			return true
		}
	}
	return false
}

// write writes the record. What has the time comes first, because the worker looks for it.
func (m *Mapper) write(w *record.Writer) {
	t := &m.record
	if t.timeAt != none {
		m.writeNode(w, t, t.timeAt)
	}
	if m.check {
		w.Unchecked(m.own)
	} else {
		w.Made(m.own)
	}
	m.writeMembers(w, t, root, t.timeAt)
	if !m.withShared {
		return
	}
	if len(m.sharedJSON) > 0 {
		w.Made(stringOf(m.sharedJSON))
		return
	}
	from, before := w.Len(), w.Repaired()
	m.writeMembers(w, &m.shared, root, none)
	if !before && !w.Repaired() && !m.shared.hasJSON {
		m.sharedJSON = w.Copy(m.sharedJSON, from)
	}
}

// writeMembers writes the members of an object, without one of them.
func (m *Mapper) writeMembers(w *record.Writer, t *tree, object, without int32) {
	for i := t.nodes[object].first; i != none; i = t.nodes[i].next {
		if i != without && !t.nodes[i].ghost {
			m.writeNode(w, t, i)
		}
	}
}

// writeNode writes a member.
func (m *Mapper) writeNode(w *record.Writer, t *tree, i int32) {
	n := &t.nodes[i]
	switch n.kind {
	case kindObject:
		w.Object(n.key, func(w *record.Writer) { m.writeMembers(w, t, i, none) })
	case kindString:
		w.String(n.key, n.text)
	case kindInt:
		w.Int(n.key, int64(n.number))
	case kindUint:
		w.Uint(n.key, n.number)
	case kindFloat:
		w.Float(n.key, floatOf(n.number))
	case kindBool:
		w.Bool(n.key, n.number != 0)
	case kindNull:
		w.Null(n.key)
	case kindTime:
		w.String(n.key, stringOf(m.clock.format(int64(n.number))))
	case kindMade:
		w.MadeJSON(n.key, n.text)
	case kindJSON:
		w.JSON(n.key, bytesOf(n.text))
	case kindEncoded:
		m.config.Encoder.Encode(w, n.key, n.text, n.number)
	}
}

// add adds a member to the record, or to what is shared.
func (m *Mapper) add(v member) {
	if m.inShared {
		m.sharedMembers = append(m.sharedMembers, v)
	}
	m.tree().add(m, v)
}

// tree returns what members are added to.
func (m *Mapper) tree() *tree {
	if m.inShared {
		return &m.shared
	}
	return &m.record
}

// buffer returns where strings are made. What they are made of must stay as it is until the record's end, so they are appended.
func (m *Mapper) buffer() *[]byte {
	if m.inShared {
		return &m.sharedBuf
	}
	return &m.buf
}

// source returns the description of a source.
func (m *Mapper) source(s Source) SourceConfig {
	switch {
	case s == Own:
		return SourceConfig{Name: "own"}
	case s == Outer:
		return SourceConfig{Name: "outer"}
	}
	return m.config.Sources[s-First]
}

// stringOf returns b as a string, without a copy. b must not change while the string is used.
func stringOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// bytesOf returns s as bytes, without a copy. They must not be changed.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
