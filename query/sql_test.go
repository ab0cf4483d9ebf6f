package query

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// TestTheSQLOfASearchFindsItsRows runs what is there to paste, and compares the rows with those of the search.
func TestTheSQLOfASearchFindsItsRows(t *testing.T) {
	f := newFixture(t, nil)
	at := time.Now().Add(-time.Minute)
	partition(t, f.db, at)
	insert(t, f.db, at, 0,
		`{"a": "it's \\ $1 'quoted'", "n": 1}`, `{"a": "tab\there\nline", "n": 2.5}`, `{"a": "\u202e\u0001é 😀", "n": "3"}`, `{"a": ["x", "$2"], "b.c": 1}`,
		`{"ip": "10.1.2.3", "at": "2026-03-04T12:00:00Z", "b": {"c": "-5"}}`, `{"a": ":name", "n": -5}`, `{"a": "%_", "level": "ERROR"}`)
	ids := func(sql string) []string {
		t.Helper()
		// In psql a statement has no arguments, as in the simple protocol.
		rows, err := f.db.Query(t.Context(), strings.TrimSuffix(sql, ";\n"), pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			t.Fatal(err)
		}
		ids, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (id string, err error) {
			values, err := r.Values()
			if err == nil {
				b := values[0].([16]byte)
				id = uuid.UUID(b).String()
			}
			return id, err
		})
		if err != nil {
			t.Fatalf("%v in %s", err, sql)
		}
		return ids
	}
	found := 0
	for _, q := range []string{
		"", `it's`, `"$1"`, `a:"it's \\ $1 'quoted'"`, `"\\"`, "\"tab\there\"", "a:\"tab\there\nline\"", "a:\u202e*", `"😀"`, `a:"$2"`, "b.c:1", "b.c<0", "n>=1", "n:[1 TO 3]", "n<-1", "-n:*", "n:-5",
		"ip:10.0.0.0/8", "at:>=2026-03-04", "time:>now-1h", "a::name", "a:%_", `a:*\%*`, "level:i(error)", "a~QUOTED", "a:/it's .*'$/", "a OR b", `"'; DROP TABLE logs; --"`, "level:ERROR AND NOT n:*",
	} {
		for _, way := range [][]string{{}, {"order", "asc", "limit", "2"}, {"clock", "inserted_at"}, {"from", "2026-01-01", "to", "now+1d"}} {
			var page logsPage
			f.ok(with("/logs", append(way, "q", q)...), &page)
			r := f.get(with("/logs/sql", append(way, "q", q)...))
			if r.status != 200 || !strings.HasSuffix(r.body, ";\n") || strings.ContainsFunc(strings.TrimSuffix(r.body, "\n"), func(r rune) bool { return r < ' ' || r == '\u202e' }) {
				t.Fatalf("q=%s: got %d %q", q, r.status, r.body)
			}
			found += len(page.Logs)
			if diff := cmp.Diff(page.ids(), append([]string{}, ids(r.body)...)); diff != "" {
				t.Errorf("q=%s %s (-search +SQL):\n%s%s", q, way, diff, r.body)
			}
		}
	}
	if found < 100 {
		t.Errorf("%d rows were found at all", found)
	}
	for year, want := range map[int]string{2026: "2026-01-02 00:00:00+00", 0: "0001-01-02 00:00:00+00 BC"} {
		if got := timestampSQL(time.Date(year, 1, 2, 0, 0, 0, 0, time.UTC)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
