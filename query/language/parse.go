package language

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
)

// syntaxError is what is wrong with a query.
type syntaxError struct {
	message string // with the place in it
	at      int    // the character, counted from 1
}

func (e *syntaxError) Error() string { return e.message }

// Parse returns the query that q writes. An error tells what is wrong and at which character. The time that Parse takes grows no
// faster than the query's length.
func Parse(q string) (Query, error) { return ParseAt(q, time.Now()) }

// ParseAt does what Parse does, at a time that now stands for.
func ParseAt(q string, now time.Time) (Query, error) {
	p := parser{input: q, now: now}
	if len(q) > MaxBytes {
		return Query{}, p.fail(MaxBytes, "got %d bytes, takes at most %d (up to the character at %d)", len(q), MaxBytes)
	}
	if err := p.checkCharacters(); err != nil {
		return Query{}, err
	}
	if p.skipSpace(); p.offset == len(q) {
		return Query{root: all{}}, nil
	}
	n, err := p.parseOr(nil, 0)
	if err == nil && p.offset < len(q) {
		err = p.unexpected()
	}
	query := Query{root: n, input: q, tests: p.read}
	if p.relative {
		query.text = q
	}
	return query, err
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
	path, err := p.parsePath(nameEnd)
	if err == nil && p.offset < len(s) {
		err = p.unexpected()
	}
	return path.names, err
}

// parser reads a query from left to right. Its methods take what stands at offset, and move offset behind that.
type parser struct {
	input  string
	offset int // of the next byte
	tests  int

	now      time.Time
	relative bool // a time counts from now

	read []test // see Query

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
		if p.atCapitals(operator) {
			return p.fail(p.offset, "unexpected %s at %d", operator)
		}
	}
	if c := p.peek(); unicode.IsGraphic(c) && !unicode.IsSpace(c) {
		return p.fail(p.offset, "unexpected %c at %d", c)
	}
	return p.fail(p.offset, "unexpected %q at %d", p.peek())
}

// atCapitals reports whether an operator in capitals comes next: as a whole word, and not as the name of a field.
func (p *parser) atCapitals(name string) bool {
	rest, found := strings.CutPrefix(p.input[p.offset:], name)
	return found && endsWord(rest)
}

// endsWord reports whether a word ends before rest.
func endsWord(rest string) bool {
	r, _ := utf8.DecodeRuneInString(rest)
	return rest == "" || unicode.IsSpace(r) || r == '(' || r == ')'
}

// operator returns how many bytes of an operator come next, 0 if none does. name is it in capitals, sign its sign. In small letters and as
// a sign it counts only if something to look for follows.
func (p *parser) operator(name, sign string) int {
	if p.atCapitals(name) {
		return len(name)
	}
	rest := p.input[p.offset:]
	n := len(name)
	switch {
	case len(rest) > n && strings.EqualFold(rest[:n], name) && endsWord(rest[n:]):
	case sign != "" && strings.HasPrefix(rest, sign) && endsWord(rest[len(sign):]):
		n = len(sign)
	default:
		return 0
	}
	next := parser{input: p.input, offset: p.offset + n}
	if next.skipSpace(); next.offset == len(p.input) || next.peek() == ')' || next.atCapitals("AND") || next.atCapitals("OR") {
		return 0
	}
	return n
}

// atOr reports whether OR, || or, within field:( … ), a comma comes next, and returns how many bytes that has.
func (p *parser) atOr(inField bool) int {
	if inField && p.peek() == ',' {
		return 1
	}
	return p.operator("OR", "||")
}

// skip takes n bytes and the white space after them.
func (p *parser) skip(n int) {
	p.offset += n
	p.skipSpace()
}

// Each parse method takes a rule of the grammar. field is what all tests are about within field:( … ), and nil elsewhere.
// depth is how many parentheses and negations are around the rule.

// parseOr takes what OR joins, the operator that binds weakest, and the white space after it.
func (p *parser) parseOr(field *path, depth int) (node, error) {
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
		length := p.atOr(field != nil)
		if length == 0 {
			break
		}
		p.skip(length)
	}
	if len(nodes) == 1 {
		return nodes[0], nil
	}
	return nodes, nil
}

// parseAnd takes what AND joins, in words or side by side.
func (p *parser) parseAnd(field *path, depth int) (node, error) {
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
		if length := p.operator("AND", "&&"); length > 0 {
			p.skip(length)
			continue
		}
		if p.offset == len(p.input) || p.peek() == ')' || p.atOr(field != nil) > 0 {
			break
		}
	}
	if len(nodes) == 1 {
		return nodes[0], nil
	}
	return nodes, nil
}

// parseNot takes a test, a negation or a group, and the white space after it.
func (p *parser) parseNot(field *path, depth int) (node, error) {
	start := p.offset
	switch {
	case p.offset == len(p.input):
		return nil, p.fail(p.offset, "something to look for is missing at %d")
	case depth == maxNesting:
		return nil, p.fail(p.offset, "nested deeper than %d at %d", maxNesting)
	case p.operator("NOT", "") > 0, p.peek() == '-', p.peek() == '!':
		if c := p.peek(); c == '-' || c == '!' {
			p.offset++
			if p.offset == len(p.input) || unicode.IsSpace(p.peek()) {
				return nil, p.fail(p.offset, "after %c something to look for is missing at %d", c)
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
	case p.peek() == ')', p.atCapitals("AND"), p.atCapitals("OR"):
		return nil, p.unexpected()
	}
	if p.tests++; p.tests > maxTests {
		return nil, p.fail(start, "more than %d conditions at %d", maxTests)
	}
	n, err := p.parseTest(field, depth)
	if err != nil {
		return nil, err
	}
	if c := p.peek(); p.offset < len(p.input) && c != ')' && !unicode.IsSpace(c) && p.offset != p.afterGroup && (field == nil || c != ',') {
		return nil, p.unexpected()
	}
	if field == nil && p.offset != p.afterGroup {
		p.read = append(p.read, test{start, p.offset, n})
	}
	p.skipSpace()
	return n, nil
}

// parseGroup takes what stands in parentheses, and the white space after them.
func (p *parser) parseGroup(field *path, depth int) (node, error) {
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
func (p *parser) parseTest(field *path, depth int) (node, error) {
	if field != nil {
		return p.parseValue(*field, true)
	}
	if n, err := p.parseSigned(depth); n != nil || err != nil {
		return n, err
	}
	if !p.atField() {
		return p.parseText()
	}
	path, err := p.parsePath(nameEnd)
	if err != nil {
		return nil, err
	}
	if p.peek() != ':' {
		return nil, p.unexpected()
	}
	p.offset++
	return p.parseAsked(path, depth)
}

// parseAsked takes what is asked of a field: a value, or a group of them.
func (p *parser) parseAsked(path path, depth int) (node, error) {
	switch {
	case p.offset == len(p.input) || unicode.IsSpace(p.peek()):
		return nil, p.fail(p.offset, "a value is missing at %d")
	case p.peek() != '(':
		return p.parseValue(path, false)
	case depth == maxNesting:
		return nil, p.fail(p.offset, "nested deeper than %d at %d", maxNesting)
	}
	p.tests--
	return p.parseGroup(&path, depth+1)
}

// signs are what may stand behind a field in place of a colon, the longer ones first.
var signs = []string{"!=", "!~", "==", "=~", ">=", "<=", "=", "~", ">", "<"}

// parseSigned takes a field with a sign behind it and what is asked of it. It returns nil, and takes nothing, if that is not what comes
// next: then the sign is part of a text.
func (p *parser) parseSigned(depth int) (node, error) {
	start, tests := p.offset, p.tests
	none := func() (node, error) {
		p.offset, p.tests = start, tests
		return nil, nil
	}
	if c := p.peek(); c != '"' && c != '_' && c != '@' && !unicode.IsLetter(c) {
		return none()
	}
	path, err := p.parsePath(signedNameEnd)
	if err != nil {
		return none()
	}
	sign := ""
	for _, s := range signs {
		if strings.HasPrefix(p.input[p.offset:], s) {
			sign = s
			break
		}
	}
	p.offset += len(sign)
	c := p.peek()
	if sign == "" || p.offset == len(p.input) || unicode.IsSpace(c) || strings.ContainsRune("=!<>~)]}", c) {
		return none()
	}
	var n node
	switch sign {
	case ">", ">=", "<", "<=":
		p.offset -= len(sign)
		if n, err = p.parseComparison(path); err != nil {
			return none()
		}
		return n, nil
	case "~", "=~", "!~":
		if c == '/' {
			n, err = p.parseValue(path, false)
		} else {
			n, err = p.parseContains(path)
		}
	default:
		if c == '[' || c == '{' {
			return none()
		}
		n, err = p.parseAsked(path, depth)
	}
	if err == nil && sign[0] == '!' {
		n = not{n}
	}
	return n, err
}

// parseContains takes a text that a field is to hold.
func (p *parser) parseContains(path path) (node, error) {
	start := p.offset
	words, err := p.parseTextWord()
	if err != nil {
		return nil, err
	}
	if len(words) == 1 && words[0] == "" {
		return exists{path}, nil
	}
	return contains{path, words}, p.checkPattern(start, words)
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

// What ends a name, apart from white space: before a colon, and before a sign.
const (
	nameEnd       = `":.()`
	signedNameEnd = `":.(),=!<>~[]{}*?&;|'` + "`"
)

// parsePath takes a field, the names with dots between them. stop is what ends a name.
func (p *parser) parsePath(stop string) (path, error) {
	start := p.offset
	var way path
	for {
		var name string
		quoted := p.peek() == '"'
		if quoted {
			var err error
			if name, err = p.parseQuoted(); err != nil {
				return path{}, err
			}
		} else {
			at := p.offset
			word, _, err := p.parseWord(stop)
			if err != nil {
				return path{}, err
			}
			switch {
			case len(word) > 1:
				return path{}, p.fail(at, `a field's name has no wildcards, at %d; put it in quotes to mean the character itself`)
			case p.offset == at:
				return path{}, p.fail(p.offset, "a field's name is missing at %d")
			}
			name = word[0]
		}
		way.names, way.firm = append(way.names, name), append(way.firm, quoted)
		if len(way.names) > maxNames {
			return path{}, p.fail(start, "a field of more than %d names at %d", maxNames)
		}
		if p.peek() != '.' {
			return way, nil
		}
		p.offset++
	}
}

// parseText takes a word or a phrase.
func (p *parser) parseText() (node, error) {
	start := p.offset
	if strings.ContainsRune("<>=~[]{}", p.peek()) {
		return nil, p.fail(p.offset, "unexpected %c at %d; put the text in quotes to mean the character itself", p.peek())
	}
	words, err := p.parseTextWord()
	if err != nil {
		return nil, err
	}
	if len(words) == 1 && words[0] == "" {
		return all{}, nil
	}
	return text{words}, p.checkPattern(start, words)
}

// parseTextWord takes a word or a phrase that is to be found anywhere in a value. So a wildcard at either end changes nothing, and is left
// out.
func (p *parser) parseTextWord() (words pattern, err error) {
	if p.peek() == '"' {
		phrase, err := p.parseQuoted()
		return pattern{phrase}, err
	}
	if words, _, err = p.parseWord(`"()`); err != nil {
		return nil, err
	}
	for len(words) > 1 && words[0] == "" {
		words = words[1:]
	}
	for len(words) > 1 && words[len(words)-1] == "" {
		words = words[:len(words)-1]
	}
	return words, nil
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

// parseValue takes what is asked of a field, if no parentheses follow. inGroup says that it stands in parentheses, where a comma ends a
// word.
func (p *parser) parseValue(path path, inGroup bool) (node, error) {
	start := p.offset
	stop := `"()`
	if inGroup {
		stop += ","
	}
	switch c := p.peek(); c {
	case '"':
		s, err := p.parseQuoted()
		return p.equal(path, s, false), err
	case '<', '>':
		return p.parseComparison(path)
	case '[', '{':
		return p.parseInterval(path)
	case '=', '!', '~', ']', '}', ',':
		return nil, p.fail(start, "unexpected %c at %d; put the value in quotes to mean the character itself", c)
	case '/':
		if n, err := p.parseRegex(path, inGroup); n != nil || err != nil {
			return n, err
		}
	case 'i':
		if strings.HasPrefix(p.input[p.offset:], "i(") {
			return p.parseSame(path)
		}
	}
	words, plain, err := p.parseWord(stop)
	if err != nil {
		return nil, err
	}
	if len(words) == 1 {
		if prefix, err := netip.ParsePrefix(words[0]); err == nil && plain {
			return network{path, prefix.Masked(), words[0]}, nil
		}
		return p.equal(path, words[0], plain), nil
	}
	if strings.Join(words, "") == "" {
		return exists{path}, nil
	}
	return like{path, words}, p.checkPattern(start, words)
}

// equal returns the test that a field is a value. plain says that the value is a word without anything to quote.
func (p *parser) equal(path path, value string, plain bool) node {
	switch {
	case path.isColumn("id"):
		if id, err := uuid.Parse(value); err == nil && len(value) == len(id.String()) {
			return identity{id, strings.ToLower(value)}
		}
	case path.isColumn("time"), path.isColumn("inserted_at"):
		at, length, ok := ParseTime(value, p.now)
		if !ok {
			break
		}
		to := at.Add(max(length, time.Microsecond))
		if strings.HasPrefix(value, "now") {
			p.relative = true
			return column{path.names[0], bound{kind: temporal, inclusive: true, at: at}, bound{kind: temporal, at: to}}
		}
		return moment{path.names[0], value, at, to}
	}
	return equals{path: path, value: value, typed: plain && isTyped(value)}
}

// parseSame takes i( … ), a value in any case.
func (p *parser) parseSame(path path) (node, error) {
	start := p.offset
	p.skip(len("i("))
	var value string
	if p.peek() == '"' {
		var err error
		if value, err = p.parseQuoted(); err != nil {
			return nil, err
		}
	} else {
		at := p.offset
		words, _, err := p.parseWord(`"()`)
		if err != nil {
			return nil, err
		}
		if len(words) > 1 {
			return nil, p.fail(at, `i( ) takes no wildcards, at %d; put the value in quotes to mean the character itself`)
		}
		value = words[0]
	}
	if p.skipSpace(); p.peek() != ')' {
		return nil, p.fail(start, "no ) for the i( at %d")
	}
	p.offset++
	return same{path, value}, p.checkPattern(start, pattern{value})
}

// parseRegex takes a regular expression between slashes. It returns nil if that is not what comes next.
func (p *parser) parseRegex(path path, inGroup bool) (node, error) {
	start := p.offset
	rest := p.input[p.offset:]
	hasSpace, hasSlash := false, false
	for i := 1; i < len(rest); i++ {
		c, n := utf8.DecodeRuneInString(rest[i:])
		switch {
		case c == '\\':
			i++
			continue
		case c != '/':
			hasSpace = hasSpace || unicode.IsSpace(c)
			i += n - 1
			continue
		}
		end := rest[i+1:]
		fold := strings.HasPrefix(end, "i")
		end = strings.TrimPrefix(end, "i")
		if !endsWord(end) && !(inGroup && strings.HasPrefix(end, ",")) {
			hasSlash = true
			continue
		}
		if hasSpace && hasSlash {
			return nil, nil // two paths, more likely
		}
		re := rest[1:i]
		if re == "" {
			return nil, nil
		}
		matches, forPostgres, err := parseRegex(re, fold)
		if err != nil {
			return nil, p.fail(start, "%v, in the regular expression at %d; put the value in quotes to mean the text", err)
		}
		p.offset = len(p.input) - len(end)
		return matching{path, re, fold, matches, forPostgres}, nil
	}
	return nil, nil
}

// parseComparison takes > >= < or <= and a bound.
func (p *parser) parseComparison(path path) (node, error) {
	c := p.input[p.offset]
	p.offset++
	inclusive := p.peek() == '='
	if inclusive {
		p.offset++
	}
	at := p.offset
	b, length, err := p.parseBound(path, `"(),`)
	if err != nil {
		return nil, err
	}
	if b.kind == open {
		return nil, p.fail(at, "a number or a time is missing at %d")
	}
	b.inclusive = inclusive
	if c == '<' {
		return between(path, bound{}, b.end(length)), nil
	}
	return between(path, b.start(length), bound{}), nil
}

// start returns the lower bound that begins a range, of which the bound is a time that has a length.
func (b bound) start(length time.Duration) bound {
	if length > 0 && !b.inclusive {
		b.at, b.inclusive = b.at.Add(length), true
	}
	return b
}

// end returns the upper bound that ends a range, of which the bound is a time that has a length.
func (b bound) end(length time.Duration) bound {
	if length > 0 && b.inclusive {
		b.at, b.inclusive = b.at.Add(length), false
	}
	return b
}

// between returns the test that a field, or the column of that name, lies between bounds.
func between(path path, low, high bound) node {
	if path.isColumn("time") || path.isColumn("inserted_at") {
		return column{path.names[0], low, high}
	}
	return within{path, low, high}
}

// parseInterval takes [a TO b], with { or } in place of a bracket too.
func (p *parser) parseInterval(path path) (node, error) {
	start := p.offset
	inclusive := p.peek() == '['
	p.skip(1)
	low, length, err := p.parseBound(path, `"()[]{}`)
	if err != nil {
		return nil, err
	}
	low.inclusive = inclusive && low.kind != open
	low = low.start(length)
	p.skipSpace()
	if len(p.input)-p.offset < len("TO") || !strings.EqualFold(p.input[p.offset:p.offset+len("TO")], "TO") {
		return nil, p.fail(p.offset, "TO is missing at %d, as in [1 TO 5]")
	}
	p.skip(len("TO"))
	at := p.offset
	high, length, err := p.parseBound(path, `"()[]{}`)
	if err != nil {
		return nil, err
	}
	p.skipSpace()
	switch c := p.peek(); c {
	case ']', '}':
		high.inclusive = c == ']' && high.kind != open
		p.offset++
	default:
		return nil, p.fail(start, "no ] or } for the %c at %d", p.input[start])
	}
	high = high.end(length)
	switch {
	case low.kind == open && high.kind == open:
		return nil, p.fail(start, "a range without ends at %d; field:* asks whether the field is there")
	case low.kind != open && high.kind != open && low.kind != high.kind:
		return nil, p.fail(at, "a range from a number to a time, or the other way, at %d")
	}
	return between(path, low, high), nil
}

// parseBound takes the end of a range, up to white space or one of stop. length is that of a time, such as a day's. A number is a time of
// a column.
func (p *parser) parseBound(path path, stop string) (b bound, length time.Duration, err error) {
	start := p.offset
	var s string
	if p.peek() == '"' {
		if s, err = p.parseQuoted(); err != nil {
			return b, 0, err
		}
	} else {
		words, _, err := p.parseWord(stop)
		if err != nil {
			return b, 0, err
		}
		if len(words) == 2 && words[0] == "" && words[1] == "" {
			return b, 0, nil
		}
		if len(words) == 1 {
			s = words[0]
		}
	}
	isColumn := path.isColumn("time") || path.isColumn("inserted_at")
	if isNumber(s) {
		if !isStorable(s) {
			return b, 0, p.fail(start, "no record can hold the number at %d")
		}
		if isColumn {
			at, ok := parseUnixTime(s)
			if !ok {
				return b, 0, p.fail(start, "not a Unix time at %d")
			}
			return bound{kind: temporal, at: at}, 0, nil
		}
		return bound{kind: numeric, number: parseDecimal(s)}, 0, nil
	}
	if at, length, ok := ParseTime(s, p.now); ok {
		p.relative = p.relative || strings.HasPrefix(s, "now")
		return bound{kind: temporal, at: at}, length, nil
	}
	return b, 0, p.fail(start, "not a number or a time (such as 2026-03-04T12:00:00Z, 2026-03-04 or now-1h) at %d")
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
