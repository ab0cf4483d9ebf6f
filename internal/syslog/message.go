package syslog

import (
	"strings"
	"time"
)

// Message is what a syslog message says. Its strings are parts of the message, except where those were escaped. The zero value is ready
// for Parse, and may be used again.
type Message struct {
	Priority int       // facility times 8 plus severity; -1 if the message has none
	Time     time.Time // zero if the message has none, or one that is not understood
	Host     string    // who sent it, by its own account: a name or an address
	App      string    // the program: APP-NAME of RFC 5424, the tag of RFC 3164 without the process id
	Process  string    // mostly a process id
	ID       string    // the type of message: MSGID of RFC 5424, Cisco's %FACILITY-SEVERITY-MNEMONIC without the percent sign
	Data     []Element // the structured data of RFC 5424
	Text     string    // what is left: the message itself
}

// Element is an element of structured data.
type Element struct {
	ID     string
	Params []Param
}

// Param is a parameter of an element.
type Param struct{ Name, Value string }

// mostPriority is the largest priority: facility 23, severity 7.
const mostPriority = 23<<3 | 7

// Severity returns how grave the message is, from 0 to 7, and -1 if that is not known.
func (m *Message) Severity() int {
	if m.Priority < 0 {
		return -1
	}
	return m.Priority & 7
}

// Facility returns the number of the part of a system that the message is of, and -1 if that is not known.
func (m *Message) Facility() int {
	if m.Priority < 0 {
		return -1
	}
	return m.Priority >> 3
}

// levels are the names of the severities in the form in which logs have levels.
var levels = [...]string{"emerg", "alert", "crit", "error", "warn", "notice", "info", "debug"}

// Level returns the name of a severity, "" for what is none.
func Level(severity int) string {
	if severity < 0 || severity >= len(levels) {
		return ""
	}
	return levels[severity]
}

// facilities are the keywords of the facilities, by their numbers in RFC 5424, 6.2.1.
var facilities = [...]string{"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp", "audit", "alert", "clock",
	"local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7"}

// FacilityName returns the keyword of a facility, "" for what is none.
func FacilityName(facility int) string {
	if facility < 0 || facility >= len(facilities) {
		return ""
	}
	return facilities[facility]
}

// clear empties m, and keeps its memory.
func (m *Message) clear() {
	*m = Message{Priority: -1, Data: m.Data[:0]}
}

// Parse reads a message. now is about when it came: it gives a date without a year the year that brings it closest, at most a day ahead. zone is the
// time zone of times that are written without one; nil means UTC.
func (m *Message) Parse(message string, now time.Time, zone *time.Location) {
	m.clear()
	if zone == nil {
		zone = time.UTC
	}
	rest := strings.TrimRight(message, "\r\n\x00")
	rest = m.takePriority(rest)
	if m.Priority >= 0 && m.modern(rest, now, zone) {
		return
	}
	m.old(rest, now, zone)
}

// takePriority takes the number in angle brackets from the beginning of a message, and returns the rest.
func (m *Message) takePriority(s string) (rest string) {
	if len(s) < 3 || s[0] != '<' {
		return s
	}
	n, i := 0, 1
	for ; i < len(s) && i <= 3 && isDigit(s[i]); i++ {
		n = 10*n + int(s[i]-'0')
	}
	if i == 1 || i == len(s) || s[i] != '>' || n > mostPriority {
		return s
	}
	m.Priority = n
	return s[i+1:]
}

// isDigit reports whether c is a decimal digit.
func isDigit(c byte) bool { return c-'0' <= 9 }

// isLetter reports whether c is a letter of ASCII.
func isLetter(c byte) bool { return (c|0x20)-'a' <= 'z'-'a' }

// digits returns how many decimal digits s begins with.
func digits(s string) int {
	n := 0
	for n < len(s) && isDigit(s[n]) {
		n++
	}
	return n
}

// number returns the number that decimal digits make. There must be few of them.
func number(s string) (n int) {
	for i := range len(s) {
		n = 10*n + int(s[i]-'0')
	}
	return n
}

// word returns the part of s before the first blank, and what follows the blank.
func word(s string) (first, rest string, ok bool) { return strings.Cut(s, " ") }

// skipBlanks returns s without the blanks and tabs that it begins with.
func skipBlanks(s string) string {
	for s != "" && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	return s
}
