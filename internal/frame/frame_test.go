package frame

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
)

func TestIDCountsInTheLow62BitsAlone(t *testing.T) {
	tests := []struct {
		base string
		k    int
		want string
	}{
		{"01890a5d-ac96-774b-bcce-b302099a8057", 0, "01890a5d-ac96-774b-bcce-b302099a8057"},
		{"01890a5d-ac96-774b-bcce-b302099a8057", 1, "01890a5d-ac96-774b-bcce-b302099a8058"},
		{"01890a5d-ac96-774b-bcce-b302099a80ff", 1, "01890a5d-ac96-774b-bcce-b302099a8100"},
		{"01890a5d-ac96-774b-bfff-ffffffffffff", 1, "01890a5d-ac96-774b-8000-000000000000"}, // wraps, variant kept
		{"01890a5d-ac96-774b-bfff-ffffffffffff", 3, "01890a5d-ac96-774b-8000-000000000002"},
	}
	for _, tt := range tests {
		got := ID(uuid.MustParse(tt.base), tt.k)
		if got.String() != tt.want {
			t.Errorf("ID(%s, %d) = %s, want %s", tt.base, tt.k, got, tt.want)
		}
		if !IsV7(got) || Millis(got) != Millis(uuid.MustParse(tt.base)) {
			t.Errorf("ID(%s, %d) = %s changed the version, the variant or the time", tt.base, tt.k, got)
		}
	}
}

func TestNewBaseIsAV7OfNow(t *testing.T) {
	before := time.Now().Add(-time.Millisecond)
	id := NewBase()
	if !IsV7(id) {
		t.Errorf("NewBase() = %s, not a UUIDv7", id)
	}
	if at := Time(id); at.Before(before) || at.After(time.Now().Add(time.Millisecond)) {
		t.Errorf("Time(NewBase()) = %v, now is %v", at, time.Now())
	}
}

func TestParseGivesBackWhatHeadersTook(t *testing.T) {
	a, b := NewBase(), NewBase()
	body := []byte("{\"a\":1}\n{\"a\":2}\n{\"b\":1}\n")
	got, err := Parse(nil, Headers([]Segment{{a, 2}, {b, 1}}), body)
	if err != nil {
		t.Fatal(err)
	}
	want := []Span{
		{Segment{a, 2}, []byte("{\"a\":1}\n{\"a\":2}\n")},
		{Segment{b, 1}, []byte("{\"b\":1}\n")},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Parse (-want +got):\n%s", diff)
	}
}

func TestParseNamesWhatIsWrong(t *testing.T) {
	base := NewBase()
	one := Headers([]Segment{{base, 1}})
	tests := []struct {
		name    string
		headers map[string]any
		body    string
		want    string
	}{
		{"no header", nil, "{}\n", "is missing"},
		{"header of another type", map[string]any{header: "x"}, "{}\n", "not a byte array"},
		{"empty header", map[string]any{header: []byte{}}, "{}\n", "0 bytes"},
		{"half a segment", map[string]any{header: make([]byte, 30)}, "{}\n", "30 bytes"},
		{"a base that is no v7", Headers([]Segment{{uuid.UUID{}, 1}}), "{}\n", "not a UUIDv7"},
		{"a count of zero", Headers([]Segment{{base, 0}}), "", "no records"},
		{"fewer records than told", Headers([]Segment{{base, 3}}), "{}\n{}\n", "should have 3 records, the body ends after 2"},
		{"more records than told", one, "{}\n{}\n", "3 bytes follow"},
		{"no newline at the end", one, "{}", "ends after 0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse(nil, tt.headers, []byte(tt.body))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	base := NewBase()
	f.Add(Headers([]Segment{{base, 1}, {base, 2}})[header].([]byte), []byte("{}\n{}\n{}\n"))
	f.Add([]byte("short"), []byte("{}"))
	f.Fuzz(func(t *testing.T, segments, body []byte) {
		spans, err := Parse(nil, map[string]any{header: segments}, body)
		if err != nil {
			return
		}
		var joined []byte
		for _, s := range spans {
			joined = append(joined, s.Body...)
			if n := strings.Count(string(s.Body), "\n"); n != s.Records {
				t.Errorf("segment %s has %d lines, want %d", s.Base, n, s.Records)
			}
		}
		if string(joined) != string(body) {
			t.Errorf("the spans hold %q, the body %q", joined, body)
		}
	})
}
