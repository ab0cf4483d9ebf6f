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
			service := startServer(b, "query", "", "QUERY_ADDR=127.0.0.1:0", "REDIS_URL=", "POSTGRES_URL="+string(db))
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
				t.Also("page-100-ms", median(7, func() { get(b, "http://"+service.addr+"/logs?from=now-1d") })) // as the query service finds them
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
		times[name] = median(7, func() {
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
		})
	}
	return times
}

// median returns how many milliseconds f takes, as the median of some tries.
func median(tries int, f func()) float64 {
	all := make([]float64, tries)
	for i := range all {
		all[i] = took(f)
	}
	slices.Sort(all)
	return all[tries/2]
}

// BenchmarkSweepPartitions asks for rows of 30 days, which lie in partitions of a day or of an hour: 600,000 rows, closed partitions with
// their GIN index. The first question of a service has to read the catalog. locks is how many locks one question holds in PostgreSQL,
// whose table has room for 64 a connection by default.
func BenchmarkSweepPartitions(b *testing.B) {
	const rows, days = 600_000, 30
	for _, interval := range []time.Duration{24 * time.Hour, time.Hour} {
		b.Run("length="+interval.String(), func(b *testing.B) {
			db := testenv.Schema(b)
			admin := testenv.Connect(b, db)
			exec := func(sql string, args ...any) {
				b.Helper()
				if _, err := admin.Exec(context.Background(), sql, args...); err != nil {
					b.Fatal(err)
				}
			}
			now := time.Now().UTC()
			first := now.Truncate(24*time.Hour).AddDate(0, 0, 1-days)
			for from := first; from.Before(now.Add(time.Hour)); from = from.Add(interval) {
				name := "logs_" + from.Format("20060102")
				if interval < 24*time.Hour {
					name += from.Format("_1504")
				}
				exec("SELECT millrace_add_partition('logs', $1, $2, $3)", name, from.Format(time.RFC3339), from.Add(interval).Format(time.RFC3339))
				if from.Add(interval).Before(now) {
					exec("CREATE INDEX ON " + name + " USING gin (data jsonb_path_ops)")
				}
			}
			exec(`INSERT INTO logs (id, inserted_at, time, data) SELECT
				(lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(md5(n::text), 1, 3) || '8' || substr(md5(n::text), 4, 15))::uuid,
				at, at - n % 2000 * interval '1 ms', jsonb_build_object('level', (ARRAY['info','info','info','warn','error'])[1 + n % 5], 'trace_id', md5(n::text),
				'message', 'request served from the upstream pool after one retry with a warm cache')
				FROM (SELECT n, date_trunc('milliseconds', $1::timestamptz + n * ($2::timestamptz - $1) / $3) AS at FROM generate_series(0, $3::bigint - 1) AS n) AS rows`,
				first, now, rows)
			exec("VACUUM ANALYZE logs")
			var id string
			if err := admin.QueryRow(context.Background(), "SELECT id::text FROM logs WHERE inserted_at > $1 LIMIT 1", now.Add(-12*time.Hour)).Scan(&id); err != nil {
				b.Fatal(err)
			}
			t := ceiling.NewTurns("ms")
			for b.Loop() {
				service := startServer(b, "query", "", "QUERY_ADDR=127.0.0.1:0", "REDIS_URL=", "POSTGRES_URL="+string(db))
				ask := func(path string) func() {
					return func() { get(b, "http://"+service.addr+path) }
				}
				for _, question := range []struct{ name, path string }{
					{"latest", "/logs?from=now-30d"},
					{"id", "/logs/" + id},
					{"hour", "/logs/count?q=level:error&from=now-1h"},
					{"day", "/logs/count?q=level:error&from=now-1d"},
					{"month", "/logs/count?q=level:error&from=now-30d"},
					{"trace-month", "/logs?q=trace_id:d3d9446802a44259755d38e6d163e820&from=now-30d"},
					{"histogram-month", "/logs/histogram?from=now-30d"},
				} {
					t.Also(question.name+"-first-ms", took(ask(question.path)))
					t.Also(question.name+"-ms", median(5, ask(question.path)))
				}
				service.stop(b)
			}
			t.Report(b)
			var locks float64
			tx, err := admin.Begin(context.Background())
			if err != nil {
				b.Fatal(err)
			}
			defer tx.Rollback(context.Background()) // only read
			if _, err := tx.Exec(context.Background(), "SELECT count(*) FROM logs"); err != nil {
				b.Fatal(err)
			}
			if err := tx.QueryRow(context.Background(), "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid()").Scan(&locks); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(locks, "locks")
		})
	}
}
