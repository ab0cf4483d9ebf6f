package broker_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/broker"
	"millrace/internal/config"
	"millrace/internal/localstack"
	"millrace/internal/testenv"
)

func TestDeclaringTwiceIsHarmlessAndOtherArgumentsAreNamed(t *testing.T) {
	c := testenv.Broker(t, 3)
	for range 2 {
		if err := broker.NewTopology(c).Declare(testenv.Channel(t, c)); err != nil {
			t.Fatal(err)
		}
	}
	c.MaxBytes = 1 << 20
	err := broker.NewTopology(c).Declare(testenv.Channel(t, c))
	if err == nil || !strings.Contains(err.Error(), "x-max-length-bytes") || !strings.Contains(err.Error(), "QUEUE_MAX_BYTES") {
		t.Errorf("got %v, want an error that names the argument and the way out", err)
	}
}

func TestEnsureDeclaresWhatIsMissingAndChecksTheRest(t *testing.T) {
	c := testenv.Broker(t, 2)
	conn, err := broker.Dial(context.Background(), c.URLs, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.End(time.Second)
	topology := broker.NewTopology(c)
	ch := testenv.Channel(t, c)
	for _, lost := range []func() error{
		func() error { return nil },
		func() error { return nil },
		func() error { return ch.ExchangeDelete(topology.Exchange(), false, false) },
		func() error { _, err := ch.QueueDelete(topology.Queue(1), false, false, false); return err },
		func() error { _, err := ch.QueueDelete(topology.DeadQueue(), false, false, false); return err },
	} {
		if err := lost(); err != nil {
			t.Fatal(err)
		}
		if err := topology.Ensure(conn.Connection); err != nil {
			t.Fatal(err)
		}
		returned := ch.NotifyReturn(make(chan amqp.Return, 2))
		for i := range 2 {
			if err := ch.Publish(topology.Exchange(), topology.Queue(i), true, false, amqp.Publishing{}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := ch.QueueDeclarePassive(topology.DeadQueue(), true, false, false, false, nil); err != nil {
			t.Fatal(err) // what was returned has come before the answer
		}
		if len(returned) > 0 {
			t.Errorf("%d queues are not bound", len(returned))
		}
	}
	c.MaxBytes = 1 << 20
	if err := broker.NewTopology(c).Ensure(conn.Connection); err == nil || !strings.Contains(err.Error(), "QUEUE_MAX_BYTES") {
		t.Errorf("got %v, want an error that names the setting", err)
	}
}

func TestAllNodesOfAClusterAreTried(t *testing.T) {
	c := testenv.Broker(t, 1)
	if err := broker.NewTopology(c).Declare(testenv.Channel(t, c)); err != nil {
		t.Fatal(err) // what the clean-up deletes
	}
	nobody := "amqp://" + closedAddress(t) + "/"
	for range 5 { // the order is random
		conn, err := broker.Dial(context.Background(), config.BrokerURLs{config.BrokerURL(nobody), c.URLs[0], config.BrokerURL(nobody)}, "test")
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestRedialEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	url := "amqp://user:secret@" + closedAddress(t) + "/"
	var b strings.Builder
	if _, err := broker.Redial(ctx, slog.New(slog.NewTextHandler(&b, nil)), config.Brokers(url), "test"); err == nil {
		t.Error("Redial connected to nobody")
	}
	if strings.Contains(b.String(), "secret") {
		t.Errorf("the password is in the log: %s", b.String())
	}
}

// A server that takes connections and says nothing must not hold up the dial for ever.
func TestASilentServerIsGivenUp(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the dial's timeout")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close() // nothing is sent
	go func() {
		conn, err := ln.Accept()
		if err == nil {
			_, _ = io.Copy(io.Discard, conn)
		}
	}()
	begin := time.Now()
	if _, err := broker.Dial(context.Background(), config.Brokers("amqp://"+ln.Addr().String()+"/"), "test"); err == nil {
		t.Error("connected to a server that says nothing")
	}
	if took := time.Since(begin); took > 10*time.Second+testenv.Patience {
		t.Errorf("gave up after %v", took)
	}
}

func closedAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close() // so that nobody listens
	return ln.Addr().String()
}

// TestWhatIsSomebodyElsesIsNamedWithAdviceThatCanBeFollowed: advice to set QUEUE_MAX_BYTES would not help with a queue of
// another kind.
func TestWhatIsSomebodyElsesIsNamedWithAdviceThatCanBeFollowed(t *testing.T) {
	for _, tt := range []struct {
		name, kind string
		declare    func(ch *amqp.Channel, topology broker.Topology) error
	}{
		{"a classic queue", "queue", func(ch *amqp.Channel, topology broker.Topology) error {
			_, err := ch.QueueDeclare(topology.Queue(0), true, false, false, false, nil)
			return err
		}},
		{"a queue that does not last", "queue", func(ch *amqp.Channel, topology broker.Topology) error {
			_, err := ch.QueueDeclare(topology.DeadQueue(), false, true, false, false, nil)
			return err
		}},
		{"a quorum queue with other arguments", "queue", func(ch *amqp.Channel, topology broker.Topology) error {
			_, err := ch.QueueDeclare(topology.Queue(0), true, false, false, false, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum, amqp.QueueMessageTTLArg: 1000})
			return err
		}},
		{"a parked queue of neither version", "queue", func(ch *amqp.Channel, topology broker.Topology) error {
			_, err := ch.QueueDeclare(topology.ParkedQueue(), true, false, false, false, nil)
			return err
		}},
		{"a topic exchange", "exchange", func(ch *amqp.Channel, topology broker.Topology) error {
			return ch.ExchangeDeclare(topology.Exchange(), amqp.ExchangeTopic, true, false, false, false, nil)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := testenv.Broker(t, 1)
			c.MaxBytes = 1 << 30
			topology := broker.NewTopology(c)
			if err := tt.declare(testenv.Channel(t, c), topology); err != nil {
				t.Fatal(err)
			}
			conn, err := broker.Dial(context.Background(), c.URLs, "test")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.End(time.Second)
			err = topology.Ensure(conn.Connection)
			if err == nil {
				t.Fatal("got no error")
			}
			for _, part := range []string{"there is a " + tt.kind + " " + c.Name, "virtual host", "delete"} {
				if !strings.Contains(strings.Replace(err.Error(), "is an exchange", "is a exchange", 1), part) {
					t.Errorf("got %q, want %q in it", err, part)
				}
			}
			if strings.Contains(err.Error(), "QUEUE_MAX_BYTES") {
				t.Errorf("got %q, which blames a setting", err)
			}
		})
	}
}

// TestAParkedQueueWhoseLeaderIsSlowIsNotReplaced stops the queue's leader for a moment. Meanwhile RabbitMQ counts no
// messages.
func TestAParkedQueueWhoseLeaderIsSlowIsNotReplaced(t *testing.T) {
	stack := testenv.Private(t, localstack.Need{RabbitMQ: true})
	c := config.Broker{URLs: config.Brokers(stack.RabbitMQURL), Name: testenv.Name()}
	topology, ch := broker.NewTopology(c), testenv.Channel(t, c)
	if _, err := ch.QueueDeclare(topology.ParkedQueue(), true, false, false, false, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum}); err != nil {
		t.Fatal(err)
	}
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	confirm, err := ch.PublishWithDeferredConfirm("", topology.ParkedQueue(), true, false, amqp.Publishing{DeliveryMode: amqp.Persistent})
	if err != nil || !confirm.Wait() {
		t.Fatalf("the message was not confirmed: %v", err)
	}
	conn, err := broker.Dial(t.Context(), c.URLs, t.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.End(time.Second)
	testenv.WhileLeaderIsSlow(t, stack, topology.ParkedQueue(), func() {
		if stays, err := topology.RenewParked(conn.Connection); !stays || err != nil {
			t.Errorf("got %v, %v; want the queue to stay", stays, err)
		}
	})
	if d, there, err := ch.Get(topology.ParkedQueue(), true); !there || err != nil {
		t.Errorf("got %v, %v, %v; want the message", d.Body, there, err)
	}
}

// TestAParkedQueueIsReplacedBesideOneWhoLooks: another caller of ParkedIsOld may make the old queue again if it is deleted in
// between.
func TestAParkedQueueIsReplacedBesideOneWhoLooks(t *testing.T) {
	stack := testenv.Private(t, localstack.Need{RabbitMQ: true})
	c := config.Broker{URLs: config.Brokers(stack.RabbitMQURL), Name: testenv.Name()}
	topology := broker.NewTopology(c)
	old := amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum}
	// RabbitMQ 3.10 may end a connection with an INTERNAL_ERROR when two declare a queue at once.
	with := func(do func(conn *broker.Connection) error) error {
		conn, err := broker.Dial(t.Context(), c.URLs, t.Name())
		if err != nil {
			return err
		}
		defer conn.End(time.Second)
		return do(conn)
	}
	declareOld := func(conn *broker.Connection) error {
		ch, err := conn.Channel()
		if err != nil {
			return err
		}
		_, err = ch.QueueDeclare(topology.ParkedQueue(), true, false, false, false, old)
		return err
	}
	stop := make(chan struct{})
	var looking sync.WaitGroup
	looking.Go(func() {
		for tick := time.NewTicker(5 * time.Millisecond); ; {
			select {
			case <-stop:
				return
			case <-tick.C:
				_ = with(func(conn *broker.Connection) error {
					_, err := topology.ParkedIsOld(conn.Connection)
					return err
				})
			}
		}
	})
	for range 10 {
		err := with(func(conn *broker.Connection) error {
			ch, err := conn.Channel()
			if err != nil {
				return err
			}
			if _, err := ch.QueueDelete(topology.ParkedQueue(), false, false, false); err != nil {
				return err
			}
			return declareOld(conn)
		})
		if err != nil {
			continue // who looks was sooner, with the new queue
		}
		testenv.Eventually(t, 30*time.Second, "the queue is replaced", func() bool {
			return with(func(conn *broker.Connection) error {
				stays, err := topology.RenewParked(conn.Connection)
				if stays {
					t.Error("the queue stays, and is empty")
				}
				return err
			}) == nil
		})
		if err := with(declareOld); err == nil {
			t.Fatal("the old queue is there, and was said to be replaced")
		}
	}
	close(stop)
	looking.Wait()
}
