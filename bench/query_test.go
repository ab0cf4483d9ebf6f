package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/bench/ceiling"
	"millrace/bench/load"
	"millrace/internal/config"
	"millrace/internal/frame"
	"millrace/internal/testenv"
)

// number reads an environment variable that makes a benchmark larger than it is by default.
func number(b testing.TB, name string, otherwise int) int {
	b.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		b.Fatalf("%s: got %q, takes a whole number", name, text)
	}
	return n
}

// fillLogs stores rows, half of them in yesterday's partition, which gets its index as a closed one, the others in
// the last hour. A fifth is level:error, one in a thousand has the phrase. Most came within two seconds of their time. Of a hundred, two
// came up to an hour late, and of ten thousand one up to five days.
func fillLogs(b testing.TB, db config.PostgresURL, rows int) (day time.Time) {
	b.Helper()
	conn := testenv.Connect(b, db)
	now := time.Now().UTC()
	day = now.Truncate(24 * time.Hour).Add(-24 * time.Hour)
	exec := func(sql string, args ...any) {
		b.Helper()
		if _, err := conn.Exec(context.Background(), sql, args...); err != nil {
			b.Fatal(err)
		}
	}
	var names []string
	for i := range 2 {
		from := day.Add(time.Duration(i) * 24 * time.Hour)
		to := from.Add(time.Duration(1+i) * 24 * time.Hour)
		names = append(names, "logs_"+from.Format("20060102"))
		exec("SELECT millrace_add_partition('logs', $1, $2, $3)", names[i], from.Format(time.RFC3339), to.Format(time.RFC3339))
	}
	const insert = `INSERT INTO logs (id, inserted_at, time, data) SELECT
			(lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(md5(n::text), 1, 3) || '8' || substr(md5(n::text), 4, 15))::uuid,
			at, at - CASE WHEN n % 10000 = 11 THEN n % 432000 WHEN n % 50 = 1 THEN n % 3600 ELSE n % 2000 * 0.001 END * interval '1 s',
			jsonb_build_object('level', (ARRAY['info','info','info','warn','error'])[1 + n % 5], 'service', (ARRAY['checkout','cart','search','auth'])[1 + n % 4],
			'trace_id', md5(n::text), 'http', jsonb_build_object('method', 'GET', 'path', '/api/v1/orders/' || n, 'status', 200 + n % 4 * 100), 'duration_ms', n % 977 * 0.125,
			'message', CASE WHEN n % 1000 = 7 THEN 'Connection reset by peer' ELSE 'request served from the upstream pool after one retry with a warm cache' END)
		FROM (SELECT n, date_trunc('milliseconds', $1::timestamptz + n * ($2::timestamptz - $1) / $3) AS at FROM generate_series(0, $3::bigint - 1) AS n) AS rows`
	exec(insert, day, day.Add(24*time.Hour), rows/2)
	exec(insert, now.Add(-time.Hour), now, rows/2)
	for i, name := range names { // as the worker notes late rows
		from := day.Add(time.Duration(i) * 24 * time.Hour)
		exec("INSERT INTO late_hours SELECT DISTINCT date_trunc('hour', time, 'UTC'), $1::timestamptz, $2::timestamptz FROM "+name+
			" WHERE time > inserted_at OR time - inserted_at < '-10 s'::interval", from, from.Add(time.Duration(1+i)*24*time.Hour))
	}
	exec("CREATE INDEX ON " + names[0] + " USING gin (data jsonb_path_ops)")
	exec("VACUUM ANALYZE logs")
	return day
}

// get reads an answer to its end and returns its length.
func get(b testing.TB, address string) int64 {
	b.Helper()
	resp, err := http.Get(address)
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close() // read to its end
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		b.Fatalf("GET %s: %s, %v", address, resp.Status, err)
	}
	return n
}

// BenchmarkSearch asks as people and dashboards do; MILLRACE_BENCH_ROWS sets how many rows there are. The ceiling is the
// least SQL that brings as many rows by their arrival, by pgx, without a service; of what the cache knows, a request that needs no server.
func BenchmarkSearch(b *testing.B) {
	db := testenv.Schema(b)
	conn := testenv.Connect(b, db)
	day := fillLogs(b, db, number(b, "MILLRACE_BENCH_ROWS", 200_000))
	env := []string{"QUERY_ADDR=127.0.0.1:0", "QUERY_TIMEOUT=10m", "POSTGRES_URL=" + string(db)}
	cached := startServer(b, "query", "", append(env, "REDIS_URL="+string(testenv.Redis(b)))...)
	plain := startServer(b, "query", "", append(env, "REDIS_URL=")...)
	window := func(from, to time.Time) (param, sql string) {
		return fmt.Sprintf("&from=%d&to=%d", from.UnixMilli(), to.UnixMilli()),
			fmt.Sprintf(" WHERE inserted_at >= '%s' AND inserted_at < '%s'", from.Format(time.RFC3339), to.Format(time.RFC3339))
	}
	closed, inClosed := window(day, day.Add(24*time.Hour))
	hour, inHour := window(day.Add(12*time.Hour), day.Add(13*time.Hour))
	late, _ := window(day.Add(-50*time.Hour), day.Add(-49*time.Hour)) // a few rows of later partitions are of this hour
	inLate := fmt.Sprintf(" WHERE time >= '%s' AND time < '%s'", day.Add(-50*time.Hour).Format(time.RFC3339), day.Add(-49*time.Hour).Format(time.RFC3339))
	quarter, inQuarter := window(day.Add(12*time.Hour), day.Add(12*time.Hour+15*time.Minute))
	const (
		inOpen      = " WHERE inserted_at >= now() - interval '1 hour'"
		inOpenQuart = " WHERE inserted_at >= now() - interval '15 minutes'"
		latest      = " ORDER BY inserted_at DESC LIMIT 100"
		isError     = ` AND data @> '{"level":"error"}'`
		hasPhrase   = ` AND data::text ~* 'connection reset'`
		rows        = "SELECT id, time, inserted_at, data::text FROM logs"
		count       = "SELECT count(*) FROM logs"
		trace       = "d3d9446802a44259755d38e6d163e820"
	)
	histogram := func(seconds int, where string) string {
		return fmt.Sprintf("SELECT floor(extract(epoch FROM inserted_at) / %d), data->>'level', count(*) FROM logs%s GROUP BY 1, 2", seconds, where)
	}
	phrase := url.QueryEscape(`"connection reset"`)
	for _, bench := range []struct {
		name, path string
		of         *server
		sql        string // "" for the service's /health
	}{
		{"latest100/open", "/logs?from=now-1h", plain, rows + inOpen + latest},
		{"latest100/closed", "/logs?" + closed, plain, rows + inClosed + latest},
		{"error1h/open", "/logs?q=level:error&from=now-1h", plain, rows + inOpen + isError + latest},
		{"error1h/closed", "/logs?q=level:error" + hour, plain, rows + inHour + isError + latest},
		{"countError1h/open", "/logs/count?q=level:error&from=now-1h", plain, count + inOpen + isError},
		{"countError1h/closed", "/logs/count?q=level:error" + hour, plain, count + inHour + isError},
		{"countTrace/closed", "/logs/count?q=trace_id:" + trace + closed, plain, count + inClosed + ` AND data @> '{"trace_id":"` + trace + `"}'`},
		{"phrase15m/open", "/logs?q=" + phrase + "&from=now-15m", plain, rows + inOpenQuart + hasPhrase + latest},
		{"phrase15m/closed", "/logs?q=" + phrase + quarter, plain, rows + inQuarter + hasPhrase + latest},
		{"histogramDay/closed/uncached", "/logs/histogram?by=level" + closed, plain, histogram(1800, inClosed)},
		{"histogramDay/closed/cached", "/logs/histogram?by=level" + closed, cached, ""},
		{"histogram1h/open/uncached", "/logs/histogram?by=level&from=now-1h", plain, histogram(30, inOpen)},
		{"histogram1h/open/cached", "/logs/histogram?by=level&from=now-1h", cached, ""},
		{"arrival100/open", "/logs?clock=inserted_at&from=now-1h", plain, rows + inOpen + latest},
		{"late100/closed", "/logs?" + late, plain, rows + inLate + " ORDER BY time DESC LIMIT 100"},
		{"fields/open", "/logs/fields?from=now-1h", plain, rows + inOpen + " ORDER BY inserted_at DESC LIMIT 1000"},
	} {
		b.Run(bench.name, func(b *testing.B) {
			address := "http://" + bench.of.addr + bench.path
			product := func() { get(b, address) }
			alone := func() { get(b, "http://"+bench.of.addr+"/health") }
			if bench.sql != "" {
				alone = func() { readAll(b, conn, bench.sql) }
			}
			product() // fills caches
			alone()
			t := ceiling.NewTurns("ms")
			for b.Loop() {
				t.Add(took(product), took(alone))
			}
			t.Report(b)
		})
	}
}

func took(f func()) float64 {
	began := time.Now()
	f()
	return ms(time.Since(began))
}

// readAll reads what a statement brings.
func readAll(b testing.TB, conn *pgx.Conn, sql string) {
	b.Helper()
	rows, err := conn.Query(context.Background(), sql)
	if err != nil {
		b.Fatal(err)
	}
	for rows.Next() {
	}
	if err := rows.Err(); err != nil {
		b.Fatalf("%s: %v", sql, err)
	}
}

// BenchmarkExport sends all rows; MILLRACE_BENCH_ROWS sets how many there are. The ceiling is COPY of the same columns,
// as psql's \copy (SELECT …) TO does.
func BenchmarkExport(b *testing.B) {
	db := testenv.Schema(b)
	rows := number(b, "MILLRACE_BENCH_ROWS", 200_000)
	day := fillLogs(b, db, rows)
	s := startServer(b, "query", "", "QUERY_ADDR=127.0.0.1:0", "REDIS_URL=", "POSTGRES_URL="+string(db))
	conn := testenv.Connect(b, db)
	t := ceiling.NewTurns("rows/s")
	for b.Loop() {
		began := time.Now()
		get(b, fmt.Sprintf("http://%s/logs/export?from=%d", s.addr, day.UnixMilli()))
		rate := float64(rows) / time.Since(began).Seconds()
		began = time.Now()
		if _, err := conn.PgConn().CopyTo(context.Background(), io.Discard, "COPY (SELECT id, inserted_at, data FROM logs ORDER BY inserted_at, id) TO STDOUT"); err != nil {
			b.Fatal(err)
		}
		t.Add(rate, float64(rows)/time.Since(began).Seconds())
	}
	t.Report(b)
	b.ReportMetric(s.metrics(b)["process_resident_memory_bytes"]/(1<<20), "resident-MiB")
}

// BenchmarkTail stores MILLRACE_BENCH_RATE rows a second, as a worker does, while 300 followers ask for one in a
// hundred each, and looks how long each row takes to the followers and whether all come once.
func BenchmarkTail(b *testing.B) {
	const followers, shards, batch = 300, 100, 1000
	rate := number(b, "MILLRACE_BENCH_RATE", 10_000)
	db := testenv.Schema(b)
	conn := testenv.Connect(b, db)
	for _, sql := range []string{
		"CREATE TABLE logs_all PARTITION OF logs FOR VALUES FROM (MINVALUE) TO (MAXVALUE)",
		"CREATE TABLE ledger_all PARTITION OF ledger FOR VALUES FROM (MINVALUE) TO (MAXVALUE)",
	} {
		if _, err := conn.Exec(context.Background(), sql); err != nil {
			b.Fatal(err)
		}
	}
	s := startServer(b, "query", "", "QUERY_ADDR=127.0.0.1:0", "REDIS_URL=", "POSTGRES_URL="+string(db))
	ctx, leave := context.WithCancel(context.Background())
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: followers}}
	var (
		reading  sync.WaitGroup
		received atomic.Int64
		repeated atomic.Int64
		mu       sync.Mutex
		delays   []time.Duration
	)
	for k := range followers {
		req, err := http.NewRequestWithContext(ctx, "GET", fmt.Sprintf("http://%s/logs/tail?q=shard:%d", s.addr, k%shards), nil)
		if err != nil {
			b.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		reading.Go(func() {
			defer resp.Body.Close()
			var own []time.Duration
			had := make(map[string]bool)
			for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
				rest, found := strings.CutPrefix(lines.Text(), `data: {"id":"`)
				if !found {
					continue
				}
				id, err := uuid.Parse(rest[:36])
				if err != nil {
					b.Error(err)
					return
				}
				if had[rest[:36]] {
					repeated.Add(1)
				}
				had[rest[:36]] = true
				own = append(own, time.Since(frame.Time(id)))
				received.Add(1)
			}
			mu.Lock()
			delays = append(delays, own...)
			mu.Unlock()
		})
	}
	stored := 0
	tick := time.NewTicker(time.Second * batch / time.Duration(rate))
	defer tick.Stop()
	for b.Loop() {
		<-tick.C
		base := frame.NewBase()
		err := pgx.BeginFunc(context.Background(), conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(context.Background(), "INSERT INTO ledger (id, records, checksum) VALUES ($1, $2, 0)", [16]byte(base), batch); err != nil {
				return err
			}
			_, err := tx.CopyFrom(context.Background(), pgx.Identifier{"logs"}, []string{"id", "inserted_at", "data"},
				pgx.CopyFromSlice(batch, func(i int) ([]any, error) {
					doc := fmt.Sprintf(`{"shard":%d,"level":"info","service":"checkout","message":"request served from the upstream pool after one retry"}`, i%shards)
					return []any{frame.ID(base, i), frame.Time(base), doc}, nil
				}))
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
		stored += batch
	}
	want := int64(stored / shards * followers)
	testenv.Eventually(b, 30*time.Second, "all rows have come", func() bool { return received.Load() >= want })
	b.ReportMetric(s.metrics(b)["process_resident_memory_bytes"]/(1<<20), "resident-MiB")
	leave()
	reading.Wait()
	client.CloseIdleConnections()
	if received.Load() != want || repeated.Load() > 0 {
		b.Errorf("%d events, want %d; %d came twice", received.Load(), want, repeated.Load())
	}
	slices.Sort(delays)
	r := load.Result{Latencies: delays}
	b.ReportMetric(ms(r.Quantile(.5)), "p50-ms")
	b.ReportMetric(ms(r.Quantile(.99)), "p99-ms")
	b.ReportMetric(ms(delays[len(delays)-1]), "max-ms")
	b.ReportMetric(float64(stored)/b.Elapsed().Seconds(), "rows/s")
	b.ReportMetric(0, "ns/op")
}
