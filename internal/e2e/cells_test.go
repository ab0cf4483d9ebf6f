package e2e

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/api"
	"millrace/internal/broker"
	"millrace/internal/cells"
	"millrace/internal/config"
	"millrace/internal/frame"
	"millrace/internal/testenv"
	"millrace/worker"
)

// cellSystem is databases, queues and a file of cells of a test's own.
type cellSystem struct {
	broker config.Broker
	names  []string
	urls   []config.PostgresURL
	dir    string
}

// newCellSystem returns cells of these names. Each queue takes so many bytes.
func newCellSystem(t *testing.T, queueBytes config.Bytes, names ...string) *cellSystem {
	b := testenv.Broker(t, 1)
	s := &cellSystem{broker: b, names: names, dir: t.TempDir()}
	s.broker.MaxBytes = queueBytes
	for _, name := range names {
		s.urls = append(s.urls, testenv.Database(t))
		topology := broker.NewTopology(broker.OfCell(s.broker, name))
		t.Cleanup(func() {
			ch := testenv.Channel(t, b)
			for _, q := range append(topology.WorkQueues(), topology.LastStream(), topology.Canary()) {
				if _, err := ch.QueueDelete(q, false, false, false); err != nil {
					t.Errorf("delete queue %s: %v", q, err)
				}
			}
			if err := ch.ExchangeDelete(topology.Exchange(), false, false); err != nil {
				t.Errorf("delete exchange: %v", err)
			}
		})
	}
	return s
}

// file writes a file of cells with these periods and returns its name.
func (s *cellSystem) file(t *testing.T, name string, periods ...string) string {
	t.Helper()
	text := ""
	for i, cell := range s.names {
		text += fmt.Sprintf("cell %s %s\n", cell, string(s.urls[i]))
	}
	name = filepath.Join(s.dir, name)
	if err := os.WriteFile(name, []byte(text+strings.Join(periods, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// api runs an API over the cells of a file until the test ends or stop is called.
func (s *cellSystem) api(t *testing.T, file string) (addr string, stop func()) {
	t.Helper()
	var c api.Config
	if err := config.LoadFrom(map[string]string{"RABBITMQ_URL": string(s.broker.URLs[0]), "API_ADDR": "127.0.0.1:0"}, &c); err != nil {
		t.Fatal(err)
	}
	c.Broker, c.Log, c.CellsFile = s.broker, slog.New(slog.DiscardHandler), file
	addr, stop = runHere(t, "api", func(ctx context.Context, onListen func(net.Addr)) error {
		c.OnListen = onListen
		return api.Run(ctx, c)
	})
	testenv.AwaitReady(t, addr)
	return addr, stop
}

// worker runs a worker over the cells of a file until the test ends or stop is called.
func (s *cellSystem) worker(t *testing.T, file string) (addr string, stop func()) {
	t.Helper()
	var c worker.Config
	settings := map[string]string{
		"RABBITMQ_URL": string(s.broker.URLs[0]), "WORKER_ADDR": "127.0.0.1:0", "PREFETCH": "5", "BATCH_BYTES": "64KiB", // so that little waits here, and the rest in the queue
	}
	if err := config.LoadFrom(settings, &c); err != nil {
		t.Fatal(err)
	}
	c.Broker, c.Log, c.CellsFile = s.broker, slog.New(slog.DiscardHandler), file
	return runHere(t, "worker", func(ctx context.Context, onListen func(net.Addr)) error {
		c.OnListen = onListen
		return worker.Run(ctx, c)
	})
}

// away takes a cell's database away, until back is called.
func (s *cellSystem) away(t *testing.T, cell int) (back func()) {
	t.Helper()
	admin := testenv.Connect(t, s.urls[(cell+1)%len(s.urls)])
	name := (must(pgx.ParseConfig(string(s.urls[cell])))).Database
	testenv.Exec(t, admin, "ALTER DATABASE "+name+" ALLOW_CONNECTIONS false")
	testenv.Exec(t, admin, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '"+name+"'")
	return func() {
		t.Helper()
		testenv.Exec(t, admin, "ALTER DATABASE "+name+" ALLOW_CONNECTIONS true")
	}
}

// compare waits until all cells together have as many rows as a client was acked, and as are in unkeyed, and compares them. Each row must be in the
// cell of its id.
func (s *cellSystem) compare(t *testing.T, file string, client *testenv.Acked, unkeyed map[string]bool) {
	t.Helper()
	m := must(cells.ReadFile(file))
	var conns []*pgx.Conn
	for _, url := range s.urls {
		conns = append(conns, testenv.Connect(t, url))
	}
	want := client.Records() + len(unkeyed)
	testenv.Eventually(t, time.Minute, fmt.Sprintf("the %d acked records are stored", want), func() bool {
		n := 0
		for _, conn := range conns {
			n += testenv.Count(t, conn, "SELECT count(*) FROM logs")
		}
		return n >= want
	})
	seen := make(map[string]int)
	var all []struct {
		id   uuid.UUID
		data string
	}
	for i, conn := range conns {
		rows, err := conn.Query(context.Background(),
			`SELECT id, coalesce('{"name":' || (data->'name')::text || ',"pad":' || (data->'pad')::text || '}', data::text), coalesce(data->>'unkeyed', '') FROM logs`)
		if err != nil {
			t.Fatal(err)
		}
		var id uuid.UUID
		var record, name string
		n := 0
		if _, err := pgx.ForEachRow(rows, []any{&id, &record, &name}, func() error {
			n++
			if of := m.Of(id); of != i {
				t.Errorf("record %s is in cell %s, and its id leads to %s", id, s.names[i], s.names[of])
			}
			if name != "" {
				seen[name]++
				return nil
			}
			all = append(all, struct {
				id   uuid.UUID
				data string
			}{id, record})
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		t.Logf("cell %s has %d records", s.names[i], n)
		if dead := testenv.Count(t, conn, "SELECT count(*) FROM dead_letters"); dead > 0 {
			t.Errorf("cell %s has %d dead letters", s.names[i], dead)
		}
	}
	for name := range unkeyed {
		if seen[name] != 1 {
			t.Errorf("record %s without a key was acked and is stored %d times", name, seen[name])
		}
	}
	client.Compare(t, func(yield func(uuid.UUID, string) bool) {
		for _, r := range all {
			if !yield(r.id, r.data) {
				return
			}
		}
	})
}

// unkeyed posts records without a key, one after the other, and notes those that were acked and how the others were answered.
type unkeyed struct {
	mu      sync.Mutex
	acked   map[string]bool
	refused int
	slowest time.Duration
}

// run posts until ctx is done.
func (u *unkeyed) run(ctx context.Context, t *testing.T, addr string) {
	for n := 0; ctx.Err() == nil; n++ {
		name := fmt.Sprintf("%s/%d", addr, n)
		begin := time.Now()
		res, err := http.Post("http://"+addr+"/log/batch", "application/json", bytes.NewReader(fmt.Appendf(nil, `{"unkeyed":%q,"pad":%q}`, name, strings.Repeat("x", 200))))
		if err != nil {
			t.Error(err)
			return
		}
		_ = res.Body.Close()
		u.mu.Lock()
		u.slowest = max(u.slowest, time.Since(begin))
		if res.StatusCode == http.StatusAccepted {
			u.acked[name] = true
		} else {
			u.refused++
		}
		u.mu.Unlock()
	}
}

// counts returns how many requests were acked and refused up to now.
func (u *unkeyed) counts() (acked, refused int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.acked), u.refused
}

// TestCellsStoreEachRecordOnce has three cells, of which one comes into use under load, and one loses its database until its queue is full, and gets it
// back. Meanwhile clients post under keys until they are acked, and without.
func TestCellsStoreEachRecordOnce(t *testing.T) {
	s := newCellSystem(t, 32<<10, "a", "b", "c")
	since := time.Now().Add(3 * time.Second).UTC()
	file := s.file(t, "cells", "since beginning a b", "since "+since.Format(time.RFC3339Nano)[:23]+"Z a b c")
	first, stopFirst := s.api(t, file)
	second, stopSecond := s.api(t, file)
	workerAddr, stopWorker := s.worker(t, file)
	testenv.AwaitReady(t, workerAddr)

	client := testenv.NewAcked("http://"+first, "http://"+second)
	ctx, stop := context.WithCancel(context.Background())
	posting := client.Run(ctx, t, 4)
	others := &unkeyed{acked: make(map[string]bool)}
	for _, addr := range []string{first, second} {
		posting.Go(func() { others.run(ctx, t, addr) })
	}
	defer posting.Wait()
	defer stop()

	began := time.Now()
	at := func(what string) { t.Logf("%.1f s: %s", time.Since(began).Seconds(), what) }
	time.Sleep(time.Until(since.Add(time.Second))) // the new period has begun
	if _, refused := others.counts(); refused > 0 {
		t.Errorf("%d requests were refused while all cells were up", refused)
	}
	at("the new period has begun")
	back := s.away(t, 1)
	testenv.Eventually(t, time.Minute, "cell b refuses keyed requests", func() bool { return client.Refused.Load() > 10 })
	at("the queue of b is full")
	time.Sleep(time.Second)
	before, refusedBefore := others.counts()
	time.Sleep(2 * time.Second)
	after, refusedAfter := others.counts()
	t.Logf("without b: %d requests without a key acked in 2 s, %d refused; %d refused before", after-before, refusedAfter-refusedBefore, refusedBefore)
	if after == before || refusedAfter > refusedBefore {
		t.Errorf("without b: %d acked, %d refused, want all acked", after-before, refusedAfter-refusedBefore)
	}
	if _, text := testenv.Readiness(first); !strings.Contains(text, `"status":"ready"`) || !strings.Contains(text, `"cell b"`) {
		t.Errorf("the API's /ready says %s", text)
	}
	if status, text := testenv.Readiness(workerAddr); status != http.StatusOK || !strings.Contains(text, `"cell b":"postgres: `) {
		t.Errorf("the worker's /ready says %d %s", status, text)
	}
	back()
	testenv.Eventually(t, time.Minute, "cell b works again", func() bool {
		_, text := testenv.Readiness(first)
		return !strings.Contains(text, "cell b")
	})
	at("b is back")
	stop()
	posting.Wait()
	at("all is sent")
	s.compare(t, file, client, others.acked)
	at("all is stored")
	stopFirst()
	stopSecond()
	at("the APIs have stopped")
	stopWorker()
	at("the worker has stopped")
}

// TestAWorkerHoldsWhatItsMapGivesToAnotherCell has an API that sends by one map, and a worker with an older one, until it gets the same.
func TestAWorkerHoldsWhatItsMapGivesToAnotherCell(t *testing.T) {
	s := newCellSystem(t, 1<<20, "a", "b")
	old, current := s.file(t, "old", "since beginning a"), s.file(t, "current", "since beginning a", "since 2026-01-01T00:00:00Z b")
	addr, _ := s.api(t, current)
	workerAddr, stopWorker := s.worker(t, old)
	testenv.AwaitReady(t, workerAddr)
	client := testenv.NewAcked("http://" + addr)
	client.Post(t, "one")
	testenv.Eventually(t, 20*time.Second, "the worker says what it holds", func() bool {
		_, text := testenv.Readiness(workerAddr)
		println(text)
		return strings.Contains(text, "came through the queues of cell b and belongs to cell a")
	})
	for i, url := range s.urls {
		if n := testenv.Count(t, testenv.Connect(t, url), "SELECT count(*) FROM logs"); n > 0 {
			t.Errorf("%d records are in cell %s", n, s.names[i])
		}
	}
	stopWorker()
	s.worker(t, current)
	s.compare(t, current, client, nil)
}

// TestMessagesWithoutACellAreSorted has frames and other programs' messages in the queue without a cell in its name: each of them twice, but for those
// that can't be told from others. They come before the worker, as after a time without cells.
func TestMessagesWithoutACellAreSorted(t *testing.T) {
	s := newCellSystem(t, 1<<20, "a", "b", "c")
	file := s.file(t, "cells", "since beginning a", "since 2026-01-01T00:00:00Z a b c")
	topology := broker.NewTopology(s.broker)
	ch := testenv.Channel(t, s.broker)
	if err := topology.Declare(ch); err != nil {
		t.Fatal(err)
	}
	send := func(exchange string, m amqp.Publishing) {
		t.Helper()
		m.DeliveryMode = amqp.Persistent
		if err := ch.Publish(exchange, topology.Queue(0), true, false, m); err != nil {
			t.Fatal(err)
		}
	}
	const frames, messages = 10, 30
	records := 0
	for range frames {
		var segments []frame.Segment
		body := ""
		for k := range 9 {
			segments = append(segments, frame.Segment{Base: frame.NewBase(), Records: 1 + k})
			body += strings.Repeat("{\"from\":\"frame\"}\n", 1+k)
			records += 1 + k
		}
		for range 2 {
			send(broker.DefaultExchange, amqp.Publishing{Type: frame.Type, ContentType: frame.ContentType, Headers: frame.Headers(segments), MessageId: segments[0].Base.String(), Body: []byte(body)})
		}
	}
	for i := range messages {
		key := frame.NewBase().String()
		for range 2 {
			send(topology.Exchange(), amqp.Publishing{MessageId: key, Body: fmt.Appendf(nil, `{"from":"message","n":%d}`, i)})
		}
		send(topology.Exchange(), amqp.Publishing{Body: []byte(`{"from":"nameless"}`)})
	}
	s.worker(t, file)
	m := must(cells.ReadFile(file))
	var conns []*pgx.Conn
	testenv.Eventually(t, time.Minute, "all is stored", func() bool {
		n := 0
		for i, url := range s.urls {
			if len(conns) == i {
				if conn, err := pgx.Connect(context.Background(), string(url)); err == nil {
					conns = append(conns, conn)
					t.Cleanup(func() { _ = conn.Close(context.Background()) })
				}
			}
			if len(conns) > i && testenv.Count(t, conns[i], "SELECT count(*) FROM pg_class WHERE relname = 'logs'") > 0 {
				n += testenv.Count(t, conns[i], "SELECT count(*) FROM logs")
			}
		}
		return n >= records+2*messages
	})
	counts := make(map[string]int)
	for i, conn := range conns {
		rows, err := conn.Query(context.Background(), "SELECT id, data->>'from' FROM logs")
		if err != nil {
			t.Fatal(err)
		}
		var id uuid.UUID
		var from string
		here := 0
		if _, err := pgx.ForEachRow(rows, []any{&id, &from}, func() error {
			counts[from]++
			here++
			if of := m.Of(id); of != i {
				t.Errorf("record %s is in cell %s, and its id leads to %s", id, s.names[i], s.names[of])
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if here == 0 {
			t.Errorf("cell %s has no record", s.names[i])
		}
	}
	if got, want := fmt.Sprint(counts), fmt.Sprint(map[string]int{"frame": records, "message": messages, "nameless": messages}); got != want {
		t.Errorf("stored are %s, want %s", got, want)
	}
}

// must returns v, and panics for an error.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
