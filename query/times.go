package query

import (
	"strconv"
	"strings"
	"time"

	"millrace/internal/rfc3339"
)

// timeForms is what a time parameter takes, for refusals.
const timeForms = "RFC 3339, Unix seconds or milliseconds, now, or now-15m (units s m h d w)"

// secondsBelow tells Unix seconds from milliseconds: a smaller number is seconds. As seconds it is in the year 5138, as
// milliseconds in 1973.
const secondsBelow = 100_000_000_000

// units are the units that relative times and intervals may have.
var units = map[byte]time.Duration{
	's': time.Second, 'm': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour, 'w': 7 * 24 * time.Hour,
}

// instant is a point in time as a parameter gave it.
type instant struct {
	ms       int64  // Unix milliseconds
	relative bool   // counted from now, so it is another time in the next request
	text     string // the same for every way to write an absolute time; a relative one as it was written
}

// parseTime returns the instant that a parameter gives. A time between two milliseconds becomes the later one. inserted_at is in
// whole milliseconds, so the same rows lie before either.
func parseTime(s string, now time.Time) (t instant, ok bool) {
	if rest, found := strings.CutPrefix(s, "now"); found {
		ago, ok := parseAgo(rest)
		return instant{ms: now.Add(-ago).UnixMilli(), relative: true, text: s}, ok
	}
	if n, isNumber := parseDigits(s); isNumber {
		if n < secondsBelow {
			n *= 1000
		}
		return absoluteInstant(n)
	}
	// An offset's + that was not escaped comes out of a URL as a space.
	if i := len(s) - len("+00:00"); i > 0 && s[i] == ' ' {
		s = s[:i] + "+" + s[i+1:]
	}
	at, fraction, ok := rfc3339.Parse(s)
	if !ok {
		return t, false
	}
	fraction += "000"
	ms, _ := strconv.ParseInt(fraction[:3], 10, 64)
	if strings.Trim(fraction[3:], "0") != "" {
		ms++
	}
	return absoluteInstant(at.UnixMilli() + ms)
}

// absoluteInstant returns the instant of a time in Unix milliseconds. ok is false if RFC 3339 can't write it.
func absoluteInstant(ms int64) (t instant, ok bool) {
	return instant{ms: ms, text: strconv.FormatInt(ms, 10)}, rfc3339.Earliest <= ms && ms <= rfc3339.Latest
}

// parseAgo returns how long before now a time is. s is what follows now: nothing, or -, digits and a unit, at most 100 years.
func parseAgo(s string) (time.Duration, bool) {
	if s == "" {
		return 0, true
	}
	if len(s) < len("-1s") || s[0] != '-' {
		return 0, false
	}
	unit, known := units[s[len(s)-1]]
	n, isNumber := parseDigits(s[1 : len(s)-1])
	const most = 100 * 365 * 24 * time.Hour
	if !known || !isNumber || n > int64(most/unit) {
		return 0, false
	}
	return time.Duration(n) * unit, true
}

// parseDigits returns the number that s writes in digits and nothing else: no sign, no underscores.
func parseDigits(s string) (int64, bool) {
	if strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// timeFormat is how times are written in answers; they are in UTC.
const timeFormat = "2006-01-02T15:04:05.000Z"
