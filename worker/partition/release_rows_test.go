package partition

import (
	"context"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/archive"
	"millrace/internal/config"
	"millrace/internal/frame"
	"millrace/internal/pg"
	"millrace/internal/testenv"
)

// answer returns the ids that a reader finds, by the rules of the archive's README. An id that counts twice fails the test.
func answer(t *testing.T, conn *pgx.Conn, store archive.Store) map[[16]byte]bool {
	t.Helper()
	ctx := t.Context()
	found := make(map[[16]byte]bool)
	add := func(id [16]byte) {
		if found[id] {
			t.Fatalf("the row %x is in the answer twice", id)
		}
		found[id] = true
	}
	err := pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "LOCK TABLE ONLY logs IN ACCESS SHARE MODE"); err != nil {
			return err
		}
		ranges, err := archivedRanges(ctx, conn, timeRange{time.Time{}, endOfTime}, "")
		if err != nil {
			return err
		}
		rows, err := tx.Query(ctx, "SELECT id, inserted_at FROM logs")
		if err != nil {
			return err
		}
		type row struct {
			ID   [16]byte
			Came time.Time
		}
		inLogs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
		if err != nil {
			return err
		}
		for _, r := range inLogs {
			takenFrom := true
			for _, a := range ranges {
				if a.contains(r.Came) {
					takenFrom = !a.upToDate
				}
			}
			if takenFrom {
				add(r.ID)
			}
		}
		for _, a := range ranges {
			if !a.upToDate && !a.filesOnly {
				continue
			}
			files, err := published(ctx, tx, "from_at = $1", a.from)
			if err != nil {
				return err
			}
			inFiles := make(map[[16]byte]bool)
			everything := [2][16]byte{{}, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
			if err := archive.FindRows(ctx, store, files, [][2][16]byte{everything}, func(r *archive.Row) error {
				if inFiles[r.ID] {
					t.Fatalf("the row %x is in the files of a range twice", r.ID)
				}
				inFiles[r.ID] = true
				if a.upToDate || !found[r.ID] {
					add(r.ID)
				}
				return nil
			}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// wantAnswer fails the test unless a reader finds the rows.
func wantAnswer(t *testing.T, conn *pgx.Conn, store archive.Store, want map[[16]byte]bool) {
	t.Helper()
	if got := answer(t, conn, store); !maps.Equal(got, want) {
		t.Fatalf("a reader finds %d rows, want %d", len(got), len(want))
	}
}

// allIDs returns the ids in logs.
func allIDs(t *testing.T, conn *pgx.Conn) map[[16]byte]bool {
	t.Helper()
	rows, err := conn.Query(t.Context(), "SELECT id FROM logs")
	if err != nil {
		t.Fatal(err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[[16]byte])
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[[16]byte]bool)
	for _, id := range ids {
		all[id] = true
	}
	return all
}

// putLate stores a row as the worker does, with the note that something has changed.
func putLate(t *testing.T, conn *pgx.Conn, p *Set, at time.Time) {
	t.Helper()
	p.MarkStale()
	put(t, conn, p, at)
	exec(t, conn, NoteChangesSQL("SELECT date_trunc('hour', $1::timestamptz)"), at)
}

// archivedTest is a database with rows of three closed hours, of the open one, and an archive.
type archivedTest struct {
	url        config.PostgresURL
	db         *pgx.Conn
	parts      *Set
	store      archive.Folder
	archiver   *Archiver
	keeper     *Keeper
	open       time.Time
	rows       map[[16]byte]bool
	newArchive func(store archive.Store) *Archiver
}

func newArchivedTest(t *testing.T) *archivedTest {
	t.Helper()
	url := testenv.Schema(t)
	a := &archivedTest{url: url, db: workerConn(t, url), parts: New(time.Hour), store: archive.Folder(t.TempDir()), open: time.Now().UTC().Truncate(time.Hour)}
	a.parts.Files = a.store
	for _, hours := range []int{7, 6, 3} {
		fill(t, a.db, a.parts, a.open.Add(-time.Duration(hours)*time.Hour), 40)
	}
	put(t, a.db, a.parts, time.Now())
	a.rows = allIDs(t, a.db)
	a.newArchive = func(store archive.Store) *Archiver {
		return testArchiver(workerConn(t, url), workerConn(t, url), a.parts, store)
	}
	a.archiver = a.newArchive(a.store)
	a.keeper = testKeeper(workerConn(t, url), a.parts, 4*time.Hour)
	a.keeper.Archived = true
	return a
}

func (a *archivedTest) round(t *testing.T, round func(context.Context) error) {
	t.Helper()
	if err := round(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantAnswer(t, a.db, a.store, a.rows)
}

// drop lets rounds of the keeper pass until it has dropped all partitions of before five hours ago. One round need not do: a transaction of
// anybody in the database, be it autovacuum's, can be older than the files' turn, and the keeper waits for its end.
func (a *archivedTest) drop(t *testing.T) {
	t.Helper()
	testenv.Eventually(t, time.Minute, "old rows are dropped", func() bool {
		a.round(t, a.keeper.Round)
		return count(t, a.db, oldRows) == 0
	})
}

const oldRows = "SELECT count(*) FROM logs WHERE inserted_at < now() - interval '5 hours'"

func TestAPartitionThatIsNotInTheArchiveIsKept(t *testing.T) {
	a := newArchivedTest(t)
	a.round(t, a.keeper.Round)
	want(t, a.db, 80, oldRows)
	a.round(t, a.archiver.Round)
	a.drop(t)
	want(t, a.db, 2, "SELECT count(*) FROM archive_ranges WHERE files_only")
	// The drop changes no answer, and nothing is copied again.
	a.round(t, a.archiver.Round)
	want(t, a.db, 3, "SELECT count(*) FROM archive_files")
}

func TestLateRowsOfAPartitionThatIsGoneGetAFurtherFile(t *testing.T) {
	a := newArchivedTest(t)
	a.round(t, a.archiver.Round)
	a.drop(t)
	late := a.open.Add(-7*time.Hour + 5*time.Minute)
	for range 3 {
		putLate(t, a.db, a.parts, late)
	}
	maps.Copy(a.rows, allIDs(t, a.db))
	wantAnswer(t, a.db, a.store, a.rows) // before they are copied
	a.round(t, a.keeper.Round)
	want(t, a.db, 3, oldRows) // they are not dropped before
	a.round(t, a.archiver.Round)
	want(t, a.db, 4, "SELECT count(*) FROM archive_files WHERE state = 'published'")
	want(t, a.db, 1, "SELECT count(*) FROM archive_ranges WHERE generation = 2 AND files_only")
	a.drop(t)

	// Partitions are longer now than those that the files are of: one of a day has parts of several ranges and of gaps between them.
	a.parts = New(24 * time.Hour)
	a.parts.Files = a.store
	a.archiver.Partitions, a.keeper.Partitions = a.parts, a.parts
	for _, at := range []time.Duration{-7 * time.Hour, -6*time.Hour + time.Minute, -5*time.Hour - 25*time.Minute} {
		putLate(t, a.db, a.parts, a.open.Add(at))
	}
	maps.Copy(a.rows, allIDs(t, a.db))
	for range 3 {
		a.round(t, a.archiver.Round)
		a.round(t, a.keeper.Round)
	}
}

func TestRowsThatComeWhileAPartitionIsReleasedAreNotLost(t *testing.T) {
	a := newArchivedTest(t)
	a.round(t, a.archiver.Round)
	conn, _, err := a.keeper.leader.lead(t.Context(), &a.keeper.Link, keeperLock)
	if err != nil {
		t.Fatal(err)
	}
	first := func() partition {
		all, err := list(t.Context(), conn, a.parts.logs)
		if err != nil {
			t.Fatal(err)
		}
		return all[0]
	}
	step := func(what string, obstacle string, err error, wantObstacle bool) {
		t.Helper()
		if err != nil || (obstacle != "") != wantObstacle {
			t.Fatalf("%s: got %q, %v", what, obstacle, err)
		}
		wantAnswer(t, a.db, a.store, a.rows)
	}
	late := a.open.Add(-7*time.Hour + 6*time.Minute)

	obstacle, err := a.keeper.leaveToFiles(t.Context(), conn, first())
	step("leave to files", obstacle, err, false)
	putLate(t, a.db, a.parts, late)
	maps.Copy(a.rows, allIDs(t, a.db))
	wantAnswer(t, a.db, a.store, a.rows)
	obstacle, err = a.keeper.refuseRows(t.Context(), conn, first())
	step("refuse rows although one has come", obstacle, err, true)
	a.round(t, a.archiver.Round)
	// Once more, and a round of the keeper is the first to see it: it takes the mark off, or the partition would never be copied.
	obstacle, err = a.keeper.leaveToFiles(t.Context(), conn, first())
	step("leave to files again", obstacle, err, false)
	putLate(t, a.db, a.parts, late)
	maps.Copy(a.rows, allIDs(t, a.db))
	obstacle, err = a.keeper.release(t.Context(), conn, first(), time.Now())
	step("release although one has come", obstacle, err, true)
	a.round(t, a.archiver.Round)
	testenv.Eventually(t, time.Minute, "the partition is released", func() bool { // see drop
		obstacle, err = a.keeper.release(t.Context(), conn, first(), time.Now())
		return err != nil || obstacle == ""
	})
	step("release", obstacle, err, false)

	// Now it takes no rows. The error is that of a row without a partition.
	_, err = a.db.Exec(t.Context(), "INSERT INTO logs (id, inserted_at, data) VALUES (gen_random_uuid(), $1, '{}')", late)
	if !pg.IsUnrouted(err) {
		t.Fatalf("a row for a partition that is about to be detached: got %v", err)
	}
	a.parts.MarkStale()
	if err := a.parts.EnsureLogs(t.Context(), a.db, late); !errors.As(err, new(closingError)) {
		t.Fatalf("a partition for it: got %v", err)
	}

	// Retention is longer after all: it takes rows again.
	a.keeper.Retention = 30 * 24 * time.Hour
	a.round(t, a.keeper.Round)
	putLate(t, a.db, a.parts, late)
	maps.Copy(a.rows, allIDs(t, a.db))
	a.round(t, a.archiver.Round)
	a.keeper.Retention = 4 * time.Hour
	a.drop(t)
}

// TestAReaderOfBeforeKeepsItsRows: a snapshot in which a range's rows are those of logs has them to its end.
func TestAReaderOfBeforeKeepsItsRows(t *testing.T) {
	a := newArchivedTest(t)
	a.round(t, a.archiver.Round)
	late := a.open.Add(-7*time.Hour + 6*time.Minute)
	putLate(t, a.db, a.parts, late) // so a reader asks logs
	maps.Copy(a.rows, allIDs(t, a.db))
	reader := workerConn(t, a.url)
	exec(t, reader, "BEGIN ISOLATION LEVEL REPEATABLE READ")
	want(t, reader, 0, "SELECT count(*) FROM archive_ranges WHERE files_only")
	a.round(t, a.archiver.Round)
	for range 2 {
		a.round(t, a.keeper.Round)
	}
	want(t, reader, 81, oldRows)
	exec(t, reader, "COMMIT")
	a.drop(t)
}

func TestFilesAreDeletedAfterTheArchivesRetention(t *testing.T) {
	a := newArchivedTest(t)
	a.round(t, a.archiver.Round)
	a.drop(t)
	late := "SELECT coalesce(sum(changes), 0) FROM late_changes WHERE hour = $1"
	noted := count(t, a.db, late, a.open.Add(-7*time.Hour))
	a.archiver.Retention = 5*time.Hour + time.Minute
	a.keeper.ArchiveRetention = a.archiver.Retention
	left := make(map[[16]byte]bool)
	for id := range a.rows {
		if at := (int64(id[0])<<40 | int64(id[1])<<32 | int64(id[2])<<24 | int64(id[3])<<16 | int64(id[4])<<8 | int64(id[5])); at >= a.open.Add(-5*time.Hour).UnixMilli() {
			left[id] = true
		}
	}
	a.rows = left
	a.round(t, a.archiver.Round)
	want(t, a.db, 1, "SELECT count(*) FROM archive_ranges")
	want(t, a.db, noted+1, late, a.open.Add(-7*time.Hour))
	want(t, a.db, 2, "SELECT count(*) FROM archive_files WHERE state = 'superseded'")
	exec(t, a.db, "UPDATE archive_files SET state_at = now() - interval '61 minutes' WHERE state = 'superseded'")
	a.round(t, a.archiver.Round)
	want(t, a.db, 1, "SELECT count(*) FROM archive_files")
	// A partition of that age is not copied again, and is dropped all the same.
	putLate(t, a.db, a.parts, a.open.Add(-7*time.Hour))
	testenv.Eventually(t, time.Minute, "the late row is dropped", func() bool {
		if err := errors.Join(a.archiver.Round(t.Context()), a.keeper.Round(t.Context())); err != nil {
			t.Fatal(err)
		}
		return count(t, a.db, oldRows) == 0
	})
	wantAnswer(t, a.db, a.store, a.rows)
}

// brokenStore ends the archiver's sessions at the n-th call, as a crash does.
type brokenStore struct {
	archive.Folder
	left  int
	crash func()
}

func (s *brokenStore) step() error {
	if s.left--; s.left >= 0 {
		return nil
	}
	s.crash()
	return errors.New("crashed")
}

func (s *brokenStore) Create(ctx context.Context, name string, write func(io.Writer) error) error {
	if err := s.step(); err != nil {
		return err
	}
	if err := s.Folder.Create(ctx, name, write); err != nil {
		return err
	}
	return s.step()
}

func (s *brokenStore) Open(ctx context.Context, name string, size int64) (archive.Object, error) {
	if err := s.step(); err != nil {
		return nil, err
	}
	object, err := s.Folder.Open(ctx, name, size)
	if err != nil {
		return nil, err
	}
	return object, errors.Join(s.step())
}

// Delete leaves everything, as a crash does.
func (s *brokenStore) Delete(context.Context, string) error { return errors.New("crashed") }

// TestACrashAtAnyPointOfACopyLeavesNoTraceInAnswers crashes at each call of the store: of a first copy, of one that takes the place of another,
// and of one of late rows beside files that have the rest.
func TestACrashAtAnyPointOfACopyLeavesNoTraceInAnswers(t *testing.T) {
	a := newArchivedTest(t)
	crashes := func(what string) {
		t.Helper()
		for at := 0; ; at++ {
			broken := &brokenStore{Folder: a.store, left: at}
			archiver := a.newArchive(broken)
			conn, err := archiver.Link.Open(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			broken.crash = func() { exec(t, a.db, "SELECT pg_terminate_backend($1)", conn.PgConn().PID()) }
			err = archiver.Round(t.Context())
			_ = conn.Close(t.Context()) // its lock goes with it
			wantAnswer(t, a.db, a.store, a.rows)
			if err == nil {
				break
			}
			if at > 50 {
				t.Fatalf("%s: no round without a crash: %v", what, err)
			}
		}
		want(t, a.db, 0, "SELECT count(*) FROM ("+"SELECT FROM archive_files WHERE state = 'published' AND rows IS NULL) f")
	}
	crashes("first copy")
	putLate(t, a.db, a.parts, a.open.Add(-7*time.Hour+7*time.Minute))
	maps.Copy(a.rows, allIDs(t, a.db))
	crashes("copy anew")
	a.drop(t)
	putLate(t, a.db, a.parts, a.open.Add(-7*time.Hour+8*time.Minute))
	maps.Copy(a.rows, allIDs(t, a.db))
	crashes("further file")
	// What the crashes left is swept a day later.
	exec(t, a.db, "UPDATE archive_files SET state_at = state_at - interval '25 hours' WHERE state <> 'published'")
	a.archiver = a.newArchive(a.store)
	a.round(t, a.archiver.Round)
	want(t, a.db, 0, "SELECT count(*) FROM archive_files WHERE state <> 'published'")
}

func TestARestoredRangeIsInLogsOnceAndKept(t *testing.T) {
	a := newArchivedTest(t)
	exec(t, a.db, "UPDATE logs SET time = inserted_at - interval '5 hours' WHERE id = (SELECT id FROM logs ORDER BY inserted_at LIMIT 1)")
	before := make(map[[16]byte]archive.Row)
	a.round(t, a.archiver.Round)
	maps.Copy(before, archived(t, a.db, a.store))
	a.drop(t)
	putLate(t, a.db, a.parts, a.open.Add(-7*time.Hour+9*time.Minute)) // not in a file yet
	maps.Copy(a.rows, allIDs(t, a.db))
	conn := workerConn(t, a.url)
	restore := func(want ...int64) {
		t.Helper()
		ranges, err := ArchivedRanges(t.Context(), conn, a.open.Add(-8*time.Hour), a.open.Add(-5*time.Hour))
		if err != nil || len(ranges) != len(want) {
			t.Fatalf("got %d ranges, %v", len(ranges), err)
		}
		for i, r := range ranges {
			if rows, err := Restore(t.Context(), conn, a.store, r, 24*time.Hour); err != nil || rows != want[i] {
				t.Fatalf("restore: got %d rows, %v, want %d", rows, err, want[i])
			}
			wantAnswer(t, a.db, a.store, a.rows)
		}
	}
	restore(40, 40)
	want(t, a.db, 81, oldRows)
	want(t, a.db, 1, "SELECT count(*) FROM late_hours WHERE hour < from_at - interval '4 hours'")
	restore(0, 0) // they are there
	for range 2 {
		a.round(t, a.keeper.Round)
		a.round(t, a.archiver.Round)
	}
	want(t, a.db, 81, oldRows)
	compareArchive(t, a.db, a.store, a.open)
	exec(t, a.db, "UPDATE archive_ranges SET kept_until = now()")
	a.drop(t)
	after := archived(t, a.db, a.store)
	for id, r := range before {
		if string(after[id].Data) != string(r.Data) || after[id].InsertedAt != r.InsertedAt || after[id].Time != r.Time {
			t.Errorf("the row %x was %+v and is %+v", id, r, after[id])
		}
	}
}

// TestAReaderFindsEveryRowOnceWhileRowsComeAndGo stores late rows, copies, drops and reads at the same time. A reader finds each row whose
// transaction had been committed before it began.
func TestAReaderFindsEveryRowOnceWhileRowsComeAndGo(t *testing.T) {
	a := newArchivedTest(t)
	writer, reader := workerConn(t, a.url), workerConn(t, a.url)
	var mu sync.Mutex // guards stored
	stored := maps.Clone(a.rows)
	done := make(chan struct{})
	var working sync.WaitGroup
	working.Go(func() {
		defer close(done)
		rng := rand.New(rand.NewPCG(1, 2))
		for range 150 {
			at := a.open.Add(-7*time.Hour + time.Duration(rng.IntN(3*60))*time.Minute)
			for {
				base := frame.BaseAt(at)
				err := a.parts.EnsureLogs(t.Context(), writer, at)
				if err == nil {
					err = pgx.BeginFunc(t.Context(), writer, func(tx pgx.Tx) error {
						if _, err := tx.Exec(t.Context(), "INSERT INTO logs (id, inserted_at, data) VALUES ($1, $2, '{}')", [16]byte(base), frame.Time(base)); err != nil {
							return err
						}
						_, err := tx.Exec(t.Context(), NoteChangesSQL("SELECT date_trunc('hour', $1::timestamptz)"), at)
						return err
					})
				}
				if err == nil {
					mu.Lock()
					stored[base] = true
					mu.Unlock()
					break
				}
				if !errors.As(err, new(closingError)) && !errors.As(err, new(obstacle)) && !pg.IsUnrouted(err) && pg.CodeOf(err) != pg.UndefinedTable {
					t.Errorf("store a late row: %v", err)
					return
				}
				a.parts.MarkStale() // its partition is going
			}
		}
	})
	for _, round := range []func(context.Context) error{a.archiver.Round, a.keeper.Round} {
		working.Go(func() {
			for running := true; running; {
				select {
				case <-done:
					running = false
				default:
				}
				if err := round(t.Context()); err != nil && pg.CodeOf(err) != pg.LockNotAvailable && pg.CodeOf(err) != pg.QueryCanceled {
					t.Errorf("a round: %v", err)
				}
			}
		})
	}
	defer working.Wait()
	reads := 0
	for running := true; running; reads++ {
		select {
		case <-done:
			running = false
		default:
		}
		mu.Lock()
		before := maps.Clone(stored)
		mu.Unlock()
		got := answer(t, reader, a.store)
		for id := range before {
			if !got[id] {
				t.Fatalf("the row %x is missing in answer %d", id, reads)
			}
		}
	}
	working.Wait()
	if t.Failed() {
		return
	}
	a.rows = stored
	testenv.Eventually(t, time.Minute, "old rows are copied and dropped", func() bool {
		a.round(t, a.archiver.Round)
		a.round(t, a.keeper.Round)
		return count(t, a.db, oldRows) == 0
	})
	t.Logf("%d answers, %d copies, %d further rows", reads, count(t, a.db, "SELECT sum(generation) FROM archive_ranges"), len(stored)-121)
}
