package mapping

import (
	"strings"
	"time"
	"unicode/utf8"
)

// Level adds the sender's word for a severity, in small letters.
func (m *Mapper) Level(s Source, word string) { m.String(s, LevelField, m.lower(word)) }

// lower returns a word in small letters.
func (m *Mapper) lower(word string) string {
	i := 0
	for i < len(word) && (word[i] < 'A' || word[i] > 'Z') && word[i] < utf8.RuneSelf {
		i++
	}
	if i == len(word) {
		return word
	}
	b := m.buffer()
	from := len(*b)
	for i := range len(word) {
		c := word[i]
		if c >= utf8.RuneSelf {
			*b = (*b)[:from]
			return strings.ToLower(word)
		}
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		*b = append(*b, c)
	}
	return stringOf((*b)[from:])
}

// LevelOfSyslog returns the level that a severity of syslog is, from 0 to 7. It returns "" for other numbers.
func LevelOfSyslog(severity int) string {
	levels := [...]string{"emerg", "alert", "crit", "error", "warn", "notice", "info", "debug"}
	if severity < 0 || severity >= len(levels) {
		return ""
	}
	return levels[severity]
}

// LevelOfOTel returns the level that a severity number of OpenTelemetry is, from 1 to 24. It returns "" for other numbers.
func LevelOfOTel(severity int64) string {
	levels := [...]string{"trace", "debug", "info", "warn", "error", "fatal"}
	if severity < 1 || severity > 24 {
		return ""
	}
	return levels[(severity-1)/4]
}

// clock writes times. It keeps the text of the last second, because the records of a request have much the same time.
type clock struct {
	second int64
	text   []byte // of second, with room for the rest
}

// secondBytes is the length of a time of the years up to 9999 without its fraction and zone.
const secondBytes = len("2006-01-02T15:04:05")

// format returns a time in the form of RFC 3339, in UTC, with as many digits after the second as it needs. The result is valid until
// the next call.
func (c *clock) format(nanos int64) []byte {
	second, fraction := nanos/1e9, nanos%1e9
	if fraction < 0 {
		second, fraction = second-1, fraction+1e9
	}
	if c.text == nil || c.second != second {
		c.text = time.Unix(second, 0).UTC().AppendFormat(c.text[:0], "2006-01-02T15:04:05")
		c.second = second
	}
	b := c.text[:secondBytes] // nanoseconds reach from 1677 to 2262
	if fraction > 0 {
		var digits [9]byte
		rest := uint32(fraction) // which is divided faster
		for i := len(digits) - 1; i >= 0; i-- {
			digits[i] = byte('0' + rest%10)
			rest /= 10
		}
		n := len(digits)
		for digits[n-1] == '0' {
			n--
		}
		b = append(b, '.')
		b = append(b, digits[:n]...)
	}
	b = append(b, 'Z')
	c.text = b[:secondBytes]
	return b
}
