package partition

import (
	"context"
	"maps"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// sliceRows is how many rows of an open partition are copied at once, and more if a minute has more. They make a file of some 35 MB, which takes
	// some five seconds to write. So files need not be merged later, and a partition of few rows is copied as a whole once it is closed.
	sliceRows = 1_000_000
	// mostRows is how many rows that are old enough may wait for streams that are busy.
	mostRows = 5_000_000
	// countedFor is how long the records of a minute are not counted again. Few come for a minute that is old enough for a copy, unless they have waited in RabbitMQ.
	countedFor = 10 * time.Minute
)

// piece is a part of a partition that is in no range of the archive, and how many records the ledger has of it. It lies within an hour.
type piece struct {
	timeRange
	rows int64
	cut  bool // it ends before its hour because it has enough rows
}

// isOpen reports whether a partition is to be copied in slices: it has begun, and is not due as a whole.
func (a *Archiver) isOpen(p partition, now time.Time) bool {
	return a.takes(p) && !p.closing && p.from.Before(a.settled(now)) && p.to.After(a.settled(now))
}

// archiveOpen copies slices of an open partition, as long as it has enough rows that are old enough. A slice ends when it has sliceRows, and at the
// whole hour at the latest: late_changes notes hours, so a row that comes late puts the slices of one hour out of date. Ranges that are out of date are copied anew
// when further slices are, and no more rows of them than of slices. Searches find their rows in logs meanwhile.
func (a *Archiver) archiveOpen(ctx context.Context, conn *pgx.Conn, p partition, now time.Time) error {
	ranges, err := archivedRanges(ctx, conn, p.timeRange, "")
	if err != nil {
		return err
	}
	pieces, err := a.pieces(ctx, conn, p, ranges, now)
	if err != nil {
		return err
	}
	waiting, copied := total(pieces), false
	for _, next := range pieces {
		if waiting < a.sliceRows() {
			break
		}
		if !isSlice(next, ranges, a.settled(now)) {
			continue
		}
		if waiting < a.mostRows() && !a.Calm(ctx) {
			return nil
		}
		if err := a.archive(ctx, conn, archivedRange{timeRange: next.timeRange}); err != nil {
			return err
		}
		waiting, copied = waiting-next.rows, true
	}
	for _, r := range ranges {
		// Rows that come late for an hour that is not over are followed by others.
		isOver := !r.to.Add(-1).Truncate(time.Hour).Add(time.Hour).After(a.settled(now))
		if r.upToDate || !r.filesOnly && !(copied && isOver && a.Calm(ctx)) {
			continue
		}
		if err := a.archiveAnew(ctx, conn, p, r, now); err != nil {
			return err
		}
	}
	return nil
}

// isSlice reports whether a piece may be copied: it has enough rows, or its hour is over. A piece without rows stays until the partition is closed. So does one of
// an hour for which rows came late after a part of it was copied, until the hour is over: they put each further slice out of date at once.
func isSlice(next piece, ranges []archivedRange, settled time.Time) bool {
	hour := next.from.Truncate(time.Hour)
	if next.rows == 0 {
		return false
	}
	if !hour.Add(time.Hour).After(settled) {
		return true
	}
	for _, r := range ranges {
		if !r.upToDate && r.from.Before(hour.Add(time.Hour)) && r.to.After(hour) {
			return false
		}
	}
	return next.cut
}

func total(pieces []piece) (rows int64) {
	for _, p := range pieces {
		rows += p.rows
	}
	return rows
}

// pieces returns the parts of an open partition that no range has and that are old enough, in order.
func (a *Archiver) pieces(ctx context.Context, conn *pgx.Conn, p partition, ranges []archivedRange, now time.Time) (pieces []piece, err error) {
	end := a.settled(now).Truncate(time.Minute)
	if !p.from.Before(end) {
		return nil, nil
	}
	if age := now.Sub(a.countedAt); a.minutes == nil || age < 0 || age >= countedFor {
		a.minutes, a.countedAt = make(map[int64]int64), now
	}
	maps.DeleteFunc(a.minutes, func(minute, _ int64) bool { return minute < p.from.Unix() || minute >= end.Unix() })
	for _, missing := range keptGaps(timeRange{p.from, end}, ranges, a.Retention, now) {
		if err := a.countMinutes(ctx, conn, missing); err != nil {
			return nil, err
		}
		next := piece{timeRange: timeRange{missing.from, missing.from}}
		take := func() {
			if next.from.Before(next.to) {
				pieces = append(pieces, next)
			}
			next = piece{timeRange: timeRange{next.to, next.to}}
		}
		for next.to.Before(missing.to) {
			minute := next.to.Truncate(time.Minute)
			next.rows += a.minutes[minute.Unix()]
			next.to = minute.Add(time.Minute)
			if next.to.After(missing.to) {
				next.to = missing.to
			}
			if next.cut = next.rows >= a.sliceRows(); next.cut || next.to.Equal(next.to.Truncate(time.Hour)) {
				take()
			}
		}
		take()
	}
	return pieces, nil
}

const minutesSQL = `SELECT width_bucket(id, $1::uuid[]), sum(records)::bigint FROM ledger WHERE id >= ($1::uuid[])[1] AND id < $2 GROUP BY 1`

// countMinutes has a.minutes tell how many records the ledger has of the minutes of a range. What was counted in a round before stays for a while: nothing that must be
// exact goes by these numbers.
func (a *Archiver) countMinutes(ctx context.Context, conn *pgx.Conn, r timeRange) error {
	var first, last time.Time // minutes that were not counted
	for at := r.from.Truncate(time.Minute); at.Before(r.to); at = at.Add(time.Minute) {
		if _, counted := a.minutes[at.Unix()]; !counted {
			if first.IsZero() {
				first = at
			}
			last = at
		}
	}
	if first.IsZero() {
		return nil
	}
	var bounds [][16]byte
	for at := first; !at.After(last); at = at.Add(time.Minute) {
		a.minutes[at.Unix()] = 0
		bounds = append(bounds, firstID(at))
	}
	rows, err := conn.Query(ctx, minutesSQL, bounds, firstID(last.Add(time.Minute)))
	if err != nil {
		return err
	}
	var bucket int
	var records int64
	_, err = pgx.ForEachRow(rows, []any{&bucket, &records}, func() error {
		a.minutes[first.Add(time.Duration(bucket-1)*time.Minute).Unix()] = records
		return nil
	})
	if err != nil {
		a.minutes = nil
	}
	return err
}

func (a *Archiver) sliceRows() int64 {
	if a.SliceRows > 0 {
		return a.SliceRows
	}
	return sliceRows
}

func (a *Archiver) mostRows() int64 {
	if a.MostRows > 0 {
		return a.MostRows
	}
	return mostRows
}
