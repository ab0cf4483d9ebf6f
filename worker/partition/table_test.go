package partition

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"millrace/internal/frame"
	"millrace/internal/testenv"
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
		for _, name := range logs.names(at(from)) {
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
	if got := logs.names(at("2026-03-01 00:00"))[0]; got != "logs_20260301" {
		t.Errorf("got %s", got)
	}
	if got := logs.names(at("2026-03-01 07:00"))[0]; got != "logs_20260301_0700" {
		t.Errorf("got %s", got)
	}
}

// TestTheDatabaseTakesTheSameNames: the function that makes partitions has a pattern of its own.
func TestTheDatabaseTakesTheSameNames(t *testing.T) {
	db := workerConn(t, testenv.Schema(t))
	ctx := context.Background()
	logs := table{name: "logs", interval: 24 * time.Hour}
	names := []string{"logs_archive", "logs_20260301_keep", "xlogs_20260301", "ledger_20260301", "logs_2026030", "logs_20260301_0700_", "logs_20260301_0700_22"}
	for _, name := range append(names, logs.names(at("2026-03-01 00:00"))...) {
		tx, err := db.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		err = add(ctx, tx, logs, name, between("2026-03-01 00:00", "2026-03-02 00:00"))
		if err != nil && !strings.Contains(err.Error(), "is not the name of a partition") {
			t.Errorf("%s: %v", name, err)
		}
		if taken := err == nil; taken != logs.ownName(name) {
			t.Errorf("%s: the database takes it: %v", name, taken)
		}
		if err := tx.Rollback(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBoundsOfTheLedgerAreIDsOfTheirTime(t *testing.T) {
	ledger := table{name: "ledger", interval: ledgerInterval}
	day := at("2026-03-01 00:00")
	first, last := frame.BaseAt(day), frame.BaseAt(day.Add(-time.Millisecond))
	bound, err := uuid.Parse(ledger.bound(day))
	if err != nil || first.String() < bound.String() || last.String() >= bound.String() {
		t.Errorf("got %s, %v between %s and %s", bound, err, last, first)
	}
	if back, err := ledger.parseBound(bound.String()); err != nil || !back.Equal(day) {
		t.Errorf("got %v, %v, want %v", back, err, day)
	}
}
