package worker

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/frame"
	"millrace/internal/localstack"
	"millrace/internal/testenv"
)

// anIdleWorker starts a worker that renews its consumers twice a second. ctl runs rabbitmqctl on its server, which is the test's own.
func anIdleWorker(t *testing.T) (p *publisher, db *pgx.Conn, ctl func(args ...string)) {
	t.Helper()
	c, ctl := aServer(t, testenv.Private(t, localstack.Need{RabbitMQ: true}))
	c.Streams, c.idleAfter = 1, 500*time.Millisecond
	p, db = newPublisher(t, c), testenv.Connect(t, c.Postgres)
	start(t, c)
	return p, db, ctl
}

// TestAConsumerThatItsQueueHasForgottenIsReplaced takes the worker's consumers away from their queues without a word to
// the worker. RabbitMQ does so when its notice of a deleted queue is lost between two of its nodes.
func TestAConsumerThatItsQueueHasForgottenIsReplaced(t *testing.T) {
	p, db, ctl := anIdleWorker(t)
	stored := 0
	for _, queue := range []string{p.topology.Queue(0), p.topology.DeadQueue()} {
		p.send(0, aFrame(frame.NewBase(), 1))
		stored++
		want(t, db, stored, allLogs)
		testenv.Eventually(t, 30*time.Second, "the queue has its consumer", func() bool {
			q, err := p.ch.QueueDeclarePassive(queue, true, false, false, false, nil)
			return err == nil && q.Consumers == 1
		})
		ctl("eval", fmt.Sprintf(`{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"%s">>)),
			[ra:process_command(amqqueue:get_pid(Q), rabbit_fifo:make_checkout({element(2, C), element(1, C)}, cancel, #{})) || C <- rabbit_amqqueue:consumers(Q)],
			[] = rabbit_amqqueue:consumers(Q).`, queue))
		if queue == p.topology.Queue(0) {
			p.send(0, aFrame(frame.NewBase(), 1))
			stored++
		} else {
			p.sendTo("", queue, amqp.Publishing{Type: frame.Type, Body: []byte("kills its reader")})
		}
	}
	want(t, db, stored, allLogs)
	want(t, db, 1, "SELECT count(*) FROM dead_letters")
}

// TestAConsumerOutlivesItsQueue deletes a queue and declares it again before RabbitMQ's channel of the worker has heard of it.
// RabbitMQ then starts the consumer again by itself, and drops what the new queue delivers to it.
func TestAConsumerOutlivesItsQueue(t *testing.T) {
	p, db, ctl := anIdleWorker(t)
	queue := p.topology.Queue(0)
	p.send(0, aFrame(frame.NewBase(), 1))
	want(t, db, 1, allLogs)
	ctl("eval", fmt.Sprintf(`{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"%s">>)),
		Channels = [element(1, C) || C <- rabbit_amqqueue:consumers(Q)], true = Channels =/= [], Me = self(),
		spawn(fun() -> [true = erlang:suspend_process(C) || C <- Channels], Me ! suspended, timer:sleep(3000) end),
		receive suspended -> ok after 10000 -> exit(not_suspended) end.`, queue))
	if _, err := p.ch.QueueDelete(queue, false, false, false); err != nil {
		t.Fatal(err)
	}
	if err := p.topology.Declare(p.ch); err != nil {
		t.Fatal(err)
	}
	p.send(0, aFrame(frame.NewBase(), 1))
	want(t, db, 2, allLogs)
}

// TestAConsumerWithoutAChannelIsStopped has a consumer that could not open another channel stopped, and acknowledged to.
func TestAConsumerWithoutAChannelIsStopped(t *testing.T) {
	c := testConfig(t, 1)
	ensure(t, c)
	p := newPublisher(t, c)
	opened := false
	k := &consumer{queue: p.topology.Queue(0), window: window{size: 1}, open: func() (*amqp.Channel, error) {
		if opened {
			return nil, amqp.ErrClosed
		}
		opened = true
		return testenv.Channel(t, c.Broker), nil
	}}
	if _, err := k.start(); err != nil {
		t.Fatal(err)
	}
	if k.renew() != nil {
		t.Error("it has deliveries without a channel")
	}
	if err := k.ack(1, 1); err == nil {
		t.Error("an ack went through a channel that is closed")
	}
	k.stop()
}
