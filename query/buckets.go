package query

import (
	"regexp"
	"strings"
	"sync"
	"time"
	_ "time/tzdata" // the image holds nothing but the binary
)

// Where the buckets of a histogram begin is decided here alone, in Go: the database is told, so that no difference
// between two collections of time zones matters.

const (
	dayMillis = int64(24 * time.Hour / time.Millisecond)
	// firstMonday is the first day of the first whole week of 1970, counted from January 1.
	firstMonday = 4
)

// bucketEdges returns the times, in Unix milliseconds, at which the buckets begin that hold a part of a window, and the
// end of the last. ok is false when there would be more than most.
//
// Buckets shorter than a day are counted from 1970, in UTC. Those of whole days begin with a day of the zone, which is
// 23 or 25 hours long when its clocks change, and those of whole weeks with a Monday. A day that the zone left out has
// no bucket.
func bucketEdges(from, to, interval int64, zone *time.Location, most int) (edges []int64, ok bool) {
	if from >= to {
		return nil, true
	}
	if (to-from)/interval > int64(most)+1 {
		return nil, false
	}
	add := func(edge int64) {
		if len(edges) == 0 || edge > edges[len(edges)-1] {
			edges = append(edges, edge)
		}
	}
	if interval%dayMillis != 0 {
		for edge := floor(from, interval); ; edge += interval {
			if add(edge); edge >= to {
				break
			}
		}
		return edges, len(edges)-1 <= most
	}
	_, offset := time.UnixMilli(from).In(zone).Zone()
	day := floor(from+1000*int64(offset), dayMillis) / dayMillis
	for dayStart(day, zone) > from { // clocks were set back over midnight
		day--
	}
	days, first := interval/dayMillis, int64(0)
	if days%7 == 0 {
		first = firstMonday
	}
	for day = first + floor(day-first, days); ; day += days {
		edge := dayStart(day, zone)
		if add(edge); edge >= to {
			break
		}
	}
	return edges, len(edges)-1 <= most
}

// dayStart returns the first moment, in Unix milliseconds, at which a zone's date is a day, counted from January 1,
// 1970, or a later one.
func dayStart(day int64, zone *time.Location) int64 {
	midnight := day * dayMillis / 1000 // as if in UTC
	// No zone is as far from UTC as this, so it is another day there.
	at := time.Unix(midnight-36*60*60, 0).In(zone)
	for {
		_, offset := at.Zone()
		start := midnight - int64(offset)
		if start <= at.Unix() { // midnight was left out when the clocks were set forward to at
			return at.UnixMilli()
		}
		_, change := at.ZoneBounds()
		if !change.IsZero() && !change.After(at) {
			// On the last day of leap years that are told by a rule, ZoneBounds ends before the time it is asked about. No
			// zone changes its clocks then.
			change = at.Truncate(24 * time.Hour).Add(24 * time.Hour)
		}
		if change.IsZero() || start < change.Unix() {
			return 1000 * start
		}
		at = change
	}
}

// floor returns the greatest multiple of size that is not above n.
func floor(n, size int64) int64 {
	start := n - n%size
	if start > n {
		start -= size
	}
	return start
}

// areEven reports whether all buckets are as long as the interval.
func areEven(edges []int64, interval int64) bool {
	for i := 1; i < len(edges); i++ {
		if edges[i]-edges[i-1] != interval {
			return false
		}
	}
	return true
}

var (
	zoneName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}$`)
	zones    sync.Map // *time.Location by name: time.LoadLocation reads a file each time
)

// loadZone returns the time zone of a name of IANA's. It takes none of the other files that lie beside them on most
// machines: those that count leap seconds, and what this machine's own zone is.
func loadZone(name string) (*time.Location, bool) {
	if zone, found := zones.Load(name); found {
		return zone.(*time.Location), true
	}
	if len(name) > 64 || !zoneName.MatchString(name) {
		return nil, false
	}
	switch first, _, _ := strings.Cut(name, "/"); first {
	case "Local", "localtime", "posixrules", "posix", "right":
		return nil, false
	}
	zone, err := time.LoadLocation(name)
	if err != nil {
		return nil, false
	}
	zones.Store(name, zone)
	return zone, true
}
