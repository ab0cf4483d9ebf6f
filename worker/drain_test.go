package worker

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/frame"
	"millrace/internal/testenv"
	"millrace/worker/partition"
)

// The benchmarks set draining a queue beside the COPY that is its ceiling: records of 264 bytes in 64 KiB frames,
// 5,000 rows a transaction, two at once, on the same server.

const benchRecordBytes = 264

func benchFrame() (body string, rows int) {
	var b strings.Builder
	for b.Len() < frame.SegmentBytes {
		head := fmt.Sprintf(`{"time":"2026-03-01T12:00:00.123Z","level":"info","service":"checkout","seq":%d,"http":{"method":"GET","path":"/cart/%d","status":200},"message":"`, rows, rows%97)
		b.WriteString(head + strings.Repeat("m", benchRecordBytes-len(head)-2) + "\"}\n")
		rows++
	}
	return b.String(), rows
}

func BenchmarkDrain(b *testing.B) {
	body, rows := benchFrame()
	drain(b, b.N*rows, 0, func(int) amqp.Publishing {
		return frameOf(body, frame.Segment{Base: frame.NewBase(), Records: rows})
	})
}

// BenchmarkDrainOfPoison has a frame in a hundred that is bad, each in another way.
func BenchmarkDrainOfPoison(b *testing.B) {
	body, rows := benchFrame()
	good, dead := 0, 0
	poison := make([]amqp.Publishing, b.N)
	for i := range poison {
		segment := frame.Segment{Base: frame.NewBase(), Records: rows}
		m := frameOf(body, segment)
		stored, lost := rows, 0
		if i%100 == 50 {
			stored, lost = 0, 1
			switch i / 100 % 5 {
			case 0:
				m.Headers = frame.Headers([]frame.Segment{{Base: segment.Base, Records: rows + 1}})
			case 1:
				m.Type = "millrace.frame.v9"
			case 2:
				m.Type, m.Headers, m.Body = "", nil, []byte(`{"broken":`)
			case 3:
				m.Body = []byte(strings.Replace(body, `{"time":"`, `{"time":"\u0000`, 1))
				stored = rows - 1
			case 4:
				m.Body = []byte(strings.ReplaceAll(body, `"level":`, `"level":nonsense`))
				lost = rows
			}
		}
		poison[i], good, dead = m, good+stored, dead+lost
	}
	drain(b, good, dead, func(i int) amqp.Publishing { return poison[i] })
}

// drain measures the way of b.N frames, with so many rows and dead letters, out of the queues into the database.
func drain(b *testing.B, rows, dead int, message func(i int) amqp.Publishing) {
	c := testConfig(b, 2)
	c.Log, c.IndexClosed = slog.New(slog.DiscardHandler), false
	p := newPublisher(b, c)
	if err := partition.New(24*time.Hour).EnsureLogs(context.Background(), workerConn(b, c.Postgres), time.Now()); err != nil {
		b.Fatal(err)
	}
	for i := range b.N {
		p.send(i%2, message(i))
	}
	w := start(b, c)
	stored := func() float64 {
		time.Sleep(20 * time.Millisecond) // asking costs the worker time
		return w.metric("millrace_worker_rows_stored_total")
	}
	var before float64 // the start takes long enough to count in a short run
	testenv.Eventually(b, time.Minute, "the first batch", func() bool { before = stored(); return before > 0 })
	b.ResetTimer()
	testenv.Eventually(b, 10*time.Minute, "drained", func() bool { return stored() == float64(rows) })
	b.StopTimer()
	b.ReportMetric((float64(rows)-before)/b.Elapsed().Seconds(), "rows/s")
	testenv.Eventually(b, time.Minute, "dead letters", func() bool { return w.metric("millrace_worker_dead_letters_total") == float64(dead) })
	if err := w.stop(); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkCopyAlone(b *testing.B) {
	url := testenv.Schema(b)
	body, rows := benchFrame()
	var next sync.Mutex
	left := b.N
	var streams sync.WaitGroup
	parts := partition.New(24 * time.Hour)
	warm := testenv.Connect(b, url)
	exec(b, warm, "SET TimeZone = 'UTC'")
	if err := parts.EnsureLogs(context.Background(), warm, time.Now()); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for range 2 {
		conn := testenv.Connect(b, url)
		streams.Go(func() {
			for {
				next.Lock()
				n := min(left, 1+5000/rows)
				left -= n
				next.Unlock()
				if n == 0 {
					return
				}
				segments := make([]segment, n)
				for i := range segments {
					span := frame.Span{Segment: frame.Segment{Base: frame.NewBase(), Records: rows}, Body: []byte(body)}
					segments[i] = segment{Span: span, sum: xxhash.Sum64String(body)}
				}
				if err := copyRows(context.Background(), conn, segments, newRecordTimes(testRule, parts)); err != nil {
					b.Error(err)
				}
			}
		})
	}
	streams.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N*rows)/b.Elapsed().Seconds(), "rows/s")
}
