package chaos

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace/internal/archive"
	"millrace/internal/archive/archivetest"
	"millrace/internal/config"
	"millrace/internal/frame"
	"millrace/internal/testenv"
)

// TestArchiveEditsAreWhereTheyGo finds the text that each of them replaces, also where nothing can be built or run.
func TestArchiveEditsAreWhereTheyGo(t *testing.T) {
	for _, e := range ArchiveEdits {
		text, err := os.ReadFile(filepath.Join(top, e.File))
		if err != nil {
			t.Error(err)
		} else if n := strings.Count(string(text), e.Old); n != 1 {
			t.Errorf("%s has %d times the text to be replaced, want once: %q", e.File, n, e.Old)
		}
	}
}

// TestRowsOfTableAndFilesCountOnce has the same rows in the table, in files and in both, and then differences that must be told.
func TestRowsOfTableAndFilesCountOnce(t *testing.T) {
	url := testenv.Schema(t)
	db := testenv.Connect(t, url)
	s := &system{db: config.PostgresURL(url), archive: t.TempDir()}
	hour := time.Now().UTC().Truncate(time.Hour).Add(-48 * time.Hour)
	testenv.Exec(t, db, "SELECT millrace_add_partition('logs', $1, $2, $3)", "logs_"+hour.Format("20060102_1504"), hour.Format(time.RFC3339), hour.Add(time.Hour).Format(time.RFC3339))
	insert := func(minute int, text string) {
		t.Helper()
		id := keyAt(hour.Add(time.Duration(minute) * time.Minute))
		testenv.Exec(t, db, "INSERT INTO logs (id, inserted_at, time, data) VALUES ($1, $2, $2, $3::text::jsonb)", [16]byte(id), frame.Time(id), text)
	}
	rows := func() (texts map[string]int, differences []string) {
		t.Helper()
		texts = make(map[string]int)
		_, err := s.rows(t.Context(), func(format string, args ...any) { differences = append(differences, fmt.Sprintf(format, args...)) },
			func(row storedRow) { texts[row.text]++ })
		if err != nil {
			t.Fatal(err)
		}
		return texts, differences
	}
	want := make(map[string]int)
	holds := func(what string) {
		t.Helper()
		got, differences := rows()
		if diff := cmp.Diff(want, got); diff != "" || differences != nil {
			t.Errorf("%s: (-want +got):\n%s%v", what, diff, differences)
		}
	}
	add := func(minute int, text string) {
		t.Helper()
		insert(minute, text)
		want[text]++
	}
	add(1, `{"n": 1}`)
	add(2, `{"n": 2}`)
	add(30, `{"n": 30}`)
	holds("the table alone")
	archivetest.Publish(t, db, archive.Folder(s.archive), hour, hour.Add(10*time.Minute), false)
	holds("published")
	add(3, `{"n": 3}`)
	if _, differences := rows(); len(differences) != 1 || !strings.Contains(differences[0], "logs alone") {
		t.Errorf("a row that nobody noted: got %q", differences)
	}
	testenv.Exec(t, db, "INSERT INTO late_changes (hour) VALUES ($1)", hour)
	holds("a late row")
	testenv.Exec(t, db, "UPDATE archive_ranges SET files_only = true")
	holds("a late row of a range that is about to leave the table")
	testenv.Exec(t, db, `DELETE FROM logs WHERE data->>'n' IN ('1', '2')`)
	holds("the late row alone is in the table")
	archivetest.Publish(t, db, archive.Folder(s.archive), hour.Add(30*time.Minute), hour.Add(40*time.Minute), false)
	testenv.Exec(t, db, `DELETE FROM logs WHERE data->>'n' = '30'`)
	if _, differences := rows(); len(differences) != 1 || !strings.Contains(differences[0], "which should have all") {
		t.Errorf("a row that has left the table too early: got %q", differences)
	}
	testenv.Exec(t, db, "UPDATE archive_ranges SET files_only = true")
	holds("two ranges in files alone")

	var name string
	if err := db.QueryRow(t.Context(), "SELECT name FROM archive_files ORDER BY name LIMIT 1").Scan(&name); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(s.archive, filepath.FromSlash(name))
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content[:len(content)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, differences := rows(); len(differences) != 1 || !strings.Contains(differences[0], name) {
		t.Errorf("a file cut short: got %q", differences)
	}
}

func TestAWindowHasTheRowsOfItsClockAndClient(t *testing.T) {
	from := time.Date(2026, 11, 29, 9, 0, 0, 0, time.UTC)
	inside, outside := from.Add(time.Second), from.Add(time.Minute)
	for _, c := range []struct {
		w        window
		client   int
		came, at time.Time
		has      bool
	}{
		{window{from, outside, "inserted_at", everybody}, 3, inside, outside, true},
		{window{from, outside, "inserted_at", everybody}, 3, outside, inside, false},
		{window{from, outside, "time", everybody}, 3, outside, inside, true},
		{window{from, outside, "time", 3}, 3, outside, from, true},
		{window{from, outside, "time", 2}, 3, outside, inside, false},
	} {
		if got := c.w.has(c.client, c.came, c.at); got != c.has {
			t.Errorf("%s: client %d, came %s, time %s: got %v", c.w, c.client, c.came, c.at, got)
		}
	}
}
