package worker

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/broker"
	"millrace/internal/frame"
	"millrace/internal/testenv"
	"millrace/worker/partition"
)

func TestADeadRecordIsReplayedOnce(t *testing.T) {
	url := testenv.Schema(t)
	db := workerConn(t, url)
	ctx := context.Background()
	exec(t, db, "ALTER TABLE logs ADD CONSTRAINT no_b CHECK (NOT data ? 'b')")
	base := frame.BaseAt(time.Now().Add(-48 * time.Hour))
	out, err := store(ctx, db, partition.New(24*time.Hour), testRule, []segment{segmentOf(base, `{"a":1}`, `{"b":2}`, `[1]`, `{"b":nonsense}`)}, nil, nil)
	if err != nil || out.rows != 2 || out.dead[reasonData] != 2 {
		t.Fatalf("got %+v, %v", out, err)
	}
	exec(t, db, "DELETE FROM late_changes")

	list, err := ListDead(ctx, db, 10)
	if err != nil || len(list) != 2 || list[0].Payload != nil || list[0].Bytes == 0 || list[0].Reason != reasonData || list[0].Queue != "logs.0" {
		t.Fatalf("list: got %+v, %v", list, err)
	}
	good, bad := frame.ID(base, 1), frame.ID(base, 3)
	shown, err := ShowDead(ctx, db, good)
	if err != nil || string(shown.Payload) != `{"b":2}` || !strings.Contains(shown.Error, "no_b") {
		t.Fatalf("show: got %+v, %v", shown, err)
	}
	done, err := ReplayDead(ctx, db, []uuid.UUID{good})
	if err != nil || done[0].Err == nil || !strings.Contains(done[0].Err.Error(), "no_b") {
		t.Fatalf("replay against the constraint: got %+v, %v", done, err)
	}

	exec(t, db, "ALTER TABLE logs DROP CONSTRAINT no_b")
	var stored atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		conn := testenv.Connect(t, url)
		wg.Go(func() {
			done, err := ReplayDead(ctx, conn, nil)
			if err != nil {
				t.Error(err)
			}
			for _, r := range done {
				stored.Add(int64(r.Rows))
				if r.ID == bad && r.Err == nil {
					t.Error("what is no JSON was replayed")
				}
			}
		})
	}
	wg.Wait()
	if stored.Load() != 1 || count(t, db, "SELECT count(*) FROM logs WHERE id = $1 AND inserted_at = $2", good, frame.Time(good)) != 1 {
		t.Errorf("the record was stored %d times", stored.Load())
	}
	if got := count(t, db, "SELECT count(*) FROM late_changes"); got != 1 {
		t.Errorf("late changes: got %d, want 1", got)
	}
	if n, err := DropDead(ctx, db, []uuid.UUID{good}); n != 0 || err != nil {
		t.Errorf("drop of what is gone: got %d, %v", n, err)
	}
	if n, err := DropDead(ctx, db, nil); n != 1 || err != nil {
		t.Errorf("drop all: got %d, %v", n, err)
	}
	if _, err := ShowDead(ctx, db, bad); err == nil {
		t.Error("a dropped letter is shown")
	}
}

func TestADeadMessageIsReplayedThroughTheLedger(t *testing.T) {
	c := testConfig(t, 1)
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	ctx := context.Background()
	m := aFrame(frame.NewBase(), 5)
	p.sendTo("", p.topology.DeadQueue(), m)
	foreign := m
	foreign.Type, foreign.Headers, foreign.MessageId, foreign.Body = "", nil, frame.NewBase().String(), []byte(`[{"f":1}]`)
	p.sendTo("", p.topology.DeadQueue(), foreign)
	broken := aFrame(frame.NewBase(), 2)
	broken.Body = broken.Body[1 : len(broken.Body)-1]
	p.sendTo("", p.topology.DeadQueue(), broken)
	start(t, c)
	want(t, db, 3, "SELECT count(*) FROM dead_letters WHERE reason = 'delivery_limit'")
	p.send(0, m) // the frame was stored all the same: its reader died after the commit
	want(t, db, 5, allLogs)

	done, err := ReplayDead(ctx, db, nil)
	if err != nil || len(done) != 3 {
		t.Fatalf("got %+v, %v", done, err)
	}
	rows, failed := 0, 0
	for _, r := range done {
		rows += r.Rows
		if r.Err != nil {
			failed++
		}
	}
	if rows != 1 || failed != 1 {
		t.Errorf("got %d rows and %d failures, want the foreign record and the broken frame: %+v", rows, failed, done)
	}
	distinct(t, db, 6)
	want(t, db, 1, "SELECT count(*) FROM dead_letters")
}

// TestAMessageWithoutRecordsIsAcknowledgedAndLeavesNothing: it is what an API sends to see whether RabbitMQ confirms.
func TestAMessageWithoutRecordsIsAcknowledgedAndLeavesNothing(t *testing.T) {
	c := testConfig(t, 1)
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	p.sendTo(broker.DefaultExchange, p.topology.Queue(0), amqp.Publishing{ContentType: "application/json", DeliveryMode: amqp.Persistent, Body: []byte("[]")})
	p.send(0, aFrame(frame.NewBase(), 5))
	w := start(t, c)
	want(t, db, 5, allLogs)
	if err := w.stop(); err != nil {
		t.Error(err)
	}
	if n := p.waiting(); n != 0 {
		t.Errorf("%d messages came back when the worker stopped, want 0", n)
	}
	want(t, db, 0, "SELECT count(*) FROM dead_letters")
}

// TestAFrameThatRabbitMQGaveUpIsReplayedOnce: its readers have died over it, or so it seems, and four people replay
// it at once.
func TestAFrameThatRabbitMQGaveUpIsReplayedOnce(t *testing.T) {
	c := testConfig(t, 1)
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	m := compressed(t, "zstd", aFrame(frame.NewBase(), 5)) // it is kept as it came
	p.send(0, m)
	testenv.Eventually(t, 20*time.Second, "RabbitMQ has set it aside", func() bool {
		d, ok, err := p.ch.Get(p.topology.Queue(0), false)
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			if err := d.Reject(true); err != nil { // since RabbitMQ 4.3 a nack is no failed delivery
				t.Fatal(err)
			}
			return false
		}
		q, err := p.ch.QueueDeclarePassive(p.topology.DeadQueue(), true, false, false, false, nil)
		return err == nil && q.Messages == 1
	})
	w := start(t, c)
	want(t, db, 1, "SELECT count(*) FROM dead_letters WHERE reason = 'delivery_limit' AND error LIKE '%delivery_limit%' AND queue = $1", p.topology.Queue(0))
	if err := w.stop(); err != nil {
		t.Error(err)
	}
	var rows atomic.Int64
	var replays sync.WaitGroup
	for range 4 {
		conn := testenv.Connect(t, c.Postgres)
		replays.Go(func() {
			done, err := ReplayDead(context.Background(), conn, nil)
			if err != nil {
				t.Error(err)
			}
			for _, r := range done {
				rows.Add(int64(r.Rows))
			}
		})
	}
	replays.Wait()
	if rows.Load() != 5 {
		t.Errorf("%d rows were stored, want 5", rows.Load())
	}
	distinct(t, db, 5)
	want(t, db, 0, "SELECT count(*) FROM dead_letters")
}
