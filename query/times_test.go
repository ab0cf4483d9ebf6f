package query

import (
	"testing"
	"time"

	"millrace/internal/rfc3339"
)

var noon = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

func TestTimesAreReadInEveryForm(t *testing.T) {
	tests := []struct {
		text     string
		want     string
		relative bool
	}{
		{"2026-03-04T11:00:00Z", "2026-03-04T11:00:00.000Z", false},
		{"2026-03-04T11:00:00.25Z", "2026-03-04T11:00:00.250Z", false},
		{"2026-03-04T11:00:00.123456789Z", "2026-03-04T11:00:00.124Z", false}, // up: nothing lies between
		{"2026-03-04T11:00:00.999999999Z", "2026-03-04T11:00:01.000Z", false},
		{"2026-03-04T13:30:00+02:30", "2026-03-04T11:00:00.000Z", false},
		{"2026-03-04T13:30:00 02:30", "2026-03-04T11:00:00.000Z", false}, // + in a URL
		{"1970-01-01T00:00:00.0001Z", "1970-01-01T00:00:00.001Z", false},
		{"1969-12-31T23:59:59.9985Z", "1969-12-31T23:59:59.999Z", false},
		{"0000-01-01T00:00:00Z", "0000-01-01T00:00:00.000Z", false},
		{"9999-12-31T23:59:59.999Z", "9999-12-31T23:59:59.999Z", false},
		{"2026-03-04t11:00:00z", "2026-03-04T11:00:00.000Z", false},
		{"2026-03-04t13:30:00.5+02:30", "2026-03-04T11:00:00.500Z", false},
		{"2026-03-04T11:00:00.123000000000Z", "2026-03-04T11:00:00.123Z", false},
		{"2026-03-04T11:00:00.123000000001Z", "2026-03-04T11:00:00.124Z", false},
		{"2026-03-04T11:00:00-00:00", "2026-03-04T11:00:00.000Z", false},
		{"2026-03-04T11:00:00+23:59", "2026-03-03T11:01:00.000Z", false},
		{"2016-12-31T23:59:60Z", "2017-01-01T00:00:00.000Z", false}, // a leap second
		{"2016-12-31T15:59:60.25-08:00", "2017-01-01T00:00:00.250Z", false},
		{"0000-02-29T00:00:00Z", "0000-02-29T00:00:00.000Z", false},
		{"0", "1970-01-01T00:00:00.000Z", false},
		{"1772625600", "2026-03-04T12:00:00.000Z", false},
		{"1772625600123", "2026-03-04T12:00:00.123Z", false},
		{"99999999999", "5138-11-16T09:46:39.000Z", false},
		{"100000000000", "1973-03-03T09:46:40.000Z", false},
		{"now", "2026-03-04T12:00:00.000Z", true},
		{"now-90s", "2026-03-04T11:58:30.000Z", true},
		{"now-15m", "2026-03-04T11:45:00.000Z", true},
		{"now-0h", "2026-03-04T12:00:00.000Z", true},
		{"now-36h", "2026-03-03T00:00:00.000Z", true},
		{"now-4d", "2026-02-28T12:00:00.000Z", true},
		{"now-2w", "2026-02-18T12:00:00.000Z", true},
		{"now-1h30m", "2026-03-04T10:30:00.000Z", true},
		{"now-1d+2h", "2026-03-03T14:00:00.000Z", true},
		{"now/d", "2026-03-04T00:00:00.000Z", true},
		{"now-1w/w", "2026-02-23T00:00:00.000Z", true},
		{"2026-03-04", "2026-03-04T00:00:00.000Z", false},
	}
	for _, tt := range tests {
		got, ok := parseTime(tt.text, false, noon)
		if text := time.UnixMilli(got.ms).UTC().Format(timeFormat); !ok || text != tt.want || got.relative != tt.relative {
			t.Errorf("parseTime(%q) = %s, relative %t, ok %t, want %s, %t", tt.text, text, got.relative, ok, tt.want, tt.relative)
		}
	}
}

var notTimes = []string{
	"", " ", "yesterday", "2026-02-30", "now/y", "now-1", "now1h", "now-h", "now-1h/", "2026-03-04T11:00:00", "2026-13-04T11:00:00Z", "2026-02-30T11:00:00Z",
	"2026-03-04 11:00:00Z", "-1", "+1", "1.5", "1e9", "1_000", "0x10", "253402300800000", "99999999999999999999",
	"2026-03-04T11:00:00,5Z", "2026-03-04T11:00:00.Z", "2026-03-04T11:00:61Z", "2026-03-04T24:00:00Z", "2026-03-04T11:60:00Z", "2026-03-04T11:00Z", "20260304T110000Z",
	"2026-03-04T11:00:00+24:00", "2026-03-04T11:00:00+01:60", "2026-03-04T11:00:00+0100", "2026-03-04T11:00:00+01", "2026-3-04T11:00:00Z", "2026-00-04T11:00:00Z",
	"2026-01-00T11:00:00Z", "2100-02-29T11:00:00Z", "2026-03-04T11:00:00ZZ", "2026-03-04T11:00:00z ", "+2026-03-04T11:00:00Z", "9999-12-31T23:59:60Z",
	"9999-12-31T23:59:59.9999Z", "NOW", "now ", "now-", "now-m", "now-15", "now-1.5h", "now--1h", "now 15m", "now-15M", "now-15y",
	"now-36501d", "now-9223372036854775807w", "now-99999999999999999999s", "now-1é", "\x00", "2026-03-04T11:00:00Z\x00",
	"٣", "\xff",
}

func TestWhatIsNoTimeIsRefused(t *testing.T) {
	for _, text := range notTimes {
		if got, ok := parseTime(text, false, noon); ok {
			t.Errorf("parseTime(%q) = %+v, want a refusal", text, got)
		}
	}
}

func TestTimesWrittenDifferentlyHaveOneText(t *testing.T) {
	for _, texts := range [][]string{
		{"2026-03-04T12:00:00Z", "2026-03-04T13:00:00+01:00", "2026-03-04T12:00:00.000Z", "1772625600", "1772625600000"},
	} {
		for _, text := range texts {
			a, _ := parseTime(texts[0], false, noon)
			if b, ok := parseTime(text, false, noon); !ok || a != b {
				t.Errorf("%q is %+v, %q is %+v, want the same", texts[0], a, text, b)
			}
		}
	}
}

func FuzzTime(f *testing.F) {
	for _, text := range append(notTimes, "2026-03-04T13:30:00 02:30", "1772625600", "now-15m", "now") {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, ok := parseTime(text, false, noon)
		if !ok {
			return
		}
		if got.ms < rfc3339.Earliest || got.ms > rfc3339.Latest {
			t.Errorf("parseTime(%q) = %d, outside of the years 0 to 9999", text, got.ms)
		}
		again, ok := parseTime(time.UnixMilli(got.ms).UTC().Format(timeFormat), false, noon)
		if !ok || again.ms != got.ms {
			t.Errorf("parseTime(%q) = %d, written out and read again %d (%t)", text, got.ms, again.ms, ok)
		}
	})
}
