// Package eventtime finds in a record the time at which its event happened, as its sender wrote it.
//
// The rule is Millrace's own. A record has several fields that may hold its time, among them what a shipper adds. The fields are
// looked for at the top level of the record, and the first name on the list wins whose value is a time. The answer depends on
// nothing but the record's bytes, the rule, and the time that the record's id begins with. So it is the same wherever and
// however often a record is looked at.
//
// Nothing here starts a goroutine, and nothing is kept between calls.
package eventtime

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"time"
)

// Result tells where a record's time comes from.
type Result uint8

// The results. With all but Own, the record's time is the time that it came.
const (
	Own        Result = iota // the record has a time of its own
	Absent                   // it has none of the fields
	Unreadable               // the fields that it has hold no time after Earliest
	NoZone                   // one of the fields holds a time without a zone, and none holds one with a zone
	Ahead                    // its time lies too far after the time that it came
	Results                  // how many results there are
)

// String returns the result as the metrics name it.
func (r Result) String() string {
	return [Results]string{"own", "absent", "unreadable", "no_zone", "ahead"}[r]
}

// Earliest is a microsecond before the first time that counts, 1970-01-02, in Unix microseconds. Times up to it are zeros, and counts
// of something else.
const Earliest = 24 * 60 * 60 * 1_000_000

// Near is how far a row's time may lie from its inserted_at before the worker notes in late_hours where the row is. The query service
// looks that far around a window.
const Near = time.Hour

const (
	// MaxFields is the most fields that a Rule takes. Each is compared with the names of its length.
	MaxFields = 32
	// MaxFieldBytes is the longest name that it takes.
	MaxFieldBytes = 63
)

// DefaultFields are the names that common loggers give to the time of an event. What the program writes itself stands before what a
// shipper adds.
var DefaultFields = []string{"time", "timestamp", "@timestamp", "ts", "_time", "@t", "date", "eventTime", "EdgeStartTimestamp"}

// Rule finds times. Many goroutines may use one at once.
type Rule struct {
	fields  []string // the first of them counts before the others
	lengths uint64   // has bit n if a field has n bytes
	zone    *time.Location
	ahead   int64 // microseconds
	rarest  int   // index of a rare letter in all names but the first, or -1
}

// New returns the rule that looks for the fields in this order. zone is the time zone of times that have none; nil means that they
// are not taken. A record's time may be later than the time that it came by ahead. New fails if the fields can't be looked for.
func New(fields []string, zone *time.Location, ahead time.Duration) (*Rule, error) {
	if len(fields) > MaxFields {
		return nil, fmt.Errorf("%d fields, %d are the most", len(fields), MaxFields)
	}
	r := &Rule{fields: slices.Clone(fields), zone: zone, ahead: ahead.Microseconds()}
	r.rarest = -1
	if len(fields) > 1 {
		r.rarest = rarestShared(fields[1:])
	}
	for i, name := range fields {
		switch {
		case name == "":
			return nil, fmt.Errorf("the name of field %d is empty", i+1)
		case len(name) > MaxFieldBytes:
			return nil, fmt.Errorf("%q has more than %d bytes", name, MaxFieldBytes)
		case slices.Contains(fields[:i], name):
			return nil, fmt.Errorf("%q is there twice", name)
		}
		r.lengths |= 1 << len(name)
	}
	return r, nil
}

// At returns the time of a record that came at a time, both in Unix microseconds, and where it comes from. The record is a JSON object.
func (r *Rule) At(record []byte, came int64) (micros int64, result Result) {
	micros, result = r.Find(record)
	if result != Own {
		return came, result
	}
	if micros > came+r.ahead {
		return came, Ahead
	}
	return micros, Own
}

// Find returns the time that a record has of its own, in Unix microseconds, or the result that tells why it has none. That is never
// Ahead. What is finer than a microsecond is cut off. If a name is there twice, the first that holds a time counts.
//
// The record must be a JSON object of less than 4 GiB. If it is something else, Find returns any result.
func (r *Rule) Find(record []byte) (micros int64, result Result) {
	result = Absent
	best, bestMicros := len(r.fields), int64(0) // the first field of those that hold a time
	r.eachField(record, func(field, from, to int) (goOn bool) {
		micros, is := r.parseValue(record[from:to])
		switch {
		case is != Own:
			if result != NoZone {
				result = is
			}
		case field < best:
			best, bestMicros = field, micros
		}
		return best > 0
	})
	if best < len(r.fields) {
		return bestMicros, Own
	}
	return 0, result
}

// eachField calls visit with the fields that a record has at its top level, in their order in the record, until visit returns false: which of
// r.fields it is, and from where to where its value goes. A value that is cut off goes to the end of the record.
func (r *Rule) eachField(record []byte, visit func(field, from, to int) (goOn bool)) {
	for i := skipSpace(record, 0); ; { // at the object's brace, or at a comma
		keyAt := i + 1
		if keyAt < len(record) && record[keyAt] != '"' {
			keyAt = skipSpace(record, keyAt)
		}
		if keyAt >= len(record) || record[keyAt] != '"' {
			return
		}
		keyEnd, escaped := stringEnd(record, keyAt+1)
		valueAt := keyEnd + 2 // between them is the colon
		if valueAt >= len(record) {
			return
		}
		if record[valueAt] <= ' ' || record[keyEnd+1] != ':' {
			valueAt = skipSpace(record, skipSpace(record, keyEnd+1)+1)
		}
		i = skipValue(record, valueAt)
		if n := keyEnd - keyAt - 1; escaped || n <= MaxFieldBytes && r.lengths>>n&1 != 0 {
			if field := r.field(record[keyAt:keyEnd+1], escaped); field >= 0 && !visit(field, min(valueAt, i), i) {
				return
			}
		}
		if i < len(record) && record[i] <= ' ' {
			i = skipSpace(record, i)
		}
		if i >= len(record) || record[i] != ',' {
			return
		}
	}
}

// longestLead is the length of the longest value that Lead returns. Times are shorter.
const longestLead = 64

// Lead returns the member that stands at the beginning of a record for its first field to count before the others: the key of the
// earliest other field that the record has, with the value of the first field. Another Rule, which has the other fields in this order
// and the first one behind them, then finds that value, because the first of two members with one name counts. jsonb keeps the last
// of them, so what is stored is the record as it was.
//
// key is empty if the record has none of the other fields, or if its first field has a value that can't be a time. Whether it is a
// time does not matter: one that is none changes nothing. Keys of the other fields that are written with escapes are not seen. The
// record must be a JSON object, as for Find. If value is not empty, it is a part of record.
func (r *Rule) Lead(record []byte) (key string, value []byte) {
	if !r.mayHaveOther(record) {
		return "", nil
	}
	other := len(r.fields)
	r.eachField(record, func(field, from, to int) (goOn bool) {
		switch {
		case field > 0:
			other = min(other, field)
		case value == nil && to < len(record): // a value that ends with the record has no end of its own
			value = record[from:to]
		}
		return true
	})
	if other == len(r.fields) || !canLead(value) {
		return "", nil
	}
	return r.fields[other], bytes.TrimRight(value, " \t\r\n")
}

// rareLetters are the letters of English, the rarest first.
const rareLetters = "zqxjkvbpygfwmucldrhsnioate"

// rarestShared returns the index of the rarest letter among those with which all names begin, or -1.
func rarestShared(names []string) int {
	if len(names) == 0 {
		return -1
	}
	shared := names[0]
	for _, name := range names {
		n := 0
		for n < len(shared) && n < len(name) && shared[n] == name[n] {
			n++
		}
		shared = shared[:n]
	}
	rarest := -1
	for i := range shared {
		if rank := strings.IndexByte(rareLetters, shared[i]); rank >= 0 && (rarest < 0 || rank < strings.IndexByte(rareLetters, shared[rarest])) {
			rarest = i
		}
	}
	return rarest
}

// mayHaveOther reports whether the name of a field but the first may be between quotes somewhere in a record. If these names begin
// alike, it takes a fraction of the time of a walk over the record's members.
func (r *Rule) mayHaveOther(record []byte) bool {
	if r.rarest < 0 {
		return true
	}
	letter := r.fields[1][r.rarest]
	for i := 0; ; {
		n := bytes.IndexByte(record[i:], letter)
		if n < 0 {
			return false
		}
		i += n
		if quote := i - r.rarest - 1; quote >= 0 && r.quotesOther(record[quote:]) {
			return true
		}
		i++
	}
}

// quotesOther reports whether text begins with the name of a field but the first, in quotes.
func (r *Rule) quotesOther(text []byte) bool {
	for _, name := range r.fields[1:] {
		if end := len(name) + 1; end < len(text) && text[0] == '"' && text[end] == '"' && string(text[1:end]) == name {
			return true
		}
	}
	return false
}

// canLead reports whether a JSON value may be a time, and is short. A number with an exponent is left out, because it may be short
// and yet say a number of many digits.
func canLead(value []byte) bool {
	if len(value) == 0 || len(value) > longestLead {
		return false
	}
	return value[0] == '"' || '0' <= value[0] && value[0] <= '9' && !bytes.ContainsAny(value, "eE")
}

// field returns the index of the field that a key names, or -1. key has its quotes.
func (r *Rule) field(key []byte, escaped bool) int {
	if len(key) < 2 {
		return -1
	}
	name := key[1 : len(key)-1]
	if escaped {
		text, ok := unescape(key)
		if !ok {
			return -1
		}
		name = text
	}
	for i, f := range r.fields {
		if f == string(name) {
			return i
		}
	}
	return -1
}

// unescape returns what a JSON string says.
func unescape(quoted []byte) (text []byte, ok bool) {
	var s string
	if json.Unmarshal(quoted, &s) != nil {
		return nil, false
	}
	return []byte(s), true
}

// skipSpace returns the first offset from i on that has no white space.
func skipSpace(b []byte, i int) int {
	for i < len(b) && b[i] <= ' ' {
		i++
	}
	return i
}

const (
	ones  = 0x0101010101010101
	highs = 0x80 * ones
)

// stringEnd returns the offset of the quote that ends the string whose text begins at i, or len(b). It reports whether the string has
// a backslash.
func stringEnd(b []byte, i int) (end int, escaped bool) {
	for i+8 <= len(b) {
		w := binary.LittleEndian.Uint64(b[i:])
		quotes, slashes := w^'"'*ones, w^'\\'*ones
		// The lowest mark is exact: a borrow can wrongly mark a byte above one that is marked, never below.
		quotes, slashes = (quotes-ones)&^quotes&highs, (slashes-ones)&^slashes&highs
		if quotes|slashes == 0 {
			i += 8
			continue
		}
		if slashes == 0 || bits.TrailingZeros64(quotes) < bits.TrailingZeros64(slashes) {
			return i + bits.TrailingZeros64(quotes)/8, escaped
		}
		escaped = true
		i += bits.TrailingZeros64(slashes)/8 + 2
	}
	for i < len(b) && b[i] != '"' {
		if b[i] == '\\' {
			escaped = true
			i++
		}
		i++
	}
	return min(i, len(b)), escaped
}

// skipValue returns the offset behind the value that begins at i, or len(b).
func skipValue(b []byte, i int) int {
	if i >= len(b) {
		return len(b)
	}
	switch b[i] {
	case '"':
		end, _ := stringEnd(b, i+1)
		return min(end+1, len(b))
	case '{', '[':
		return skipNested(b, i)
	}
	for i < len(b) && b[i] != ',' && b[i] != '}' && b[i] != ']' {
		i++
	}
	return i
}

// skipNested returns the offset behind the object or array that begins at i, or len(b).
func skipNested(b []byte, i int) int {
	for depth := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			i, _ = stringEnd(b, i+1)
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return len(b)
}

// parseValue returns the time that a JSON value is. The result is Own, Unreadable or NoZone.
func (r *Rule) parseValue(value []byte) (micros int64, result Result) {
	var ok bool
	switch {
	case len(value) < 2 || value[0] != '"' || value[len(value)-1] != '"':
		micros, ok = parseNumber(bytes.TrimRight(value, " \t\r\n"))
	default:
		text := value[1 : len(value)-1]
		if bytes.IndexByte(text, '\\') >= 0 {
			if text, ok = unescape(value); !ok {
				return 0, Unreadable
			}
		}
		if len(text) > 4 && text[4] == '-' {
			return r.parseDate(text)
		}
		micros, ok = parseDigits(text)
	}
	if !ok || micros <= Earliest {
		return 0, Unreadable
	}
	return micros, Own
}
