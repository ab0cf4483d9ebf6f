package partition

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/eventtime"
	"millrace/internal/testenv"
)

// TestTheTablesIndexGivesWayToThosePartitionsHave begins with what a database of before event times has.
func TestTheTablesIndexGivesWayToThosePartitionsHave(t *testing.T) {
	ctx := context.Background()
	url := testenv.Schema(t)
	db := workerConn(t, url)
	exec(t, db, "CREATE INDEX logs_inserted_at_idx ON logs (inserted_at)")
	for _, day := range []string{"20260301", "20260302"} { // as they were made before
		from := day[:4] + "-" + day[4:6] + "-" + day[6:]
		exec(t, db, "CREATE TABLE logs_"+day+" PARTITION OF logs FOR VALUES FROM ('"+from+"') TO ('"+from+" 24:00')")
		exec(t, db, "INSERT INTO logs SELECT gen_random_uuid(), '"+from+"'::timestamptz + n * interval '1 s', '{}' FROM generate_series(1, 1000) n")
	}
	p := New(24 * time.Hour)
	put(t, db, p, time.Now())
	byItself := func(name string) int {
		t.Helper()
		return count(t, db, "SELECT count(*) FROM pg_indexes WHERE tablename = $1 AND indexdef ~ 'USING btree \\(inserted_at\\)'", name)
	}
	if byItself("logs_20260301") != 1 || byItself("logs_"+time.Now().UTC().Format("20060102")) != 1 {
		t.Fatal("the partitions do not have the table's index")
	}
	x := testIndexer(workerConn(t, url), p)
	x.Closed = false
	for range 2 { // the second round finds nothing to do
		if err := x.Round(ctx); err != nil {
			t.Fatal(err)
		}
	}
	want(t, db, 0, "SELECT count(*) FROM pg_class WHERE oid = to_regclass('logs_inserted_at_idx')")
	for name, btrees := range map[string]int{"logs_20260301": 1, "logs_20260302": 1, "logs_" + time.Now().UTC().Format("20060102"): 0} {
		if got := byItself(name); got != btrees {
			t.Errorf("%s has %d btrees on inserted_at, want %d", name, got, btrees)
		}
	}
	want(t, db, 1, "SELECT count(*) FROM pg_indexes WHERE tablename = $1 AND indexdef ~ 'USING brin \\(inserted_at\\)'", "logs_"+time.Now().UTC().Format("20060102"))
	want(t, db, 2001, allLogs)
}

// TestAPartitionOfBeforeFindsItsLateRowsByAnIndex asks as a search does, before and after the indexer's round.
func TestAPartitionOfBeforeFindsItsLateRowsByAnIndex(t *testing.T) {
	ctx := context.Background()
	db := workerConn(t, testenv.Schema(t))
	p := New(24 * time.Hour)
	put(t, db, p, time.Now())
	open := "logs_" + time.Now().UTC().Format("20060102")
	exec(t, db, "CREATE INDEX logs_inserted_at_idx ON logs (inserted_at); DROP INDEX "+open+"_late_idx")
	exec(t, db, "CREATE TABLE logs_20260301 PARTITION OF logs FOR VALUES FROM ('2026-03-01') TO ('2026-03-02')")
	exec(t, db, "INSERT INTO logs SELECT gen_random_uuid(), '2026-03-01'::timestamptz + n * interval '1 s', '{}' FROM generate_series(1, 10000) n; ANALYZE logs")
	plan := func() string {
		t.Helper()
		rows, err := db.Query(ctx, `EXPLAIN SELECT id FROM logs WHERE time >= '2026-03-01 02:00+00' AND time < '2026-03-01 02:00:02+00' AND time <> `+
			eventtime.NoTimeSQL+" AND "+eventtime.LateSQL+" AND inserted_at >= '2026-03-01 01:00+00' AND inserted_at < '2026-03-01 03:00:02+00'")
		if err != nil {
			t.Fatal(err)
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(lines, "\n")
	}
	const index = "logs_20260301_late_idx"
	if got := plan(); strings.Contains(got, index) {
		t.Fatalf("the index is there before it was built:\n%s", got)
	}
	x := testIndexer(db, p)
	x.Closed = false
	calm := false
	x.Calm = func(context.Context) bool { return calm }
	const built = "SELECT count(*) FROM pg_class WHERE relname = ANY ($1) AND relnamespace = current_schema()::regnamespace"
	for _, step := range []struct{ calm bool }{{false}, {true}, {true}} {
		calm = step.calm
		if err := x.Round(ctx); err != nil {
			t.Fatal(err)
		}
		want(t, db, 1, built, []string{open + "_late_idx"}) // the open partition does not wait
		indexes := 0
		if calm {
			indexes = 1
		}
		want(t, db, indexes, built, []string{index})
	}
	if got := plan(); !strings.Contains(got, index) {
		t.Errorf("the index is not used:\n%s", got)
	}
}

// TestATablesIndexThatCannotBeDroppedHoldsNothingUp has a reader that does not end.
func TestATablesIndexThatCannotBeDroppedHoldsNothingUp(t *testing.T) {
	ctx := context.Background()
	url := testenv.Schema(t)
	db := workerConn(t, url)
	exec(t, db, "CREATE INDEX logs_inserted_at_idx ON logs (inserted_at)")
	p := New(24 * time.Hour)
	put(t, db, p, time.Now(), time.Now().Add(-72*time.Hour))
	reader := workerConn(t, url)
	exec(t, reader, "BEGIN; SELECT count(*) FROM ONLY logs")
	x := testIndexer(db, p)
	if err := x.Round(ctx); err == nil || !strings.Contains(err.Error(), "lock timeout") {
		t.Fatalf("got %v, want the end of a wait for the lock", err)
	}
	want(t, db, 1, "SELECT count(*) FROM pg_class WHERE relname = $1 AND relnamespace = current_schema()::regnamespace",
		"logs_"+time.Now().Add(-72*time.Hour).UTC().Format("20060102")+"_data_idx")
}
