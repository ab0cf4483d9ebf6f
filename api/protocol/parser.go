package protocol

import "bytes"

// jsonParser cuts JSON into its members. It looks at brackets, quotes and commas alone, and leaves it to others to check values.
type jsonParser struct {
	src []byte
	at  int
}

// skipSpace goes over white space.
func (p *jsonParser) skipSpace() {
	for p.at < len(p.src) {
		switch p.src[p.at] {
		case ' ', '\t', '\r', '\n':
			p.at++
		default:
			return
		}
	}
}

// take goes over c, and white space before it. It reports whether c was there.
func (p *jsonParser) take(c byte) bool {
	p.skipSpace()
	if p.at < len(p.src) && p.src[p.at] == c {
		p.at++
		return true
	}
	return false
}

// ended reports whether nothing but white space is left.
func (p *jsonParser) ended() bool {
	p.skipSpace()
	return p.at == len(p.src)
}

// text returns the next string, with its quotes.
func (p *jsonParser) text() (quoted []byte, ok bool) {
	if !p.take('"') {
		return nil, false
	}
	from := p.at - 1
	if !p.skipText() {
		return nil, false
	}
	return p.src[from:p.at], true
}

// skipText goes over the rest of a string, and the quote that ends it.
func (p *jsonParser) skipText() bool {
	for {
		n := bytes.IndexByte(p.src[p.at:], '"')
		if n < 0 {
			p.at = len(p.src)
			return false
		}
		end := p.at + n
		slashes := end
		for slashes > p.at && p.src[slashes-1] == '\\' {
			slashes--
		}
		p.at = end + 1
		if (end-slashes)%2 == 0 {
			return true
		}
	}
}

// value returns the next value.
func (p *jsonParser) value() (value []byte, ok bool) {
	p.skipSpace()
	if p.at == len(p.src) {
		return nil, false
	}
	from := p.at
	switch c := p.src[p.at]; {
	case c == '"':
		p.at++
		ok = p.skipText()
	case c == '{', c == '[':
		ok = p.skipContainer()
	default:
		for p.at < len(p.src) && isWord(p.src[p.at]) {
			p.at++
		}
		ok = p.at > from
	}
	return p.src[from:p.at], ok
}

// isWord reports whether c may be a part of a number, of true, false, null, or of what some write in place of a number.
func isWord(c byte) bool {
	return c-'0' <= 9 || (c|0x20)-'a' <= 'z'-'a' || c == '-' || c == '+' || c == '.'
}

// skipContainer goes over an object or an array.
func (p *jsonParser) skipContainer() bool {
	depth := 0
	for p.at < len(p.src) {
		c := p.src[p.at]
		p.at++
		switch c {
		case '"':
			if !p.skipText() {
				return false
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return true
			}
		}
	}
	return false
}

// object calls visit with each member of the next value, which must be an object. Keys have their quotes. It reports whether the
// object could be read and visit has always returned true.
func (p *jsonParser) object(visit func(key, value []byte) bool) bool {
	return p.take('{') && (p.take('}') || p.members(visit))
}

// members is object for what is behind the brace or a comma.
func (p *jsonParser) members(visit func(key, value []byte) bool) bool {
	for {
		key, ok := p.text()
		if !ok || !p.take(':') {
			return false
		}
		value, ok := p.value()
		if !ok || !visit(key, value) {
			return false
		}
		if !p.take(',') {
			return p.take('}')
		}
	}
}
