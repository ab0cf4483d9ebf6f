package rfc3339

import (
	"testing"
	"time"
)

func TestTimesAreThoseOfTheRFC(t *testing.T) {
	for _, tt := range []struct{ text, want, fraction string }{
		{"2026-03-04T12:00:00Z", "2026-03-04T12:00:00Z", ""},
		{"2026-03-04t12:00:00.1234567890z", "2026-03-04T12:00:00Z", "1234567890"},
		{"2026-03-04T12:00:00-00:00", "2026-03-04T12:00:00Z", ""},
		{"2026-03-04T12:00:00+23:59", "2026-03-03T12:01:00Z", ""},
		{"2016-12-31T23:59:60.5Z", "2017-01-01T00:00:00Z", "5"},
		{"2024-02-29T00:00:00Z", "2024-02-29T00:00:00Z", ""},
		{"0000-01-01T00:00:00Z", "0000-01-01T00:00:00Z", ""},
		{"9999-12-31T23:59:59Z", "9999-12-31T23:59:59Z", ""},
	} {
		at, fraction, ok := Parse(tt.text)
		if got := at.Format(time.RFC3339); !ok || got != tt.want || fraction != tt.fraction {
			t.Errorf("%s: got %s, fraction %q, %t; want %s, %q", tt.text, got, fraction, ok, tt.want, tt.fraction)
		}
	}
	for _, text := range []string{
		"", "2026-03-04", "2026-03-04T12:00:00", "2026-03-04 12:00:00Z", "2026-03-04T12:00:00,5Z", "2026-03-04T12:00:00.Z", "2026-03-04T24:00:00Z",
		"2026-03-04T12:60:00Z", "2026-03-04T12:00:61Z", "2026-03-04T12:00:00+24:00", "2026-03-04T12:00:00+01:60", "2026-03-04T12:00:00+0100",
		"2026-02-30T12:00:00Z", "2100-02-29T12:00:00Z", "2026-13-01T12:00:00Z", "2026-00-01T12:00:00Z", "2026-03-04T12:00:00ZZ",
	} {
		if at, _, ok := Parse(text); ok {
			t.Errorf("%s: taken as %s", text, at)
		}
	}
}

func TestEarliestAndLatestAreTheEndsOfFourDigits(t *testing.T) {
	for text, want := range map[string]int64{"0000-01-01T00:00:00Z": Earliest, "9999-12-31T23:59:59Z": Latest - 999} {
		if at, _, ok := Parse(text); !ok || at.UnixMilli() != want {
			t.Errorf("%s: got %d, %t, want %d", text, at.UnixMilli(), ok, want)
		}
	}
}

// FuzzParse compares Parse with time.Parse, which takes nearly all of what Parse takes.
func FuzzParse(f *testing.F) {
	f.Add("2026-03-04T12:00:00.5+01:00")
	f.Add("2016-12-31T23:59:60Z")
	f.Fuzz(func(t *testing.T, text string) {
		at, fraction, ok := Parse(text)
		theirs, err := time.Parse(time.RFC3339, text)
		if ok && err == nil && len(fraction) <= 9 && !at.Equal(theirs.Truncate(time.Second)) {
			t.Errorf("%q: got %s, time.Parse has %s", text, at, theirs)
		}
	})
}
