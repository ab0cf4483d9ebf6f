package syslog

import (
	"strconv"
	"strings"
	"time"
)

// old reads what follows the priority, if there is one, of a message that is not of RFC 5424.
func (m *Message) old(s string, now time.Time, zone *time.Location) {
	m.Text = s
	d := dateReader{rest: skipBlanks(s), now: now, zone: zone}
	var found bool
	if m.Priority < 0 {
		found = m.fromFile(&d)
	} else {
		found = d.any() || m.cisco(&d)
	}
	if !found {
		if m.Priority >= 0 && !m.pairs(s, now, zone) {
			m.processTag(skipBlanks(s))
		}
		m.findMnemonic()
		return
	}
	before := *m
	if !m.head(d.rest) {
		*m = before // what looked like a date is followed by something else than a blank
		return
	}
	if m.Time = d.time; d.time.IsZero() {
		m.Text = s // the date is known from nowhere else
	}
	m.findMnemonic()
}

// fromFile reads the date of a line without a priority, as files of syslog have it. Other lines that begin with a date are no syslog, so host and tag must follow, and a date
// of ISO 8601 must be whole.
func (m *Message) fromFile(d *dateReader) bool {
	if d.rest == "" || isDigit(d.rest[0]) && (len(d.rest) < 20 || d.rest[10] != 'T') {
		return false
	}
	if !d.any() {
		return false
	}
	var test Message
	return test.head(d.rest) && test.Host != "" && test.App != ""
}

const (
	mostNumbers  = 2 // how many numbers with a colon Cisco's devices put before the date
	mostPrefixes = 2 // how many words, behind those
)

// cisco reads what Cisco's devices put before the date, and the date: a number of the message, the device's name, a star or a point for a clock that is not
// synchronised.
func (m *Message) cisco(d *dateReader) bool {
	s := skipBlanks(strings.TrimPrefix(d.rest, ":"))
	var numbers []Param
	for range mostNumbers {
		n := digits(s)
		if n == 0 || n > 20 || !strings.HasPrefix(s[n:], ":") || isClock(s) {
			break
		}
		numbers = append(numbers, Param{"sequenceId", s[:n]})
		s = skipBlanks(s[n+1:])
	}
	var words [mostPrefixes]string
	for i := 0; ; i++ {
		one := *d
		if one.rest = strings.TrimLeft(s, "*."); one.any() {
			d.rest, d.time = one.rest, one.time
			break
		}
		end := strings.IndexByte(s, ':')
		if i == mostPrefixes || end <= 0 || !isHost(strings.TrimPrefix(s[:end], "*")) {
			return false
		}
		words[i], s = s[:end], skipBlanks(s[end+1:])
	}
	if len(numbers) > 0 {
		m.Data = append(m.Data, Element{ID: "meta", Params: numbers}) // where RFC 5424, 7.3.1, has a place for it
	}
	m.Host, m.App = words[0], strings.TrimPrefix(words[1], "*")
	return true
}

// isClock reports whether s begins with two digits, a colon and a digit.
func isClock(s string) bool { return len(s) > 3 && digits(s) == 2 && isDigit(s[3]) }

// head reads what follows the date: host, tag and text. It reports false if that is neither a blank nor a colon.
func (m *Message) head(s string) bool {
	hostKnown := m.Host != ""
	if rest, ok := strings.CutPrefix(s, ":"); ok {
		s, hostKnown = rest, true // a device that names itself does so elsewhere
	} else if s != "" && s[0] != ' ' && s[0] != '\t' {
		return false
	}
	s = skipBlanks(s)
	switch {
	case strings.HasPrefix(s, "last message repeated "), strings.HasPrefix(s, "message repeated "):
		m.Text = s
		return true
	case strings.HasPrefix(s, forwarded):
		host, rest, ok := strings.Cut(s[len(forwarded):], ": ")
		if ok && isHost(host) {
			m.Host, s, hostKnown = host, rest, true // AIX
		}
	}
	if !hostKnown {
		s = m.takeHost(s)
	}
	if m.App == "" {
		s = m.takeTag(m.skipLevel(s))
	}
	m.Text = s
	return true
}

const forwarded = "Message forwarded from "

// takeHost takes the host from the beginning of s, if it has one, and returns the rest.
func (m *Message) takeHost(s string) string {
	first, rest, more := word(s)
	if name, ok := strings.CutSuffix(first, ":"); ok {
		// It is a tag, unless what follows says that it is not.
		isDevice := mnemonic(rest) != "" || strings.Contains(name, ",") && startsWithTag(rest)
		if isDevice && !strings.ContainsAny(name, "[]=\"") {
			m.Host = name
			return rest
		}
		return s
	}
	if !isHost(first) || startsWithTag(s) || !more {
		return s
	}
	if _, isLevel := severity(first); isLevel {
		return s
	}
	m.Host = first
	rest = skipBlanks(rest)
	if text, ok := strings.CutPrefix(rest, ": "); ok {
		rest = text // Cisco: host : %ASA-6-…
	}
	return rest
}

// mostName is the longest name that is taken for a host or a tag. DNS has 255.
const mostName = 255

// isHost reports whether s can be the name or the address of a host.
func isHost(s string) bool {
	hasWord := false
	for i := range len(s) {
		switch c := s[i]; {
		case isLetter(c), isDigit(c):
			hasWord = true
		case c == '.', c == '-', c == '_', c == ':', c == '/', c == '%', c == '@':
		default:
			if c < 0x80 {
				return false
			}
			hasWord = true
		}
	}
	return hasWord && len(s) <= mostName && !strings.Contains(s, "//")
}

// isTag reports whether s can be a tag.
func isTag(s string) bool { return tagEnd(s) == len(s) && s != "" }

// tagEnd returns where the tag at the beginning of s would end.
func tagEnd(s string) int {
	i := 0
	for i < len(s) && (isLetter(s[i]) || isDigit(s[i]) || strings.IndexByte("_-./@()#+$", s[i]) >= 0 || s[i] >= 0x80) {
		i++
	}
	return i
}

// mostProcess is the longest process id.
const mostProcess = 64

// splitTag splits s into a tag, a process id and the rest. It reports false if s does not begin with a tag: a word and a colon, or a word and a process id in brackets.
func splitTag(s string) (tag, process, rest string, ok bool) {
	end := tagEnd(s)
	if end == 0 || end > mostName || end == len(s) {
		return "", "", s, false
	}
	switch s[end] {
	case ':':
		after := s[end+1:]
		if after != "" && after[0] != ' ' && after[0] != '\t' || digits(s) == end || !hasLetter(s[:end]) {
			return "", "", s, false
		}
		return s[:end], "", skipBlank(after), true
	case '[':
		inside := s[end+1:]
		closing := strings.IndexByte(inside[:min(len(inside), mostProcess+1)], ']')
		if closing <= 0 || strings.ContainsAny(inside[:closing], " [\"=") || !hasLetter(s[:end]) {
			return "", "", s, false
		}
		process, after := inside[:closing], inside[closing+1:]
		switch {
		case after == "", after[0] == ' ' && digits(process) == len(process):
		case after[0] == ':':
			after = after[1:]
		default:
			return "", "", s, false
		}
		return s[:end], process, skipBlank(after), true
	}
	return "", "", s, false
}

// hasLetter reports whether s has a letter, or a byte that is not ASCII.
func hasLetter(s string) bool {
	for i := range len(s) {
		if isLetter(s[i]) || s[i] >= 0x80 {
			return true
		}
	}
	return false
}

// skipBlank returns s without the one blank that it may begin with.
func skipBlank(s string) string { return strings.TrimPrefix(s, " ") }

// startsWithTag reports whether s begins with a tag.
func startsWithTag(s string) bool {
	_, _, _, ok := splitTag(s)
	return ok
}

// takeTag takes the tag from the beginning of s, if it has one, and returns the rest.
func (m *Message) takeTag(s string) string {
	tag, process, rest, ok := splitTag(s)
	if ok {
		m.App, m.Process = tag, process
	}
	return rest
}

// processTag takes the tag of a message without a date. Without a process id it might be any word.
func (m *Message) processTag(s string) {
	if tag, process, rest, ok := splitTag(s); ok && process != "" {
		m.App, m.Process, m.Text = tag, process, rest
	}
}

// severities are the words that stand for a severity in a message.
var severities = map[string]int{
	"emerg": 0, "emergency": 0, "panic": 0, "alert": 1, "crit": 2, "critical": 2, "fatal": 2, "err": 3, "error": 3, "warn": 4, "warning": 4,
	"notice": 5, "info": 6, "debug": 7, "trace": 7,
}

// severity returns the severity that s stands for, perhaps with a facility before it: info, auth|security:info, daemon.notice. It reports false if s stands for none.
func severity(s string) (n int, ok bool) {
	const longest = len("emergency")
	if s = s[strings.LastIndexAny(s, ":.")+1:]; len(s) > longest {
		return 0, false
	}
	n, ok = severities[strings.ToLower(s)]
	return n, ok
}

// skipLevel returns s without the word that stands between host and tag in the messages of some devices, and says again what severity the message has.
func (m *Message) skipLevel(s string) string {
	if first, rest, ok := word(s); ok && startsWithTag(rest) {
		if n, ok := severity(first); ok && n == m.Severity() {
			return rest
		}
	}
	return s
}

// mnemonic returns the name that Cisco's devices give to a kind of message, if s begins with one: %SYS-5-CONFIG_I: and the like. Huawei and H3C write %%01IFNET/4/LINK_STATE(l):.
func mnemonic(s string) string {
	t := strings.TrimLeft(s, "%")
	signs := len(s) - len(t)
	if signs == 0 || signs > 2 {
		return ""
	}
	if signs == 2 {
		t = t[digits(t):]
	}
	end, parts, hasSeverity := 0, 0, false
	for from := 0; end < len(t); end++ {
		switch c := t[end]; {
		case c == '-' || c == '/':
			hasSeverity = hasSeverity || end-from == 1 && isDigit(t[from])
			parts, from = parts+1, end+1
			continue
		case c == '_', isLetter(c), isDigit(c):
			continue
		}
		break
	}
	if parts < 2 || !hasSeverity || end == len(t) || strings.IndexByte(": ([", t[end]) < 0 {
		return ""
	}
	return t[:end]
}

// findMnemonic looks for a mnemonic near the beginning of the text.
func (m *Message) findMnemonic() {
	const near = 128
	at := strings.IndexByte(m.Text[:min(len(m.Text), near)], '%')
	if m.ID == "" && at >= 0 && (at == 0 || m.Text[at-1] == ' ') {
		m.ID = mnemonic(m.Text[at:])
	}
}

// pairs reads the messages of firewalls that consist of name=value, date and host among them. The text stays as it is. It reports whether the message is one.
func (m *Message) pairs(s string, now time.Time, zone *time.Location) bool {
	s = skipBlanks(s)
	switch {
	case strings.HasPrefix(s, "date="), strings.HasPrefix(s, "device="), strings.HasPrefix(s, "device_name="), strings.HasPrefix(s, "timestamp="): // Fortinet, Sophos
		m.Host = pair(s, "devname")
		if m.Host == "" {
			m.Host = pair(s, "device_name")
		}
	case strings.HasPrefix(s, "id="): // SonicWall
		m.Host = pair(s, "fw")
	default:
		return false
	}
	if m.ID = pair(s, "logid"); m.ID == "" {
		m.ID = pair(s, "log_id")
	}
	if at, ok := unix(pair(s, "eventtime")); ok {
		m.Time = at
		return true
	}
	stamp := pair(s, "timestamp")
	if stamp == "" {
		stamp = strings.TrimSpace(pair(s, "date") + " " + pair(s, "time") + " " + pair(s, "tz"))
		if name := pair(s, "timezone"); name != "" {
			stamp += " " + name
		}
	}
	d := dateReader{rest: stamp, now: now, zone: zone}
	if d.iso() && d.rest == "" {
		m.Time = d.time
	}
	return true
}

// pair returns the value of a name=value in s, without its quotes, "" if there is none.
func pair(s, name string) string {
	for from := 0; ; {
		at := strings.Index(s[from:], name)
		if at < 0 {
			return ""
		}
		at += from
		from = at + len(name)
		if !strings.HasPrefix(s[from:], "=") || at > 0 && s[at-1] != ' ' {
			continue
		}
		value := s[from+1:]
		end := " "
		if strings.HasPrefix(value, `"`) {
			value, end = value[1:], `"`
		}
		value, _, _ = strings.Cut(value, end)
		return value
	}
}

// unix returns the time that a whole number says, which counts seconds, milliseconds, microseconds or nanoseconds: its size tells.
func unix(s string) (time.Time, bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	switch {
	case err != nil || n <= 0:
		return time.Time{}, false
	case n < 1e11:
		return time.Unix(n, 0).UTC(), true
	case n < 1e14:
		return time.UnixMilli(n).UTC(), true
	case n < 1e17:
		return time.UnixMicro(n).UTC(), true
	}
	return time.Unix(0, n).UTC(), true
}
