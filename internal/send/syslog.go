package send

import (
	"time"

	"millrace/internal/syslog"
)

// parseSyslog reads a line of RFC 5424 or RFC 3164, or of what devices send in their place, with a priority or, as in files, without
// one. A time without a zone is local. A line that says nothing beside its text is not of the format.
func parseSyslog(line []byte, at time.Time) ([]member, bool) {
	m := new(syslog.Message)
	m.Parse(string(line), at, time.Local)
	if m.Priority < 0 && m.Time.IsZero() {
		return nil, false
	}
	var out []member
	if !m.Time.IsZero() {
		out = append(out, member{"time", m.Time})
	}
	for _, text := range []member{{"level", syslog.Level(m.Severity())}, {"host", m.Host}, {"service", m.App}} {
		if text.value != "" {
			out = append(out, text)
		}
	}
	if m.Priority >= 0 || m.Process != "" || m.ID != "" || len(m.Data) > 0 {
		out = append(out, member{"syslog", m})
	}
	return append(out, member{"message", m.Text}), true
}
