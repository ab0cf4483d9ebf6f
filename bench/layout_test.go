package bench

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/bench/ceiling"
	"millrace/internal/testenv"
)

// BenchmarkSweepLayout compares indexes that the open partition could have, with the ledger beside it: by how fast two streams
// store a backlog, and by the reads that people do of what is new. What millrace_add_partition makes was chosen by it.
// All tables of a round hold the same rows; "none" is the ceiling. Of a hundred records, two come up to an hour late, and one in a
// thousand up to five days.
func BenchmarkSweepLayout(b *testing.B) {
	const (
		arrival = "CREATE INDEX ON %[1]s USING brin (inserted_at) WITH (pages_per_range = 128);"
		byTime  = "CREATE INDEX ON %[1]s (time);"
		late    = "CREATE INDEX ON %[1]s (time) WHERE time > inserted_at OR time - inserted_at < '-10 s'::interval;"
	)
	layouts := []struct{ name, indexes string }{
		{"none", ""},
		{"arrival=btree", "CREATE INDEX ON %[1]s (inserted_at)"}, // before there were times
		{"arrival=brin", arrival},
		{"arrival=brin,time=btree", arrival + byTime},
		{"arrival=brin,time+id=btree", arrival + "CREATE INDEX ON %[1]s (time, id);"},
		{"arrival=brin,time=brin", arrival + "CREATE INDEX ON %[1]s USING brin (time timestamptz_minmax_multi_ops) WITH (pages_per_range = 128);"},
		{"arrival=btree,late=btree", "CREATE INDEX ON %[1]s (inserted_at);" + late},
		{"arrival=brin,late=btree", arrival + late}, // millrace_add_partition's
	}
	for _, layout := range layouts {
		b.Run(layout.name, func(b *testing.B) {
			ctx := context.Background()
			db := testenv.Schema(b)
			admin := testenv.Connect(b, db)
			q := newQueues(b)
			w := startWorker(b, db, q)
			testenv.Eventually(b, time.Minute, "there are partitions", func() bool {
				return testenv.Count(b, admin, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'logs'::regclass") > 2
			})
			w.stop(b)
			setIndexes(b, admin, layout.indexes)
			t := ceiling.NewTurns("rows/s")
			for b.Loop() {
				truncate(b, admin)
				rows := q.fill(b, roundRows, timedBodies(roundRows/frameRecords, frameRecords), frameRecords)
				w = startWorker(b, db, q)
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

// timedBodies returns bodies whose records tell when they happened: mostly within three seconds before now, some earlier.
func timedBodies(count, n int) [][]byte {
	rng := rand.New(rand.NewPCG(3, 4))
	all := bodies(count, n)
	now := time.Now().Add(-2 * time.Second)
	for i, body := range all {
		var timed []byte
		for line := range bytes.Lines(body) {
			late := rng.ExpFloat64() * float64(time.Second) / 2
			switch p := rng.IntN(1000); {
			case p == 0:
				late = rng.Float64() * 5 * 24 * float64(time.Hour)
			case p < 20:
				late = rng.Float64() * float64(time.Hour)
			}
			at := now.Add(time.Duration(float64(i)/float64(count)*2e9 - late)).UTC().Format("2006-01-02T15:04:05.000000Z")
			from := bytes.Index(line, []byte(`":"20`)) + 3
			timed = append(append(append(timed, line[:from]...), at...), line[from+len(at):]...)
		}
		all[i] = timed
	}
	return all
}

// setIndexes gives the partitions of logs these indexes and no others.
func setIndexes(b *testing.B, admin *pgx.Conn, indexes string) {
	b.Helper()
	ctx := context.Background()
	rows, err := admin.Query(ctx, "SELECT inhrelid::regclass::text, array(SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = inhrelid) FROM pg_inherits WHERE inhparent = 'logs'::regclass")
	if err != nil {
		b.Fatal(err)
	}
	var statements []string
	var partition string
	var existing []string
	if _, err := pgx.ForEachRow(rows, []any{&partition, &existing}, func() error {
		for _, index := range existing {
			statements = append(statements, "DROP INDEX "+index)
		}
		if indexes != "" {
			statements = append(statements, fmt.Sprintf(indexes, partition))
		}
		return nil
	}); err != nil {
		b.Fatal(err)
	}
	for _, sql := range statements {
		if _, err := admin.Exec(ctx, sql); err != nil {
			b.Fatal(err)
		}
	}
}

// readLatest times the query service's own statements on what is new, each as the median of some tries.
func readLatest(b *testing.B, conn *pgx.Conn) map[string]float64 {
	b.Helper()
	ctx := context.Background()
	var id [16]byte
	var at, happened time.Time
	if err := conn.QueryRow(ctx, "SELECT id, inserted_at, time FROM logs OFFSET 150000 LIMIT 1").Scan(&id, &at, &happened); err != nil {
		b.Fatal(err)
	}
	times := make(map[string]float64)
	for name, query := range map[string]struct {
		sql  string
		args []any
	}{
		"latest-100":   {"SELECT id, inserted_at, time, data FROM logs WHERE time > now() - interval '1 day' ORDER BY time DESC, id DESC LIMIT 100", nil},
		"latest-1s":    {"SELECT id, inserted_at, time, data FROM logs WHERE time > $1::timestamptz AND time < $1::timestamptz + interval '1 second' ORDER BY time DESC, id DESC LIMIT 100", []any{happened}},
		"count-1s":     {"SELECT count(*) FROM logs WHERE time >= $1::timestamptz AND time < $1::timestamptz + interval '1 second'", []any{happened}},
		"came-last-1s": {"SELECT count(*) FROM (SELECT id, data FROM logs WHERE inserted_at > (SELECT max(inserted_at) - interval '100 ms' FROM logs WHERE inserted_at > $1::timestamptz)) AS r", []any{at}},
		"by-id":        {"SELECT data FROM logs WHERE inserted_at = $1 AND id = $2", []any{at, id}},
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
