package protocol

import (
	"encoding/binary"
	"unsafe"

	"millrace/internal/scan"
)

// The wire types of protobuf.
const (
	wireVarint  = 0
	wireFixed64 = 1
	wireBytes   = 2
	wireGroup   = 3 // begins a group, an old form of message that is skipped
	wireEnd     = 4 // ends a group
	wireFixed32 = 5
)

// wireMessage reads the fields of a protobuf message from its wire format, one after another. The fields may come in any order, and
// some may be unknown.
type wireMessage struct {
	s         string
	i         int
	malformed bool

	tag    uint64 // the current field: its number times 8, and its wire type
	number uint64 // its value, unless its wire type is wireBytes
	text   string // its value if its wire type is wireBytes
}

// wireTag returns the tag of a field.
func wireTag(field, wireType uint64) uint64 { return field<<3 | wireType }

// next goes to the next field. It reports false at the end of the message, and if that is malformed.
func (m *wireMessage) next() bool {
	if m.i >= len(m.s) {
		return false
	}
	// Most tags and lengths have one byte.
	if m.tag = uint64(m.s[m.i]); m.tag < 0x80 {
		m.i++
	} else if m.tag = m.varint(); m.malformed {
		return false
	}
	const mostTag = 1<<32 - 1 // field numbers have 29 bits
	if m.tag>>3 == 0 || m.tag > mostTag {
		return m.broken()
	}
	switch m.tag & 7 {
	case wireBytes:
		n := uint64(0)
		if m.i < len(m.s) && m.s[m.i] < 0x80 {
			n = uint64(m.s[m.i])
			m.i++
		} else if n = m.varint(); m.malformed {
			return false
		}
		if n > uint64(len(m.s)-m.i) {
			return m.broken()
		}
		m.text = m.s[m.i : m.i+int(n)]
		m.i += int(n)
	case wireVarint:
		m.number = m.varint()
		return !m.malformed
	case wireFixed64:
		if len(m.s)-m.i < 8 {
			return m.broken()
		}
		m.number = binary.LittleEndian.Uint64(bytesOf(m.s[m.i : m.i+8]))
		m.i += 8
	case wireFixed32:
		if len(m.s)-m.i < 4 {
			return m.broken()
		}
		m.number = uint64(binary.LittleEndian.Uint32(bytesOf(m.s[m.i : m.i+4])))
		m.i += 4
	case wireGroup:
		return m.skipGroup()
	default:
		return m.broken()
	}
	return true
}

// broken notes that the message is malformed. It returns false.
func (m *wireMessage) broken() bool {
	m.malformed = true
	return false
}

// err returns why the body that m is can't be read as a message of a kind, nil if it can.
func (m *wireMessage) err(kind string) *scan.Error {
	if !m.malformed {
		return nil
	}
	msg := "the body is no " + kind + " in protobuf: malformed"
	if m.s[0] == '{' {
		msg = "the body looks like JSON: send it with Content-Type: application/json, or send protobuf: malformed"
	}
	return &scan.Error{Reason: scan.Syntax, Offset: max(0, m.i-len(m.text)), Msg: msg}
}

// varint reads an integer of up to ten bytes.
func (m *wireMessage) varint() uint64 {
	var n uint64
	for shift := 0; shift < 64 && m.i < len(m.s); shift += 7 {
		b := m.s[m.i]
		m.i++
		if shift == 63 && b > 1 {
			break
		}
		n |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return n
		}
	}
	m.malformed = true
	return 0
}

// skipGroup skips a group, whose fields may be groups.
func (m *wireMessage) skipGroup() bool {
	group := m.tag
	const most = 64
	var open [most]uint64 // the tags that have begun the groups around
	depth := 0
	open[0] = group
	for {
		if m.i >= len(m.s) {
			return m.broken()
		}
		tag := m.varint()
		switch {
		case m.malformed:
			return false
		case tag&7 == wireEnd:
			if tag>>3 != open[depth]>>3 {
				return m.broken()
			}
			if depth--; depth < 0 {
				m.tag = group
				return true
			}
		case tag&7 == wireGroup:
			if depth++; depth == most {
				return m.broken()
			}
			open[depth] = tag
		default:
			field := wireMessage{s: m.s, i: m.i}
			if !field.value(tag) {
				return m.broken()
			}
			m.i = field.i
		}
	}
}

// value skips the value of a field that is no group.
func (m *wireMessage) value(tag uint64) bool {
	if tag>>3 == 0 || tag > 1<<32-1 {
		return false
	}
	n := uint64(0)
	switch tag & 7 {
	case wireVarint:
		m.varint()
	case wireBytes:
		n = m.varint()
	case wireFixed64:
		n = 8
	case wireFixed32:
		n = 4
	default:
		return false
	}
	if m.malformed || n > uint64(len(m.s)-m.i) {
		return false
	}
	m.i += int(n)
	return true
}

// isWire reports whether s has the form of a message, whatever its fields are.
func isWire(s string) bool {
	m := wireMessage{s: s}
	for m.next() {
	}
	return !m.malformed
}

// hasField reports whether a message has a field with a tag.
func hasField(s string, tag uint64) bool {
	m := wireMessage{s: s}
	for m.next() {
		if m.tag == tag {
			return true
		}
	}
	return false
}

// appendVarint appends n in the form of the wire.
func appendVarint(b []byte, n uint64) []byte { return binary.AppendUvarint(b, n) }

// appendWireText appends a field whose value is text or a message.
func appendWireText[T string | []byte](b []byte, field uint64, value T) []byte {
	b = appendVarint(b, wireTag(field, wireBytes))
	b = appendVarint(b, uint64(len(value)))
	return append(b, value...)
}

// appendWireInt appends a field whose value is an integer. Zero is what an absent field is.
func appendWireInt(b []byte, field, value uint64) []byte {
	if value == 0 {
		return b
	}
	return appendVarint(appendVarint(b, wireTag(field, wireVarint)), value)
}

// stringOf returns b as a string, without a copy. b must not change while the string is used.
func stringOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// bytesOf returns s as bytes, without a copy. They must not be changed.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// offsetIn returns where in whole a part of it begins.
func offsetIn(whole, part string) int {
	from := uintptr(unsafe.Pointer(unsafe.StringData(whole)))
	at := uintptr(unsafe.Pointer(unsafe.StringData(part)))
	if at < from || at-from > uintptr(len(whole)) {
		return 0 // an empty part may be anywhere
	}
	return int(at - from)
}
