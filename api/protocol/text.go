package protocol

import (
	"bytes"

	"millrace/internal/record"
)

// appendLines adds the lines of text to records, which must have been begun. A line becomes a record with a message, or, if parse is
// set and it is a JSON object that can be taken, that object. Blank lines are passed over. at is the offset of text in the body.
func appendLines(records *record.List, text []byte, at int, parse bool) {
	for len(text) > 0 {
		end := bytes.IndexByte(text, '\n')
		next := end + 1
		if end < 0 {
			end, next = len(text), len(text)
		}
		line := bytes.TrimSuffix(text[:end], []byte("\r"))
		if len(bytes.TrimSpace(line)) > 0 && !(parse && isObject(line) && records.Try(line)) {
			records.Build(at, func(w *record.Writer) { w.Text("message", line) })
		}
		text, at = text[next:], at+next
	}
}

// isObject reports whether text may be a JSON object, by its first and last bytes.
func isObject(text []byte) bool { return len(text) >= 2 && text[0] == '{' && text[len(text)-1] == '}' }

// beginsJSON reports whether a body may be JSON, by its first byte behind white space and a byte-order mark.
func beginsJSON(body []byte) bool {
	i := skipSpace(body, 0)
	if bytes.HasPrefix(body[i:], bom) {
		i = skipSpace(body, i+len(bom))
	}
	return i < len(body) && (body[i] == '{' || body[i] == '[')
}
