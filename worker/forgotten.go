package worker

import (
	"context"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/broker"
)

// lookInterval is the time between two comparisons of a consumer that receives nothing with its queue.
const lookInterval = 10 * time.Second

// awaitForgotten waits until a queue has forgotten its consumer, and returns the queue's name. It returns "" when ctx is done or the
// connection has ended. RabbitMQ tells a consumer when its queue is deleted. But it drops the notice if the channel is on another node
// and the link between the two is busy. Such a consumer would wait for ever beside a queue that was declared anew.
//
// A consumer counts as forgotten if, at two looks in a row, it has received nothing in between, has nothing to acknowledge,
// and its queue is gone, has no consumer, or holds messages that are ready.
func awaitForgotten(ctx context.Context, conn *amqp.Connection, consumers []*consumer, every time.Duration) (queue string) {
	type look struct {
		received   int
		suspicious bool
	}
	before := make([]look, len(consumers))
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ""
		}
		for i, c := range consumers {
			received, idle := c.idle()
			now := look{received: received}
			if idle && received == before[i].received {
				var err error
				if now.suspicious, err = lacksConsumer(conn, c.queue); err != nil {
					return "" // the session finds out by itself
				}
			}
			if now.suspicious && before[i].suspicious {
				return c.queue
			}
			before[i] = now
		}
	}
}

// lacksConsumer reports whether a queue is gone, has no consumer, or holds messages that are ready. Any of these may be so for
// a moment: see also broker.Inspect.
func lacksConsumer(conn *amqp.Connection, queue string) (bool, error) {
	q, exists, err := broker.Inspect(conn, queue)
	return err == nil && (!exists || q.Consumers == 0 || q.Messages > 0), err
}
