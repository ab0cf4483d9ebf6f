package worker

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/broker"
	"millrace/internal/config"
	"millrace/internal/frame"
	"millrace/internal/localstack"
	"millrace/internal/testenv"
)

// aServer returns a configuration with a RabbitMQ of the test's own, whose policies it may change, and a function that
// runs rabbitmqctl there. The queues are declared.
func aServer(t *testing.T, stack *localstack.Stack) (c Config, ctl func(args ...string)) {
	t.Helper()
	c = testConfig(t, 1)
	c.URLs = config.Brokers(stack.RabbitMQURL)
	ensure(t, c)
	return c, func(args ...string) {
		t.Helper()
		if err := stack.RabbitMQCtl(t.Context(), args...); err != nil {
			t.Fatal(err)
		}
	}
}

func ensure(t *testing.T, c Config) {
	t.Helper()
	conn, err := broker.Dial(t.Context(), c.URLs, t.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.End(time.Second)
	if err := broker.NewTopology(c.Broker).Ensure(conn.Connection); err != nil {
		t.Fatal(err)
	}
}

// TestNoPolicyLosesWhatWaits: no worker runs, and a policy lets records expire, or cuts the queues. They become dead
// letters that say so, and their replay stores the rows.
func TestNoPolicyLosesWhatWaits(t *testing.T) {
	stack := testenv.Private(t, localstack.Need{RabbitMQ: true})
	for _, tt := range []struct {
		reason, definition string
		kept               []int // messages in logs.0, the dead queue, the parked queue and the stream in the end
	}{
		{"expired", `{"message-ttl":500}`, []int{0, 0, 0, 3}},
		{"maxlen", `{"max-length":1,"overflow":"drop-head"}`, []int{1, 1, 1, 0}},
	} {
		for _, kind := range []string{"policy", "operator_policy"} {
			t.Run(tt.reason+"/"+kind, func(t *testing.T) {
				c, ctl := aServer(t, stack)
				p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
				definition := tt.definition
				if kind == "operator_policy" && tt.reason == "maxlen" {
					// An operator policy takes no overflow; a regular one may bring it.
					ctl("set_policy", "o", "^"+c.Name, `{"overflow":"drop-head"}`)
					definition = `{"max-length":1}`
				}
				ctl("set_"+kind, "p", "^"+c.Name, definition, "--apply-to", "queues")
				for range 3 {
					p.send(0, aFrame(frame.NewBase(), 2))
				}
				testenv.Eventually(t, time.Minute, "RabbitMQ has done with them what the policy says", func() bool {
					for i, queue := range append(p.topology.WorkQueues(), p.topology.LastStream()) {
						q, err := p.ch.QueueDeclarePassive(queue, true, false, false, false, nil)
						if err != nil {
							t.Fatal(err)
						}
						if q.Messages != tt.kept[i] {
							return false
						}
					}
					return true
				})
				w := start(t, c)
				testenv.Eventually(t, time.Minute, "rows and dead letters have all three frames", func() bool {
					return count(t, db, allLogs)/2+count(t, db, "SELECT count(*) FROM dead_letters") == 3
				})
				want(t, db, 3-tt.kept[0], "SELECT count(*) FROM dead_letters WHERE reason = $1 AND queue = $2", tt.reason, p.topology.Queue(0))
				if got := w.metric(`millrace_worker_dead_letters_total{reason="` + tt.reason + `"}`); got != float64(3-tt.kept[0]) {
					t.Errorf("%v dead letters are counted, want %d", got, 3-tt.kept[0])
				}
				ctl("clear_"+kind, "p")
				if _, err := ReplayDead(t.Context(), db, nil); err != nil {
					t.Fatal(err)
				}
				distinct(t, db, 6)
				if err := w.stop(); err != nil {
					t.Error(err)
				}

				// Another worker does not read again what the stream still has.
				start(t, c)
				reader := readerFor(t, c)
				at, err := reader.place(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if at.next != int64(tt.kept[3]) {
					t.Errorf("the stream was read up to %d, want %d", at.next, tt.kept[3])
				}
				p.sendTo("", p.topology.LastStream(), amqp.Publishing{DeliveryMode: amqp.Persistent, Type: frame.Type, Body: []byte("another")})
				want(t, db, 1, "SELECT count(*) FROM dead_letters")
				want(t, db, 1, "SELECT count(*) FROM dead_letters WHERE payload = 'another'")
			})
		}
	}
}

// readerFor returns a reader that does not run.
func readerFor(t *testing.T, c Config) *parkedReader {
	var closing sync.WaitGroup
	r := &parkedReader{urls: c.URLs, topology: broker.NewTopology(c.Broker), link: newLink(c.Postgres, &closing), log: c.Log}
	t.Cleanup(func() { r.link.Drop(); closing.Wait() })
	return r
}

func TestAStreamThatWasDeletedIsReadFromItsStart(t *testing.T) {
	c := testConfig(t, 1)
	ensure(t, c)
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	send := func(body string) {
		p.sendTo("", p.topology.LastStream(), amqp.Publishing{DeliveryMode: amqp.Persistent, Type: frame.Type, Body: []byte(body)})
	}
	for _, body := range []string{"one", "two", "three"} {
		send(body)
	}
	w := start(t, c)
	want(t, db, 3, "SELECT count(*) FROM dead_letters")
	if err := w.stop(); err != nil {
		t.Error(err)
	}
	if _, err := p.ch.QueueDelete(p.topology.LastStream(), false, false, false); err != nil {
		t.Fatal(err)
	}
	ensure(t, c)
	send("four")
	start(t, c)
	want(t, db, 1, "SELECT count(*) FROM dead_letters WHERE payload = 'four'")
}

// TestTheFirstMessageOfAnotherStreamIsNotPassedOver: the stream that was deleted is empty when the reader looks for it.
// RabbitMQ gives a reader nothing from before the place that it asks for.
func TestTheFirstMessageOfAnotherStreamIsNotPassedOver(t *testing.T) {
	c := testConfig(t, 1)
	ensure(t, c)
	p, r := newPublisher(t, c), readerFor(t, c)
	conn, err := broker.Dial(t.Context(), c.URLs, t.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.End(time.Second)
	at := place{first: uuid.NullUUID{UUID: uuid.New(), Valid: true}, next: 3}
	from, err := r.sameStream(t.Context(), conn, at)
	if err != nil {
		t.Fatal(err)
	}
	_, deliveries, _, err := r.consumeStream(conn, from)
	if err != nil {
		t.Fatal(err)
	}
	p.sendTo("", p.topology.LastStream(), amqp.Publishing{DeliveryMode: amqp.Persistent, Type: frame.Type, Body: []byte("one")})
	select {
	case d := <-deliveries:
		if _, err := r.storeStream(t.Context(), at, []amqp.Delivery{d}); !errors.Is(err, errAnew) {
			t.Errorf("got %v, want that the session begins anew", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the message does not come")
	}
	if _, err := r.sameStream(t.Context(), conn, at); !errors.Is(err, errAnew) {
		t.Errorf("got %v, want that the stream is seen to be another", err)
	}
}

func TestAMessageOfTheStreamThatNoReaderSurvivesIsSteppedOver(t *testing.T) {
	c := testConfig(t, 1)
	ensure(t, c)
	r := readerFor(t, c)
	if _, err := r.place(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range parkedDeaths - 1 {
		if err := r.countDeath(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	}
	if at, err := r.place(t.Context()); err != nil || at.next != 0 {
		t.Errorf("got %+v, %v; want the place to stay", at, err)
	}
	if err := r.countDeath(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if at, err := r.place(t.Context()); err != nil || at.next != 1 || at.skipped != 1 {
		t.Errorf("got %+v, %v; want one message skipped", at, err)
	}
	w := start(t, c)
	testenv.Eventually(t, time.Minute, "the message is counted", func() bool { return w.metric("millrace_worker_parked_messages") == 1 })
}

// TestTheParkedQueueOfAnEarlierVersionIsReplacedOnceItIsEmpty: a queue's arguments can't be changed.
func TestTheParkedQueueOfAnEarlierVersionIsReplacedOnceItIsEmpty(t *testing.T) {
	c := testConfig(t, 1)
	c.renewAfter = time.Millisecond
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	parked := p.topology.ParkedQueue()
	if _, err := p.ch.QueueDeclare(parked, true, false, false, false, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum}); err != nil {
		t.Fatal(err)
	}
	p.sendTo("", parked, amqp.Publishing{DeliveryMode: amqp.Persistent, Type: frame.Type, Body: []byte("kills its reader")})
	p.send(0, aFrame(frame.NewBase(), 2))
	w := start(t, c)
	want(t, db, 2, allLogs)
	testenv.Eventually(t, time.Minute, "the message is counted", func() bool { return w.metric("millrace_worker_parked_messages") == 1 })
	isNew := func() bool {
		conn, err := broker.Dial(context.Background(), c.URLs, t.Name())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.End(time.Second)
		stays, err := p.topology.ParkedIsOld(conn.Connection)
		if err != nil {
			t.Fatal(err)
		}
		return !stays
	}
	if isNew() {
		t.Error("the queue was replaced with a message in it")
	}
	if _, err := p.ch.QueuePurge(parked, false); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, time.Minute, "the queue is replaced", isNew)
}
