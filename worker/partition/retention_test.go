package partition

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"millrace/internal/testenv"
)

func TestAnIdleSystemKeepsItsLedger(t *testing.T) {
	ctx := context.Background()
	url := testenv.Schema(t)
	db := workerConn(t, url)
	for _, age := range []int{30, 24, 23} { // and nothing since
		put(t, db, New(24*time.Hour), time.Now().AddDate(0, 0, -age))
	}
	k := testKeeper(workerConn(t, url), New(24*time.Hour), 0)
	for range 3 {
		if err := k.Round(ctx); err != nil {
			t.Fatal(err)
		}
	}
	want(t, db, 3, "SELECT count(*) FROM ledger")
	put(t, db, New(24*time.Hour), time.Now())
	if err := k.Round(ctx); err != nil {
		t.Fatal(err)
	}
	want(t, db, 2, "SELECT count(*) FROM ledger") // two of three a round
	if err := k.Round(ctx); err != nil {
		t.Fatal(err)
	}
	want(t, db, 1, "SELECT count(*) FROM ledger")
}

// TestAClockThatIsWrongDropsLittle: by itself it drops nothing, and with the database's at most two partitions a round,
// unless RETENTION was shortened.
func TestAClockThatIsWrongDropsLittle(t *testing.T) {
	ctx := context.Background()
	url := testenv.Schema(t)
	db := workerConn(t, url)
	for age := range 8 {
		put(t, db, New(24*time.Hour), time.Now().AddDate(0, 0, -age))
	}
	var log bytes.Buffer
	k := testKeeper(workerConn(t, url), New(24*time.Hour), 20*24*time.Hour)
	k.Log = slog.New(slog.NewTextHandler(&log, nil))
	k.Now = func() time.Time { return time.Now().AddDate(1, 0, 0) }
	round := func(left int) {
		t.Helper()
		if err := k.Round(ctx); err != nil {
			t.Fatal(err)
		}
		want(t, db, left, allLogs)
	}
	round(8)
	if got := count(t, db, "SELECT count(*) FROM settings WHERE name = 'retention' AND value = '480h0m0s'"); got != 1 {
		t.Error("the retention was not noted")
	}
	// As if both clocks were eighteen days ahead: the retention is not shorter than was noted.
	exec(t, db, "UPDATE settings SET value = '36h0m0s' WHERE name = 'retention'")
	k.Retention = 36 * time.Hour
	round(6)
	if !strings.Contains(log.String(), "more partitions are due") {
		t.Errorf("nobody is told: %s", log.String())
	}
	round(4)
	exec(t, db, "UPDATE settings SET value = '37h0m0s' WHERE name = 'retention'")
	if err := k.Round(ctx); err != nil {
		t.Fatal(err)
	}
	if got := count(t, db, allLogs); got > 3 { // today, yesterday, and as the hour is the day before
		t.Errorf("%d rows are left after RETENTION was shortened", got)
	}
}

// TestAMarkIsTakenBackWhenRetentionGrows: somebody may detach the partition then, and keep it.
func TestAMarkIsTakenBackWhenRetentionGrows(t *testing.T) {
	ctx := context.Background()
	db := workerConn(t, testenv.Schema(t))
	p := New(24 * time.Hour)
	put(t, db, p, at("2026-03-01 12:00"))
	exec(t, db, "COMMENT ON TABLE logs_20260301 IS '"+dropMark+"2026-03-01T00:00:00Z/2026-03-02T00:00:00Z'") // as a leader that died has left it
	k := testKeeper(db, p, 20*24*time.Hour)
	k.Now = func() time.Time { return at("2026-03-10 00:00") }
	if err := k.Round(ctx); err != nil {
		t.Fatal(err)
	}
	exec(t, db, "ALTER TABLE logs DETACH PARTITION logs_20260301")
	k.Retention = time.Hour
	if err := k.Round(ctx); err != nil {
		t.Fatal(err)
	}
	want(t, db, 1, "SELECT count(*) FROM logs_20260301")
}
