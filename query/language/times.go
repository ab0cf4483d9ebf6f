package language

import (
	"math"
	"strconv"
	"strings"
	"time"

	"millrace/internal/rfc3339"
)

// parseInstant returns the time that s writes by RFC 3339, to the microsecond, and reports whether it is one. Further digits are cut
// off. isInstant and instantOf in sql.go do the same in SQL.
func parseInstant(s string) (time.Time, bool) {
	at, fraction, ok := rfc3339.Parse(s)
	micros, _ := strconv.Atoi((fraction + "000000")[:6])
	return at.Add(time.Duration(micros) * time.Microsecond), ok
}

// ParseTime returns the time that s writes, and how long that is: a day for 2026-03-04 and for now/d, nothing for an instant. It takes
// RFC 3339, days, and now with a distance and a unit to cut it to: now-1h30m, now/d. Days begin at midnight in UTC, weeks on Mondays.
func ParseTime(s string, now time.Time) (at time.Time, length time.Duration, ok bool) {
	if at, ok := parseInstant(s); ok {
		return at, 0, 0 <= at.Year() && at.Year() <= 9999
	}
	if len(s) == len(time.DateOnly) {
		if at, err := time.Parse(time.DateOnly, s); err == nil {
			return at, 24 * time.Hour, true
		}
	}
	rest, found := strings.CutPrefix(s, "now")
	if !found {
		return time.Time{}, 0, false
	}
	at = now.UTC().Truncate(time.Microsecond)
	distance, unit, isCut := strings.Cut(rest, "/")
	for distance != "" {
		sign := time.Duration(1)
		switch distance[0] {
		case '-':
			sign = -1
		case '+':
		default:
			return time.Time{}, 0, false
		}
		end := 1 + strings.IndexAny(distance[1:], "+-")
		if end == 0 {
			end = len(distance)
		}
		d, ok := parseDistance(distance[1:end])
		if !ok {
			return time.Time{}, 0, false
		}
		at, distance = at.Add(sign*d), distance[end:]
	}
	if isCut {
		if length, ok = units[unit]; !ok {
			return time.Time{}, 0, false
		}
		// The first day of the Unix epoch was a Thursday.
		monday := time.Date(1969, 12, 29, 0, 0, 0, 0, time.UTC)
		past := at.Sub(monday) % length
		if past < 0 {
			past += length
		}
		at = at.Add(-past)
	}
	return at, length, 1 <= at.Year() && at.Year() <= 9999
}

var units = map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour, "w": 7 * 24 * time.Hour}

// parseDistance returns the duration that whole numbers with units make, such as 1h30m.
func parseDistance(s string) (sum time.Duration, ok bool) {
	for s != "" {
		digits := leadingDigits(s)
		if digits == 0 || digits > 9 || digits == len(s) {
			return 0, false
		}
		n, _ := strconv.Atoi(s[:digits])
		unit, known := units[s[digits:digits+1]]
		if !known || time.Duration(n) > (math.MaxInt64/4-sum)/unit {
			return 0, false
		}
		sum, s, ok = sum+time.Duration(n)*unit, s[digits+1:], true
	}
	return sum, ok
}

// parseUnixTime returns the time that a number writes, as records do: seconds, milliseconds, microseconds or nanoseconds by its size.
func parseUnixTime(s string) (time.Time, bool) {
	n, err := strconv.ParseFloat(s, 64)
	switch {
	case err != nil || n < 0:
		return time.Time{}, false
	case n < 1e11:
		return time.UnixMicro(int64(math.Round(n * 1e6))).UTC(), true
	case n < 1e14:
		return time.UnixMicro(int64(math.Round(n * 1e3))).UTC(), true
	case n < 1e17:
		return time.UnixMicro(int64(n)).UTC(), true
	case n < 1e19:
		return time.UnixMicro(int64(n / 1e3)).UTC(), true
	}
	return time.Time{}, false
}
