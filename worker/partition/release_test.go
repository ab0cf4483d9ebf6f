package partition

import (
	"context"
	"testing"
	"time"

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
