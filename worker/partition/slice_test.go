package partition

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/archive"
	"millrace/internal/frame"
	"millrace/internal/pg"
	"millrace/internal/testenv"
)

// slicedDay is a day of before in one partition, and an archiver for which the day goes on.
type slicedDay struct {
	*testing.T
	db    *pgx.Conn
	parts *Set
	day   time.Time
	store archive.Folder
	a     *Archiver
}

func newSlicedDay(t *testing.T) *slicedDay {
	url := testenv.Schema(t)
	d := &slicedDay{T: t, db: workerConn(t, url), parts: New(24 * time.Hour), store: archive.Folder(t.TempDir())}
	d.parts.Files = d.store
	d.day = time.Now().UTC().Truncate(24 * time.Hour).Add(-48 * time.Hour)
	d.a = testArchiver(workerConn(t, url), workerConn(t, url), d.parts, d.store)
	d.a.SliceRows, d.a.MostRows = 400, 1000
	return d
}

func (d *slicedDay) at(hour, minute int) time.Time {
	return d.day.Add(time.Duration(hour)*time.Hour + time.Duration(minute)*time.Minute)
}

// fill stores rows of twenty minutes, as when they are new: nothing notes them.
func (d *slicedDay) fill(from time.Time, n int) {
	d.Helper()
	var bases [][16]byte
	var times []time.Time
	for i := range n {
		base := frame.BaseAt(from.Add(time.Duration(i) * 20 * time.Minute / time.Duration(n)))
		bases, times = append(bases, base), append(times, frame.Time(base))
	}
	putAll(d, d.db, d.parts, bases, times)
}

// putAll stores rows of one day, each as a segment of its own.
func putAll(t testing.TB, conn *pgx.Conn, p *Set, bases [][16]byte, times []time.Time) {
	t.Helper()
	for _, table := range []table{p.logs, p.ledger} {
		if _, err := p.ensure(context.Background(), conn, table, times[0]); err != nil {
			t.Fatal(err)
		}
	}
	exec(t, conn, "INSERT INTO ledger SELECT id, 1, 0 FROM unnest($1::uuid[]) AS id", bases)
	exec(t, conn, "INSERT INTO logs (id, inserted_at, data) SELECT *, '{}' FROM unnest($1::uuid[], $2::timestamptz[])", bases, times)
}

// late stores a row that is noted.
func (d *slicedDay) late(at time.Time) { putLate(d.T, d.db, d.parts, at) }

// round makes a round at a time, and wants so many ranges afterwards, so many of them copied anew.
func (d *slicedDay) round(now time.Time, ranges, anew int) {
	d.Helper()
	d.a.Now = func() time.Time { return now }
	if err := d.a.Round(d.Context()); err != nil {
		d.Fatal(err)
	}
	want(d, d.db, ranges, "SELECT count(*) FROM archive_ranges")
	want(d, d.db, anew, "SELECT coalesce(sum(generation - 1), 0) FROM archive_ranges")
	want(d, d.db, 0, "SELECT count(*) FROM archive_ranges a JOIN archive_ranges b ON a.from_at < b.from_at AND a.to_at > b.from_at")
	wantAnswer(d.T, d.db, d.store, allIDs(d.T, d.db))
}

func (d *slicedDay) wantRange(from, to time.Time) {
	d.Helper()
	want(d, d.db, 1, "SELECT count(*) FROM archive_ranges WHERE from_at = $1 AND to_at = $2", from, to)
}

func TestAnOpenPartitionIsArchivedInSlices(t *testing.T) {
	d := newSlicedDay(t)
	d.fill(d.at(9, 0), 500) // 25 a minute
	d.round(d.at(9, 5), 0, 0)
	d.round(d.at(9, 45), 1, 0)
	d.wantRange(d.at(9, 0), d.at(9, 16)) // hours without rows wait until the day is over
	compareArchive(t, d.db, d.store, d.at(9, 16))

	d.fill(d.at(9, 40), 250)
	d.round(d.at(10, 5), 1, 0) // at most 350, which are too few
	d.fill(d.at(10, 0), 300)   // 75 of them are old enough
	calm := true
	d.a.Calm = func(context.Context) bool { return calm }
	calm = false
	d.round(d.at(10, 15), 1, 0) // the streams need the machine
	d.a.MostRows = 410
	d.round(d.at(10, 15), 2, 0)           // and have had it for long enough
	d.wantRange(d.at(9, 16), d.at(10, 0)) // to the whole hour
	compareArchive(t, d.db, d.store, d.at(10, 0))
	calm, d.a.MostRows = true, 1000

	// The rest of the day comes when it is over, and the hours without rows.
	d.fill(d.at(23, 0), 30)
	d.round(d.at(23, 50), 2, 0)
	d.round(d.at(24, 15), 4, 0)
	d.wantRange(d.at(0, 0), d.at(9, 0))
	d.wantRange(d.at(10, 0), d.at(24, 0))
	compareArchive(t, d.db, d.store, d.at(24, 0))
	d.round(d.at(24, 16), 4, 0)
}

// TestLateRowsOfSlicesWaitForFurtherSlices: a row that comes late has the slices of its hour copied anew, when others are copied, and as many rows as those have.
func TestLateRowsOfSlicesWaitForFurtherSlices(t *testing.T) {
	d := newSlicedDay(t)
	d.fill(d.at(9, 0), 400)
	d.fill(d.at(9, 20), 400)
	d.fill(d.at(10, 0), 410)
	d.round(d.at(10, 40), 3, 0)
	d.wantRange(d.at(9, 0), d.at(9, 20))
	d.wantRange(d.at(9, 20), d.at(9, 40))
	d.wantRange(d.at(10, 0), d.at(10, 20))

	d.late(d.at(9, 10))
	d.fill(d.at(10, 20), 400)
	d.round(d.at(10, 41), 3, 0)
	d.round(d.at(10, 50), 4, 2)
	compareArchive(t, d.db, d.store, d.at(10, 40))

	// An hour that is not over gets no further slices once rows have come late for it, and its slices are not copied anew.
	d.late(d.at(10, 5))
	d.fill(d.at(10, 40), 1500)
	d.round(d.at(11, 5), 4, 2)
	d.round(d.at(11, 12), 7, 4)
	compareArchive(t, d.db, d.store, d.at(10, 58))

	// Where nothing is copied, nothing is copied anew, until the day is over. Then there is credit for some of it, and for the rest later.
	for hour := 9; hour < 11; hour++ {
		d.late(d.at(hour, 30))
	}
	d.round(d.at(20, 0), 7, 4)
	d.a.credit.rows = 500
	d.round(d.at(24, 15), 10, 5)
	d.round(d.at(24, 16), 10, 5)
	d.round(d.at(30, 30), 10, 6)
	d.round(d.at(36, 45), 10, 7)

	// Those of a partition that is to be dropped wait for nothing.
	exec(t, d.db, noteSQL, "retention", (12 * time.Hour).String())
	d.round(d.at(37, 0), 10, 11)
	compareArchive(t, d.db, d.store, d.at(24, 0))
}

// TestWhatTheArchiveNoLongerKeepsIsNotCopiedAgain: the archive's retention is shorter than that of the rows, and than the day.
func TestWhatTheArchiveNoLongerKeepsIsNotCopiedAgain(t *testing.T) {
	d := newSlicedDay(t)
	d.a.Retention = 5 * time.Hour
	for hour := range 4 {
		d.fill(d.at(hour, 10), 400)
	}
	d.round(d.at(4, 15), 4, 0)
	d.fill(d.at(6, 0), 400)
	d.round(d.at(6, 40), 4, 0) // an hour has left, another has come
	d.wantRange(d.at(6, 0), d.at(6, 20))
	d.round(d.at(6, 41), 4, 0)
	d.round(d.at(8, 0), 2, 0)
	d.round(d.at(12, 0), 0, 0)
	files := count(t, d.db, "SELECT count(*) FROM archive_files")
	for _, hour := range []int{13, 20, 24} {
		d.late(d.at(hour-6, 0))
		d.round(d.at(hour, 30), map[int]int{24: 1}[hour], 0) // the day is over
	}
	want(t, d.db, files, "SELECT count(*) FROM archive_files WHERE from_at < $1", d.at(19, 0))
	// The keeper does not wait for what the archive no longer keeps.
	k := testKeeper(d.db, d.parts, time.Hour)
	k.Archived, k.ArchiveRetention = true, d.a.Retention
	k.Now = func() time.Time { return d.at(26, 0) }
	testenv.Eventually(t, time.Minute, "the partition is dropped", func() bool {
		if err := k.Round(t.Context()); err != nil {
			t.Fatal(err)
		}
		return count(t, d.db, "SELECT count(*) FROM logs WHERE inserted_at < $1", d.at(24, 0)) == 0
	})
}

// TestPartitionsOfSlicesAreDroppedAsOthers has a partition whose ranges were copied one by one leave the table.
func TestPartitionsOfSlicesAreDroppedAsOthers(t *testing.T) {
	d := newSlicedDay(t)
	for hour := range 3 {
		d.fill(d.at(9+hour, 0), 400)
	}
	d.round(d.at(12, 40), 3, 0)
	d.round(d.at(24, 15), 7, 0) // with what lies between the slices
	all := allIDs(t, d.db)
	k := testKeeper(d.db, d.parts, 12*time.Hour)
	k.Archived = true
	testenv.Eventually(t, time.Minute, "the partition is dropped", func() bool { // a transaction of anybody, be it autovacuum's, puts it off
		if err := k.Round(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantAnswer(t, d.db, d.store, all)
		return count(t, d.db, "SELECT count(*) FROM logs") == 0
	})
	want(t, d.db, 7, "SELECT count(*) FROM archive_ranges WHERE files_only")
	d.late(d.at(9, 1))
	maps.Copy(all, allIDs(t, d.db))
	if err := d.a.Round(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantAnswer(t, d.db, d.store, all)
	want(t, d.db, 4, "SELECT count(*) FROM archive_files WHERE state = 'published'")
}

// TestAnswersAreWholeWhateverSlicesClocksAndCrashesDo goes through some days in steps at random: rows that are new, late, or stored by a transaction that is under
// way while the archiver makes a round; rounds of the archiver and the keeper, also those that a crash cuts short; a clock that is set back. At each step a reader
// finds the rows that were stored, each once. MILLRACE_SLICE_SEEDS=N goes through N of them.
func TestAnswersAreWholeWhateverSlicesClocksAndCrashesDo(t *testing.T) {
	seeds, err := strconv.Atoi(os.Getenv("MILLRACE_SLICE_SEEDS"))
	if err != nil {
		seeds = 1
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { walkThroughDays(t, uint64(seed)) })
	}
}

func walkThroughDays(t *testing.T, seed uint64) {
	const steps, retention = 120, 4 * time.Hour
	rng := rand.New(rand.NewPCG(seed, 21))
	url := testenv.Schema(t)
	shift := -10 * 24 * time.Hour
	session := func() *pgx.Conn {
		conn := workerConn(t, url)
		testenv.ShiftClock(t, shift, conn)
		return conn
	}
	now := func() time.Time { return time.Now().Add(shift) }
	db, writer, reader := session(), session(), session()
	parts, store := New(24*time.Hour), archive.Folder(t.TempDir())
	parts.Files = store
	newArchiver := func(store archive.Store) *Archiver {
		a := testArchiver(session(), session(), parts, store)
		a.Now, a.SliceRows, a.MostRows, a.writersEndWithin = now, 20, 60, 30*time.Millisecond
		a.Calm = func(context.Context) bool { return rng.IntN(4) > 0 }
		return a
	}
	archiver := newArchiver(store)
	keeper := testKeeper(session(), parts, retention)
	keeper.Archived, keeper.Now = true, now
	rows := make(map[[16]byte]bool)
	// put stores rows as a worker does. meanwhile, if it is not nil, runs before the commit.
	put := func(at time.Time, n int, meanwhile func()) {
		t.Helper()
		parts.MarkStale()
		var bases [][16]byte
		var times []time.Time
		for range n {
			base := frame.BaseAt(at)
			bases, times = append(bases, base), append(times, frame.Time(base))
		}
		if err := parts.EnsureLogs(t.Context(), writer, at); errors.As(err, new(closingError)) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		if _, err := parts.ensure(t.Context(), writer, parts.ledger, at); err != nil {
			t.Fatal(err)
		}
		noteFirst := rng.IntN(2) == 0
		note := func() { exec(t, writer, NoteLateSQL, times[:1]) }
		exec(t, writer, "BEGIN")
		putAll(t, writer, parts, bases, times)
		if noteFirst {
			note()
		}
		if meanwhile != nil {
			meanwhile()
		}
		if !noteFirst {
			note()
		}
		exec(t, writer, "COMMIT")
		for _, base := range bases {
			rows[base] = true
		}
	}
	archiveRound := func() {
		if err := archiver.Round(t.Context()); err != nil && pg.CodeOf(err) != pg.LockNotAvailable {
			t.Logf("a round of the archiver: %v", err) // it waited for a transaction under way
		}
	}
	done := make(map[string]int)
	for range steps {
		var what string
		switch rng.IntN(12) {
		case 0, 1, 2:
			what = "rows"
			put(now(), 1+rng.IntN(30), nil)
		case 3, 4, 5:
			what = "time"
			shift += time.Duration(rng.IntN(240)) * time.Minute
			testenv.ShiftClock(t, shift, db)
			put(now(), 1+rng.IntN(30), nil)
		case 6:
			what = "late rows"
			put(now().Add(-time.Duration(rng.IntN(40*60))*time.Minute), 1+rng.IntN(3), nil)
		case 7, 8:
			what = "archiver"
			archiveRound()
		case 9:
			what = "archiver that crashes"
			broken := &brokenStore{Folder: store, left: rng.IntN(6)}
			killed := newArchiver(broken)
			conn, err := archiver.Link.Open(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.Close(t.Context())
			if conn, err = killed.Link.Open(t.Context()); err != nil {
				t.Fatal(err)
			}
			broken.crash = func() { exec(t, db, "SELECT pg_terminate_backend($1)", conn.PgConn().PID()) }
			if err := killed.Round(t.Context()); err == nil {
				what += " not"
			}
			_ = conn.Close(t.Context())
			archiver = newArchiver(store)
		case 10:
			what = "keeper"
			if err := keeper.Round(t.Context()); err != nil && pg.CodeOf(err) != pg.LockNotAvailable && pg.CodeOf(err) != pg.QueryCanceled {
				t.Fatal(err)
			}
		case 11:
			what = "clock back"
			shift -= time.Duration(rng.IntN(200)) * time.Minute
			testenv.ShiftClock(t, shift, db)
			put(now(), 1+rng.IntN(10), archiveRound)
		}
		done[what]++
		if got := answer(t, reader, store); !maps.Equal(got, rows) {
			t.Fatalf("after %s at %v: a reader finds %d rows, want %d", what, now(), len(got), len(rows))
		}
	}
	t.Logf("%d rows, %d of them in logs, %d ranges, of which files alone have %d, %d copies; %v", len(rows), count(t, db, allLogs), count(t, db, "SELECT count(*) FROM archive_ranges"),
		count(t, db, "SELECT count(*) FROM archive_ranges WHERE files_only"), count(t, db, "SELECT coalesce(sum(generation), 0) FROM archive_ranges"), done)
}
