package language

import (
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"millrace/internal/eventtime"
)

// queries and their normal forms.
var queries = []struct{ q, want string }{
	{"", ""},
	{" \t\r\n\u00a0", ""},
	{"*", ""},
	{"level:error", `"level":"error"`},
	{"  level:error   service:checkout ", `"level":"error" "service":"checkout"`},
	{"level:error AND service:checkout", `"level":"error" "service":"checkout"`},
	{"http.request.method:GET", `http.request.method:"GET"`},
	{`"http"."request".method:GET`, `"http"."request"."method":"GET"`},
	{`msg:"connection reset"`, `"msg":"connection reset"`},
	{`msg:""`, `"msg":""`},
	{`msg:"a \"b\" \\ \/ \n\té 😀"`, `"msg":"a \"b\" \\ / ` + "\n\t" + `é 😀"`},
	{`"a.b":1`, `"a.b":1`},
	{`a\.b:1`, `"a.b":1`},
	{`a\:b.c:1`, `a\:b.c:1`},
	{`a."b c:d".e:x`, `"a"."b c:d"."e":"x"`},
	{`"":x`, `"":"x"`},
	{"größe:überall", `"größe":"überall"`},
	{"at:12:30:00 url:http://h/p?a=b&c=[d]", `"at":"12:30:00" "url":"http://h/p?a=b&c=[d]"`},
	{`path:C:\temp`, `"path":"C:\\temp"`},
	{`path:C:\\temp`, `"path":"C:\\temp"`},
	{"NOT:1 OR:2 AND.x:3", `"NOT":1 "OR":2 AND.x:3`},
	{"a:-5 b:--5 c:x-y d-e:1", `"a":-5 "b":"--5" "c":"x-y" "d-e":1`},
	{`a:\5 b:\-5 c:"5" d:5.0`, `"a":"\\5" "b":"-5" "c":"5" "d":5.0`},
	{"a:\U0001f600", "\"a\":\"\U0001f600\""},
	{"a:\ufffd", "\"a\":\"\ufffd\""},
	{"error", `"error"`},
	{`"connection reset" example.com`, `"connection reset" "example.com"`},
	{"conn*reset *x* **", `conn*reset "x"`},
	{`100\% 2\*2 a\ b*c`, `"100%" "2*2" a\ b*c`},
	{"and or not", `"and" OR "not"`},
	{"and", `"and"`},
	{"not", `"not"`},
	{"salt and", `"salt" "and"`},
	{"salt and pepper Or sugar", `("salt" "pepper") OR "sugar"`},
	{"(a or) not b", `"a" "or" -"b"`},
	{"a && b || c", `("a" "b") OR "c"`},
	{"a&&b a || b||", `("a&&b" "a") OR "b||"`},
	{"!a:1 !(b c)", `-"a":1 -("b" "c")`},
	{"status=500 status!=404", `"status":500 -"status":404`},
	{"status==500", `"status":500`},
	{"status>400 status<=499", `"status":>400 "status":<=499`},
	{"level=(error, warn)", `"level":"error" OR "level":"warn"`},
	{"service:(a,b)", `"service":"a" OR "service":"b"`},
	{"a=b=c d=e:f", `"a":"b=c" "d":"e:f"`},
	{"a= a=>5 x->y 10=5 YWJj== ?a=b", `"a=" "a=>5" "x->y" "10=5" "YWJj==" "?a=b"`},
	{`message~timeout message~"a b" message!~x*y`, `"message"~"timeout" "message"~"a b" -"message"~x*y`},
	{"a.b~x", `a.b~"x"`},
	{"a~*", `"a":*`},
	{"message:/re(set|fused)/ message:/x y/i path=~/^a/", `"message":/re(set|fused)/ "message":/x y/i "path":/^a/`},
	{`path:/healthz path:/a/b path:/a/b c/`, `"path":"/healthz" "path":"/a/b" "path":"/a/b" "c/"`},
	{`path:/a\/b/ path:(/a/, /b/i)`, `"path":/a\/b/ ("path":/a/ OR "path":/b/i)`},
	{"level:i(error) level:i(\"a b\") level:i( x )", `"level":i("error") "level":i("a b") "level":i("x")`},
	{"client.ip:10.1.0.0/16 ip:fe80::/10 ip:10.1.0.0/99", `client.ip:10.1.0.0/16 "ip":fe80::/10 "ip":"10.1.0.0/99"`},
	{"at:>2026-03-04 at:<=2026-03-04", `"at":>=2026-03-05T00:00:00.000000Z "at":<2026-03-05T00:00:00.000000Z`},
	{"at:[2026-03-04 to 2026-03-05]", `"at":[2026-03-04T00:00:00.000000Z TO 2026-03-06T00:00:00.000000Z}`},
	{"time:>now-1h30m inserted_at:<now", `time:>2026-03-04T10:30:05.000000Z inserted_at:<2026-03-04T12:00:05.000000Z`},
	{"time:now/d inserted_at:2026-03-04", `time:[2026-03-04T00:00:00.000000Z TO 2026-03-05T00:00:00.000000Z} inserted_at:2026-03-04`},
	{"time:2026-03-04T12:00:00Z time:x time:>1772625600", `time:2026-03-04T12:00:00Z "time":"x" time:>2026-03-04T12:00:00.000000Z`},
	{`"time":>1772625600 "id":018f0000-0000-7000-8000-000000000001`, `"time":>1772625600 "id":"018f0000-0000-7000-8000-000000000001"`},
	{"id:018F0000-0000-7000-8000-000000000001 id:7", `id:018f0000-0000-7000-8000-000000000001 "id":7`},
	{"-a:1", `-"a":1`},
	{"NOT a:1", `-"a":1`},
	{"NOT NOT a:1", `"a":1`},
	{"--a:1", `"a":1`},
	{"NOT(a:1)", `-"a":1`},
	{"-(a:1 b:2)", `-("a":1 "b":2)`},
	{"-*", "-*"},
	{"a:1 OR b:2", `"a":1 OR "b":2`},
	{"a:1 OR b:2 c:3", `"a":1 OR ("b":2 "c":3)`},
	{"(a:1 OR b:2) c:3", `("a":1 OR "b":2) "c":3`},
	{"((a:1) (((b:2 c:3))))", `"a":1 "b":2 "c":3`},
	{"a:1 OR (b:2 OR c:3)", `"a":1 OR "b":2 OR "c":3`},
	{"level:(error OR warn) x", `("level":"error" OR "level":"warn") "x"`},
	{"level:(-info -debug)", `-"level":"info" -"level":"debug"`},
	{"status:(>=500 OR 404)", `"status":>=500 OR "status":404`},
	{"a:*", `"a":*`},
	{"a:**", `"a":*`},
	{"a:x*", `"a":x*`},
	{"a:/api/*/x**", `"a":\/api\/*\/x*`},
	{`a:x\*`, `"a":"x*"`},
	{"status:>=500 x:>-1e2 y:<0.50 z:<=5", `"status":>=500 "x":>-100 "y":<0.5 "z":<=5`},
	{"a:[1 TO 5] b:{1 TO 5} c:[1 TO 5} d:[* TO 5] e:{1 TO *]", `"a":[1 TO 5] "b":{1 TO 5} "c":[1 TO 5} "d":<=5 "e":>1`},
	{"a:[ 1   TO 5 ]", `"a":[1 TO 5]`},
	{"at:>2026-03-04T13:00:00+01:00", `"at":>2026-03-04T12:00:00.000000Z`},
	{`at:["2026-03-04T12:00:00Z" TO 2026-03-04T12:00:00.1234567Z]`, `"at":[2026-03-04T12:00:00.000000Z TO 2026-03-04T12:00:00.123456Z]`},
}

func TestQueriesHaveANormalForm(t *testing.T) {
	for _, tt := range queries {
		got, err := ParseAt(tt.q, time.Date(2026, 3, 4, 12, 0, 5, 0, time.UTC))
		if err != nil {
			t.Errorf("Parse(%q): %v", tt.q, err)
			continue
		}
		if diff := cmp.Diff(tt.want, got.String()); diff != "" {
			t.Errorf("Parse(%q) (-want +got):\n%s", tt.q, diff)
		}
		if again, err := Parse(tt.want); err != nil || again.String() != tt.want {
			t.Errorf("Parse(%q) = %v, %v, want the same again", tt.want, again, err)
		}
	}
}

func TestWordsThatReadAsJSONValuesStandForThemToo(t *testing.T) {
	for _, word := range strings.Fields("0 -0 1 10 -12 1.5 0.25 1e5 1E+5 1.5e-10 true false null 12345678901234567890123") {
		if !isTyped(word) {
			t.Errorf("isTyped(%q) = false", word)
		}
	}
	for _, word := range strings.Fields("- 00 01 .5 5. 1. 1.e5 1e 1e+ +1 0x1 1_0 True NULL nil NaN Infinity 1a 1.2.3 truely ٣") {
		if isTyped(word) {
			t.Errorf("isTyped(%q) = true", word)
		}
	}
}

// badQueries are refused; the error holds the text.
var badQueries = []struct{ q, want string }{
	{"a:1 b:2)", "unexpected ) at 8"},
	{`level:error host:"a")`, "unexpected ) at 21"},
	{")", "unexpected ) at 1"},
	{"()", "unexpected ) at 2"},
	{"(a:1", "no ) for the ( at 1"},
	{"x (a:1 (b:2)", "no ) for the ( at 3"},
	{"level:(a OR", "something to look for is missing at 12"},
	{"level:()", "unexpected ) at 8"},
	{":x", "a field's name is missing at 1"},
	{"a.:x", "a field's name is missing at 3"},
	{".a:x", "a field's name is missing at 1"},
	{"a..b:x", "a field's name is missing at 3"},
	{"a:", "a value is missing at 3"},
	{"a: b", "a value is missing at 3"},
	{"größe: b", "a value is missing at 7"}, // characters, not bytes
	{`a:"x`, "a quoted string without an end begins at 3"},
	{`a:"x\"`, "a quoted string without an end begins at 3"},
	{`"x`, "a quoted string without an end begins at 1"},
	{`a:"x"y`, "unexpected y at 6"},
	{`a:x"y"`, `unexpected " at 4`},
	{`a"b":x`, `unexpected " at 2`},
	{`"a"b:x`, "unexpected b at 4"},
	{`x"y"`, `unexpected " at 2`},
	{`a:"\x"`, "unknown escape at 4"},
	{`a:"\u12"`, "unknown escape at 4"},
	{`a:"\u0000"`, "unknown escape at 4"},
	{`a:"\ud800"`, "unknown escape at 4"},
	{`a:"\ud800\ud800"`, "unknown escape at 4"},
	{`a:"\udc00\ud800"`, "unknown escape at 4"},
	{`a:"\`, "unknown escape at 4"},
	{"a:x\x00", `unexpected '\x00' at 4`},
	{"a:x\xff", "not UTF-8 at 4"},
	{"- a:1", "something to look for is missing at 2"},
	{"a:1 -", "something to look for is missing at 6"},
	{"! a", "after ! something to look for is missing at 2"},
	{"AND a:1", "unexpected AND at 1"},
	{"a:1 OR", "something to look for is missing at 7"},
	{"a:1 OR OR b:1", "unexpected OR at 8"},
	{"a:1 AND AND b:1", "unexpected AND at 9"},
	{"(a:1 OR)", "unexpected ) at 8"},
	{"NOT", "something to look for is missing at 4"},
	{"a:x(1)", "unexpected ( at 4"},
	{"status:=500", "unexpected = at 8; put the value in quotes"},
	{"a:!x", "unexpected ! at 3; put the value in quotes"},
	{"a:~x", "unexpected ~ at 3; put the value in quotes"},
	{"a:]x", "unexpected ] at 3; put the value in quotes"},
	{"status:>", "not a number or a time (such as 2026-03-04T12:00:00Z, 2026-03-04 or now-1h) at 9"},
	{"status:>x", "not a number or a time (such as 2026-03-04T12:00:00Z, 2026-03-04 or now-1h) at 9"},
	{"status:>*", "a number or a time is missing at 9"},
	{"status:>5*", "not a number or a time (such as 2026-03-04T12:00:00Z, 2026-03-04 or now-1h) at 9"},
	{"at:>2026-02-30T00:00:00Z", "not a number or a time (such as 2026-03-04T12:00:00Z, 2026-03-04 or now-1h) at 5"},
	{"at:>0000-01-01T00:00:00+15:00", "not a number or a time"},
	{"a:>1e999999", "no record can hold the number at 4"},
	{"a:[1", "TO is missing at 5"},
	{"a:[1 TO", "not a number or a time (such as 2026-03-04T12:00:00Z, 2026-03-04 or now-1h) at 8"},
	{"a:[1 TO 5", "no ] or } for the [ at 3"},
	{"a:{1 5]", "TO is missing at 6"},
	{"a:[* TO *]", "a range without ends at 3"},
	{"a:[1 TO 2026-03-04T12:00:00Z]", "a range from a number to a time, or the other way, at 9"},
	{"a.*:x", "a field's name has no wildcards, at 3"},
	{"a*:x", "a field's name has no wildcards, at 1"},
	{"a*b*c*d*e*f*g*h", "a word of 7 wildcards, takes at most 6, at 1"},
	{strings.Repeat("x", 257), "a text of 257 characters, takes at most 256, at 1"},
	{strings.Repeat("x", 4097), "got 4097 bytes, takes at most 4096"},
	{strings.Repeat("a:1 ", 65), "more than 64 conditions at 257"},
	{strings.Repeat("a.", 128) + "a:1", "a field of more than 128 names at 1"},
	{strings.Repeat("(", 4096), "nested deeper than 64 at 65"},
	{strings.Repeat("-", 4096), "nested deeper than 64 at 65"},
	{strings.Repeat("NOT ", 1000), "nested deeper than 64 at 257"},
	{strings.Repeat("a:(", 1000), "unexpected ( at 6"},
}

func TestBadQueriesAreRefusedWithThePlace(t *testing.T) {
	for _, tt := range badQueries {
		got, err := Parse(tt.q)
		if err == nil {
			t.Errorf("Parse(%q) = %v, want an error", tt.q, got)
		} else if !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Parse(%.80q): got %q, want %q", tt.q, err, tt.want)
		}
	}
}

func TestEqualityAsksTheIndex(t *testing.T) {
	tests := []struct {
		q, sql string
		want   []any
	}{
		{"a:x", "data @> $1 OR data @> $2", []any{`{"a":"x"}`, `{"a":["x"]}`}},
		{`a:"5"`, "data @> $1 OR data @> $2", []any{`{"a":"5"}`, `{"a":["5"]}`}},
		{"a:null", "data @> $1 OR data @> $2 OR data @> $3 OR data @> $4", []any{`{"a":"null"}`, `{"a":["null"]}`, `{"a":null}`, `{"a":[null]}`}},
		{`"a"."b":"it's \"x\\"`, "data @> $1 OR data @> $2 OR data @> $3 OR data @> $4",
			[]any{`{"a":{"b":"it's \"x\\"}}`, `{"a":[{"b":"it's \"x\\"}]}`, `{"a":{"b":["it's \"x\\"]}}`, `{"a":[{"b":["it's \"x\\"]}]}`}},
		{`"a".b:5`, "data @@ $1", []any{`$."a"."b" == "5" || $."a"."b" == 5`}},
		{"a.b:x", "data @@ $1", []any{`$."a"."b" == "x" || $."a.b" == "x"`}},
		{`a."b"."c\"$":"x\\"`, "data @@ $1", []any{`$."a"."b"."c\"$" == "x\\"`}},
		{strings.Repeat("a.", 127) + "a:x", "data @@ $1", []any{"$" + strings.Repeat(`."a"`, 128) + ` == "x" || $."` + strings.Repeat("a.", 127) + `a" == "x"`}},
		{"a:1e131072", "data @> $1 OR data @> $2", []any{`{"a":"1e131072"}`, `{"a":["1e131072"]}`}}, // numeric can't hold it, so no record does
		{"a:1e-99999999999999", "data @> $1 OR data @> $2", []any{`{"a":"1e-99999999999999"}`, `{"a":["1e-99999999999999"]}`}},
	}
	for _, tt := range tests {
		n, err := Parse(tt.q)
		if err != nil {
			t.Fatal(err)
		}
		var args Args
		condition := n.SQL(&args, nil)
		if diff := cmp.Diff(tt.want, []any(args)); diff != "" || condition != tt.sql {
			t.Errorf("%s: got %s, want %s (-want +got):\n%s", tt.q, condition, tt.sql, diff)
		}
	}
}

// ours are the string constants that statements may hold.
var ours = []string{"'" + numberText + "'", eventtime.NoTimeSQL, "'string'", "'number'", "'boolean'", "'{}'", "'" + isInstant + "'",
	`'strict $.** ? (@.type() == "number" || @.type() == "boolean")'`}

func FuzzQ(f *testing.F) {
	for _, tt := range badQueries {
		f.Add(tt.q)
	}
	for _, tt := range queries {
		f.Add(tt.q)
	}
	f.Fuzz(func(t *testing.T, q string) {
		n, err := Parse(q)
		if err != nil {
			var syntax *syntaxError
			if !errors.As(err, &syntax) || syntax.at < 1 || syntax.at > utf8.RuneCountInString(q)+1 {
				t.Errorf("Parse(%q): %#v, want a place in the query", q, err)
			}
			return
		}
		normal := n.String()
		if again, err := Parse(normal); err != nil && len(normal) <= MaxBytes || err == nil && again.String() != normal {
			t.Errorf("Parse(%q) has the normal form %q, which reads as %v, %v", q, normal, again, err)
		}
		condition := n.SQL(new(Args), nil)
		sql := strings.ReplaceAll(condition, instantOf, "")
		for _, constant := range regexp.MustCompile(`'[^']*'`).FindAllString(sql, -1) {
			if !slices.Contains(ours, constant) {
				t.Errorf("Parse(%q): SQL holds %s", q, constant)
			}
		}
		if rest := regexp.MustCompile(`'[^']*'`).ReplaceAllString(sql, ""); strings.Trim(rest, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789$@#_~<>=(),:[] ") != "" {
			t.Errorf("Parse(%q): SQL %s holds more than placeholders", q, sql)
		}
		var r Record
		if err := r.Read([]byte(`{"a": ["x", 5, {"b": "2026-03-04T12:00:00Z"}], "level": "error"}`)); err != nil {
			t.Fatal(err)
		}
		n.Matcher()(&r)
	})
}
