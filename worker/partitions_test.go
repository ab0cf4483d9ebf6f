package worker

import (
	"context"
	"log/slog"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/frame"
	"millrace/internal/pg"
	"millrace/internal/testenv"
	"millrace/worker/partition"
)

// TestALongSelectStopsNothing: a transaction that has read the table stays open while rows are stored, and
// partitions made, attached, detached and dropped. CREATE TABLE … PARTITION OF would wait for it, and every COPY behind
// that. LONG_SELECT is for how long, 3s unless it is set.
func TestALongSelectStopsNothing(t *testing.T) {
	long := 3 * time.Second
	if v := os.Getenv("LONG_SELECT"); v != "" {
		var err error
		if long, err = time.ParseDuration(v); err != nil {
			t.Fatal(err)
		}
	}
	c := testConfig(t, 1)
	p, db, reader := newPublisher(t, c), testenv.Connect(t, c.Postgres), testenv.Connect(t, c.Postgres)
	ctx := context.Background()
	day := time.Now().AddDate(0, 0, -30)
	// Another worker's keeper, with a retention, leads.
	k := testKeeper(workerConn(t, c.Postgres), partition.New(time.Hour), 20*24*time.Hour)
	if err := k.Round(ctx); err != nil {
		t.Fatal(err)
	}
	p.send(0, aFrame(frame.BaseAt(day), 1))
	start(t, c)
	want(t, db, 1, allLogs)
	exec(t, reader, "BEGIN")
	count(t, reader, allLogs) // its locks stay until the transaction ends

	// Its detach waits for the reader, and nobody for it.
	detached := make(chan error, 1)
	go func() { detached <- k.Round(ctx) }()
	testenv.Eventually(t, 10*time.Second, "the detach waits", func() bool {
		return count(t, db, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%DETACH%'") > 0
	})
	want(t, db, 0, allLogs) // what is being detached is not shown any more
	rows, slowest := 0, time.Duration(0)
	for began := time.Now(); time.Since(began) < long; {
		day = day.AddDate(0, 0, -1) // a partition that there isn't
		sent := time.Now()
		p.send(0, aFrame(frame.BaseAt(day), 1))
		p.send(0, aFrame(frame.NewBase(), 1))
		rows += 2
		want(t, db, rows, allLogs)
		slowest = max(slowest, time.Since(sent))
	}
	t.Logf("%d rows, each visible within %v", rows, slowest)
	exec(t, reader, "COMMIT")
	if err := <-detached; err != nil && long < partition.DetachTimeout {
		t.Error(err)
	}
	testenv.Eventually(t, long+10*time.Second, "the old partitions are dropped", func() bool {
		return k.Round(ctx) == nil && count(t, db, allLogs) == rows/2
	})
}

func TestAPartitionThatVanishedIsMadeAgain(t *testing.T) {
	c := testConfig(t, 1)
	c.IndexClosed = false // or the keeper builds an index while the test drops its table
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	start(t, c)
	day := at("2026-03-01 12:00")
	p.send(0, aFrame(frame.BaseAt(day), 1))
	want(t, db, 1, allLogs)
	exec(t, db, "DROP TABLE logs_20260301")
	p.send(0, aFrame(frame.BaseAt(day), 2))
	want(t, db, 2, allLogs)
}

// linkTo returns a link that has the test's connection.
func linkTo(conn *pgx.Conn) pg.Link {
	return pg.NewLink(func(context.Context) (*pgx.Conn, error) { return conn, nil }, nil)
}

func testKeeper(conn *pgx.Conn, p *partition.Set, retention time.Duration) *partition.Keeper {
	return &partition.Keeper{
		Link: linkTo(conn), Partitions: p, Retention: retention, Remember: partition.LedgerKeep,
		Log: slog.New(slog.DiscardHandler), Now: time.Now,
	}
}

func testIndexer(conn *pgx.Conn, p *partition.Set) *partition.Indexer {
	return &partition.Indexer{
		Closed: true, Link: linkTo(conn), Partitions: p, Calm: func(context.Context) bool { return true },
		Log: slog.New(slog.DiscardHandler), Now: time.Now,
	}
}

// TestABuildThatWaitsHoldsUpNothing: CREATE INDEX CONCURRENTLY waits for every transaction that is older. Meanwhile
// partitions are made and dropped and rows stored; a build that is cut short is cleaned up and begun anew.
func TestABuildThatWaitsHoldsUpNothing(t *testing.T) {
	c := testConfig(t, 1)
	c.PartitionInterval = time.Hour
	p, db, reader := newPublisher(t, c), testenv.Connect(t, c.Postgres), testenv.Connect(t, c.Postgres)
	closed := frame.BaseAt(time.Now().Add(-5 * time.Hour))
	if _, err := store(context.Background(), workerConn(t, c.Postgres), partition.New(time.Hour), testRule, []segment{segmentOf(closed, `{"a":1}`)}, nil, nil); err != nil {
		t.Fatal(err)
	}
	exec(t, reader, "BEGIN")
	count(t, reader, allLogs) // and its locks and snapshot stay
	exec(t, reader, "DECLARE c CURSOR FOR SELECT * FROM logs")

	building := func() int {
		return count(t, db, "SELECT count(*) FROM pg_stat_progress_create_index WHERE datname = current_database() AND phase LIKE 'waiting%'")
	}
	w := start(t, c)
	testenv.Eventually(t, 20*time.Second, "the build waits", func() bool { return building() == 1 })
	// A round that ends just before the hour leaves hardly more than the intervals ahead, which shrink until the next.
	reach := (partition.IntervalsAhead*time.Hour - partition.RoundInterval).Seconds()
	testenv.Eventually(t, 20*time.Second, "partitions are ahead", func() bool { return w.metric("millrace_partition_ahead_seconds") >= reach })
	p.send(0, aFrame(frame.BaseAt(time.Now().Add(-10*time.Hour)), 3)) // needs a partition
	p.send(0, aFrame(frame.NewBase(), 3))
	want(t, db, 7, allLogs)
	if building() != 1 {
		t.Error("the build did not wait all the while")
	}
	if err := w.stop(); err != nil {
		t.Error(err)
	}
	const invalid = "SELECT count(*) FROM pg_index WHERE NOT indisvalid"
	testenv.Eventually(t, 20*time.Second, "it has left its rest", func() bool { return building() == 0 && count(t, db, invalid) == 1 })
	exec(t, reader, "COMMIT")
	start(t, c)
	const indexes = "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = indexrelid WHERE relname ~ '_data_idx' AND indisvalid"
	want(t, db, 2, indexes)
	want(t, db, 0, invalid)
}

// TestABusyWorkerPutsItsIndexesOff, but not for ever.
func TestABusyWorkerPutsItsIndexesOff(t *testing.T) {
	db := workerConn(t, testenv.Schema(t))
	ctx := context.Background()
	p := partition.New(time.Hour)
	now := time.Now()
	for _, age := range []time.Duration{4 * time.Hour, 10 * time.Hour} {
		if _, err := store(ctx, db, p, testRule, []segment{segmentOf(frame.BaseAt(now.Add(-age)), `{}`)}, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	busy := &load{streams: 2}
	x := testIndexer(db, p)
	x.Calm = func(context.Context) bool {
		var calm bool
		synctest.Test(t, func(t *testing.T) {
			go func() {
				time.Sleep(loadWindow / 2)
				busy.busy.Add(int64(loadWindow))
			}()
			calm = busy.calm(context.Background())
		})
		return calm
	}
	const indexes = "SELECT count(*) FROM pg_class WHERE relname ~ '^logs_.*_data_idx'"
	if err := x.Round(ctx); err != nil {
		t.Fatal(err)
	}
	if got := count(t, db, indexes); got != 1 {
		t.Errorf("%d indexes, want 1, of the older partition", got)
	}
	busy.streams = 3
	if err := x.Round(ctx); err != nil {
		t.Fatal(err)
	}
	if got := count(t, db, indexes); got != 2 {
		t.Errorf("%d indexes, want 2", got)
	}
}
