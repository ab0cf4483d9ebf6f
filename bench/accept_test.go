package bench

import (
	"fmt"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/bench/ceiling"
	"millrace/bench/load"
	"millrace/internal/broker"
	"millrace/internal/config"
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
			nothing := startServer(b, "nothing", nil).dial(b, connections, requests...)
			waitReady(b, product)
			t := ceiling.NewTurns("req/s")
			for b.Loop() {
				q.purge(b)
				p := run(b, product, ceiling.Round)
				t.Add(p.Rate(), run(b, nothing, ceiling.Round).Rate())
				t.Also("p50-ms", ms(p.Quantile(.5)))
				t.Also("p99-ms", ms(p.Quantile(.99)))
				t.Also("load-cores", p.CPU.Seconds()/p.Elapsed.Seconds())
			}
			t.Report(b)
		})
	}
}

func ms(d time.Duration) float64 { return d.Seconds() * 1e3 }

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

// BenchmarkAcceptEarly posts one record a request. The ceiling is the same API without early answers and what they need
// (api/front, internal/direct). They stay as long as the ratio is 1.05 or more: then they pay.
func BenchmarkAcceptEarly(b *testing.B) {
	for _, connections := range []int{64, 256} {
		b.Run(fmt.Sprintf("connections=%d", connections), func(b *testing.B) {
			var requests [][]byte
			for _, body := range bodies(256, 1) {
				requests = append(requests, load.Post("/log", body))
			}
			q := newQueues(b)
			early := startServer(b, "api", q.Name, "API_ADDR=127.0.0.1:0").dial(b, connections, requests...)
			without := startServer(b, "api", q.Name, "API_ADDR=127.0.0.1:0", plain+"=yes").dial(b, connections, requests...)
			waitReady(b, early)
			waitReady(b, without)
			t := ceiling.NewTurns("req/s")
			for b.Loop() {
				q.purge(b)
				p := run(b, early, ceiling.Round)
				q.purge(b)
				t.Add(p.Rate(), run(b, without, ceiling.Round).Rate())
				t.Also("p99-ms", ms(p.Quantile(.99)))
			}
			t.Report(b)
		})
	}
}

// BenchmarkAcceptBatch posts batches of 500 records. The ceiling is a publisher that sends ready-made frames of the
// same size, compressed as the API compresses them, to the same kind of queue and waits for their confirms.
func BenchmarkAcceptBatch(b *testing.B) {
	const batch, connections = 500, 16
	var requests [][]byte
	for _, body := range bodies(16, batch) {
		requests = append(requests, load.Post("/log/batch", body))
	}
	q := newQueues(b)
	product := startServer(b, "api", q.Name, "API_ADDR=127.0.0.1:0").dial(b, connections, requests...)
	waitReady(b, product)
	ready := ceiling.NewPublisher(b, q.Broker, bodies(1, frameRecords)[0], frameRecords, "s2", ceiling.Wide)
	t := ceiling.NewTurns("records/s")
	for b.Loop() {
		q.purge(b)
		p := run(b, product, ceiling.Round)
		q.purge(b)
		t.Add(batch*p.Rate(), ready.Run(b, ceiling.Round))
		t.Also("p99-ms", ms(p.Quantile(.99)))
		t.Also("load-cores", p.CPU.Seconds()/p.Elapsed.Seconds())
	}
	t.Report(b)
}
