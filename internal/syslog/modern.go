package syslog

import (
	"strings"
	"time"
	"unicode/utf8"
)

const (
	nilValue = "-"            // stands for a value that the sender does not have
	bom      = "\xef\xbb\xbf" // says that a text is UTF-8
)

// modern reads what follows the priority of a message of RFC 5424. It reports false, and changes nothing, if the message has another form.
func (m *Message) modern(s string, now time.Time, zone *time.Location) bool {
	if !strings.HasPrefix(s, "1 ") {
		return false
	}
	stamp, rest, ok := word(s[2:])
	if !ok {
		return false
	}
	at := time.Time{}
	if stamp != nilValue {
		if at, ok = epoch(stamp); ok {
			return m.meraki(at, rest)
		}
		d := dateReader{rest: stamp, now: now, zone: zone}
		if !d.iso() || d.rest != "" {
			return false
		}
		at = d.time
	}
	var fields [4]string // host, app, process, id
	for i := range fields {
		more := true
		fields[i], rest, more = word(rest)
		if fields[i] == "" || !more && i < len(fields)-1 {
			return false
		}
		if fields[i] == nilValue {
			fields[i] = ""
		}
	}
	m.Time = at
	m.Host, m.App, m.Process, m.ID = fields[0], fields[1], fields[2], fields[3]
	m.Text = strings.TrimPrefix(m.takeData(rest), bom)
	return true
}

// meraki reads what follows the time of a message of Cisco's Meraki: host, kind of event, text. Such a message has the version of RFC 5424, and the time as a
// number of seconds.
func (m *Message) meraki(at time.Time, s string) bool {
	host, rest, ok := word(s)
	if !ok || host == "" {
		return false
	}
	m.Time, m.Host, m.Text = at, host, rest
	if app, rest, ok := word(rest); ok && isTag(app) {
		m.App, m.Text = app, rest
	}
	return true
}

// takeData takes the structured data from the beginning of s, and returns the rest. What has not quite the form is left to the text.
func (m *Message) takeData(s string) (rest string) {
	if s == nilValue {
		return ""
	}
	if rest, ok := strings.CutPrefix(s, nilValue+" "); ok {
		return rest
	}
	rest = s
	for strings.HasPrefix(rest, "[") {
		var ok bool
		if rest, ok = m.takeElement(rest[1:]); !ok {
			m.Data = m.Data[:0]
			return s
		}
	}
	if rest != "" && rest[0] != ' ' && len(m.Data) > 0 {
		m.Data = m.Data[:0]
		return s
	}
	return strings.TrimPrefix(rest, " ")
}

// takeElement takes an element of structured data, whose opening bracket is taken, from the beginning of s.
func (m *Message) takeElement(s string) (rest string, ok bool) {
	end := nameEnd(s)
	if end == 0 || end == len(s) {
		return s, false
	}
	e := Element{ID: s[:end]}
	if n := len(m.Data); n < cap(m.Data) {
		e.Params = m.Data[:n+1][n].Params[:0]
	}
	for s = s[end:]; s != "" && s[0] == ' '; {
		s = skipBlanks(s)
		if s != "" && s[0] == ']' {
			break // some put a blank before the bracket
		}
		end = nameEnd(s)
		if end == 0 || !strings.HasPrefix(s[end:], `="`) {
			return s, false
		}
		name := s[:end]
		var value string
		if value, s, ok = takeValue(s[end+2:]); !ok {
			return s, false
		}
		e.Params = append(e.Params, Param{name, value})
	}
	if s == "" || s[0] != ']' {
		return s, false
	}
	m.Data = append(m.Data, e)
	return s[1:], true
}

// nameEnd returns where the name of an element or a parameter, at the beginning of s, ends.
func nameEnd(s string) int {
	i := 0
	for i < len(s) && s[i] > ' ' && s[i] != '=' && s[i] != ']' && s[i] != '"' && s[i] < utf8.RuneSelf {
		i++
	}
	return i
}

// takeValue takes a parameter's value, whose first quote is taken, and its second quote from the beginning of s. A backslash before a quote, a backslash or a closing
// bracket is left out. Before anything else it stands for itself.
func takeValue(s string) (value, rest string, ok bool) {
	escaped := false
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"':
			if value = s[:i]; escaped {
				value = unescape(value)
			}
			return value, s[i+1:], true
		case '\\':
			if i+1 < len(s) && isEscaped(s[i+1]) {
				escaped = true
				i++
			}
		}
	}
	return "", s, false
}

func isEscaped(c byte) bool { return c == '"' || c == '\\' || c == ']' }

// unescape returns a parameter's value without its escapes.
func unescape(s string) string {
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) && isEscaped(s[i+1]) {
			i++
		}
		b = append(b, s[i])
	}
	return string(b)
}
