package partition

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// refillTime is how long it takes until a slice's worth of rows may be copied anew where nothing new comes in.
const refillTime = 6 * time.Hour

// credit is how many rows of ranges that are out of date may be copied anew. Rows that are copied for the first time add as many, up to mostRows, and time adds
// some. So a row that comes late now and then does not have a million rows copied each time, and copying anew is half of the work at most.
type credit struct {
	rows float64
	at   time.Time // rows is of that time
}

// grow adds the rows that time and a first copy of so many rows bring.
func (c *credit) grow(copied, slice, most float64, now time.Time) {
	if c.at.IsZero() {
		c.rows, c.at = slice, now
	}
	if passed := now.Sub(c.at); passed > 0 && c.rows < slice {
		c.rows = min(slice, c.rows+slice*float64(passed)/float64(refillTime))
	}
	c.at = now
	if c.rows < most {
		c.rows = min(most, c.rows+copied)
	}
}

// archiveAnew copies a range of a partition that is out of date, if there is credit for it. Two kinds of ranges need none: those whose rows are in files alone,
// because only the late rows are read, and those of a partition whose rows retention wants to drop.
func (a *Archiver) archiveAnew(ctx context.Context, conn *pgx.Conn, p partition, r archivedRange, now time.Time) error {
	if r.filesOnly {
		return a.archive(ctx, conn, r)
	}
	mayCopy, rows, err := a.mayCopyAnew(ctx, conn, p, r, now)
	if err != nil || !mayCopy {
		return err
	}
	if err := a.archive(ctx, conn, r); err != nil {
		return err
	}
	a.credit.rows -= float64(rows)
	return nil
}

// mayCopyAnew reports whether there is credit to copy a range anew, and how many rows that would be.
func (a *Archiver) mayCopyAnew(ctx context.Context, conn *pgx.Conn, p partition, r archivedRange, now time.Time) (may bool, rows int64, err error) {
	if err := conn.QueryRow(ctx, "SELECT coalesce(sum(rows), 0)::bigint FROM archive_files WHERE from_at = $1 AND state = 'published'", r.from).Scan(&rows); err != nil {
		return false, 0, err
	}
	a.credit.grow(0, float64(a.sliceRows()), float64(a.mostRows()), now)
	if a.credit.rows >= float64(min(rows, a.sliceRows())) {
		return true, rows, nil
	}
	retention, noted, err := NotedRetention(ctx, conn)
	return err == nil && noted && expired(p.to, retention, now), rows, err
}
