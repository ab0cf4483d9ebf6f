// Package language is the search language, that of the parameter q. It reads a query and makes of it a normal form, a
// condition in SQL, or a Go function. A property test checks that the SQL and the function agree.
//
//	query  = [ or ]                              an empty query holds for every record
//	or     = and { ( "OR" | "||" ) and }
//	and    = not { [ "AND" | "&&" ] not }        side by side means AND
//	not    = ( "NOT" | "-" | "!" ) not | "(" or ")" | field test | text
//	text   = word | quoted                       a string, number, true or false anywhere in the record that holds it
//	field  = name { "." name }                   the path to a member, from the record's top
//	name   = word | quoted
//	test   = ( ":" | "=" | "!=" ) value          "!=" is NOT and "="
//	       | ( "~" | "!~" ) ( word | quoted )    holds the text, in any case
//	       | ( ">" | ">=" | "<" | "<=" ) bound
//	value  = word | quoted                       equal
//	       | "i(" ( word | quoted ) ")"          equal in any case
//	       | "*"                                 the field is there
//	       | "/" regex "/" [ "i" ]               holds what the regular expression matches; i: in any case
//	       | address "/" digits                  an IP address of that network
//	       | ( ">" | ">=" | "<" | "<=" ) bound
//	       | ( "[" | "{" ) bound "TO" bound ( "]" | "}" )   with its ends, without them
//	       | "(" or ")"                          the same field in each test: level:(error OR warn), level:(error, warn)
//	bound  = number | time | "*"                 in quotes too; * has no end and stands in ranges alone
//	time   = RFC 3339 | day                      2026-03-04T12:00:00Z, 2026-03-04
//	       | "now" [ ( "+" | "-" ) duration ] [ "/" unit ]   now-1h30m, now/d; units s m h d w
//	quoted = `"` { char | escape } `"`           \" \\ \/ \b \f \n \r \t \uXXXX, as in JSON
//
// A word ends at white space, at ( ) and at ". A name ends at : and at . too. Operators in words are taken in any case, but not
// before a colon, and in small letters only where something to join stands on both sides. The signs = != ~ !~ > < stand behind a
// field whose first character is a letter, _ or @, without a space; behind > and < stands a bound. Elsewhere they are text.
//
// In a word, * stands for any characters or none. Punctuation or a space after \ stands for itself. Before any other character,
// \ stands for itself.
//
// In a test of a field, a word that reads as a JSON number, true, false or null stands for that value and for the text. Texts
// are compared by simple case folding (Unicode), tests of a field letter by letter. Numbers compare with numbers, and with strings
// that are JSON numbers. Times compare with strings that are RFC 3339 times, to the microsecond. A day is all of it: > begins after
// its end.
//
// An array on the path or at its end stands for its members. An array within an array does not. Names without quotes may be one
// member's name: a.b finds {"a":{"b":1}} and {"a.b":1}.
//
// The fields id, time and inserted_at are the columns of these names as well: id takes a UUID, the others times.
//
// Regular expressions are those of RE2, see https://github.com/google/re2/wiki/Syntax, as far as PostgreSQL has the like.
//
// Nothing here starts a goroutine. A Query and a Matcher may be used by many goroutines at once, a Record and a Set by one
// at a time.
package language

import (
	"net/netip"
	"regexp"
	"strings"
	"time"
	"unicode"

	"github.com/google/uuid"

	"millrace/internal/scan"
)

const (
	// MaxBytes is the longest query. Percent-encoded it is 12 KiB, well below the 1 MiB that net/http reads.
	MaxBytes = 4 << 10
	// maxTests bounds the conditions. Each costs the planner time, and the index a lookup.
	maxTests = 64
	// maxNesting bounds parentheses and negations. That bounds the parser's stack, and PostgreSQL's.
	maxNesting = 64
	// maxNames is how many names the longest path has. No record is nested deeper.
	maxNames = scan.MaxDepth
	// maxStars bounds the wildcards of a word. With n wildcards, LIKE takes time that grows with the text's length to the
	// power of n.
	maxStars = 6
	// maxPattern is the longest text to look for, in characters. PostgreSQL makes an automaton of it.
	maxPattern = 256
)

// Query is a query that Parse has read. The zero Query holds for every record, as the empty text does.
type Query struct {
	root node
	text string // what Parse was given, if times in it count from now

	input string // what Parse was given
	tests []test // of fields and texts, outside of field:( … )
}

// test is what a part of a query was read as.
type test struct {
	start, end int // in the input
	node       node
}

// Text returns a text that is the same for the same query at any time: the normal form, or what Parse was given if times in it count from
// now.
func (q Query) Text() string {
	if q.text != "" {
		return q.text
	}
	return q.String()
}

// node returns the root of the query's tree.
func (q Query) node() node {
	if q.root == nil {
		return all{}
	}
	return q.root
}

// String returns the query's normal form, which Parse reads as the same query. Queries that differ only in white space,
// quotes or parentheses have the same normal form.
func (q Query) String() string { return q.node().String() }

// Matcher returns the function that reports whether a record satisfies the query, as the SQL does.
func (q Query) Matcher() Matcher { return compile(q.node()) }

type (
	// node is a part of a query. Its String is the part's normal form.
	node interface{ String() string }

	// all holds when each of its nodes holds. The empty one holds for every record.
	all []node

	// either holds when one of its nodes holds.
	either []node

	// not holds when its node does not hold, even if that is so because a field is missing.
	not struct{ node }

	// text holds for a record that has the pattern in a value anywhere.
	text struct{ pattern pattern }

	// equals holds for a record whose member at path is value.
	equals struct {
		path  path
		value string
		typed bool // the value may also be the JSON number, true, false or null that value reads as
	}

	// exists holds for a record that has a member at path, null included.
	exists struct{ path path }

	// like holds for a record whose member at path matches the pattern, as text and as a whole.
	like struct {
		path    path
		pattern pattern
	}

	// contains holds for a record whose member at path has the pattern in it, in any case.
	contains struct {
		path    path
		pattern pattern
	}

	// same holds for a record whose member at path is the value, in any case.
	same struct {
		path  path
		value string
	}

	// matching holds for a record whose member at path is matched by a regular expression.
	matching struct {
		path        path
		re          string
		fold        bool // in any case
		matches     *regexp.Regexp
		forPostgres string
	}

	// network holds for a record whose member at path is an IP address of a network, or the word.
	network struct {
		path   path
		prefix netip.Prefix
		word   string
	}

	// within holds for a record whose member at path lies between the bounds. One of the bounds may be open.
	within struct {
		path      path
		low, high bound
	}

	// column holds for a row whose time or inserted_at lies between the bounds. One of the bounds may be open.
	column struct {
		name      string
		low, high bound
	}

	// moment holds for a row whose time or inserted_at lies in what the word writes, an instant or a day, and for a record whose member
	// of that name is the word.
	moment struct {
		name     string
		word     string
		from, to time.Time // to is behind it
	}

	// identity holds for the row with an id, and for a record whose member id is the word.
	identity struct {
		id   uuid.UUID
		word string
	}

	// pattern holds the parts between the wildcards. Without a wildcard there is one part.
	pattern []string

	// bound is the end of a range: open, a number or a time.
	bound struct {
		kind      boundKind
		inclusive bool
		number    decimal
		at        time.Time
	}

	boundKind int
)

const (
	open boundKind = iota
	numeric
	temporal
)

func (n all) String() string { return join(n, " ") }

func (n either) String() string { return join(n, " OR ") }

// join returns the normal form of nodes with an operator between them.
func join(nodes []node, operator string) string {
	parts := make([]string, len(nodes))
	for i, part := range nodes {
		parts[i] = operand(part)
	}
	return strings.Join(parts, operator)
}

// operand returns the normal form of a node that stands beside others.
func operand(n node) string {
	switch n := n.(type) {
	case either:
		return "(" + n.String() + ")"
	case all:
		if len(n) == 0 {
			return "*"
		}
		return "(" + n.String() + ")"
	}
	return n.String()
}

func (n not) String() string      { return "-" + operand(n.node) }
func (n text) String() string     { return n.pattern.String() }
func (n exists) String() string   { return n.path.String() + ":*" }
func (n like) String() string     { return n.path.String() + ":" + n.pattern.String() }
func (n contains) String() string { return n.path.String() + "~" + n.pattern.String() }
func (n same) String() string     { return n.path.String() + ":i(" + quote(n.value) + ")" }
func (n network) String() string  { return n.path.String() + ":" + n.word }
func (n identity) String() string { return "id:" + n.word }
func (n moment) String() string   { return n.name + ":" + n.word }
func (n column) String() string   { return n.name + ":" + interval(n.low, n.high) }

func (n matching) String() string {
	s := n.path.String() + ":/" + n.re + "/"
	if n.fold {
		s += "i"
	}
	return s
}

func (n equals) String() string {
	if n.typed {
		return n.path.String() + ":" + n.value // a number or literal, so without anything to quote
	}
	return n.path.String() + ":" + quote(n.value)
}

func (n within) String() string { return n.path.String() + ":" + interval(n.low, n.high) }

// interval returns the normal form of a range.
func interval(low, high bound) string {
	switch {
	case high.kind == open && low.inclusive:
		return ">=" + low.String()
	case high.kind == open:
		return ">" + low.String()
	case low.kind == open && high.inclusive:
		return "<=" + high.String()
	case low.kind == open:
		return "<" + high.String()
	}
	start, end := "{", "}"
	if low.inclusive {
		start = "["
	}
	if high.inclusive {
		end = "]"
	}
	return start + low.String() + " TO " + high.String() + end
}

func (b bound) String() string {
	if b.kind == numeric {
		return b.number.String()
	}
	return b.at.Format(microsFormat)
}

// microsFormat is how a time is written. The time must be in UTC.
const microsFormat = "2006-01-02T15:04:05.000000Z"

func (p pattern) String() string {
	if len(p) == 1 {
		return quote(p[0])
	}
	var b strings.Builder
	for i, part := range p {
		if i > 0 {
			b.WriteByte('*')
		}
		for _, r := range part {
			if isEscapable(r) {
				b.WriteByte('\\')
			}
			b.WriteRune(r)
		}
	}
	return b.String()
}

// isEscapable reports whether a character of a word stands for itself after \, which is then no part of the word.
func isEscapable(r rune) bool {
	return unicode.IsSpace(r) || '!' <= r && r <= '~' && !('0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z')
}

// Wildcards returns the query for records whose member at a path is, as a whole, the parts with a wildcard between each two.
func Wildcards(path []string, parts []string) string {
	return FormatField(path) + ":" + pattern(parts).String()
}

// FormatField returns a path as ParseField reads it, with quotes where a name needs them.
func FormatField(path []string) string {
	names := make([]string, len(path))
	for i, name := range path {
		names[i] = FormatName(name)
	}
	return strings.Join(names, ".")
}

// FormatName returns a name of a path as ParseField reads it, with quotes if it needs them.
func FormatName(name string) string {
	if name == "" || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) && r != '_' && r != '-' }) || name[0] == '-' {
		return strings.NewReplacer("\b", `\b`, "\f", `\f`, "\n", `\n`, "\r", `\r`, "\t", `\t`).Replace(quote(name))
	}
	return name
}

// quote returns s as a quoted string of the language.
func quote(s string) string { return `"` + quoter.Replace(s) + `"` }

var quoter = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// isTyped reports whether a word is a JSON number, true, false or null.
func isTyped(word string) bool {
	switch word {
	case "true", "false", "null":
		return true
	}
	return isNumber(word)
}

// IsNumber reports whether a text is a JSON number that can be compared with.
func IsNumber(text string) bool { return len(text) <= maxNumberText && isNumber(text) }

// isNumber reports whether a word is a JSON number.
func isNumber(word string) bool {
	rest := strings.TrimPrefix(word, "-")
	whole := leadingDigits(rest)
	if whole == 0 || whole > 1 && rest[0] == '0' {
		return false
	}
	rest = rest[whole:]
	if strings.HasPrefix(rest, ".") {
		n := leadingDigits(rest[1:])
		if n == 0 {
			return false
		}
		rest = rest[1+n:]
	}
	if rest != "" && (rest[0] == 'e' || rest[0] == 'E') {
		rest = rest[1:]
		if rest != "" && (rest[0] == '+' || rest[0] == '-') {
			rest = rest[1:]
		}
		n := leadingDigits(rest)
		return n > 0 && n == len(rest)
	}
	return rest == ""
}

// leadingDigits returns how many digits s begins with.
func leadingDigits(s string) int { return len(s) - len(strings.TrimLeft(s, "0123456789")) }

// IsNumberText reports whether a string counts as a number: see isNumberText.
func IsNumberText(text string) bool { return isNumberText(text) }

// isNumberText reports whether a string is a JSON number that comparisons take: PostgreSQL's numeric holds it. numberText matches the
// same in SQL.
func isNumberText(s string) bool {
	if len(s) > maxNumberText || !isNumber(s) {
		return false
	}
	i := strings.IndexAny(s, "eE")
	return i < 0 || len(strings.TrimLeft(s[i+1:], "+-")) <= 3
}

const (
	maxNumberText = 100
	numberText    = `^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]{1,3})?$`
)

// isStorable reports whether a record could hold the JSON number.
func isStorable(number string) bool {
	var body scan.Body
	return body.Single([]byte(`{"":`+number+`}`), scan.Limits{RecordBytes: scan.MaxRecordBytes, PieceBytes: 1}) == nil
}
