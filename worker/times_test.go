package worker

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/config"
	"millrace/internal/frame"
	"millrace/internal/testenv"
	"millrace/worker/partition"
)

// storedTime returns the time of the only row of logs.
func storedTime(t *testing.T, db *pgx.Conn) time.Time {
	t.Helper()
	var at time.Time
	if err := db.QueryRow(context.Background(), "SELECT time FROM logs").Scan(&at); err != nil {
		t.Fatal(err)
	}
	return at
}

// TestAReplayFindsTimesAsTheWorkersDo replays a record and a message on a machine that has not the workers' settings.
func TestAReplayFindsTimesAsTheWorkersDo(t *testing.T) {
	ctx := context.Background()
	url := testenv.Schema(t)
	db := workerConn(t, url)
	var c config.EventTime
	if err := config.LoadFrom(map[string]string{"TIME_FIELDS": "started, ended", "TIME_ZONE": "Europe/Berlin"}, &c); err != nil {
		t.Fatal(err)
	}
	k := testKeeper(workerConn(t, url), partition.New(24*time.Hour), 0)
	k.TimeRule = noteOf(c)
	if err := k.Round(ctx); err != nil {
		t.Fatal(err)
	}
	rule, err := c.Rule()
	if err != nil {
		t.Fatal(err)
	}
	exec(t, db, "ALTER TABLE logs ADD CONSTRAINT none CHECK (false) NOT VALID")
	const record = `{"time":"2026-01-01T00:00:00Z","ended":"2026-01-15T10:00:00"}`
	if _, err := store(ctx, db, partition.New(24*time.Hour), rule, []segment{segmentOf(frame.NewBase(), record)}, nil, nil); err != nil {
		t.Fatal(err)
	}
	exec(t, db, "ALTER TABLE logs DROP CONSTRAINT none")
	if done, err := ReplayDead(ctx, db, nil); err != nil || len(done) != 1 || done[0].Rows != 1 {
		t.Fatalf("got %+v, %v", done, err)
	}
	if got, want := storedTime(t, db), time.Date(2026, 1, 15, 9, 0, 0, 0, time.UTC); !got.Equal(want) {
		t.Errorf("got %s, want %s", got, want)
	}
	want(t, db, 1, "SELECT count(*) FROM late_hours WHERE hour = '2026-01-15 09:00+00' AND now() BETWEEN from_at AND to_at")
	want(t, db, 1, "SELECT count(*) FROM late_times WHERE hour = '2026-01-15 09:00+00'")
}

// TestATransactionOfManyHoursNotesThatAllMayHaveChanged counts the notes of a batch whose records are of more hours than are noted one by
// one, and of one that comes again.
func TestATransactionOfManyHoursNotesThatAllMayHaveChanged(t *testing.T) {
	ctx := context.Background()
	db := workerConn(t, testenv.Schema(t))
	p := partition.New(24 * time.Hour)
	records := make([]string, 2*maxNotedHours)
	for i := range records {
		records[i] = `{"time":"` + time.Now().Add(-time.Duration(i+1)*100*time.Hour).UTC().Format(time.RFC3339) + `"}`
	}
	for range 2 {
		if _, err := store(ctx, db, p, testRule, []segment{segmentOf(frame.NewBase(), records...)}, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	want(t, db, 2, "SELECT sum(changes)::int FROM late_times")
	want(t, db, 1, "SELECT count(*) FROM late_times WHERE hour = '-infinity'")
	want(t, db, len(records), "SELECT count(*) FROM late_hours")
}

func TestDelaysAreCountedInTheirBuckets(t *testing.T) {
	var c delayCounts
	for _, delay := range []time.Duration{-time.Second, 0, 50 * time.Millisecond, time.Second, time.Hour + 1, 1000 * 24 * time.Hour} {
		c.observe(delay.Microseconds())
	}
	var twice delayCounts
	twice.add(&c)
	twice.add(&c)
	if c.buckets[0] != 2 || c.buckets[1] != 1 || c.buckets[3] != 1 || c.buckets[len(delayBounds)] != 1 || twice.buckets[0] != 4 || twice.seconds != 2*c.seconds {
		t.Errorf("got %+v, twice %+v", c, twice)
	}
	if c.seconds < 86_400_000+3600 {
		t.Errorf("the sum is %v", c.seconds)
	}
}
