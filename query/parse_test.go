package query

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestQueriesAreRead(t *testing.T) {
	pair := func(path, value string, typed bool) node { return equals{strings.Split(path, "/"), value, typed} }
	tests := []struct {
		q    string
		want all
	}{
		{"", all{}},
		{" \t\r\n\u00a0", all{}},
		{"level:error", all{pair("level", "error", false)}},
		{"  level:error   service:checkout ", all{pair("level", "error", false), pair("service", "checkout", false)}},
		{"http.request.method:GET", all{pair("http/request/method", "GET", false)}},
		{`msg:"connection reset"`, all{pair("msg", "connection reset", false)}},
		{`msg:""`, all{pair("msg", "", false)}},
		{`msg:"a \"b\" \\ \/ \n\té 😀"`, all{pair("msg", "a \"b\" \\ / \n\té 😀", false)}},
		{`"a.b":1`, all{equals{[]string{"a.b"}, "1", true}}},
		{`a."b c:d".e:x`, all{equals{[]string{"a", "b c:d", "e"}, "x", false}}},
		{`"":x`, all{equals{[]string{""}, "x", false}}},
		{"größe:überall", all{pair("größe", "überall", false)}},
		{"at:12:30:00 url:http://h/p?a=b&c=[d]", all{pair("at", "12:30:00", false), pair("url", "http://h/p?a=b&c=[d]", false)}},
		{`path:C:\temp`, all{pair("path", `C:\temp`, false)}},
		{"NOT:1 OR:2 AND.x:3", all{pair("NOT", "1", true), pair("OR", "2", true), pair("AND/x", "3", true)}},
		{"a:-5 b:--5 c:x-y d-e:1", all{pair("a", "-5", true), pair("b", "--5", false), pair("c", "x-y", false), pair("d-e", "1", true)}},
		{"a:\U0001f600", all{pair("a", "\U0001f600", false)}},
		{"a:\ufffd", all{pair("a", "\ufffd", false)}},
	}
	for _, tt := range tests {
		got, err := parse(tt.q)
		if err != nil {
			t.Errorf("parse(%q): %v", tt.q, err)
			continue
		}
		if diff := cmp.Diff(node(tt.want), got, cmp.AllowUnexported(equals{})); diff != "" {
			t.Errorf("parse(%q) (-want +got):\n%s", tt.q, diff)
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
	{"a:1 b:2)", "unexpected ')' at 8"},
	{`level:error host:"a")`, "unexpected ')' at 21"},
	{")", "unexpected ')' at 1"},
	{":x", "a field's name is missing at 1"},
	{"a.:x", "a field's name is missing at 3"},
	{".a:x", "a field's name is missing at 1"},
	{"a..b:x", "a field's name is missing at 3"},
	{"a:", "a value is missing at 3"},
	{"a: b", "a value is missing at 3"},
	{"größe: b", "a value is missing at 7"}, // characters, not bytes
	{`a:"x`, "a quoted string without an end begins at 3"},
	{`a:"x\"`, "a quoted string without an end begins at 3"},
	{`a:"x"y`, "unexpected 'y' at 6"},
	{`a:x"y"`, `unexpected '"' at 4`},
	{`a"b":x`, `unexpected '"' at 2`},
	{`"a"b:x`, "unexpected 'b' at 4"},
	{`a:"\x"`, "unknown escape at 4"},
	{`a:"\u12"`, "unknown escape at 4"},
	{`a:"\u0000"`, "unknown escape at 4"},
	{`a:"\ud800"`, "unknown escape at 4"},
	{`a:"\ud800\ud800"`, "unknown escape at 4"},
	{`a:"\udc00\ud800"`, "unknown escape at 4"},
	{`a:"\`, "unknown escape at 4"},
	{"a:x\x00", `unexpected '\x00' at 4`},
	{"a:x\xff", "not UTF-8 at 4"},
	{"error", `the word "error" without a field at 1 is not supported yet`},
	{"a:1 example.com b:2", `the word "example.com" without a field at 5 is not supported yet`},
	{`a:1 "connection reset"`, "the phrase without a field at 5 is not supported yet"},
	{"-a:1", "negation '-' at 1 is not supported yet"},
	{"a:1 -b:2", "negation '-' at 5 is not supported yet"},
	{"!a:1", "negation '!' at 1 is not supported yet"},
	{"NOT a:1", "the operator NOT at 1 is not supported yet"},
	{"a:1 OR b:2", "the operator OR at 5 is not supported yet"},
	{"a:1 AND b:2", "the operator AND at 5 is not supported yet"},
	{"(a:1 OR b:2)", "the parenthesis at 1 is not supported yet"},
	{"a:(1 OR 2)", "unexpected '(' at 3"},
	{"NOT(a:1)", "operator NOT at 1 is not supported yet"},
	{"status:>=500", "the comparison '>' at 8 is not supported yet"},
	{"status:<500", "the comparison '<' at 8 is not supported yet"},
	{"status:=500", "the comparison '=' at 8 is not supported yet"},
	{"a:[1", "unexpected '[' at 3; put the value in quotes"},
	{"a:{1", "unexpected '{' at 3; put the value in quotes"},
	{"a:!x", "unexpected '!' at 3; put the value in quotes"},
	{"a:~x", "unexpected '~' at 3; put the value in quotes"},
	{"a:*", "the wildcard '*' at 3 is not supported yet"},
	{"a:x*", "the wildcard '*' at 4 is not supported yet"},
	{"a.*:x", "the wildcard '*' at 3 is not supported yet"},
	{"*", "the wildcard '*' at 1 is not supported yet"},
	{strings.Repeat("x", 4097), "got 4097 bytes, takes at most 4096"},
	{strings.Repeat("a:1 ", 65), "more than 64 pairs at 257"},
	{strings.Repeat("a.", 128) + "a:1", "a field of more than 128 names at 1"},
}

func TestBadQueriesAreRefusedWithThePlace(t *testing.T) {
	for _, tt := range badQueries {
		got, err := parse(tt.q)
		if err == nil {
			t.Errorf("parse(%q) = %v, want an error", tt.q, got)
		} else if !strings.Contains(err.Error(), tt.want) {
			t.Errorf("parse(%.80q): got %q, want %q", tt.q, err, tt.want)
		}
	}
}

func TestContainments(t *testing.T) {
	tests := []struct {
		q    string
		want []string
	}{
		{"a:x", []string{`{"a":"x"}`}},
		{"a.b:5", []string{`{"a":{"b":"5"}}`, `{"a":{"b":5}}`}},
		{`a.b:"5"`, []string{`{"a":{"b":"5"}}`}},
		{"a:null", []string{`{"a":"null"}`, `{"a":null}`}},
		{`a:"it's \"x\\"`, []string{`{"a":"it's \"x\\"}`}},
		{"a:1e131071", []string{`{"a":"1e131071"}`, `{"a":1e131071}`}},
		{"a:1e131072", []string{`{"a":"1e131072"}`}}, // numeric can't hold it, so no record does
		{"a:1e-99999999999999", []string{`{"a":"1e-99999999999999"}`}},
	}
	for _, tt := range tests {
		n, err := parse(tt.q)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, containments(n.(all)[0].(equals))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.q, diff)
		}
	}
}

func FuzzQ(f *testing.F) {
	for _, tt := range badQueries {
		f.Add(tt.q)
	}
	f.Add(`a."b c":"x \"\\ \u00e9" d:1e5 e:null`)
	f.Fuzz(func(t *testing.T, q string) {
		n, err := parse(q)
		if err != nil {
			var syntax *syntaxError
			if !errors.As(err, &syntax) || syntax.at < 1 || syntax.at > utf8.RuneCountInString(q)+1 {
				t.Errorf("parse(%q): %#v, want a place in the query", q, err)
			}
			return
		}
		normal := n.String()
		if again, err := parse(normal); err != nil && len(normal) <= maxQueryBytes || err == nil && again.String() != normal {
			t.Errorf("parse(%q) has the normal form %q, which reads as %v, %v", q, normal, again, err)
		}
		s := new(statement)
		s.condition(n)
		for _, arg := range s.args {
			if !json.Valid([]byte(arg.(string))) {
				t.Errorf("parse(%q): argument %q is no JSON", q, arg)
			}
		}
		if strings.ContainsAny(s.sql.String(), `"'`) {
			t.Errorf("parse(%q): SQL %s holds more than placeholders", q, s.sql.String())
		}
	})
}
