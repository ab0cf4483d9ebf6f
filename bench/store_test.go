package bench

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/bench/ceiling"
	"millrace/bench/load"
	"millrace/internal/broker"
	"millrace/internal/config"
	"millrace/internal/frame"
	"millrace/internal/testenv"
)

const (
	// batchRows is the rows of a transaction, BATCH_ROWS as it is by default.
	batchRows = 5000

	// roundRows is what is stored in one turn: a second or two.
	roundRows = 300_000
)

// startWorker starts a worker on a database and queues.
func startWorker(b testing.TB, db config.PostgresURL, q *queues, env ...string) *server {
	return startServer(b, "worker", q.Name, append(env, "WORKER_ADDR=127.0.0.1:0", "POSTGRES_URL="+string(db), "INDEX_CLOSED_PARTITIONS=false")...)
}

// uncompressed asks for no compression: metrics are read often, and compressing them would take time from the service.
var uncompressed = &http.Client{Transport: &http.Transport{DisableCompression: true}}

// metrics reads a service's metrics; a histogram's buckets count as metrics of their own.
func (s *server) metrics(b testing.TB) map[string]float64 {
	b.Helper()
	answer, err := uncompressed.Get("http://" + s.addr + "/metrics")
	if err != nil {
		b.Fatal(err)
	}
	defer answer.Body.Close() // only read
	all := make(map[string]float64)
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if all[name], err = strconv.ParseFloat(value, 64); err != nil && !strings.HasPrefix(name, "#") {
			b.Fatal(lines.Text())
		}
	}
	return all
}

func (s *server) stored(b testing.TB) float64 {
	return s.metrics(b)["millrace_worker_rows_stored_total"]
}

// fill publishes frames as the API makes them, of bodies with so many records each, and returns their records.
func (q *queues) fill(b testing.TB, rows int, all [][]byte, each int) int {
	b.Helper()
	ch := testenv.Channel(b, q.Broker)
	if err := ch.Confirm(false); err != nil {
		b.Fatal(err)
	}
	const window = 64
	confirms := ch.NotifyPublish(make(chan amqp.Confirmation, window))
	compress, err := frame.NewCompressor("s2")
	if err != nil {
		b.Fatal(err)
	}
	frames := make([]amqp.Publishing, len(all))
	for i, body := range all {
		body, encoding := compress.Compress(body)
		frames[i] = amqp.Publishing{
			ContentType:     frame.ContentType,
			ContentEncoding: encoding,
			DeliveryMode:    amqp.Persistent,
			Type:            frame.Type,
			Body:            bytes.Clone(body),
		}
	}
	sent, confirmed := 0, 0
	for confirmed*each < rows {
		for sent*each < rows && sent-confirmed < window {
			f := frames[sent%len(frames)]
			f.Headers = frame.Headers([]frame.Segment{{Base: frame.NewBase(), Records: each}})
			if err := ch.Publish(broker.DefaultExchange, q.topology.Queue(sent%q.topology.Shards()), true, false, f); err != nil {
				b.Fatal(err)
			}
			sent++
		}
		if c := <-confirms; !c.Ack {
			b.Fatal("not confirmed")
		}
		confirmed++
	}
	if err := ch.Close(); err != nil {
		b.Fatal(err)
	}
	return confirmed * each
}

// BenchmarkDrain stores a backlog that waits in RabbitMQ. The ceiling is pgx.CopyFrom of the same records straight
// from memory, as many sessions with as many rows a transaction, into the same table: no broker, no ledger. Both are
// counted from their first commit to the last but one. What psql's \copy of a file of them reaches, a transaction a
// session and from its start to its end, stands beside it.
func BenchmarkDrain(b *testing.B) {
	for _, streams := range []int{1, 2} {
		b.Run(fmt.Sprintf("streams=%d", streams), func(b *testing.B) {
			db := testenv.Schema(b)
			q := newQueues(b)
			all := bodies(32, frameRecords)
			file := psqlFile(b, roundRows/streams, all[0])
			env := "WORKER_STREAMS=" + strconv.Itoa(streams)
			startWorker(b, db, q, env).stop(b) // makes the partitions
			admin := testenv.Connect(b, db)
			t := ceiling.NewTurns("rows/s")
			for b.Loop() {
				truncate(b, admin)
				rows := q.fill(b, roundRows, bodies(32, frameRecords), frameRecords) // which tell of the last seconds
				w := startWorker(b, db, q, env)
				rate := w.drain(b, rows)
				t.Also("resident-MiB", w.metrics(b)["process_resident_memory_bytes"]/(1<<20))
				w.stop(b)
				truncate(b, admin)
				t.Add(rate, copyFromMemory(b, db, streams, all[0]))
				if file != "" {
					truncate(b, admin)
					t.Also("psql-rows/s", copyByPsql(b, db, streams, file, roundRows/streams))
				}
			}
			t.Report(b)
		})
	}
}

// psqlFile writes rows for \copy, with records of a body, and returns the file's name; "" where there is no psql.
func psqlFile(b testing.TB, rows int, body []byte) string {
	b.Helper()
	if _, err := exec.LookPath("psql"); err != nil {
		b.Logf("without \\copy: %v", err)
		return ""
	}
	records := strings.Split(strings.TrimSuffix(string(body), "\n"), "\n")
	base := frame.NewBase()
	at := frame.Time(base).Format(time.RFC3339Nano)
	var text bytes.Buffer
	for i := range rows {
		fmt.Fprintf(&text, "%[1]s\t%[2]s\t%[2]s\t%[3]s\n", frame.ID(base, i), at, records[i%len(records)]) // they hold no backslash
	}
	name := filepath.Join(b.TempDir(), "rows")
	if err := os.WriteFile(name, text.Bytes(), 0o600); err != nil {
		b.Fatal(err)
	}
	return name
}

// copyByPsql lets so many psql copy a file at once, and returns how many rows a second they stored.
func copyByPsql(b testing.TB, db config.PostgresURL, sessions int, file string, rows int) float64 {
	b.Helper()
	c, err := pgx.ParseConfig(string(db))
	if err != nil {
		b.Fatal(err)
	}
	var all sync.WaitGroup
	start := time.Now()
	for range sessions {
		all.Go(func() {
			cmd := exec.Command("psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--command=\\copy logs (id, inserted_at, time, data) FROM '"+file+"'")
			cmd.Env = append(os.Environ(), "PGHOST="+c.Host, fmt.Sprintf("PGPORT=%d", c.Port), "PGUSER="+c.User, "PGPASSWORD="+c.Password, "PGDATABASE="+c.Database)
			if out, err := cmd.CombinedOutput(); err != nil {
				b.Errorf("psql: %v\n%s", err, out)
			}
		})
	}
	all.Wait()
	return float64(sessions*rows) / time.Since(start).Seconds()
}

func truncate(b testing.TB, conn *pgx.Conn) {
	b.Helper()
	if _, err := conn.Exec(context.Background(), "TRUNCATE logs, ledger; CHECKPOINT"); err != nil {
		b.Fatal(err)
	}
}

// drain returns how many rows a second are stored from the first batch to the last but one: a start takes long enough to
// count in a short run, and so does the last batch, which waits for rows that don't come. A worker that stores nothing for
// a minute ends the benchmark.
func (s *server) drain(b testing.TB, rows int) float64 {
	b.Helper()
	var first, last, full float64
	var began, ended time.Time
	for changed := time.Now(); last < float64(rows); {
		time.Sleep(5 * time.Millisecond) // asking costs the worker time
		now := s.stored(b)
		if now != last {
			changed = time.Now()
		}
		switch {
		case now == last && time.Since(changed) > time.Minute:
			b.Fatalf("the worker has stored %.0f of %d rows, and none for a minute", now, rows)
		case now == last:
		case first == 0:
			first, began = now, time.Now()
			full, ended = first, began
		case now < float64(rows) || full == first:
			full, ended = now, time.Now()
		}
		last = now
	}
	return (full - first) / ended.Sub(began).Seconds()
}

// copyFromMemory returns how many rows a second so many sessions store, which take their transactions from one backlog
// as the worker's streams do.
func copyFromMemory(b testing.TB, db config.PostgresURL, sessions int, body []byte) float64 {
	b.Helper()
	records := strings.Split(strings.TrimSuffix(string(body), "\n"), "\n")
	var started, ended sync.WaitGroup
	var taken atomic.Int64
	var mu sync.Mutex
	var commits []time.Time
	begin := make(chan struct{})
	for range sessions {
		conn := testenv.Connect(b, db)
		started.Add(1)
		ended.Go(func() {
			started.Done()
			<-begin
			for taken.Add(batchRows) <= roundRows {
				base, at := frame.NewBase(), time.Now()
				_, err := conn.CopyFrom(context.Background(), pgx.Identifier{"logs"}, []string{"id", "inserted_at", "time", "data"},
					pgx.CopyFromSlice(batchRows, func(i int) ([]any, error) {
						return []any{frame.ID(base, i), at, at, records[i%len(records)]}, nil
					}))
				if err != nil {
					b.Error(err)
					return
				}
				mu.Lock()
				commits = append(commits, time.Now())
				mu.Unlock()
			}
		})
	}
	started.Wait()
	close(begin)
	ended.Wait()
	if b.Failed() {
		b.FailNow()
	}
	return steadyRate(commits, batchRows)
}

// steadyRate returns how many rows a second were stored by commits of so many rows each, in the order of their times. It counts
// from the first commit to the last but one, because all sessions are busy as long.
func steadyRate(commits []time.Time, rows int) float64 {
	n := len(commits)
	return float64((n-2)*rows) / commits[n-2].Sub(commits[0]).Seconds()
}

func TestTheSteadyRateLeavesOutTheStartAndTheLastBatch(t *testing.T) {
	start := time.Now()
	for what, tt := range map[string]struct {
		commits []float64 // seconds
		want    float64
	}{
		"one session, slow at both ends": {[]float64{3, 4, 5, 6, 9}, 100},
		"two in step":                    {[]float64{1, 1, 2, 2, 3, 3, 4, 4}, 200},
		"two in turn":                    {[]float64{1, 1.5, 2, 2.5, 3, 3.5, 4, 6}, 200},
	} {
		var commits []time.Time
		for _, s := range tt.commits {
			commits = append(commits, start.Add(time.Duration(s*float64(time.Second))))
		}
		if got := steadyRate(commits, 100); got != tt.want {
			t.Errorf("%s: got %v rows/s, want %v", what, got, tt.want)
		}
	}
}

// BenchmarkEndToEnd posts batches of 500 records, everything on one machine: as fast as they are stored, with at most
// 50,000 records between the two, and then at half of that speed. The ceiling is pgx.CopyFrom from memory by two
// sessions, which has the machine to itself.
func BenchmarkEndToEnd(b *testing.B) {
	const batch, connections = 500, 8
	db := testenv.Schema(b)
	q := newQueues(b)
	all := bodies(16, batch)
	p := newPipeline(b, startServer(b, "api", q.Name, "API_ADDR=127.0.0.1:0"), startWorker(b, db, q), connections, batch)
	var full float64
	b.Run("load=full", func(b *testing.B) {
		full = p.measure(b, db, all[0], 0)
	})
	b.Run("load=half", func(b *testing.B) {
		if full == 0 {
			b.Skip("half of load=full, which has not run")
		}
		p.measure(b, db, all[0], full/2)
	})
}

// pipeline is an API and a worker, and a client that posts batches of so many records.
type pipeline struct {
	dial   func() *load.Client // a client whose records tell of the last seconds
	client *load.Client
	worker *server
	batch  int
	sent   int // records
}

// newPipeline returns a pipeline once both services are ready.
func newPipeline(b *testing.B, api, worker *server, connections, batch int) *pipeline {
	dial := func() *load.Client {
		var requests [][]byte
		for _, body := range bodies(16, batch) {
			requests = append(requests, load.Post("/log/batch", body))
		}
		return api.dial(b, connections, requests...)
	}
	p := &pipeline{dial, dial(), worker, batch, int(worker.stored(b))}
	waitReady(b, p.client)
	return p
}

// backlog is how many records may be sent and not yet stored while sending goes as fast as storing.
const backlog = 50_000

// measure sends so many records a second, or 0 for as many as are stored, and returns how many were stored.
func (p *pipeline) measure(b *testing.B, db config.PostgresURL, body []byte, pace float64) float64 {
	t := ceiling.NewTurns("rows/s")
	before := p.worker.metrics(b)
	for b.Loop() {
		p.client = p.dial()
		rate, cpu := p.run(b, 4*ceiling.Round, pace)
		testenv.Eventually(b, time.Minute, "all is stored", func() bool { return int(p.worker.stored(b)) >= p.sent })
		t.Add(rate, copyFromMemory(b, db, 2, body))
		t.Also("load-cores", cpu)
	}
	t.Report(b)
	b.ReportMetric(1e3*histogram("millrace_worker_lag_seconds", before, p.worker.metrics(b), .99), "lag-p99-ms")
	return t.Median("rows/s")
}

// run sends for a while and returns the rows stored in a second, and what part of a core sending took.
func (p *pipeline) run(b *testing.B, d time.Duration, pace float64) (rate, share float64) {
	start, cpu := time.Now(), time.Duration(0)
	before, from := p.worker.stored(b), p.sent
	now := before
	for time.Since(start) < d {
		due, burst := p.sent-int(now) <= backlog, 20*time.Millisecond
		if pace > 0 { // a request for each connection, whenever it is time
			due, burst = float64(p.sent-from) <= pace*time.Since(start).Seconds(), 0
		}
		if due {
			r := run(b, p.client, burst)
			p.sent += p.batch * r.Answers()
			cpu += r.CPU
		} else {
			time.Sleep(5 * time.Millisecond) // what was sent must be stored before more is sent
		}
		now = p.worker.stored(b)
		p.sent = max(p.sent, int(now)) // it knows nothing of what was sent before
	}
	elapsed := time.Since(start).Seconds()
	return (now - before) / elapsed, cpu.Seconds() / elapsed
}

// histogram returns what the share q of what was observed between two looks at a service's metrics stayed within,
// interpolated within a bucket of the histogram as Prometheus does.
func histogram(name string, before, after map[string]float64, q float64) float64 {
	since := func(metric string) float64 { return after[metric] - before[metric] }
	var bounds []float64
	for k := range after {
		if rest, ok := strings.CutPrefix(k, name+`_bucket{le="`); ok {
			if bound, err := strconv.ParseFloat(strings.TrimSuffix(rest, `"}`), 64); err == nil {
				bounds = append(bounds, bound)
			}
		}
	}
	slices.Sort(bounds)
	rank := q * since(name+"_count")
	low, below := 0.0, 0.0
	for _, bound := range bounds {
		within := since(fmt.Sprintf(`%s_bucket{le="%g"}`, name, bound))
		if within >= rank && within > below {
			return low + (bound-low)*(rank-below)/(within-below)
		}
		low, below = bound, within
	}
	return low
}

// BenchmarkVisible posts a hundred records a second, one a request, and looks how long it takes until each can be
// read. There is no ceiling: nothing in it depends on speed.
func BenchmarkVisible(b *testing.B) {
	db := testenv.Schema(b)
	q := newQueues(b)
	body := load.Post("/log", bodies(1, 1)[0])
	c := startServer(b, "api", q.Name, "API_ADDR=127.0.0.1:0").dial(b, 1, body)
	startWorker(b, db, q)
	waitReady(b, c)
	conn := testenv.Connect(b, db)
	var delays []time.Duration
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for b.Loop() {
		var last uuid.UUID
		if err := conn.QueryRow(context.Background(), "SELECT coalesce(max(id::text), '00000000-0000-0000-0000-000000000000')::uuid FROM logs").Scan(&last); err != nil {
			b.Fatal(err)
		}
		<-tick.C
		start := time.Now()
		run(b, c, 0)
		testenv.Eventually(b, 10*time.Second, "the record can be read", func() bool {
			var there bool
			if err := conn.QueryRow(context.Background(), "SELECT EXISTS (SELECT FROM logs WHERE inserted_at > now() - interval '1 minute' AND id > $1)", last).Scan(&there); err != nil {
				b.Fatal(err)
			}
			return there
		})
		delays = append(delays, time.Since(start))
	}
	slices.Sort(delays)
	r := load.Result{Latencies: delays}
	b.ReportMetric(ms(r.Quantile(.5)), "p50-ms")
	b.ReportMetric(ms(r.Quantile(.99)), "p99-ms")
	b.ReportMetric(0, "ns/op")
}
