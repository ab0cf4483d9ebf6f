package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Faults that somebody else's settings and queues in RabbitMQ make.

// tapQueue is a queue of somebody who wants to see what goes through the exchange.
const tapQueue = "chaos.tap"

// strikeUnbind takes the queues' bindings away for a while. Frames go by the queue's name, so they must not notice; what
// other programs publish to the exchange comes back to them.
func strikeUnbind(ctx context.Context, s *system, _ string, hold time.Duration, _ *rand.Rand) error {
	err := s.onChannel(ctx, s.unbind)
	pause(ctx, hold)
	return errors.Join(err, s.declareAgain(ctx))
}

// unbind takes the bindings of Millrace's queues away.
func (s *system) unbind(ch *amqp.Channel) error {
	for i := range s.topology.Shards() {
		if err := ch.QueueUnbind(s.topology.Queue(i), s.topology.Queue(i), s.topology.Exchange(), nil); err != nil {
			return err
		}
	}
	return nil
}

// declareAgain makes the exchange, the queues and the bindings where they are missing, as Millrace declares them.
func (s *system) declareAgain(ctx context.Context) error {
	ctx, cancel := healing(ctx)
	defer cancel()
	return again(ctx, func() error { return s.onChannel(ctx, s.topology.Declare) })
}

// strikeExchange deletes the exchange for a while.
func strikeExchange(ctx context.Context, s *system, _ string, hold time.Duration, _ *rand.Rand) error {
	err := s.onChannel(ctx, func(ch *amqp.Channel) error { return ch.ExchangeDelete(s.topology.Exchange(), false, false) })
	pause(ctx, hold)
	return errors.Join(err, s.declareAgain(ctx))
}

// strikeTap binds a queue of somebody else to the exchange in the place of ours. To RabbitMQ a message that reaches any queue
// is routed; so a frame that went through the exchange would be confirmed, and be nowhere that a worker looks.
func strikeTap(ctx context.Context, s *system, _ string, hold time.Duration, _ *rand.Rand) error {
	s.exchange.Lock() // what other programs publish meanwhile would be in the tap, as it should
	defer s.exchange.Unlock()
	err := s.onChannel(ctx, func(ch *amqp.Channel) error {
		if _, err := ch.QueueDeclare(tapQueue, false, true, false, false, nil); err != nil {
			return err
		}
		for i := range s.topology.Shards() {
			if err := ch.QueueBind(tapQueue, s.topology.Queue(i), s.topology.Exchange(), false, nil); err != nil {
				return err
			}
		}
		if err := s.unbind(ch); err != nil {
			return err
		}
		pause(ctx, hold)
		_, err := ch.QueueDelete(tapQueue, false, false, false)
		return err
	})
	return errors.Join(err, s.declareAgain(ctx))
}

// strikeQueueDeleted deletes a queue while it is empty and nobody publishes: then nothing is lost that was acked, and what
// is published next has no queue. It freezes the APIs, so that nobody publishes, and then the workers, which would declare the
// queue at once. It ends when the queue, which is declared anew, is old enough for a fault.
func strikeQueueDeleted(ctx context.Context, s *system, _ string, hold time.Duration, rng *rand.Rand) error {
	if err := s.deleteEmptyQueue(ctx, hold, rng); err != nil {
		return err
	}
	healed, cancel := healing(ctx)
	defer cancel()
	err := again(healed, func() error {
		_, err := s.waiting(healed)
		return err
	})
	pause(ctx, newQueueTime)
	return err
}

// deleteEmptyQueue freezes the APIs and the workers, deletes one of the queues when none holds a message, and lets the APIs go on, and
// the workers after hold.
func (s *system) deleteEmptyQueue(ctx context.Context, hold time.Duration, rng *rand.Rand) (err error) {
	s.exchange.Lock()
	defer s.exchange.Unlock()
	signal := func(kind string, sig syscall.Signal) (errs error) {
		for _, u := range s.named(kind) {
			errs = errors.Join(errs, u.signal(sig))
		}
		return errs
	}
	defer func() { err = errors.Join(err, signal("api", syscall.SIGCONT), signal("worker", syscall.SIGCONT)) }()
	if err := signal("api", syscall.SIGSTOP); err != nil {
		return err
	}
	drained, cancel := context.WithTimeout(ctx, healTimeout)
	defer cancel()
	if err := s.awaitEmpty(drained); err != nil {
		return err
	}
	if err := signal("worker", syscall.SIGSTOP); err != nil {
		return err
	}
	queue := s.topology.Queue(rng.IntN(s.topology.Shards()))
	if err := s.onChannel(ctx, func(ch *amqp.Channel) error {
		_, err := ch.QueueDelete(queue, false, false, false)
		return err
	}); err != nil {
		return err
	}
	err = signal("api", syscall.SIGCONT)
	pause(ctx, hold)
	return err
}

// awaitEmpty waits until the queues have been empty for a moment, with nothing on its way to a worker.
func (s *system) awaitEmpty(ctx context.Context) error {
	const looks, every = 5, 200 * time.Millisecond
	for empty := 0; empty < looks; pause(ctx, every) {
		if ctx.Err() != nil {
			return errors.New("the queues do not get empty")
		}
		n, err := s.held(ctx)
		if err == nil && n == 0 {
			empty++
		} else {
			empty = 0
		}
	}
	return nil
}

// held returns how many messages the queues hold, those included that were delivered and not acknowledged. It asks the queues' leaders:
// what rabbitmqctl list_queues knows is seconds old, and nothing on a node that does not lead.
func (s *system) held(ctx context.Context) (n int, err error) {
	for i := range s.topology.Shards() {
		var out string
		for _, node := range s.brokers {
			if out, err = s.stack.RabbitMQCtlOn(ctx, node, "eval", fmt.Sprintf(
				"{ok, N, _} = ra:consistent_query({'%%2F_%s', node()}, fun rabbit_fifo:query_messages_total/1, 5000), N.", s.topology.Queue(i))); err == nil {
				break
			}
		}
		if err != nil {
			return 0, err
		}
		var messages int
		if _, err := fmt.Sscan(out, &messages); err != nil {
			return 0, fmt.Errorf("%q: %w", out, err)
		}
		n += messages
	}
	return n, nil
}

// strikePolicy sets a policy that expires, drops or deletes what waits, as RabbitMQ's documentation shows it for all queues,
// while no worker runs: what a worker holds does not wait. The policy of Millrace's own must win.
func strikePolicy(ctx context.Context, s *system, target string, hold time.Duration, rng *rand.Rand) error {
	policy := []string{`{"message-ttl":200}`, `{"max-length":1,"overflow":"drop-head"}`, `{"expires":1000}`}[rng.IntN(3)]
	var errs []error
	for _, u := range s.named("worker") {
		errs = append(errs, u.kill())
	}
	set := strikeCtl([]string{"set_policy", "chaos", ".*", policy, "--apply-to", "queues"}, []string{"clear_policy", "chaos"})
	errs = append(errs, set(ctx, s, target, hold, rng))
	for _, u := range s.named("worker") {
		errs = append(errs, u.start())
	}
	return errors.Join(errs...)
}

// strikeUnshielded takes Millrace's own policies away, and then does what strikePolicy does. Records are lost then. It is for the
// proof that the comparison finds that.
func strikeUnshielded(ctx context.Context, s *system, target string, hold time.Duration, rng *rand.Rand) error {
	for _, scope := range []string{"policy", "operator_policy"} {
		out, err := s.stack.RabbitMQCtlOn(ctx, target, "eval", fmt.Sprintf(
			`[rabbit_policy:%s(<<"/">>, proplists:get_value(name, P), <<"chaos">>) || P <- rabbit_policy:list%s(<<"/">>)].`,
			map[string]string{"policy": "delete", "operator_policy": "delete_op"}[scope], map[string]string{"policy": "", "operator_policy": "_op"}[scope]))
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	return strikePolicy(ctx, s, target, hold, rng)
}
