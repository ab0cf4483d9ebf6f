package eventtime

import (
	"bytes"
	"strconv"
	"strings"
	"time"
)

// What a number counts is told by its size. A count of seconds below 1e11 is a time before the year 5138; one of milliseconds, from
// 1e11 on, is a time after March 1973; and so on.
const (
	secondsBelow = 1e11
	millisBelow  = 1e14
	microsBelow  = 1e17
)

// tooLarge is the first number that is no time. Below it, nanoseconds reach the year 2286.
const tooLarge = 1e19

// mostShift is how many places the exponent of a number may move its point.
const mostShift = 19

// parseDigits returns the Unix microseconds that decimal digits say, perhaps with a fraction.
func parseDigits[T string | []byte](s T) (micros int64, ok bool) {
	var whole uint64
	i := 0
	for ; i < len(s) && '0' <= s[i] && s[i] <= '9'; i++ {
		if whole >= tooLarge/10 {
			return 0, false
		}
		whole = 10*whole + uint64(s[i]-'0')
	}
	if i == 0 {
		return 0, false
	}
	var fraction T
	if i < len(s) {
		if fraction = s[i+1:]; s[i] != '.' || !areDigits(fraction) {
			return 0, false
		}
	}
	switch {
	case whole < secondsBelow:
		return int64(whole)*1_000_000 + leading(fraction, 6), true
	case whole < millisBelow:
		return int64(whole)*1000 + leading(fraction, 3), true
	case whole < microsBelow:
		return int64(whole), true
	default:
		return int64(whole / 1000), true
	}
}

// areDigits reports whether s is one decimal digit or more.
func areDigits[T string | []byte](s T) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return len(s) > 0
}

// leading returns the number that the first n digits of a fraction make, as if zeros followed it.
func leading[T string | []byte](fraction T, n int) (number int64) {
	for i := range n {
		number *= 10
		if i < len(fraction) {
			number += int64(fraction[i] - '0')
		}
	}
	return number
}

// parseNumber returns the Unix microseconds that a JSON number says.
func parseNumber(s []byte) (micros int64, ok bool) {
	at := bytes.IndexAny(s, "eE")
	if at < 0 {
		return parseDigits(s)
	}
	mantissa, power := string(s[:at]), string(s[at+1:])
	exponent, err := strconv.Atoi(power)
	if err != nil || exponent < -mostShift || exponent > mostShift {
		return 0, false
	}
	// The point moves by the exponent. So 1.7e9 is what 1700000000 is, to the last digit.
	whole, fraction, _ := strings.Cut(mantissa, ".")
	digits := whole + fraction
	point := len(whole) + exponent
	switch {
	case point <= 0:
		return 0, false // less than a second after the beginning of 1970
	case point >= len(digits):
		return parseDigits(digits + strings.Repeat("0", point-len(digits)))
	}
	return parseDigits(digits[:point] + "." + digits[point:])
}

// parseDate returns the time of a date and a time of day as RFC 3339 and ISO 8601 write them: 2026-03-04T12:00:00.5Z. A small t, a
// blank, a comma before the fraction, and an offset without its colon are taken, too.
func (r *Rule) parseDate(s []byte) (micros int64, result Result) {
	const shape = "0000-00-00T00:00:00"
	if len(s) < len(shape) || s[4] != '-' || s[7] != '-' || s[10]|' ' != 't' && s[10] != ' ' || s[13] != ':' || s[16] != ':' {
		return 0, Unreadable
	}
	century, ok1 := twoDigits(s, 0)
	year, ok2 := twoDigits(s, 2)
	month, ok3 := twoDigits(s, 5)
	day, ok4 := twoDigits(s, 8)
	hour, ok5 := twoDigits(s, 11)
	minute, ok6 := twoDigits(s, 14)
	second, ok7 := twoDigits(s, 17)
	year += 100 * century
	if !(ok1 && ok2 && ok3 && ok4 && ok5 && ok6 && ok7) || month < 1 || month > 12 || day < 1 || day > daysIn(month, year) ||
		hour > 23 || minute > 59 || second > 60 { // 60 is a leap second, and the next minute's first
		return 0, Unreadable
	}
	micros = ((int64(days(year, month, day))*24+int64(hour))*60+int64(minute))*60 + int64(second)
	micros *= 1_000_000
	rest := s[len(shape):]
	if len(rest) > 0 && (rest[0] == '.' || rest[0] == ',') {
		n := 1
		for n < len(rest) && '0' <= rest[n] && rest[n] <= '9' {
			n++
		}
		if n == 1 {
			return 0, Unreadable
		}
		micros += leading(rest[1:n], 6)
		rest = rest[n:]
	}
	switch {
	case len(rest) == 0:
		if r.zone == nil {
			return 0, NoZone
		}
		at := time.Date(year, time.Month(month), day, hour, minute, second, int(micros%1_000_000)*1000, r.zone)
		micros = at.UnixMicro()
	case len(rest) == 1 && rest[0]|' ' == 'z':
	default:
		offset, ok := parseOffset(rest)
		if !ok {
			return 0, Unreadable
		}
		micros -= offset
	}
	if micros <= Earliest {
		return 0, Unreadable
	}
	return micros, Own
}

// parseOffset returns the microseconds of an offset from UTC, such as +01:00 and -0330.
func parseOffset(s []byte) (micros int64, ok bool) {
	minutesAt := 3
	if len(s) == len("+00:00") && s[3] == ':' {
		minutesAt = 4
	} else if len(s) != len("+0000") {
		return 0, false
	}
	hours, ok1 := twoDigits(s, 1)
	minutes, ok2 := twoDigits(s, minutesAt)
	micros = int64(hours*60+minutes) * 60 * 1_000_000
	if s[0] == '-' {
		micros = -micros
	}
	return micros, ok1 && ok2 && hours <= 23 && minutes <= 59 && (s[0] == '+' || s[0] == '-')
}

// twoDigits returns the number that two decimal digits make.
func twoDigits(s []byte, at int) (n int, ok bool) {
	tens, units := s[at]-'0', s[at+1]-'0'
	return int(tens)*10 + int(units), tens <= 9 && units <= 9
}

// daysIn returns how many days a month has in a year of the Gregorian calendar.
func daysIn(month, year int) int {
	switch month {
	case 2:
		if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
			return 29
		}
		return 28
	case 4, 6, 9, 11:
		return 30
	}
	return 31
}

// days returns the days from 1970-01-01 to a date of the Gregorian calendar, with the year from 0 to 9999. The year begins in March, so
// that the leap day is its last. Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", days_from_civil.
func days(year, month, day int) int {
	if month <= 2 {
		year--
		month += 12
	}
	year += 400 // so that nothing below is negative
	era, yearOfEra := year/400, year%400
	dayOfYear := (153*(month-3)+2)/5 + day - 1
	return era*146097 + yearOfEra*365 + yearOfEra/4 - yearOfEra/100 + dayOfYear - 719468 - 146097
}
