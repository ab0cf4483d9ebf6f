package language

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// syntaxError says what is wrong with a query and at which character, counted from 1.
type syntaxError struct {
	message string // with the place in it
	at      int
}

func (e *syntaxError) Error() string { return e.message }

// Parse reads a query. Its errors are *syntaxError. It takes time in proportion to the query's length.
func Parse(q string) (Query, error) {
	p := parser{q: q}
	if len(q) > MaxBytes {
		return Query{}, p.fail(MaxBytes, "got %d bytes, takes at most %d (up to the character at %d)", len(q), MaxBytes)
	}
	if err := p.checkCharacters(); err != nil {
		return Query{}, err
	}
	if p.space(); p.i == len(q) {
		return Query{all{}}, nil
	}
	n, err := p.or(nil, 0)
	if err == nil && p.i < len(q) {
		err = p.unexpected()
	}
	return Query{n}, err
}

// ParseField reads a field as the language writes it, and nothing else.
func ParseField(s string) ([]string, error) {
	p := parser{q: s}
	if err := p.checkCharacters(); err != nil {
		return nil, err
	}
	if len(s) > MaxBytes {
		return nil, p.fail(0, "got %d bytes, takes at most %d, at %d", len(s), MaxBytes)
	}
	path, err := p.names()
	if err == nil && p.i < len(s) {
		err = p.unexpected()
	}
	return path, err
}

type parser struct {
	q     string
	i     int // offset of the next byte
	tests int

	grouped int // the offset after the last group and its white space
}

// checkCharacters refuses what is not UTF-8, and the character 0, which no record can hold.
func (p *parser) checkCharacters() error {
	for i, r := range p.q {
		if r == utf8.RuneError && !strings.HasPrefix(p.q[i:], string(utf8.RuneError)) {
			return p.fail(i, "not UTF-8 at %d")
		}
		if r == 0 {
			return p.fail(i, "unexpected %q at %d", r)
		}
	}
	return nil
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

// unexpected refuses what comes next, which is there.
func (p *parser) unexpected() error {
	for _, operator := range []string{"AND", "OR", "NOT"} {
		if p.operator(operator) {
			return p.fail(p.i, "unexpected %s at %d", operator)
		}
	}
	if c := p.peek(); unicode.IsGraphic(c) && !unicode.IsSpace(c) {
		return p.fail(p.i, "unexpected %c at %d", c)
	}
	return p.fail(p.i, "unexpected %q at %d", p.peek())
}

// operator says whether the word name comes next: as a whole, and not as a field.
func (p *parser) operator(name string) bool {
	rest, found := strings.CutPrefix(p.q[p.i:], name)
	if !found {
		return false
	}
	r, _ := utf8.DecodeRuneInString(rest)
	return rest == "" || unicode.IsSpace(r) || r == '(' || r == ')'
}

// skip takes n bytes and the white space after them.
func (p *parser) skip(n int) {
	p.i += n
	p.space()
}

// or takes what binds weakest, and the white space after it. field is the one that all tests are about, nil
// outside of field:( … ).
func (p *parser) or(field []string, depth int) (node, error) {
	nodes := either{}
	for {
		n, err := p.and(field, depth)
		if err != nil {
			return nil, err
		}
		if inner, ok := n.(either); ok {
			nodes = append(nodes, inner...)
		} else {
			nodes = append(nodes, n)
		}
		if !p.operator("OR") {
			break
		}
		p.skip(len("OR"))
	}
	if len(nodes) == 1 {
		return nodes[0], nil
	}
	return nodes, nil
}

func (p *parser) and(field []string, depth int) (node, error) {
	nodes := all{}
	for {
		n, err := p.not(field, depth)
		if err != nil {
			return nil, err
		}
		if inner, ok := n.(all); ok {
			nodes = append(nodes, inner...) // the empty one, which holds for all, vanishes
		} else {
			nodes = append(nodes, n)
		}
		if p.operator("AND") {
			p.skip(len("AND"))
			continue
		}
		if p.i == len(p.q) || p.peek() == ')' || p.operator("OR") {
			break
		}
	}
	if len(nodes) == 1 {
		return nodes[0], nil
	}
	return nodes, nil
}

func (p *parser) not(field []string, depth int) (node, error) {
	start := p.i
	switch {
	case p.i == len(p.q):
		return nil, p.fail(p.i, "something to look for is missing at %d")
	case depth == maxNesting:
		return nil, p.fail(p.i, "nested deeper than %d at %d", maxNesting)
	case p.operator("NOT"), p.peek() == '-':
		if p.peek() == '-' {
			p.i++
			if p.i == len(p.q) || unicode.IsSpace(p.peek()) {
				return nil, p.fail(p.i, "after - something to look for is missing at %d")
			}
		} else {
			p.skip(len("NOT"))
		}
		n, err := p.not(field, depth+1)
		if inner, ok := n.(not); ok {
			return inner.node, err
		}
		return not{n}, err
	case p.peek() == '(':
		return p.group(field, depth+1)
	case p.peek() == ')', p.operator("AND"), p.operator("OR"):
		return nil, p.unexpected()
	}
	if p.tests++; p.tests > maxTests {
		return nil, p.fail(start, "more than %d conditions at %d", maxTests)
	}
	n, err := p.test(field, depth)
	if err != nil {
		return nil, err
	}
	if p.i < len(p.q) && p.peek() != ')' && !unicode.IsSpace(p.peek()) && p.i != p.grouped {
		return nil, p.unexpected()
	}
	p.space()
	return n, nil
}

// group takes what stands in parentheses, and the white space after them.
func (p *parser) group(field []string, depth int) (node, error) {
	start := p.i
	p.skip(1)
	n, err := p.or(field, depth)
	if err != nil {
		return nil, err
	}
	if p.peek() != ')' {
		return nil, p.fail(start, "no ) for the ( at %d")
	}
	p.skip(1)
	p.grouped = p.i
	return n, nil
}

// test takes a field and what is asked of it, or a text; within field:( … ) what is asked of field.
func (p *parser) test(field []string, depth int) (node, error) {
	if field != nil {
		return p.value(field)
	}
	if !p.fieldAhead() {
		return p.text()
	}
	path, err := p.names()
	if err != nil {
		return nil, err
	}
	if p.peek() != ':' {
		return nil, p.unexpected()
	}
	p.i++
	switch {
	case p.i == len(p.q) || unicode.IsSpace(p.peek()):
		return nil, p.fail(p.i, "a value is missing at %d")
	case p.peek() != '(':
		return p.value(path)
	case depth == maxNesting:
		return nil, p.fail(p.i, "nested deeper than %d at %d", maxNesting)
	}
	p.tests--
	return p.group(path, depth+1)
}

// fieldAhead says whether a colon comes before the word ends.
func (p *parser) fieldAhead() bool {
	quoted := false
	for i := p.i; i < len(p.q); {
		r, n := utf8.DecodeRuneInString(p.q[i:])
		i += n
		switch {
		case r == '\\' && i < len(p.q):
			_, n := utf8.DecodeRuneInString(p.q[i:])
			i += n
		case r == '"':
			quoted = !quoted
		case quoted:
		case r == ':':
			return true
		case r == '(' || r == ')' || unicode.IsSpace(r):
			return false
		}
	}
	return false
}

// names takes a field.
func (p *parser) names() ([]string, error) {
	start := p.i
	var path []string
	for {
		var name string
		if p.peek() == '"' {
			var err error
			if name, err = p.quoted(); err != nil {
				return nil, err
			}
		} else {
			at := p.i
			word, _, err := p.word(`":.()`)
			if err != nil {
				return nil, err
			}
			switch {
			case len(word) > 1:
				return nil, p.fail(at, `a field's name has no wildcards, at %d; put it in quotes to mean the character itself`)
			case p.i == at:
				return nil, p.fail(p.i, "a field's name is missing at %d")
			}
			name = word[0]
		}
		if path = append(path, name); len(path) > maxNames {
			return nil, p.fail(start, "a field of more than %d names at %d", maxNames)
		}
		if p.peek() != '.' {
			return path, nil
		}
		p.i++
	}
}

// text takes a word or a phrase.
func (p *parser) text() (node, error) {
	start := p.i
	var words pattern
	if p.peek() == '"' {
		phrase, err := p.quoted()
		if err != nil {
			return nil, err
		}
		words = pattern{phrase}
	} else {
		if strings.ContainsRune("!<>=~[]{}", p.peek()) {
			return nil, p.fail(p.i, "unexpected %c at %d; put the text in quotes to mean the character itself", p.peek())
		}
		var err error
		if words, _, err = p.word(`"()`); err != nil {
			return nil, err
		}
	}
	// What a text is looked for in is what holds it: a wildcard at either end changes nothing.
	for len(words) > 1 && words[0] == "" {
		words = words[1:]
	}
	for len(words) > 1 && words[len(words)-1] == "" {
		words = words[:len(words)-1]
	}
	if len(words) == 1 && words[0] == "" {
		return all{}, nil
	}
	return text{words}, p.bounded(start, words)
}

// bounded refuses a pattern that costs too much.
func (p *parser) bounded(start int, words pattern) error {
	length := 0
	for _, part := range words {
		length += utf8.RuneCountInString(part)
	}
	switch {
	case length > maxPattern:
		return p.fail(start, "a text of %d characters, takes at most %d, at %d", length, maxPattern)
	case len(words)-1 > maxStars:
		return p.fail(start, "a word of %d wildcards, takes at most %d, at %d", len(words)-1, maxStars)
	}
	return nil
}

// value takes what is asked of a field, parentheses apart.
func (p *parser) value(path []string) (node, error) {
	start := p.i
	switch c := p.peek(); c {
	case '"':
		s, err := p.quoted()
		return equals{path: path, value: s}, err
	case '<', '>':
		p.i++
		inclusive := p.peek() == '='
		if inclusive {
			p.i++
		}
		at := p.i
		b, err := p.bound(`"()`)
		if err != nil {
			return nil, err
		}
		if b.kind == open {
			return nil, p.fail(at, "a number or a time is missing at %d")
		}
		b.inclusive = inclusive
		if c == '<' {
			return within{path: path, high: b}, nil
		}
		return within{path: path, low: b}, nil
	case '[', '{':
		return p.interval(path)
	case '=', '!', '~', ']', '}':
		return nil, p.fail(start, "unexpected %c at %d; put the value in quotes to mean the character itself", c)
	}
	words, plain, err := p.word(`"()`)
	if err != nil {
		return nil, err
	}
	if len(words) == 1 {
		return equals{path: path, value: words[0], typed: plain && isTyped(words[0])}, nil
	}
	if strings.Join(words, "") == "" {
		return exists{path}, nil
	}
	return like{path, words}, p.bounded(start, words)
}

// interval takes [a TO b], also with { and }.
func (p *parser) interval(path []string) (node, error) {
	n := within{path: path}
	start := p.i
	inclusive := p.peek() == '['
	p.skip(1)
	var err error
	if n.low, err = p.bound(`"()[]{}`); err != nil {
		return nil, err
	}
	n.low.inclusive = inclusive && n.low.kind != open
	p.space()
	if !strings.HasPrefix(p.q[p.i:], "TO") {
		return nil, p.fail(p.i, "TO is missing at %d, as in [1 TO 5]")
	}
	p.skip(len("TO"))
	at := p.i
	if n.high, err = p.bound(`"()[]{}`); err != nil {
		return nil, err
	}
	p.space()
	switch c := p.peek(); c {
	case ']', '}':
		n.high.inclusive = c == ']' && n.high.kind != open
		p.i++
	default:
		return nil, p.fail(start, "no ] or } for the %c at %d", p.q[start])
	}
	switch {
	case n.low.kind == open && n.high.kind == open:
		return nil, p.fail(start, "a range without ends at %d; field:* asks whether the field is there")
	case n.low.kind != open && n.high.kind != open && n.low.kind != n.high.kind:
		return nil, p.fail(at, "a range from a number to a time, or the other way, at %d")
	}
	return n, nil
}

// bound takes the end of a range, up to white space or one of stop.
func (p *parser) bound(stop string) (b bound, err error) {
	start := p.i
	var s string
	if p.peek() == '"' {
		if s, err = p.quoted(); err != nil {
			return b, err
		}
	} else {
		words, _, err := p.word(stop)
		if err != nil {
			return b, err
		}
		if len(words) == 2 && words[0] == "" && words[1] == "" {
			return b, nil
		}
		if len(words) == 1 {
			s = words[0]
		}
	}
	if isNumber(s) {
		if !storable(s) {
			return b, p.fail(start, "no record can hold the number at %d")
		}
		return bound{kind: numeric, number: parseDecimal(s)}, nil
	}
	if at, ok := parseInstant(s); ok && 0 <= at.Year() && at.Year() <= 9999 {
		return bound{kind: temporal, at: at}, nil
	}
	return b, p.fail(start, "not a number or a time (RFC 3339, such as 2026-03-04T12:00:00Z) at %d")
}

// word takes characters up to white space or one of stop. plain says that no character had its meaning taken off.
func (p *parser) word(stop string) (words pattern, plain bool, err error) {
	var part strings.Builder
	plain = true
	for p.i < len(p.q) {
		r, n := utf8.DecodeRuneInString(p.q[p.i:])
		if unicode.IsSpace(r) || strings.ContainsRune(stop, r) {
			break
		}
		p.i += n
		switch {
		case r == '\\':
			if next, n := utf8.DecodeRuneInString(p.q[p.i:]); n > 0 && escapable(next) {
				p.i += n
				r, plain = next, false
			}
			part.WriteRune(r)
		case r == '*':
			words = append(words, part.String())
			part.Reset()
			p.i += len(p.q[p.i:]) - len(strings.TrimLeft(p.q[p.i:], "*")) // more of them say the same
		default:
			part.WriteRune(r)
		}
	}
	return append(words, part.String()), plain, nil
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
