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
	"encoding/base64"
	"encoding/hex"
	"math"
	"slices"
	"strings"
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

// MostMembers is the most members that a record may have, with those that it shares. A record with more is refused as too large. A
// member takes some hundred bytes here, and two in a body of protobuf, so that few bytes could have very much memory taken for them.
const MostMembers = 1 << 17

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
//
// Most records have no conflicts. Their members are written in the order in which they came, and next has found that this may be
// done. The other records are put together in a tree.
//
// Most records also have the keys of the record before. While they do, nothing is looked for: a shape knows how they are written.
type Mapper struct {
	records  *record.List
	config   Config
	keepText bool

	members       []member // the shared ones, then the record's
	shared        int      // how many of them are shared
	sharedTooMany bool     // tooMany of what is shared
	inShared      bool
	inTree        bool   // the record has to be put together in a tree
	tooMany       bool   // the record, or what is shared, has more than MostMembers
	spare         member // takes the values of those
	paths         paths
	basePaths     paths // those of the shared members
	path          path  // of the record's last member
	shape         shape // of an earlier record
	alike         bool  // the record has had the shape's keys so far; then paths, path and where its members stand are not known
	timeAt        int   // index of the member that is the protocol's time, or -1
	hasTime       bool  // the record has a field time of another source

	own    string // members that are written as they are
	check  bool   // own must be checked
	budget int    // how many bytes of JSON may still be looked through for a path of keys
	buf    []byte // strings that were made for the record

	spent, most int // how many bytes were written or shared, and how many may be

	record, sharedTree tree
	sharedBuf          []byte // strings that were made for the shared members
	sharedJSON         []byte // the shared members as they are written, once they were; "" if they can't be reused

	scan, inner scan.Body // of texts that may be JSON, and of texts in them
	clock       clock

	alwaysInTree bool // for tests

	fill func(w *record.Writer)
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
	m.spent, m.most = 0, math.MaxInt
	m.shape.forget()
	m.BeginShared()
	m.EndShared()
	return m
}

// Limit bounds what becomes of a body of n bytes. What records share is in each of them, so that few bytes could become very many.
// Once the bound is passed, records are refused as too large.
func (m *Mapper) Limit(n int) {
	// A kilobyte is much for what records share, and a hundred bytes little for a record of its own. Large bodies are bounded
	// more strictly, because their records are in memory at once.
	m.most = min(32*n+256<<10, 4*n+32<<20)
}

// leastMember is about the least length of a member in a record.
const leastMember = len(`"":null,`)

// Full reports whether the bound is passed.
func (m *Mapper) Full() bool { return m.spent > m.most }

// What a Mapper may keep for the next request in each of its parts.
const (
	maxKeptBytes   = 64 << 10
	maxKeptMembers = 1 << 10
)

// Free ends the use of m.
func (m *Mapper) Free() {
	m.records, m.config, m.own, m.alwaysInTree = nil, Config{}, "", false
	m.record.release()
	m.sharedTree.release()
	m.path = path{}
	if m.members = m.members[:cap(m.members)]; len(m.members) > maxKeptMembers {
		m.members = nil
	}
	clear(m.members)
	m.shape.release()
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
	m.members, m.sharedBuf, m.sharedJSON = m.members[:0], m.sharedBuf[:0], m.sharedJSON[:0]
	m.inShared, m.inTree, m.tooMany, m.alike, m.budget = true, true, false, false, mostSearched
}

// EndShared ends what BeginShared began.
func (m *Mapper) EndShared() {
	m.inShared = false
	m.shared = len(m.members)
	m.sharedTree.reset()
	m.basePaths.reset()
	for i := range m.members {
		v := &m.members[i]
		m.spent += len(v.key) + len(v.text) + leastMember
		m.basePaths.add(hashOf(v.key))
	}
	m.addToTree(&m.sharedTree, m.members)
	m.sharedTooMany = m.tooMany
	t := &m.sharedTree
	for i := t.nodes[root].first; i != none; i = t.nodes[i].next {
		m.basePaths.add(t.nodes[i].hash)
	}
	// The place of the protocol's time is taken; see addPath.
	m.basePaths.full = !m.basePaths.add(hashOf(TimeField)) || m.basePaths.full
	if m.shape.shared != m.shared || !m.shape.base.equal(&m.basePaths) {
		m.shape.forget()
	}
}

// Begin begins a record.
func (m *Mapper) Begin() {
	m.members = m.members[:m.shared]
	m.inTree, m.tooMany = m.basePaths.full || m.alwaysInTree, m.sharedTooMany
	m.timeAt, m.hasTime = -1, false
	if m.alike = len(m.shape.members) > 0 && !m.inTree; !m.alike {
		m.path = path{}
		m.paths.copy(&m.basePaths)
	}
	m.own, m.check, m.budget, m.buf = "", false, mostSearched, m.buf[:0]
}

// String adds a string.
func (m *Mapper) String(s Source, key, value string) { m.next(s, kindString, key).text = value }

// Int adds an integer.
func (m *Mapper) Int(s Source, key string, value int64) {
	m.next(s, kindInt, key).number = uint64(value)
}

// Uint adds an integer that is not negative.
func (m *Mapper) Uint(s Source, key string, value uint64) { m.next(s, kindUint, key).number = value }

// Float adds a number.
func (m *Mapper) Float(s Source, key string, value float64) {
	m.next(s, kindFloat, key).number = math.Float64bits(value)
}

// Bool adds true or false.
func (m *Mapper) Bool(s Source, key string, value bool) {
	if v := m.next(s, kindBool, key); value {
		v.number = 1
	}
}

// Null adds null.
func (m *Mapper) Null(s Source, key string) { m.next(s, kindNull, key) }

// Encoded adds a value that the protocol's Encoder writes. form tells the Encoder which form it has.
func (m *Mapper) Encoded(s Source, key, value string, form uint64) {
	v := m.next(s, kindEncoded, key)
	v.text, v.number = value, form
}

// JSON adds a value that is JSON from outside. It must be well-formed. What jsonb can't hold in it is repaired, or the record
// refused, as record.Writer.JSON says.
func (m *Mapper) JSON(s Source, key, value string) { m.next(s, kindJSON, key).text = value }

// Hex adds bytes as a string of hexadecimal digits.
func (m *Mapper) Hex(s Source, key, value string) {
	b := m.buffer()
	from := len(*b)
	*b = hex.AppendEncode(*b, bytesOf(value))
	m.String(s, key, stringOf((*b)[from:]))
}

// HexByte adds a byte as a string of two hexadecimal digits.
func (m *Mapper) HexByte(s Source, key string, value byte) {
	one := [1]byte{value}
	m.Hex(s, key, stringOf(one[:]))
}

// Base64 adds bytes as a string in base64.
func (m *Mapper) Base64(s Source, key, value string) {
	b := m.buffer()
	from := len(*b)
	*b = base64.StdEncoding.AppendEncode(*b, bytesOf(value))
	m.String(s, key, stringOf((*b)[from:]))
}

// Stamp adds another time than the record's, in nanoseconds since 1970.
func (m *Mapper) Stamp(s Source, key string, nanos int64) {
	m.next(s, kindTime, key).number = uint64(nanos)
}

// Time adds the protocol's time, in nanoseconds since 1970. It must be added after the record's own fields and attributes, and
// before what has less priority.
func (m *Mapper) Time(s Source, nanos int64) {
	if m.hasTime && !m.inTree {
		// This is common, so it is done without a tree.
		v := m.next(s, kindTime, otherTimeField)
		if v.number = uint64(nanos); m.inTree {
			v.key = TimeField // the tree finds another place
		}
		return
	}
	m.inTree = m.inTree || m.timeAt >= 0
	v := m.add(s, kindTime, TimeField, true) // the path is there already, for this member
	m.timeAt = len(m.members) - 1
	v.number = uint64(nanos)
}

// Message adds the text of the record: its own fields if it is a JSON object, else its message.
func (m *Mapper) Message(text string) {
	if !m.Fields(text) {
		m.String(Own, MessageField, text)
	}
}

// End completes the record and reports whether it was accepted. at is its offset in the body.
func (m *Mapper) End(at int) bool {
	if m.alike && m.timeAt != m.shape.timeAt {
		m.notAlike(len(m.members))
	}
	if m.inTree && !m.tooMany && !m.Full() {
		m.record.reset()
		m.addOwn()
		m.addToTree(&m.record, m.members[m.shared:])
		m.addToTree(&m.record, m.members[:m.shared])
	}
	if m.tooMany || m.Full() {
		m.records.Refuse(scan.TooLarge, at)
		return false
	}
	return m.records.Build(at, m.fill)
}

// addToTree adds members to a tree, as long as that has room for them: the dots of one key make several nodes.
func (m *Mapper) addToTree(t *tree, members []member) {
	for i := range members {
		if len(t.nodes) > MostMembers {
			m.tooMany = true
			return
		}
		t.add(m, members[i])
	}
}

// next adds a member, whose value the caller sets.
func (m *Mapper) next(s Source, k kind, key string) *member {
	v := m.add(s, k, key, false)
	if !m.alike && !m.inTree && !m.tooMany {
		m.follow(v)
	}
	return v
}

// add is next without a look for the member's path. isTime tells whether the member is the protocol's time.
func (m *Mapper) add(s Source, k kind, key string, isTime bool) *member {
	n := len(m.members)
	if n >= MostMembers {
		m.tooMany = true
		return &m.spare
	}
	if n == cap(m.members) {
		m.members = slices.Grow(m.members, 1)
	}
	m.members = m.members[:n+1]
	v := &m.members[n]
	*v = member{key: key, source: s, kind: k}
	if m.alike {
		m.compare(v, n, isTime)
	}
	return v
}

// path is where a member stands that is written in the order in which it came.
type path struct {
	key  string
	last int // where the last part of key begins; what is before it are the open objects
}

// follow finds where a member stands after the one before. If it can't be written there, the record is put together in a tree.
func (m *Mapper) follow(v *member) {
	if !m.addPath(v.key) {
		return
	}
	before := m.path
	m.path = path{key: v.key}
	if v.source < First || !m.config.Sources[v.source-First].Dotted {
		return
	}
	dot := strings.IndexByte(v.key, '.')
	if dot < 0 {
		return
	}
	common := before.last
	if !strings.HasPrefix(v.key, before.key[:common]) {
		common = commonPath(before.key[:common], v.key)
	}
	last := common
	for nested := 0; ; nested++ {
		dot := strings.IndexByte(v.key[last:], '.')
		if dot < 0 && last < len(v.key) {
			break
		}
		// Keys with empty parts are for the tree, as are those that are nested deep.
		if dot <= 0 || nested == mostFollowed || !m.paths.add(hashOf(v.key[:last+dot])) {
			m.inTree = true
			return
		}
		last += dot + 1
	}
	v.common, v.last = uint32(common), uint32(last)
	m.path.last = last
}

// addPath adds the path of a key to those of the record. If it is there already, the record is put together in a tree, and addPath
// reports false. The path of the protocol's time is there from the beginning, and the first other field time may have it.
func (m *Mapper) addPath(key string) bool {
	if m.paths.add(hashOf(key)) {
		return true
	}
	if key == TimeField && !m.hasTime && m.timeAt < 0 {
		m.hasTime = true
		return true
	}
	m.inTree = true
	return false
}

// mostFollowed is how many objects the dots of a key may make in a record that is not put together in a tree.
const mostFollowed = 8

// commonPath returns the length of the longest beginning of a and b that ends in a dot.
func commonPath(a, b string) int {
	common := 0
	for i := 0; i < len(a) && i < len(b) && a[i] == b[i]; i++ {
		if a[i] == '.' {
			common = i + 1
		}
	}
	return common
}

// paths are the hashes of paths that a record has, of values and of objects that dots make. They are few.
type paths struct {
	mask   uint64 // has a bit for each
	n      int
	full   bool // there was no room for all
	hashes [mostPaths]uint32
}

const mostPaths = 64

func (p *paths) reset() { p.mask, p.n, p.full = 0, 0, false }

func (p *paths) copy(from *paths) {
	p.mask, p.n, p.full = from.mask, from.n, from.full
	copy(p.hashes[:from.n], from.hashes[:from.n])
}

// add adds the hash of a path. It reports false if the path, or another of the same hash, is there already, or if there is no room.
func (p *paths) add(hash uint32) bool {
	bit := maskOf(hash)
	if p.mask&bit != 0 {
		for _, h := range p.hashes[:p.n] {
			if h == hash {
				return false
			}
		}
	}
	if p.n == len(p.hashes) {
		p.full = true
		return false
	}
	p.mask |= bit
	p.hashes[p.n] = hash
	p.n++
	return true
}

func (p *paths) equal(o *paths) bool {
	return p.n == o.n && p.mask == o.mask && p.full == o.full && slices.Equal(p.hashes[:p.n], o.hashes[:o.n])
}

// write writes the record. What has the time comes first, because the worker looks for it.
func (m *Mapper) write(w *record.Writer) {
	if m.inTree {
		m.writeTree(w)
	} else {
		m.writeInOrder(w)
	}
	m.spent += w.Len()
}

// writeInOrder writes a record whose members may be written in the order in which they came.
func (m *Mapper) writeInOrder(w *record.Writer) {
	if m.alike {
		m.writeAlike(w)
		m.writeShared(w)
		return
	}
	learns := m.shape.begin(m)
	if m.timeAt >= 0 {
		from := w.Len()
		w.Key(TimeField)
		if learns {
			m.shape.time = w.Head(&m.shape.buf, from)
		}
		m.writeValue(w, TimeField, &m.members[m.timeAt])
	}
	m.writeOwn(w)
	before := path{}
	for i := m.shared; i < len(m.members); i++ {
		v := &m.members[i]
		if i == m.timeAt {
			if learns {
				m.shape.add(v, true, record.Head{})
			}
			continue
		}
		from := w.Len()
		for at := int(v.common); at < before.last; at += strings.IndexByte(before.key[at:], '.') + 1 {
			w.Close()
		}
		last := int(v.last)
		for at := int(v.common); at < last; {
			end := at + strings.IndexByte(v.key[at:], '.')
			w.Open(v.key[at:end])
			at = end + 1
		}
		w.Key(v.key[last:])
		if learns {
			m.shape.add(v, false, w.Head(&m.shape.buf, from))
		}
		m.writeValue(w, v.key, v)
		before = path{v.key, last}
	}
	w.CloseAll()
	if learns && w.Repaired() {
		m.shape.forget() // perhaps a key was
	}
	m.writeShared(w)
}

// writeTree writes a record that was put together in a tree.
func (m *Mapper) writeTree(w *record.Writer) {
	t := &m.record
	if t.timeAt != none {
		m.writeNode(w, t, t.timeAt)
	}
	m.writeOwn(w)
	m.writeMembers(w, t, root, t.timeAt)
}

// writeOwn writes the members that are written as they are.
func (m *Mapper) writeOwn(w *record.Writer) {
	if m.check {
		w.Unchecked(m.own)
	} else {
		w.Made(m.own)
	}
}

// writeShared writes the shared members.
func (m *Mapper) writeShared(w *record.Writer) {
	if len(m.sharedJSON) > 0 {
		w.Made(stringOf(m.sharedJSON))
		return
	}
	from, before := w.Len(), w.Repaired()
	m.writeMembers(w, &m.sharedTree, root, none)
	if !before && !w.Repaired() && !m.sharedTree.hasJSON {
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

// writeNode writes a member of a tree.
func (m *Mapper) writeNode(w *record.Writer, t *tree, i int32) {
	n := &t.nodes[i]
	if n.kind != kindObject {
		m.writeValue(w, n.key, &n.member)
		return
	}
	w.Open(n.key)
	m.writeMembers(w, t, i, none)
	w.Close()
}

// writeValue writes the value of v under a key.
func (m *Mapper) writeValue(w *record.Writer, key string, v *member) {
	switch v.kind {
	case kindString:
		w.String(key, v.text)
	case kindInt:
		w.Int(key, int64(v.number))
	case kindUint:
		w.Uint(key, v.number)
	case kindFloat:
		w.Float(key, math.Float64frombits(v.number))
	case kindBool:
		w.Bool(key, v.number != 0)
	case kindNull:
		w.Null(key)
	case kindTime:
		w.String(key, stringOf(m.clock.format(int64(v.number))))
	case kindMade:
		w.MadeJSON(key, v.text)
	case kindJSON:
		w.JSON(key, bytesOf(v.text))
	case kindEncoded:
		m.config.Encoder.Encode(w, key, v.text, v.number)
	}
}

// buffer returns where strings are made. What they are made of must stay as it is until the record's end, so they are appended.
func (m *Mapper) buffer() *[]byte {
	if m.inShared {
		return &m.sharedBuf
	}
	return &m.buf
}

// sourceOf returns the description of a source.
func (m *Mapper) sourceOf(s Source) SourceConfig {
	switch s {
	case Own:
		return SourceConfig{Name: "own"}
	case Outer:
		return SourceConfig{Name: "outer"}
	}
	return m.config.Sources[s-First]
}

// stringOf returns b as a string, without a copy. b must not change while the string is used.
func stringOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// bytesOf returns s as bytes, without a copy. They must not be changed.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
