package syslog

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write testdata/parsed.txt")

// now is about when the messages of the tests came.
var now = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

// show returns what was read of a message in a form to read.
func show(m *Message) string {
	var b strings.Builder
	if m.Priority >= 0 {
		fmt.Fprintf(&b, " %s.%s", FacilityName(m.Facility()), Level(m.Severity()))
	}
	if !m.Time.IsZero() {
		b.WriteString(" " + m.Time.UTC().Format(time.RFC3339Nano))
	}
	for _, field := range []struct{ name, value string }{{"host", m.Host}, {"app", m.App}, {"process", m.Process}, {"id", m.ID}} {
		if field.value != "" {
			fmt.Fprintf(&b, " %s=%s", field.name, field.value)
		}
	}
	for _, e := range m.Data {
		fmt.Fprintf(&b, " [%s", e.ID)
		for _, p := range e.Params {
			fmt.Fprintf(&b, " %s=%q", p.Name, p.Value)
		}
		b.WriteString("]")
	}
	return strings.TrimPrefix(b.String()+" | "+m.Text, " ")
}

// testdata/lines.txt has messages of many devices and programs, written after their documents. testdata/parsed.txt has each again, and below it what is read of it. Whoever
// changes the parser looks at the difference that -update makes.
func TestMessagesOfManyDevicesAreReadAsTheyAreMeant(t *testing.T) {
	lines, err := os.ReadFile("testdata/lines.txt")
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	var m Message
	n := 0
	for _, line := range strings.Split(strings.TrimSuffix(string(lines), "\n"), "\n") {
		got.WriteString(line + "\n")
		if strings.HasPrefix(line, "# ") {
			continue
		}
		n++
		m.Parse(strings.ReplaceAll(line, "BOM", bom), now, nil)
		got.WriteString("    " + strings.ReplaceAll(show(&m), bom, "BOM") + "\n")
	}
	if *update {
		if err := os.WriteFile("testdata/parsed.txt", []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/parsed.txt")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got.String(), "\n")); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if n < 150 {
		t.Errorf("%d messages", n)
	}
}
