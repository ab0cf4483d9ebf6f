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
	// leastArchiveAfter is the least time from a partition's end to its copy. What comes later than that into a partition is noted in
	// late_changes, and the transactions from before have ended: none lasts longer than the worker lets it, which is two minutes.
	leastArchiveAfter = 5 * time.Minute
	// supersededFor is how long a file is kept that no new search reads: longer than a search lasts, and than a page's cursor is used.
	supersededFor = time.Hour
	// abandonedAfter is the age at which a file that is still being written was given up: its writer would have ended long ago.
	abandonedAfter = 24 * time.Hour
)

// Archiver copies closed partitions of logs to files of the archive, the oldest first, and publishes them. Of all workers one copies at a
// time. A partition in which rows have come or gone since its copy is copied anew, and the new files take the place of the old ones in one
// transaction. Until then they are out of date, and archive_ranges tells that to searches.
//
// A crash at any point leaves at most files that are not published. Each is noted before it is begun, and a later round deletes it.
type Archiver struct {
	Link       pg.Link // as the user who owns the tables: the lock and the catalog
	Source     pg.Link // the rows
	Partitions *Set
	Store      archive.Store
	After      time.Duration              // from a partition's end to its copy; leastArchiveAfter at least
	Calm       func(context.Context) bool // reports whether the streams leave room for a copy
	Log        *slog.Logger
	Now        func() time.Time

	leader leader
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
	if err := a.deleteLeft(ctx, conn); err != nil {
		failed = append(failed, fmt.Errorf("delete what is out of use: %w", err))
	}
	all, err := list(ctx, conn, a.Partitions.logs)
	if err != nil {
		return errors.Join(append(failed, err)...)
	}
	for _, p := range all {
		if p.pending || p.marked() || p.to.Add(max(a.After, leastArchiveAfter)).After(now) || !a.Partitions.logs.ownName(p.name) {
			continue
		}
		if !a.Calm(ctx) && now.Before(p.to.Add(closedAfter)) {
			continue
		}
		if err := a.archive(ctx, conn, p); err != nil {
			failed = append(failed, fmt.Errorf("archive %s: %w", p.name, err))
		}
		if conn.IsClosed() || ctx.Err() != nil {
			break
		}
	}
	return errors.Join(failed...)
}

// changesSQL is the sum of the changes that were noted for a range: $1 to $2.
const changesSQL = `SELECT coalesce(sum(changes), 0)::bigint FROM late_changes
	WHERE hour > $1::timestamptz - interval '1 hour' AND hour < $2 OR hour = '-infinity'`

// archive copies a partition, unless its copy is up to date.
func (a *Archiver) archive(ctx context.Context, conn *pgx.Conn, p partition) (err error) {
	generation, upToDate, err := published(ctx, conn, p)
	if err != nil || upToDate {
		return err
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
	// In the snapshot of the rows: what is noted later is a change that they do not have.
	var changes int64
	if err := tx.QueryRow(ctx, changesSQL, p.from, p.to).Scan(&changes); err != nil {
		return err
	}
	id := uuid.New()
	name := func(n int) (string, error) {
		from := p.from.UTC()
		name := fmt.Sprintf("v1/logs/date=%s/hour=%s/%s-%d-%s-%d.parquet", from.Format(time.DateOnly), from.Format("15"), from.Format("20060102T150405Z"), generation+1, id, n)
		_, err := conn.Exec(ctx, "INSERT INTO archive_files (name, from_at, to_at, generation) VALUES ($1, $2, $3, $4)", name, p.from, p.to, generation+1)
		return name, err
	}
	entries, err := archive.Copy(ctx, a.Store, name, registry, partitionRows(ctx, tx, p))
	if err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		return err
	}
	if err := publish(ctx, conn, p, generation, changes, registry, entries); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	rows, bytes := 0, int64(0)
	for _, e := range entries {
		rows, bytes = rows+e.Rows, bytes+e.Bytes
	}
	a.Log.Info("archived a closed partition", "table", p.name, "rows", rows, "bytes", bytes, "files", len(entries), "generation", generation+1,
		"took", time.Since(began).Round(time.Millisecond))
	return nil
}

// published returns the generation of a partition's copy, 0 if there is none, and reports whether it has all of the partition's rows.
func published(ctx context.Context, conn *pgx.Conn, p partition) (generation int, upToDate bool, err error) {
	var known, changes int64
	err = conn.QueryRow(ctx, "SELECT generation, changes, ("+changesSQL+") FROM archive_ranges WHERE from_at = $1 AND to_at = $2", p.from, p.to).Scan(&generation, &known, &changes)
	switch {
	case err == nil:
		return generation, known == changes, nil
	case !errors.Is(err, pgx.ErrNoRows):
		return 0, false, err
	}
	// A range that was copied before and has other bounds has rows that are in no partition any more.
	var others int
	if err = conn.QueryRow(ctx, "SELECT count(*) FROM archive_ranges WHERE from_at < $2 AND to_at > $1", p.from, p.to).Scan(&others); err != nil || others == 0 {
		return 0, false, err
	}
	return 0, false, fmt.Errorf("%d ranges of other bounds are archived", others)
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

// publish makes the files those of the partition's range, in one transaction. The files of before are superseded.
func publish(ctx context.Context, conn *pgx.Conn, p partition, generation int, changes int64, registry *archive.Registry, entries []archive.Entry) error {
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
			WHERE archive_ranges.to_at = excluded.to_at AND archive_ranges.generation = excluded.generation - 1`, p.from, p.to, generation+1, changes)
		if err != nil {
			return err
		}
		if tag.RowsAffected() != 1 {
			return errors.New("another copy was published meanwhile")
		}
		if _, err := tx.Exec(ctx, "UPDATE archive_files SET state = 'superseded', state_at = now() WHERE from_at = $1 AND state = 'published'", p.from); err != nil {
			return err
		}
		for _, e := range entries {
			first, last := e.Groups[0], e.Groups[0]
			for _, g := range e.Groups[1:] {
				if string(g.MinID) < string(first.MinID) {
					first.MinID = g.MinID
				}
				if string(g.MaxID) > string(last.MaxID) {
					last.MaxID = g.MaxID
				}
				first.MinCame, last.MaxCame = min(first.MinCame, g.MinCame), max(last.MaxCame, g.MaxCame)
				first.MinTime, last.MaxTime = min(first.MinTime, g.MinTime), max(last.MaxTime, g.MaxTime)
			}
			tag, err := tx.Exec(ctx, `UPDATE archive_files SET state = 'published', state_at = now(), rows = $2, bytes = $3, tail_bytes = $4, first_id = $5, last_id = $6,
				first_at = $7, last_at = $8, first_time = $9, last_time = $10 WHERE name = $1 AND state = 'writing'`,
				e.Name, e.Rows, e.Bytes, e.TailBytes, [16]byte(first.MinID), [16]byte(last.MaxID),
				time.UnixMicro(first.MinCame), time.UnixMicro(last.MaxCame), time.UnixMicro(first.MinTime), time.UnixMicro(last.MaxTime))
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

// sinceUnix is from 1970 to 2000, in microseconds. PostgreSQL counts from 2000.
const sinceUnix = 946_684_800_000_000

// partitionRows returns the rows of a partition in the order in which they came.
func partitionRows(ctx context.Context, tx pgx.Tx, p partition) iter.Seq2[*archive.Row, error] {
	return func(yield func(*archive.Row, error) bool) {
		rows, err := tx.Query(ctx, "SELECT id, inserted_at, time, data::text FROM ONLY "+p.quoted()+" ORDER BY inserted_at, id", pgx.QueryResultFormats{pgx.BinaryFormatCode})
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
