package cells

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

const good = `# Two cells, and a third to come.
cell a postgres://millrace:secret@db1/logs
	cell  b-2   host=db2 dbname=logs password='a secret'
cell c postgres://millrace:secret@db3:5433/logs?sslmode=require

since beginning a
since 2026-03-04T12:00:00Z a b-2
since 2026-03-04t14:30:00.250+02:00  b-2 c a
`

func TestAFileIsReadAsItSays(t *testing.T) {
	m := must(t, strings.ReplaceAll(good, "\n", "\r\n"))
	var got []string
	for _, c := range m.Cells() {
		got = append(got, c.Name+" "+c.URL.String())
	}
	for _, p := range m.Periods() {
		got = append(got, p.Stamp()+" "+m.Names(p))
	}
	want := []string{"a postgres://db1/logs", "b-2 (hidden)", "c postgres://db3:5433/logs",
		"beginning a", "2026-03-04T12:00:00Z a b-2", "2026-03-04T12:30:00.25Z b-2 c a"}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %q, want %q", got, want)
	}
	if url := string(m.Cells()[1].URL); url != "host=db2 dbname=logs password='a secret'" {
		t.Error("the connection string of pairs is not what the line has")
	}
	if err := m.RequireURLs(); err != nil {
		t.Error(err)
	}
}

func TestAMistakeIsToldWithItsLineAndField(t *testing.T) {
	const ab = "cell a\ncell b\n"
	many := ""
	for i := range maxCells + 1 {
		many += fmt.Sprintf("cell c%d\n", i)
	}
	for text, want := range map[string]string{
		"":            "there is no line: cell NAME URL",
		"# nothing\n": "there is no line: cell NAME URL",
		"cell a":      "there is no line: since beginning NAME…",
		"cells a":     "line 1: takes cell or since as its first word",
		"cell":        "line 1: cell: the name is missing",
		"\ncell A":    `line 2: name: got "A", takes a name of at most 32 lower-case letters, digits and hyphens that begins with a letter`,
		"cell 1":      `line 1: name: got "1", takes`,
		"cell a.b":    `line 1: name: got "a.b", takes`,
		"cell " + many[:0] + strings.Repeat("a", 33):         "line 1: name: got ",
		"cell postgres://u:hidden@h/d":                       "line 1: name: got something that may hold a secret, takes",
		"cell a\ncell b\ncell a":                             "line 3: name: a cell a stands in line 1 already",
		many:                                                 fmt.Sprintf("line %d: takes at most %d cells", maxCells+1, maxCells),
		"cell a mysql://u:hidden@h/d":                        "line 1: URL of a: begins with none of postgres://, postgresql://",
		"cell a postgres://u:hid/den@h/d":                    `line 1: URL of a: the user or password holds "/", which must be written %2F`,
		"cell a postgres://u:hidden@h/d?sslmod=x":            "line 1: URL of a: parameter 1 is unknown; sslmode is the nearest there is",
		"cell a postgres://h/d\ncell b\nsince beginning a b": "line 2: URL: b has none, and a has one",
		"cell a\ncell b postgres://h/d\nsince beginning a b": "line 1: URL: a has none, and b has one",
		"cell a postgres://u:hidden@H/d\ncell b postgresql://v:hidden@h:5432/d?sslmode=disable\nsince beginning a b": "line 2: URL of b: leads to the database of a in line 1",
		"cell a postgres://h,i/d\ncell b host=i dbname=d\nsince beginning a b":                                       "line 2: URL of b: leads to the database of a in line 1",
		ab + "since":                                                "line 3: since: the time is missing",
		ab + "since 2026-03-04T12:00:00Z a":                         `line 3: since: got "2026-03-04T12:00:00Z", the first takes the word beginning`,
		ab + "since yesterday a":                                    `line 3: since: got "yesterday", takes beginning or a time as RFC 3339 has it, such as 2026-03-04T12:00:00Z`,
		ab + "since beginning":                                      "line 3: cells: takes the name of at least one cell",
		ab + "since beginning a, b":                                 `line 3: cells: there is no line for a cell "a,"`,
		ab + "since beginning a b a":                                "line 3: cells: a stands there twice",
		ab + "since beginning a\nsince beginning b":                 "line 4: since: only the first takes the word beginning",
		ab + "since beginning a\nsince 2026-03-04T12:00:00.0005Z b": `line 4: since: got "2026-03-04T12:00:00.0005Z", takes at most three digits of a second`,
		ab + "since beginning a\nsince 1969-03-04T12:00:00Z b":      `line 4: since: got "1969-03-04T12:00:00Z", takes a time after the beginning of 1970`,
		ab + "since beginning a\nsince 2026-03-04T12:00:00Z b\nsince 2026-03-04T13:00:00+01:00 a": `line 5: since: got "2026-03-04T13:00:00+01:00", takes a time later than the one before`,
		"cell a" + strings.Repeat("\n", maxFileBytes):                                             "the file has more than 1048576 bytes",
	} {
		_, err := Parse([]byte(text))
		var m Mistake
		switch {
		case err == nil || !strings.HasPrefix(err.Error(), want):
			t.Errorf("%.200q: got %v, want %s", text, err, want)
		case !errors.As(err, &m):
			t.Errorf("%.200q: got an error of type %T", text, err)
		case strings.Contains(err.Error(), "hid"):
			if !strings.Contains(text, "hid") {
				break
			}
			t.Errorf("%.200q: the error shows the password: %v", text, err)
		}
	}
}

func TestOneDatabaseMayHoldCellsInSchemas(t *testing.T) {
	must(t, "cell a postgres://h/d?search_path=a\ncell b postgres://h/d?search_path=b\nsince beginning a b")
	must(t, "cell a postgres://h:1/d\ncell b postgres://h:2/d\nsince beginning a b")
}

// FuzzParse checks that a text is refused with a line that it has, or gives a map that knows a cell for every id and that its own text
// describes; and that nothing of a URL is repeated.
func FuzzParse(f *testing.F) {
	f.Add(good)
	f.Add("cell a\ncell b\nsince beginning a b\nsince 9999-12-31T23:59:60Z b")
	f.Add("cell a postgres://u:hunter2@h/d\nsince beginning a\nsince 1970-01-01T00:00:00.001Z a")
	f.Add("cell ell x=y\nsince beginning ell")
	f.Fuzz(func(t *testing.T, text string) {
		m, err := Parse([]byte(text))
		var mistake Mistake
		if errors.As(err, &mistake) {
			if mistake.Line < 0 || mistake.Line > 1+strings.Count(text, "\n") {
				t.Fatalf("%v, in %d lines", err, 1+strings.Count(text, "\n"))
			}
			return
		}
		if err != nil {
			t.Fatalf("got %T: %v", err, err)
		}
		again := new(strings.Builder)
		for _, c := range m.Cells() {
			fmt.Fprintln(again, "cell", c.Name, string(c.URL))
		}
		for i, p := range m.Periods() {
			fmt.Fprintln(again, "since", p.Stamp(), m.Names(p))
			for _, at := range []int64{p.millis - 1, p.millis, p.millis + 1} {
				var id [16]byte
				for b := range 6 {
					id[b] = byte(uint64(max(at, 0)) >> (8 * (5 - b)))
				}
				cell := m.Of(id)
				if want := m.at(max(at, 0)).Cells; cell < 0 || cell >= len(m.cells) || !strings.Contains(fmt.Sprint(want), fmt.Sprint(cell)) {
					t.Fatalf("period %d: an id leads to cell %d, not one of %v", i, cell, want)
				}
			}
		}
		second, err := Parse([]byte(again.String()))
		if err != nil || second.Fingerprint() != m.Fingerprint() {
			t.Fatalf("what was read and written again is not the same: %v", err)
		}
	})
}
