package worker

import (
	"fmt"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/frame"
	"millrace/internal/localstack"
	"millrace/internal/testenv"
)

// TestAConsumerThatItsQueueHasForgottenIsReplaced takes the worker's consumers away from their queues without a word to
// the worker. RabbitMQ does so when its notice of a deleted queue is lost between two of its nodes.
func TestAConsumerThatItsQueueHasForgottenIsReplaced(t *testing.T) {
	stack := testenv.Private(t, localstack.Need{RabbitMQ: true})
	c, ctl := aServer(t, stack)
	c.Streams, c.look = 1, 500*time.Millisecond
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	start(t, c)
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
