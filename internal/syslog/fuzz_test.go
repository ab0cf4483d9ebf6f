package syslog

import (
	"os"
	"strings"
	"testing"
	"time"
)

// FuzzParse reads anything. No byte of a message's end may be lost: what is read is a part of the message, and the text is its end.
func FuzzParse(f *testing.F) {
	lines, err := os.ReadFile("testdata/lines.txt")
	if err != nil {
		f.Fatal(err)
	}
	for _, line := range strings.Split(string(lines), "\n") {
		if !strings.HasPrefix(line, "# ") {
			f.Add(line)
		}
	}
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		f.Fatal(err)
	}
	var again Message
	f.Fuzz(func(t *testing.T, line string) {
		var m Message
		m.Parse(line, now, berlin)
		again.Parse(line, now, berlin)
		if show(&m) != show(&again) {
			t.Errorf("%q: a Message that was used before reads %q, a new one %q", line, show(&again), show(&m))
		}
		whole := strings.TrimRight(line, "\r\n\x00")
		if !strings.HasSuffix(whole, m.Text) {
			t.Errorf("%q: the text is %q", line, m.Text)
		}
		for _, part := range []string{m.Host, m.App, m.Process, m.ID} {
			if !strings.Contains(whole, part) {
				t.Errorf("%q: made up %q", line, part)
			}
		}
		for _, e := range m.Data {
			for _, p := range e.Params {
				if e.ID != "meta" && (!strings.Contains(whole, e.ID) || !strings.Contains(whole, p.Name)) {
					t.Errorf("%q: made up %q %q", line, e.ID, p.Name)
				}
			}
		}
		if m.Priority < -1 || m.Priority > mostPriority {
			t.Errorf("%q: priority %d", line, m.Priority)
		}
		if dated := !m.Time.IsZero(); dated && (m.Time.Year() < 0 || m.Time.Year() > 10000) {
			t.Errorf("%q: time %v", line, m.Time)
		}
	})
}
