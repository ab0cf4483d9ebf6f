package protocol

import (
	"bytes"

	json "github.com/goccy/go-json"

	"millrace/api/protocol/mapping"
	"millrace/internal/jsontext"
)

// These functions walk over JSON that may be anything. They find where its parts are, and check no more than they need.

// skipSpace returns the offset of the first byte of b from i on that is not white space.
func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\r' || b[i] == '\t') {
		i++
	}
	return i
}

// bom is the byte-order mark in UTF-8.
var bom = []byte("\xef\xbb\xbf")

// SkipBOM returns a body without the byte-order mark that it may begin with.
func SkipBOM(body []byte) []byte { return bytes.TrimPrefix(body, bom) }

// member is a member of an object. Its key has its quotes.
type member struct{ key, value []byte }

// appendMembers appends the members of the object that b is to dst. It reports false if b is no object, if its parts can't be told,
// or if there are more than mapping.MostMembers.
func appendMembers(dst []member, b []byte) ([]member, bool) {
	if len(b) < 2 || b[0] != '{' {
		return dst, false
	}
	i := skipSpace(b, 1)
	if i < len(b) && b[i] == '}' {
		return dst, i == len(b)-1
	}
	for i < len(b) && b[i] == '"' {
		keyEnd := jsontext.StringEnd(b, i)
		if keyEnd < 0 {
			return dst, false
		}
		at := skipSpace(b, keyEnd)
		if at >= len(b) || b[at] != ':' {
			return dst, false
		}
		at = skipSpace(b, at+1)
		end := jsontext.ValueEnd(b, at)
		if end < 0 {
			return dst, false
		}
		if len(dst) == mapping.MostMembers {
			return dst, false
		}
		dst = append(dst, member{b[i:keyEnd], b[at:end]})
		if i = skipSpace(b, end); i >= len(b) {
			return dst, false
		}
		if b[i] == '}' {
			return dst, i == len(b)-1
		}
		if b[i] != ',' {
			return dst, false
		}
		i = skipSpace(b, i+1)
	}
	return dst, false
}

// isNamed reports whether a key with its quotes is name.
func isNamed(key []byte, name string) bool {
	if bytes.IndexByte(key, '\\') < 0 {
		return len(key) == len(name)+2 && string(key[1:len(key)-1]) == name
	}
	var s string
	return json.Unmarshal(key, &s) == nil && s == name
}

// find returns the last of the members that has a name, nil if there is none. PostgreSQL keeps the last, too.
func find(members []member, name string) *member {
	for i := len(members) - 1; i >= 0; i-- {
		if isNamed(members[i].key, name) {
			return &members[i]
		}
	}
	return nil
}

// objects writes JSON objects from members.
type objects struct{ b []byte }

func (o *objects) begin() { o.b = append(o.b, '{') }
func (o *objects) end()   { o.b = append(o.b, '}') }

// key writes a key, given with its quotes.
func (o *objects) key(key []byte) {
	if o.b[len(o.b)-1] != '{' {
		o.b = append(o.b, ',')
	}
	o.b = append(append(o.b, key...), ':')
}

func (o *objects) member(m member) {
	o.key(m.key)
	o.b = append(o.b, m.value...)
}
