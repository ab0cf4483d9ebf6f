package bench

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/bench/load"
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

// metric reads one of a service's metrics; a histogram's buckets count as metrics of their own.
func (s *server) metrics(b testing.TB) map[string]float64 {
	b.Helper()
	answer, err := http.Get("http://" + s.addr + "/metrics")
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

// fill publishes frames as the API makes them and returns their records.
func (q *queues) fill(b testing.TB, rows int, body []byte, each int) int {
	b.Helper()
	ch := testenv.Channel(b, q.Broker)
	if err := ch.Confirm(false); err != nil {
		b.Fatal(err)
	}
	const window = 64
	confirms := ch.NotifyPublish(make(chan amqp.Confirmation, window))
	sent, confirmed := 0, 0
	for confirmed*each < rows {
		for sent*each < rows && sent-confirmed < window {
			err := ch.Publish(q.topology.Exchange(), q.topology.Queue(sent%q.topology.Shards()), true, false, amqp.Publishing{
				Headers:      frame.Headers([]frame.Segment{{Base: frame.NewBase(), Records: each}}),
				ContentType:  frame.ContentType,
				DeliveryMode: amqp.Persistent,
				Type:         frame.Type,
				Body:         body,
			})
			if err != nil {
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
// from memory, as many sessions with as many rows a transaction, into the same table: no broker, no ledger.
func BenchmarkDrain(b *testing.B) {
	for _, streams := range []int{1, 2} {
		b.Run(fmt.Sprintf("streams=%d", streams), func(b *testing.B) {
			db := testenv.Schema(b)
			q := newQueues(b)
			each := frame.SegmentBytes/(recordBytes+1) + 1
			body := bodies(1, each)[0]
			env := "WORKER_STREAMS=" + strconv.Itoa(streams)
			startWorker(b, db, q, env).stop(b) // makes the partitions
			admin := testenv.Connect(b, db)
			var rates, ceilings, ratios []float64
			for b.Loop() {
				truncate(b, admin)
				rows := q.fill(b, roundRows, body, each)
				w := startWorker(b, db, q, env)
				rate := w.drain(b, rows)
				w.stop(b)
				truncate(b, admin)
				ceiling := copyFromMemory(b, db, streams, body)
				rates, ceilings, ratios = append(rates, rate), append(ceilings, ceiling), append(ratios, rate/ceiling)
			}
			report(b, "rows/s", rates)
			report(b, "ceiling-rows/s", ceilings)
			reportRatio(b, ratios)
		})
	}
}

func truncate(b testing.TB, conn *pgx.Conn) {
	b.Helper()
	if _, err := conn.Exec(context.Background(), "TRUNCATE logs, ledger; CHECKPOINT"); err != nil {
		b.Fatal(err)
	}
}

// drain returns how many rows a second are stored from the first batch to the last: a start takes long enough to
// count in a short run.
func (s *server) drain(b testing.TB, rows int) float64 {
	b.Helper()
	var first, last float64
	var began time.Time
	for last < float64(rows) {
		time.Sleep(5 * time.Millisecond) // asking costs the worker time
		last = s.stored(b)
		if first == 0 && last > 0 {
			first, began = last, time.Now()
		}
	}
	return (last - first) / time.Since(began).Seconds()
}

// copyFromMemory returns the rows stored a second by so many sessions.
func copyFromMemory(b testing.TB, db config.PostgresURL, sessions int, body []byte) float64 {
	b.Helper()
	records := strings.Split(strings.TrimSuffix(string(body), "\n"), "\n")
	var started, ended sync.WaitGroup
	begin := make(chan struct{})
	for range sessions {
		conn := testenv.Connect(b, db)
		started.Add(1)
		ended.Go(func() {
			started.Done()
			<-begin
			for done := 0; done < roundRows/sessions; done += batchRows {
				base, at := frame.NewBase(), time.Now()
				_, err := conn.CopyFrom(context.Background(), pgx.Identifier{"logs"}, []string{"id", "inserted_at", "data"},
					pgx.CopyFromSlice(batchRows, func(i int) ([]any, error) {
						return []any{frame.ID(base, i), at, records[i%len(records)]}, nil
					}))
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	started.Wait()
	start := time.Now()
	close(begin)
	ended.Wait()
	return float64(roundRows/sessions/batchRows*batchRows*sessions) / time.Since(start).Seconds()
}

// BenchmarkEndToEnd posts batches of 500 records as fast as they are stored, with at most 50,000 records between the
// two, everything on one machine. The ceiling is pgx.CopyFrom from memory by two sessions.
func BenchmarkEndToEnd(b *testing.B) {
	const batch, connections, backlog = 500, 8, 50_000
	db := testenv.Schema(b)
	q := newQueues(b)
	var requests [][]byte
	all := bodies(16, batch)
	for _, body := range all {
		requests = append(requests, load.Post("/log/batch", body))
	}
	c := startServer(b, "api", q.Name, "API_ADDR=127.0.0.1:0").dial(b, connections, requests...)
	w := startWorker(b, db, q)
	waitReady(b, c)
	var rates, ceilings, ratios, share []float64
	sent := 0
	for b.Loop() {
		start, cpu := time.Now(), time.Duration(0)
		before := w.stored(b)
		now := before
		for time.Since(start) < 4*round {
			if sent = max(sent, int(now)); sent-int(now) > backlog {
				time.Sleep(5 * time.Millisecond) // what was sent must be stored before more is sent
			} else {
				r := run(b, c, 20*time.Millisecond)
				sent += batch * r.Answers()
				cpu += r.CPU
			}
			now = w.stored(b)
		}
		elapsed := time.Since(start).Seconds()
		rate := (now - before) / elapsed
		testenv.Eventually(b, time.Minute, "all is stored", func() bool { return int(w.stored(b)) >= sent })
		ceiling := copyFromMemory(b, db, 2, all[0])
		rates, ceilings, ratios = append(rates, rate), append(ceilings, ceiling), append(ratios, rate/ceiling)
		share = append(share, cpu.Seconds()/elapsed)
	}
	report(b, "rows/s", rates)
	report(b, "ceiling-rows/s", ceilings)
	reportRatio(b, ratios)
	b.ReportMetric(1e3*w.lag(b, .99), "lag-p99-ms")
	report(b, "load-cores", share)
}

// lag is the time from accept to commit that the share q of the segments stayed within, to the next bound of the
// histogram's buckets, in seconds.
func (s *server) lag(b testing.TB, q float64) float64 {
	m := s.metrics(b)
	const name = "millrace_worker_lag_seconds"
	var bounds []float64
	for k := range m {
		if rest, ok := strings.CutPrefix(k, name+`_bucket{le="`); ok {
			if bound, err := strconv.ParseFloat(strings.TrimSuffix(rest, `"}`), 64); err == nil {
				bounds = append(bounds, bound)
			}
		}
	}
	slices.Sort(bounds)
	for _, bound := range bounds {
		if m[fmt.Sprintf(`%s_bucket{le="%g"}`, name, bound)] >= q*m[name+"_count"] {
			return bound
		}
	}
	return 0
}

// BenchmarkVisible posts a hundred records a second, one a request, and looks how long it takes until each can be
// read. There is no ceiling: nothing in it depends on speed.
func BenchmarkVisible(b *testing.B) {
	db := testenv.Schema(b)
	q := newQueues(b)
	body := load.Post("/log", bodies(1, 1)[0])
	c := startServer(b, "api", q.Name, "API_ADDR=127.0.0.1:0").dial(b, 1, body)
	w := startWorker(b, db, q)
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
	b.ReportMetric(ms(delays[len(delays)/2]), "p50-ms")
	b.ReportMetric(ms(delays[len(delays)*99/100]), "p99-ms")
	b.ReportMetric(0, "ns/op")
	_ = w
}
