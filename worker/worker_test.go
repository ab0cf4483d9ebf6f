package worker

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/config"
	"millrace/internal/frame"
	"millrace/internal/testenv"
)

func TestFramesAreStoredOnceAndAcknowledged(t *testing.T) {
	c := testConfig(t, 3) // more queues than streams
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	base := frame.NewBase()
	m := aFrame(base, 3)
	p.send(0, m)
	p.send(0, m) // the same frame again, in one batch with the first
	p.send(1, m) // and perhaps in another, at the same time
	two := frameOf(`{"a":1}`+"\n"+`{"b":2}`+"\n"+`{"c":"ü"}`+"\n",
		frame.Segment{Base: frame.NewBase(), Records: 1}, frame.Segment{Base: frame.NewBase(), Records: 2})
	p.send(2, two)
	w := start(t, c)
	want(t, db, 6, allLogs)
	testenv.Eventually(t, 5*time.Second, "queues are empty", func() bool { return p.waiting() == 0 })

	var data string
	var at time.Time
	err := db.QueryRow(context.Background(), "SELECT data, inserted_at FROM logs WHERE id = $1", frame.ID(base, 2)).Scan(&data, &at)
	if want := `{"seq": 2, "level": "info", "message": "the quick brown fox"}`; err != nil || data != want {
		t.Errorf("got %s, %v, want %s", data, err, want)
	}
	if !at.Equal(frame.Time(base)) {
		t.Errorf("inserted_at: got %v, want %v", at, frame.Time(base))
	}

	p.send(0, m) // and once more, in another batch
	testenv.Eventually(t, 5*time.Second, "the duplicate is counted", func() bool { return w.metric("millrace_worker_rows_duplicate_total") == 9 })
	if got := w.metric("millrace_worker_rows_stored_total"); got != 6 {
		t.Errorf("rows stored: got %v, want 6", got)
	}
	if got := w.metric("millrace_worker_lag_seconds_count"); got != 3 {
		t.Errorf("lags: got %v, want one a segment, 3", got)
	}
	if got := w.get("/ready"); !strings.Contains(got, `"ready"`) || w.metric("millrace_broker_connected") != 1 {
		t.Errorf("ready: got %s", got)
	}
	if err := w.stop(); err != nil {
		t.Error(err)
	}
	distinct(t, db, 6)
	if n := p.waiting(); n != 0 {
		t.Errorf("after the stop %d frames wait", n)
	}
}

func TestCompressedFramesAreStoredAsPlainOnes(t *testing.T) {
	c := testConfig(t, 1)
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	same := aFrame(frame.NewBase(), 3)
	p.send(0, same)
	p.send(0, compressed(t, "s2", same)) // sent again by an API with another setting: the ledger has its records
	p.send(0, compressed(t, "s2", aFrame(frame.NewBase(), 4)))
	p.send(0, compressed(t, "zstd", aFrame(frame.NewBase(), 5)))
	p.send(0, compressed(t, "brotli", aFrame(frame.NewBase(), 6)))
	lying := aFrame(frame.NewBase(), 7)
	lying.ContentEncoding = "s2"
	p.send(0, lying)
	start(t, c)
	want(t, db, 12, allLogs)
	distinct(t, db, 12)
	want(t, db, 2, "SELECT count(*) FROM dead_letters WHERE reason = 'undecodable'")
	want(t, db, 1, `SELECT count(*) FROM dead_letters WHERE error LIKE '%"brotli" is not known%' AND properties->>'content_encoding' = 'brotli'`)
}

func TestALoneRecordIsSoonThere(t *testing.T) {
	c := testConfig(t, 1)
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	start(t, c)
	p.send(0, aFrame(frame.NewBase(), 1)) // makes the partition
	want(t, db, 1, allLogs)
	began := time.Now()
	p.send(0, aFrame(frame.NewBase(), 1))
	want(t, db, 2, allLogs)
	t.Logf("visible after %v", time.Since(began)) // 100 ms on a machine that does nothing else
}

func TestAStopWaitsForTheTransactionUnderWay(t *testing.T) {
	c := testConfig(t, 1)
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	w := start(t, c)
	p.send(0, aFrame(frame.NewBase(), 1)) // makes the partitions
	want(t, db, 1, allLogs)
	exec(t, db, "BEGIN; LOCK TABLE ledger IN SHARE MODE")
	p.send(0, aFrame(frame.NewBase(), 7))
	testenv.Eventually(t, 5*time.Second, "the batch waits", func() bool {
		return count(t, db, "SELECT count(*) FROM pg_locks WHERE relation = 'ledger'::regclass AND NOT granted") > 0
	})
	stopped := make(chan error, 1)
	go func() { stopped <- w.stop() }()
	testenv.Eventually(t, 5*time.Second, "the stop is under way", func() bool { return strings.Contains(w.get("/ready"), "stopping") })
	exec(t, db, "COMMIT")
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	distinct(t, db, 8)
	if got := p.waiting(); got != 0 {
		t.Errorf("%d frames went back", got)
	}
}

func TestRestartsLoseAndDoubleNothing(t *testing.T) {
	c := testConfig(t, 2)
	c.BatchRows, c.BatchLinger = 100, 5*time.Millisecond
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	const frames, rows = 300, 20
	var published sync.WaitGroup
	published.Go(func() {
		for i := range frames {
			p.send(i%2, aFrame(frame.NewBase(), rows))
		}
	})
	for range 8 {
		w := start(t, c)
		before := count(t, db, allLogs)
		testenv.Eventually(t, 10*time.Second, "some are stored", func() bool {
			n := count(t, db, allLogs)
			return n > before || n == frames*rows
		})
		if err := w.stop(); err != nil {
			t.Error(err)
		}
	}
	published.Wait()
	w := start(t, c)
	want(t, db, frames*rows, allLogs)
	testenv.Eventually(t, 10*time.Second, "queues are empty", func() bool { return p.waiting() == 0 })
	if err := w.stop(); err != nil {
		t.Error(err)
	}
	distinct(t, db, frames*rows)
}

func TestDuplicatesInTwoWorkersAtOnceAreStoredOnce(t *testing.T) {
	c := testConfig(t, 2)
	c.BatchRows = 50
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	start(t, c)
	start(t, c)
	const frames, rows = 150, 10
	for range frames {
		m := aFrame(frame.NewBase(), rows)
		p.send(0, m)
		p.send(1, m)
	}
	want(t, db, frames*rows, allLogs)
	testenv.Eventually(t, 20*time.Second, "queues are empty", func() bool { return p.waiting() == 0 })
	distinct(t, db, frames*rows)
}

func TestBadRecordsAreSetAsideAndTheirNeighboursStored(t *testing.T) {
	c := testConfig(t, 1)
	c.Streams, c.BatchRows, c.BatchLinger = 1, 5000, 500*time.Millisecond
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	bases := make(map[int]string)
	for i := range 20 {
		base := frame.NewBase()
		m := aFrame(base, 250)
		lines := strings.SplitAfter(string(m.Body), "\n")
		switch i {
		case 7:
			lines[123] = `{"a":nonsense}` + "\n"
		case 13:
			lines[0], lines[249] = `{"nul":"\u0000"}`+"\n", "\n"
		}
		bases[i] = base.String()
		m.Body = []byte(strings.Join(lines, ""))
		p.send(0, m)
	}
	w := start(t, c)
	want(t, db, 4997, allLogs)
	distinct(t, db, 4997)
	want(t, db, 3, "SELECT count(*) FROM dead_letters WHERE reason = 'data' AND id = record_id AND error LIKE '%SQLSTATE 22P0%'")
	if got := count(t, db, `SELECT count(*) FROM dead_letters WHERE convert_from(payload, 'UTF8') = '{"a":nonsense}' AND record_id > $1`, bases[7]); got != 1 {
		t.Errorf("the payload of the bad record: got %d letters, want 1", got)
	}
	testenv.Eventually(t, 5*time.Second, "counted", func() bool {
		return w.metric(`millrace_worker_dead_letters_total{reason="data"}`) == 3 && w.metric("millrace_worker_rows_stored_total") == 4997
	})
	testenv.Eventually(t, 5*time.Second, "queue is empty", func() bool { return p.waiting() == 0 })
}

func TestMessagesThatAreNoFramesAreSetAside(t *testing.T) {
	c := testConfig(t, 1)
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	lying := aFrame(frame.NewBase(), 3)
	lying.Headers = frame.Headers([]frame.Segment{{Base: frame.NewBase(), Records: 2}})
	p.send(0, lying)
	p.send(0, lying) // the same letter
	headless := aFrame(frame.NewBase(), 1)
	headless.Headers = amqp.Table{"odd": "nul\x00", "list": []any{int32(1), []byte{0xff}}}
	p.send(0, headless)
	for _, segments := range []any{"text", int64(20), amqp.Table{"a": int32(1)}, []any{}, nil, []byte{}, make([]byte, 19), make([]byte, 20), "text"} {
		odd := aFrame(frame.NewBase(), 1)
		for name := range odd.Headers {
			odd.Headers[name] = segments
		}
		p.send(0, odd)
	}
	p.send(0, amqp.Publishing{Type: "millrace.frame.v9", Body: []byte{0, 1, 2}})
	p.send(0, aFrame(frame.NewBase(), 5))
	p.sendTo("", p.topology.DeadQueue(), amqp.Publishing{Type: frame.Type, Body: []byte("kills its reader")})
	start(t, c)
	want(t, db, 5, allLogs)
	for reason, n := range map[string]int{reasonUndecodable: 11, reasonUnknownType: 1, reasonDeliveryLimit: 1} {
		want(t, db, n, "SELECT count(*) FROM dead_letters WHERE reason = $1 AND record_id IS NULL", reason)
	}
	want(t, db, 1, `SELECT count(*) FROM dead_letters WHERE properties @> '{"type":"millrace.frame.v1","headers":{"list":[1,{"base64":"/w=="}]}}'`)
	want(t, db, 1, `SELECT count(*) FROM dead_letters WHERE queue = $1 AND payload = 'kills its reader'`, p.topology.DeadQueue())
	testenv.Eventually(t, 5*time.Second, "queue is empty", func() bool { return p.waiting() == 0 })
}

func TestForeignMessagesAreStored(t *testing.T) {
	c := testConfig(t, 1)
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	key := frame.NewBase()
	keyed := amqp.Publishing{MessageId: key.String(), Body: []byte(`[{"n":0},{"n":1}]`)}
	p.send(0, keyed)
	p.send(0, keyed)
	p.sendTo(p.topology.Exchange(), p.topology.Queue(0), amqp.Publishing{Type: "order.created", Body: []byte(`{"n": 2}`)})
	p.send(0, amqp.Publishing{MessageId: "not a uuid", Body: []byte(`{"n": 3}`)})
	stale := frame.BaseAt(time.Now().Add(-30 * 24 * time.Hour))
	p.send(0, amqp.Publishing{MessageId: stale.String(), Body: []byte(`{"n": 4}`)})
	p.send(0, amqp.Publishing{MessageId: frame.NewBase().String(), Body: []byte("{\"n\":5}\n{\"bad\":\"\\u0000\"}\n{\"n\":6}\n{broken\n")})
	p.send(0, amqp.Publishing{Body: []byte("no JSON at all")})
	start(t, c)
	want(t, db, 7, allLogs)
	want(t, db, 1, "SELECT count(*) FROM logs WHERE id = $1 AND data = '{\"n\": 1}'", frame.ID(frame.BaseOfKey(key), 1))
	want(t, db, 0, "SELECT count(*) FROM logs WHERE id = ANY($1)", []uuid.UUID{stale, frame.BaseOfKey(stale)})
	want(t, db, 1, "SELECT count(*) FROM dead_letters WHERE reason = 'nul' AND record_id IS NOT NULL AND payload = $1", []byte(`{"bad":"\u0000"}`))
	want(t, db, 1, "SELECT count(*) FROM dead_letters WHERE reason = 'syntax' AND payload = '{broken'")
	want(t, db, 1, "SELECT count(*) FROM dead_letters WHERE reason = 'syntax' AND payload = 'no JSON at all'")
	testenv.Eventually(t, 5*time.Second, "queue is empty", func() bool { return p.waiting() == 0 })
}

func TestAKeyUsedForOtherRecordsIsToldFromARetry(t *testing.T) {
	c := testConfig(t, 1)
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	base := frame.NewBase()
	first := frameOf(`{"n":1}`+"\n", frame.Segment{Base: base, Records: 1})
	other := frameOf(`{"n":2}`+"\n", frame.Segment{Base: base, Records: 1})
	p.send(0, first)
	start(t, c)
	want(t, db, 1, allLogs)
	p.send(0, first)
	p.send(0, other)
	p.send(0, other)
	want(t, db, 1, "SELECT count(*) FROM dead_letters WHERE reason = 'key_reused' AND payload = $1", other.Body)
	testenv.Eventually(t, 5*time.Second, "queue is empty", func() bool { return p.waiting() == 0 })
	want(t, db, 1, "SELECT count(*) FROM dead_letters")
	distinct(t, db, 1)

	done, err := ReplayDead(context.Background(), db, nil)
	if err != nil || len(done) != 1 || done[0].Err == nil {
		t.Errorf("replay: got %+v, %v, want it refused", done, err)
	}
	want(t, db, 1, "SELECT count(*) FROM dead_letters")
}

// TestOldSegmentsAreFoundWithoutTheLedger: the acknowledgement was lost, and the worker was away for so long that
// the ledger has forgotten.
func TestOldSegmentsAreFoundWithoutTheLedger(t *testing.T) {
	c := testConfig(t, 1)
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	m := aFrame(frame.BaseAt(time.Now().Add(-20*24*time.Hour)), 5)
	p.send(0, m)
	w := start(t, c)
	want(t, db, 5, allLogs)
	exec(t, db, "DELETE FROM ledger")
	p.send(0, m)
	testenv.Eventually(t, 5*time.Second, "found", func() bool { return w.metric("millrace_worker_rows_duplicate_total") == 5 })
	distinct(t, db, 5)

	// The first record had been set aside, and dropped since: the others show it all the same.
	exec(t, db, "DELETE FROM ledger")
	exec(t, db, "DELETE FROM logs WHERE id = (SELECT id FROM logs ORDER BY id LIMIT 1)")
	p.send(0, m)
	testenv.Eventually(t, 5*time.Second, "found", func() bool { return w.metric("millrace_worker_rows_duplicate_total") == 10 })
	distinct(t, db, 4)
}

func TestLateRowsAreNoted(t *testing.T) {
	c := testConfig(t, 1)
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	hour := time.Now().Add(-3 * time.Hour).UTC().Truncate(time.Hour)
	p.send(0, frameOf(`{}`+"\n"+`{}`+"\n"+`{}`+"\n"+`{}`+"\n",
		frame.Segment{Base: frame.BaseAt(hour), Records: 1}, frame.Segment{Base: frame.BaseAt(hour.Add(time.Minute)), Records: 1},
		frame.Segment{Base: frame.BaseAt(hour.Add(time.Hour)), Records: 1}, frame.Segment{Base: frame.NewBase(), Records: 1}))
	start(t, c)
	want(t, db, 4, allLogs)
	want(t, db, 2, "SELECT count(*) FROM late_changes")
	want(t, db, 1, "SELECT count(*) FROM late_changes WHERE hour = $1", hour)
}

// TestTerminatedBackendsLoseAndDoubleNothing ends the worker's sessions again and again while frames flow.
func TestTerminatedBackendsLoseAndDoubleNothing(t *testing.T) {
	c := testConfig(t, 2)
	c.BatchRows = 200
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	w := start(t, c)
	const frames, rows = 400, 25
	var published sync.WaitGroup
	published.Go(func() {
		for i := range frames {
			p.send(i%2, aFrame(frame.NewBase(), rows))
		}
	})
	for range 15 {
		exec(t, db, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
		time.Sleep(50 * time.Millisecond) // lets some batches through between two cuts
	}
	published.Wait()
	want(t, db, frames*rows, allLogs)
	testenv.Eventually(t, 10*time.Second, "queues are empty", func() bool { return p.waiting() == 0 })
	if err := w.stop(); err != nil {
		t.Error(err)
	}
	distinct(t, db, frames*rows)
}

// proxy forwards TCP connections to a server. It can cut them, and lose a database's answers to commits.
type proxy struct {
	ln    net.Listener
	to    string
	lose  atomic.Int64 // so many commits' answers are lost, with the connection
	lost  atomic.Int64
	conns sync.WaitGroup

	mu   sync.Mutex
	open []net.Conn
}

// cut breaks all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.open {
		c.Close()
	}
	p.open = nil
}

// newProxy returns a proxy and the URL that leads to the server through it.
func newProxy(t *testing.T, server string) (*proxy, string) {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{ln: ln, to: u.Host}
	p.conns.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			p.conns.Go(func() { p.forward(client) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		p.cut()
		p.conns.Wait()
	})
	u.Host = ln.Addr().String()
	return p, u.String()
}

func (p *proxy) forward(client net.Conn) {
	defer client.Close()
	p.mu.Lock()
	p.open = append(p.open, client)
	p.mu.Unlock()
	server, err := net.Dial("tcp", p.to)
	if err != nil {
		return
	}
	defer server.Close()
	var answers sync.WaitGroup
	answers.Go(func() {
		defer client.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := server.Read(buf)
			if n > 0 {
				// CommandComplete of a COMMIT: it is on disk, and nobody will know.
				if strings.Contains(string(buf[:n]), "COMMIT\x00") && p.lose.Add(-1) >= 0 {
					p.lost.Add(1)
					server.Close()
					return
				}
				if _, err := client.Write(buf[:n]); err != nil {
					server.Close()
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
	_, _ = io.Copy(server, client)
	server.Close()
	answers.Wait()
}

func TestACommitWhoseAnswerIsLostStoresOnce(t *testing.T) {
	c := testConfig(t, 1)
	direct := c.Postgres
	cutter, through := newProxy(t, string(c.Postgres))
	c.Postgres = config.PostgresURL(through)
	c.BatchRows = 20
	p, db := newPublisher(t, c), testenv.Connect(t, direct)
	w := start(t, c)
	p.send(0, aFrame(frame.NewBase(), 10))
	want(t, db, 10, allLogs)
	cutter.lose.Store(5)
	const frames = 50
	for range frames {
		p.send(0, aFrame(frame.NewBase(), 10))
	}
	want(t, db, 10+frames*10, allLogs)
	testenv.Eventually(t, 10*time.Second, "queue is empty", func() bool { return p.waiting() == 0 })
	if err := w.stop(); err != nil {
		t.Error(err)
	}
	if got := cutter.lost.Load(); got != 5 {
		t.Errorf("answers lost: got %d, want 5", got)
	}
	distinct(t, db, 10+frames*10)
}

func TestCutBrokerConnectionsLoseAndDoubleNothing(t *testing.T) {
	c := testConfig(t, 2)
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	cutter, through := newProxy(t, string(c.URLs[0]))
	c.URLs, c.BatchRows = config.Brokers(through), 100
	w := start(t, c)
	const frames, rows = 300, 20
	var published sync.WaitGroup
	published.Go(func() {
		for i := range frames {
			p.send(i%2, aFrame(frame.NewBase(), rows))
		}
	})
	for range 10 {
		time.Sleep(50 * time.Millisecond) // lets some batches through between two cuts
		cutter.cut()
	}
	published.Wait()
	want(t, db, frames*rows, allLogs)
	testenv.Eventually(t, 10*time.Second, "queues are empty", func() bool { return p.waiting() == 0 })
	t.Logf("redelivered: %v", w.metric("millrace_worker_redelivered_total"))
	if err := w.stop(); err != nil {
		t.Error(err)
	}
	distinct(t, db, frames*rows)
}

// TestAnOutageHoldsTheFrames: while the database is away nothing is given back or lost, readiness says so, and a
// stop does not wait for it.
func TestAnOutageHoldsTheFrames(t *testing.T) {
	c := testConfig(t, 1)
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	w := start(t, c)
	p.send(0, aFrame(frame.NewBase(), 1))
	want(t, db, 1, allLogs)
	exec(t, db, "ALTER TABLE ledger RENAME TO elsewhere")
	p.send(0, aFrame(frame.NewBase(), 1))
	testenv.Eventually(t, 10*time.Second, "not ready", func() bool { return strings.Contains(w.get("/ready"), "postgres") })
	if w.metric("millrace_worker_retries_total") == 0 {
		t.Error("no retry was counted")
	}
	exec(t, db, "ALTER TABLE elsewhere RENAME TO ledger")
	want(t, db, 2, allLogs)
	testenv.Eventually(t, 10*time.Second, "ready", func() bool { return strings.Contains(w.get("/ready"), `"ready"`) })
	if got := w.metric("millrace_worker_redelivered_total"); got != 0 {
		t.Errorf("redelivered: got %v, want 0", got)
	}

	exec(t, db, "ALTER TABLE ledger RENAME TO elsewhere")
	p.send(0, aFrame(frame.NewBase(), 1))
	testenv.Eventually(t, 10*time.Second, "not ready", func() bool { return strings.Contains(w.get("/ready"), "postgres") })
	if err := w.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	testenv.Eventually(t, 5*time.Second, "the frame is back", func() bool { return p.waiting() == 1 })
}

// TestFramesHeldForTooLongGoBackOnce: not again and again, while the database answers and can't store.
func TestFramesHeldForTooLongGoBackOnce(t *testing.T) {
	c := testConfig(t, 1)
	c.Streams, c.maxHold = 1, 200*time.Millisecond
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	exec(t, db, "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no room' USING ERRCODE = '53100'; END $$")
	exec(t, db, "CREATE TRIGGER fail BEFORE INSERT ON ledger FOR EACH STATEMENT EXECUTE FUNCTION fail()")
	w := start(t, c)
	p.send(0, aFrame(frame.NewBase(), 3))
	testenv.Eventually(t, 20*time.Second, "the frame is back", func() bool {
		return w.metric("millrace_worker_retries_total") > 0 && p.waiting() == 1
	})
	retries := w.metric("millrace_worker_retries_total")
	time.Sleep(time.Second) // in which it would be consumed and given back several times
	if p.waiting() != 1 || w.metric("millrace_worker_retries_total") != retries {
		t.Error("the frame was consumed again")
	}
	exec(t, db, "DROP TRIGGER fail ON ledger")
	want(t, db, 3, allLogs)
	testenv.Eventually(t, 20*time.Second, "queue is empty", func() bool {
		return p.waiting() == 0 && w.metric("millrace_worker_rows_duplicate_total") == 3
	})
	if got := w.metric("millrace_worker_redelivered_total"); got != 1 {
		t.Errorf("redelivered: got %v, want 1", got)
	}
	distinct(t, db, 3)
}

func TestALostBrokerConnectionIsMadeAgain(t *testing.T) {
	c := testConfig(t, 1)
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	w := start(t, c)
	p.send(0, aFrame(frame.NewBase(), 1))
	want(t, db, 1, allLogs)
	// Deleting the queue ends its consumers; the streams declare it again.
	if _, err := p.ch.QueueDelete(p.topology.Queue(0), false, false, false); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 10*time.Second, "connected again", func() bool {
		ch := testenv.Channel(t, c.Broker)
		q, err := ch.QueueDeclarePassive(p.topology.Queue(0), true, false, false, false, nil)
		return err == nil && q.Consumers == c.Streams && w.metric("millrace_broker_connected") == 1
	})
	p.send(0, aFrame(frame.NewBase(), 1))
	want(t, db, 2, allLogs)
}

func TestTheStartWaitsForServersAndRefusesWhatWaitingDoesNotCure(t *testing.T) {
	c := testConfig(t, 1)
	c.PartitionInterval = time.Minute
	if err := Run(context.Background(), c); err == nil || err.Error() != `PARTITION_INTERVAL: got "1m0s", takes 1h, 24h` {
		t.Errorf("got %v", err)
	}
	c.PartitionInterval = time.Hour

	older := c
	older.Postgres, older.AutoMigrate = testenv.Database(t), false
	if err := Run(context.Background(), older); err == nil || !strings.Contains(err.Error(), "migrate up") {
		t.Errorf("schema missing: got %v", err)
	}
	c.Postgres = "postgres://nobody@127.0.0.1:1/nowhere"
	w := start(t, c)
	if got := w.get("/ready"); !strings.Contains(got, "postgres") {
		t.Errorf("ready: got %s", got)
	}
	if err := w.stop(); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("stop: %v", err)
	}
}

// TestATriggersRefusalSetsTheRecordAside: a refusal outside the classes of data errors is a record's when an empty
// record is taken.
func TestATriggersRefusalSetsTheRecordAside(t *testing.T) {
	c := testConfig(t, 1)
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	exec(t, db, `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		IF NEW.data ? 'boom' THEN RAISE EXCEPTION 'boom'; END IF; RETURN NEW; END $$`)
	exec(t, db, "CREATE TRIGGER refuse BEFORE INSERT ON logs FOR EACH ROW EXECUTE FUNCTION refuse()")
	start(t, c)
	p.send(0, frameOf("{\"a\":1}\n{\"boom\":1}\n{\"a\":2}\n", frame.Segment{Base: frame.NewBase(), Records: 3}))
	p.send(0, frameOf("{\"boom\":2}\n", frame.Segment{Base: frame.NewBase(), Records: 1}))
	want(t, db, 2, allLogs)
	want(t, db, 2, "SELECT count(*) FROM dead_letters WHERE reason = 'data' AND error LIKE '%boom%P0001%'")
}

// TestATableThatRefusesEverythingHoldsTheFrames: the queue must not be emptied into dead_letters.
func TestATableThatRefusesEverythingHoldsTheFrames(t *testing.T) {
	c := testConfig(t, 1)
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	exec(t, db, "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'maintenance'; END $$")
	exec(t, db, "CREATE TRIGGER refuse BEFORE INSERT ON logs FOR EACH ROW EXECUTE FUNCTION refuse()")
	w := start(t, c)
	p.send(0, frameOf("{\"a\":1}\n{\"a\":2}\n", frame.Segment{Base: frame.NewBase(), Records: 2}))
	testenv.Eventually(t, 20*time.Second, "it is tried again", func() bool { return w.metric("millrace_worker_retries_total") >= 2 })
	if got := count(t, db, "SELECT count(*) FROM dead_letters"); got != 0 {
		t.Errorf("%d dead letters, want none", got)
	}
	exec(t, db, "DROP TRIGGER refuse ON logs")
	want(t, db, 2, allLogs)
}

// TestAMessageNoReaderSurvivesCostsNoOther: the client library ends the connection over a header nested deeper than
// 32. Such a message is parked in the end, and its neighbours are stored.
func TestAMessageNoReaderSurvivesCostsNoOther(t *testing.T) {
	c := testConfig(t, 1)
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	const around = 30
	for range around {
		p.send(0, aFrame(frame.NewBase(), 1))
	}
	nested := amqp.Table{"x": int32(1)}
	for range 40 {
		nested = amqp.Table{"t": nested}
	}
	p.send(0, amqp.Publishing{Headers: nested, Body: []byte("{}")})
	for range around {
		p.send(0, aFrame(frame.NewBase(), 1))
	}
	w := start(t, c)
	testenv.Eventually(t, 2*time.Minute, "the neighbours are stored", func() bool { return count(t, db, allLogs) == 2*around })
	testenv.Eventually(t, time.Minute, "the message is parked", func() bool {
		ch := testenv.Channel(t, c.Broker)
		q, err := ch.QueueDeclarePassive(p.topology.ParkedQueue(), true, false, false, false, nil)
		return err == nil && q.Messages == 1
	})
	testenv.Eventually(t, time.Minute, "the parked message is counted", func() bool { return w.metric("millrace_worker_parked_messages") == 1 })
	distinct(t, db, 2*around)
}
