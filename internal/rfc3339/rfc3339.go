// Package rfc3339 reads times as RFC 3339 defines them, which time.Parse does not. So a search's parameters, its language and
// PostgreSQL take the same texts for times.
//
// Nothing here starts a goroutine.
package rfc3339

import (
	"strings"
	"time"
)

// Earliest and Latest are the first time and the last that RFC 3339 can write, in Unix milliseconds: the beginning of the year 0
// and the end of the year 9999.
const (
	Earliest = -62167219200000
	Latest   = 253402300799999
)

// Parse returns the time that s writes as RFC 3339 defines it: T and Z in either case, any number of digits in the fraction,
// offsets up to 23:59, -00:00 among them. at is the whole second, fraction the digits after the point. The second 60 is the first
// of the next minute, as in PostgreSQL and Unix time. Any minute may have it: which ones do is decided from year to year.
//
// time.Parse refuses some of these, and takes others: a comma, offsets of 24 hours.
func Parse(s string) (at time.Time, fraction string, ok bool) {
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

// leadingDigits returns how many digits s begins with.
func leadingDigits(s string) int { return len(s) - len(strings.TrimLeft(s, "0123456789")) }
