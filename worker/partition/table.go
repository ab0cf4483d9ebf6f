package partition

import (
	"encoding/binary"
	"regexp"
	"time"

	"github.com/google/uuid"

	"millrace/internal/frame"
)

// ledgerInterval is the length of the ledger's partitions.
const ledgerInterval = 24 * time.Hour

// table is a partitioned table. Both are divided by time: logs by inserted_at, the ledger by the time that its
// ids begin with.
type table struct {
	name     string
	interval time.Duration // of new partitions
}

// bound writes a time as a bound of the table's partitions.
func (t table) bound(at time.Time) string {
	if t.name == "ledger" {
		return firstID(at).String()
	}
	return at.UTC().Format("2006-01-02 15:04:05.999999-07")
}

// firstID returns the least id that begins with a time.
func firstID(at time.Time) (id uuid.UUID) {
	binary.BigEndian.PutUint64(id[:], uint64(at.UnixMilli())<<16)
	return id
}

// endOfTime stands for no upper bound. It is PostgreSQL's last year.
var endOfTime = time.Date(294276, 1, 1, 0, 0, 0, 0, time.UTC)

// parseBound parses a bound as PostgreSQL's catalog has it, in a session with the time zone UTC and the date style ISO. The zero
// time stands for no lower bound.
func (t table) parseBound(s string) (time.Time, error) {
	switch s {
	case "-infinity":
		return time.Time{}, nil
	case "infinity":
		return endOfTime, nil
	}
	if t.name == "ledger" {
		id, err := uuid.Parse(s)
		return frame.Time(id), err
	}
	at, err := time.Parse("2006-01-02 15:04:05.999999-07", s)
	return at.UTC(), err
}

// timeRange is half open: it contains from, but not to.
type timeRange struct{ from, to time.Time }

// contains reports whether a time lies in the range.
func (r timeRange) contains(t time.Time) bool { return !t.Before(r.from) && t.Before(r.to) }

// slot returns the range of a new partition for a time: the interval that the time lies in, without what existing partitions have
// of it. So no partition overlaps another, even after the interval has changed.
func slot(at time.Time, interval time.Duration, existing []partition) timeRange {
	from := at.UTC().Truncate(interval) // Truncate counts from a midnight in UTC
	r := timeRange{from, from.Add(interval)}
	for _, p := range existing {
		if !p.to.After(at) && p.to.After(r.from) {
			r.from = p.to
		}
		if p.from.After(at) && p.from.Before(r.to) {
			r.to = p.from
		}
	}
	return r
}

// names returns the names that a partition may have, in order of preference. All but the first are for
// ranges that don't start with a day, and for names that are taken by tables that somebody has detached to keep.
func (t table) names(from time.Time) []string {
	day, minute := t.name+"_"+from.UTC().Format("20060102"), t.name+"_"+from.UTC().Format("20060102_1504")
	names := []string{minute, minute + "_2", minute + "_3", minute + "_4"}
	if t.interval == 24*time.Hour && from.Equal(from.Truncate(24*time.Hour)) {
		names = append([]string{day}, names...)
	}
	return names
}

// ownName reports whether name is one that names could return. Tables with other names are never dropped. The database's function
// millrace_add_partition takes the same names.
func (t table) ownName(name string) bool {
	return regexp.MustCompile(`^` + t.name + `_\d{8}(_\d{4}(_\d)?)?$`).MatchString(name)
}
