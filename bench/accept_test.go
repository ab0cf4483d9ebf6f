package bench

import (
	"fmt"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/bench/load"
	"millrace/internal/broker"
	"millrace/internal/config"
	"millrace/internal/frame"
	"millrace/internal/testenv"
)

// queues are the queues of a benchmark, emptied between the rounds: RabbitMQ slows down while it moves a backlog
// to its segment files, and that work would hit whoever has the next turn.
type queues struct {
	config.Broker
	topology broker.Topology
	ch       *amqp.Channel
}

func newQueues(b testing.TB) *queues {
	c := testenv.Broker(b, 1)
	q := &queues{c, broker.NewTopology(c), testenv.Channel(b, c)}
	if err := q.topology.Declare(q.ch); err != nil {
		b.Fatal(err)
	}
	return q
}

func (q *queues) purge(b testing.TB) {
	b.Helper()
	for i := range q.topology.Shards() {
		if _, err := q.ch.QueuePurge(q.topology.Queue(i), false); err != nil {
			b.Fatal(err)
		}
	}
}

// run has a client send for a while; every answer must be a 2xx.
func run(b *testing.B, c *load.Client, d time.Duration) load.Result {
	b.Helper()
	r, err := c.Run(d)
	if err != nil {
		b.Fatal(err)
	}
	for status, n := range r.Status {
		if status/100 != 2 {
			b.Fatalf("%d answers with status %d", n, status)
		}
	}
	return r
}

// BenchmarkAcceptOne posts one record a request, each confirmed on a durable quorum queue. The ceiling is a fasthttp
// server that only answers.
func BenchmarkAcceptOne(b *testing.B) {
	for _, connections := range []int{1, 64, 256} {
		b.Run(fmt.Sprintf("connections=%d", connections), func(b *testing.B) {
			var requests [][]byte
			for _, body := range bodies(256, 1) {
				requests = append(requests, load.Post("/log", body))
			}
			q := newQueues(b)
			product := startServer(b, "api", q.Name, "API_ADDR=127.0.0.1:0").dial(b, connections, requests...)
			ceiling := startServer(b, "nothing", nil).dial(b, connections, requests...)
			waitReady(b, product)
			var rates, ceilings, ratios, p50, p99, share []float64
			for b.Loop() {
				q.purge(b)
				p := run(b, product, round)
				c := run(b, ceiling, round)
				rates, ceilings = append(rates, p.Rate()), append(ceilings, c.Rate())
				ratios = append(ratios, p.Rate()/c.Rate())
				p50 = append(p50, ms(p.Quantile(.5)))
				p99 = append(p99, ms(p.Quantile(.99)))
				share = append(share, p.CPU.Seconds()/p.Elapsed.Seconds())
			}
			report(b, "req/s", rates)
			report(b, "ceiling-req/s", ceilings)
			reportRatio(b, ratios)
			report(b, "p50-ms", p50)
			report(b, "p99-ms", p99)
			report(b, "load-cores", share)
		})
	}
}

func ms(d time.Duration) float64 { return d.Seconds() * 1e3 }

func report(b *testing.B, unit string, values []float64) {
	middle, _ := median(values)
	b.ReportMetric(middle, unit)
}

func reportRatio(b *testing.B, ratios []float64) {
	middle, spread := median(ratios)
	b.ReportMetric(middle, "ratio")
	b.ReportMetric(spread, "spread")
	b.ReportMetric(0, "ns/op") // a round's length says nothing
}

// waitReady sends until requests are answered 2xx: the API listens before RabbitMQ is there.
func waitReady(b *testing.B, c *load.Client) {
	b.Helper()
	testenv.Eventually(b, 10*time.Second, "the API is ready", func() bool {
		r, err := c.Run(10 * time.Millisecond)
		if err != nil {
			b.Fatal(err)
		}
		return len(r.Status) == 1 && r.Rate() > 0
	})
}

// BenchmarkAcceptBatch posts batches of 500 records. The ceiling is a publisher that sends ready-made frames of the
// same size to the same kind of queue and waits for their confirms.
func BenchmarkAcceptBatch(b *testing.B) {
	const batch, connections = 500, 16
	var requests [][]byte
	for _, body := range bodies(16, batch) {
		requests = append(requests, load.Post("/log/batch", body))
	}
	q := newQueues(b)
	product := startServer(b, "api", q.Name, "API_ADDR=127.0.0.1:0").dial(b, connections, requests...)
	waitReady(b, product)
	raw := newRawPublisher(b, q)
	var rates, ceilings, ratios, p99, share []float64
	for b.Loop() {
		q.purge(b)
		p := run(b, product, round)
		q.purge(b)
		c := raw.run(b, round)
		rates, ceilings = append(rates, batch*p.Rate()), append(ceilings, c)
		ratios = append(ratios, batch*p.Rate()/c)
		p99 = append(p99, ms(p.Quantile(.99)))
		share = append(share, p.CPU.Seconds()/p.Elapsed.Seconds())
	}
	report(b, "records/s", rates)
	report(b, "ceiling-records/s", ceilings)
	reportRatio(b, ratios)
	report(b, "p99-ms", p99)
	report(b, "load-cores", share)
}

// rawPublisher sends a frame of 64 KiB over and over, on as many connections as the API has by default and with as
// many frames outstanding on each.
type rawPublisher struct {
	q        *queues
	channels []*amqp.Channel
	confirms []chan amqp.Confirmation
	body     []byte
	records  int
}

const rawConnections, rawWindow = 4, 2

func newRawPublisher(b testing.TB, q *queues) *rawPublisher {
	r := &rawPublisher{q: q, records: frame.SegmentBytes / (recordBytes + 1)}
	r.body = bodies(1, r.records)[0]
	for range rawConnections {
		ch := testenv.Channel(b, q.Broker)
		if err := ch.Confirm(false); err != nil {
			b.Fatal(err)
		}
		r.channels = append(r.channels, ch)
		r.confirms = append(r.confirms, ch.NotifyPublish(make(chan amqp.Confirmation, rawWindow)))
	}
	return r
}

// run returns the records confirmed in a second.
func (r *rawPublisher) run(b testing.TB, d time.Duration) float64 {
	b.Helper()
	start := time.Now()
	done := make(chan int)
	for i, ch := range r.channels {
		go func() {
			sent, confirmed := 0, 0
			for time.Since(start) < d || confirmed < sent {
				for time.Since(start) < d && sent-confirmed < rawWindow {
					err := ch.Publish(r.q.topology.Exchange(), r.q.topology.Queue(0), true, false, amqp.Publishing{
						Headers:      frame.Headers([]frame.Segment{{Base: frame.NewBase(), Records: r.records}}),
						ContentType:  frame.ContentType,
						DeliveryMode: amqp.Persistent,
						Type:         frame.Type,
						Body:         r.body,
					})
					if err != nil {
						b.Error(err)
						break
					}
					sent++
				}
				if c, ok := <-r.confirms[i]; !ok || !c.Ack {
					b.Error("not confirmed")
					break
				}
				confirmed++
			}
			done <- confirmed
		}()
	}
	frames := 0
	for range r.channels {
		frames += <-done
	}
	return float64(frames*r.records) / time.Since(start).Seconds()
}
