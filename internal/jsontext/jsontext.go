// Package jsontext finds where parts of JSON are, and what its strings say. It takes any bytes, and checks no more of them than it needs: who
// must know whether they are JSON asks package scan.
//
// The functions are pure.
package jsontext

import (
	"bytes"
	"unicode/utf16"
	"unicode/utf8"
)

// StringEnd returns the offset behind the string that begins at b[i], -1 if it does not end.
func StringEnd(b []byte, i int) int {
	i++
	for start := i; ; {
		n := bytes.IndexByte(b[i:], '"')
		if n < 0 {
			return -1
		}
		i += n + 1
		slashes := 0
		for at := i - 2; at >= start && b[at] == '\\'; at-- {
			slashes++
		}
		if slashes%2 == 0 {
			return i
		}
	}
}

// ValueEnd returns the offset behind the value that begins at b[i], -1 if it does not end. A value that is no container and no
// string ends before white space and what may follow a value.
func ValueEnd(b []byte, i int) int {
	if i >= len(b) {
		return -1
	}
	switch b[i] {
	case '"':
		return StringEnd(b, i)
	case '{', '[':
		for depth := 0; i < len(b); {
			switch b[i] {
			case '"':
				if i = StringEnd(b, i); i < 0 {
					return -1
				}
				continue
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1
				}
			}
			i++
		}
		return -1
	}
	start := i
	for i < len(b) && b[i] > ' ' && b[i] != ',' && b[i] != '}' && b[i] != ']' {
		i++
	}
	if i == start {
		return -1
	}
	return i
}

// notUTF8 stands for what text can't hold, such as half of a surrogate pair. What takes the text replaces it and says so.
const notUTF8 = 0xff

// AppendUnescaped appends what a JSON string says, given without its quotes. It takes any bytes: a backslash that begins no escape
// stands for itself.
func AppendUnescaped(dst, raw []byte) []byte {
	for i := 0; i < len(raw); {
		from := i
		for i < len(raw) && raw[i] != '\\' {
			i++
		}
		if dst = append(dst, raw[from:i]...); i+1 >= len(raw) {
			return append(dst, raw[i:]...)
		}
		c := raw[i+1]
		i += 2
		switch c {
		case '"', '\\', '/':
			dst = append(dst, c)
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'u':
			one, ok := hex4(raw[i:])
			if !ok {
				dst = append(dst, '\\', 'u')
				continue
			}
			i += 4
			if !utf16.IsSurrogate(one) {
				dst = utf8.AppendRune(dst, one)
				continue
			}
			two := rune(0)
			if len(raw)-i >= 6 && raw[i] == '\\' && raw[i+1] == 'u' {
				two, _ = hex4(raw[i+2:])
			}
			if both := utf16.DecodeRune(one, two); both != utf8.RuneError {
				dst = utf8.AppendRune(dst, both)
				i += 6
			} else {
				dst = append(dst, notUTF8)
			}
		default:
			dst = append(dst, '\\', c)
		}
	}
	return dst
}

// hex4 returns the number that four hexadecimal digits at the beginning of b are.
func hex4(b []byte) (rune, bool) {
	if len(b) < 4 {
		return 0, false
	}
	n := rune(0)
	for _, c := range b[:4] {
		digit := Unhex(c)
		if digit < 0 {
			return 0, false
		}
		n = n<<4 | rune(digit)
	}
	return n, true
}

// Unhex returns the value of a hexadecimal digit, -1 if c is none.
func Unhex(c byte) int {
	switch {
	case c-'0' <= 9:
		return int(c - '0')
	case (c|0x20)-'a' <= 5:
		return int((c|0x20)-'a') + 10
	}
	return -1
}
