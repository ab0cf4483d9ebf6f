package worker

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/goleak"

	"millrace/internal/broker"
	"millrace/internal/config"
	"millrace/internal/eventtime"
	"millrace/internal/frame"
	"millrace/internal/service"
	"millrace/internal/testenv"
	"millrace/worker/partition"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var count, exec = testenv.Count, testenv.Exec

// testConfig returns the defaults with a database and queues of the test's own.
func testConfig(t testing.TB, shards int) Config {
	t.Helper()
	var c Config
	db := testenv.Schema(t)
	b := testenv.Broker(t, shards)
	err := config.LoadFrom(map[string]string{
		"RABBITMQ_URL": string(b.URLs[0]), "POSTGRES_URL": string(db), "WORKER_ADDR": "127.0.0.1:0", "SHUTDOWN_TIMEOUT": "10s",
	}, &c)
	if err != nil {
		t.Fatal(err)
	}
	c.Broker = b
	c.Log = testLog(t)
	return c
}

func testLog(t testing.TB) *slog.Logger {
	out := io.Discard
	if testing.Verbose() {
		out = os.Stderr
	}
	return service.NewLogger(out, config.Process{LogLevel: "info"}).With("test", t.Name())
}

// running is a worker under test.
type running struct {
	t    testing.TB
	addr string
	stop func() error // idempotent
}

// start runs a worker until the test ends or stop is called.
func start(t testing.TB, c Config) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	listening := make(chan net.Addr, 1)
	c.OnListen = func(a net.Addr) { listening <- a }
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, c) }()
	r := &running{t: t, stop: sync.OnceValue(func() error {
		cancel()
		return <-ended
	})}
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("worker: %v", err)
		}
	})
	select {
	case a := <-listening:
		r.addr = a.String()
	case err := <-ended:
		ended <- err
		t.Fatalf("worker did not start: %v", err)
	}
	return r
}

// metric returns the sum of a metric's samples with that prefix, labels included.
func (r *running) metric(prefix string) float64 {
	r.t.Helper()
	body := r.get("/metrics")
	var sum float64
	for line := range strings.Lines(body) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && strings.HasPrefix(name, prefix) {
			var v float64
			if _, err := fmt.Sscan(value, &v); err != nil {
				r.t.Fatal(err)
			}
			sum += v
		}
	}
	return sum
}

func (r *running) get(path string) string {
	r.t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get("http://" + r.addr + path)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(body)
}

// publisher publishes to the test's queues, confirmed.
type publisher struct {
	t        testing.TB
	ch       *amqp.Channel
	topology broker.Topology
}

func newPublisher(t testing.TB, c Config) *publisher {
	t.Helper()
	p := &publisher{t: t, ch: testenv.Channel(t, c.Broker), topology: broker.NewTopology(c.Broker)}
	if err := p.topology.Declare(p.ch); err != nil {
		t.Fatal(err)
	}
	if err := p.ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *publisher) send(queue int, m amqp.Publishing) {
	p.sendTo(broker.DefaultExchange, p.topology.Queue(queue), m)
}

func (p *publisher) sendTo(exchange, key string, m amqp.Publishing) {
	p.t.Helper()
	m.DeliveryMode = amqp.Persistent
	confirm, err := p.ch.PublishWithDeferredConfirm(exchange, key, true, false, m)
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), testenv.LeastWait)
	defer cancel()
	if acked, err := confirm.WaitContext(ctx); err != nil || !acked {
		p.t.Fatalf("confirm: %v, %v", acked, err)
	}
}

// waiting returns the messages in the queues, unacknowledged ones not counted.
func (p *publisher) waiting() int {
	p.t.Helper()
	n := 0
	for i := range p.topology.Shards() {
		q, err := p.ch.QueueDeclarePassive(p.topology.Queue(i), true, false, false, false, nil)
		if err != nil {
			p.t.Fatal(err)
		}
		n += q.Messages
	}
	return n
}

// aFrame returns a frame of so many records in one segment.
func aFrame(base uuid.UUID, records int) amqp.Publishing {
	var body strings.Builder
	for k := range records {
		fmt.Fprintf(&body, `{"seq":%d,"level":"info","message":"the quick brown fox"}`+"\n", k)
	}
	return frameOf(body.String(), frame.Segment{Base: base, Records: records})
}

func frameOf(body string, segments ...frame.Segment) amqp.Publishing {
	return amqp.Publishing{Type: frame.Type, ContentType: frame.ContentType, Headers: frame.Headers(segments), Body: []byte(body)}
}

// compressed compresses a frame as an API does, however small it is.
func compressed(t testing.TB, how string, m amqp.Publishing) amqp.Publishing {
	t.Helper()
	m.ContentEncoding = how
	switch how {
	case "s2":
		m.Body = s2.Encode(nil, m.Body)
	case "zstd":
		e, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		m.Body = e.EncodeAll(m.Body, nil)
	}
	return m
}

// want waits until a count is what it should be, and fails when it is more.
func want(t testing.TB, conn *pgx.Conn, rows int, sql string, args ...any) {
	t.Helper()
	got := 0
	for deadline := time.Now().Add(testenv.LeastWait); ; time.Sleep(5 * time.Millisecond) {
		if got = count(t, conn, sql, args...); got == rows {
			return
		}
		if got > rows || time.Now().After(deadline) {
			t.Fatalf("%s: got %d, want %d", sql, got, rows)
		}
	}
}

const allLogs = "SELECT count(*) FROM logs"

// distinct fails the test when a row is there twice.
func distinct(t testing.TB, conn *pgx.Conn, rows int) {
	t.Helper()
	if got := count(t, conn, "SELECT count(DISTINCT id) FROM logs"); got != rows {
		t.Errorf("distinct ids: got %d, want %d", got, rows)
	}
	if got := count(t, conn, allLogs); got != rows {
		t.Errorf("rows: got %d, want %d", got, rows)
	}
}

// workerConn returns a connection with the worker's session settings.
func workerConn(t testing.TB, url config.PostgresURL) *pgx.Conn {
	t.Helper()
	conn, err := connect(context.Background(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func at(s string) time.Time {
	t, err := time.Parse("2006-01-02 15:04", s)
	if err != nil {
		panic(err)
	}
	return t
}

// testRule finds times as the default settings do.
var testRule = func() *eventtime.Rule {
	r, err := eventtime.New(eventtime.DefaultFields, nil, time.Hour)
	if err != nil {
		panic(err)
	}
	return r
}()

// testTimes returns times for a test without partitions.
func testTimes() *recordTimes { return newRecordTimes(testRule, partition.New(testInterval)) }
