package query

import (
	"strconv"
	"strings"
	"time"

	"millrace/internal/rfc3339"
	"millrace/query/language"
)

// timeForms is what a time parameter takes, for refusals.
const timeForms = "RFC 3339, a day such as 2026-03-04, Unix seconds or milliseconds, now, now-1h30m (units s m h d w), or now/d"

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

// parseTime returns the instant that a parameter gives: of a day, or of another time that has a length, its end if isEnd. A time between
// two milliseconds becomes the later one. inserted_at is in whole milliseconds, so the same rows lie before either.
func parseTime(s string, isEnd bool, now time.Time) (t instant, ok bool) {
	if isNow := strings.HasPrefix(s, "now"); isNow || len(s) == len(time.DateOnly) {
		if at, length, ok := language.ParseTime(s, now); ok {
			if isEnd {
				at = at.Add(length)
			}
			if isNow {
				return instant{ms: at.UnixMilli(), relative: true, text: s}, true
			}
			return absoluteInstant(at.UnixMilli())
		} else if isNow {
			return t, false
		}
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
