// Package language is the search language, that of the parameter q. It reads a query and makes of it a normal form, a
// condition in SQL, or a Go function. A property test checks that the SQL and the function agree.
//
//	query  = [ or ]                              an empty query holds for every record
//	or     = and { "OR" and }
//	and    = not { [ "AND" ] not }               side by side means AND
//	not    = ( "NOT" | "-" ) not | "(" or ")" | field ":" test | text
//	text   = word | quoted                       a string, number, true or false anywhere in the record that holds it
//	field  = name { "." name }                   the path to a member, from the record's top
//	name   = word | quoted
//	test   = word | quoted                       equal
//	       | "*"                                 the field is there
//	       | ( ">" | ">=" | "<" | "<=" ) bound
//	       | ( "[" | "{" ) bound "TO" bound ( "]" | "}" )   with its ends, without them
//	       | "(" or ")"                          the same field in each test: level:(error OR warn)
//	bound  = number | RFC 3339 time | "*"        in quotes too; * has no end and stands in ranges alone
//	quoted = `"` { char | escape } `"`           \" \\ \/ \b \f \n \r \t \uXXXX, as in JSON
//
// A word ends at white space, at ( ) and at ". A name ends at : and at . too. AND, OR and NOT are operators in capitals
// alone, and not before a colon.
//
// In a word, * stands for any characters or none. Punctuation or a space after \ stands for itself. Before any other character,
// \ stands for itself.
//
// In a test of a field, a word that reads as a JSON number, true, false or null stands for that value and for the text. Texts
// are compared by simple case folding (Unicode), tests of a field letter by letter. Numbers compare with numbers. Times
// compare with strings that are RFC 3339 times, to the microsecond.
//
// An array on the path or at its end stands for its members. An array within an array does not.
//
// Nothing here starts a goroutine. A Query and a Matcher may be used by many goroutines at once, a Record and a Set by one
// at a time.
package language

import (
	"strconv"
	"strings"
	"time"
	"unicode"

	"millrace/internal/rfc3339"
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
type Query struct{ root node }

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
		path  []string
		value string
		typed bool // the value may also be the JSON number, true, false or null that value reads as
	}

	// exists holds for a record that has a member at path, null included.
	exists struct{ path []string }

	// like holds for a record whose member at path matches the pattern, as text and as a whole.
	like struct {
		path    []string
		pattern pattern
	}

	// within holds for a record whose member at path lies between the bounds. One of the bounds may be open.
	within struct {
		path      []string
		low, high bound
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

func (n not) String() string    { return "-" + operand(n.node) }
func (n text) String() string   { return n.pattern.String() }
func (n exists) String() string { return field(n.path) + ":*" }
func (n like) String() string   { return field(n.path) + ":" + n.pattern.String() }

func (n equals) String() string {
	if n.typed {
		return field(n.path) + ":" + n.value // a number or literal, so without anything to quote
	}
	return field(n.path) + ":" + quote(n.value)
}

func (n within) String() string {
	s := field(n.path) + ":"
	switch {
	case n.high.kind == open && n.low.inclusive:
		return s + ">=" + n.low.String()
	case n.high.kind == open:
		return s + ">" + n.low.String()
	case n.low.kind == open && n.high.inclusive:
		return s + "<=" + n.high.String()
	case n.low.kind == open:
		return s + "<" + n.high.String()
	}
	start, end := "{", "}"
	if n.low.inclusive {
		start = "["
	}
	if n.high.inclusive {
		end = "]"
	}
	return s + start + n.low.String() + " TO " + n.high.String() + end
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

// field returns a path as the normal form has it.
func field(path []string) string { return joinNames(path, quote) }

// FormatField returns a path as ParseField reads it, with quotes where a name needs them.
func FormatField(path []string) string { return joinNames(path, FormatName) }

// joinNames returns the names of a path as write returns them, with dots between them.
func joinNames(path []string, write func(name string) string) string {
	names := make([]string, len(path))
	for i, name := range path {
		names[i] = write(name)
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

// isStorable reports whether a record could hold the JSON number.
func isStorable(number string) bool {
	var body scan.Body
	return body.Single([]byte(`{"":`+number+`}`), scan.Limits{RecordBytes: scan.MaxRecordBytes, PieceBytes: 1}) == nil
}

// parseInstant returns the time that s writes by RFC 3339, to the microsecond, and reports whether it is one. Further digits are cut
// off. isInstant and instantOf in sql.go do the same in SQL.
func parseInstant(s string) (time.Time, bool) {
	at, fraction, ok := rfc3339.Parse(s)
	micros, _ := strconv.Atoi((fraction + "000000")[:6])
	return at.Add(time.Duration(micros) * time.Microsecond), ok
}
