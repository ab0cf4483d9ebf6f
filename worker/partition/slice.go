package partition

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// sliceRows is how many rows a slice of an open partition has at least, about. It makes a file of some 35 MB, which takes some five seconds
	// to write. So files need not be merged later, and a partition of few rows is copied as a whole once it is closed.
	sliceRows = 1_000_000
	// mostRows is how many rows that are old enough may wait for streams that are busy.
	mostRows = 5_000_000
	// againAfter is how long a range of an open partition is left alone once it has been copied, even if rows have come late for it. Where records
	// are always a minute late, each round would copy the same hour anew. Until then searches find its rows in logs.
	againAfter = "1 hour"
)

// slice is a part of an open partition that is not in the archive and is old enough for it, and about how many rows it has.
type slice struct {
	timeRange
	rows float64
}

// isOpen reports whether a partition is to be copied in slices: it has begun, and is not due as a whole.
func (a *Archiver) isOpen(p partition, now time.Time) bool {
	return a.takes(p) && !p.closing && p.from.Before(a.settled(now)) && p.to.After(a.settled(now)) && !expired(p.from, a.Retention, now)
}

// archiveOpen copies the next slice of an open partition if it has enough rows. Ranges of it for which rows have come late are copied anew.
func (a *Archiver) archiveOpen(ctx context.Context, conn *pgx.Conn, p partition, now time.Time) error {
	ranges, err := archivedRanges(ctx, conn, p.timeRange, "")
	if err != nil {
		return err
	}
	for _, r := range ranges {
		if r.upToDate || !r.filesOnly && r.resting || !a.Calm(ctx) {
			continue
		}
		if err := a.archive(ctx, conn, r); err != nil {
			return err
		}
	}
	next, err := a.nextSlice(ctx, conn, p, now)
	if err != nil || next.rows < a.sliceRows() || next.rows < a.mostRows() && !a.Calm(ctx) {
		return err
	}
	// The rows may have come just now, and lie behind the slice.
	var enough bool
	if err := conn.QueryRow(ctx, "SELECT count(*) >= $3 FROM (SELECT FROM logs WHERE inserted_at >= $1 AND inserted_at < $2 LIMIT $3) AS found",
		next.from, next.to, int64(a.sliceRows())).Scan(&enough); err != nil || !enough {
		return err
	}
	return a.archive(ctx, conn, archivedRange{timeRange: next.timeRange})
}

// nextSlice returns the slice of an open partition that is to be copied next, up to a whole minute. It has no rows if there is none. An hour for which
// rows came late after a part of it was copied is left until it is over: they would make each further copy out of date, because late_changes notes hours.
func (a *Archiver) nextSlice(ctx context.Context, conn *pgx.Conn, p partition, now time.Time) (next slice, err error) {
	ranges, err := archivedRanges(ctx, conn, p.timeRange, "")
	if err != nil {
		return next, err
	}
	end := a.settled(now).Truncate(time.Minute)
	if !p.from.Before(end) {
		return next, nil
	}
	missing := gaps(timeRange{p.from, end}, ranges)
	if len(missing) == 0 {
		return next, nil
	}
	next.timeRange = missing[len(missing)-1]
	hour := next.from.Truncate(time.Hour)
	for _, r := range ranges {
		if !r.upToDate && r.to.After(hour) && next.to.Before(hour.Add(time.Hour)) {
			return slice{}, nil
		}
	}
	rows, err := estimatedRows(ctx, conn, p)
	if err != nil {
		return next, err
	}
	var copied float64
	if err := conn.QueryRow(ctx, "SELECT coalesce(sum(rows), 0)::float8 FROM archive_files WHERE state = 'published' AND from_at >= $1 AND from_at < $2", p.from, p.to).Scan(&copied); err != nil {
		return next, err
	}
	// As if the rows since the last copy had come evenly.
	share := float64(next.to.Sub(next.from)) / float64(now.Sub(next.from))
	next.rows = max(rows-copied, 0) * share
	return next, nil
}

func (a *Archiver) sliceRows() float64 {
	if a.SliceRows > 0 {
		return a.SliceRows
	}
	return sliceRows
}

func (a *Archiver) mostRows() float64 {
	if a.MostRows > 0 {
		return a.MostRows
	}
	return mostRows
}

// estimatedRows returns how many rows PostgreSQL believes a partition to have.
func estimatedRows(ctx context.Context, conn *pgx.Conn, p partition) (rows float64, err error) {
	err = conn.QueryRow(ctx, "SELECT greatest(reltuples, pg_stat_get_live_tuples(oid), 0) FROM pg_class WHERE oid = to_regclass($1)", p.quoted()).Scan(&rows)
	return rows, err
}
