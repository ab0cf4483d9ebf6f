package archive

import (
	"bytes"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// ChangesSQL returns the sum of the changes that late_changes has for a range of inserted_at, as SQL. from and to are its ends, as SQL too. A
// range's files have its rows as long as this sum is the one that was published; see archive_ranges. So who publishes and who reads must
// count alike.
func ChangesSQL(from, to string) string {
	return fmt.Sprintf(`((SELECT coalesce(sum(l.changes), 0) FROM late_changes l WHERE l.hour > %s - interval '1 hour' AND l.hour < %s)
		+ (SELECT coalesce(sum(l.changes), 0) FROM late_changes l WHERE l.hour = '-infinity'))::bigint`, from, to)
}

// TouchesSQL returns the condition, as SQL, that a row of archive_ranges has a part of the times from one to another. from and to are SQL too. Ranges
// don't overlap, so the first is the last one that begins no later. Without that bound all ranges of before are read.
func TouchesSQL(from, to string) string {
	return fmt.Sprintf(`(from_at >= coalesce((SELECT max(b.from_at) FROM archive_ranges b WHERE b.from_at <= %[1]s), '-infinity') AND from_at < %[2]s AND to_at > %[1]s)`, from, to)
}

// FileName returns the name of a file: the n-th of those that a copy of a range makes. The copy is told apart by an id.
func FileName(from time.Time, generation int, id uuid.UUID, n int) string {
	from = from.UTC()
	return fmt.Sprintf("v1/logs/date=%s/hour=%s/%s-%d-%s-%d.parquet", from.Format(time.DateOnly), from.Format("15"), from.Format("20060102T150405Z"), generation, id, n)
}

// Bounds returns the bounds of all rows of the file, as the marks of a row group have them.
func (s *Summary) Bounds() GroupMarks {
	all := s.Groups[0]
	for _, g := range s.Groups[1:] {
		if bytes.Compare(g.MinID, all.MinID) < 0 {
			all.MinID = g.MinID
		}
		if bytes.Compare(g.MaxID, all.MaxID) > 0 {
			all.MaxID = g.MaxID
		}
		all.MinCame, all.MaxCame = min(all.MinCame, g.MinCame), max(all.MaxCame, g.MaxCame)
		all.MinTime, all.MaxTime = min(all.MinTime, g.MinTime), max(all.MaxTime, g.MaxTime)
	}
	return all
}
