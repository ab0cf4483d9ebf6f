package scan

import (
	"bytes"
	"unicode/utf8"
)

// formats are the formats in which bodies come by mistake, by their first bytes. JSON begins with none of these.
var formats = []struct{ magic, message string }{
	{"\x1f\x8b", "the body looks like gzip: send Content-Encoding: gzip"},
	{"\x28\xb5\x2f\xfd", "the body looks like zstd: send Content-Encoding: zstd"},
	{"\xff\x06\x00\x00sNaPpY", notTaken("snappy")},
	{"\xff\x06\x00\x00S2sTwO", notTaken("s2")},
	{"\x04\x22\x4d\x18", notTaken("lz4")},
	{"\xfd7zXZ\x00", notTaken("xz")},
	{"PK\x03\x04", notTaken("a zip archive")},
	{"\xff\xfe\x00\x00", notUTF8("UTF-32")}, {"\x00\x00\xfe\xff", notUTF8("UTF-32")},
	{"\xff\xfe", notUTF8("UTF-16")}, {"\xfe\xff", notUTF8("UTF-16")},
}

// notTaken returns the message for a body in a format that is not taken.
func notTaken(name string) string {
	return "the body looks like " + name + ", which is not taken: send it plain, or in gzip, zstd or zlib (deflate) with its Content-Encoding"
}

// notUTF8 returns the message for a body in another encoding than UTF-8.
func notUTF8(name string) string {
	return "the body looks like " + name + ": send UTF-8"
}

// ForeignFormat says what is wrong with a body whose format is not JSON. It returns "" if the first bytes do not show
// that. It never reports text: that may be a broken line of NDJSON, which costs itself alone.
func ForeignFormat(src []byte) string {
	for _, f := range formats {
		if bytes.HasPrefix(src, []byte(f.magic)) {
			return f.message
		}
	}
	if len(src) < 4 {
		return ""
	}
	// Every other byte of ASCII in UTF-16 is zero.
	var zeros [4]bool
	for i := range zeros {
		zeros[i] = src[i] == 0
	}
	switch zeros {
	case [4]bool{false, true, false, true}, [4]bool{true, false, true, false}:
		return notUTF8("UTF-16")
	case [4]bool{false, true, true, true}, [4]bool{true, true, true, false}:
		return notUTF8("UTF-32")
	}
	begin := src[:min(len(src), 16)]
	switch {
	case begin[0] == 'x' && (int(begin[0])<<8|int(begin[1]))%31 == 0 && !isText(begin): // RFC 1950
		return "the body looks like zlib: send Content-Encoding: deflate"
	case bytes.HasPrefix(begin, []byte("BZh")) && bytes.HasPrefix(begin[4:], []byte("1AY&SY")):
		return notTaken("bzip2")
	}
	return ""
}

// isText reports whether b is UTF-8 without control bytes other than white space. b may end within a rune.
func isText(b []byte) bool {
	for i := 0; i < len(b); {
		r, size := utf8.DecodeRune(b[i:])
		if r < ' ' && !isSpace(b[i]) || r == utf8.RuneError && size == 1 && utf8.FullRune(b[i:]) {
			return false
		}
		i += size
	}
	return true
}
