package scan

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestBatch(t *testing.T) {
	small := Limits{RecordBytes: 20, PieceBytes: 1 << 10}
	for _, tt := range []struct {
		name string
		src  string
		lim  Limits
		want string   // NDJSON, its newlines as blanks
		errs []string // index: reason: error
		body string   // the error that refuses the body whole
	}{
		// The forms.
		{name: "NDJSON", src: "{\"a\":1}\n{\"b\":2}\n", want: `{"a":1} {"b":2}`},
		{name: "no newline at the end", src: "{\"a\":1}\n{\"b\":2}", want: `{"a":1} {"b":2}`},
		{name: "CRLF", src: "{\"a\":1}\r\n{\"b\":2}\r\n", want: `{"a":1} {"b":2}`},
		{name: "blank lines", src: "\n \n{\"a\":1}\n\t\r\n\n{\"b\":2}\n \n", want: `{"a":1} {"b":2}`},
		{name: "one after another", src: `{"a":1}{"b":2} {"c":3}`, want: `{"a":1} {"b":2} {"c":3}`},
		{name: "pretty", src: "{\n  \"a\": 1\n}\n{\n  \"b\": [\n    2\n  ]\n}\n", want: `{"a":1} {"b":[2]}`},
		{name: "array", src: ` [ {"a": 1} , {"b":2}] `, want: `{"a":1} {"b":2}`},
		{name: "array over lines", src: "[\n{\"a\":1},\n{\"b\":2}\n]\n", want: `{"a":1} {"b":2}`},
		{name: "empty array", src: "[ \n]\n"},

		{name: "arrays", src: "[{\"a\":1}]\n[]\n[{\"b\":2},{\"c\":3}] [{\"d\":4}]", want: `{"a":1} {"b":2} {"c":3} {"d":4}`},

		// A byte-order mark is passed over where a record could begin.
		{name: "byte-order mark", src: "\ufeff{}", want: `{}`},
		{name: "byte-order mark after blanks", src: "\n \ufeff\n{}", want: `{}`},
		{name: "byte-order mark before an array", src: "\ufeff[{\"a\":1}]\n\ufeff[{\"b\":2}]\n\ufeff", want: `{"a":1} {"b":2}`},
		{name: "byte-order marks of files put together", src: "\ufeff{\"a\":1}\n\ufeff{\"b\":2}\ufeff{\"c\":3}\n\ufeff\n\ufeff\ufeff {\"d\":4}\ufeff", want: `{"a":1} {"b":2} {"c":3} {"d":4}`},
		{name: "byte-order mark in a record", src: "{\"a\":1}\n{\ufeff\"b\":2}\n{\"c\":\"\ufeff\"}\n", want: "{\"a\":1} {\"c\":\"\ufeff\"}",
			errs: []string{`1: syntax: unexpected '\xef', want '"' or '}' at byte 9`}},
		{name: "byte-order mark before a broken line", src: "\ufeffoops\n\ufeff{\"b\":}\n{\"a\":1}\n", want: `{"a":1}`,
			errs: []string{`0: syntax: unexpected 'o', want an object at byte 3`, `1: syntax: unexpected '}', want a value at byte 16`}},
		{name: "byte-order mark after a line cut short", src: "{\"a\":1,\n\ufeff{\"b\":2}\n{\"c\":3}\n", want: `{"b":2} {"c":3}`,
			errs: []string{`0: syntax: unexpected end of line inside an object at byte 7`}},
		{name: "byte-order mark before what continues a record", src: "{\"x\":}\n\ufeff}\n{\"b\":2}\n", body: `syntax: unexpected '}', want a value at byte 5`},
		{name: "a line cut short after a byte-order mark and a record", src: "\ufeff{\"a\":1}\n{\"x\":\n{\"b\":2}\n7\n", want: `{"a":1} {"b":2}`,
			errs: []string{`1: syntax: unexpected end of line before a value at byte 16`, `3: not_object: not an object at byte 25`}},
		{name: "half a byte-order mark", src: "\xef\xbb{\"a\":1}\n{\"b\":1}\n", want: `{"b":1}`,
			errs: []string{`0: syntax: unexpected '\xef', want an object at byte 0`}},

		// JSON that is refused costs itself alone, in every form.
		{name: "encoded twice", src: "{\"a\":1}\n\"{\\\"a\\\":1}\"\n", want: `{"a":1}`,
			errs: []string{`1: not_object: not an object but a string that holds one: it was encoded twice at byte 8`}},
		{name: "not objects in an array", src: `[1,{"a":1},[],"x",null]`, want: `{"a":1}`,
			errs: []string{`0: not_object: not an object at byte 1`, `2: not_object: not an object at byte 11`,
				`3: not_object: not an object at byte 14`, `4: not_object: not an object at byte 18`}},
		{name: "not objects on lines", src: "5\n{\"a\":1}\n\"x\"\n[{\"b\":1}]\n", want: `{"a":1}`,
			errs: []string{`0: not_object: not an object at byte 0`, `2: not_object: not an object at byte 10`, `3: not_object: not an object at byte 14`}},
		{name: "not objects on one line", src: `1 2 {"a":1} "x"{"b":2}`, want: `{"a":1} {"b":2}`,
			errs: []string{`0: not_object: not an object at byte 0`, `1: not_object: not an object at byte 2`, `3: not_object: not an object at byte 12`}},
		{name: "an array of numbers over lines", src: "{\"a\":1}\n[\n1\n]\n{\"b\":2}", want: `{"a":1} {"b":2}`,
			errs: []string{`1: not_object: not an object at byte 8`}},
		{name: "what jsonb refuses", src: "{\"a\":\"\\u0000\"}\n{\"b\":\"\\ud800\"}{\"c\":\"\xff\"}\n{\"d\":1e999999}{\"e\":5}", want: `{"e":5}`,
			errs: []string{`0: nul: \u0000 can't be stored in jsonb at byte 6`, `1: surrogate: \ud800 is half of a surrogate pair at byte 21`,
				`2: utf8: invalid UTF-8 byte \xff at byte 35`, `3: number: number 1e999999 is out of range for numeric at byte 44`}},
		{name: "what jsonb refuses, in an array", src: "[{\"a\":\"\\u0000\"},{\"c\":\"\xf0\x9f\"},{\"e\":5}]", want: `{"e":5}`,
			errs: []string{`0: nul: \u0000 can't be stored in jsonb at byte 7`, `1: utf8: invalid UTF-8 byte \xf0 at byte 22`}},
		{name: "pretty, one refused", src: "{\n \"a\": \"\\u0000\"\n}\n{\n \"b\": 2\n}\n", want: `{"b":2}`,
			errs: []string{`0: nul: \u0000 can't be stored in jsonb at byte 9`}},
		{name: "the first refusal counts", src: `{"a":"\ud800\u0000"}{"b":1}`, want: `{"b":1}`,
			errs: []string{`0: surrogate: \ud800 is half of a surrogate pair at byte 6`}},
		{name: "too deep", src: nest(129) + nest(128) + nest(400) + "{}", want: nest(128) + ` {}`,
			errs: []string{`0: depth: nested deeper than 128 at byte 384`,
				fmt.Sprintf(`2: depth: nested deeper than 128 at byte %d`, len(nest(129)+nest(128))+384)}},
		{name: "depth leaves out the array", src: "[" + nest(129) + "," + nest(128) + "]", want: nest(128),
			errs: []string{`0: depth: nested deeper than 128 at byte 385`}},
		{name: "too large once compact", lim: small, src: `{"a":"0123456789ab"}{"a":   "0123456789ab" }{"a":"0123456789abc"}{}`,
			want: `{"a":"0123456789ab"} {"a":"0123456789ab"} {}`,
			errs: []string{`2: too_large: record of 21 bytes is larger than 20 at byte 44`}},

		// Whole bodies.
		{name: "nothing", src: "", body: `empty: the body is empty at byte 0`},
		{name: "white space only", src: " \r\n\t\n", body: `empty: the body is empty at byte 0`},
		{name: "a byte-order mark and nothing else", src: "\ufeff", body: `empty: the body is empty at byte 0`},
		{name: "array cut short", src: `[{"a":1},`, body: `syntax: unexpected end of body before a value at byte 9`},
		{name: "array cut short behind an element", src: `[{"a":1}`, body: `syntax: unexpected end of body inside an array at byte 8`},
		{name: "array cut short in an element", src: `[{"a":1},{"b`, body: `syntax: unexpected end of body inside a string at byte 12`},
		{name: "array opened only", src: `[`, body: `syntax: unexpected end of body inside an array at byte 1`},
		{name: "array broken on a line of its own", src: "[\n{\"a\":1},\n{\"b\":},\n{\"c\":3}\n]", body: `syntax: unexpected '}', want a value at byte 16`},
		{name: "comma before the array's end", src: `[{"a":1},]`, body: `syntax: unexpected ']', want a value at byte 9`},
		{name: "comma first", src: `[,{"a":1}]`, body: `syntax: unexpected ',', want a value or ']' at byte 1`},
		{name: "no comma", src: `[{"a":1}{"b":2}]`, body: `syntax: unexpected '{', want ',' or ']' at byte 8`},
		{name: "after the array", src: "[{\"a\":1}]\n{\"b\":2}", body: `syntax: unexpected '{' after the array, want nothing more or another array at byte 10`},
		{name: "after the empty array", src: "[]]", body: `syntax: unexpected ']' after the array, want nothing more or another array at byte 2`},
		{name: "comma between arrays", src: "[{\"a\":1}],\n[{\"b\":2}]", body: `syntax: unexpected ',' after the array, want nothing more or another array at byte 9`},
		{name: "second array cut short", src: "[{\"a\":1}]\n[{\"b\":2}", body: `syntax: unexpected end of body inside an array at byte 18`},
		{name: "second array broken", src: "[{\"a\":1}]\n[{\"b\":}]\n[{\"c\":1}]", body: `syntax: unexpected '}', want a value at byte 16`},

		// Other formats, which the first bytes show.
		{name: "gzip", src: "\x1f\x8b\x08\n{\"a\":1}\n", body: `format: the body looks like gzip: send Content-Encoding: gzip`},
		{name: "zstd", src: "\x28\xb5\x2f\xfd\x04", body: `format: the body looks like zstd: send Content-Encoding: zstd`},
		{name: "zlib", src: "\x78\x9c\xaa\x56\x04", body: `format: the body looks like zlib: send Content-Encoding: deflate`},
		{name: "xz", src: "\xfd7zXZ\x00\x04", body: `format: the body looks like xz, which is not taken: send it plain, or in gzip, zstd or zlib (deflate) with its Content-Encoding`},
		{name: "text that begins as zlib does", src: "x^2\n{\"a\":1}\n", want: `{"a":1}`, errs: []string{`0: syntax: unexpected 'x', want an object at byte 0`}},
		{name: "zeros that a crash left", src: "\x00{\"z\":1}\n{\"a\":1}\n", want: `{"a":1}`, errs: []string{`0: syntax: unexpected '\x00', want an object at byte 0`}},
		{name: "UTF-16, little endian", src: "\xff\xfe{\x00}\x00", body: `format: the body looks like UTF-16: send UTF-8`},
		{name: "UTF-16, big endian", src: "\xfe\xff\x00{\x00}", body: `format: the body looks like UTF-16: send UTF-8`},
		{name: "UTF-16 without a mark", src: "[\x00{\x00}\x00]\x00", body: `format: the body looks like UTF-16: send UTF-8`},
		{name: "UTF-16, big endian, without a mark", src: "\x00{\x00}", body: `format: the body looks like UTF-16: send UTF-8`},
		{name: "UTF-32", src: "\xff\xfe\x00\x00{\x00\x00\x00", body: `format: the body looks like UTF-32: send UTF-8`},
		{name: "words run together in an array", src: `[nulltrue]`, body: `syntax: unexpected 't' right after a value at byte 5`},

		// Breaks within a line cost the line.
		{name: "broken line", src: "{\"a\":1}\n{\"b\":}\n{\"c\":3}\n", want: `{"a":1} {"c":3}`,
			errs: []string{`1: syntax: unexpected '}', want a value at byte 13`}},
		{name: "first line broken", src: "{'a':1}\n{\"c\":3}\n", want: `{"c":3}`,
			errs: []string{`0: syntax: unexpected '\'', want '"' or '}' at byte 1`}},
		{name: "garbage lines", src: "oops\n{\"a\":1}\n# no\n\n\xff\n{\"b\":2}", want: `{"a":1} {"b":2}`,
			errs: []string{`0: syntax: unexpected 'o', want an object at byte 0`, `2: syntax: unexpected '#', want an object at byte 13`,
				`3: syntax: unexpected '\xff', want an object at byte 19`}},
		{name: "a newline in a string", src: "{\"a\":\"x\ny\"}\n{\"b\":2}\n", want: `{"b":2}`,
			errs: []string{`0: syntax: unexpected '\n' inside a string, want it escaped at byte 7`, `1: syntax: unexpected 'y', want an object at byte 8`}},
		{name: "a newline in a literal", src: "{\"a\":tr\nue}\n{\"b\":2}\n", want: `{"b":2}`,
			errs: []string{`0: syntax: unexpected '\n', want true at byte 7`, `1: syntax: unexpected 'u', want an object at byte 8`}},
		{name: "garbage takes its whole line", src: "{\"x\":0}\n{\"a\":1}{\"b\":\"\\u0000\"} {\"c\":3} oops {\"d\":4}\n{\"e\":5}", want: `{"x":0} {"e":5}`,
			errs: []string{`1: syntax: unexpected 'o', want an object at byte 38`}},
		{name: "two broken records on a line are one", src: "{\"a\":} {\"b\":}\n{\"e\":5}", want: `{"e":5}`,
			errs: []string{`0: syntax: unexpected '}', want a value at byte 5`}},
		{name: "last line cut short", src: "{\"a\":1}\n{\"b\":\"xy", want: `{"a":1}`,
			errs: []string{`1: syntax: unexpected end of body inside a string at byte 16`}},
		{name: "the only line cut short", src: `{"b":"xy`,
			errs: []string{`0: syntax: unexpected end of body inside a string at byte 8`}},
		{name: "comma between lines", src: "{\"a\":1},\n{\"b\":2}\n{\"c\":3}\n", want: `{"b":2} {"c":3}`,
			errs: []string{`0: syntax: unexpected ',', want an object at byte 7`}},
		{name: "strings on lines", src: "\"whole\"\n{\"b\":}\n{\"c\":3}\n", want: `{"c":3}`,
			errs: []string{`0: not_object: not an object at byte 0`, `1: syntax: unexpected '}', want a value at byte 13`}},
		{name: "breaks in a line after a record over lines", src: "{\n\t\n}\noops\n{\"a\":1}", body: `syntax: unexpected 'o', want an object at byte 6`},
		{name: "a record over lines ends where it breaks", src: "{\"a\":\n1} oops\n{\"b\":2}\n", body: `syntax: unexpected 'o', want an object at byte 9`},

		// Bodies that are not line-delimited.
		{name: "pretty, broken on a line", src: "{\n  \"a\": 1,\n  \"b\": x\n}\n{\n  \"c\": {\n    \"d\": 1\n  }\n}\n",
			body: `syntax: unexpected 'x', want a value at byte 19`},
		{name: "pretty, cut short", src: "{\n  \"a\": 1\n}\n{\n  \"b\": {\n", body: `syntax: unexpected end of body inside an object at byte 24`},
		{name: "pretty, cut short on the first line of a record", src: "{\n  \"a\": 1\n}\n{", body: `syntax: unexpected end of body inside an object at byte 14`},
		{name: "a brace too many", src: "{\"a\":1}\n}\n{\"b\":2}\n", body: `syntax: unexpected '}', want an object at byte 8`},
		{name: "a member on its own line", src: "{\"x\":}\n\"b\": {\"c\":1}\n", body: `syntax: unexpected '}', want a value at byte 5`},
		{name: "two strings on a line", src: "{\"x\":}\n\"b\" \"c\"\n{\"d\":1}\n", body: `syntax: unexpected '}', want a value at byte 5`},
		{name: "fragment on a line of its own", src: "{\"a\":x,\n{\"b\":1}\n ,\"c\":2}\n", body: `syntax: unexpected 'x', want a value at byte 5`},

		// Lines cut short, whose brackets swallow the next ones.
		{name: "line cut short, then a record", src: "{\"a\":1,\n{\"b\":2}\n{\"c\":3}\n", want: `{"b":2} {"c":3}`,
			errs: []string{`0: syntax: unexpected end of line inside an object at byte 7`}},
		{name: "line cut short after its colon", src: "{\"a\":1}\n{\"x\":\n{\"b\":2}\n{\"c\":3}\n", want: `{"a":1} {"b":2} {"c":3}`,
			errs: []string{`1: syntax: unexpected end of line before a value at byte 13`}},
		{name: "line cut short after its colon, nothing before", src: "{\"x\":\n{\"b\":2}\n[1]\n", body: `syntax: unexpected '[', want ',' or '}' at byte 14`},
		{name: "line cut short in an array", src: "{\"x\":[\n{\"b\":2}\n{\"c\":3}\n", want: `{"b":2} {"c":3}`,
			errs: []string{`0: syntax: unexpected end of line inside an array at byte 6`}},
		{name: "line cut short, then the end", src: "{\"a\":1}\n{\"x\":[\n", want: `{"a":1}`,
			errs: []string{`1: syntax: unexpected end of line inside an array at byte 14`}},
		{name: "the only line cut short, then its newline", src: "{\"x\":[\n", body: `syntax: unexpected end of body inside an array at byte 7`},
		{name: "several on the line cut short", src: "{\"a\":1} {\"b\":\"\\u0000\"} {\"x\":[\n{\"c\":3}\n  {\"d\":4}", want: `{"c":3} {"d":4}`,
			errs: []string{`0: syntax: unexpected end of line inside an array at byte 29`}},
		{name: "no record over lines once one was cut short", src: "{\"a\":1,\n{\"b\":2}\n{\"c\":\n3}\n{\"d\":\n", want: `{"b":2}`,
			errs: []string{`0: syntax: unexpected end of line inside an object at byte 7`, `2: syntax: unexpected end of line before a value at byte 21`,
				`3: syntax: unexpected '}', want an object at byte 23`, `4: syntax: unexpected end of line before a value at byte 30`}},
		{name: "a scalar before is no record", src: "5\n{\"x\":\n{\"b\":2}\n7\n", body: `syntax: unexpected '7', want ',' or '}' at byte 16`},
		{name: "a refused record before is one", src: "{\"a\":\"\\u0000\"}\n{\"x\":\n{\"b\":2}\n7\n", want: `{"b":2}`,
			errs: []string{`0: nul: \u0000 can't be stored in jsonb at byte 6`, `1: syntax: unexpected end of line before a value at byte 20`, `3: not_object: not an object at byte 29`}},
		{name: "a lost line before is none", src: "{\"a\":}\n{\"x\":\n{\"b\":2}\n7\n", body: `syntax: unexpected '7', want ',' or '}' at byte 21`},
		{name: "a record over lines before is none", src: "{\"a\":\n1}\n{\"x\":\n{\"b\":2}\n7\n", body: `syntax: unexpected '7', want ',' or '}' at byte 23`},
		{name: "a line cut short after one that ends a record", src: "{\"a\":\n1} {\"x\":[\n{\"b\":2}\n{\"c\":3}\n", body: `syntax: unexpected '{', want ',' or ']' at byte 24`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.lim == (Limits{}) {
				tt.lim = roomy
			}
			if tt.want != "" {
				tt.want = strings.ReplaceAll(tt.want, "} {", "}\n{") + "\n"
			}
			src := []byte(tt.src)
			var b Body
			err := b.Batch(src, tt.lim)
			if tt.body != "" {
				if err == nil {
					t.Fatalf("took %q, want %s", b.NDJSON, tt.body)
				}
				if got := err.Reason.String() + ": " + err.Error(); got != tt.body {
					t.Errorf("got  %s\nwant %s", got, tt.body)
				}
				if len(b.NDJSON) != 0 || b.Accepted != 0 || b.Rejected != 0 || len(b.Pieces) != 0 || len(b.Errors) != 0 || b.RejectedBy != [NumReasons]int{} {
					t.Errorf("a refused body left %+v", b)
				}
				return
			}
			if err != nil {
				t.Fatalf("refused whole: %v", err)
			}
			if diff := cmp.Diff(tt.want, string(b.NDJSON)); diff != "" {
				t.Errorf("NDJSON (-want +got):\n%s", diff)
			}
			var errs []string
			for _, e := range b.Errors {
				errs = append(errs, fmt.Sprintf("%d: %v: %v", e.Index, e.Err.Reason, &e.Err))
			}
			if diff := cmp.Diff(tt.errs, errs); diff != "" {
				t.Errorf("errors (-want +got):\n%s", diff)
			}
			if string(src) != tt.src {
				t.Error("the source was changed")
			}
			checkBody(t, &b, tt.lim)
		})
	}
}

// A part of NDJSON is taken line by line, whatever came before it.
func TestLines(t *testing.T) {
	for _, tt := range []struct{ name, src, want, errs, body string }{
		{name: "records", src: "{\"a\":1}\n\n\ufeff{\"b\":2} {\"c\":3}\n", want: `{"a":1} {"b":2} {"c":3}`},
		{name: "a record over lines", src: "{\"a\":\n1}\n{\"b\":2}\n", want: `{"b":2}`, errs: "0 1"},
		{name: "an array", src: "[{\"a\":1}]\n{\"b\":2}\n", want: `{"b":2}`, errs: "0"},
		{name: "the first line cut short", src: "{\"a\":\n{\"b\":2}\n", want: `{"b":2}`, errs: "0"},
		{name: "lines of text", src: "panic: oops\n{\"b\":2}\n\tat x\n", want: `{"b":2}`, errs: "0 2"},
		{name: "zeros, as a crash leaves them in a file", src: "\x00\x00\x00\n{\"b\":2}\n", want: `{"b":2}`, errs: "0"},
		{name: "what a format begins with", src: "PK\x03\x04\n{\"b\":2}\n\x1f\x8b\n", want: `{"b":2}`, errs: "0 2"},
		{name: "what continues a record", src: "{\"b\":2}\n{\"a\":\n}\n", body: "unexpected end of line before a value at byte 13"},
		{name: "nothing", src: "\n \n", body: "the body is empty at byte 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b Body
			err := b.Lines([]byte(tt.src), roomy)
			if tt.body != "" {
				if err == nil || err.Error() != tt.body {
					t.Fatalf("got %q, %v, want %s", b.NDJSON, err, tt.body)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := strings.ReplaceAll(strings.TrimSpace(string(b.NDJSON)), "\n", " ")
			var errs []string
			for _, e := range b.Errors {
				errs = append(errs, fmt.Sprint(e.Index))
			}
			if got != tt.want || strings.Join(errs, " ") != tt.errs {
				t.Errorf("got %s and errors of %v, want %s and %s", got, errs, tt.want, tt.errs)
			}
			checkBody(t, &b, roomy)
		})
	}
}

func TestABodyIsTakenForLinesOnlyWhenItsBeginningShowsIt(t *testing.T) {
	for src, want := range map[string]bool{
		"{\"a\":1}\n":                      true,
		"\ufeff{\"a\":1} {\"b\":2}\n\n":    true,
		"{\"a\":1}\noops\n":                true,
		"oops\n{\"a\":1}\n":                true,
		"{\"a\":1,\n{\"b\":2}\n":           true,  // the '{' shows that the first line was cut short
		"{\"a\":1}\n{\"b\":\n":             false, // the record may go on
		"{\"a\":1}\n{\"b\":[\n{\"c\":1}\n": false,
		"{\"a\":1}\n{\"b\":\n2}\n":         false,
		"{\n\"a\":1\n}\n":                  false,
		"{\n":                              false,
		"[{\"a\":1}]\n":                    false,
		"[\n":                              false,
		"oops\n":                           false,
		"5\n":                              false,
		"\n":                               false,
		"{\"a\":1}\n{\"x\":}\n}\n":         false,
	} {
		var b, other Body
		if got := b.IsLines(&other, []byte(src), roomy); got != want {
			t.Errorf("%q: got %v, want %v", src, got, want)
		}
	}
}

// checkBody checks what must hold of every Body that was not refused whole.
func checkBody(t *testing.T, b *Body, lim Limits) {
	t.Helper()
	if got := bytes.Count(b.NDJSON, []byte("\n")); got != b.Accepted {
		t.Fatalf("got %d lines, want the %d accepted", got, b.Accepted)
	}
	at, records := 0, 0
	for i, p := range b.Pieces {
		inside := b.NDJSON[p.Start:p.End]
		if p.Start != at || p.Records != bytes.Count(inside, []byte("\n")) || p.Records == 0 || inside[len(inside)-1] != '\n' {
			t.Fatalf("piece %d, %+v, doesn't continue at %d with as many lines", i, p, at)
		}
		last := bytes.LastIndexByte(inside[:len(inside)-1], '\n') + 1 // where its last record starts
		if last > 0 && last >= lim.PieceBytes || i < len(b.Pieces)-1 && len(inside) < lim.PieceBytes {
			t.Fatalf("piece %d, %+v, doesn't close at %d bytes", i, p, lim.PieceBytes)
		}
		at, records = p.End, records+p.Records
	}
	if at != len(b.NDJSON) || records != b.Accepted {
		t.Fatalf("pieces end at %d with %d records, want %d with %d", at, records, len(b.NDJSON), b.Accepted)
	}
	sum := 0
	for _, n := range b.RejectedBy {
		sum += n
	}
	if sum != b.Rejected || len(b.Errors) != min(b.Rejected, MaxErrors) {
		t.Fatalf("got %d rejected, %d by reason, %d errors", b.Rejected, sum, len(b.Errors))
	}
	for i, e := range b.Errors {
		if i > 0 && e.Index <= b.Errors[i-1].Index || e.Index >= b.Accepted+b.Rejected || e.Err.Msg == "" {
			t.Fatalf("error %d is out of order or empty: %+v", i, e)
		}
	}
}

func TestFormsGiveTheSamePieces(t *testing.T) {
	records := logRecords(300, true)
	for _, pieceBytes := range []int{1, 100, 1000, 4096, 1 << 20} {
		lim := Limits{RecordBytes: 1 << 20, PieceBytes: pieceBytes}
		var want Body
		if err := want.Batch(append(bytes.Join(records, []byte("\n")), '\n'), lim); err != nil {
			t.Fatal(err)
		}
		if want.Accepted != 300 || pieceBytes < 1<<20 && len(want.Pieces) < 2 {
			t.Fatalf("got %d records in %d pieces", want.Accepted, len(want.Pieces))
		}
		forms := bodies(records)
		forms["concatenated"] = bytes.Join(records, nil)
		forms["CRLF"] = bytes.Join(records, []byte("\r\n\r\n"))
		// Lines that are lost leave no trace, nor do the records on them.
		forms["bad lines between"] = bytes.Join(records, []byte("\n{\"x\":1}{\"y\":2}{\"z\":}\noops\n5\n{\"a\":\"\\u0000\"}\n"))
		forms["a line cut short"] = append([]byte("{\"x\":1}{\"y\":2}{\"z\":[\n"), forms["ndjson"]...)
		var b Body
		for name, src := range forms {
			if err := b.Batch(src, lim); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			checkBody(t, &b, lim)
			if !bytes.Equal(b.NDJSON, want.NDJSON) {
				t.Errorf("%s: the records differ", name)
			}
			if !slices.Equal(b.Pieces, want.Pieces) {
				t.Errorf("%s: got %d pieces that are not the %d wanted", name, len(b.Pieces), len(want.Pieces))
			}
		}
	}
}

func TestErrorsAreTheFirstHundred(t *testing.T) {
	var b Body
	if err := b.Batch([]byte(strings.Repeat("{}\nx\n", 500)+strings.Repeat("1 ", 50)+"y"), roomy); err != nil {
		t.Fatal(err)
	}
	checkBody(t, &b, roomy)
	if b.Accepted != 500 || b.Rejected != 501 || b.RejectedBy[Syntax] != 501 || b.Errors[99].Index != 199 {
		t.Errorf("got %d, %d, %v, %+v", b.Accepted, b.Rejected, b.RejectedBy, b.Errors[99])
	}
	// A line that fills the list of errors and is then lost counts once.
	if err := b.Batch([]byte("{}\n"+strings.Repeat("1 ", 150)+"y\n2\n"), roomy); err != nil {
		t.Fatal(err)
	}
	checkBody(t, &b, roomy)
	if b.Rejected != 2 || b.RejectedBy[Syntax] != 1 || b.RejectedBy[NotObject] != 1 || b.Errors[1].Index != 2 {
		t.Errorf("got %d, %v, %+v", b.Rejected, b.RejectedBy, b.Errors)
	}
}

func TestBodyIsReused(t *testing.T) {
	var b Body
	for _, src := range []string{"{\"a\":1}\nx\n", "[", `[{"b":2}]`, "", `{"c":3}`} {
		var fresh Body
		err, want := b.Batch([]byte(src), roomy), fresh.Batch([]byte(src), roomy)
		if diff := cmp.Diff(want, err); diff != "" {
			t.Errorf("%q: error (-fresh +reused):\n%s", src, diff)
		}
		if !bytes.Equal(b.NDJSON, fresh.NDJSON) || !slices.Equal(b.Pieces, fresh.Pieces) || b.RejectedBy != fresh.RejectedBy || b.Accepted != fresh.Accepted {
			t.Errorf("%q: reused %+v\nfresh %+v", src, b, fresh)
		}
	}
	b.Reset()
	if len(b.NDJSON) != 0 || b.Accepted != 0 || cap(b.NDJSON) == 0 {
		t.Errorf("Reset left %d bytes and %d records, of %d bytes", len(b.NDJSON), b.Accepted, cap(b.NDJSON))
	}
}

func TestRecordsCostNoAllocation(t *testing.T) {
	forms := bodies(logRecords(200, true))
	forms["refused"] = bytes.Repeat([]byte("{\"a\":1}\n{\"b\":\"\\u0000\"}\nx\n"), 200)
	forms["deep"] = []byte(strings.Repeat(nest(500)+"\n", 20))
	for name, src := range forms {
		var b Body
		reported := 0
		run := func() {
			if err := b.Batch(src, roomy); err != nil {
				t.Fatal(err)
			}
			reported = len(b.Errors)
		}
		run()
		// Exactly the reported errors have messages.
		if got := testing.AllocsPerRun(10, run); got > float64(6*reported) {
			t.Errorf("%s: got %.0f allocations a body, want none but for %d errors", name, got, reported)
		}
	}
	var b Body
	record := logRecords(1, true)[0]
	if got := testing.AllocsPerRun(100, func() { b.Single(record, roomy) }); got != 0 {
		t.Errorf("got %.0f allocations for a single record, want 0", got)
	}
}

// The test counts the bytes that the scanner passes over in a hostile body; it
// does not measure time.
func TestWorkIsLinear(t *testing.T) {
	const n = 1 << 20
	repeat := func(s string) string { return strings.Repeat(s, n/len(s)) }
	for _, src := range []string{
		repeat("{\"a\":[\n"),
		"{}\n" + repeat("{\"a\":[\n"),
		"{}\n" + repeat("{\"a\":\n"),
		"{\"a\":1,\n" + repeat("{\"a\":\n"),
		"{\"a\":1,\n" + repeat("{\"a\":[{\"b\":1}\n"),
		"{}\n" + repeat("[\n"),
		repeat("[\n"),
		"{}\n" + repeat("{"),
		repeat("{x\n"),
		"{}\n" + repeat("{}x"),
		repeat("{}x\n"),
		repeat("\"a\"\n") + "x",
		repeat("{\n\"a\":1}\n") + "x",
		"x\n" + repeat("\"a\n"),
		"{}\n{\"a\":[\n" + repeat("1,\n"),
		"{}\n{\"a\":\n1}" + repeat("{x"),
	} {
		var b Body
		b.Batch([]byte(src), roomy)
		if b.s.scanned > 3*len(src) {
			t.Errorf("%.30q…: scanned %d bytes of a body of %d", src, b.s.scanned, len(src))
		}
		if got := cap(b.NDJSON); got > 2*len(src)+4096 {
			t.Errorf("%.30q…: took %d bytes for a body of %d", src, got, len(src))
		}
	}
}

const structural = "{}[],:\" \n\\x"

// One bad byte in a line of NDJSON costs at most that line, unless it is the
// line's first byte: then the body may no longer be line-delimited.
func TestOneBadByteHarmsNoOtherLine(t *testing.T) {
	records := logRecords(4, true)
	src := bytes.Join(records, []byte("\n"))
	var b Body
	for at := range src {
		if src[at] == '\n' || at == 0 || src[at-1] == '\n' {
			continue
		}
		line := bytes.Count(src[:at], []byte("\n"))
		mutants := [][]byte{slices.Delete(bytes.Clone(src), at, at+1), slices.Replace(bytes.Clone(src), at, lineEnd(src, at))}
		for _, c := range []byte(structural) {
			if c != '\n' {
				mutants = append(mutants, slices.Replace(bytes.Clone(src), at, at+1, c))
			}
		}
		for _, mutant := range mutants {
			if err := b.Batch(mutant, roomy); err != nil {
				t.Fatalf("line %d: %v in %s", line, err, mutant)
			}
			for k, record := range records {
				if k != line && !bytes.Contains(b.NDJSON, slices.Concat(record, []byte("\n"))) {
					t.Fatalf("a bad byte at %d of line %d cost line %d: %v\n%s", at, line, k, b.Errors, mutant)
				}
			}
			if b.Accepted+b.Rejected != len(records) && !bytes.Contains(mutant, []byte("}{")) && b.Rejected > 1 {
				t.Fatalf("a bad byte at %d of line %d: %v", at, line, b.Errors)
			}
		}
	}
}

// However a pretty-printed record breaks, no object inside it is taken for one.
func TestFragmentsAreNeverRecords(t *testing.T) {
	record := []byte(`{"top":1,"a":{"in":1,"b":[{"in":2},{"in":3,"c":[]},[4,{"in":5}]]},"d":"x","e":{"in":{}},"f":[{"in":6}]}`)
	for _, indent := range []string{"", "  ", "\t"} {
		var one bytes.Buffer
		json.Indent(&one, record, "", indent)
		src := slices.Concat(one.Bytes(), []byte("\n"), one.Bytes(), []byte("\n"), one.Bytes(), []byte("\n"))
		var b Body
		refused := 0
		for at := range src {
			mutants := [][]byte{slices.Delete(bytes.Clone(src), at, at+1), src[:at]}
			if end := lineEnd(src, at); end < len(src) {
				mutants = append(mutants, slices.Delete(bytes.Clone(src), at, end), slices.Delete(bytes.Clone(src), at, end+1))
			}
			for _, c := range []byte(structural) {
				mutants = append(mutants, slices.Replace(bytes.Clone(src), at, at+1, c), slices.Insert(bytes.Clone(src), at, c))
			}
			for _, mutant := range mutants {
				if err := b.Batch(mutant, roomy); err != nil {
					refused++
				}
				for line := range bytes.Lines(b.NDJSON) {
					if bytes.HasPrefix(line, []byte(`{"in`)) || len(line) == len("{}\n") {
						t.Fatalf("took %s from\n%s", line, mutant)
					}
				}
			}
		}
		if refused < len(src) {
			t.Errorf("only %d bodies were refused, the test tests little", refused)
		}
	}
}
