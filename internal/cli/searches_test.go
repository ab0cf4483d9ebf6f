package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"millrace/internal/testenv"
)

// TestSearchesAreRehearsedAgainstThePast has records of ten minutes yesterday, and asks when a search would have rung.
func TestSearchesAreRehearsedAgainstThePast(t *testing.T) {
	url := testenv.Schema(t)
	db := testenv.Connect(t, url)
	day := time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, -1)
	testenv.Exec(t, db, "SELECT millrace_add_partition('logs', $1, $2, $3)", "logs_"+day.Format("20060102"), day.Format(time.RFC3339), day.AddDate(0, 0, 1).Format(time.RFC3339))
	noon := day.Add(12 * time.Hour)
	for minute := range 10 {
		id := uuid.Must(uuid.NewV7())
		testenv.Exec(t, db, "INSERT INTO logs (id, inserted_at, data) VALUES ($1, $2, $3::text::jsonb)", [16]byte(id), noon.Add(time.Duration(minute)*time.Minute), `{"level": "error", "service": "shop"}`)
	}
	dir, addr := t.TempDir(), testenv.FreeAddress(t)
	testenv.StartMillrace(t, dir, []string{"POSTGRES_URL=" + string(url), "QUERY_ADDR=" + addr}, "query")
	testenv.AwaitReady(t, addr)
	file := filepath.Join(dir, "searches.yaml")
	text := `searches:
  - {name: errors, q: "level:error", when: count >= 3 in 3m, by: service, for: 2m}
  - {name: never, q: "level:fatal", when: count > 0 in 3m}
  - {name: missing, q: "level:fatal", when: absent in 1h}
  - {name: counted}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(code int, args ...string) string {
		t.Helper()
		p := testenv.StartMillrace(t, dir, []string{"QUERY_URL=http://" + addr, "TZ=UTC"}, append([]string{"searches"}, args...)...)
		<-p.Done
		if got := p.ProcessState.ExitCode(); got != code {
			t.Fatalf("%v: exit status %d, want %d: %s", args, got, code, p.Out)
		}
		return p.Out.String()
	}
	from, to := noon.Add(-10*time.Minute).Format(time.RFC3339), noon.Add(30*time.Minute).Format(time.RFC3339)
	got := run(0, "test", file, "errors", "--from", from, "--to", to)
	// The records of three minutes are there from 12:02 on, so the alert fires two minutes later; from 12:10 on they are fewer.
	want := fmt.Sprintf(`^%s 12:0[45]:\d\d  errors  fired     service=shop  count=3\n%[1]s 12:1[01]:\d\d  errors  resolved  service=shop  count=3\nmillrace: errors: would have rung 1 times in 4[01] evaluations`, noon.Format(time.DateOnly))
	if !regexp.MustCompile(want).MatchString(got) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := run(0, "test", "-o", "json", "--from", from, "--to", to, file); !strings.Contains(got, `"search":"errors","what":"fired","group":{"service":"shop"},"count":3`) || !strings.Contains(got, "never: would have rung 0 times") {
		t.Errorf("as JSON: %s", got)
	}
	run(1, "test", file, "never", "--from", from, "--to", to)
	run(2, "test", file, "counted")
	run(2, "test", file, "--from", to, "--to", from)
	run(2, "test")
	run(2, "look", file)
	if got := run(0, "check", "--now", file); !strings.Contains(got, "errors: count >= 3 in 3m: holds for 0 groups") || !strings.Contains(got, "missing: absent in 1h: holds for 1 groups") {
		t.Errorf("check --now: %s", got)
	}
}
