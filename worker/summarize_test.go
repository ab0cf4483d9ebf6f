package worker

import (
	"context"
	"strings"
	"testing"
	"time"

	"millrace/internal/frame"
	"millrace/internal/testenv"
)

// TestIndexesOverPagesAreKeptUpToDate counts the pages that a search reads which finds nothing: those that are not in the index.
func TestIndexesOverPagesAreKeptUpToDate(t *testing.T) {
	c := testConfig(t, 1)
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	start(t, c)
	const frames, records = 20, 1000
	record := `{"x":"` + strings.Repeat("x", 400) + `"}`
	for range frames {
		p.send(0, frameOf(strings.Repeat(record+"\n", records), frame.Segment{Base: frame.NewBase(), Records: records}))
	}
	want(t, db, frames*records, allLogs)
	pages := func() (read, all int) {
		t.Helper()
		var plan []struct {
			Plan struct {
				Lossy int `json:"Lossy Heap Blocks"`
			}
		}
		tx, err := db.Begin(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(context.Background())
		exec(t, db, "SET LOCAL enable_seqscan = off")
		var name string
		if err := db.QueryRow(context.Background(), "SELECT tableoid::regclass::text, pg_relation_size(tableoid) / 8192 FROM logs LIMIT 1").Scan(&name, &all); err != nil {
			t.Fatal(err)
		}
		if err := db.QueryRow(context.Background(), "EXPLAIN (ANALYZE, FORMAT JSON) SELECT FROM "+name+" WHERE inserted_at < '2020-01-01'").Scan(&plan); err != nil {
			t.Fatal(err)
		}
		return plan[0].Plan.Lossy, all
	}
	testenv.Eventually(t, time.Minute, "few pages are read", func() bool {
		read, all := pages()
		return all > 8*128 && read > 0 && read <= 4*128
	})
}
