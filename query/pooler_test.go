package query

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"millrace/internal/testenv"
)

// Several services share a pool, so that statements of all of them run on each of its servers.
func TestServicesBehindATransactionPoolerAnswer(t *testing.T) {
	direct := testenv.Schema(t)
	db := testenv.Connect(t, direct)
	now := time.Now()
	partition(t, db, now)
	ids := insert(t, db, now, 0, `{"a":1}`, `{"a":2}`)
	through := map[string]string{"POSTGRES_URL": string(testenv.Pooler(t, direct, "transaction"))}
	for range 3 {
		c := start(t, through)
		testenv.Eventually(t, testenv.Patience, "/ready", func() bool { return c.get("/ready").status == 200 })
		for range 3 {
			for _, q := range []string{"", "a:1", "a:>1", `"x"`} {
				var page logsPage
				c.ok(with("/logs", "q", q), &page)
				var n struct{ Count int }
				c.ok(with("/logs/count", "q", q), &n)
				if n.Count != len(page.Logs) {
					t.Errorf("%q: got %d of %d rows", q, len(page.Logs), n.Count)
				}
			}
			if r := c.get("/logs/" + ids[0]); r.status != 200 {
				t.Errorf("one: got %d: %s", r.status, r.body)
			}
			if r := c.get("/logs/export"); r.status != 200 {
				t.Errorf("export: got %d: %s", r.status, r.body)
			}
		}
		time.Sleep(2 * watchEvery) // the watch has looked again, on other servers
		if r := c.get("/ready"); r.status != 200 {
			t.Errorf("/ready: got %d: %s", r.status, r.body)
		}
		tail := c.follow("", "")
		insert(t, db, time.Now(), 0, `{"a":3}`)
		tail.next()
	}
}

func TestAMissingColumnIsAnotherProgramsOnlyInAForeignTable(t *testing.T) {
	for sql, want := range map[string]int{
		"ALTER TABLE late_changes RENAME hour TO day": 500,
		"ALTER TABLE logs RENAME data TO record":      503,
		"DROP TABLE logs":                             503,
	} {
		url := testenv.Schema(t)
		if _, err := testenv.Connect(t, url).Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
		st, err := newStore(Config{Postgres: url, Connections: 1, Timeout: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		s := &server{store: st}
		if f := s.failureOf(&pgconn.PgError{Code: "42703"}); f.status != want {
			t.Errorf("%s: got %d, %s; want %d", sql, f.status, f.message, want)
		}
		st.close()
	}
}
