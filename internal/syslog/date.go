package syslog

import (
	"strings"
	"time"
)

// dateReader reads a date and a time of day from the beginning of rest. Its methods report whether there was one. If not, rest and time are as before.
type dateReader struct {
	rest string
	now  time.Time
	zone *time.Location
	time time.Time // zero if what was read has a time zone that is not known
}

// months are the names that RFC 3164 gives to the months.
const months = "JanFebMarAprMayJunJulAugSepOctNovDec"

// month returns the month that s begins with, 0 if it begins with none.
func month(s string) time.Month {
	if len(s) < 3 {
		return 0
	}
	for m := range 12 {
		if name := months[3*m : 3*m+3]; s[:3] == name || strings.EqualFold(s[:3], name) {
			return time.Month(m + 1)
		}
	}
	return 0
}

// weekdays are the names of the days with which some begin a date.
const weekdays = "MonTueWedThuFriSatSun"

// skipWeekday returns s without the day of the week that it may begin with.
func skipWeekday(s string) string {
	if len(s) < 5 || s[3] != ' ' && s[3] != ',' {
		return s
	}
	for d := range 7 {
		if s[:3] == weekdays[3*d:3*d+3] {
			return skipBlanks(strings.TrimPrefix(s[3:], ","))
		}
	}
	return s
}

// any reads a date in any of the forms in which syslog has them.
func (d *dateReader) any() bool {
	if d.rest == "" {
		return false
	}
	if isDigit(d.rest[0]) {
		return d.iso() || d.netScaler() || d.yearFirst()
	}
	return isLetter(d.rest[0]) && d.old(0)
}

// year returns the year that s begins with, before a blank, a colon and a blank, or the end. It returns 0 if s begins with none.
func year(s string) int {
	if digits(s) != 4 || s[0] != '1' && s[0] != '2' || len(s) > 4 && s[4] != ' ' && !strings.HasPrefix(s[4:], ": ") {
		return 0
	}
	if y := number(s[:4]); y >= 1970 && y < 2200 {
		return y
	}
	return 0
}

// yearFirst reads a date such as 2026 Nov 28 10:00:00.
func (d *dateReader) yearFirst() bool {
	y := year(d.rest)
	if y == 0 {
		return false
	}
	before := d.rest
	if d.rest = skipBlanks(d.rest[4:]); d.old(y) {
		return true
	}
	d.rest = before
	return false
}

// old reads a date such as Nov 28 10:00:00, perhaps with a day of the week before it, a year before or behind the time of day, a fraction of the second, and a time
// zone. y is the year that was read before it, 0 if none was.
func (d *dateReader) old(y int) bool {
	s := skipWeekday(d.rest)
	m := month(s)
	if m == 0 || len(s) < 4 || s[3] != ' ' && s[3] != '-' {
		return false
	}
	s = skipBlanks(s[4:])
	n := digits(s)
	if n == 0 || n > 2 || n == len(s) {
		return false
	}
	day := number(s[:n])
	s = skipBlanks(strings.TrimPrefix(s[n:], ","))
	if y == 0 {
		if y = year(s); y > 0 {
			s = skipBlanks(s[4:])
		}
	}
	clock, s, ok := timeOfDay(s)
	if !ok || day < 1 || day > 31 {
		return false
	}
	if after := strings.TrimPrefix(s, " "); y == 0 && len(after) < len(s) {
		if y = year(after); y > 0 {
			s = after[4:]
		}
	}
	zone, rest, known := d.takeZone(s)
	if after := strings.TrimPrefix(rest, " "); y == 0 && len(rest) < len(s) && len(after) < len(rest) {
		if y = year(after); y > 0 { // Sat Nov 28 10:00:00 UTC 2026
			rest = after[4:]
		}
	}
	s = rest
	at := time.Time{}
	if known {
		if y > 0 {
			at, ok = date(y, m, day, clock, zone)
		} else {
			at, ok = closest(m, day, clock, zone, d.now)
		}
		if !ok {
			return false
		}
	}
	d.time, d.rest = at, s
	return true
}

// date returns a date and time of day. It reports false if the month has no such day.
func date(y int, m time.Month, day int, clock time.Duration, zone *time.Location) (time.Time, bool) {
	seconds := int(clock / time.Second)
	at := time.Date(y, m, day, seconds/3600, seconds/60%60, seconds%60, int(clock%time.Second), zone)
	return at, time.Date(y, m, day, 0, 0, 0, 0, time.UTC).Day() == day
}

// mostAhead is how far a date without a year may be ahead of the time that it came: clocks and time zones may be wrong.
const mostAhead = 24 * time.Hour

// closest returns a date with the year that brings it closest to now, at most a day ahead.
func closest(m time.Month, day int, clock time.Duration, zone *time.Location, now time.Time) (best time.Time, ok bool) {
	y := now.In(zone).Year()
	for _, y := range [...]int{y + 1, y, y - 1, y - 2, y - 3, y - 4} { // 29 February is at most 4 years ago, but for the turn of some centuries
		at, valid := date(y, m, day, clock, zone)
		if valid && !at.After(now.Add(mostAhead)) {
			return at, true
		}
	}
	return best, false
}

// timeOfDay reads a time of day such as 10:00:00 or 10:00:00.123 from the beginning of s. The second 60 is the first of the next minute.
func timeOfDay(s string) (clock time.Duration, rest string, ok bool) {
	const shape = len("00:00:00")
	i := 0
	if len(s) == shape-1 || len(s) >= shape && s[1] == ':' { // an hour of one digit
		i = 1
	}
	if len(s) < shape-i || digits(s) != 2-i || s[2-i] != ':' || digits(s[3-i:]) != 2 || s[5-i] != ':' || digits(s[6-i:]) != 2 {
		return 0, s, false
	}
	hour, minute, second := number(s[:2-i]), number(s[3-i:5-i]), number(s[6-i:8-i])
	if hour > 23 || minute > 59 || second > 60 {
		return 0, s, false
	}
	clock = time.Duration(hour)*time.Hour + time.Duration(minute)*time.Minute + time.Duration(second)*time.Second
	rest = s[shape-i:]
	if len(rest) > 1 && (rest[0] == '.' || rest[0] == ',') {
		if n := digits(rest[1:]); n > 0 && n <= mostFraction {
			clock += fraction(rest[1 : 1+n])
			rest = rest[1+n:]
		}
	}
	return clock, rest, true
}

// mostFraction is how many digits a fraction of a second may have. Those past nanoseconds are dropped.
const mostFraction = 12

// fraction returns the part of a second that the digits behind its point say.
func fraction(s string) time.Duration {
	n := 0
	for i := range 9 {
		n *= 10
		if i < len(s) {
			n += int(s[i] - '0')
		}
	}
	return time.Duration(n)
}

// zones are abbreviations of time zones that mean one offset, in hours. Those of North America are RFC 822's.
var zones = map[string]int{
	"UTC": 0, "GMT": 0, "Z": 0, "EST": -5, "EDT": -4, "CST": -6, "CDT": -5, "MST": -7, "MDT": -6, "PST": -8, "PDT": -7,
	"WET": 0, "WEST": 1, "CET": 1, "CEST": 2, "MET": 1, "MEST": 2, "EET": 2, "EEST": 3, "MSK": 3, "JST": 9, "AEST": 10, "AEDT": 11, "NZST": 12, "NZDT": 13,
}

// takeZone reads a time zone, with or without a blank before it, from the beginning of s. Without one, it is d.zone. known is false if there is one that is not
// known.
func (d *dateReader) takeZone(s string) (zone *time.Location, rest string, known bool) {
	t := strings.TrimPrefix(s, " ")
	if offset, rest, ok := takeOffset(t); ok {
		return offset, rest, true
	}
	n := 0
	for n < len(t) && n <= 5 && t[n]-'A' <= 'Z'-'A' {
		n++
	}
	if n == 0 || n > 5 || n < len(t) && t[n] != ' ' && t[n] != ':' {
		return d.zone, s, true
	}
	name := t[:n]
	if hours, ok := zones[name]; ok {
		if hours == 0 {
			return time.UTC, t[n:], true
		}
		return time.FixedZone(name, hours*3600), t[n:], true
	}
	if here, _ := d.now.In(d.zone).Zone(); here == name {
		return d.zone, t[n:], true
	}
	if strings.HasPrefix(t[n:], ": %") && len(t) < len(s) {
		return nil, t[n:], false // Cisco's form, with a zone that could be several
	}
	return d.zone, s, true // more likely a host, or a tag
}

// takeOffset reads an offset from UTC such as Z, +01:00, -0500 from the beginning of s.
func takeOffset(s string) (zone *time.Location, rest string, ok bool) {
	if s != "" && (s[0] == 'Z' || s[0] == 'z') && (len(s) == 1 || s[1] == ' ' || s[1] == ':') {
		return time.UTC, s[1:], true
	}
	if len(s) < 5 || s[0] != '+' && s[0] != '-' || digits(s[1:]) < 2 {
		return nil, s, false
	}
	n := 5
	minute := s[3:5]
	if s[3] == ':' {
		if n = 6; len(s) < n {
			return nil, s, false
		}
		minute = s[4:6]
	}
	if digits(minute) != 2 || n < len(s) && isDigit(s[n]) {
		return nil, s, false
	}
	h, m := number(s[1:3]), number(minute)
	if h > 15 || m > 59 {
		return nil, s, false
	}
	seconds := h*3600 + m*60
	if s[0] == '-' {
		seconds = -seconds
	}
	if seconds == 0 {
		return time.UTC, s[n:], true
	}
	return time.FixedZone("", seconds), s[n:], true
}

// iso reads a date as RFC 3339 and ISO 8601 have it. A blank in place of the T, slashes in place of the hyphens, and a time without its zone are taken, too.
func (d *dateReader) iso() bool {
	const shape = len("2006-01-02T")
	s := d.rest
	if len(s) < shape+len("15:04:05") || digits(s) != 4 || s[4] != '-' && s[4] != '/' || s[7] != s[4] || digits(s[5:]) != 2 || digits(s[8:]) != 2 {
		return false
	}
	if c := s[10]; c != 'T' && c != 't' && c != ' ' {
		return false
	}
	clock, rest, ok := timeOfDay(s[shape:])
	m := time.Month(number(s[5:7]))
	if !ok || m < 1 || m > 12 {
		return false
	}
	zone, rest, known := d.takeZone(rest)
	at := time.Time{}
	if known {
		if at, ok = date(number(s[:4]), m, number(s[8:10]), clock, zone); !ok {
			return false
		}
	}
	d.time, d.rest = at, rest
	return true
}

// netScaler reads a date such as 11/28/2026:10:00:00 GMT, which Citrix's NetScaler has. The day is the first number if it can't be a month.
func (d *dateReader) netScaler() bool {
	const shape = len("01/02/2006:")
	s := d.rest
	if len(s) < shape+len("15:04:05") || digits(s) != 2 || s[2] != '/' || digits(s[3:]) != 2 || s[5] != '/' || digits(s[6:]) != 4 || s[10] != ':' {
		return false
	}
	clock, rest, ok := timeOfDay(s[shape:])
	m, day := number(s[:2]), number(s[3:5])
	if m > 12 {
		m, day = day, m
	}
	if !ok || m < 1 || m > 12 {
		return false
	}
	zone, rest, known := d.takeZone(rest)
	at := time.Time{}
	if known {
		if at, ok = date(number(s[6:10]), time.Month(m), day, clock, zone); !ok {
			return false
		}
	}
	d.time, d.rest = at, rest
	return true
}

// epoch returns the time that a number of seconds with a fraction says.
func epoch(s string) (time.Time, bool) {
	n := digits(s)
	if n < 9 || n > 11 || n+1 >= len(s) || s[n] != '.' || digits(s[n+1:]) != len(s)-n-1 || len(s)-n-1 > mostFraction {
		return time.Time{}, false
	}
	return time.Unix(int64(number(s[:n])), int64(fraction(s[n+1:]))).UTC(), true
}
