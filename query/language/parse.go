package language

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// syntaxError is what is wrong with a query.
type syntaxError struct {
	message string // with the place in it
	at      int    // the character, counted from 1
}

func (e *syntaxError) Error() string { return e.message }

// Parse returns the query that q writes. An error tells what is wrong and at which character. The time that Parse takes grows no
// faster than the query's length.
func Parse(q string) (Query, error) {
	p := parser{input: q}
	if len(q) > MaxBytes {
		return Query{}, p.fail(MaxBytes, "got %d bytes, takes at most %d (up to the character at %d)", len(q), MaxBytes)
	}
	if err := p.checkCharacters(); err != nil {
		return Query{}, err
	}
	if p.skipSpace(); p.offset == len(q) {
		return Query{all{}}, nil
	}
	n, err := p.parseOr(nil, 0)
	if err == nil && p.offset < len(q) {
		err = p.unexpected()
	}
	return Query{n}, err
}

// ParseField returns the names on the way to the member that s, a field as a query has it, stands for. It fails if s is more than
// a field.
func ParseField(s string) ([]string, error) {
	p := parser{input: s}
	if err := p.checkCharacters(); err != nil {
		return nil, err
	}
	if len(s) > MaxBytes {
		return nil, p.fail(0, "got %d bytes, takes at most %d, at %d", len(s), MaxBytes)
	}
	path, err := p.parsePath()
	if err == nil && p.offset < len(s) {
		err = p.unexpected()
	}
	return path, err
}

// parser reads a query from left to right. Its methods take what stands at offset, and move offset behind that.
type parser struct {
	input  string
	offset int // of the next byte
	tests  int

	afterGroup int // the offset after the last group and its white space
}

// checkCharacters refuses what is not UTF-8, and the character 0, which no record can hold.
func (p *parser) checkCharacters() error {
	for i, r := range p.input {
		if r == utf8.RuneError && !strings.HasPrefix(p.input[i:], string(utf8.RuneError)) {
			return p.fail(i, "not UTF-8 at %d")
		}
		if r == 0 {
			return p.fail(i, "unexpected %q at %d", r)
		}
	}
	return nil
}

// fail returns the error of a fault at the offset i. The last verb of format is for the place.
func (p *parser) fail(i int, format string, args ...any) error {
	at := utf8.RuneCountInString(p.input[:i]) + 1
	return &syntaxError{fmt.Sprintf(format, append(args, at)...), at}
}

// peek returns the next character, 0 at the end.
func (p *parser) peek() rune {
	if p.offset == len(p.input) {
		return 0
	}
	r, _ := utf8.DecodeRuneInString(p.input[p.offset:])
	return r
}

// skipSpace takes white space.
func (p *parser) skipSpace() {
	p.offset += len(p.input[p.offset:]) - len(strings.TrimLeftFunc(p.input[p.offset:], unicode.IsSpace))
}

// unexpected returns the refusal of what comes next. Something must come.
func (p *parser) unexpected() error {
	for _, operator := range []string{"AND", "OR", "NOT"} {
		if p.atOperator(operator) {
			return p.fail(p.offset, "unexpected %s at %d", operator)
		}
	}
	if c := p.peek(); unicode.IsGraphic(c) && !unicode.IsSpace(c) {
		return p.fail(p.offset, "unexpected %c at %d", c)
	}
	return p.fail(p.offset, "unexpected %q at %d", p.peek())
}

// atOperator reports whether an operator comes next: as a whole word, and not as the name of a field.
func (p *parser) atOperator(name string) bool {
	rest, found := strings.CutPrefix(p.input[p.offset:], name)
	if !found {
		return false
	}
	r, _ := utf8.DecodeRuneInString(rest)
	return rest == "" || unicode.IsSpace(r) || r == '(' || r == ')'
}

// skip takes n bytes and the white space after them.
func (p *parser) skip(n int) {
	p.offset += n
	p.skipSpace()
}

// Each parse method takes a rule of the grammar. field is what all tests are about within field:( … ), and nil elsewhere.
// depth is how many parentheses and negations are around the rule.

// parseOr takes what OR joins, the operator that binds weakest, and the white space after it.
func (p *parser) parseOr(field []string, depth int) (node, error) {
	nodes := either{}
	for {
		n, err := p.parseAnd(field, depth)
		if err != nil {
			return nil, err
		}
		if inner, ok := n.(either); ok {
			nodes = append(nodes, inner...)
		} else {
			nodes = append(nodes, n)
		}
		if !p.atOperator("OR") {
			break
		}
		p.skip(len("OR"))
	}
	if len(nodes) == 1 {
		return nodes[0], nil
	}
	return nodes, nil
}

// parseAnd takes what AND joins, in words or side by side.
func (p *parser) parseAnd(field []string, depth int) (node, error) {
	nodes := all{}
	for {
		n, err := p.parseNot(field, depth)
		if err != nil {
			return nil, err
		}
		if inner, ok := n.(all); ok {
			nodes = append(nodes, inner...) // the empty one, which holds for all, vanishes
		} else {
			nodes = append(nodes, n)
		}
		if p.atOperator("AND") {
			p.skip(len("AND"))
			continue
		}
		if p.offset == len(p.input) || p.peek() == ')' || p.atOperator("OR") {
			break
		}
	}
	if len(nodes) == 1 {
		return nodes[0], nil
	}
	return nodes, nil
}

// parseNot takes a test, a negation or a group, and the white space after it.
func (p *parser) parseNot(field []string, depth int) (node, error) {
	start := p.offset
	switch {
	case p.offset == len(p.input):
		return nil, p.fail(p.offset, "something to look for is missing at %d")
	case depth == maxNesting:
		return nil, p.fail(p.offset, "nested deeper than %d at %d", maxNesting)
	case p.atOperator("NOT"), p.peek() == '-':
		if p.peek() == '-' {
			p.offset++
			if p.offset == len(p.input) || unicode.IsSpace(p.peek()) {
				return nil, p.fail(p.offset, "after - something to look for is missing at %d")
			}
		} else {
			p.skip(len("NOT"))
		}
		n, err := p.parseNot(field, depth+1)
		if inner, ok := n.(not); ok {
			return inner.node, err
		}
		return not{n}, err
	case p.peek() == '(':
		return p.parseGroup(field, depth+1)
	case p.peek() == ')', p.atOperator("AND"), p.atOperator("OR"):
		return nil, p.unexpected()
	}
	if p.tests++; p.tests > maxTests {
		return nil, p.fail(start, "more than %d conditions at %d", maxTests)
	}
	n, err := p.parseTest(field, depth)
	if err != nil {
		return nil, err
	}
	if p.offset < len(p.input) && p.peek() != ')' && !unicode.IsSpace(p.peek()) && p.offset != p.afterGroup {
		return nil, p.unexpected()
	}
	p.skipSpace()
	return n, nil
}

// parseGroup takes what stands in parentheses, and the white space after them.
func (p *parser) parseGroup(field []string, depth int) (node, error) {
	start := p.offset
	p.skip(1)
	n, err := p.parseOr(field, depth)
	if err != nil {
		return nil, err
	}
	if p.peek() != ')' {
		return nil, p.fail(start, "no ) for the ( at %d")
	}
	p.skip(1)
	p.afterGroup = p.offset
	return n, nil
}

// parseTest takes a field and what is asked of it, or a text. Within field:( … ) it takes what is asked of field.
func (p *parser) parseTest(field []string, depth int) (node, error) {
	if field != nil {
		return p.parseValue(field)
	}
	if !p.atField() {
		return p.parseText()
	}
	path, err := p.parsePath()
	if err != nil {
		return nil, err
	}
	if p.peek() != ':' {
		return nil, p.unexpected()
	}
	p.offset++
	switch {
	case p.offset == len(p.input) || unicode.IsSpace(p.peek()):
		return nil, p.fail(p.offset, "a value is missing at %d")
	case p.peek() != '(':
		return p.parseValue(path)
	case depth == maxNesting:
		return nil, p.fail(p.offset, "nested deeper than %d at %d", maxNesting)
	}
	p.tests--
	return p.parseGroup(path, depth+1)
}

// atField reports whether a field comes next: a colon stands before the end of the word.
func (p *parser) atField() bool {
	quoted := false
	for i := p.offset; i < len(p.input); {
		r, n := utf8.DecodeRuneInString(p.input[i:])
		i += n
		switch {
		case r == '\\' && i < len(p.input):
			_, n := utf8.DecodeRuneInString(p.input[i:])
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

// parsePath takes a field, the names with dots between them.
func (p *parser) parsePath() ([]string, error) {
	start := p.offset
	var path []string
	for {
		var name string
		if p.peek() == '"' {
			var err error
			if name, err = p.parseQuoted(); err != nil {
				return nil, err
			}
		} else {
			at := p.offset
			word, _, err := p.parseWord(`":.()`)
			if err != nil {
				return nil, err
			}
			switch {
			case len(word) > 1:
				return nil, p.fail(at, `a field's name has no wildcards, at %d; put it in quotes to mean the character itself`)
			case p.offset == at:
				return nil, p.fail(p.offset, "a field's name is missing at %d")
			}
			name = word[0]
		}
		if path = append(path, name); len(path) > maxNames {
			return nil, p.fail(start, "a field of more than %d names at %d", maxNames)
		}
		if p.peek() != '.' {
			return path, nil
		}
		p.offset++
	}
}

// parseText takes a word or a phrase.
func (p *parser) parseText() (node, error) {
	start := p.offset
	var words pattern
	if p.peek() == '"' {
		phrase, err := p.parseQuoted()
		if err != nil {
			return nil, err
		}
		words = pattern{phrase}
	} else {
		if strings.ContainsRune("!<>=~[]{}", p.peek()) {
			return nil, p.fail(p.offset, "unexpected %c at %d; put the text in quotes to mean the character itself", p.peek())
		}
		var err error
		if words, _, err = p.parseWord(`"()`); err != nil {
			return nil, err
		}
	}
	// A text is found anywhere in a value, so a wildcard at either end changes nothing.
	for len(words) > 1 && words[0] == "" {
		words = words[1:]
	}
	for len(words) > 1 && words[len(words)-1] == "" {
		words = words[:len(words)-1]
	}
	if len(words) == 1 && words[0] == "" {
		return all{}, nil
	}
	return text{words}, p.checkPattern(start, words)
}

// checkPattern refuses a pattern that costs too much.
func (p *parser) checkPattern(start int, words pattern) error {
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

// parseValue takes what is asked of a field, if no parentheses follow.
func (p *parser) parseValue(path []string) (node, error) {
	start := p.offset
	switch c := p.peek(); c {
	case '"':
		s, err := p.parseQuoted()
		return equals{path: path, value: s}, err
	case '<', '>':
		p.offset++
		inclusive := p.peek() == '='
		if inclusive {
			p.offset++
		}
		at := p.offset
		b, err := p.parseBound(`"()`)
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
		return p.parseInterval(path)
	case '=', '!', '~', ']', '}':
		return nil, p.fail(start, "unexpected %c at %d; put the value in quotes to mean the character itself", c)
	}
	words, plain, err := p.parseWord(`"()`)
	if err != nil {
		return nil, err
	}
	if len(words) == 1 {
		return equals{path: path, value: words[0], typed: plain && isTyped(words[0])}, nil
	}
	if strings.Join(words, "") == "" {
		return exists{path}, nil
	}
	return like{path, words}, p.checkPattern(start, words)
}

// parseInterval takes [a TO b], with { or } in place of a bracket too.
func (p *parser) parseInterval(path []string) (node, error) {
	n := within{path: path}
	start := p.offset
	inclusive := p.peek() == '['
	p.skip(1)
	var err error
	if n.low, err = p.parseBound(`"()[]{}`); err != nil {
		return nil, err
	}
	n.low.inclusive = inclusive && n.low.kind != open
	p.skipSpace()
	if !strings.HasPrefix(p.input[p.offset:], "TO") {
		return nil, p.fail(p.offset, "TO is missing at %d, as in [1 TO 5]")
	}
	p.skip(len("TO"))
	at := p.offset
	if n.high, err = p.parseBound(`"()[]{}`); err != nil {
		return nil, err
	}
	p.skipSpace()
	switch c := p.peek(); c {
	case ']', '}':
		n.high.inclusive = c == ']' && n.high.kind != open
		p.offset++
	default:
		return nil, p.fail(start, "no ] or } for the %c at %d", p.input[start])
	}
	switch {
	case n.low.kind == open && n.high.kind == open:
		return nil, p.fail(start, "a range without ends at %d; field:* asks whether the field is there")
	case n.low.kind != open && n.high.kind != open && n.low.kind != n.high.kind:
		return nil, p.fail(at, "a range from a number to a time, or the other way, at %d")
	}
	return n, nil
}

// parseBound takes the end of a range, up to white space or one of stop.
func (p *parser) parseBound(stop string) (b bound, err error) {
	start := p.offset
	var s string
	if p.peek() == '"' {
		if s, err = p.parseQuoted(); err != nil {
			return b, err
		}
	} else {
		words, _, err := p.parseWord(stop)
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
		if !isStorable(s) {
			return b, p.fail(start, "no record can hold the number at %d")
		}
		return bound{kind: numeric, number: parseDecimal(s)}, nil
	}
	if at, ok := parseInstant(s); ok && 0 <= at.Year() && at.Year() <= 9999 {
		return bound{kind: temporal, at: at}, nil
	}
	return b, p.fail(start, "not a number or a time (RFC 3339, such as 2026-03-04T12:00:00Z) at %d")
}

// parseWord takes characters up to white space or one of stop. It returns the parts between the wildcards, and reports whether the
// word is plain: it has no character that \ makes stand for itself.
func (p *parser) parseWord(stop string) (words pattern, plain bool, err error) {
	var part strings.Builder
	plain = true
	for p.offset < len(p.input) {
		r, n := utf8.DecodeRuneInString(p.input[p.offset:])
		if unicode.IsSpace(r) || strings.ContainsRune(stop, r) {
			break
		}
		p.offset += n
		switch {
		case r == '\\':
			if next, n := utf8.DecodeRuneInString(p.input[p.offset:]); n > 0 && isEscapable(next) {
				p.offset += n
				r, plain = next, false
			}
			part.WriteRune(r)
		case r == '*':
			words = append(words, part.String())
			part.Reset()
			p.offset += len(p.input[p.offset:]) - len(strings.TrimLeft(p.input[p.offset:], "*")) // several in a row mean the same
		default:
			part.WriteRune(r)
		}
	}
	return append(words, part.String()), plain, nil
}

// parseQuoted takes a string in quotes. The next character is the opening quote.
func (p *parser) parseQuoted() (string, error) {
	start := p.offset
	var b strings.Builder
	for p.offset++; p.offset < len(p.input); {
		switch c := p.input[p.offset]; c {
		case '"':
			p.offset++
			return b.String(), nil
		case '\\':
			r, n := unescape(p.input[p.offset:])
			if n == 0 {
				return "", p.fail(p.offset, `unknown escape at %d (takes \" \\ \/ \b \f \n \r \t \uXXXX)`)
			}
			b.WriteRune(r)
			p.offset += n
		default:
			b.WriteByte(c)
			p.offset++
		}
	}
	return "", p.fail(start, "a quoted string without an end begins at %d")
}

var escapes = map[byte]rune{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

// unescape returns the character of the escape that s begins with, and how many bytes the escape has. n is 0 if s begins with no
// escape, or with one of a character that no record can hold.
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

// hexUnit returns the number of the \uXXXX that s begins with, and reports whether it begins with one.
func hexUnit(s string) (rune, bool) {
	if len(s) < 6 || s[0] != '\\' || s[1] != 'u' {
		return 0, false
	}
	v, err := strconv.ParseUint(s[2:6], 16, 16)
	return rune(v), err == nil
}
