package query

import "time"

// This file alone decides where the buckets of a histogram begin. The database is told, so it does not matter if it knows
// other time zones.

const (
	dayMillis = int64(24 * time.Hour / time.Millisecond)
	// firstMonday is the first day of the first whole week of 1970, counted from January 1.
	firstMonday = 4
)

// bucketEdges returns where the buckets of a window begin, in Unix milliseconds, and where the last ends. ok is false if there
// would be more than most buckets.
//
// Buckets shorter than a day are counted from 1970, in UTC. Buckets of whole days begin with a day of the zone, which is 23 or
// 25 hours long when the clocks change. Buckets of whole weeks begin with a Monday. A day that the zone left out has no
// bucket.
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

// dayStart returns the first moment, in Unix milliseconds, at which a zone's date is a given day or a later one. Days are
// counted from January 1, 1970.
func dayStart(day int64, zone *time.Location) int64 {
	midnight := day * dayMillis / 1000 // as if in UTC
	// No zone is as far from UTC as this, so it is another day there.
	at := time.Unix(midnight-36*60*60, 0).In(zone)
	for {
		_, offset := at.Zone()
		start := midnight - int64(offset)
		if start <= at.Unix() { // the clocks were set forward to at, over midnight
			return at.UnixMilli()
		}
		_, change := at.ZoneBounds()
		if !change.IsZero() && !change.After(at) {
			// ZoneBounds is wrong on the last day of leap years that follow a rule: its end is before the time that it is asked
			// about. No zone changes its clocks on that day.
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
