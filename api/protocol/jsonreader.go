package protocol

import (
	"bytes"
	"strconv"

	"millrace/internal/jsontext"
	"millrace/internal/scan"
)

// jsonReader reads a body of JSON whose form a protocol knows, token by token. It copies nothing but strings that have escapes. It
// takes what some clients send though it is not JSON: control bytes in strings, and bytes that are not UTF-8.
//
// Once something is wrong, err is set, and every method does nothing and returns zero values.
type jsonReader struct {
	b    []byte
	i    int
	err  *scan.Error
	open []byte // the containers around what is skipped
}

// fail notes that something else was wanted at the current byte.
func (r *jsonReader) fail(want string) {
	if r.err != nil {
		return
	}
	msg := "unexpected end of body, want " + want
	if r.i < len(r.b) {
		msg = "unexpected " + strconv.QuoteRune(rune(r.b[r.i])) + ", want " + want
	}
	r.err = &scan.Error{Reason: scan.Syntax, Offset: r.i, Msg: msg}
	r.b = r.b[:min(r.i, len(r.b))]
}

// peek skips white space and returns the next byte, 0 at the end.
func (r *jsonReader) peek() byte {
	for r.i < len(r.b) {
		switch c := r.b[r.i]; c {
		case ' ', '\n', '\r', '\t':
			r.i++
		default:
			return c
		}
	}
	return 0
}

// take takes the next byte if it is c, behind white space.
func (r *jsonReader) take(c byte) bool {
	if r.peek() != c || r.i >= len(r.b) {
		return false
	}
	r.i++
	return true
}

// want takes the next byte, which must be c.
func (r *jsonReader) want(c byte) {
	if !r.take(c) {
		r.fail(strconv.QuoteRune(rune(c)))
	}
}

// null takes the word null if it is next.
func (r *jsonReader) null() bool {
	if r.peek() != 'n' || len(r.b)-r.i < 4 || string(r.b[r.i:r.i+4]) != "null" {
		return false
	}
	r.i += 4
	return true
}

// elements calls element for each element of the array that is next. element must take it. null is an array without elements.
func (r *jsonReader) elements(element func()) {
	if r.null() {
		return
	}
	r.want('[')
	if r.err != nil || r.take(']') {
		return
	}
	for {
		element()
		if r.err != nil || r.take(']') {
			return
		}
		if !r.take(',') {
			r.fail("',' or ']'")
			return
		}
	}
}

// members calls member for each member of the object that is next. member must take its value. The key stays as it is while the body
// does. null is an object without members.
func (r *jsonReader) members(member func(key []byte)) {
	if r.null() {
		return
	}
	r.want('{')
	if r.err != nil || r.take('}') {
		return
	}
	for {
		key, escaped := r.text()
		if escaped {
			key = jsontext.AppendUnescaped(nil, key)
		}
		r.want(':')
		if r.err != nil {
			return
		}
		member(key)
		if r.err != nil || r.take('}') {
			return
		}
		if !r.take(',') {
			r.fail("',' or '}'")
			return
		}
	}
}

// text takes the string that is next, without its quotes, and reports whether it has escapes.
func (r *jsonReader) text() (raw []byte, escaped bool) {
	if r.peek() != '"' || r.i >= len(r.b) {
		r.fail("a string")
		return nil, false
	}
	from := r.i + 1
	i := len(r.b)
	if end := bytes.IndexByte(r.b[from:], '"'); end >= 0 {
		slash := bytes.IndexByte(r.b[from:from+end], '\\')
		if slash < 0 {
			r.i = from + end + 1
			return r.b[from : from+end], false
		}
		i = from + slash
	}
	for ; i < len(r.b); i++ {
		switch r.b[i] {
		case '"':
			r.i = i + 1
			return r.b[from:i], escaped
		case '\\':
			escaped = true
			i++
		}
	}
	r.i = len(r.b)
	r.fail(`'"'`)
	return nil, false
}

// word takes the number or literal that is next.
func (r *jsonReader) word() []byte {
	r.peek()
	from := r.i
	for r.i < len(r.b) {
		c := r.b[r.i]
		if c-'0' > 9 && (c|0x20)-'a' > 'z'-'a' && c != '-' && c != '+' && c != '.' {
			break
		}
		r.i++
	}
	word := r.b[from:r.i]
	if len(word) == 0 {
		r.fail("a value")
		return nil
	}
	return word
}

// scalar takes the string, number or literal that is next, with its escapes undone in a string.
func (r *jsonReader) scalar() (value []byte, isString bool) {
	if r.peek() != '"' {
		return r.word(), false
	}
	value, escaped := r.text()
	if escaped {
		value = jsontext.AppendUnescaped(nil, value)
	}
	return value, true
}

// skip takes the value that is next, whatever it is.
func (r *jsonReader) skip() {
	r.open = r.open[:0]
	for r.err == nil {
		switch c := r.peek(); c {
		case '"':
			r.text()
		case '{', '[':
			r.i++
			if r.take(c + 2) { // '}' and ']' are two more than '{' and '['
				break
			}
			if r.open = append(r.open, c); c == '{' {
				r.text()
				r.want(':')
			}
			continue
		default:
			if w := r.word(); r.err == nil && !isJSONWord(w) {
				r.i -= len(w)
				r.fail("a value")
			}
		}
		for {
			if len(r.open) == 0 || r.err != nil {
				return
			}
			inner := r.open[len(r.open)-1]
			if r.take(inner + 2) {
				r.open = r.open[:len(r.open)-1]
				continue
			}
			if !r.take(',') {
				r.fail("',' or '" + string(inner+2) + "'")
				return
			}
			if inner == '{' {
				r.text()
				r.want(':')
			}
			break
		}
	}
}

// value takes the value that is next, whatever it is, and returns its text.
func (r *jsonReader) value() []byte {
	r.peek()
	from := r.i
	r.skip()
	if r.err != nil {
		return nil
	}
	return r.b[from:r.i]
}

// end checks that nothing but white space follows.
func (r *jsonReader) end() {
	if r.peek(); r.err == nil && r.i < len(r.b) {
		r.fail("nothing more")
	}
}

// isJSONWord reports whether w is a literal or a number of JSON.
func isJSONWord(w []byte) bool {
	switch string(w) {
	case "true", "false", "null":
		return true
	}
	return isJSONNumber(w)
}

// isJSONNumber reports whether w is a number of JSON.
func isJSONNumber(w []byte) bool {
	i := 0
	digits := func() bool {
		from := i
		for i < len(w) && w[i]-'0' <= 9 {
			i++
		}
		return i > from
	}
	if i < len(w) && w[i] == '-' {
		i++
	}
	if i < len(w) && w[i] == '0' {
		i++
	} else if !digits() {
		return false
	}
	if i < len(w) && w[i] == '.' {
		if i++; !digits() {
			return false
		}
	}
	if i < len(w) && w[i]|0x20 == 'e' {
		if i++; i < len(w) && (w[i] == '+' || w[i] == '-') {
			i++
		}
		if !digits() {
			return false
		}
	}
	return i == len(w)
}
