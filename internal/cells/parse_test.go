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
		"cells a":     "line 1: takes cell, since or keep as its first word",
		"cell":        "line 1: cell: the name is missing",
		"\ncell A":    `line 2: name: takes a name of at most 32 lower-case letters, digits and hyphens that begins with a letter`,
		"cell 1":      `line 1: name: takes`,
		"cell a.b":    `line 1: name: takes`,
		"cell " + many[:0] + strings.Repeat("a", 33): "line 1: name: takes ",
		"cell postgres://u:hidden@h/d":               "line 1: name: takes",
		"cell Hidden host=h":                         "line 1: name: takes",
		"Hidden":                                     "line 1: takes cell, since or keep as its first word",
		"\ufeffcell a\nsince beginning a":            "line 1: begins with a byte order mark (EF BB BF), takes UTF-8 without one",
		"\xff\xfec\x00e\x00":                         "line 1: begins with the byte order mark of UTF-16, takes UTF-8 without one",
		"cell a\nkeep 30d\nkeep 30d":                 "line 3: keep: stands there twice",
		"keep":                                       "line 1: keep: takes one duration such as 30d, at least 24h1m",
		"keep 30d 1h":                                "line 1: keep: takes one duration",
		"keep hidden":                                "line 1: keep: takes one duration",
		"keep 24h":                                   "line 1: keep: takes one duration such as 30d, at least 24h1m",
		"keep 9999999w":                              "line 1: keep: takes one duration",
		"cell a\ncell b\ncell a":                     "line 3: name: a cell a stands in line 1 already",
		many:                                         fmt.Sprintf("line %d: takes at most %d cells", maxCells+1, maxCells),
		"cell a mysql://u:hidden@h/d":                "line 1: URL of a: begins with none of postgres://, postgresql://",
		"cell a postgres://u:hid/den@h/d":            `line 1: URL of a: the user or password holds "/", which must be written %2F`,
		"cell a postgres://u:hidden@h/d?sslmod=x":    "line 1: URL of a: parameter 1 is unknown; sslmode is the nearest there is",
		"cell a postgres://h/d\ncell b\nsince beginning a b":                                                         "line 2: URL: b has none, and a has one",
		"cell a\ncell b postgres://h/d\nsince beginning a b":                                                         "line 1: URL: a has none, and b has one",
		"cell a postgres://u:hidden@H/d\ncell b postgresql://v:hidden@h:5432/d?sslmode=disable\nsince beginning a b": "line 2: URL of b: leads to the database of a in line 1",
		"cell a postgres://h,i/d\ncell b host=i dbname=d\nsince beginning a b":                                       "line 2: URL of b: leads to the database of a in line 1",
		ab + "since":                                                "line 3: since: the time is missing",
		ab + "since 2026-03-04T12:00:00Z a":                         `line 3: since: got 2026-03-04T12:00:00Z, the first takes the word beginning`,
		ab + "since yesterday a":                                    `line 3: since: takes beginning or a time as RFC 3339 has it, such as 2026-03-04T12:00:00Z`,
		ab + "since hidden a":                                       `line 3: since: takes beginning`,
		ab + "since beginning a hidden":                             `line 3: cells: name 2 of 2 is that of no cell`,
		ab + "since beginning":                                      "line 3: cells: takes the name of at least one cell",
		ab + "since beginning a, b":                                 `line 3: cells: name 1 of 2 is that of no cell: there is no line for it, or it holds a comma`,
		ab + "since beginning a b a":                                "line 3: cells: a stands there twice",
		ab + "since beginning a\nsince beginning b":                 "line 4: since: only the first takes the word beginning",
		ab + "since beginning a\nsince 2026-03-04T12:00:00.0005Z b": `line 4: since: takes at most three digits of a second`,
		ab + "since beginning a\nsince 1969-03-04T12:00:00Z b":      `line 4: since: takes a time after the beginning of 1970`,
		ab + "since beginning a\nsince 2026-03-04T12:00:00Z b\nsince 2026-03-04T13:00:00+01:00 a": `line 5: since: got 2026-03-04T12:00:00Z, takes a time later than the one before`,
		"cell a" + strings.Repeat("\n", maxFileBytes):                                             "the file has more than 1048576 bytes",
	} {
		_, err := Parse([]byte(text))
		var m Mistake
		switch {
		case err == nil || !strings.HasPrefix(err.Error(), want):
			t.Errorf("%.200q: got %v, want %s", text, err, want)
		case !errors.As(err, &m):
			t.Errorf("%.200q: got an error of type %T", text, err)
		case len(err.Error()) > 300:
			t.Errorf("%.200q: the error has %d bytes", text, len(err.Error()))
		case strings.Contains(strings.ToLower(err.Error()), "hid"):
			t.Errorf("%.200q: the error shows the password: %v", text, err)
		}
	}
}

// TestNoWordOfAFileIsRepeated has a word in every place where one can stand, which is long and may be a password.
func TestNoWordOfAFileIsRepeated(t *testing.T) {
	word := strings.Repeat("hunter2", 20_000)
	for _, text := range []string{
		word, "cell " + word, "cell a " + word, "cell a postgres://" + word, "cell a postgres://h/" + word + "?" + word, "cell a host=h " + word,
		"cell a\nsince " + word + " a", "cell a\nsince beginning " + word, "cell a\nsince beginning a\nsince 2026-03-04T12:00:00." + strings.Repeat("7", 200_000) + "Z a",
		"keep " + word, "keep 30d " + word,
	} {
		_, err := Parse([]byte(text))
		if err == nil || strings.Contains(err.Error(), "unter") || len(err.Error()) > 300 {
			t.Errorf("%.40q: got %.400v", text, err)
		}
	}
}

// TestOneDatabaseIsKnownInAllItsForms has pairs of URLs that lead to the same tables, and pairs that don't.
func TestOneDatabaseIsKnownInAllItsForms(t *testing.T) {
	for _, name := range []string{"PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGOPTIONS", "PGSERVICE"} {
		t.Setenv(name, "")
	}
	parse := func(a, b string) error {
		_, err := Parse([]byte("cell a " + a + "\ncell b " + b + "\nsince beginning a b"))
		return err
	}
	for _, same := range [][2]string{
		{"postgres://h/d", "postgres://H:5432/d?sslmode=disable"},
		{"postgres://h/d", "postgresql://u:p@h./d"},
		{"postgres://h/d", "host=h dbname=d"},
		{"postgres://h/d", "host='H.' port=5432 dbname='d' user=u password='a b'"},
		{"postgres://h/d", "postgres:///d?host=h"},
		{"postgres://h/d", "postgres:///?host=h&port=5432&dbname=d"},
		{"postgres://u@h", "postgres://v@h/u"},
		{"postgres://u@h/", "host=h user=u"},
		{"postgres://h,i/d", "postgres://j,i:5432/d"},
		{"postgres://[::1]/d", "postgres://[0:0:0:0:0:0:0:1]/d"},
		{"postgres://10.0.0.1/d", "postgres://[::ffff:10.0.0.1]/d"},
		{"host=/run/pg dbname=d", "postgres:///d?host=/run/pg/"},
		{"postgres://h/d?search_path=a", "postgres://h/d?options=-c%20search_path%3DA"},
		{"postgres://h/d?search_path=a,public", "host=h dbname=d options='--search-path=a'"},
		{"postgres://h/d?search_path=%22$user%22,public", "postgres://h/d"},
		{"postgres://h/d?options=-c%20statement_timeout%3D5s", "postgres://h/d"},
	} {
		if err := parse(same[0], same[1]); err == nil || !strings.Contains(err.Error(), "leads to the database of a") {
			t.Errorf("%s and %s: got %v, want one database", same[0], same[1], err)
		}
	}
	for _, other := range [][2]string{
		{"postgres://h/d", "postgres://h/e"},
		{"postgres://h/d", "postgres://h/D"}, // names of databases have their case
		{"postgres://h/d", "postgres://h:5433/d"},
		{"postgres://h/d", "postgres://h.example.com/d"},
		{"host=/run/pg dbname=d", "host=/run/PG dbname=d"},
		{"postgres://u@h", "postgres://v@h"},
		{"postgres://h/d?search_path=a", "postgres://h/d?search_path=b"},
		{"postgres://h/d?search_path=%22A%22", "postgres://h/d?search_path=A"},
		{"postgres://h/d?options=-csearch_path%3Da", "postgres://h/d"},
	} {
		if err := parse(other[0], other[1]); err != nil {
			t.Errorf("%s and %s: %v", other[0], other[1], err)
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
	f.Add(`keep 30d
cell a host=h options='-c search_path="A",b'
since beginning a`)
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
		if m.Keep() > 0 {
			fmt.Fprintln(again, "keep", m.Keep())
		}
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
		if err != nil || second.Fingerprint() != m.Fingerprint() || second.Keep() != m.Keep() {
			t.Fatalf("what was read and written again is not the same: %v", err)
		}
	})
}
