package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/bench/ceiling"
	"millrace/bench/load"
	"millrace/internal/config"
	"millrace/internal/frame"
	"millrace/internal/testenv"
)

// The sweeps change one thing at a time, the rest as it is by default; bench/README.md shows what they teach. Results
// are named benchmark/curve/x=N. make sweep goes over all points several times, so that what else the machine does
// does not hit one point alone.

// acceptPoint posts bodies of n records to an API with settings of its own.
func acceptPoint(b *testing.B, q *queues, connections, n int, all [][]byte, env ...string) {
	path := "/log/batch"
	if n == 1 {
		path = "/log"
	}
	var requests [][]byte
	for _, body := range all {
		requests = append(requests, load.Post(path, body))
	}
	s := startServer(b, "api", q.Name, append(env, "API_ADDR=127.0.0.1:0")...)
	defer s.stop(b)
	c := s.dial(b, connections, requests...)
	waitReady(b, c)
	t := ceiling.NewTurns("records/s")
	for b.Loop() {
		q.purge(b)
		r := run(b, c, ceiling.Round)
		rate := float64(n) * r.Rate()
		t.Also("records/s", rate)
		t.Also("req/s", r.Rate())
		t.Also("MB/s", rate*float64(len(all[0]))/float64(n)/1e6)
		t.Also("p50-ms", ms(r.Quantile(.5)))
		t.Also("p99-ms", ms(r.Quantile(.99)))
		t.Also("load-cores", r.CPU.Seconds()/r.Elapsed.Seconds())
	}
	t.Report(b)
}

// store is a database and queues, for points that store a backlog.
type store struct {
	db    config.PostgresURL
	admin *pgx.Conn
	*queues
}

func newStore(b testing.TB) *store {
	s := &store{db: testenv.Schema(b), queues: newQueues(b)}
	startWorker(b, s.db, s.queues).stop(b) // makes the partitions
	s.admin = testenv.Connect(b, s.db)
	return s
}

// drainPoint stores a backlog of frames of so many records with a worker that has settings of its own.
func (s *store) drainPoint(b *testing.B, rows int, all [][]byte, each int, env ...string) {
	t := ceiling.NewTurns("rows/s")
	for b.Loop() {
		truncate(b, s.admin)
		s.purge(b)
		stored := s.fill(b, rows, all, each)
		w := startWorker(b, s.db, s.queues, env...)
		before := w.metrics(b)
		rate := w.drain(b, stored)
		after := w.metrics(b)
		w.stop(b)
		t.Also("rows/s", rate)
		t.Also("records/s", rate)
		t.Also("MB/s", rate*float64(len(all[0]))/float64(each)/1e6)
		t.Also("commit-p50-ms", 1e3*histogram("millrace_worker_commit_seconds", before, after, .5))
		t.Also("resident-MiB", after["process_resident_memory_bytes"]/(1<<20))
	}
	t.Report(b)
}

const sweepRows = 200_000

func BenchmarkSweepRecord(b *testing.B) {
	q, s := newQueues(b), newStore(b)
	for _, size := range []int{100, ceiling.RecordBytes, 1000, 10_000, 100_000} {
		each := max(1, (64<<10)/size)
		b.Run(fmt.Sprintf("one_a_request,_64_connections/bytes=%d", size), func(b *testing.B) {
			acceptPoint(b, q, 64, 1, ceiling.Bodies(64, 1, size))
		})
		b.Run(fmt.Sprintf("batches_of_64_KiB,_16_connections/bytes=%d", size), func(b *testing.B) {
			acceptPoint(b, q, 16, each, ceiling.Bodies(16, each, size))
		})
		b.Run(fmt.Sprintf("backlog_stored/bytes=%d", size), func(b *testing.B) {
			s.drainPoint(b, min(sweepRows, 100_000_000/size), ceiling.Bodies(16, each, size), each)
		})
	}
}

func BenchmarkSweepBatch(b *testing.B) {
	q := newQueues(b)
	for _, n := range []int{1, 3, 10, 30, 100, 300, 1000, 3000, 10_000} {
		b.Run(fmt.Sprintf("accepted/records=%d", n), func(b *testing.B) {
			acceptPoint(b, q, 16, n, bodies(16, n))
		})
	}
}

func BenchmarkSweepConnections(b *testing.B) {
	q := newQueues(b)
	for _, connections := range []int{1, 4, 16, 64, 256, 1000} {
		for _, n := range []int{1, 100} {
			name := "one_record_a_request"
			if n > 1 {
				name = fmt.Sprintf("%d_records_a_request", n)
			}
			b.Run(fmt.Sprintf("%s/connections=%d", name, connections), func(b *testing.B) {
				acceptPoint(b, q, connections, n, bodies(64, n))
			})
		}
	}
}

func BenchmarkSweepFrame(b *testing.B) {
	q, s := newQueues(b), newStore(b)
	for _, size := range []int{4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("batches_of_500_accepted/bytes=%d", size), func(b *testing.B) {
			acceptPoint(b, q, 16, 500, bodies(16, 500), fmt.Sprintf("FRAME_BYTES=%d", size))
		})
		b.Run(fmt.Sprintf("one_record_a_request,_256_connections/bytes=%d", size), func(b *testing.B) {
			acceptPoint(b, q, 256, 1, bodies(256, 1), fmt.Sprintf("FRAME_BYTES=%d", size))
		})
		each := size/(recordBytes+1) + 1
		b.Run(fmt.Sprintf("backlog_stored/bytes=%d", size), func(b *testing.B) {
			s.drainPoint(b, sweepRows, bodies(8, each), each)
		})
	}
}

func BenchmarkSweepStreams(b *testing.B) {
	s := newStore(b)
	for _, streams := range []int{1, 2, 3, 4, 8, 16} {
		b.Run(fmt.Sprintf("stored/streams=%d", streams), func(b *testing.B) {
			s.drainPoint(b, sweepRows, bodies(32, frameRecords), frameRecords, fmt.Sprintf("WORKER_STREAMS=%d", streams))
		})
	}
}

func BenchmarkSweepBatchRows(b *testing.B) {
	s := newStore(b)
	for _, rows := range []int{100, 300, 1000, 2000, 5000, 10_000, 20_000, 50_000} {
		b.Run(fmt.Sprintf("stored/rows=%d", rows), func(b *testing.B) {
			s.drainPoint(b, max(sweepRows, 8*rows), bodies(32, frameRecords), frameRecords,
				fmt.Sprintf("BATCH_ROWS=%d", rows), "BATCH_BYTES=64MiB")
		})
	}
}

func BenchmarkSweepPrefetch(b *testing.B) {
	s := newStore(b)
	for _, frames := range []int{1, 3, 10, 30, 100, 500, 2000} {
		for _, each := range []int{8, frameRecords} {
			b.Run(fmt.Sprintf("frames_of_%d_records/frames=%d", each, frames), func(b *testing.B) {
				s.drainPoint(b, min(sweepRows, 10_000*each), bodies(32, each), each, fmt.Sprintf("PREFETCH=%d", frames))
			})
		}
	}
}

// lagPoint posts batches at a pace and looks how long they take to their commit.
func lagPoint(b *testing.B, pace float64, batch int, env ...string) {
	const connections = 8
	db, q := testenv.Schema(b), newQueues(b)
	p := newPipeline(b, startServer(b, "api", q.Name, "API_ADDR=127.0.0.1:0"), startWorker(b, db, q, env...), connections, batch)
	p.run(b, ceiling.Round, pace) // what starts slowly has started
	before := p.worker.metrics(b)
	t := ceiling.NewTurns("rows/s")
	for b.Loop() {
		rate, cpu := p.run(b, 2*ceiling.Round, pace)
		t.Also("rows/s", rate)
		t.Also("load-cores", cpu)
	}
	elapsed := b.Elapsed().Seconds()
	after := p.worker.metrics(b)
	t.Report(b)
	b.ReportMetric(1e3*histogram("millrace_worker_lag_seconds", before, after, .5), "lag-p50-ms")
	b.ReportMetric(1e3*histogram("millrace_worker_lag_seconds", before, after, .99), "lag-p99-ms")
	const commits = "millrace_worker_commit_seconds_count"
	b.ReportMetric((after[commits]-before[commits])/elapsed, "commits/s")
}

func BenchmarkSweepLinger(b *testing.B) {
	for _, pace := range []float64{2000, 50_000} {
		for _, ms := range []int{1, 5, 20, 50, 100, 200} {
			b.Run(fmt.Sprintf("%.0f_rows_a_second/ms=%d", pace, ms), func(b *testing.B) {
				lagPoint(b, pace, 100, fmt.Sprintf("BATCH_LINGER=%dms", ms))
			})
		}
	}
}

func BenchmarkSweepLoad(b *testing.B) {
	for _, pace := range []float64{1000, 3000, 10_000, 30_000, 60_000, 90_000, 120_000, 150_000} {
		batch := 500 // of which each connection sends one whenever it is time
		if pace < 10_000 {
			batch = 25
		}
		b.Run(fmt.Sprintf("accept_to_commit/rate=%.0f", pace), func(b *testing.B) { lagPoint(b, pace, batch) })
	}
}

// BenchmarkSweepFootprint stores rows and looks what they take: in PostgreSQL's files, in its WAL, in RabbitMQ while they
// wait. With MILLRACE_BENCH_STACK, the folder of millrace stack --dir, that includes RabbitMQ's disk.
func BenchmarkSweepFootprint(b *testing.B) {
	const rows = 1_000_000
	all := bodies(rows/frameRecords+1, frameRecords) // no two records alike
	s := newStore(b)
	for b.Loop() {
		ctx := context.Background()
		truncate(b, s.admin)
		folder := os.Getenv("MILLRACE_BENCH_STACK")
		disk := diskUse(b, folder, "rabbitmq")
		stored := float64(s.fill(b, rows, all, frameRecords))
		if folder != "" {
			b.ReportMetric((diskUse(b, folder, "rabbitmq")-disk)/stored, "broker-disk-B/row")
		}
		compressor, err := frame.NewCompressor("s2")
		if err != nil {
			b.Fatal(err)
		}
		sent := 0
		for _, body := range all {
			body, _ = compressor.Compress(body)
			sent += len(body)
		}
		b.ReportMetric(float64(sent)/float64(len(all)*frameRecords), "frame-B/row")

		wal := func() (at float64) {
			if err := s.admin.QueryRow(ctx, "SELECT (pg_current_wal_lsn() - '0/0')::float8").Scan(&at); err != nil {
				b.Fatal(err)
			}
			return at
		}
		size := func(what, table string) (bytes float64) {
			if err := s.admin.QueryRow(ctx, "SELECT sum("+what+"(inhrelid))::float8 FROM pg_inherits WHERE inhparent = '"+table+"'::regclass").Scan(&bytes); err != nil {
				b.Fatal(err)
			}
			return bytes
		}
		before := wal()
		w := startWorker(b, s.db, s.queues)
		w.drain(b, int(stored))
		b.ReportMetric((wal()-before)/stored, "WAL-B/row")
		w.stop(b)
		index := size("pg_indexes_size", "logs")
		b.ReportMetric(size("pg_table_size", "logs")/stored, "heap-B/row")
		b.ReportMetric(index/stored, "btree-B/row")
		b.ReportMetric(size("pg_total_relation_size", "ledger")/stored, "ledger-B/row")

		before = wal()
		began := time.Now()
		var partitions []string
		if err := s.admin.QueryRow(ctx, "SELECT array_agg(inhrelid::regclass::text) FROM pg_inherits WHERE inhparent = 'logs'::regclass").Scan(&partitions); err != nil {
			b.Fatal(err)
		}
		for _, p := range partitions {
			if _, err := s.admin.Exec(ctx, "CREATE INDEX bench_"+strings.Trim(p, `"`)+" ON "+p+" USING gin (data jsonb_path_ops)"); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(1e9*time.Since(began).Seconds()/stored, "GIN-ns/row")
		b.ReportMetric((size("pg_indexes_size", "logs")-index)/stored, "GIN-B/row")
		b.ReportMetric((wal()-before)/stored, "GIN-WAL-B/row")
		for _, p := range partitions { // TRUNCATE keeps them
			if _, err := s.admin.Exec(ctx, "DROP INDEX bench_"+strings.Trim(p, `"`)); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(0, "ns/op")
}

// diskUse returns the size of the files below a folder whose path has a word in it.
func diskUse(b *testing.B, folder, word string) (bytes float64) {
	if folder == "" {
		return 0
	}
	if err := filepath.Walk(folder, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() && strings.Contains(path[len(folder):], word) {
			bytes += float64(info.Size())
		}
		return nil // files come and go
	}); err != nil {
		b.Fatal(err)
	}
	return bytes
}
