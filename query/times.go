package query

import (
	"strconv"
	"strings"
	"time"
)

// timeForms is what a time parameter takes, for refusals.
const timeForms = "RFC 3339, Unix seconds or milliseconds, now, or now-15m (units s m h d w)"

const (
	// earliest and latest, in Unix milliseconds, are the years 0 and 9999: what RFC 3339 can write.
	earliest = -62167219200000
	latest   = 253402300799999

	// secondsBelow parts Unix seconds from milliseconds: as seconds it is the year 5138, as milliseconds 1973.
	secondsBelow = 100_000_000_000
)

var units = map[byte]time.Duration{
	's': time.Second, 'm': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour, 'w': 7 * 24 * time.Hour,
}

// instant is a point in time as a parameter gave it.
type instant struct {
	ms       int64  // Unix milliseconds
	relative bool   // counted from now, so another millisecond in the next request
	text     string // the same for every way to write the same time; a relative one is as it was written
}

// parseTime reads a time. A time between two milliseconds counts as the later one: inserted_at is in whole
// milliseconds, so that changes neither what is at or after it nor what is before it.
func parseTime(s string, now time.Time) (t instant, ok bool) {
	if rest, found := strings.CutPrefix(s, "now"); found {
		ago, ok := parseAgo(rest)
		return instant{ms: now.Add(-ago).UnixMilli(), relative: true, text: s}, ok
	}
	if n, isNumber := parseDigits(s); isNumber {
		if n < secondsBelow {
			n *= 1000
		}
		return absolute(n)
	}
	// An offset's + that was not escaped comes out of a URL as a space.
	if i := len(s) - len("+00:00"); i > 0 && s[i] == ' ' {
		s = s[:i] + "+" + s[i+1:]
	}
	at, fraction, ok := parseRFC3339(s)
	if !ok {
		return t, false
	}
	fraction += "000"
	ms, _ := strconv.ParseInt(fraction[:3], 10, 64)
	if strings.Trim(fraction[3:], "0") != "" {
		ms++
	}
	return absolute(at.UnixMilli() + ms)
}

// parseRFC3339 reads a time as RFC 3339 defines it: T and Z in either case, any number of digits in the fraction,
// offsets up to 23:59, -00:00 among them. The second 60 is the first of the next minute, as PostgreSQL and Unix time
// have it; any minute may have one, since which do is decided from year to year. at is the whole second.
//
// time.Parse takes less of that, and some more: a comma, offsets of 24 hours.
func parseRFC3339(s string) (at time.Time, fraction string, ok bool) {
	const shape = "0000-00-00T00:00:00"
	if len(s) <= len(shape) {
		return at, "", false
	}
	for i := range len(shape) {
		switch c := s[i]; shape[i] {
		case '0':
			ok = '0' <= c && c <= '9'
		case 'T':
			ok = c == 'T' || c == 't'
		default:
			ok = c == shape[i]
		}
		if !ok {
			return at, "", false
		}
	}
	number := func(from, to int) (n int) {
		for _, c := range []byte(s[from:to]) {
			n = 10*n + int(c-'0')
		}
		return n
	}
	year, month, day := number(0, 4), time.Month(number(5, 7)), number(8, 10)
	hour, minute, second := number(11, 13), number(14, 16), number(17, 19)
	if hour > 23 || minute > 59 || second > 60 {
		return at, "", false
	}
	at = time.Date(year, month, day, hour, minute, 0, 0, time.UTC)
	if at.Month() != month || at.Day() != day {
		return at, "", false // the month has no such day, or the year no such month
	}
	at = at.Add(time.Duration(second) * time.Second)

	rest := s[len(shape):]
	if rest[0] == '.' {
		n := leadingDigits(rest[1:])
		if n == 0 {
			return at, "", false
		}
		fraction, rest = rest[1:1+n], rest[1+n:]
	}
	if rest == "Z" || rest == "z" {
		return at, fraction, true
	}
	if len(rest) != len("+00:00") || rest[0] != '+' && rest[0] != '-' || leadingDigits(rest[1:]) != 2 || rest[3] != ':' || leadingDigits(rest[4:]) != 2 {
		return at, "", false
	}
	zone := len(s) - len("00:00")
	hour, minute = number(zone, zone+2), number(zone+3, zone+5)
	offset := time.Duration(hour)*time.Hour + time.Duration(minute)*time.Minute
	if rest[0] == '-' {
		offset = -offset
	}
	return at.Add(-offset), fraction, hour <= 23 && minute <= 59
}

func absolute(ms int64) (instant, bool) {
	return instant{ms: ms, text: strconv.FormatInt(ms, 10)}, earliest <= ms && ms <= latest
}

// parseAgo reads what may follow now: nothing, or -, digits and a unit, at most 100 years.
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

// parseDigits reads digits and nothing else: no sign, no underscores.
func parseDigits(s string) (int64, bool) {
	if strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// rfc3339 is how times are written in answers; they are in UTC.
const rfc3339 = "2006-01-02T15:04:05.000Z"
