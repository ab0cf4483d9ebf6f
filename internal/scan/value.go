package scan

import (
	"encoding/binary"
	"math/bits"
	"slices"
	"unicode/utf8"
)

// MaxDepth is the depth to which a record may nest. An object of scalars has
// depth 1.
const MaxDepth = 128

// MaxRecordBytes is the largest Limits.RecordBytes for which a record can't
// reach jsonb's own limits on containers: with two bytes an element, it takes
// more than this to write an array of the 2^24 elements that jsonb refuses.
const MaxRecordBytes = 32 << 20

const (
	ones  = 0x0101010101010101
	highs = 0x80 * ones
)

// special marks the bytes of w that end a plain run in a string: quotes,
// backslashes, control bytes and bytes that are not ASCII. The mark is the
// byte's high bit in the result. A borrow can wrongly mark bytes above a
// special one, never below. So the lowest mark is exact, and without a special
// byte there is no mark.
func special(w uint64) uint64 {
	return ((w - 0x20*ones) | ((w ^ '"'*ones) - ones) | ((w ^ '\\'*ones) - ones) | w) & highs
}

// isSpace reports whether c is white space in JSON, which is also jsonb's.
func isSpace(c byte) bool {
	return c <= ' ' && 1<<(c&63)&uint64(1<<' '|1<<'\n'|1<<'\r'|1<<'\t') != 0
}

// scanner checks values and writes them compacted.
type scanner struct {
	out     []byte // its first n bytes are what was scanned, compacted
	n       int
	from    int      // offset in the source of what is not copied to out yet
	deep    []uint64 // stack of containers further out than the 64 in a register
	refused bool     // the value scanned last is JSON, but can't be stored
	refusal fault    // the first reason why it can't, if refused
	broke   fault    // where the value scanned last is not JSON, if it is not
	longer  int      // by how many bytes the value scanned last grows when PostgreSQL writes out its numbers
	scanned int      // bytes passed over; a test checks that it is linear in the body's length
}

// refuse notes that the value can't be stored. The first reason counts.
func (s *scanner) refuse(r Reason, at int) {
	if !s.refused {
		s.refused = true
		s.refusal = fault{reason: r, at: at}
	}
}

// refuseNumber is refuse for a number of n bytes.
func (s *scanner) refuseNumber(at, n int) {
	if !s.refused {
		s.refused = true
		s.refusal = fault{reason: Number, at: at, n: n}
	}
}

// fail notes in s.broke that the JSON breaks at i, where w was wanted. It
// returns i and false, for the caller to return.
func (s *scanner) fail(src []byte, i int, w want) (int, bool) {
	s.broke = fault{reason: Syntax, want: w, ended: i >= len(src), at: i}
	return i, false
}

// value scans the JSON value that starts at src[i], adds it, compacted, to
// s.out, and returns the offset behind it. It leaves room for a newline in
// s.out. ok is false if the JSON breaks: then s.broke says where, and what was
// added is void. A value that is JSON but can't be stored is scanned to its
// end, and s.refused is set.
//
// It is one loop of jumps, with a label for each thing that may come next. So
// the state that it needs at every byte fits in registers.
func (s *scanner) value(src []byte, i int) (end int, ok bool) {
	s.refused = false
	s.longer = 0
	s.from = i
	start := i

	// Room for all that can come, and for the bytes that flush writes in
	// excess.
	if room := len(src) - i + slack; len(s.out)-s.n < room {
		s.out = slices.Grow(s.out[:s.n], room)
		s.out = s.out[:cap(s.out)]
	}

	// The open containers, a bit each, 1 for an object, the innermost lowest. A
	// 1 above them marks the end. Containers further out are in s.deep.
	open := uint64(1)
	s.deep = s.deep[:0]

	if uint(i) < uint(len(src)) && src[i] == '{' {
		goto Object
	}
	s.refuse(NotObject, i)

Value:
	if uint(i) >= uint(len(src)) {
		goto NoValue
	}
	if src[i] == '"' {
		i++
		for i >= 0 && i <= len(src)-8 {
			w := binary.LittleEndian.Uint64(src[i:])
			if m := special(w); m != 0 {
				bit := bits.TrailingZeros64(m)
				i += bit / 8
				if byte(w>>(bit&(7*8))) == '"' {
					i++
					goto AfterValue
				}
				break
			}
			i += 8
		}
		if i, ok = s.text(src, i); !ok {
			goto Broken
		}
		goto AfterValue
	}
	switch src[i] {
	case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		if i, ok = s.number(src, i); !ok {
			goto Broken
		}
	case ' ', '\n', '\r', '\t':
		i = s.flush(src, i)
		goto Value
	case '{':
		goto Object
	case '[':
		goto Array
	case 't':
		if len(src)-i < 4 || string(src[i:i+4]) != "true" {
			s.literal(src, i, "true", wantTrue)
			goto Broken
		}
		i += 4
	case 'f':
		if len(src)-i < 5 || string(src[i:i+5]) != "false" {
			s.literal(src, i, "false", wantFalse)
			goto Broken
		}
		i += 5
	case 'n':
		if len(src)-i < 4 || string(src[i:i+4]) != "null" {
			s.literal(src, i, "null", wantNull)
			goto Broken
		}
		i += 4
	default:
		goto NoValue
	}

AfterValue:
	if open == 1 {
		goto Done
	}
	if uint(i) >= uint(len(src)) {
		goto NoMore
	}
	if src[i] == ',' {
		i++
		if open&1 == 0 {
			goto Value
		}
		goto Key
	}
	switch src[i] {
	case '}':
		if open&1 == 0 {
			goto NoMore
		}
		i++
		goto Close
	case ']':
		if open&1 != 0 {
			goto NoMore
		}
		i++
		goto Close
	case ' ', '\n', '\r', '\t':
		i = s.flush(src, i)
		goto AfterValue
	}
	goto NoMore

Object:
	if open >= 1<<63 {
		s.deep, open = append(s.deep, open), 1
	}
	open = open<<1 | 1
	if len(s.deep) >= MaxDepth/63 && s.depth(open) > MaxDepth {
		s.refuse(Depth, i)
	}
	i++
	if uint(i) < uint(len(src)) && src[i] == '"' {
		goto Key
	}
	if uint(i) < uint(len(src)) && isSpace(src[i]) {
		i = s.flush(src, i)
	}
	if uint(i) < uint(len(src)) && src[i] == '}' {
		i++
		goto Close
	}
	if uint(i) >= uint(len(src)) || src[i] != '"' {
		s.fail(src, i, wantFirstKey)
		goto Broken
	}

Key:
	if uint(i) >= uint(len(src)) || src[i] != '"' {
		if uint(i) < uint(len(src)) && isSpace(src[i]) {
			i = s.flush(src, i)
			goto Key
		}
		s.fail(src, i, wantKey)
		goto Broken
	}
	i++
	for i >= 0 && i <= len(src)-8 {
		w := binary.LittleEndian.Uint64(src[i:])
		if m := special(w); m != 0 {
			bit := bits.TrailingZeros64(m)
			i += bit / 8
			if byte(w>>(bit&(7*8))) == '"' {
				i++
				goto Colon
			}
			break
		}
		i += 8
	}
	if i, ok = s.text(src, i); !ok {
		goto Broken
	}

Colon:
	if uint(i) < uint(len(src)) && src[i] == ':' {
		i++
		goto Value
	}
	if uint(i) < uint(len(src)) && isSpace(src[i]) {
		i = s.flush(src, i)
		goto Colon
	}
	s.fail(src, i, wantColon)
	goto Broken

Array:
	if open >= 1<<63 {
		s.deep, open = append(s.deep, open), 1
	}
	open <<= 1
	if len(s.deep) >= MaxDepth/63 && s.depth(open) > MaxDepth {
		s.refuse(Depth, i)
	}
	i++
	if uint(i) < uint(len(src)) && isSpace(src[i]) {
		i = s.flush(src, i)
	}
	if uint(i) < uint(len(src)) && src[i] == ']' {
		i++
		goto Close
	}
	if uint(i) >= uint(len(src)) || !startsValue(src[i]) {
		s.fail(src, i, wantElement)
		goto Broken
	}
	goto Value

Close:
	if open >>= 1; open == 1 && len(s.deep) > 0 {
		open = s.deep[len(s.deep)-1]
		s.deep = s.deep[:len(s.deep)-1]
	}
	goto AfterValue

Done:
	// After a number or literal on its own, something must separate it from
	// what follows: 01 is not a 0 and a 1.
	if s.refused && src[start] != '"' && src[start] != '[' && src[start] != '{' &&
		i < len(src) && continuesWord(src[i]) {
		s.fail(src, i, wantDelimiter)
		goto Broken
	}
	s.n += copy(s.out[s.n:], src[s.from:i])
	s.scanned += i - start
	return i, true

NoValue:
	if open == 1 {
		s.fail(src, i, wantObject)
	} else {
		s.fail(src, i, wantValue)
	}
	goto Broken

NoMore:
	if open&1 != 0 {
		s.fail(src, i, wantMoreMembers)
	} else {
		s.fail(src, i, wantMoreElements)
	}

Broken:
	s.scanned += s.broke.at - start
	return s.broke.at, false
}

// depth returns how many containers are open, those in s.deep and those in
// open.
func (s *scanner) depth(open uint64) int {
	return 63*len(s.deep) + bits.Len64(open) - 1
}

// slack is how much room flush needs beyond what it copies.
const slack = 32

// flush copies what was scanned up to the white space at src[i], and returns
// the offset behind the white space. s.out must have room for the copy and
// slack bytes more.
func (s *scanner) flush(src []byte, i int) int {
	from, n := s.from, s.n
	size := i - from
	s.n = n + size
	if size <= slack && from >= 0 && from <= len(src)-slack && n >= 0 && n <= len(s.out)-slack {
		// Between the gaps of a spaced record lie a few bytes. Moves of a fixed
		// size copy them faster than a call does.
		in, out := src[from:from+slack], s.out[n:n+slack]
		a, b := binary.LittleEndian.Uint64(in), binary.LittleEndian.Uint64(in[8:])
		c, d := binary.LittleEndian.Uint64(in[16:]), binary.LittleEndian.Uint64(in[24:])
		binary.LittleEndian.PutUint64(out, a)
		binary.LittleEndian.PutUint64(out[8:], b)
		binary.LittleEndian.PutUint64(out[16:], c)
		binary.LittleEndian.PutUint64(out[24:], d)
	} else {
		copy(s.out[n:], src[from:i])
	}
	if i++; uint(i) < uint(len(src)) && isSpace(src[i]) {
		i = skipSpace(src, i)
	}
	s.from = i
	return i
}

// skipSpace returns the offset of the first byte of src from i on that is not
// white space.
func skipSpace(src []byte, i int) int {
	for uint(i) < uint(len(src)) && isSpace(src[i]) {
		i++
		for i >= 0 && i <= len(src)-8 {
			// Eight spaces at a time: a line's indentation is mostly spaces.
			if m := binary.LittleEndian.Uint64(src[i:]) ^ ' '*ones; m != 0 {
				i += bits.TrailingZeros64(m) / 8
				break
			}
			i += 8
		}
	}
	return i
}

// startsValue reports whether a JSON value can start with c.
func startsValue(c byte) bool {
	switch c {
	case '"', '{', '[', '-', 't', 'f', 'n':
		return true
	}
	return c-'0' <= 9
}

// continuesWord reports whether c, right after a number or a literal, would be
// part of it.
func continuesWord(c byte) bool {
	switch c {
	case '-', '+', '.', '_':
		return true
	}
	return c-'0' <= 9 || (c|0x20)-'a' <= 'z'-'a'
}

// literal fails at the byte where src[i:] stops being lit.
func (s *scanner) literal(src []byte, i int, lit string, w want) {
	for k := 0; k < len(lit) && i < len(src) && src[i] == lit[k]; k++ {
		i++
	}
	s.fail(src, i, w)
}

// text scans the rest of a string from i on and returns the offset behind its
// closing quote. value calls it for strings that are not plain ASCII. ok is
// false if the JSON breaks.
func (s *scanner) text(src []byte, i int) (end int, ok bool) {
	for {
		for i >= 0 && i <= len(src)-8 {
			if m := special(binary.LittleEndian.Uint64(src[i:])); m != 0 {
				i += bits.TrailingZeros64(m) / 8
				break
			}
			i += 8
		}
		if uint(i) >= uint(len(src)) {
			return s.fail(src, i, wantClosingQuote)
		}
		switch c := src[i]; {
		case c == '"':
			return i + 1, true
		case c == '\\':
			if uint(i+1) < uint(len(src)) && simpleEscape[src[i+1]] {
				i += 2
				continue
			}
			if i, ok = s.escape(src, i); !ok {
				return i, false
			}
		case c >= utf8.RuneSelf:
			i = s.runes(src, i)
		case c < ' ':
			return s.fail(src, i, wantEscaped)
		default:
			i++ // one of the last bytes, which are too few for a word
		}
	}
}

// simpleEscape holds true for each byte that makes a whole escape after a
// backslash.
var simpleEscape = [256]bool{
	'"': true, '\\': true, '/': true, 'b': true, 'f': true, 'n': true, 'r': true, 't': true,
}

// escape checks the \u escape at src[i], or the pair of them that makes one
// character, and returns the offset behind it.
func (s *scanner) escape(src []byte, i int) (end int, ok bool) {
	if i+1 >= len(src) || src[i+1] != 'u' {
		return s.fail(src, i+1, wantEscape)
	}
	r := 0
	for k := i + 2; k < i+6; k++ {
		if k >= len(src) || hexValue[src[k]] == 0 {
			return s.fail(src, k, wantHex)
		}
		r = r<<4 | int(hexValue[src[k]]-1)
	}
	switch {
	case r == 0:
		s.refuse(NUL, i)
	case r < 0xd800 || r > 0xdfff:
	case r < 0xdc00 && lowSurrogate(src[i+6:]):
		return i + 12, true
	default:
		s.refuse(Surrogate, i)
	}
	return i + 6, true
}

// lowSurrogate reports whether b starts with the escape of a low surrogate,
// \uDC00 to \uDFFF.
func lowSurrogate(b []byte) bool {
	return len(b) >= 6 && b[0] == '\\' && b[1] == 'u' && b[2]|0x20 == 'd' &&
		hexValue[b[3]] > 0xc && hexValue[b[4]] != 0 && hexValue[b[5]] != 0
}

// hexValue holds one more than the value of each hex digit, and 0 for others.
var hexValue = func() (t [256]uint8) {
	for i := range uint8(10) {
		t['0'+i] = i + 1
	}
	for i := range uint8(6) {
		t['a'+i], t['A'+i] = i+11, i+11
	}
	return t
}()

// runes checks the run of bytes from src[i] on that are not ASCII, and returns
// the offset behind it. Where they are not UTF-8 it refuses the value and goes
// on: all of JSON's structure is ASCII, so it stays certain where the value
// ends.
func (s *scanner) runes(src []byte, i int) int {
	for uint(i) < uint(len(src)) && src[i] >= utf8.RuneSelf {
		if i > len(src)-4 {
			r, size := utf8.DecodeRune(src[i:])
			if r == utf8.RuneError && size == 1 {
				s.refuse(UTF8, i)
			}
			i += size
			continue
		}
		switch w := binary.LittleEndian.Uint32(src[i:]); {
		case w&0xc0e0 == 0x80c0 && w&0x1e != 0: // two bytes, not overlong
			i += 2
		case w&0xc0c0f0 == 0x8080e0 && w&0x200f != 0 && w&0x200f != 0x200d: // three, not overlong or a surrogate
			i += 3
		case w&0xc0c0c0f8 == 0x808080f0 && fourByteRune(w):
			i += 4
		default:
			s.refuse(UTF8, i)
			i++
		}
	}
	return i
}

// fourByteRune reports whether w, which has the bit pattern of four bytes of
// UTF-8, is U+10000 to U+10FFFF.
func fourByteRune(w uint32) bool {
	r := w&0x07<<18 | w>>8&0x3f<<12 // the other bits decide nothing
	return r >= 0x10000 && r <= 0x10ffff
}
