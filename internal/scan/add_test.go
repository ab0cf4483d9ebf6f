package scan

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRecordsThatComeOneByOneAreThoseOfABody(t *testing.T) {
	sources := []string{
		`{"a":1}`, " {\"a\" : [1, 2]}\r\n", "\ufeff{}", `5`, `{"a":`, `{"a":1}{"b":2}`, ``, `{"a":"` + "\xff" + `"}`, `{"b":"\u0000"}`,
		`{"long":"` + strings.Repeat("x", 200) + `"}`, `{"z":null}`,
	}
	var b Body
	b.KeepVerdicts = true
	b.Begin(Limits{RecordBytes: 100, PieceBytes: 20})
	var got []bool
	at := 0
	for _, src := range sources {
		got = append(got, b.Add([]byte(src), at))
		at += len(src)
	}
	got = append(got, b.Append([]byte(`{"built":true}`)), b.Append(bytes.Repeat([]byte("x"), 101)))
	b.Refuse(Syntax, at)
	b.End()

	want := []bool{true, true, true, false, false, false, false, false, false, false, true, true, false}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("accepted (-want +got):\n%s", diff)
	}
	if want := "{\"a\":1}\n{\"a\":[1,2]}\n{}\n{\"z\":null}\n{\"built\":true}\n"; string(b.NDJSON) != want {
		t.Errorf("got %q, want %q", b.NDJSON, want)
	}
	if diff := cmp.Diff([]Piece{{0, 20, 2}, {20, 49, 3}}, b.Pieces); diff != "" {
		t.Errorf("pieces (-want +got):\n%s", diff)
	}
	if b.Accepted != 5 || b.Rejected != 9 || len(b.Verdicts) != 14 || len(b.Errors) != 9 {
		t.Errorf("%d accepted, %d rejected, %d verdicts, %d errors", b.Accepted, b.Rejected, len(b.Verdicts), len(b.Errors))
	}
	for i, ok := range append(want, false) {
		if b.Verdicts[i].Accepted() != ok {
			t.Errorf("the verdict of record %d: accepted %v, want %v", i, !ok, ok)
		}
	}
	for _, e := range b.Errors {
		if b.Verdicts[e.Index].Reason() != e.Err.Reason {
			t.Errorf("record %d was refused for %v, and its verdict says %v", e.Index, e.Err.Reason, b.Verdicts[e.Index].Reason())
		}
	}
	if e := b.Errors[0]; e.Index != 3 || e.Err.Offset != len(sources[0])+len(sources[1])+len(sources[2]) {
		t.Errorf("the first error is of record %d at byte %d", e.Index, e.Err.Offset)
	}
}

func TestARecordGetsMoreMembers(t *testing.T) {
	for _, tt := range []struct{ members, src, want string }{
		{`"_index":"x"`, `{"a":1}`, `{"_index":"x","a":1}`},
		{`"_index":"x"`, " {\r\n \"a\" : [1, 2] , \"b\":{} }\r\n", `{"_index":"x","a":[1,2],"b":{}}`},
		{`"_index":"x","_id":"1"`, `{ }`, `{"_index":"x","_id":"1"}`},
		{`"_index":"x"`, "\ufeff{}", `{"_index":"x"}`},
		{``, `{"a" :1}`, `{"a":1}`},
		{`"_index":"x"`, `5`, ""},
		{`"_index":"x"`, `{"a":1}{}`, ""},
		{`"_index":"x"`, `{"a":"\u0000"}`, ""},
		{`"_index":"x"`, `{"a":`, ""},
		{`"_index":"x"`, `{`, ""},
		{`"_index":"x"`, `}`, ""},
		{`"_index":"x"`, ``, ""},
		{`"_index":"` + strings.Repeat("x", 81) + `"`, `{"a":12}`, ""}, // 101 bytes
		{`"_index":"` + strings.Repeat("x", 81) + `"`, `{"a":1}`, `{"_index":"` + strings.Repeat("x", 81) + `","a":1}`},
	} {
		var b Body
		b.Begin(Limits{RecordBytes: 100, PieceBytes: 20})
		b.Add([]byte(`{"before":1}`), 0)
		ok := b.AddWith([]byte(tt.members), []byte(tt.src), 1000)
		b.Add([]byte(`{"after":1}`), 0)
		b.End()
		want := "{\"before\":1}\n"
		if tt.want != "" {
			want += tt.want + "\n"
		}
		if want += "{\"after\":1}\n"; string(b.NDJSON) != want || ok != (tt.want != "") || b.Accepted+b.Rejected != 3 {
			t.Errorf("%s with %s: accepted %v, got %q, want %q", tt.src, tt.members, ok, b.NDJSON, want)
		}
		if !ok && (len(b.Errors) != 1 || b.Errors[0].Index != 1 || b.Errors[0].Err.Offset < 1000 || b.Errors[0].Err.Offset > 1000+len(tt.src)) {
			t.Errorf("%s with %s: errors %+v", tt.src, tt.members, b.Errors)
		}
	}
}

// A record with more members is taken if it is taken without them, and is the same record else.
func FuzzAddWith(f *testing.F) {
	f.Add([]byte(` {"a" : [1, 2]} `))
	f.Add([]byte("\ufeff{}"))
	f.Add([]byte(`{"a":"\u0000"}`))
	f.Add([]byte(`{"a":1}}`))
	f.Fuzz(func(t *testing.T, src []byte) {
		const members = `"_index":"x"`
		limits := Limits{RecordBytes: 1 << 20, PieceBytes: 64}
		var plain, with Body
		plain.Begin(limits)
		with.Begin(limits)
		want := plain.Add(src, 7)
		got := with.AddWith([]byte(members), src, 7)
		plain.End()
		with.End()
		if got != want || plain.RejectedBy != with.RejectedBy {
			t.Fatalf("accepted %v, without the members %v; %v %v", got, want, with.Errors, plain.Errors)
		}
		if !got {
			return
		}
		expected := "{" + members + "," + string(plain.NDJSON[1:])
		if string(plain.NDJSON) == "{}\n" {
			expected = "{" + members + "}\n"
		}
		if string(with.NDJSON) != expected {
			t.Errorf("got %q, want %q", with.NDJSON, expected)
		}
	})
}

// There is a verdict for every record, and it agrees with the errors, even if lines are scanned
// again.
func FuzzVerdicts(f *testing.F) {
	f.Add([]byte("{\"a\":1}\n{\"a\":[\n{}\n5\n{\"b\":2}{\"c\":}\n{}"))
	f.Add([]byte(`[{"a":1},5,{"b":"\u0000"}]`))
	f.Fuzz(func(t *testing.T, src []byte) {
		b := Body{KeepVerdicts: true}
		if b.Batch(src, Limits{RecordBytes: 100, PieceBytes: 50}) != nil {
			return
		}
		counts := [NumReasons]int{}
		accepted := 0
		for _, v := range b.Verdicts {
			if v.Accepted() {
				accepted++
			} else {
				counts[v.Reason()]++
			}
		}
		if accepted != b.Accepted || counts != b.RejectedBy {
			t.Errorf("verdicts tell of %d accepted and %v, the body of %d and %v", accepted, counts, b.Accepted, b.RejectedBy)
		}
		for _, e := range b.Errors {
			if v := b.Verdicts[e.Index]; v.Accepted() || v.Reason() != e.Err.Reason {
				t.Errorf("record %d was refused for %v, its verdict is %d", e.Index, e.Err.Reason, v)
			}
		}
	})
}

// Records that are left out because there are too many must not look as if there had been none, however short the others become.
func TestRewrittenRecordsOverflowIfThoseBeforeDid(t *testing.T) {
	limits := Limits{RecordBytes: 100, PieceBytes: 20, TotalBytes: 100}
	var from, to Body
	from.KeepVerdicts = true
	from.Begin(limits)
	for range 20 {
		from.Add([]byte(`{"a":"0123456789"}`), 0)
	}
	from.End()
	to.Rewrite(&from, limits, func(dst, _ []byte) []byte { return append(dst, "{}"...) })
	if !from.Overflow || !to.Overflow {
		t.Errorf("overflow: %v, and %v when rewritten", from.Overflow, to.Overflow)
	}
}
