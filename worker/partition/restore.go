package partition

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/archive"
	"millrace/internal/eventtime"
)

// Range is a range of the archive.
type Range struct {
	From, To   time.Time
	Generation int
	Files      int
	Rows       int64
	Bytes      int64
	UpToDate   bool // the files have all rows
	FilesOnly  bool // PostgreSQL has at most rows that came later
	KeptUntil  time.Time
}

// ArchivedRanges returns the ranges of the archive that have a part of the time from one to another, in order.
func ArchivedRanges(ctx context.Context, conn *pgx.Conn, from, to time.Time) (all []Range, err error) {
	ranges, err := archivedRanges(ctx, conn, timeRange{from, to}, "")
	if err != nil {
		return nil, err
	}
	for _, r := range ranges {
		out := Range{From: r.from, To: r.to, Generation: r.generation, UpToDate: r.upToDate, FilesOnly: r.filesOnly, KeptUntil: r.keptUntil}
		if err := conn.QueryRow(ctx, "SELECT count(*), coalesce(sum(rows), 0)::bigint, coalesce(sum(bytes), 0)::bigint FROM archive_files WHERE from_at = $1 AND state = 'published'",
			r.from).Scan(&out.Files, &out.Rows, &out.Bytes); err != nil {
			return nil, err
		}
		all = append(all, out)
	}
	return all, nil
}

// Restore puts the rows of a range that files alone have into logs again, and has retention leave them for a time. It returns how many rows that
// were: 0 if logs has them. One transaction does it, so that no answer changes. The connection is that of the tables' owner.
func Restore(ctx context.Context, conn *pgx.Conn, store archive.Store, r Range, keep time.Duration) (rows int64, err error) {
	if _, err := conn.Exec(ctx, "SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET lock_timeout = '10s'"); err != nil {
		return 0, err
	}
	// First: the partitions that are made now are old enough to be dropped.
	if _, err := conn.Exec(ctx, "UPDATE archive_ranges SET kept_until = greatest(kept_until, now() + $2::interval) WHERE from_at = $1", r.From, keep); err != nil {
		return 0, err
	}
	interval := 24 * time.Hour
	if r.To.Sub(r.From) < interval {
		interval = time.Hour
	}
	parts := New(interval)
	var places []timeRange
	for at := r.From; at.Before(r.To); {
		place, err := parts.ensure(ctx, conn, parts.logs, at)
		if err != nil {
			return 0, err
		}
		places = append(places, place)
		at = place.to
	}
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		whole := timeRange{r.From, r.To}
		ranges, err := archivedRanges(ctx, conn, whole, forUpdate)
		if err != nil {
			return err
		}
		if len(ranges) != 1 || ranges[0].timeRange != whole {
			return fmt.Errorf("the range from %s is no longer in the archive", r.From.Format(time.RFC3339))
		}
		if !ranges[0].filesOnly {
			return nil
		}
		if rows, err = copyBack(ctx, tx, store, whole); err != nil {
			return err
		}
		for _, place := range places {
			if _, err := tx.Exec(ctx, `INSERT INTO late_hours (hour, from_at, to_at) SELECT DISTINCT date_trunc('hour', time), $1::timestamptz, $2::timestamptz FROM logs
				WHERE inserted_at >= $1 AND inserted_at < $2 AND time <> `+eventtime.NoTimeSQL+` AND (time > inserted_at + $3::interval OR time < inserted_at - $3::interval)
				ON CONFLICT DO NOTHING`, place.from, place.to, eventtime.Near); err != nil {
				return err
			}
		}
		if err := noteFarTimes(ctx, tx, whole); err != nil {
			return err
		}
		// For those who read logs alone. In the archive's ranges nothing changes.
		if err := noteLoss(ctx, tx, whole); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, "UPDATE archive_ranges SET files_only = false WHERE from_at = $1", r.From)
		return err
	})
	return rows, err
}

// copyBack copies the rows of a range's files into logs, without those that logs has.
func copyBack(ctx context.Context, tx pgx.Tx, store archive.Store, r timeRange) (copied int64, err error) {
	present, err := tx.Query(ctx, "SELECT id FROM logs WHERE inserted_at >= $1 AND inserted_at < $2", r.from, r.to)
	if err != nil {
		return 0, err
	}
	ids, err := pgx.CollectRows(present, pgx.RowTo[[16]byte])
	if err != nil {
		return 0, err
	}
	has := make(map[[16]byte]bool, len(ids))
	for _, id := range ids {
		has[id] = true
	}
	files, err := published(ctx, tx, "from_at = $1", r.from)
	if err != nil {
		return 0, err
	}
	const batchRows = 5000
	batch := make([][]any, 0, batchRows)
	flush := func() error {
		n, err := tx.CopyFrom(ctx, pgx.Identifier{"logs"}, []string{"id", "inserted_at", "time", "data"}, pgx.CopyFromRows(batch))
		copied += n
		batch = batch[:0]
		return err
	}
	everything := [2][16]byte{{}, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
	if err := archive.FindRows(ctx, store, files, [][2][16]byte{everything}, func(row *archive.Row) error {
		if has[row.ID] {
			return nil
		}
		batch = append(batch, []any{row.ID, time.UnixMicro(row.InsertedAt), time.UnixMicro(row.Time), string(row.Data)})
		if len(batch) == batchRows {
			return flush()
		}
		return nil
	}); err != nil {
		return 0, err
	}
	return copied, flush()
}
