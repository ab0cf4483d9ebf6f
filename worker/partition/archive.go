package partition

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/internal/archive"
	"millrace/internal/pg"
)

const (
	// archiverLock is the key of the advisory lock that the leading Archiver holds, "mrarchiv" in ASCII.
	archiverLock = 0x6d72617263686976
	// leastArchiveAfter is the least time from a partition's end to its copy. By then nearly all of its rows are there. Those that come later are noted in
	// late_changes, and the range is copied again.
	leastArchiveAfter = 5 * time.Minute
	// supersededFor is how long a file is kept that no new search reads: longer than a search lasts, and than a page's cursor is used.
	supersededFor = time.Hour
	// abandonedAfter is the age at which a file that is still being written was given up: its writer would have ended long ago.
	abandonedAfter = 24 * time.Hour
)

// Archiver copies closed partitions of logs to files of the archive, the oldest first, and publishes them. An open one is copied in slices as it
// fills (slice.go). Of all workers one copies at a time. A range in which rows have come or gone since its copy is copied anew, and the new files take the place of the old ones in one
// transaction. Until then they are out of date, and archive_ranges tells that to searches. If retention has dropped the rows of a range, the
// rows that came later go into further files of it.
//
// A crash at any point leaves at most files that are not published. Each is noted before it is begun, and a later round deletes it.
type Archiver struct {
	Link       pg.Link // as the user who owns the tables: the lock and the catalog
	Source     pg.Link // the rows
	Partitions *Set
	Store      archive.Store
	After      time.Duration              // from a partition's end to its copy; leastArchiveAfter at least
	Retention  time.Duration              // age at which files are deleted; zero: they are kept
	Calm       func(context.Context) bool // reports whether the streams leave room for a copy
	Log        *slog.Logger
	Now        func() time.Time
	Metrics    *ArchiveMetrics // may be nil

	// SliceRows and MostRows are the rows from which on a slice of an open partition is copied, while the streams are calm and in any case;
	// zero: the constants sliceRows and mostRows.
	SliceRows, MostRows int64

	leader    leader
	late      map[time.Time]time.Time // by the beginning of a range whose files lack late rows: since when that is known
	minutes   map[int64]int64         // how many records the ledger has of minutes of the open partition, by their beginning in Unix seconds
	countedAt time.Time               // when minutes was empty last
	credit    credit                  // for copying anew

	writersEndWithin time.Duration // of tests; zero: the constant
}

// Run works until ctx is done. It owns the links.
func (a *Archiver) Run(ctx context.Context) {
	defer a.Source.Drop()
	rounds(ctx, &a.Link, a.Log, "closed partitions could not be archived", a.Round)
}

// Round makes one round over the partitions. If one can't be copied, it goes on to the others and returns the error at the end.
func (a *Archiver) Round(ctx context.Context) error {
	conn, leads, err := a.leader.lead(ctx, &a.Link, archiverLock)
	if err != nil || !leads {
		return err
	}
	now, err := earlierClock(ctx, conn, a.Now())
	if err != nil {
		return err
	}
	var failed []error
	step := func(name string, err error) {
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", name, err))
		}
	}
	_, err = conn.Exec(ctx, noteSQL, "archive_retention", a.Retention.String())
	step("note", err)
	step("delete what is out of use", a.deleteLeft(ctx, conn))
	step("retention of the archive", a.expire(ctx, conn, now))
	all, err := list(ctx, conn, a.Partitions.logs)
	if err != nil {
		return errors.Join(append(failed, err)...)
	}
	a.Metrics.reportBehind(ctx, conn, a, all, now)
	for _, p := range all {
		var err error
		switch {
		case a.isOpen(p, now):
			err = a.archiveOpen(ctx, conn, p, now)
		case !a.isDue(p, now) || !a.Calm(ctx) && now.Before(p.to.Add(closedAfter)):
			continue
		default:
			err = a.archivePartition(ctx, conn, p, now)
		}
		if err != nil && ctx.Err() == nil {
			a.Metrics.countFailure()
		}
		step("archive "+p.name, err)
		if conn.IsClosed() || ctx.Err() != nil {
			break
		}
	}
	if !conn.IsClosed() {
		a.Metrics.reportBehind(ctx, conn, a, all, now)
		a.Metrics.reportFiles(ctx, conn)
	}
	return errors.Join(failed...)
}

// isDue reports whether a partition is to be in the archive: it has been closed for long enough, it is not being dropped, and its files would
// be kept.
func (a *Archiver) isDue(p partition, now time.Time) bool {
	return a.takes(p) && !p.to.After(a.settled(now)) && !expired(p.to, a.Retention, now)
}

// takes reports whether a partition may be copied: it is one of ours, and is not being dropped.
func (a *Archiver) takes(p partition) bool {
	return !p.pending && !p.marked() && !p.from.IsZero() && a.Partitions.logs.ownName(p.name)
}

// settled returns the time before which rows are to be in the archive.
func (a *Archiver) settled(now time.Time) time.Time { return now.Add(-a.after()) }

// after returns how old rows are when they are due to be in the archive.
func (a *Archiver) after() time.Duration { return max(a.After, leastArchiveAfter) }

// expired reports whether the archive's retention has passed since a time. Zero keeps all.
func expired(to time.Time, retention time.Duration, now time.Time) bool {
	return retention > 0 && !to.After(now.Add(-retention))
}

// archivedRange is a row of archive_ranges, or a range that is to be one: then its generation is 0.
type archivedRange struct {
	timeRange
	generation int
	upToDate   bool // the files have all of its rows
	filesOnly  bool // logs has at most rows that came later
	keptUntil  time.Time
}

var rangesSQL = `SELECT from_at, to_at, generation, files_only, CASE WHEN isfinite(kept_until) THEN kept_until ELSE '1970-01-01' END,
	changes = ` + archive.ChangesSQL("r.from_at", "r.to_at") + ` FROM archive_ranges r WHERE generation > 0 AND ` + archive.TouchesSQL("$1", "$2") + ` ORDER BY from_at`

const forUpdate = " FOR UPDATE OF r"

// archivedRanges returns the published ranges in the archive that have a part of r, in order. lock may be forUpdate.
func archivedRanges(ctx context.Context, conn *pgx.Conn, r timeRange, lock string) ([]archivedRange, error) {
	rows, err := conn.Query(ctx, rangesSQL+lock, r.from, r.to)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (a archivedRange, err error) {
		err = row.Scan(&a.from, &a.to, &a.generation, &a.filesOnly, &a.keptUntil, &a.upToDate)
		a.from, a.to = a.from.UTC(), a.to.UTC()
		return a, err
	})
}

// gaps returns the parts of r that none of the ranges has. The ranges are in order.
func gaps(r timeRange, ranges []archivedRange) (missing []timeRange) {
	at := r.from
	for _, a := range ranges {
		if a.from.After(at) {
			missing = append(missing, timeRange{at, a.from})
		}
		if a.to.After(at) {
			at = a.to
		}
	}
	if at.Before(r.to) {
		missing = append(missing, timeRange{at, r.to})
	}
	return missing
}

// keptGaps returns the gaps without what is older than the archive's retention, up to whole hours: it would leave the archive at once, and be copied for ever.
func keptGaps(r timeRange, ranges []archivedRange, retention time.Duration, now time.Time) (kept []timeRange) {
	for _, g := range gaps(r, ranges) {
		if expired(g.to, retention, now) {
			continue
		}
		if old := now.Add(-retention).Truncate(time.Hour); retention > 0 && old.After(g.from) {
			g.from = old.UTC()
		}
		kept = append(kept, g)
	}
	return kept
}

// archivePartition copies what the archive does not have of a closed partition, and the ranges whose copies are not up to date. A partition of few rows is one range.
// One that was made for late rows after others had been dropped may have parts of several.
func (a *Archiver) archivePartition(ctx context.Context, conn *pgx.Conn, p partition, now time.Time) error {
	ranges, err := archivedRanges(ctx, conn, p.timeRange, "")
	if err != nil {
		return err
	}
	for _, missing := range keptGaps(p.timeRange, ranges, a.Retention, now) {
		if err := a.archive(ctx, conn, archivedRange{timeRange: missing}); err != nil {
			return err
		}
	}
	for _, r := range ranges {
		if r.upToDate {
			continue
		}
		if err := a.archiveAnew(ctx, conn, p, r, now); err != nil {
			return err
		}
	}
	return nil
}

// archive copies the rows that logs has of a range. If files alone have the others, it leaves those files, and leaves out what is in them.
func (a *Archiver) archive(ctx context.Context, conn *pgx.Conn, r archivedRange) (err error) {
	if r.generation == 0 {
		if err := a.announce(ctx, conn, r.timeRange); err != nil {
			return err
		}
	}
	registry, err := readRegistry(ctx, conn)
	if err != nil {
		return err
	}
	began := time.Now()
	source, err := a.Source.Open(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			a.Source.Rollback(ctx)
		}
	}()
	tx, err := source.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return err
	}
	// Before the snapshot is taken: no partition is detached between the two.
	if _, err := tx.Exec(ctx, "LOCK TABLE ONLY logs IN ACCESS SHARE MODE"); err != nil {
		return err
	}
	// In the snapshot of the rows: what is noted later is a change that they do not have.
	var changes int64
	if err := tx.QueryRow(ctx, "SELECT "+archive.ChangesSQL("$1::timestamptz", "$2::timestamptz"), r.from, r.to).Scan(&changes); err != nil {
		return err
	}
	rows := rangeRows(ctx, tx, r.timeRange)
	if r.filesOnly {
		files, err := PublishedFiles(ctx, conn, r.from, r.to)
		if err != nil {
			return err
		}
		rows = withoutRows(ctx, rows, a.Store, files)
	}
	id := uuid.New()
	name := func(n int) (string, error) {
		name := archive.FileName(r.from, r.generation+1, id, n)
		_, err := conn.Exec(ctx, "INSERT INTO archive_files (name, from_at, to_at, generation) VALUES ($1, $2, $3, $4)", name, r.from, r.to, r.generation+1)
		return name, err
	}
	entries, err := archive.Copy(ctx, a.Store, name, registry, rows)
	if err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		return err
	}
	if err := publish(ctx, conn, r, changes, registry, entries); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	n, bytes := 0, int64(0)
	for _, e := range entries {
		n, bytes = n+e.Rows, bytes+e.Bytes
	}
	if r.generation == 0 {
		a.credit.grow(float64(n), float64(a.sliceRows()), float64(a.mostRows()), a.Now())
	}
	a.Metrics.countCopy(n, bytes)
	a.Log.Info("archived a range", "from", r.from, "to", r.to, "rows", n, "bytes", bytes, "files", len(entries), "generation", r.generation+1,
		"took", time.Since(began).Round(time.Millisecond))
	return nil
}

func readRegistry(ctx context.Context, conn *pgx.Conn) (*archive.Registry, error) {
	rows, err := conn.Query(ctx, "SELECT name, kind FROM archive_fields")
	if err != nil {
		return nil, err
	}
	known := make(map[string]archive.Kind)
	var name, text string
	_, err = pgx.ForEachRow(rows, []any{&name, &text}, func() error {
		kind, ok := archive.ParseKind(text)
		if !ok {
			return fmt.Errorf("archive_fields: the field %q is of the kind %q, which this version does not know", name, text)
		}
		known[name] = kind
		return nil
	})
	return archive.NewRegistry(known), err
}

// publish makes the files those of a range, in one transaction. The files of before are superseded, unless they alone have their rows.
func publish(ctx context.Context, conn *pgx.Conn, r archivedRange, changes int64, registry *archive.Registry, entries []archive.Entry) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		var names, kinds []string
		for name, kind := range registry.Kinds() {
			names, kinds = append(names, name), append(kinds, kind.String())
		}
		var others int
		if _, err := tx.Exec(ctx, "INSERT INTO archive_fields SELECT * FROM unnest($1::text[], $2::text[]) ON CONFLICT DO NOTHING", names, kinds); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, "SELECT count(*) FROM archive_fields JOIN unnest($1::text[], $2::text[]) AS t (name, kind) USING (name) WHERE archive_fields.kind <> t.kind",
			names, kinds).Scan(&others); err != nil {
			return err
		}
		if others > 0 {
			return fmt.Errorf("%d fields got another kind meanwhile", others)
		}
		tag, err := tx.Exec(ctx, `INSERT INTO archive_ranges (from_at, to_at, generation, changes) VALUES ($1, $2, $3, $4)
			ON CONFLICT (from_at) DO UPDATE SET generation = excluded.generation, changes = excluded.changes, published_at = now()
			WHERE archive_ranges.to_at = excluded.to_at AND archive_ranges.generation = excluded.generation - 1 AND archive_ranges.files_only = $5`,
			r.from, r.to, r.generation+1, changes, r.filesOnly)
		if err != nil {
			return err
		}
		if tag.RowsAffected() != 1 {
			return errors.New("another copy was published meanwhile")
		}
		if !r.filesOnly {
			if err := supersede(ctx, tx, r.timeRange); err != nil {
				return err
			}
		}
		for _, e := range entries {
			bounds := e.Bounds()
			tag, err := tx.Exec(ctx, `UPDATE archive_files SET state = 'published', state_at = now(), rows = $2, bytes = $3, tail_bytes = $4, first_id = $5, last_id = $6,
				first_at = $7, last_at = $8, first_time = $9, last_time = $10 WHERE name = $1 AND state = 'writing'`,
				e.Name, e.Rows, e.Bytes, e.TailBytes, [16]byte(bounds.MinID), [16]byte(bounds.MaxID),
				time.UnixMicro(bounds.MinCame), time.UnixMicro(bounds.MaxCame), time.UnixMicro(bounds.MinTime), time.UnixMicro(bounds.MaxTime))
			if err != nil {
				return err
			}
			if tag.RowsAffected() != 1 {
				return fmt.Errorf("the file %s is no longer noted", e.Name)
			}
		}
		return nil
	})
}

// supersede takes the files of a range out of searches. They are deleted later.
func supersede(ctx context.Context, tx pgx.Tx, r timeRange) error {
	_, err := tx.Exec(ctx, "UPDATE archive_files SET state = 'superseded', state_at = now() WHERE from_at = $1 AND state = 'published'", r.from)
	return err
}

// sinceUnix is from 1970 to 2000, in microseconds. PostgreSQL counts from 2000.
const sinceUnix = 946_684_800_000_000

// rangeRows returns the rows that logs has of a range, in the order in which they came.
func rangeRows(ctx context.Context, tx pgx.Tx, r timeRange) iter.Seq2[*archive.Row, error] {
	return func(yield func(*archive.Row, error) bool) {
		rows, err := tx.Query(ctx, "SELECT id, inserted_at, time, data::text FROM logs WHERE inserted_at >= $1 AND inserted_at < $2 ORDER BY inserted_at, id",
			pgx.QueryResultFormats{pgx.BinaryFormatCode}, r.from, r.to)
		if err != nil {
			yield(nil, err)
			return
		}
		defer rows.Close()
		var row archive.Row
		for rows.Next() {
			values := rows.RawValues()
			if len(values[0]) != 16 || len(values[1]) != 8 || len(values[2]) != 8 {
				yield(nil, errors.New("columns of other types than those of logs"))
				return
			}
			copy(row.ID[:], values[0])
			row.InsertedAt, row.Time, row.Data = unixMicros(values[1]), unixMicros(values[2]), values[3]
			if !yield(&row, nil) {
				return
			}
		}
		if err := rows.Err(); err != nil {
			yield(nil, err)
		}
	}
}

// unixMicros returns the Unix microseconds of a timestamptz as PostgreSQL sends it. Infinities stay the least and the greatest integer.
func unixMicros(b []byte) int64 {
	v := int64(binary.BigEndian.Uint64(b))
	if v == math.MaxInt64 || v == math.MinInt64 {
		return v
	}
	return v + sinceUnix
}

// deleteLeft deletes files that nobody reads any more, and those that were given up.
func (a *Archiver) deleteLeft(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, `SELECT name FROM archive_files WHERE state = 'superseded' AND state_at < now() - $1::interval
		OR state = 'writing' AND state_at < now() - $2::interval ORDER BY state_at LIMIT 1000`, supersededFor, abandonedAfter)
	if err != nil {
		return err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := a.Store.Delete(ctx, name); err != nil {
			return err
		}
		if _, err := conn.Exec(ctx, "DELETE FROM archive_files WHERE name = $1 AND state <> 'published'", name); err != nil {
			return err
		}
	}
	return nil
}
