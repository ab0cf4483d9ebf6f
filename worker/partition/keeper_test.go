package partition

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"millrace/internal/pg"
	"millrace/internal/testenv"
)

func TestATableThatSomebodyDetachedKeepsItsNameAndRows(t *testing.T) {
	db := workerConn(t, testenv.Schema(t))
	ctx := context.Background()
	p := New(24 * time.Hour)
	put(t, db, p, at("2026-03-01 12:00"))
	exec(t, db, "ALTER TABLE logs DETACH PARTITION logs_20260301")
	p.MarkStale()
	put(t, db, p, at("2026-03-01 12:00"))
	k := testKeeper(db, p, time.Hour)
	if err := k.Round(ctx); err != nil {
		t.Fatal(err)
	}
	if got := count(t, db, "SELECT count(*) FROM logs_20260301"); got != 1 {
		t.Errorf("the detached table has %d rows, want 1", got)
	}
}

func TestTheKeeperLooksAfterPartitions(t *testing.T) {
	url := testenv.Schema(t)
	db := workerConn(t, url)
	ctx := context.Background()
	p := New(time.Hour)
	now := time.Now().UTC()
	k := testKeeper(db, p, 72*time.Hour)
	k.Now = func() time.Time { return now } // stands: how far they reach shrinks from a round to the next

	for _, age := range []time.Duration{30 * 24 * time.Hour, 5 * time.Hour, 0} {
		put(t, db, p, now.Add(-age))
	}
	exec(t, db, "CREATE TABLE logs_archive PARTITION OF logs FOR VALUES FROM ('2020-01-01') TO ('2021-01-01')")
	exec(t, db, "INSERT INTO logs VALUES (gen_random_uuid(), '2020-05-05', '{}')")
	exec(t, db, "DELETE FROM late_changes")
	closed := "logs_" + now.Add(-5*time.Hour).Format("20060102_15") + "00"
	exec(t, db, "CREATE INDEX "+closed+"_data_idx ON "+closed+" USING gin (data jsonb_path_ops)")
	exec(t, db, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = '"+closed+"_data_idx'::regclass") // as an interrupted build leaves it

	x := testIndexer(workerConn(t, url), p)
	for range 2 { // the second round finds nothing to do
		if err := errors.Join(k.Round(ctx), x.Round(ctx)); err != nil {
			t.Fatal(err)
		}
	}
	if got := p.Ahead(now); got < 2*time.Hour {
		t.Errorf("ahead: got %v, want at least two intervals", got)
	}
	if got := count(t, db, allLogs); got != 3 {
		t.Errorf("rows: got %d, want the archive's and the two young ones", got)
	}
	old := now.Add(-30 * 24 * time.Hour)
	if got := count(t, db, "SELECT count(*) FROM late_changes WHERE hour = $1", old.Truncate(time.Hour)); got != 1 {
		t.Errorf("late changes of the dropped hour: got %d, want 1", got)
	}
	if got := count(t, db, "SELECT count(*) FROM pg_class WHERE relname = $1", "logs_"+old.Format("20060102_15")+"00"); got != 0 {
		t.Error("the old partition is still there")
	}
	if got := count(t, db, "SELECT count(*) FROM pg_class WHERE relname = $1", "ledger_"+old.Format("20060102")); got != 0 {
		t.Error("the ledger's old partition is still there")
	}
	if got := count(t, db, "SELECT count(*) FROM ledger"); got != 2 {
		t.Errorf("ledger: got %d rows, want 2", got)
	}
	if got := count(t, db, "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = indexrelid WHERE relname = $1 AND indisvalid", closed+"_data_idx"); got != 1 {
		t.Error("the closed partition has no valid index")
	}
	if got := count(t, db, "SELECT count(*) FROM pg_class WHERE relname ~ '^logs.*_data_idx'"); got != 1 {
		t.Errorf("got %d indexes on data, want 1: the open partitions have none", got)
	}

	second := testKeeper(workerConn(t, url), New(time.Hour), 0)
	if err := second.Round(ctx); err != nil || second.leader.leads {
		t.Errorf("got a second leader, or %v", err)
	}
	if got := second.Partitions.Ahead(now); got < 2*time.Hour {
		t.Errorf("ahead, told by a follower: got %v", got)
	}
}

// TestADetachThatWasCutShortIsFinished: a long SELECT keeps it from ending.
func TestADetachThatWasCutShortIsFinished(t *testing.T) {
	url := testenv.Schema(t)
	db, reader := workerConn(t, url), testenv.Connect(t, url)
	ctx := context.Background()
	p := New(24 * time.Hour)
	put(t, db, p, time.Now(), time.Now().AddDate(0, 0, -30))
	exec(t, reader, "BEGIN")
	count(t, reader, allLogs)
	k := testKeeper(db, p, 24*time.Hour)
	interrupted, interrupt := context.WithCancel(ctx)
	defer interrupt()
	tidied := make(chan error, 1)
	go func() { tidied <- k.Round(interrupted) }()
	other := testenv.Connect(t, url)
	testenv.Eventually(t, 5*time.Second, "the detach waits", func() bool {
		return count(t, other, "SELECT count(*) FROM pg_inherits WHERE inhdetachpending") == 1
	})
	interrupt()
	if err := <-tidied; err == nil {
		t.Fatal("the detach did not wait")
	}
	exec(t, reader, "COMMIT")
	<-db.PgConn().CleanupDone()
	k = testKeeper(workerConn(t, url), p, 24*time.Hour)
	testenv.Eventually(t, 5*time.Second, "it is finished", func() bool {
		return k.Round(ctx) == nil && count(t, reader, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'logs'::regclass AND inhdetachpending") == 0
	})
	want(t, reader, 1, allLogs)
	if got := count(t, reader, "SELECT count(*) FROM late_changes"); got < 24 {
		t.Errorf("late changes: got %d, want the hours of the day that was dropped", got)
	}
}

// TestAStepThatFailsStopsNoOther: no partition can be made, and old ones are dropped all the same.
func TestAStepThatFailsStopsNoOther(t *testing.T) {
	db := workerConn(t, testenv.Schema(t))
	p := New(24 * time.Hour)
	put(t, db, p, time.Now().AddDate(0, 0, -30))
	exec(t, db, "DROP FUNCTION millrace_add_partition")
	err := testKeeper(db, p, 24*time.Hour).Round(context.Background())
	if err == nil || strings.Count(err.Error(), "make ahead: partition of ") != 2 {
		t.Errorf("got %v, want an error for both tables", err)
	}
	if pg.CodeOf(err) != "42883" { // undefined_function
		t.Errorf("got %v, want the server's error", err)
	}
	want(t, db, 0, allLogs)
}
