package mapping

import "millrace/internal/record"

// shape is how the members of an earlier record were written that needed no tree. A record of the same sources and keys, in the
// same order, is written alike: what stands between its values is copied.
type shape struct {
	members []memberOfShape
	time    record.Head // of the protocol's time, which comes first
	timeAt  int         // as Mapper.timeAt
	shared  int         // how many members were shared
	base    paths       // the paths of those
	buf     []byte      // what the heads and keys are made of
	misses  uint        // how many records there were without this shape, since one had it
}

// memberOfShape is a member of any value.
type memberOfShape struct {
	key     string
	source  Source
	isTime  bool        // it is the protocol's time
	hasTime bool        // Mapper.hasTime once it was added
	head    record.Head // what is written before its value, unless it is the protocol's time
}

// A shape with more members, or with longer keys, is not worth keeping.
const (
	maxShapeMembers = 256
	maxShapeBytes   = 16 << 10
)

// forget makes records have no shape.
func (s *shape) forget() { s.members, s.buf, s.misses = s.members[:0], s.buf[:0], 0 }

// release is forget, and drops what was taken from a request.
func (s *shape) release() {
	s.forget()
	s.shared = -1 // what the next records share is no longer compared
}

// begin begins to learn the shape of the record that is written, and reports whether it does. Where each record has other keys, few
// of them are learned.
func (s *shape) begin(m *Mapper) bool {
	s.misses++
	if s.misses&(s.misses-1) != 0 || m.own != "" || len(m.members)-m.shared > maxShapeMembers {
		return false
	}
	size := 0
	for i := m.shared; i < len(m.members); i++ {
		size += len(m.members[i].key)
	}
	if size > maxShapeBytes {
		return false
	}
	s.members, s.buf = s.members[:0], s.buf[:0]
	s.timeAt, s.shared, s.base = m.timeAt, m.shared, m.basePaths
	return true
}

// add adds a member.
func (s *shape) add(v *member, isTime bool, head record.Head) {
	hasTime := !isTime && v.key == TimeField
	if n := len(s.members); n > 0 {
		hasTime = hasTime || s.members[n-1].hasTime
	}
	from := len(s.buf)
	s.buf = append(s.buf, v.key...)
	s.members = append(s.members, memberOfShape{key: stringOf(s.buf[from:]), source: v.source, isTime: isTime, hasTime: hasTime, head: head})
}

// compare looks whether the member v, with the index n, is as the shape has it.
func (m *Mapper) compare(v *member, n int, isTime bool) {
	if i := n - m.shared; i < len(m.shape.members) {
		if as := &m.shape.members[i]; as.key == v.key && as.source == v.source && as.isTime == isTime {
			m.hasTime = as.hasTime
			return
		}
	}
	m.notAlike(n)
}

// notAlike makes up for what was left out while the record was like the shape. n is how many members were like it.
func (m *Mapper) notAlike(n int) {
	m.alike = false
	m.path = path{}
	m.paths.copy(&m.basePaths)
	timeAt := m.timeAt
	m.timeAt, m.hasTime = -1, false
	for i := m.shared; i < n && !m.inTree; i++ {
		if i == timeAt {
			m.timeAt = timeAt
		} else {
			m.follow(&m.members[i])
		}
	}
	m.timeAt = timeAt
}

// writeAlike writes the record's own members as the shape has them.
func (m *Mapper) writeAlike(w *record.Writer) {
	m.shape.misses = 0
	if m.timeAt >= 0 {
		w.Again(m.shape.time)
		m.writeValue(w, TimeField, &m.members[m.timeAt])
	}
	for i := m.shared; i < len(m.members); i++ {
		if i != m.timeAt {
			w.Again(m.shape.members[i-m.shared].head)
			m.writeValue(w, m.members[i].key, &m.members[i])
		}
	}
	w.CloseAll()
}
