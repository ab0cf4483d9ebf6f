package partition

import (
	"context"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/archive"
	"millrace/internal/eventtime"
)

// PublishedFiles returns the files of the archive that may have rows that came from one time to another, both included.
func PublishedFiles(ctx context.Context, conn *pgx.Conn, first, last time.Time) ([]archive.Stored, error) {
	return published(ctx, conn, "tstzrange(first_at, last_at, '[]') && tstzrange($1, $2, '[]')", first, last)
}

// published returns the published files for which a condition holds.
func published(ctx context.Context, db interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}, condition string, args ...any) ([]archive.Stored, error) {
	rows, err := db.Query(ctx, "SELECT name, bytes, tail_bytes, first_id, last_id FROM archive_files WHERE state = 'published' AND "+condition+" ORDER BY name", args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[archive.Stored])
}

// lookRows is how many rows are looked for in files at once.
const lookRows = 4096

// withoutRows returns the rows that none of the files has, by their ids.
func withoutRows(ctx context.Context, rows iter.Seq2[*archive.Row, error], store archive.Store, files []archive.Stored) iter.Seq2[*archive.Row, error] {
	return func(yield func(*archive.Row, error) bool) {
		batch := make([]archive.Row, 0, lookRows)
		flush := func() bool {
			ranges := make([][2][16]byte, len(batch))
			for i := range batch {
				ranges[i] = [2][16]byte{batch[i].ID, batch[i].ID}
			}
			known := make(map[[16]byte]bool)
			if err := archive.FindRows(ctx, store, files, ranges, func(r *archive.Row) error {
				known[r.ID] = true
				return nil
			}); err != nil {
				yield(nil, err)
				return false
			}
			for i := range batch {
				if !known[batch[i].ID] && !yield(&batch[i], nil) {
					return false
				}
			}
			batch = batch[:0]
			return true
		}
		for r, err := range rows {
			if err != nil {
				yield(nil, err)
				return
			}
			// The memory of the rows of before is used again.
			data := batch[:len(batch)+1][len(batch)].Data
			batch = append(batch, archive.Row{ID: r.ID, InsertedAt: r.InsertedAt, Time: r.Time, Data: append(data[:0], r.Data...)})
			if len(batch) == lookRows && !flush() {
				return
			}
		}
		flush()
	}
}

// mostExpired is how many ranges one round deletes at most. So a wrong clock costs few of them, and an operator has time to notice it.
const mostExpired = 10

// expire takes the ranges that are older than the archive's retention out of searches. Their files are deleted later.
func (a *Archiver) expire(ctx context.Context, conn *pgx.Conn, now time.Time) error {
	if a.Retention <= 0 {
		return nil
	}
	rows, err := conn.Query(ctx, "SELECT from_at, to_at, files_only FROM archive_ranges WHERE to_at <= $1 AND kept_until <= $2 ORDER BY from_at LIMIT $3",
		now.Add(-a.Retention), now, mostExpired)
	if err != nil {
		return err
	}
	old, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r archivedRange, err error) {
		err = row.Scan(&r.from, &r.to, &r.filesOnly)
		r.from, r.to = r.from.UTC(), r.to.UTC()
		return r, err
	})
	if err != nil {
		return err
	}
	for _, r := range old {
		if err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if r.filesOnly { // else logs still has the rows
				if err := noteFarTimes(ctx, tx, r.timeRange); err != nil {
					return err
				}
				if err := noteLoss(ctx, tx, r.timeRange); err != nil {
					return err
				}
			}
			if err := supersede(ctx, tx, r.timeRange); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "DELETE FROM archive_ranges WHERE from_at = $1", r.from)
			return err
		}); err != nil {
			return err
		}
		a.Log.Info("a range of the archive has reached the end of ARCHIVE_RETENTION", "from", r.from, "to", r.to)
	}
	return nil
}

// noteFarTimes notes the hours of time in which a range's files have rows, as late_times has them.
func noteFarTimes(ctx context.Context, tx pgx.Tx, r timeRange) error {
	const hours = `WITH bounds AS (SELECT date_trunc('hour', min(first_time)) AS first, max(last_time) AS last FROM archive_files WHERE from_at = $1 AND state = 'published')
		SELECT CASE WHEN last - first > interval '64 hours' THEN '-infinity'::timestamptz ELSE hour END AS hour
		FROM bounds, generate_series(first, CASE WHEN last - first > interval '64 hours' THEN first ELSE last END, interval '1 hour') AS hour ORDER BY 1`
	_, err := tx.Exec(ctx, NoteTimesSQL(hours), r.from)
	return err
}

// noteLoss notes the hours of a range that loses its rows. The ranges of the archive stay as up to date as they are: in the answer of those
// whose files alone have the rows nothing changes, and the others don't lose any.
func noteLoss(ctx context.Context, tx pgx.Tx, r timeRange) error {
	if _, err := tx.Exec(ctx, NoteChangesSQL(hoursSQL), r.from, r.to); err != nil {
		return err
	}
	upToDate := `UPDATE archive_ranges r SET changes = changes +
		(SELECT count(*) FROM (` + hoursSQL + ` AS hour) h WHERE h.hour > r.from_at - interval '1 hour' AND h.hour < r.to_at)
		WHERE ` + archive.TouchesSQL("($1::timestamptz - interval '1 hour')", "($2::timestamptz + interval '1 hour')") + `
		AND (files_only OR to_at <= $1 OR from_at >= $2)`
	if _, err := tx.Exec(ctx, upToDate, r.from, r.to); err != nil {
		return err
	}
	return noteTimes(ctx, tx, r)
}

// hoursSQL selects the hours of inserted_at of a range, from $1 to $2.
const hoursSQL = "SELECT generate_series(date_trunc('hour', $1::timestamptz), $2::timestamptz - interval '1 us', interval '1 hour')"

// noteTimes notes the hours of time that rows of a range may have.
func noteTimes(ctx context.Context, tx pgx.Tx, r timeRange) error {
	// Times near inserted_at may lie in the hours around the range. late_hours has the others; rows that were in a default
	// partition before are noted there under parts of the range.
	const times = `SELECT generate_series(date_trunc('hour', $1::timestamptz - $3::interval), $2::timestamptz + $3::interval, interval '1 hour')
		UNION SELECT hour FROM late_hours WHERE from_at < $2 AND to_at > $1 ORDER BY 1`
	_, err := tx.Exec(ctx, NoteTimesSQL(times), r.from, r.to, eventtime.Near)
	return err
}
