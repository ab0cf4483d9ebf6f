package partition

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/archive"
)

// NoteChangesSQL returns the statement that notes a change in hours of inserted_at that are no longer new. hours is a SELECT that returns
// them. The query service reads there which of its cached answers are out of date.
func NoteChangesSQL(hours string) string { return noteSQLFor("late_changes", hours) }

// NoteTimesSQL does for hours of time what NoteChangesSQL does for those of inserted_at.
func NoteTimesSQL(hours string) string { return noteSQLFor("late_times", hours) }

// NoteLateSQL notes the hours of rows that are not new when they are stored. $1 has the earliest inserted_at in each hour. Rows are not new if they are half a
// minute old by the database's clock, or of a range that is published or being copied. A worker runs it after it has stored the rows, in the same
// transaction and under READ COMMITTED. See Archiver.announce.
var NoteLateSQL = NoteChangesSQL(`SELECT date_trunc('hour', at) FROM unnest($1::timestamptz[]) AS t (at)
	WHERE at < clock_timestamp() - interval '30 seconds'
	OR EXISTS (SELECT FROM archive_ranges WHERE ` + archive.TouchesSQL("at", "(date_trunc('hour', at) + interval '1 hour')") + `) ORDER BY 1`)

func noteSQLFor(table, hours string) string {
	return "INSERT INTO " + table + " (hour) " + hours + " ON CONFLICT (hour, slot) DO UPDATE SET changes = " + table + ".changes + 1"
}

// Hour is an hour of time, and a partition of logs that has rows of it. Times are Unix microseconds.
type Hour struct {
	Start    int64
	From, To int64 // the partition's range
}

const (
	// mostNotedHours and notedFor bound what a Set remembers about the notes in late_hours: how many, and how long. A note goes an hour
	// after its partition at the earliest.
	mostNotedHours = 100_000
	notedFor       = 10 * time.Minute
)

// LogsAt returns the range of the partition of logs that has the rows of an inserted_at, in Unix microseconds. If no partition is known,
// a default partition may have them. Then it is the hour of inserted_at.
func (s *Set) LogsAt(insertedAt time.Time) (from, to int64) {
	r, known := s.lookup(s.logs, insertedAt)
	if !known {
		hour := insertedAt.Truncate(time.Hour)
		r = timeRange{hour, hour.Add(time.Hour)}
	}
	return r.from.UnixMicro(), r.to.UnixMicro()
}

// UnnotedHours returns those of the hours that late_hours does not have, as far as the set knows.
func (s *Set) UnnotedHours(hours map[Hour]bool) (unnoted []Hour) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.notedSince) > notedFor || len(s.notedHours) > mostNotedHours {
		s.notedHours, s.notedSince = nil, time.Now()
	}
	for h := range hours {
		if !s.notedHours[h] {
			unnoted = append(unnoted, h)
		}
	}
	return unnoted
}

// LearnNoted tells the set that late_hours has these hours. The transaction that has noted them must have been committed.
func (s *Set) LearnNoted(hours []Hour) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.notedHours == nil {
		s.notedHours = make(map[Hour]bool)
	}
	for _, h := range hours {
		s.notedHours[h] = true
	}
}

// forgetHours deletes the notes in late_hours about partitions that have been gone for an hour. Until then a worker may believe that its
// note is there, and put rows of the same hour into a new partition of that range.
func (k *Keeper) forgetHours(ctx context.Context, conn *pgx.Conn, now time.Time) error {
	if now.Sub(k.hoursRead) < hoursReadEvery {
		return nil
	}
	if has, err := hasDefault(ctx, conn, k.Partitions.logs); has || err != nil {
		return err // rows of any range may be there
	}
	all, err := list(ctx, conn, k.Partitions.logs)
	if err != nil {
		return err
	}
	rows, err := conn.Query(ctx, "SELECT DISTINCT from_at, to_at FROM late_hours")
	if err != nil {
		return err
	}
	type noted struct{ From, To time.Time }
	ranges, err := pgx.CollectRows(rows, pgx.RowToStructByPos[noted])
	if err != nil {
		return err
	}
	gone := make(map[time.Time]time.Time)
	for _, n := range ranges {
		if overlaps(all, timeRange{n.From, n.To}) {
			continue
		}
		since, known := k.goneSince[n.From]
		if !known {
			since = now
		}
		gone[n.From] = since
		if now.Sub(since) < hoursKept {
			continue
		}
		if _, err := conn.Exec(ctx, "DELETE FROM late_hours WHERE from_at = $1 AND to_at = $2", n.From, n.To); err != nil {
			return err
		}
	}
	k.hoursRead, k.goneSince = now, gone
	return nil
}

const (
	// hoursReadEvery is the time between two looks for notes about partitions that are gone. Their number is small, and nothing waits for it.
	hoursReadEvery = 10 * time.Minute
	// hoursKept is how long such notes are kept. It is much longer than notedFor.
	hoursKept = time.Hour
)

// overlaps reports whether one of the partitions has a part of the range.
func overlaps(all []partition, r timeRange) bool {
	for _, p := range all {
		if p.from.Before(r.to) && p.to.After(r.from) {
			return true
		}
	}
	return false
}
