package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/internal/config"
	"millrace/internal/frame"
	"millrace/internal/testenv"
)

const testInterval = 24 * time.Hour

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
	first, last := frame.BaseAt(day), frame.BaseAt(day.Add(-time.Millisecond))
	bound, err := uuid.Parse(ledger.bound(day))
	if err != nil || first.String() < bound.String() || last.String() >= bound.String() {
		t.Errorf("got %s, %v between %s and %s", bound, err, last, first)
	}
	if back, err := ledger.parseBound(bound.String()); err != nil || !back.Equal(day) {
		t.Errorf("got %v, %v, want %v", back, err, day)
	}
}

func names(t *testing.T, db *pgx.Conn, tab table) []string {
	t.Helper()
	exec(t, db, "SET TimeZone = 'UTC'")
	all, err := listPartitions(context.Background(), db, tab)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, p := range all {
		out = append(out, fmt.Sprint(p.name, " ", p.from.Format("02 15:04"), " - ", p.to.Format("02 15:04")))
	}
	return out
}

func TestTheIntervalMayChange(t *testing.T) {
	url := testenv.Schema(t)
	db := workerConn(t, url)
	ctx := context.Background()
	daily, hourly := newPartitions(24*time.Hour), newPartitions(time.Hour)
	ensure := func(p *partitions, s string) {
		t.Helper()
		p.forget()
		if r, err := p.ensure(ctx, db, p.logs, at(s)); err != nil || !r.contains(at(s)) {
			t.Fatalf("%s: got %v, %v", s, r, err)
		}
	}
	ensure(hourly, "2026-03-01 00:30")
	ensure(hourly, "2026-03-01 04:30")
	ensure(daily, "2026-03-01 02:00")
	ensure(daily, "2026-03-01 09:00")
	ensure(daily, "2026-03-02 09:00")
	ensure(hourly, "2026-03-02 09:00") // is there
	ensure(hourly, "2026-03-03 23:59")
	want := []string{
		"logs_20260301_0000 01 00:00 - 01 01:00",
		"logs_20260301_0100 01 01:00 - 01 04:00",
		"logs_20260301_0400 01 04:00 - 01 05:00",
		"logs_20260301_0500 01 05:00 - 02 00:00",
		"logs_20260302 02 00:00 - 03 00:00",
		"logs_20260303_2300 03 23:00 - 04 00:00",
	}
	if diff := cmp.Diff(want, names(t, db, daily.logs)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestWorkersRaceForAPartitionHarmlessly(t *testing.T) {
	url := testenv.Schema(t)
	var wg sync.WaitGroup
	for range 6 {
		conn := workerConn(t, url)
		wg.Go(func() {
			p := newPartitions(24 * time.Hour)
			for day := range 5 {
				if _, err := p.ensure(context.Background(), conn, p.ledger, at("2026-03-01 12:00").AddDate(0, 0, day)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := len(names(t, testenv.Connect(t, url), table{name: "ledger"})); got != 5 {
		t.Errorf("got %d partitions, want 5", got)
	}
}

func TestATableThatSomebodyDetachedKeepsItsNameAndRows(t *testing.T) {
	db := workerConn(t, testenv.Schema(t))
	ctx := context.Background()
	p := newPartitions(24 * time.Hour)
	old := segmentOf(frame.BaseAt(at("2026-03-01 12:00")), `{"a":1}`)
	if _, err := store(ctx, db, p, []segment{old}, nil, nil); err != nil {
		t.Fatal(err)
	}
	exec(t, db, "ALTER TABLE logs DETACH PARTITION logs_20260301")
	p.forget()
	again := segmentOf(frame.BaseAt(at("2026-03-01 12:00")), `{"b":1}`)
	if _, err := store(ctx, db, p, []segment{again}, nil, nil); err != nil {
		t.Fatal(err)
	}
	k := testKeeper(db, p, time.Hour)
	if err := k.tidy(ctx); err != nil {
		t.Fatal(err)
	}
	if got := count(t, db, "SELECT count(*) FROM logs_20260301"); got != 1 {
		t.Errorf("the detached table has %d rows, want 1", got)
	}
}

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
	p.send(0, aFrame(frame.BaseAt(day), 1))
	start(t, c)
	want(t, db, 1, allLogs)
	exec(t, reader, "BEGIN")
	count(t, reader, allLogs) // its locks stay until the transaction ends

	// Another worker's keeper, with a retention: its detach waits for the reader, and nobody for it.
	k := testKeeper(workerConn(t, c.Postgres), newPartitions(time.Hour), 20*24*time.Hour)
	k.key++ // the worker of the test leads
	detached := make(chan error, 1)
	go func() { detached <- k.tidy(ctx) }()
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
	if err := <-detached; err != nil && long < detachTimeout {
		t.Error(err)
	}
	testenv.Eventually(t, long+10*time.Second, "the old partitions are dropped", func() bool {
		return k.tidy(ctx) == nil && count(t, db, allLogs) == rows/2
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

// workerConn is a connection with the worker's session settings.
func workerConn(t testing.TB, url config.PostgresURL) *pgx.Conn {
	t.Helper()
	conn, err := connect(context.Background(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func testKeeper(conn *pgx.Conn, p *partitions, retention time.Duration) *keeper {
	return &keeper{
		leader: leader{link: link{conn: conn}, key: keeperLock}, parts: p, retention: retention,
		log: slog.New(slog.DiscardHandler), now: time.Now,
	}
}

func testIndexer(conn *pgx.Conn, p *partitions) *indexer {
	return &indexer{
		leader: leader{link: link{conn: conn}, key: indexerLock}, logs: p.logs, calm: func(context.Context) bool { return true },
		log: slog.New(slog.DiscardHandler), now: time.Now,
	}
}

func TestTheKeeperLooksAfterPartitions(t *testing.T) {
	url := testenv.Schema(t)
	db := workerConn(t, url)
	ctx := context.Background()
	p := newPartitions(time.Hour)
	now := time.Now().UTC()
	k := testKeeper(db, p, 72*time.Hour)
	k.now = func() time.Time { return now } // stands: how far they reach shrinks from a round to the next

	for _, age := range []time.Duration{30 * 24 * time.Hour, 5 * time.Hour, 0} {
		if _, err := store(ctx, db, p, []segment{segmentOf(frame.BaseAt(now.Add(-age)), `{"a":1}`)}, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	exec(t, db, "CREATE TABLE logs_archive PARTITION OF logs FOR VALUES FROM ('2020-01-01') TO ('2021-01-01')")
	exec(t, db, "INSERT INTO logs VALUES (gen_random_uuid(), '2020-05-05', '{}')")
	exec(t, db, "DELETE FROM late_changes")
	closed := "logs_" + now.Add(-5*time.Hour).Format("20060102_15") + "00"
	exec(t, db, "CREATE INDEX "+closed+"_data_idx ON "+closed+" USING gin (data jsonb_path_ops)")
	exec(t, db, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = '"+closed+"_data_idx'::regclass") // as an interrupted build leaves it

	x := testIndexer(workerConn(t, url), p)
	for range 2 { // the second round finds nothing to do
		if err := errors.Join(k.tidy(ctx), x.tidy(ctx)); err != nil {
			t.Fatal(err)
		}
	}
	if got := p.ahead(now); got < 2*time.Hour {
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

	second := testKeeper(workerConn(t, url), newPartitions(time.Hour), 0)
	if err := second.tidy(ctx); err != nil || second.leads {
		t.Errorf("got a second leader, or %v", err)
	}
	if got := second.parts.ahead(now); got < 2*time.Hour {
		t.Errorf("ahead, told by a follower: got %v", got)
	}
}

// TestABuildThatWaitsHoldsUpNothing: CREATE INDEX CONCURRENTLY waits for every transaction that is older. Meanwhile
// partitions are made and dropped and rows stored; a build that is cut short is cleaned up and begun anew.
func TestABuildThatWaitsHoldsUpNothing(t *testing.T) {
	c := testConfig(t, 1)
	c.PartitionInterval = time.Hour
	p, db, reader := newPublisher(t, c), testenv.Connect(t, c.Postgres), testenv.Connect(t, c.Postgres)
	closed := frame.BaseAt(time.Now().Add(-5 * time.Hour))
	if _, err := store(context.Background(), workerConn(t, c.Postgres), newPartitions(time.Hour), []segment{segmentOf(closed, `{"a":1}`)}, nil, nil); err != nil {
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
	reach := (intervalsAhead*time.Hour - keeperInterval).Seconds()
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
	p := newPartitions(time.Hour)
	now := time.Now()
	for _, age := range []time.Duration{4 * time.Hour, 10 * time.Hour} {
		if _, err := store(ctx, db, p, []segment{segmentOf(frame.BaseAt(now.Add(-age)), `{}`)}, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	busy := &load{streams: 2}
	x := testIndexer(db, p)
	x.calm = func(context.Context) bool {
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
	if err := x.tidy(ctx); err != nil {
		t.Fatal(err)
	}
	if got := count(t, db, indexes); got != 1 {
		t.Errorf("%d indexes, want 1, of the older partition", got)
	}
	busy.streams = 3
	if err := x.tidy(ctx); err != nil {
		t.Fatal(err)
	}
	if got := count(t, db, indexes); got != 2 {
		t.Errorf("%d indexes, want 2", got)
	}
}

// TestADetachThatWasCutShortIsFinished: a long SELECT keeps it from ending.
func TestADetachThatWasCutShortIsFinished(t *testing.T) {
	url := testenv.Schema(t)
	db, reader := workerConn(t, url), testenv.Connect(t, url)
	ctx := context.Background()
	p := newPartitions(24 * time.Hour)
	if _, err := store(ctx, db, p, []segment{segmentOf(frame.NewBase(), `{}`), segmentOf(frame.BaseAt(time.Now().AddDate(0, 0, -30)), `{}`)}, nil, nil); err != nil {
		t.Fatal(err)
	}
	exec(t, reader, "BEGIN")
	count(t, reader, allLogs)
	k := testKeeper(db, p, 24*time.Hour)
	interrupted, interrupt := context.WithCancel(ctx)
	defer interrupt()
	tidied := make(chan error, 1)
	go func() { tidied <- k.tidy(interrupted) }()
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
		return k.tidy(ctx) == nil && count(t, reader, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'logs'::regclass AND inhdetachpending") == 0
	})
	want(t, reader, 1, allLogs)
	if got := count(t, reader, "SELECT count(*) FROM late_changes"); got < 24 {
		t.Errorf("late changes: got %d, want the hours of the day that was dropped", got)
	}
}
