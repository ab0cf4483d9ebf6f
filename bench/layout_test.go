package bench

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/bench/ceiling"
	"millrace/internal/testenv"
)

// BenchmarkSweepLayout compares indexes that the open partition could have, with the ledger beside it: by how fast two streams
// store a backlog, and by the reads that people do of what is new. The index of migrations/0001_logs.up.sql was chosen by it.
// All tables of a round hold the same rows; "none" is the ceiling.
func BenchmarkSweepLayout(b *testing.B) {
	layouts := []struct{ name, index string }{
		{"none", ""},
		{"brin", "CREATE INDEX ON logs USING brin (inserted_at) WITH (pages_per_range = 32)"},
		{"btree", "CREATE INDEX ON logs (inserted_at)"},
		{"primary-key", "ALTER TABLE logs ADD PRIMARY KEY (inserted_at, id)"},
	}
	all := bodies(32, frameRecords)
	for _, layout := range layouts {
		b.Run(layout.name, func(b *testing.B) {
			ctx := context.Background()
			db := testenv.Schema(b)
			admin := testenv.Connect(b, db)
			if _, err := admin.Exec(ctx, "DROP INDEX logs_inserted_at_idx; "+layout.index); err != nil {
				b.Fatal(err)
			}
			q := newQueues(b)
			startWorker(b, db, q).stop(b) // makes the partitions
			t := ceiling.NewTurns("rows/s")
			for b.Loop() {
				truncate(b, admin)
				rows := q.fill(b, roundRows, all, frameRecords)
				w := startWorker(b, db, q)
				t.Also("rows/s", w.drain(b, rows))
				w.stop(b)
				if _, err := admin.Exec(ctx, "VACUUM ANALYZE logs"); err != nil {
					b.Fatal(err)
				}
				for name, ms := range readLatest(b, admin) {
					t.Also(name+"-ms", ms)
				}
			}
			t.Report(b)
			var bytes int64
			if err := admin.QueryRow(ctx, "SELECT coalesce(sum(pg_indexes_size(inhrelid)), 0)::bigint FROM pg_inherits WHERE inhparent = 'logs'::regclass").Scan(&bytes); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(bytes)/roundRows, "index-B/row")
		})
	}
}

// readLatest times the query service's own statements on what is new, each as the median of some tries.
func readLatest(b *testing.B, conn *pgx.Conn) map[string]float64 {
	b.Helper()
	ctx := context.Background()
	var id [16]byte
	var at time.Time
	if err := conn.QueryRow(ctx, "SELECT id, inserted_at FROM logs OFFSET 150000 LIMIT 1").Scan(&id, &at); err != nil {
		b.Fatal(err)
	}
	times := make(map[string]float64)
	for name, query := range map[string]struct {
		sql  string
		args []any
	}{
		"latest-100": {"SELECT id, inserted_at, data FROM logs WHERE inserted_at > now() - interval '1 day' ORDER BY inserted_at DESC, id DESC LIMIT 100", nil},
		"count-1s":   {"SELECT count(*) FROM logs WHERE inserted_at >= $1::timestamptz AND inserted_at < $1::timestamptz + interval '1 second'", []any{at}},
		"by-id":      {"SELECT data FROM logs WHERE inserted_at = $1 AND id = $2", []any{at, id}},
	} {
		var tries []float64
		for range 7 {
			start := time.Now()
			rows, err := conn.Query(ctx, query.sql, query.args...)
			if err != nil {
				b.Fatal(err)
			}
			n := 0
			for rows.Next() {
				n++
			}
			if rows.Err() != nil || n == 0 {
				b.Fatal(fmt.Sprintf("%s: %d rows", name, n), rows.Err())
			}
			tries = append(tries, ms(time.Since(start)))
		}
		slices.Sort(tries)
		times[name] = tries[len(tries)/2]
	}
	return times
}
