package query

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"millrace/internal/scan"
)

// The search language, as far as it goes now:
//
//	query  = { pair }                 separated by white space; all must hold
//	pair   = field ":" value
//	field  = name { "." name }        the path to a member, from the record's top
//	name   = word | quoted
//	value  = word | quoted
//	quoted = `"` { char | escape } `"`   \" \\ \/ \b \f \n \r \t \uXXXX, as in JSON
//
// A word ends at white space. In a name it also ends at : and ., and it holds none of " ( ) *; in a value it
// holds none of " ( ) *, and does not begin with one of < > = ! ~ [ {. What is left out of words, and a - in
// front of a pair, is kept free for the language to grow.
//
// A value that is a word and reads as a JSON number, true, false or null stands for that, or for the text.

const (
	// maxQueryBytes is the longest q. Percent-encoded it is 12 KiB, well below the 1 MiB that net/http reads.
	maxQueryBytes = 4 << 10
	// maxPairs bounds the conditions: each costs the planner time and the index a lookup.
	maxPairs = 64
	// maxNames is the longest path: no record is nested deeper.
	maxNames = scan.MaxDepth
)

type (
	// node is a part of a parsed query. Its String is a normal form: queries that mean the same for having been
	// written with other white space or quotes have the same one.
	node interface{ String() string }

	// all holds when each of its nodes does; so it does when there is none.
	all []node

	// equals holds for a record whose member at path is value.
	equals struct {
		path  []string
		value string
		typed bool // value also stands for the JSON number, true, false or null that it reads as
	}
)

func (n all) String() string {
	parts := make([]string, len(n))
	for i, part := range n {
		parts[i] = part.String()
	}
	return strings.Join(parts, " ")
}

func (n equals) String() string {
	names := make([]string, len(n.path))
	for i, name := range n.path {
		names[i] = quote(name)
	}
	value := n.value // a number or literal, so without anything to quote
	if !n.typed {
		value = quote(n.value)
	}
	return strings.Join(names, ".") + ":" + value
}

// quote writes s as the language has it.
func quote(s string) string { return `"` + quoter.Replace(s) + `"` }

var quoter = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// syntaxError says what is wrong with a query and at which character, counted from 1.
type syntaxError struct {
	message string // with the place in it
	at      int
}

func (e *syntaxError) Error() string { return e.message }

// parse reads a query. Its errors are *syntaxError.
func parse(q string) (node, error) {
	p := parser{q: q}
	if len(q) > maxQueryBytes {
		return nil, p.fail(maxQueryBytes, "got %d bytes, takes at most %d (up to the character at %d)", len(q), maxQueryBytes)
	}
	for i, r := range q {
		if r == utf8.RuneError && !strings.HasPrefix(q[i:], string(utf8.RuneError)) {
			return nil, p.fail(i, "not UTF-8 at %d")
		}
		if r == 0 {
			return nil, p.fail(i, "unexpected %q at %d", r)
		}
	}
	nodes := all{}
	for {
		p.space()
		if p.i == len(q) {
			return nodes, nil
		}
		if len(nodes) == maxPairs {
			return nil, p.fail(p.i, "more than %d pairs at %d", maxPairs)
		}
		n, err := p.pair()
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, n)
	}
}

type parser struct {
	q string
	i int // offset of the next byte
}

// fail makes the error of a fault at offset i. The last verb of format is for the place.
func (p *parser) fail(i int, format string, args ...any) error {
	at := utf8.RuneCountInString(p.q[:i]) + 1
	return &syntaxError{fmt.Sprintf(format, append(args, at)...), at}
}

// peek returns the next character, 0 at the end.
func (p *parser) peek() rune {
	if p.i == len(p.q) {
		return 0
	}
	r, _ := utf8.DecodeRuneInString(p.q[p.i:])
	return r
}

func (p *parser) space() {
	p.i += len(p.q[p.i:]) - len(strings.TrimLeftFunc(p.q[p.i:], unicode.IsSpace))
}

// word takes characters up to white space or one of stop.
func (p *parser) word(stop string) string {
	rest := p.q[p.i:]
	if n := strings.IndexFunc(rest, func(r rune) bool { return unicode.IsSpace(r) || strings.ContainsRune(stop, r) }); n >= 0 {
		rest = rest[:n]
	}
	p.i += len(rest)
	return rest
}

// ended says whether a pair or a word may end here.
func (p *parser) ended() bool { return p.i == len(p.q) || unicode.IsSpace(p.peek()) }

func (p *parser) pair() (node, error) {
	start := p.i
	switch c := p.peek(); c {
	case '-', '!':
		return nil, p.fail(start, "negation %q at %d is not supported yet", c)
	case '(':
		return nil, p.fail(start, "the parenthesis at %d is not supported yet")
	}
	path, err := p.field()
	if err != nil {
		return nil, err
	}
	n := equals{path: path}
	switch c := p.peek(); {
	case p.ended():
		return nil, p.fail(p.i, "a value is missing at %d")
	case c == '"':
		n.value, err = p.quoted()
	case strings.ContainsRune("<>=", c):
		err = p.fail(p.i, "the comparison %q at %d is not supported yet; put the value in quotes to mean the character itself", c)
	case strings.ContainsRune("!~[{", c):
		err = p.fail(p.i, "unexpected %q at %d; put the value in quotes to mean the character itself", c)
	default:
		n.value = p.word(`"()*`)
		n.typed = isTyped(n.value)
	}
	if err != nil {
		return nil, err
	}
	if !p.ended() {
		return nil, p.unexpected()
	}
	return n, nil
}

// field takes the names before a pair's colon, and the colon.
func (p *parser) field() ([]string, error) {
	start := p.i
	var path []string
	for {
		quoted := p.peek() == '"'
		var name string
		if quoted {
			var err error
			if name, err = p.quoted(); err != nil {
				return nil, err
			}
		} else if name = p.word(`":.()*`); name == "" {
			if c := p.peek(); strings.ContainsRune("()*", c) && c != 0 {
				return nil, p.unexpected()
			}
			return nil, p.fail(p.i, "a field's name is missing at %d")
		}
		if path = append(path, name); len(path) > maxNames {
			return nil, p.fail(start, "a field of more than %d names at %d", maxNames)
		}
		switch {
		case p.peek() == ':':
			p.i++
			return path, nil
		case p.peek() == '.':
			p.i++
		case !p.ended() && (len(path) > 1 || p.peek() != '('):
			return nil, p.unexpected()
		case len(path) > 1 || !quoted && name != "NOT" && name != "AND" && name != "OR":
			return nil, p.fail(start, "the word %.40q without a field at %d is not supported yet", p.q[start:p.i])
		case quoted:
			return nil, p.fail(start, "the phrase without a field at %d is not supported yet")
		default:
			return nil, p.fail(start, "the operator %s at %d is not supported yet", name)
		}
	}
}

// unexpected refuses the next character, which is there.
func (p *parser) unexpected() error {
	if p.peek() == '*' {
		return p.fail(p.i, "the wildcard '*' at %d is not supported yet; put the text in quotes to mean the character itself")
	}
	return p.fail(p.i, "unexpected %q at %d", p.peek())
}

// quoted takes a string in quotes; the next character is the first of them.
func (p *parser) quoted() (string, error) {
	start := p.i
	var b strings.Builder
	for p.i++; p.i < len(p.q); {
		switch c := p.q[p.i]; c {
		case '"':
			p.i++
			return b.String(), nil
		case '\\':
			r, n := unescape(p.q[p.i:])
			if n == 0 {
				return "", p.fail(p.i, `unknown escape at %d (takes \" \\ \/ \b \f \n \r \t \uXXXX)`)
			}
			b.WriteRune(r)
			p.i += n
		default:
			b.WriteByte(c)
			p.i++
		}
	}
	return "", p.fail(start, "a quoted string without an end begins at %d")
}

var escapes = map[byte]rune{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

// unescape reads the escape that s begins with, in n bytes; n is 0 when it is none that a record could hold.
func unescape(s string) (r rune, n int) {
	if len(s) < 2 {
		return 0, 0
	}
	if r, ok := escapes[s[1]]; ok {
		return r, 2
	}
	r, ok := hexUnit(s)
	if !ok || r == 0 {
		return 0, 0
	}
	if 0xD800 <= r && r < 0xE000 {
		low, ok := hexUnit(s[6:])
		if !ok || r >= 0xDC00 || low < 0xDC00 || low >= 0xE000 {
			return 0, 0
		}
		return (r-0xD800)<<10 + (low - 0xDC00) + 0x10000, 12
	}
	return r, 6
}

// hexUnit reads \uXXXX.
func hexUnit(s string) (rune, bool) {
	if len(s) < 6 || s[0] != '\\' || s[1] != 'u' {
		return 0, false
	}
	v, err := strconv.ParseUint(s[2:6], 16, 16)
	return rune(v), err == nil
}

// isTyped says whether a word is a JSON number, true, false or null.
func isTyped(word string) bool {
	switch word {
	case "true", "false", "null":
		return true
	}
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

func leadingDigits(s string) int { return len(s) - len(strings.TrimLeft(s, "0123456789")) }
