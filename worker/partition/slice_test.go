package partition

import (
	"context"
	"testing"
	"time"

	"millrace/internal/archive"
	"millrace/internal/testenv"
)

// TestAnOpenPartitionIsArchivedInSlices goes through a day of before by the archiver's clock.
func TestAnOpenPartitionIsArchivedInSlices(t *testing.T) {
	url := testenv.Schema(t)
	db := workerConn(t, url)
	exec(t, db, "SET track_counts = off") // so that the estimate is that of ANALYZE
	p := New(24 * time.Hour)
	day := time.Now().UTC().Truncate(24 * time.Hour).Add(-48 * time.Hour)
	at := func(hour, minute int) time.Time {
		return day.Add(time.Duration(hour)*time.Hour + time.Duration(minute)*time.Minute)
	}
	store := archive.Folder(t.TempDir())
	a := testArchiver(workerConn(t, url), workerConn(t, url), p, store)
	a.SliceRows, a.MostRows = 400, 1000
	calm := true
	a.Calm = func(context.Context) bool { return calm }
	round := func(now time.Time, ranges, files int) {
		t.Helper()
		exec(t, db, "ANALYZE logs")
		a.Now = func() time.Time { return now }
		if err := a.Round(t.Context()); err != nil {
			t.Fatal(err)
		}
		want(t, db, ranges, "SELECT count(*) FROM archive_ranges")
		want(t, db, files, "SELECT count(*) FROM archive_files WHERE state = 'published'")
		wantAnswer(t, db, store, allIDs(t, db))
	}
	fill(t, db, p, at(9, 0), 500) // 20 minutes of them
	exec(t, db, "DELETE FROM late_changes")
	round(at(9, 5), 0, 0) // none is old enough
	round(at(9, 45), 1, 1)
	compareArchive(t, db, store, at(9, 35))
	fill(t, db, p, at(9, 40), 300)
	exec(t, db, "DELETE FROM late_changes")
	round(at(10, 15), 1, 1) // too few for a file
	fill(t, db, p, at(9, 45), 300)
	exec(t, db, "DELETE FROM late_changes")
	calm = false
	round(at(10, 15), 1, 1) // the streams need the machine
	a.MostRows = 450
	round(at(10, 15), 2, 2) // and have had it for long enough
	compareArchive(t, db, store, at(10, 5))
	calm, a.MostRows = true, 1000

	// Late rows: searches find them at once, in the table; the range is copied anew an hour later, and its hour gets no further slices meanwhile.
	put(t, db, p, at(10, 1))
	exec(t, db, NoteChangesSQL("SELECT date_trunc('hour', $1::timestamptz)"), at(10, 1))
	fill(t, db, p, at(10, 10), 900)
	round(at(10, 50), 2, 2)
	want(t, db, 0, "SELECT count(*) FROM archive_ranges WHERE generation > 1")
	exec(t, db, "UPDATE archive_ranges SET published_at = now() - interval '61 minutes'")
	round(at(10, 50), 3, 3)
	want(t, db, 1, "SELECT count(*) FROM archive_ranges WHERE generation = 2")
	compareArchive(t, db, store, at(10, 40))

	// The rest of the day comes when it is over.
	fill(t, db, p, at(23, 0), 30)
	exec(t, db, "DELETE FROM late_changes; UPDATE archive_ranges SET changes = 0")
	round(at(23, 50), 3, 3)
	round(at(24, 15), 4, 4)
	compareArchive(t, db, store, at(24, 0))
	want(t, db, 0, "SELECT count(*) FROM archive_ranges a JOIN archive_ranges b ON a.from_at < b.from_at AND a.to_at > b.from_at")
}

// TestPartitionsOfSlicesAreDroppedAsOthers has a partition whose ranges were copied one by one leave the table.
func TestPartitionsOfSlicesAreDroppedAsOthers(t *testing.T) {
	url := testenv.Schema(t)
	db := workerConn(t, url)
	exec(t, db, "SET track_counts = off") // so that the estimate is that of ANALYZE
	p := New(24 * time.Hour)
	day := time.Now().UTC().Truncate(24 * time.Hour).Add(-72 * time.Hour)
	fill(t, db, p, day.Add(9*time.Hour), 300)
	fill(t, db, p, day.Add(12*time.Hour), 300)
	exec(t, db, "DELETE FROM late_changes; ANALYZE logs")
	store := archive.Folder(t.TempDir())
	a := testArchiver(workerConn(t, url), workerConn(t, url), p, store)
	a.SliceRows = 100
	for _, hour := range []time.Duration{10, 13, 30} {
		a.Now = func() time.Time { return day.Add(hour * time.Hour) }
		if err := a.Round(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	want(t, db, 3, "SELECT count(*) FROM archive_ranges")
	all := allIDs(t, db)
	k := testKeeper(workerConn(t, url), p, 48*time.Hour)
	k.Archived = true
	testenv.Eventually(t, time.Minute, "the partition is dropped", func() bool { // a transaction of anybody, be it autovacuum's, puts it off
		if err := k.Round(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantAnswer(t, db, store, all)
		return count(t, db, "SELECT count(*) FROM logs") == 0
	})
	want(t, db, 3, "SELECT count(*) FROM archive_ranges WHERE files_only")
	wantAnswer(t, db, store, all)
}
