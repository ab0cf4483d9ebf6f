package query

import (
	"slices"
	"testing"
	"time"

	"millrace/internal/rfc3339"

	"millrace/internal/timezone"
)

// TestDaysBeginWithTheirFirstMoment walks minute by minute over what zones have done to their clocks, and holds the
// buckets to the dates that time.Time tells.
func TestDaysBeginWithTheirFirstMoment(t *testing.T) {
	date := func(at time.Time) int64 { return at.Unix() / 86400 }
	for _, tt := range []struct{ zone, from, to string }{
		{"UTC", "2025-12-28", "2026-01-05"},
		{"Europe/Berlin", "2026-03-26", "2026-04-02"},
		{"Europe/Berlin", "2026-10-22", "2026-10-29"},
		{"America/New_York", "2026-03-05", "2026-03-12"},
		{"America/New_York", "2026-10-29", "2026-11-05"},
		{"Australia/Lord_Howe", "2026-04-02", "2026-04-08"}, // half an hour
		{"Australia/Lord_Howe", "2026-10-01", "2026-10-07"},
		{"Pacific/Apia", "2011-12-27", "2012-01-03"}, // no December 30
		{"Pacific/Kwajalein", "1993-08-18", "1993-08-25"},
		{"America/Sao_Paulo", "2018-11-01", "2018-11-08"}, // no midnight
		{"America/Sao_Paulo", "2019-02-14", "2019-02-20"}, // from midnight back to 23:00
		{"Asia/Beirut", "2026-03-26", "2026-03-31"},
		{"America/Havana", "2026-10-29", "2026-11-04"},   // two midnights
		{"America/St_Johns", "2010-11-04", "2010-11-10"}, // from 00:01 back to 23:01
		{"Asia/Kathmandu", "2025-12-28", "2026-01-05"},
		{"Pacific/Kiritimati", "2025-12-28", "2026-01-05"},
		{"Pacific/Kiritimati", "1994-12-28", "1995-01-05"},
		{"America/Juneau", "1867-10-15", "1867-10-22"}, // October 18 twice
		{"Europe/Berlin", "2040-12-28", "2041-01-05"},  // a leap year told by a rule: time.ZoneBounds misses its last day
		{"America/New_York", "2040-12-28", "2041-01-05"},
		{"Australia/Sydney", "2048-12-28", "2049-01-05"},
	} {
		zone, ok := timezone.Load(tt.zone)
		if !ok {
			t.Fatalf("no zone %s", tt.zone)
		}
		parse := func(s string) time.Time {
			at, err := time.Parse(time.DateOnly, s)
			if err != nil {
				t.Fatal(err)
			}
			return at
		}
		from, to := parse(tt.from), parse(tt.to)
		local := func(at time.Time) int64 {
			y, m, d := at.In(zone).Date()
			return date(time.Date(y, m, d, 0, 0, 0, 0, time.UTC))
		}
		// A day's first moment is that at which its date, or a later one, is told for the first time.
		var want []int64
		last := local(from)
		for at := from; at.Before(to); at = at.Add(time.Minute) {
			if day := local(at); day > last {
				first := at
				for local(first.Add(-time.Second)) > last {
					first = first.Add(-time.Second)
				}
				last = day
				want = append(want, first.UnixMilli())
			}
		}
		got, ok := bucketEdges(from.UnixMilli(), to.UnixMilli(), dayMillis, zone, maxBuckets)
		if !ok || len(got) < 3 {
			t.Fatalf("%s from %s: got %v, %t", tt.zone, tt.from, got, ok)
		}
		if got[0] > from.UnixMilli() || got[1] <= from.UnixMilli() || got[len(got)-1] < to.UnixMilli() || got[len(got)-2] >= to.UnixMilli() {
			t.Errorf("%s: %s to %s is not within %v", tt.zone, from, to, got)
		}
		inside := got[1:]
		if inside[len(inside)-1] >= to.UnixMilli() {
			inside = inside[:len(inside)-1]
		}
		if !slices.Equal(inside, want) {
			t.Errorf("%s from %s: got\n%v\nwant\n%v", tt.zone, tt.from, inTime(inside, zone), inTime(want, zone))
		}
	}
}

func inTime(all []int64, zone *time.Location) (times []string) {
	for _, ms := range all {
		times = append(times, time.UnixMilli(ms).In(zone).Format(time.RFC3339))
	}
	return times
}

// TestDaysAndWeeksAreTheCalendars has many years of many zones, whose midnights time.Date tells where they are there.
func TestDaysAndWeeksAreTheCalendars(t *testing.T) {
	for _, name := range []string{"UTC", "Europe/Berlin", "Europe/Lisbon", "America/New_York", "America/Santiago", "Australia/Lord_Howe", "Pacific/Apia", "Asia/Tokyo", "Africa/Casablanca", "Antarctica/Troll"} {
		zone, ok := timezone.Load(name)
		if !ok {
			t.Fatalf("no zone %s", name)
		}
		for _, days := range []int64{1, 2, 7, 14, 30} {
			from, to := time.Date(2009, 12, 31, 23, 59, 0, 0, time.UTC), time.Date(2038, 1, 2, 0, 0, 0, 0, time.UTC)
			edges, ok := bucketEdges(from.UnixMilli(), to.UnixMilli(), days*dayMillis, zone, 20_000)
			if !ok || edges[0] > from.UnixMilli() || edges[len(edges)-1] < to.UnixMilli() || edges[1] <= from.UnixMilli() {
				t.Fatalf("%s, %d days: got %d edges", name, days, len(edges))
			}
			for i, edge := range edges {
				at := time.UnixMilli(edge).In(zone)
				y, m, d := at.Date()
				if before := at.Add(-time.Millisecond); before.Day() == d {
					t.Fatalf("%s, %d days: %s is not the beginning of a day", name, days, at)
				}
				number := time.Date(y, m, d, 0, 0, 0, 0, time.UTC).Unix() / 86400
				skipped := name == "Pacific/Apia" && y == 2011 && m == time.December && d == 31 // begins the day before it, too
				if midnight := time.Date(y, m, d, 0, 0, 0, 0, zone); midnight.Day() == d && midnight.Hour() == 0 && !midnight.Equal(at) {
					t.Errorf("%s: the bucket of %s begins at %s", name, midnight, at)
				}
				if days%7 == 0 && at.Weekday() != time.Monday || days%7 != 0 && number%days != 0 && !skipped {
					t.Errorf("%s, %d days: a bucket begins on %s", name, days, at)
				}
				if i > 0 && days == 1 {
					if length := time.Duration(edge-edges[i-1]) * time.Millisecond; length < 22*time.Hour || length > 26*time.Hour {
						t.Errorf("%s: the day before %s has %s", name, at, length)
					}
				}
			}
		}
	}
}

func TestBucketsOfHoursAreCountedInUTC(t *testing.T) {
	zone, _ := timezone.Load("Asia/Kathmandu")
	from := time.Date(2026, 3, 4, 5, 20, 0, 0, time.UTC).UnixMilli()
	got, ok := bucketEdges(from, from+8*time.Hour.Milliseconds(), 6*time.Hour.Milliseconds(), zone, 10)
	want := time.Date(2026, 3, 4, 0, 0, 0, 0, time.UTC).UnixMilli()
	if !ok || len(got) != 4 || got[0] != want || !areEven(got, 6*time.Hour.Milliseconds()) {
		t.Errorf("got %v, %t, want the first at %d", got, ok, want)
	}
	if _, ok := bucketEdges(rfc3339.Earliest, rfc3339.Latest, 1000, zone, maxBuckets); ok {
		t.Error("ten thousand years of seconds are taken")
	}
	if edges, ok := bucketEdges(from, from, 1000, zone, maxBuckets); !ok || len(edges) != 0 {
		t.Errorf("an empty window: got %v, %t", edges, ok)
	}
}
