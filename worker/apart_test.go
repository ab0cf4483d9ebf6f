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

// TestARecordWithoutAPartitionHarmsNoNeighbour: each case keeps one late record's partition from being made. Its neighbours are
// stored, it becomes a dead letter, and a redelivery adds nothing. Once the obstacle is gone the letter is stored.
func TestARecordWithoutAPartitionHarmsNoNeighbour(t *testing.T) {
	late := frame.BaseAt(at("2026-03-01 12:00"))
	cases := []struct {
		name     string
		obstruct func(t *testing.T, url config.PostgresURL, db *pgx.Conn) (clear func())
	}{
		{name: "a detach that waits for a reader", obstruct: func(t *testing.T, url config.PostgresURL, db *pgx.Conn) func() {
			return pendingDetach(t, url, db, "logs", "logs_20260301")
		}},
		{name: "a detach of the ledger's partition", obstruct: func(t *testing.T, url config.PostgresURL, db *pgx.Conn) func() {
			return pendingDetach(t, url, db, "ledger", "ledger_20260301")
		}},
		{name: "a default partition with rows of that time", obstruct: func(t *testing.T, url config.PostgresURL, db *pgx.Conn) func() {
			exec(t, db, "ALTER TABLE logs DETACH PARTITION logs_20260301")
			exec(t, db, "CREATE TABLE logs_other PARTITION OF logs DEFAULT")
			exec(t, db, "INSERT INTO logs VALUES (gen_random_uuid(), '2026-03-01 11:00+00', '{}')")
			return func() { exec(t, db, "DROP TABLE logs_other") }
		}},
		{name: "tables that have all its names", obstruct: func(t *testing.T, url config.PostgresURL, db *pgx.Conn) func() {
			exec(t, db, "ALTER TABLE logs DETACH PARTITION logs_20260301")
			for _, name := range []string{"logs_20260301_0000", "logs_20260301_0000_2", "logs_20260301_0000_3", "logs_20260301_0000_4"} {
				exec(t, db, "CREATE TABLE "+name+" ()")
			}
			return func() { exec(t, db, "DROP TABLE logs_20260301") }
		}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			url := testenv.Schema(t)
			db, side := workerConn(t, url), testenv.Connect(t, url)
			ctx := context.Background()
			p := partition.New(24 * time.Hour)
			first := segmentOf(frame.BaseAt(at("2026-03-01 10:00")), `{"first":1}`)
			if _, err := store(ctx, db, p, testRule, []segment{first}, nil, nil); err != nil {
				t.Fatal(err)
			}
			remove := c.obstruct(t, url, side)
			p.MarkStale()
			before := count(t, side, allLogs)
			batch := func() []segment {
				return []segment{segmentOf(late, `{"late":1}`, `{"late":2}`), segmentOf(frame.NewBase(), `{"now":1}`)}
			}
			segments := batch()
			out, err := store(ctx, db, p, testRule, segments, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			if out.rows != 1 || out.dead[reasonNoPartition] != 2 {
				t.Errorf("got %d rows and letters %v, want 1 row and 2 letters", out.rows, out.dead)
			}
			// The redelivery of a frame whose acknowledgement was lost.
			out, err = store(ctx, db, p, testRule, segments, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			if out.rows != 0 || len(out.dead) != 0 || out.duplicates != 3 {
				t.Errorf("delivered again: got %+v, want 3 duplicates", out)
			}
			if got := count(t, side, allLogs); got != before+1 {
				t.Errorf("rows: got %d, want %d", got, before+1)
			}
			remove()
			done, err := ReplayDead(ctx, side, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range done {
				if r.Err != nil || r.Rows != 1 {
					t.Errorf("replay: got %d rows, %v", r.Rows, r.Err)
				}
			}
			if got := count(t, side, "SELECT count(*) FROM logs WHERE data ? 'late'"); got != 2 {
				t.Errorf("late rows after the replay: got %d, want 2", got)
			}
		})
	}
}

// pendingDetach begins a detach that a reader holds up, and returns what ends both.
func pendingDetach(t *testing.T, url config.PostgresURL, db *pgx.Conn, parent, child string) (finish func()) {
	t.Helper()
	reader, detacher := testenv.Connect(t, url), testenv.Connect(t, url)
	exec(t, reader, "BEGIN")
	count(t, reader, "SELECT count(*) FROM "+parent)
	ended := make(chan error, 1)
	go func() {
		_, err := detacher.Exec(context.Background(), "ALTER TABLE "+parent+" DETACH PARTITION "+child+" CONCURRENTLY")
		ended <- err
	}()
	want(t, db, 1, "SELECT count(*) FROM pg_inherits WHERE inhparent = $1::text::regclass AND inhdetachpending", parent)
	return func() {
		exec(t, reader, "COMMIT")
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// TestAPartitionOfThePresentIsWaitedFor: what happens to all records is an outage and makes no dead letters.
func TestAPartitionOfThePresentIsWaitedFor(t *testing.T) {
	url := testenv.Schema(t)
	db, side := workerConn(t, url), testenv.Connect(t, url)
	exec(t, side, "CREATE TABLE logs_other PARTITION OF logs DEFAULT")
	exec(t, side, "INSERT INTO logs VALUES (gen_random_uuid(), now(), '{}')")
	_, err := store(context.Background(), db, partition.New(24*time.Hour), testRule, []segment{segmentOf(frame.NewBase(), `{}`)}, nil, nil)
	if err == nil {
		t.Error("it was set aside")
	}
}

// TestALockThatLastsHoldsUpNoNeighbour: somebody keeps a default partition locked. At first the batch waits, for most locks are short.
func TestALockThatLastsHoldsUpNoNeighbour(t *testing.T) {
	url := testenv.Schema(t)
	db, side := workerConn(t, url), testenv.Connect(t, url)
	ctx := context.Background()
	p := partition.New(24 * time.Hour)
	if _, err := store(ctx, db, p, testRule, []segment{segmentOf(frame.NewBase(), `{}`)}, nil, nil); err != nil {
		t.Fatal(err)
	}
	exec(t, side, "CREATE TABLE logs_other PARTITION OF logs DEFAULT")
	exec(t, side, "BEGIN")
	exec(t, side, "LOCK TABLE logs_other IN SHARE MODE")
	batch := []segment{segmentOf(frame.BaseAt(at("2026-03-01 12:00")), `{"late":1}`), segmentOf(frame.NewBase(), `{"now":1}`)}
	if _, err := store(ctx, db, p, testRule, batch, nil, nil); err == nil {
		t.Fatal("it did not wait for the lock")
	}
	p.LockPatience = 0
	out, err := store(ctx, db, p, testRule, batch, nil, nil)
	if err != nil || out.rows != 1 || out.dead[reasonNoPartition] != 1 {
		t.Errorf("got %+v, %v, want a row and a letter", out, err)
	}
}
