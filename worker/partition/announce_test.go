package partition

import (
	"testing"
	"time"

	"millrace/internal/archive"
	"millrace/internal/frame"
	"millrace/internal/testenv"
)

// TestACopyHasTheRowsOfTransactionsUnderWay: clocks that were set ahead have a partition copied while a transaction stores a row in it that was
// new a moment ago, and that nothing notes.
func TestACopyHasTheRowsOfTransactionsUnderWay(t *testing.T) {
	url := testenv.Schema(t)
	db, writer := workerConn(t, url), workerConn(t, url)
	p := New(time.Hour)
	open := time.Now().UTC().Truncate(time.Hour)
	put(t, db, p, open.Add(-3*time.Hour))
	exec(t, writer, "BEGIN")
	base := frame.BaseAt(open.Add(-3*time.Hour + time.Minute))
	exec(t, writer, "INSERT INTO logs (id, inserted_at, data) VALUES ($1, $2, '{}')", base, frame.Time(base))
	store := archive.Folder(t.TempDir())
	a := testArchiver(workerConn(t, url), workerConn(t, url), p, store)
	done := make(chan error, 1)
	go func() { done <- a.Round(t.Context()) }()
	const announced = "SELECT count(*) FROM archive_ranges WHERE from_at = $1 AND generation = 0"
	testenv.Eventually(t, 5*time.Second, "the copy is announced", func() bool { return count(t, db, announced, open.Add(-3*time.Hour)) == 1 })
	select {
	case err := <-done:
		t.Fatalf("the copy did not wait: %v", err)
	default:
	}
	exec(t, writer, "COMMIT")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	want(t, db, 1, "SELECT count(*) FROM archive_ranges WHERE generation = 1")
	compareArchive(t, db, store, open)
}

// TestACopyThatWritersHoldUpIsTriedAgain: a transaction that does not end keeps the ranges that it has written to out of the archive, and no others.
func TestACopyThatWritersHoldUpIsTriedAgain(t *testing.T) {
	url := testenv.Schema(t)
	db, writer := workerConn(t, url), workerConn(t, url)
	p := New(time.Hour)
	open := time.Now().UTC().Truncate(time.Hour)
	put(t, db, p, open.Add(-5*time.Hour), open.Add(-3*time.Hour))
	exec(t, writer, "BEGIN")
	exec(t, writer, "UPDATE logs SET data = '{\"a\":1}' WHERE inserted_at < $1", open.Add(-4*time.Hour))
	store := archive.Folder(t.TempDir())
	a := testArchiver(workerConn(t, url), workerConn(t, url), p, store)
	a.writersEndWithin = 100 * time.Millisecond
	if err := a.Round(t.Context()); err == nil {
		t.Fatal("a transaction was at it, and nothing said so")
	}
	want(t, db, 1, "SELECT count(*) FROM archive_ranges WHERE generation = 1")
	want(t, db, 1, "SELECT count(*) FROM archive_files")
	exec(t, writer, "COMMIT")
	if err := a.Round(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, db, 2, "SELECT count(*) FROM archive_ranges WHERE generation = 1")
	compareArchive(t, db, store, open)
}

// TestRowsAreNotedByWhatIsPublished: those of a range that is published or being copied, and those that are half a minute old.
func TestRowsAreNotedByWhatIsPublished(t *testing.T) {
	db := workerConn(t, testenv.Schema(t))
	// By the database's clock all of it is to come, so age notes nothing.
	hour := time.Now().UTC().Truncate(time.Hour).Add(5 * time.Hour)
	at := func(minutes int) time.Time { return hour.Add(time.Duration(minutes) * time.Minute) }
	for _, r := range []struct{ from, to, generation int }{{0, 15, 3}, {15, 20, 1}, {30, 40, 0}, {180, 600, 2}} {
		exec(t, db, "INSERT INTO archive_ranges (from_at, to_at, generation, changes) VALUES ($1, $2, $3, 0)", at(r.from), at(r.to), r.generation)
	}
	for _, c := range []struct {
		earliest int // minutes; later rows of the hour may be in the same transaction
		noted    bool
	}{{-70, false}, {-1, false}, {0, true}, {14, true}, {16, true}, {20, true}, {39, true}, {40, false}, {70, false}, {181, true}, {599, true}, {600, false}} {
		exec(t, db, "DELETE FROM late_changes")
		exec(t, db, NoteLateSQL, []time.Time{at(c.earliest), at(c.earliest + 24*60)})
		want(t, db, map[bool]int{true: 1}[c.noted], "SELECT count(*) FROM late_changes WHERE hour = date_trunc('hour', $1::timestamptz)", at(c.earliest))
		want(t, db, map[bool]int{true: 1}[c.noted], "SELECT count(*) FROM late_changes")
	}
	exec(t, db, NoteLateSQL, []time.Time{time.Now().Add(-time.Minute), time.Now().Add(-10 * time.Second)})
	want(t, db, 1, "SELECT count(*) FROM late_changes WHERE hour < now()")
}
