package archive

import (
	"bytes"

	"github.com/valyala/fastjson"

	"millrace/internal/jsontext"
)

// The functions here take JSON as PostgreSQL writes a jsonb value: ", " between members, ": " behind a name, no other space between
// tokens. What is written otherwise makes them return nonsense or -1, never fail in another way: each record is put together again and
// compared before it counts.

// stringEnd returns the index behind the string that begins at i, and whether it has escapes. It returns -1 if there is none.
func stringEnd(b []byte, i int) (end int, escaped bool) {
	if i >= len(b) || b[i] != '"' {
		return -1, false
	}
	if end = jsontext.StringEnd(b, i); end < 0 {
		return -1, false
	}
	return end, bytes.IndexByte(b[i:end], '\\') >= 0
}

// member is a name and a value of an object, as they are written.
type member struct {
	key            []byte // with its quotes
	keyEscaped     bool
	value          []byte
	valueEscaped   bool // a string with escapes
	next           int  // where the next member begins, or the closing brace is
	start, valueAt int
}

// memberAt reads the member that begins at i, behind a brace or a comma with its space. ok is false at the closing brace, and where there
// is none.
func memberAt(b []byte, i int) (m member, ok bool) {
	end, escaped := stringEnd(b, i)
	if end < 0 || end+2 >= len(b) || b[end] != ':' {
		return member{}, false
	}
	m.start, m.key, m.keyEscaped, m.valueAt = i, b[i:end], escaped, end+2
	if b[m.valueAt] == '"' {
		end, m.valueEscaped = stringEnd(b, m.valueAt)
	} else {
		end = jsontext.ValueEnd(b, m.valueAt)
	}
	if end < 0 {
		return member{}, false
	}
	m.value, m.next = b[m.valueAt:end], end
	if m.next+1 < len(b) && b[m.next] == ',' {
		m.next += 2
	}
	return m, true
}

const hexDigits = "0123456789abcdef"

// AppendString appends a string as PostgreSQL writes it in JSON.
func AppendString(b, s []byte) []byte {
	b = append(b, '"')
	start := 0
	for i, c := range s {
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[start:i]...)
		start = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\b':
			b = append(b, '\\', 'b')
		case '\f':
			b = append(b, '\\', 'f')
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}

// isBefore reports whether jsonb has one name of an object before another: the shorter one first, then by bytes.
func isBefore(a, b []byte) bool {
	if len(a) != len(b) {
		return len(a) < len(b)
	}
	return bytes.Compare(a, b) < 0
}

// AppendValue appends a value as PostgreSQL writes it in JSON. It must have been read from JSON that PostgreSQL wrote: names keep their
// order.
func AppendValue(b []byte, v *fastjson.Value) []byte {
	switch v.Type() {
	case fastjson.TypeObject:
		b = append(b, '{')
		first := true
		v.GetObject().Visit(func(name []byte, v *fastjson.Value) {
			if !first {
				b = append(b, ", "...)
			}
			first = false
			b = append(AppendString(b, name), ": "...)
			b = AppendValue(b, v)
		})
		return append(b, '}')
	case fastjson.TypeArray:
		b = append(b, '[')
		for i, e := range v.GetArray() {
			if i > 0 {
				b = append(b, ", "...)
			}
			b = AppendValue(b, e)
		}
		return append(b, ']')
	case fastjson.TypeString:
		return AppendString(b, v.GetStringBytes())
	}
	return v.MarshalTo(b)
}
