package chaos

import (
	"context"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/broker"
	"millrace/internal/config"
	"millrace/internal/testenv"
)

// TestAQueueHoldsWhatAWorkerHasNotAcknowledged: a queue that is deleted for empty while a worker holds some of its messages would lose them.
func TestAQueueHoldsWhatAWorkerHasNotAcknowledged(t *testing.T) {
	stack := testenv.Cluster(t)
	c := config.Broker{}
	if err := config.LoadFrom(map[string]string{"RABBITMQ_URL": stack.RabbitMQURL}, &c); err != nil {
		t.Fatal(err)
	}
	s := &system{stack: stack, brokers: stack.Brokers(), topology: broker.NewTopology(c)}
	ch := testenv.Channel(t, c)
	if err := s.topology.Declare(ch); err != nil {
		t.Fatal(err)
	}
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	const messages = 7
	deliveries, err := ch.Consume(s.topology.Queue(0), "", false, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range messages {
		confirm, err := ch.PublishWithDeferredConfirm(broker.DefaultExchange, s.topology.Queue(0), true, false, amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte("{}")})
		if err != nil {
			t.Fatal(err)
		}
		confirm.Wait()
		<-deliveries
	}
	for _, node := range stack.Brokers() {
		s.brokers = []string{node}
		if n, err := s.held(context.Background()); err != nil || n != messages {
			t.Errorf("%s: got %d messages, %v, want %d", node, n, err, messages)
		}
	}
}
