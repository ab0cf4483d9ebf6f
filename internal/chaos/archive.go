package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/internal/archive"
)

// With an archive, partitions have two minutes, and are copied in slices, published and dropped within five more, so that a run of minutes has many lives of
// partitions. The settings and constants of the product are as many hours, and are exchanged for the run's binary. The order between them
// is that of the product.
const (
	archivePartition = 2 * time.Minute
	archiveAfter     = 90 * time.Second
	archiveRetention = 3 * time.Minute // of rows
)

// ArchiveEdits are what the binaries of a run with an archive have instead of the product's text.
var ArchiveEdits = []Edit{
	{"worker/config.go", `oneof:"1h 24h"`, `oneof:"2m 1h 24h"`},
	{"worker/config.go", `envDefault:"10m" min:"5m"`, `envDefault:"10m" min:"1m"`},
	{"worker/store.go", `const attemptTimeout = 2 * time.Minute`, `const attemptTimeout = 45 * time.Second`},
	{"worker/partition/archive.go", `leastArchiveAfter = 5 * time.Minute`, `leastArchiveAfter = 90 * time.Second`},
	{"worker/partition/archive.go", `supersededFor = time.Hour`, `supersededFor = time.Minute`},
	{"worker/partition/catalog.go", `const closedAfter = time.Hour`, `const closedAfter = 2 * time.Minute`},
	{"worker/partition/slice.go", `sliceRows = 1_000_000`, `sliceRows = 1_000`},
	{"worker/partition/slice.go", `mostRows = 5_000_000`, `mostRows = 5_000`},
	{"worker/partition/again.go", `refillTime = 6 * time.Hour`, `refillTime = 20 * time.Second`},
	{"worker/partition/leader.go", `RoundInterval = time.Minute`, `RoundInterval = 5 * time.Second`},
}

const (
	archiveDiskSize = 512 << 20 // the least size of the file system that the archive is on
	archivePart     = "archive" // as faults' names begin
)

// makeArchive makes the folder of the archive. It is not the mount point of its file system, so that it can be moved away.
func (s *system) makeArchive(o Options) error {
	dir := filepath.Join(s.dir, "archive")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	disk, err := newDisk(dir, archiveDiskSize+recordDisk*int64(o.Rate)*int64(o.Duration.Seconds()))
	if err != nil {
		s.noArchiveDisk = err
	} else {
		s.archiveDisk = disk
		s.closing = append(s.closing, func() error { return disk.close(s.keep) })
	}
	s.archive = filepath.Join(dir, "files")
	return os.Mkdir(s.archive, 0o700)
}

// archiveEnv returns the settings of workers and the query service for the archive.
func (s *system) archiveEnv() []string {
	if s.archive == "" {
		return nil
	}
	return []string{"ARCHIVE_URL=file://" + s.archive, "PARTITION_INTERVAL=" + archivePartition.String(), "ARCHIVE_AFTER=" + archiveAfter.String(),
		"RETENTION=" + archiveRetention.String()}
}

// millrace runs a command of millrace, and returns what it prints.
func (s *system) millrace(ctx context.Context, binary string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "POSTGRES_URL=" + string(s.db)}, s.archiveEnv()...)
	cmd.Dir = s.dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// archiveFaults returns the faults of the archive.
func (s *system) archiveFaults(o Options) []fault {
	// A worker does not start without a place for its files. And what the ledger may have forgotten must be looked up in files, so no clock is
	// stepped back that far meanwhile.
	touches := func(string) []string { return []string{archivePart, "worker1", "worker2", "query", "api2"} }
	target := []string{archivePart}
	seconds := func(n int) time.Duration { return time.Duration(n) * time.Second }
	faults := []fault{
		{name: "archive: full", least: seconds(5), most: seconds(40), strike: func(ctx context.Context, s *system, _ string, hold time.Duration, _ *rand.Rand) error {
			err := s.archiveDisk.fill()
			pause(ctx, hold)
			return errors.Join(err, s.archiveDisk.free())
		}},
		{name: "archive: read only", least: seconds(5), most: seconds(40), strike: strikeArchiveReadOnly},
		{name: "archive: gone", least: seconds(5), most: seconds(40), strike: strikeArchiveGone},
		{name: "archive: workers SIGKILL in the middle of a copy", most: seconds(3), strike: strikeCopy},
		{name: "archive: a published file cut short", least: seconds(1), most: seconds(10),
			strike: func(ctx context.Context, s *system, _ string, hold time.Duration, _ *rand.Rand) error {
				return s.strikeFile(ctx, o.Binary, hold)
			}},
	}
	for i := range faults {
		f := &faults[i]
		f.targets, f.touches = target, touches
		if i < 2 && s.archiveDisk == nil {
			f.missing = "no file system of its own"
			if s.noArchiveDisk != nil {
				f.missing = s.noArchiveDisk.Error()
			}
		}
	}
	return faults
}

// strikeArchiveReadOnly makes everything in the archive immutable, which holds for root too. A file system in which deleted files are still open can't
// be mounted read only.
func strikeArchiveReadOnly(ctx context.Context, s *system, _ string, hold time.Duration, _ *rand.Rand) error {
	change := func(how string) error {
		if out, err := exec.Command("chattr", "-R", how, s.archive).CombinedOutput(); err != nil {
			return fmt.Errorf("chattr %s: %w: %s", how, err, out)
		}
		return nil
	}
	trying, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err := again(trying, func() error { return change("+i") }) // a file may go while it is at it
	pause(ctx, hold)
	return errors.Join(err, change("-i"))
}

// strikeArchiveGone puts a file in the place of the archive's folder.
func strikeArchiveGone(ctx context.Context, s *system, _ string, hold time.Duration, _ *rand.Rand) error {
	away := s.archive + "-away"
	if err := os.Rename(s.archive, away); err != nil {
		return err
	}
	err := os.WriteFile(s.archive, nil, 0o600) // else a worker would make a folder
	pause(ctx, hold)
	return errors.Join(err, os.Remove(s.archive), os.Rename(away, s.archive))
}

// copyWait is how long a fault waits for a copy. There is one a minute at least.
const copyWait = 75 * time.Second

// strikeCopy kills the workers while one of them copies a range to files, and starts them again.
func strikeCopy(ctx context.Context, s *system, _ string, hold time.Duration, rng *rand.Rand) error {
	waiting, cancel := context.WithTimeout(ctx, copyWait)
	defer cancel()
	conn, err := s.connect(waiting)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx)) // nothing to lose
	for {
		var since float64
		err := conn.QueryRow(waiting, "SELECT extract(epoch FROM clock_timestamp() - state_at) FROM archive_files WHERE state = 'writing' AND state_at > clock_timestamp() - interval '1 second' LIMIT 1").Scan(&since)
		if err == nil {
			break
		}
		if !errors.Is(err, pgx.ErrNoRows) {
			return errors.Join(errors.New("no copy came by"), err)
		}
		pause(waiting, 2*time.Millisecond)
	}
	pause(ctx, time.Duration(rng.IntN(150))*time.Millisecond) // so that it also hits the end, and the publication
	return strikeKillAll(ctx, s, "worker", hold, rng)
}

// strikeFile cuts a published file short whose rows nobody else has. millrace archive verify must find it, and a search that needs it must not
// answer with another number than before. Then the file is whole again.
func (s *system) strikeFile(ctx context.Context, binary string, hold time.Duration) error {
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	var name string
	var from, to time.Time
	err = conn.QueryRow(ctx, `SELECT f.name, f.from_at, f.to_at FROM archive_files f JOIN archive_ranges r USING (from_at)
		WHERE f.state = 'published' AND r.files_only ORDER BY random() LIMIT 1`).Scan(&name, &from, &to)
	_ = conn.Close(ctx) // nothing to lose
	if err != nil {
		return errors.Join(errors.New("no rows are in files alone yet"), err)
	}
	w := window{from.UTC(), to.UTC(), "inserted_at", everybody}
	before, known := s.asker.count(ctx, w, "pad:*a*")
	path := filepath.Join(s.archive, filepath.FromSlash(name))
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	// In place: the query service may have it open.
	if err := os.Truncate(path, int64(len(content)/2)); err != nil {
		return err
	}
	ask := func() {
		if got, ok := s.asker.count(ctx, w, "pad:*a*"); ok && known && got < before {
			s.asker.run.mismatch(shrunk, "the file %s is cut short, and the range from %s to %s has %d records with an a; before it had %d",
				name, from.Format(time.RFC3339), to.Format(time.RFC3339), got, before)
		}
	}
	ask()
	out, verifyErr := s.millrace(ctx, binary, "archive", "verify", from.UTC().Format(time.RFC3339)+"/"+to.UTC().Format(time.RFC3339))
	pause(ctx, hold)
	ask()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return err
	}
	var exit *exec.ExitError
	if ctx.Err() == nil && (!errors.As(verifyErr, &exit) || !strings.Contains(out, name)) {
		s.asker.run.mismatch(unnoticed, "millrace archive verify: %v: %s: want an error that names %s", verifyErr, out, name)
	}
	return nil
}

// archivedRange is a range of the archive, with its files.
type archivedRange struct {
	from, to         time.Time
	filesOnly, fresh bool
	generation       int
	files            []archive.Stored
}

// storedRow is a row of logs or of a file.
type storedRow struct {
	id       [16]byte
	came, at time.Time
	text     string
}

// rows calls f with each row that is stored, as the catalog of the archive tells: those of files, those of logs, or both. Rows that are in
// both must be the same. The workers have stopped.
func (s *system) rows(ctx context.Context, differs func(format string, args ...any), f func(storedRow)) (ranges []archivedRange, err error) {
	err = s.snapshot(ctx, func(tx pgx.Tx) error {
		if s.archive == "" {
			return logsRows(ctx, tx, "", nil, f)
		}
		if ranges, err = archivedRanges(ctx, tx); err != nil {
			return err
		}
		for _, r := range ranges {
			if err := s.rowsOf(ctx, tx, r, differs, f); err != nil {
				return err
			}
		}
		const elsewhere = ` WHERE NOT EXISTS (SELECT FROM archive_ranges WHERE from_at <= inserted_at AND to_at > inserted_at)`
		return logsRows(ctx, tx, elsewhere, nil, f)
	})
	return ranges, err
}

// snapshot calls f with a transaction that reads one snapshot of the database, by a connection of its own.
func (s *system) snapshot(ctx context.Context, f func(pgx.Tx) error) error {
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(ctx) // nothing to lose
	return pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, f)
}

// archivedRanges returns the ranges of the archive.
func archivedRanges(ctx context.Context, tx pgx.Tx) (ranges []archivedRange, err error) {
	rows, err := tx.Query(ctx, "SELECT from_at, to_at, files_only, generation, changes = "+archive.ChangesSQL("from_at", "to_at")+" FROM archive_ranges ORDER BY from_at")
	if err != nil {
		return nil, err
	}
	var r archivedRange
	if _, err := pgx.ForEachRow(rows, []any{&r.from, &r.to, &r.filesOnly, &r.generation, &r.fresh}, func() error {
		ranges = append(ranges, r)
		return nil
	}); err != nil {
		return nil, err
	}
	for i := range ranges {
		rows, err := tx.Query(ctx, "SELECT name, bytes, tail_bytes FROM archive_files WHERE state = 'published' AND from_at = $1 ORDER BY name", ranges[i].from)
		if err != nil {
			return nil, err
		}
		ranges[i].files, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (f archive.Stored, err error) {
			return f, row.Scan(&f.Name, &f.Bytes, &f.TailBytes)
		})
		if err != nil {
			return nil, err
		}
	}
	return ranges, nil
}

// rowsOf calls f with each row of a range of the archive.
func (s *system) rowsOf(ctx context.Context, tx pgx.Tx, r archivedRange, differs func(format string, args ...any), f func(storedRow)) error {
	about := fmt.Sprintf("the range from %s to %s", r.from.UTC().Format(time.RFC3339), r.to.UTC().Format(time.RFC3339))
	inFiles := make(map[[16]byte]string)
	for _, file := range r.files {
		if err := s.rowsOfFile(ctx, file, func(row storedRow) {
			if _, there := inFiles[row.id]; there {
				differs("%s: two of its files have %s", about, uuid.UUID(row.id))
			}
			if row.came.Before(r.from) || !row.came.Before(r.to) {
				differs("%s: %s has a row of %s", about, file.Name, row.came)
			}
			inFiles[row.id] = row.text
			if r.fresh || r.filesOnly {
				f(row)
			}
		}); err != nil {
			differs("%s: %s: %v", about, file.Name, err)
		}
	}
	both := 0
	err := logsRows(ctx, tx, " WHERE inserted_at >= $1 AND inserted_at < $2", []any{r.from, r.to}, func(row storedRow) {
		text, there := inFiles[row.id]
		switch {
		case there && text != row.text:
			differs("%s: %s is %.200s in logs, and %.200s in a file", about, uuid.UUID(row.id), row.text, text)
		case there:
			both++
		case r.fresh:
			differs("%s: its files have all rows as it seems, and logs alone has %s: %.200s", about, uuid.UUID(row.id), row.text)
		}
		if !r.fresh && (!r.filesOnly || !there) {
			f(row)
		}
	})
	if !r.filesOnly && both < len(inFiles) {
		differs("%s: %d rows are in files, and %d of them in logs, which should have all", about, len(inFiles), both)
	}
	return err
}

// logsRows calls f with rows of the table logs.
func logsRows(ctx context.Context, tx pgx.Tx, where string, args []any, f func(storedRow)) error {
	rows, err := tx.Query(ctx, "SELECT id, inserted_at, time, data::text FROM logs"+where, args...)
	if err != nil {
		return err
	}
	var row storedRow
	_, err = pgx.ForEachRow(rows, []any{&row.id, &row.came, &row.at, &row.text}, func() error {
		f(row)
		return nil
	})
	return err
}

// rowsOfFile calls f with the rows of a file, once it is known to be as it was written.
func (s *system) rowsOfFile(ctx context.Context, stored archive.Stored, f func(storedRow)) (err error) {
	file, object, err := archive.OpenStored(ctx, archive.Folder(s.archive), stored)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, object.Close()) }()
	if _, err := file.Verify(ctx); err != nil {
		return err
	}
	for i := range file.Groups {
		g := file.Group(i)
		if err := g.Records(ctx, archive.AllBits(g.Rows), func(r *archive.Row) error {
			row := storedRow{id: r.ID, came: time.UnixMicro(r.InsertedAt), text: string(r.Data)}
			if row.at = row.came; r.Time != archive.NoTime {
				row.at = time.UnixMicro(r.Time)
			}
			f(row)
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// replayAll replays the letters of records that had no partition, or that could not be looked up in the archive, while the workers run. Rows that
// meet a partition that is being dropped wait for half a minute; under faults the drop may take longer. The promise is that a replay stores
// them once. It returns how many letters there were, and an error if some stay.
func (r *run) replayAll(ctx context.Context) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.Patience)
	defer cancel()
	defer func() {
		for _, u := range r.named("worker") {
			err = errors.Join(err, u.stop(stopWithin)) // which does nothing to one that does not run
		}
	}()
	for {
		conn, err := r.connect(ctx)
		if err != nil {
			return n, err
		}
		rows, _ := conn.Query(ctx, "SELECT id::text FROM dead_letters WHERE reason IN ('no_partition', 'no_archive')")
		letters, err := pgx.CollectRows(rows, pgx.RowTo[string])
		_ = conn.Close(ctx) // nothing to lose
		if err != nil || len(letters) == 0 {
			return n, err
		}
		n = max(n, len(letters))
		for _, u := range r.named("worker") {
			if u.pid() != 0 {
				continue
			}
			if err := u.start(); err != nil {
				return n, err
			}
			if err := u.ready(ctx); err != nil {
				return n, err
			}
		}
		out, err := r.millrace(ctx, r.Binary, append([]string{"dead", "replay"}, letters...)...)
		if err != nil && ctx.Err() != nil {
			return n, fmt.Errorf("%d letters can't be replayed: %w: %s", len(letters), err, out)
		}
		pause(ctx, time.Second)
	}
}

// archivedTotals is what was in the archive in the end.
type archivedTotals struct{ Ranges, FilesOnly, Files, Generation int }

// archive sums up the ranges. A run in which nothing went from the table to files, or nobody counted meanwhile, proves nothing.
func (r *Report) archive(ranges []archivedRange) {
	a := &r.Archived
	for _, one := range ranges {
		a.Ranges++
		a.Files += len(one.files)
		a.Generation = max(a.Generation, one.generation)
		if one.filesOnly {
			a.FilesOnly++
		}
	}
	if a.FilesOnly == 0 || r.run.reader.answers == 0 {
		r.run.mismatch(broken, "%d ranges of the archive are in files alone, and clients' records were counted %d times", a.FilesOnly, r.run.reader.answers)
	}
}
