package mapping

import (
	"encoding/binary"
	"math/bits"
	"strings"

	json "github.com/goccy/go-json"

	"millrace/internal/scan"
)

// Fields adds the members of a text as the record's own fields if the text is a JSON object, and reports whether it is. If the
// object has a string log that holds a JSON object, that one's members are the record's own fields, and the rest is Outer. Fields
// must be called at most once for a record, before anything else is added.
func (m *Mapper) Fields(text string) bool {
	if m.keepText {
		return false
	}
	object, check, ok := m.object(&m.scan, text)
	if !ok {
		return false
	}
	if m.alike {
		m.notAlike(len(m.members))
	}
	logged, n := "", m.paths.n
	for c := (cursor{s: object}); c.next(); {
		key := c.key()
		if key == LogField {
			logged = c.value
		}
		m.addPath(key)
	}
	inner, innerCheck, ok := m.logged(logged)
	if !ok {
		m.own, m.check = object[1:len(object)-1], check
		return true
	}
	m.paths.n = n // the mask keeps bits too many, which does no harm
	m.hasTime = false
	m.own, m.check = inner[1:len(inner)-1], innerCheck
	for c := (cursor{s: inner}); c.next(); {
		m.addPath(c.key())
	}
	kind := kindMade
	if check {
		kind = kindJSON
	}
	for c := (cursor{s: object}); c.next(); {
		if key := c.key(); key != LogField {
			m.next(Outer, kind, key).text = c.value
		}
	}
	return true
}

// addOwn adds the members of own to the record's tree, where they stand for it.
func (m *Mapper) addOwn() {
	if m.own == "" {
		return
	}
	for c := (cursor{s: m.own, i: -1}); c.next(); {
		if len(m.record.nodes) > MostMembers {
			m.tooMany = true
			return
		}
		key := c.key()
		if strings.IndexByte(key, '.') >= 0 {
			m.record.literalDots = true
		}
		m.record.insertGhost(node{member: member{key: key, text: c.value, source: Own, kind: kindMade}, hash: hashOf(key)})
	}
}

// logged returns the JSON object that a JSON string holds.
func (m *Mapper) logged(value string) (object string, check, ok bool) {
	if len(value) < 2 || value[0] != '"' {
		return "", false, false
	}
	text := value[1 : len(value)-1]
	if strings.IndexByte(text, '\\') >= 0 {
		if text = strings.TrimLeft(text, " "); !strings.HasPrefix(text, "{") {
			return "", false, false
		}
		text = unquote(value)
	}
	return m.object(&m.inner, text)
}

// object returns text, perhaps compacted, if it is a JSON object with white space around it. If check is true, it is JSON but jsonb
// can't hold all of it, or its numbers grow.
func (m *Mapper) object(b *scan.Body, text string) (object string, check, ok bool) {
	text = strings.Trim(text, " \t\r\n")
	if len(text) < 2 || text[0] != '{' || text[len(text)-1] != '}' {
		return "", false, false
	}
	limits := m.records.Limits
	limits.Repair = false
	b.Begin(limits)
	if b.Add(bytesOf(text), 0) {
		b.End()
		return stringOf(b.NDJSON[:len(b.NDJSON)-1]), b.Growth() > 0, true
	}
	b.End()
	return text, true, b.RejectedBy[scan.Syntax] == 0
}

// lookUp returns the JSON that the value of a member has under a path of keys. It reports false if there is none, or if the value
// is too long to look.
func (m *Mapper) lookUp(n *node, path string) (value string, ok bool) {
	if n.kind != kindMade && n.kind != kindJSON {
		return "", false
	}
	object := n.text
Objects:
	for len(object) > 0 && object[0] == '{' && m.budget > 0 {
		m.budget -= len(object)
		for c := (cursor{s: object}); c.next(); {
			key := c.key()
			if key == path {
				return c.value, true
			}
			if rest, ok := strings.CutPrefix(path, key); ok && rest[0] == '.' && c.value[0] == '{' {
				object, path = c.value, rest[1:]
				continue Objects
			}
		}
		break
	}
	return "", false
}

// unquote returns what a JSON string says.
func unquote(quoted string) (s string) {
	if json.Unmarshal([]byte(quoted), &s) != nil {
		return quoted // it was found to be JSON, so this does not happen
	}
	return s
}

// cursor walks over the members of a JSON object, which must be well-formed.
type cursor struct {
	s       string
	i       int    // of the brace or comma before the next member; -1 if s has no braces
	quoted  string // the key with its quotes
	escaped bool   // the key has a backslash
	value   string
}

// next goes to the next member. It reports false if there is none.
func (c *cursor) next() bool {
	s, i := c.s, c.i+1
	for i < len(s) && s[i] != '"' {
		if s[i] == '}' {
			return false
		}
		i++
	}
	if i >= len(s) {
		return false
	}
	end, escaped := stringEnd(s, i)
	c.quoted, c.escaped = s[i:end], escaped
	for i = end; i < len(s) && (s[i] == ':' || s[i] <= ' '); i++ {
	}
	end = valueEnd(s, i)
	c.value = s[i:end]
	for end < len(s) && s[end] <= ' ' {
		end++
	}
	c.i = end
	return true
}

// key returns the current member's key.
func (c *cursor) key() string {
	if c.escaped {
		return unquote(c.quoted)
	}
	return c.quoted[1 : len(c.quoted)-1]
}

const (
	ones  = 0x0101010101010101
	highs = 0x80 * ones
)

// stringEnd returns the offset behind the JSON string that begins at s[i], and whether it has a backslash.
func stringEnd(s string, i int) (end int, escaped bool) {
	i++
	for i+8 <= len(s) {
		w := binary.LittleEndian.Uint64(bytesOf(s[i:]))
		quotes, slashes := w^'"'*ones, w^'\\'*ones
		// The lowest mark is exact: a borrow can wrongly mark a byte above one that is marked, never below.
		quotes, slashes = (quotes-ones)&^quotes&highs, (slashes-ones)&^slashes&highs
		switch {
		case quotes|slashes == 0:
			i += 8
		case slashes == 0 || bits.TrailingZeros64(quotes) < bits.TrailingZeros64(slashes):
			return i + bits.TrailingZeros64(quotes)/8 + 1, escaped
		default:
			escaped = true
			i += bits.TrailingZeros64(slashes)/8 + 2
		}
	}
	for i < len(s) && s[i] != '"' {
		if s[i] == '\\' {
			escaped = true
			i++
		}
		i++
	}
	return min(i+1, len(s)), escaped
}

// valueEnd returns the offset behind the JSON value that begins at s[i].
func valueEnd(s string, i int) int {
	if i >= len(s) {
		return len(s)
	}
	switch s[i] {
	case '"':
		end, _ := stringEnd(s, i)
		return end
	case '{', '[':
	default:
		for i < len(s) && s[i] != ',' && s[i] != '}' && s[i] != ']' && s[i] > ' ' {
			i++
		}
		return i
	}
	for depth := 0; i < len(s); i++ {
		switch s[i] {
		case '"':
			end, _ := stringEnd(s, i)
			i = end - 1
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return len(s)
}
