package api

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/api/publish"
	"millrace/bench/ceiling"
	"millrace/internal/broker"
	"millrace/internal/frame"
	"millrace/internal/record"
	"millrace/internal/scan"
	"millrace/internal/service"
	"millrace/internal/testenv"
)

// BenchmarkPublish hands scanned records to the publisher and waits for their confirms, without HTTP around it: one
// record or 500 at a time, by as many goroutines as connections would bring. The ceiling is a publisher of ready-made
// frames, which are compressed in the same way. They hold one record from each caller, and are published one after
// another, or hold 64 KiB.
func BenchmarkPublish(b *testing.B) {
	for _, shape := range []struct {
		records, callers, frame int
		width                   ceiling.Width
	}{{1, 256, 256, ceiling.Lone}, {500, 16, ceiling.FrameRecords, ceiling.Wide}} {
		b.Run(fmt.Sprintf("records=%d", shape.records), func(b *testing.B) {
			c := defaults(b)
			c.Broker = testenv.Broker(b, 1)
			topology := broker.NewTopology(c.Broker)
			ch := testenv.Channel(b, c.Broker)
			if err := topology.Declare(ch); err != nil {
				b.Fatal(err)
			}
			p := newPublisher(c, c.Log, publish.NewMetrics(service.NewRegistry()), new(service.Ready))
			ctx, cancel := context.WithCancel(b.Context())
			var running sync.WaitGroup
			running.Go(func() { p.Run(ctx, context.WithoutCancel(ctx)) })
			defer running.Wait()
			defer cancel()
			testenv.Eventually(b, 10*time.Second, "the publisher is connected", func() bool { return p.Usable() == nil })

			body := ceiling.Bodies(1, shape.records, ceiling.RecordBytes)[0]
			scanned := &record.List{Limits: scan.Limits{RecordBytes: 1 << 20, PieceBytes: frame.SegmentBytes}}
			if err := scanned.Split(body); err != nil {
				b.Fatal(err)
			}
			full := ceiling.Bodies(1, shape.frame, ceiling.RecordBytes)[0]
			ready := ceiling.NewPublisher(b, c.Broker, full, shape.frame, "s2", shape.width)
			t := ceiling.NewTurns("records/s")
			for b.Loop() {
				purge(b, ch, topology)
				rate := publishFor(b, p, scanned, shape.callers)
				purge(b, ch, topology)
				t.Add(rate, ready.Run(b, ceiling.Round))
			}
			t.Report(b)
		})
	}
}

func purge(b *testing.B, ch *amqp.Channel, topology broker.Topology) {
	b.Helper()
	if _, err := ch.QueuePurge(topology.Queue(0), false); err != nil {
		b.Fatal(err)
	}
}

// publishFor has callers publish a body again and again for a round, and returns how many records were confirmed per
// second.
func publishFor(b *testing.B, p *publish.Publisher, body *record.List, callers int) float64 {
	var confirmed atomic.Int64
	var all sync.WaitGroup
	start := time.Now()
	for range callers {
		all.Go(func() {
			var tickets []publish.Ticket
			for time.Since(start) < ceiling.Round {
				var err error
				if tickets, err = p.Add(tickets[:0], body, nil); err != nil {
					b.Error(err)
					return
				}
				for _, t := range tickets {
					if <-t.Frame.Done(); t.Frame.Err() != nil {
						b.Error(t.Frame.Err())
						return
					}
				}
				confirmed.Add(int64(body.Accepted))
			}
		})
	}
	all.Wait()
	return float64(confirmed.Load()) / time.Since(start).Seconds()
}
