package query

import (
	"context"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/rfc3339"
	"millrace/internal/testenv"
	"millrace/query/language"
)

// explain returns PostgreSQL's plan for a statement.
func explain(t testing.TB, db *pgx.Conn, st *statement) string {
	t.Helper()
	args := append([]any{pgx.QueryExecModeDescribeExec}, st.args...)
	rows, err := db.Query(context.Background(), "EXPLAIN "+st.sql.String(), args...)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

// TestATextIsLookedForInTheJSONFirst reads the order of the two looks from the plan: the exact one costs twice as much.
func TestATextIsLookedForInTheJSONFirst(t *testing.T) {
	db := testenv.Connect(t, testenv.Database(t))
	for _, sql := range []string{
		"CREATE TABLE logs (id uuid, inserted_at timestamptz, data jsonb, time timestamptz)",
		`INSERT INTO logs SELECT gen_random_uuid(), now() + n * interval '1 ms', jsonb_build_object('level', 'info', 'trace_id', n, 'message', 'request ' || n) FROM generate_series(1, 5000) n`,
		"CREATE INDEX ON logs USING gin (data jsonb_path_ops)",
		"CREATE INDEX ON logs (inserted_at)",
		"ANALYZE logs",
	} {
		if _, err := db.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	const look = "CASE (data)::text ~ @@ 'strict "
	for _, tt := range []struct {
		q       string
		looks   int
		indexed bool
	}{
		{"upstream", 1, false}, {"555", 1, false}, {"NOT upstream", 1, false}, {"upstream OR level:error", 1, false}, {"upstream pool", 2, false},
		{"trace_id:77 request", 1, true}, {"trace_id:77 request -555", 2, true},
	} {
		filter, err := language.Parse(tt.q)
		if err != nil {
			t.Fatal(err)
		}
		window := &search{to: rfc3339.Latest, clock: byArrival, filter: filter, limit: 100}
		for name, plan := range map[string]string{"count": explain(t, db, countStatement(window, nil)), "page": explain(t, db, pageStatement(window, nil, 11, pageBytes))} {
			order := regexp.MustCompile(`CASE WHEN|\(data\)::text ~|@@ 'strict exists`)
			got := strings.Join(order.FindAllString(plan, -1), " ")
			got = strings.NewReplacer("CASE WHEN", "CASE", "@@ 'strict exists", "@@ 'strict").Replace(got)
			if want := strings.TrimSpace(strings.Repeat(look, tt.looks)); got != want {
				t.Errorf("%s of %s: the plan looks in the order %q, want %q\n%s", name, tt.q, got, want, plan)
			}
			if indexed := strings.Contains(plan, "Bitmap Index Scan"); indexed != tt.indexed {
				t.Errorf("%s of %s: the index is used: %t, want %t\n%s", name, tt.q, indexed, tt.indexed, plan)
			}
		}
	}
}

// TestARowWithoutATimeOfItsOwnIsFoundOnce looks at windows with and without the beginning of 1970, which stands for the row's inserted_at.
func TestARowWithoutATimeOfItsOwnIsFoundOnce(t *testing.T) {
	f := newFixture(t, nil)
	at := time.Now().Add(-time.Minute).Truncate(time.Millisecond)
	partition(t, f.db, at)
	id := insert(t, f.db, at, 1, `{"n": 1}`)[0]
	for _, from := range []string{"1960-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "0", "1970-01-01T00:00:00.001Z", "now-1h"} {
		for _, order := range []string{"asc", "desc"} {
			var page struct {
				Logs []struct {
					ID   string
					Time time.Time
				}
			}
			f.ok(with("/logs", "from", from, "order", order), &page)
			if len(page.Logs) != 1 || page.Logs[0].ID != id || !page.Logs[0].Time.Equal(at) {
				t.Errorf("from %s, %s: got %+v, want %s at %s", from, order, page.Logs, id, at)
			}
		}
		var answer struct{ Count int }
		if f.ok(with("/logs/count", "from", from), &answer); answer.Count != 1 {
			t.Errorf("from %s: got a count of %d, want 1", from, answer.Count)
		}
	}
	var answer struct{ Count int }
	if f.ok(with("/logs/count", "from", "1960-01-01T00:00:00Z", "to", "1980-01-01T00:00:00Z"), &answer); answer.Count != 0 {
		t.Errorf("got a count of %d around 1970, want 0", answer.Count)
	}
}
