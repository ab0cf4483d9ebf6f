package partition

import (
	"testing"
	"time"

	"github.com/google/uuid"
)

func at(s string) time.Time {
	t, err := time.Parse("2006-01-02 15:04", s)
	if err != nil {
		panic(err)
	}
	return t
}

func between(from, to string) timeRange { return timeRange{at(from), at(to)} }

func TestASlotIsAnIntervalLessWhatExists(t *testing.T) {
	existing := []partition{
		{timeRange: between("2026-03-01 00:00", "2026-03-02 00:00")},
		{timeRange: between("2026-03-02 05:00", "2026-03-02 06:00")},
		{timeRange: between("2026-03-02 20:00", "2026-03-02 21:00")},
	}
	cases := []struct {
		at       string
		interval time.Duration
		want     timeRange
	}{
		{"2026-02-28 12:00", 24 * time.Hour, between("2026-02-28 00:00", "2026-03-01 00:00")},
		{"2026-03-02 00:00", 24 * time.Hour, between("2026-03-02 00:00", "2026-03-02 05:00")},
		{"2026-03-02 06:00", 24 * time.Hour, between("2026-03-02 06:00", "2026-03-02 20:00")},
		{"2026-03-02 23:59", 24 * time.Hour, between("2026-03-02 21:00", "2026-03-03 00:00")},
		{"2026-03-02 06:30", time.Hour, between("2026-03-02 06:00", "2026-03-02 07:00")},
	}
	for _, c := range cases {
		if got := slot(at(c.at), c.interval, existing); got != c.want {
			t.Errorf("%s, %v: got %v, want %v", c.at, c.interval, got, c.want)
		}
	}
}

func TestOnlyOwnNamesAreRecognised(t *testing.T) {
	logs := table{name: "logs", interval: 24 * time.Hour}
	for _, from := range []string{"2026-03-01 00:00", "2026-03-01 07:00"} {
		for _, name := range partitionNames(logs, at(from)) {
			if !logs.ownName(name) {
				t.Errorf("%s is not recognised", name)
			}
		}
	}
	for _, name := range []string{"logs_archive", "logs_20260301_keep", "xlogs_20260301", "ledger_20260301", "logs_2026030"} {
		if logs.ownName(name) {
			t.Errorf("%s is recognised", name)
		}
	}
	if got := partitionNames(logs, at("2026-03-01 00:00"))[0]; got != "logs_20260301" {
		t.Errorf("got %s", got)
	}
	if got := partitionNames(logs, at("2026-03-01 07:00"))[0]; got != "logs_20260301_0700" {
		t.Errorf("got %s", got)
	}
}

func TestBoundsOfTheLedgerAreIDsOfTheirTime(t *testing.T) {
	ledger := table{name: "ledger", interval: ledgerInterval}
	day := at("2026-03-01 00:00")
	first, last := baseAt(day), baseAt(day.Add(-time.Millisecond))
	bound, err := uuid.Parse(ledger.bound(day))
	if err != nil || first.String() < bound.String() || last.String() >= bound.String() {
		t.Errorf("got %s, %v between %s and %s", bound, err, last, first)
	}
	if back, err := ledger.parseBound(bound.String()); err != nil || !back.Equal(day) {
		t.Errorf("got %v, %v, want %v", back, err, day)
	}
}
