package scan

import (
	"bytes"
	"fmt"
	"strconv"
)

// Reason classifies a refusal. Its String is the value of a metric's label.
type Reason uint8

const (
	Syntax    Reason = iota // not JSON
	NotObject               // JSON, but not an object
	NUL                     // \u0000 in a string
	Surrogate               // half of a surrogate pair in a string
	UTF8                    // a string that is not UTF-8
	Number                  // a number that numeric can't hold
	Depth                   // nested deeper than MaxDepth
	TooLarge                // longer than Limits.RecordBytes
	Format                  // the body is in another format or encoding
	Empty                   // the body holds nothing

	NumReasons // how many there are
)

var reasonNames = [NumReasons]string{
	"syntax", "not_object", "nul", "surrogate", "utf8",
	"number", "depth", "too_large", "format", "empty",
}

func (r Reason) String() string {
	if r < NumReasons {
		return reasonNames[r]
	}
	return "reason_" + strconv.Itoa(int(r))
}

// Repairable reports whether a record with such a fault can be repaired; see Limits.Repair.
func (r Reason) Repairable() bool {
	switch r {
	case NUL, Surrogate, UTF8, Number, Depth, TooLarge:
		return true
	}
	return false
}

// Error is a refusal: what was wrong, and where.
type Error struct {
	Reason Reason
	Offset int // of the byte at fault, counted in the decoded body
	Msg    string
}

func (e *Error) Error() string {
	if e.Reason == Format {
		return e.Msg // it concerns the whole body, so the offset says nothing
	}
	return e.Msg + " at byte " + strconv.Itoa(e.Offset)
}

// RecordError is the refusal of one record.
type RecordError struct {
	Index int // position of the record in its request, counting refused ones too
	Err   Error
}

// NothingMore ends the message of the Error that Single returns for more than
// one record.
const NothingMore = "want nothing more"

// want is what the grammar required at the byte where the JSON broke.
type want uint8

const (
	wantObject want = iota
	wantValue
	wantElement
	wantMoreElements
	wantFirstKey
	wantKey
	wantColon
	wantMoreMembers
	wantClosingQuote
	wantEscaped
	wantEscape
	wantHex
	wantDigit
	wantTrue
	wantFalse
	wantNull
	wantNothing
	wantArray
	wantDelimiter
)

var wants = [...]struct{ wanted, inside string }{
	wantObject:       {"want an object", "before an object"},
	wantValue:        {"want a value", "before a value"},
	wantElement:      {"want a value or ']'", "inside an array"},
	wantMoreElements: {"want ',' or ']'", "inside an array"},
	wantFirstKey:     {`want '"' or '}'`, "inside an object"},
	wantKey:          {`want '"'`, "inside an object"},
	wantColon:        {"want ':'", "inside an object"},
	wantMoreMembers:  {"want ',' or '}'", "inside an object"},
	wantClosingQuote: {"", "inside a string"},
	wantEscaped:      {"inside a string, want it escaped", "inside a string"},
	wantEscape:       {`after '\', want one of "\/bfnrtu`, "inside a string"},
	wantHex:          {`in a \u escape, want four hex digits`, "inside a string"},
	wantDigit:        {"in a number, want a digit", "inside a number"},
	wantTrue:         {"want true", "inside a literal"},
	wantFalse:        {"want false", "inside a literal"},
	wantNull:         {"want null", "inside a literal"},
	wantNothing:      {"after the record, want nothing more", ""},
	wantArray:        {"after the array, want nothing more or another array", ""},
	wantDelimiter:    {"right after a value", ""},
}

// fault is an Error not yet put into words: most refusals of a bad body are
// only counted, so they must cost no allocation.
type fault struct {
	reason Reason
	want   want // for Syntax
	ended  bool // for Syntax: the bytes ended here, rather than holding a wrong one
	at     int
	n      int  // Number: length of the number; TooLarge: of the record, compacted
	longer bool // TooLarge: n counts numbers written out
	limit  int  // TooLarge: the most bytes that a record may have
}

// err returns f, a fault found in body, as an Error with a message.
func (f *fault) err(body []byte) Error {
	return Error{Reason: f.reason, Offset: f.at, Msg: f.msg(body)}
}

func (f *fault) msg(body []byte) string {
	switch f.reason {
	case Syntax:
		w := wants[f.want]
		if !f.ended {
			sep := ", "
			switch f.want {
			case wantEscaped, wantEscape, wantHex, wantDigit, wantNothing, wantArray, wantDelimiter:
				sep = " "
			}
			return "unexpected " + quoteByte(body[f.at]) + sep + w.wanted
		}
		if f.at < len(body) {
			return "unexpected end of line " + w.inside
		}
		return "unexpected end of body " + w.inside
	case NotObject:
		if holdsObject(body[f.at:]) {
			return "not an object but a string that holds one: it was encoded twice"
		}
		return "not an object"
	case NUL:
		return `\u0000 can't be stored in jsonb`
	case Surrogate:
		return string(body[f.at:f.at+6]) + " is half of a surrogate pair"
	case UTF8:
		return fmt.Sprintf(`invalid UTF-8 byte \x%02x`, body[f.at])
	case Number:
		const most = 40
		if f.n > most {
			return "number " + string(body[f.at:f.at+most]) + "... is out of range for numeric"
		}
		return "number " + string(body[f.at:f.at+f.n]) + " is out of range for numeric"
	case Depth:
		return "nested deeper than " + strconv.Itoa(MaxDepth)
	case TooLarge:
		if f.longer {
			return fmt.Sprintf("record of %d bytes, its numbers written out, is larger than %d", f.n, f.limit)
		}
		return fmt.Sprintf("record of %d bytes is larger than %d", f.n, f.limit)
	case Empty:
		return "the body is empty"
	}
	return f.reason.String()
}

// holdsObject reports whether b starts with a JSON string that seems to hold a
// JSON object, judged by its first bytes.
func holdsObject(b []byte) bool {
	if len(b) == 0 || b[0] != '"' {
		return false
	}
	b = bytes.TrimLeft(b[1:], " ")
	return bytes.HasPrefix(b, []byte(`{\"`)) || bytes.HasPrefix(b, []byte(`{}`)) || bytes.HasPrefix(b, []byte(`{\n`))
}

// quoteByte returns c in quotes, in a form that people can search for.
func quoteByte(c byte) string {
	if c < 0x80 {
		return strconv.QuoteRune(rune(c))
	}
	return fmt.Sprintf(`'\x%02x'`, c)
}
