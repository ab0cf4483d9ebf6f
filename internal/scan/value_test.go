package scan

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var roomy = Limits{RecordBytes: 1 << 20, PieceBytes: 64 << 10}

// nest returns a record that is n deep: objects and arrays in turn, and objects
// alone at the end.
func nest(n int) string {
	var head, tail strings.Builder
	for i := range n - 1 {
		if i%2 == 0 {
			head.WriteString(`{"a":`)
		} else {
			head.WriteString(`[`)
		}
	}
	for i := n - 2; i >= 0; i-- {
		tail.WriteByte("}]"[i%2])
	}
	return head.String() + "{}" + tail.String()
}

func TestSingleAccepts(t *testing.T) {
	zeros := func(n int) string { return strings.Repeat("0", n) }
	for _, tt := range []struct{ name, src, want string }{
		{"empty object", `{}`, `{}`},
		{"white space around and inside", " \t\r\n{ \"a\" : [ 1 , { } , [ ] ] \n,\t\"b\":\r\"x y\" } \r\n", `{"a":[1,{},[]],"b":"x y"}`},
		{"all kinds of value", `{"a":"s","b":-0,"c":1.5e+3,"d":true,"e":false,"f":null,"g":[],"h":{}}`, ""},
		{"long strings", `{"` + strings.Repeat("k", 100) + `":"` + strings.Repeat("v", 1000) + `"}`, ""},
		{"every escape", `{"a":"\"\\\/\b\f\n\r\t\u00e9\uABCD\uffff"}`, ""},
		{"surrogate pair", `{"a":"\ud83d\ude00\uDBFF\uDFFF"}`, ""},
		{"DEL", "{\"a\":\"\x7f\"}", ""},
		{"UTF-8 at every edge", "{\"\u0080\u07ff\":\"\u0800\ud7ff\ue000\ufffd\uffff\U00010000\U0010ffff\"}", ""},
		{"byte-order mark in a string", "{\"a\":\"\ufeff\"}", ""},
		{"keys twice", `{"a":1,"a":2}`, ""},
		{"128 deep", nest(128), ""},
		{"zero to the largest exponent", `{"a":0e1073741822}`, ""},
		{"zeros in an exponent", `{"a":1e` + zeros(50) + `1}`, ""},
		{"weight 131071", `{"a":12e131070}`, ""},
		{"weight 131071 by digits", `{"a":1` + zeros(131071) + `}`, ""},
		{"weight 131071 behind zeros", `{"a":0.01e131073}`, ""},
		{"scale 16383", `{"a":1e-16383}`, ""},
		{"scale 16383 by digits", `{"a":0.` + zeros(16383) + `}`, ""},
		{"scale taken back by the exponent", `{"a":0.` + zeros(16384) + `1e5}`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.want == "" {
				tt.want = tt.src
			}
			var b Body
			if err := b.Single([]byte(tt.src), roomy); err != nil {
				t.Fatalf("Single: %v", err)
			}
			if diff := cmp.Diff(tt.want+"\n", string(b.NDJSON)); diff != "" {
				t.Errorf("NDJSON (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff([]Piece{{0, len(tt.want) + 1, 1}}, b.Pieces); diff != "" {
				t.Errorf("Pieces (-want +got):\n%s", diff)
			}
			if b.Accepted != 1 || b.Rejected != 0 {
				t.Errorf("got %d accepted and %d rejected, want 1 and 0", b.Accepted, b.Rejected)
			}
		})
	}
}

func TestSingleRefuses(t *testing.T) {
	zeros := func(n int) string { return strings.Repeat("0", n) }
	for _, tt := range []struct {
		src    string
		reason Reason
		want   string
	}{
		{``, Empty, `the body is empty at byte 0`},
		{" \r\n\t", Empty, `the body is empty at byte 0`},
		{"\x1f\x8b\x08", Format, `the body looks like gzip: send Content-Encoding: gzip`},
		{` 5`, NotObject, `not an object at byte 1`},
		{`[{}]`, NotObject, `not an object at byte 0`},
		{`"x"`, NotObject, `not an object at byte 0`},
		{`"{}"`, NotObject, `not an object but a string that holds one: it was encoded twice at byte 0`},
		{`null`, NotObject, `not an object at byte 0`},

		{`}`, Syntax, `unexpected '}', want an object at byte 0`},
		{`x`, Syntax, `unexpected 'x', want an object at byte 0`},
		{"\x00", Syntax, `unexpected '\x00', want an object at byte 0`},
		{"\xff", Syntax, `unexpected '\xff', want an object at byte 0`},
		{`{`, Syntax, `unexpected end of body inside an object at byte 1`},
		{`{x`, Syntax, `unexpected 'x', want '"' or '}' at byte 1`},
		{`{'a':1}`, Syntax, `unexpected '\'', want '"' or '}' at byte 1`},
		{`{,}`, Syntax, `unexpected ',', want '"' or '}' at byte 1`},
		{`{"a"`, Syntax, `unexpected end of body inside an object at byte 4`},
		{`{"a" 1}`, Syntax, `unexpected '1', want ':' at byte 5`},
		{`{"a":`, Syntax, `unexpected end of body before a value at byte 5`},
		{`{"a":}`, Syntax, `unexpected '}', want a value at byte 5`},
		{`{"a":1`, Syntax, `unexpected end of body inside an object at byte 6`},
		{`{"a":1 "b"`, Syntax, `unexpected '"', want ',' or '}' at byte 7`},
		{`{"a":1]`, Syntax, `unexpected ']', want ',' or '}' at byte 6`},
		{`{"a":1,}`, Syntax, `unexpected '}', want '"' at byte 7`},
		{`{"a":1,`, Syntax, `unexpected end of body inside an object at byte 7`},
		{`{"a":[`, Syntax, `unexpected end of body inside an array at byte 6`},
		{`{"a":[,`, Syntax, `unexpected ',', want a value or ']' at byte 6`},
		{`{"a":[1`, Syntax, `unexpected end of body inside an array at byte 7`},
		{`{"a":[1}`, Syntax, `unexpected '}', want ',' or ']' at byte 7`},
		{`{"a":[1,]}`, Syntax, `unexpected ']', want a value at byte 8`},
		{`{"a":[1 2]}`, Syntax, `unexpected '2', want ',' or ']' at byte 8`},
		{`{"a":/**/1}`, Syntax, `unexpected '/', want a value at byte 5`},
		{`{"a":NaN}`, Syntax, `unexpected 'N', want a value at byte 5`},
		{`{} {}`, Syntax, `unexpected '{' after the record, want nothing more at byte 3`},
		{`{}}`, Syntax, `unexpected '}' after the record, want nothing more at byte 2`},
		{`{"a":5} x`, Syntax, `unexpected 'x' after the record, want nothing more at byte 8`},

		{`{"a":tru}`, Syntax, `unexpected '}', want true at byte 8`},
		{`{"a":tr`, Syntax, `unexpected end of body inside a literal at byte 7`},
		{`{"a":falsy}`, Syntax, `unexpected 'y', want false at byte 9`},
		{`{"a":nil}`, Syntax, `unexpected 'i', want null at byte 6`},
		{`{"a":truer}`, Syntax, `unexpected 'r', want ',' or '}' at byte 9`},
		{`truer`, Syntax, `unexpected 'r' right after a value at byte 4`},

		{`{"a":"b`, Syntax, `unexpected end of body inside a string at byte 7`},
		{`{"a":"0123456789abcdef`, Syntax, `unexpected end of body inside a string at byte 22`},
		{"{\"a\":\"b\nc\"}", Syntax, `unexpected '\n' inside a string, want it escaped at byte 7`},
		{"{\"a\":\"0123456789abcd\x1f\"}", Syntax, `unexpected '\x1f' inside a string, want it escaped at byte 20`},
		{"{\"a\":\"\x00\"}", Syntax, `unexpected '\x00' inside a string, want it escaped at byte 6`},
		{`{"a":"\x"}`, Syntax, `unexpected 'x' after '\', want one of "\/bfnrtu at byte 7`},
		{`{"a":"\`, Syntax, `unexpected end of body inside a string at byte 7`},
		{`{"a":"\u12x4"}`, Syntax, `unexpected 'x' in a \u escape, want four hex digits at byte 10`},
		{`{"a":"\u12`, Syntax, `unexpected end of body inside a string at byte 10`},
		{`{"a":"\ud83d\u12"}`, Syntax, `unexpected '"' in a \u escape, want four hex digits at byte 16`},

		{`{"a":-}`, Syntax, `unexpected '}' in a number, want a digit at byte 6`},
		{`{"a":-`, Syntax, `unexpected end of body inside a number at byte 6`},
		{`{"a":1.}`, Syntax, `unexpected '}' in a number, want a digit at byte 7`},
		{`{"a":1.e5}`, Syntax, `unexpected 'e' in a number, want a digit at byte 7`},
		{`{"a":1e+}`, Syntax, `unexpected '}' in a number, want a digit at byte 8`},
		{`{"a":+1}`, Syntax, `unexpected '+', want a value at byte 5`},
		{`{"a":.5}`, Syntax, `unexpected '.', want a value at byte 5`},
		{`{"a":01}`, Syntax, `unexpected '1', want ',' or '}' at byte 6`},
		{`{"a":0x1}`, Syntax, `unexpected 'x', want ',' or '}' at byte 6`},
		{`01`, Syntax, `unexpected '1' right after a value at byte 1`},

		{`{"a":"b\u0000"}`, NUL, `\u0000 can't be stored in jsonb at byte 7`},
		{`{"\u0000":1}`, NUL, `\u0000 can't be stored in jsonb at byte 2`},
		{`{"a":"\ud83dx"}`, Surrogate, `\ud83d is half of a surrogate pair at byte 6`},
		{`{"a":"\uDE00\uD83D"}`, Surrogate, `\uDE00 is half of a surrogate pair at byte 6`},
		{`{"a":"\ud83d\ud83d\ude00"}`, Surrogate, `\ud83d is half of a surrogate pair at byte 6`},
		{`{"a":"\ud83d\n\ude00"}`, Surrogate, `\ud83d is half of a surrogate pair at byte 6`},
		{`{"a":"\ud83d\u0041"}`, Surrogate, `\ud83d is half of a surrogate pair at byte 6`},
		{`{"a":"x` + "\x80" + `"}`, UTF8, `invalid UTF-8 byte \x80 at byte 7`},
		{"{\"\xc0\xaf\":1}", UTF8, `invalid UTF-8 byte \xc0 at byte 2`},
		{"{\"\xc1\xbf\":1}", UTF8, `invalid UTF-8 byte \xc1 at byte 2`},
		{"{\"\xc3\":1}", UTF8, `invalid UTF-8 byte \xc3 at byte 2`},
		{"{\"\xe0\x9f\xbf\":1}", UTF8, `invalid UTF-8 byte \xe0 at byte 2`},
		{"{\"\xed\xa0\x80\":1}", UTF8, `invalid UTF-8 byte \xed at byte 2`},
		{"{\"\xed\xbf\xbf\":1}", UTF8, `invalid UTF-8 byte \xed at byte 2`},
		{"{\"\xe2\x82\":1}", UTF8, `invalid UTF-8 byte \xe2 at byte 2`},
		{"{\"\xf0\x8f\xbf\xbf\":1}", UTF8, `invalid UTF-8 byte \xf0 at byte 2`},
		{"{\"\xf4\x90\x80\x80\":1}", UTF8, `invalid UTF-8 byte \xf4 at byte 2`},
		{"{\"\xf5\x80\x80\x80\":1}", UTF8, `invalid UTF-8 byte \xf5 at byte 2`},
		{"{\"\xff\":\"\\u0000\"}", UTF8, `invalid UTF-8 byte \xff at byte 2`},
		{"{\"a\":\"\xc3\"", Syntax, `unexpected end of body inside an object at byte 8`},

		{`{"a":1e131072}`, Number, `number 1e131072 is out of range for numeric at byte 5`},
		{`{"a":[-12e131071]}`, Number, `number -12e131071 is out of range for numeric at byte 6`},
		{`{"a":0.01e131074}`, Number, `number 0.01e131074 is out of range for numeric at byte 5`},
		{`{"a":0E-16384}`, Number, `number 0E-16384 is out of range for numeric at byte 5`},
		{`{"a":0.0e-16383}`, Number, `number 0.0e-16383 is out of range for numeric at byte 5`},
		{`{"a":0e1073741823}`, Number, `number 0e1073741823 is out of range for numeric at byte 5`},
		{`{"a":0e-1073741823}`, Number, `number 0e-1073741823 is out of range for numeric at byte 5`},
		{`{"a":1e99999999999999999999999999999999999}`, Number, `number 1e99999999999999999999999999999999999 is out of range for numeric at byte 5`},
		{`{"a":1` + zeros(131072) + `}`, Number, `number 1` + zeros(39) + `... is out of range for numeric at byte 5`},
		{`{"a":0.` + zeros(16384) + `}`, Number, `number 0.` + zeros(38) + `... is out of range for numeric at byte 5`},

		{nest(129), Depth, `nested deeper than 128 at byte 384`},
		{nest(5000), Depth, `nested deeper than 128 at byte 384`},
		{`{"a":` + strings.Repeat("[", 300) + strings.Repeat("]", 299) + `}`, Syntax, `unexpected '}', want ',' or ']' at byte 604`},
		{`{"a":"` + strings.Repeat("x", 1<<20) + `"}`, TooLarge, `record of 1048584 bytes is larger than 1048576 at byte 0`},
		{`{"a":[` + strings.Repeat("1e131071,", 7) + `1e131071]}`, TooLarge, `record of 1048591 bytes, its numbers written out, is larger than 1048576 at byte 0`},
	} {
		name := tt.src
		if len(name) > 40 {
			name = name[:40]
		}
		t.Run(name, func(t *testing.T) {
			var b Body
			err := b.Single([]byte(tt.src), roomy)
			if err == nil {
				t.Fatalf("accepted, want %s", tt.want)
			}
			if got := err.Error(); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if err.Reason != tt.reason {
				t.Errorf("got reason %v, want %v", err.Reason, tt.reason)
			}
			if len(b.NDJSON) != 0 || len(b.Pieces) != 0 || b.Accepted != 0 {
				t.Errorf("a refused body left %q", b.NDJSON)
			}
		})
	}
}

func TestErrorIsAnError(t *testing.T) {
	var b Body
	var err error = b.Single([]byte(`{"a":}`), roomy)
	if target := (*Error)(nil); !errors.As(err, &target) || target.Offset != 5 {
		t.Errorf("got %#v, want an *Error at 5", err)
	}
}

func TestReasonNames(t *testing.T) {
	for r := range NumReasons {
		if r.String() == "" {
			t.Errorf("reason %d has no name", r)
		}
	}
	if got := NumReasons.String(); got != "reason_10" {
		t.Errorf("got %q", got)
	}
}

// A byte at fault is found wherever it stands in the words of a string.
func TestStringsAtEveryAlignment(t *testing.T) {
	var b Body
	for before := range 20 {
		for after := range 20 {
			for c := range 256 {
				src := fmt.Appendf(nil, `{"k":"%s%c%s"}`, strings.Repeat("x", before), '!', strings.Repeat("y", after))
				at := 6 + before
				src[at] = byte(c)
				err := b.Single(src, roomy)
				switch {
				case c < 0x20:
					if err == nil || err.Reason != Syntax || err.Offset != at {
						t.Fatalf("%q: got %v", src, err)
					}
				case c >= 0x80:
					if err == nil || err.Reason != UTF8 || err.Offset != at {
						t.Fatalf("%q: got %v", src, err)
					}
				default:
					if got, want := err == nil, json.Valid(src); got != want {
						t.Fatalf("%q: got valid %t, want %t: %v", src, got, want, err)
					}
				}
			}
		}
	}
}

// All two- and three-byte sequences, and four-byte ones around the limits.
func TestUTF8AgreesWithGo(t *testing.T) {
	var b Body
	check := func(seq ...byte) {
		src := append(append([]byte(`{"k":"`), seq...), `"}`...)
		err := b.Single(src, roomy)
		valid := bytes.Equal(bytes.ToValidUTF8(seq, nil), seq)
		if valid != (err == nil) || !valid && err.Reason != UTF8 {
			t.Fatalf("% x: valid %t, got %v", seq, valid, err)
		}
	}
	for a := 0x80; a < 0x100; a++ {
		check(byte(a))
		for b := 0x80; b < 0x100; b++ {
			check(byte(a), byte(b))
			for _, c := range []byte{'a', 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xff} {
				check(byte(a), byte(b), c)
				if a >= 0xe0 {
					for _, d := range []byte{'a', 0x80, 0xbf, 0xc0} {
						check(byte(a), byte(b), c, d)
					}
				}
			}
		}
	}
}

// generate writes a random value, as unusual as JSON allows, with random white
// space.
func generate(rng *rand.Rand, depth int) string {
	space := func() string {
		return []string{"", "", "", " ", "\n", "\t\r\n", "\n" + strings.Repeat(" ", rng.IntN(30))}[rng.IntN(7)]
	}
	str := func() string {
		var s strings.Builder
		s.WriteByte('"')
		for range rng.IntN(12) {
			s.WriteString([]string{"a", "bcdefghij", "é", "日本", "🎉", `\n`, `\"`, `\\`, `\u00e9`, `\ud83d\ude00`, " ", "{", "]", ","}[rng.IntN(14)])
		}
		s.WriteByte('"')
		return s.String()
	}
	kind := rng.IntN(8)
	if depth == 0 {
		kind = rng.IntN(5) + 3
	}
	switch kind {
	case 0, 1:
		var s strings.Builder
		s.WriteString("{" + space())
		for i := range rng.IntN(5) {
			if i > 0 {
				s.WriteString("," + space())
			}
			s.WriteString(str() + space() + ":" + space() + generate(rng, depth-1) + space())
		}
		return s.String() + "}"
	case 2:
		var s strings.Builder
		s.WriteString("[" + space())
		for i := range rng.IntN(5) {
			if i > 0 {
				s.WriteString("," + space())
			}
			s.WriteString(generate(rng, depth-1) + space())
		}
		return s.String() + "]"
	case 3:
		return []string{"true", "false", "null"}[rng.IntN(3)]
	case 4, 5:
		return []string{"0", "-0", "1", "-12.5", "1e5", "123456789012345678", "0.000001", "1E-7", "3.14159265358979"}[rng.IntN(9)]
	}
	return str()
}

func TestCompactsLikeTheStandardLibrary(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var b Body
	for range 5000 {
		src := []byte(`{"v": ` + generate(rng, 6) + ` }`)
		var want bytes.Buffer
		if err := json.Compact(&want, src); err != nil {
			t.Fatalf("%s: %v", src, err)
		}
		want.WriteByte('\n')
		if err := b.Single(src, roomy); err != nil {
			t.Fatalf("%s: %v", src, err)
		}
		if !bytes.Equal(b.NDJSON, want.Bytes()) {
			t.Fatalf("compacting %q:\ngot  %s\nwant %s", src, b.NDJSON, want.Bytes())
		}
	}
}

// The standard library takes values that jsonb does not (see Reason), but both
// must agree on what is JSON.
func TestGrammarAgreesWithTheStandardLibrary(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	const bytesOfNote = "{}[]\",:\\/ \n\t\r0123456789-+.eEtrufalsn\x00\x1f\x7f\x80\xc3\xffdD"
	var b Body
	broken := 0
	for range 100000 {
		src := []byte(generate(rng, 3))
		for range 1 + rng.IntN(3) {
			at := rng.IntN(len(src) + 1)
			c := bytesOfNote[rng.IntN(len(bytesOfNote))]
			switch {
			case at == len(src) || rng.IntN(3) == 0:
				src = append(src[:at], append([]byte{c}, src[at:]...)...)
			case rng.IntN(2) == 0:
				src[at] = c
			default:
				src = append(src[:at], src[at+1:]...)
			}
		}
		err := b.Single(src, roomy)
		isJSON := err == nil || err.Reason != Syntax && err.Reason != Format && err.Reason != Empty
		if want := json.Valid(src); isJSON != want {
			t.Fatalf("%q: got %v, but the standard library says valid: %t", src, err, want)
		}
		if !isJSON {
			broken++
		}
	}
	if broken < 30000 {
		t.Errorf("only %d inputs were broken, the test tests nothing", broken)
	}
}
