package record

import (
	"math"
	"math/bits"
	"strconv"
	"time"
	"unicode/utf8"

	"millrace/internal/scan"
)

// Writer writes the members of a JSON object. Whatever is written, jsonb takes the object: bytes that can't be stored in a
// string are replaced, and no number is too large. If two members have the same key, jsonb keeps the last.
//
// A Writer is valid until the function that it was passed to returns.
type Writer struct {
	b         []byte
	depth     int  // how many containers are open
	tooDeep   bool // a container is nested too deep; its contents were left out unless keepDeep is set
	keepDeep  bool
	repaired  bool // something was replaced
	unchecked bool // b holds JSON that was not made here
	hasKey    bool // the key of the member that is written next is there already

	topKey  int         // where the key of the current top-level member begins
	changed []int       // where the keys of those begin under which something was replaced, if repaired
	why     scan.Reason // why something was replaced first, if repaired
}

func (w *Writer) begin(keepDeep bool) {
	*w = Writer{b: append(w.b[:0], '{'), depth: 1, keepDeep: keepDeep, changed: w.changed[:0]}
}

// Repaired reports whether something was written that can't be stored, and was replaced: a NUL or bytes that are not UTF-8, by
// U+FFFD, or a number that is NaN or infinite, by text.
func (w *Writer) Repaired() bool { return w.repaired }

// replaced notes that something was replaced in the current top-level member.
func (w *Writer) replaced(why scan.Reason) {
	if !w.repaired {
		w.repaired, w.why = true, why
	}
	if n := len(w.changed); n == 0 || w.changed[n-1] != w.topKey {
		w.changed = append(w.changed, w.topKey)
	}
}

// String writes a member whose value is a string.
func (w *Writer) String(key, value string) {
	w.key(key)
	appendString(w, value)
}

// Text is String for a value in bytes.
func (w *Writer) Text(key string, value []byte) {
	w.key(key)
	appendString(w, value)
}

// Int writes a member whose value is an integer.
func (w *Writer) Int(key string, value int64) {
	w.key(key)
	w.b = strconv.AppendInt(w.b, value, 10)
}

// Uint writes a member whose value is an integer that is not negative.
func (w *Writer) Uint(key string, value uint64) {
	w.key(key)
	w.b = strconv.AppendUint(w.b, value, 10)
}

// Float writes a member whose value is a number. NaN and the infinities are no JSON: they are written as strings.
func (w *Writer) Float(key string, value float64) {
	w.key(key)
	w.float(value)
}

// Bool writes a member that is true or false.
func (w *Writer) Bool(key string, value bool) {
	w.key(key)
	w.b = strconv.AppendBool(w.b, value)
}

// Null writes a member that is null.
func (w *Writer) Null(key string) {
	w.key(key)
	w.b = append(w.b, "null"...)
}

// Time writes a member whose value is a time in the form of RFC 3339, in UTC, with as many digits after the second as it
// needs.
func (w *Writer) Time(key string, t time.Time) {
	w.key(key)
	w.b = append(w.b, '"')
	w.b = t.UTC().AppendFormat(w.b, time.RFC3339Nano)
	w.b = append(w.b, '"')
}

// JSON writes a member whose value is JSON that came from outside. The whole record is then checked: if value is not JSON, or
// jsonb can't hold it, the record is refused.
func (w *Writer) JSON(key string, value []byte) {
	w.key(key)
	w.unchecked = true
	w.b = append(w.b, value...)
}

// Object writes a member whose value is an object, whose members fill writes.
func (w *Writer) Object(key string, fill func(w *Writer)) {
	w.key(key)
	w.object(fill)
}

// Array writes a member whose value is an array, whose elements fill writes.
func (w *Writer) Array(key string, fill func(a Elements)) {
	w.key(key)
	w.array(fill)
}

// Elements writes the elements of an array. Its methods are like those of Writer.
type Elements struct{ w *Writer }

// String writes an element that is a string.
func (a Elements) String(value string) {
	a.w.comma()
	appendString(a.w, value)
}

// Text is String for a value in bytes.
func (a Elements) Text(value []byte) {
	a.w.comma()
	appendString(a.w, value)
}

// Int writes an element that is an integer.
func (a Elements) Int(value int64) {
	a.w.comma()
	a.w.b = strconv.AppendInt(a.w.b, value, 10)
}

// Uint writes an element that is an integer that is not negative.
func (a Elements) Uint(value uint64) {
	a.w.comma()
	a.w.b = strconv.AppendUint(a.w.b, value, 10)
}

// Float writes an element that is a number. NaN and the infinities become strings, as in Writer.Float.
func (a Elements) Float(value float64) {
	a.w.comma()
	a.w.float(value)
}

// Bool writes an element that is true or false.
func (a Elements) Bool(value bool) {
	a.w.comma()
	a.w.b = strconv.AppendBool(a.w.b, value)
}

// Null writes an element that is null.
func (a Elements) Null() {
	a.w.comma()
	a.w.b = append(a.w.b, "null"...)
}

// Object writes an element that is an object, whose members fill writes.
func (a Elements) Object(fill func(w *Writer)) {
	a.w.comma()
	a.w.object(fill)
}

// Array writes an element that is an array, whose elements fill writes.
func (a Elements) Array(fill func(a Elements)) {
	a.w.comma()
	a.w.array(fill)
}

// comma writes a comma unless a container was just opened. No value ends in { or [, so the last byte tells.
func (w *Writer) comma() {
	if last := w.b[len(w.b)-1]; last != '{' && last != '[' {
		w.b = append(w.b, ',')
	}
}

func (w *Writer) key(key string) {
	if w.hasKey {
		w.hasKey = false
		return
	}
	w.comma()
	if w.depth == 1 {
		w.topKey = len(w.b)
	}
	appendString(w, key)
	w.b = append(w.b, ':')
}

func (w *Writer) object(fill func(w *Writer)) {
	w.b = append(w.b, '{')
	if w.enter() {
		fill(w)
		w.depth--
	}
	w.b = append(w.b, '}')
}

func (w *Writer) array(fill func(a Elements)) {
	w.b = append(w.b, '[')
	if w.enter() {
		fill(Elements{w})
		w.depth--
	}
	w.b = append(w.b, ']')
}

// enter counts one more open container. It reports false if the contents must be left out, because that would be too deep.
func (w *Writer) enter() bool {
	if w.depth >= scan.MaxDepth {
		if w.tooDeep = true; !w.keepDeep {
			return false
		}
	}
	w.depth++
	return true
}

// float writes a number without an exponent, because a record's length counts its numbers as PostgreSQL writes them.
func (w *Writer) float(f float64) {
	switch {
	case math.IsNaN(f):
		w.replaced(scan.Number)
		w.b = append(w.b, `"NaN"`...)
	case math.IsInf(f, 1):
		w.replaced(scan.Number)
		w.b = append(w.b, `"Infinity"`...)
	case math.IsInf(f, -1):
		w.replaced(scan.Number)
		w.b = append(w.b, `"-Infinity"`...)
	default:
		w.b = strconv.AppendFloat(w.b, f, 'f', -1, 64)
	}
}

// replacement replaces bytes that jsonb can't store in a string.
const replacement = "\ufffd"

const (
	ones  = 0x0101010101010101
	highs = 0x80 * ones
)

// plain returns how many bytes at the beginning of s are ASCII and stand for themselves in a JSON string.
func plain[T string | []byte](s T) int {
	i := 0
	for ; i+8 <= len(s); i += 8 {
		w := uint64(s[i]) | uint64(s[i+1])<<8 | uint64(s[i+2])<<16 | uint64(s[i+3])<<24 |
			uint64(s[i+4])<<32 | uint64(s[i+5])<<40 | uint64(s[i+6])<<48 | uint64(s[i+7])<<56
		// The high bits of the bytes that are below a space, a quote, a backslash, or not ASCII. The lowest mark is exact.
		if m := ((w - 0x20*ones) | ((w ^ '"'*ones) - ones) | ((w ^ '\\'*ones) - ones) | w) & highs; m != 0 {
			return i + bits.TrailingZeros64(m)/8
		}
	}
	for i < len(s) && s[i] >= ' ' && s[i] != '"' && s[i] != '\\' && s[i] < utf8.RuneSelf {
		i++
	}
	return i
}

// appendString writes s as a JSON string.
func appendString[T string | []byte](w *Writer, s T) {
	b := append(w.b, '"')
	i := plain(s)
	if i == len(s) {
		b = append(b, s...)
		w.b = append(b, '"')
		return
	}
	from := 0 // where the part of s begins that is not written yet
	for i < len(s) {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i += plain(s[i:])
			continue
		}
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRuneInString(string(s[i:min(len(s), i+utf8.UTFMax)]))
			if r != utf8.RuneError || size > 1 {
				i += size
				continue
			}
		}
		b = append(b, s[from:i]...)
		switch {
		case c == 0:
			b = append(b, replacement...)
			w.replaced(scan.NUL)
		case c >= utf8.RuneSelf:
			b = append(b, replacement...)
			w.replaced(scan.UTF8)
		case c == '"', c == '\\':
			b = append(b, '\\', c)
		case c == '\n':
			b = append(b, `\n`...)
		case c == '\r':
			b = append(b, `\r`...)
		case c == '\t':
			b = append(b, `\t`...)
		default:
			const hex = "0123456789abcdef"
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		i++
		from = i
	}
	b = append(b, s[from:]...)
	w.b = append(b, '"')
}
