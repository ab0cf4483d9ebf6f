// Package broker holds what the API and the workers must agree on in RabbitMQ: the exchange, the queues and
// their arguments, and how a connection is made. It starts no goroutine.
package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/config"
	"millrace/internal/direct"
)

const (
	// deliveryLimit is how often a frame may be given back before RabbitMQ sets it aside in the dead queue. A
	// worker gives frames back only when it dies or loses its connection, so 100 is far from any outage and
	// still ends the loop of a frame that kills its reader. It must be explicit: RabbitMQ 4 has 20 as its
	// default, 3.x has none.
	deliveryLimit = 100

	// deadDeliveryLimit is the same for the dead queue, whose readers do less with a message: what kills even
	// those is parked.
	deadDeliveryLimit = 20

	// parkedDeliveryLimit is out of reach: what is parked stays parked. It is explicit because of RabbitMQ 4's default.
	parkedDeliveryLimit = 1 << 30

	// heartbeat is how often a silent connection proves that it is alive; it is given up after two missed.
	heartbeat = 10 * time.Second

	dialTimeout = 5 * time.Second
)

// DefaultExchange is where frames are published, with a queue's name as the routing key: RabbitMQ's own exchange, which
// hands a message to the queue of that name and to no other. Through an exchange that others may bind to, a frame could
// find somebody's queue in the place of ours, and RabbitMQ would confirm it all the same.
const DefaultExchange = ""

// Topology names the exchange and the queues of an installation.
type Topology struct {
	name     string
	shards   int
	maxBytes int64
}

// NewTopology returns the topology that the settings describe.
func NewTopology(c config.Broker) Topology {
	t := Topology{name: c.Name, shards: max(c.Shards, 1), maxBytes: int64(c.MaxBytes)}
	if t.name == "" {
		t.name = "logs"
	}
	return t
}

// Exchange is the direct exchange for other programs' messages, with a queue's name as the routing key.
func (t Topology) Exchange() string { return t.name }

// Shards is the number of queues.
func (t Topology) Shards() int { return t.shards }

// Limited says whether the queues refuse messages when they are full.
func (t Topology) Limited() bool { return t.maxBytes > 0 }

// Queue is the name of queue i, and its routing key in both exchanges.
func (t Topology) Queue(i int) string { return t.name + "." + strconv.Itoa(i) }

// DeadQueue is the name of the queue that RabbitMQ sets frames aside in.
func (t Topology) DeadQueue() string { return t.name + ".dead" }

// ParkedQueue is the name of the queue for what not even the reader of the dead queue survives.
func (t Topology) ParkedQueue() string { return t.name + ".parked" }

// LastStream is the name of the stream that takes what expires or overflows in the parked queue. Policies that make
// messages expire, cut queues or delete them do not apply to streams.
func (t Topology) LastStream() string { return t.name + ".last" }

// Canary is the name of the queue whose messages nobody reads: see package policy.
func (t Topology) Canary() string { return t.name + ".canary" }

// WorkQueues returns the names of the quorum queues that records pass through: the first are those with the records
// that wait to be stored.
func (t Topology) WorkQueues() []string {
	names := make([]string, 0, t.shards+2)
	for i := range t.shards {
		names = append(names, t.Queue(i))
	}
	return append(names, t.DeadQueue(), t.ParkedQueue())
}

// DeliveryLimit returns how often one of the WorkQueues gives a message to its readers.
func (t Topology) DeliveryLimit(queue string) int {
	switch queue {
	case t.DeadQueue():
		return deadDeliveryLimit
	case t.ParkedQueue():
		return parkedDeliveryLimit
	}
	return deliveryLimit
}

// Ensure declares what is missing, and checks the rest. A binding that alone is missing it can't see; frames don't
// need it, and the API mends it beside them.
//
// RabbitMQ before 4 writes a binding down on all nodes of a cluster also when it is there: while one of them hangs,
// connecting anew to the others would hang with it until they give it up, a minute by default.
func (t Topology) Ensure(conn *amqp.Connection) error {
	if _, err := t.ParkedIsOld(conn); err != nil {
		return err
	}
	whole, err := t.there(conn)
	if err != nil {
		return err
	}
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	if whole {
		err = t.declareQueues(ch)
	} else {
		err = t.Declare(ch)
	}
	if err != nil {
		return err // the channel is closed, or the connection will be
	}
	return ch.Close()
}

// Inspect returns what RabbitMQ tells of a queue, and reports whether it exists. It counts no message and no consumer while
// the queue's leader does not answer within a quarter of a second.
func Inspect(conn *amqp.Connection, queue string) (q amqp.Queue, exists bool, err error) {
	ch, err := conn.Channel()
	if err != nil {
		return q, false, err
	}
	q, err = ch.QueueDeclarePassive(queue, true, false, false, false, nil)
	if isMissing(err) {
		return q, false, nil // which has closed the channel
	}
	if err != nil {
		return q, false, err
	}
	return q, true, ch.Close()
}

// isMissing reports whether RabbitMQ refused something because a queue or an exchange is not there.
func isMissing(err error) bool {
	var refused *amqp.Error
	return errors.As(err, &refused) && refused.Code == amqp.NotFound
}

// there says whether the exchange and the queues are.
func (t Topology) there(conn *amqp.Connection) (bool, error) {
	ch, err := conn.Channel()
	if err != nil {
		return false, err
	}
	err = ch.ExchangeDeclarePassive(t.Exchange(), amqp.ExchangeDirect, true, false, false, false, nil)
	for i := 0; i < t.shards && err == nil; i++ {
		_, err = ch.QueueDeclarePassive(t.Queue(i), true, false, false, false, nil)
	}
	if isMissing(err) {
		return false, nil // which has closed the channel
	}
	if err != nil {
		return false, fmt.Errorf("look for the queues: %w", err)
	}
	return true, ch.Close()
}

// Declare makes sure that the exchange and the queues are there, the parked queue aside, which Ensure declares. A queue
// that exists with other arguments is an error that says what to do; RabbitMQ has then closed the channel.
func (t Topology) Declare(ch *amqp.Channel) error {
	if err := t.declareQueues(ch); err != nil {
		return err
	}
	return t.Bind(ch)
}

// Bind makes sure that the exchange is there and the queues, which must exist, are bound to it.
func (t Topology) Bind(ch *amqp.Channel) error {
	err := ch.ExchangeDeclare(t.Exchange(), amqp.ExchangeDirect, true, false, false, false, nil)
	if _, refused := refusal(err); refused {
		return fmt.Errorf("there is an exchange %s of another kind, which Millrace did not make (%w): %s", t.Exchange(), err, foreignAdvice)
	}
	if err != nil {
		return fmt.Errorf("declare exchange %s: %w", t.Exchange(), err)
	}
	for i := range t.shards {
		if err := ch.QueueBind(t.Queue(i), t.Queue(i), t.Exchange(), false, nil); err != nil {
			return fmt.Errorf("bind queue %s: %w", t.Queue(i), err)
		}
	}
	return nil
}

// declareQueues declares the targets first: at-least-once dead-lettering needs them.
func (t Topology) declareQueues(ch *amqp.Channel) error {
	if err := t.declareQueue(ch, t.DeadQueue(), workQueue(deadDeliveryLimit, t.ParkedQueue())); err != nil {
		return err
	}
	for i := range t.shards {
		if err := t.declareQueue(ch, t.Queue(i), t.frameQueue()); err != nil {
			return err
		}
	}
	return nil
}

// frameQueue returns the arguments of a queue that frames are published to.
func (t Topology) frameQueue() amqp.Table {
	args := workQueue(deliveryLimit, t.DeadQueue())
	if t.maxBytes > 0 {
		args[amqp.QueueMaxLenBytesArg] = t.maxBytes
	}
	return args
}

// Foreign returns an error if somebody has put another queue in the place of one that frames are published to: RabbitMQ
// confirms what such a queue takes, be it gone with the next restart. It says nothing of queues that are missing, or while
// RabbitMQ can't be asked: then nothing is confirmed either.
func (t Topology) Foreign(conn *amqp.Connection) error {
	ch, err := conn.Channel()
	if err != nil {
		return nil
	}
	for i := range t.shards {
		// Whoever misses a queue declares it, one at a time.
		_, err := ch.QueueDeclarePassive(t.Queue(i), true, false, false, false, nil)
		reason, refused := refusal(err)
		if err == nil {
			err = t.declareQueue(ch, t.Queue(i), t.frameQueue())
			reason, refused = refusal(err)
		} else if refused {
			err = fmt.Errorf("the queue %s is another program's alone: %w", t.Queue(i), err)
		}
		switch {
		case err == nil:
		case refused && !strings.Contains(reason, "'"+amqp.QueueMaxLenBytesArg+"'"):
			return err
		default:
			return nil // the channel is closed, or the connection will be
		}
	}
	_ = ch.Close() // the connection may have ended
	return nil
}

// ParkedIsOld declares the parked queue and the stream behind it. It reports whether the parked queue is that of an
// earlier Millrace, which has no stream behind it: such a queue stays, since it may hold messages, until
// RenewParked finds it empty.
func (t Topology) ParkedIsOld(conn *amqp.Connection) (old bool, err error) {
	ch, err := conn.Channel()
	if err != nil {
		return false, err
	}
	if err := t.declareQueue(ch, t.LastStream(), amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeStream}); err != nil {
		return false, err
	}
	declared := t.declareQueue(ch, t.ParkedQueue(), workQueue(parkedDeliveryLimit, t.LastStream()))
	if declared == nil {
		return false, ch.Close()
	}
	if _, refused := refusal(declared); !refused {
		return false, declared
	}
	// The refusal has closed the channel.
	if ch, err = conn.Channel(); err != nil {
		return false, err
	}
	err = t.declareQueue(ch, t.ParkedQueue(), amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum})
	if _, refused := refusal(err); refused {
		return false, declared // neither of ours
	}
	if err != nil {
		return false, err
	}
	return true, ch.Close()
}

// RenewParked replaces the parked queue of an earlier Millrace by one with the stream behind it, if it is empty. It
// reports whether the old queue stays because it is not. One caller at a time may renew it: a second one might delete
// what the first has made.
func (t Topology) RenewParked(conn *amqp.Connection) (stays bool, err error) {
	for {
		old, err := t.ParkedIsOld(conn)
		if err != nil || !old {
			return false, err
		}
		if stays, err = t.deleteParked(conn); stays || err != nil {
			return stays, err
		}
		// Who looked at this moment with ParkedIsOld may have made the old one again, empty.
	}
}

// deleteParked deletes the parked queue if it is empty, and reports whether it is not.
func (t Topology) deleteParked(conn *amqp.Connection) (stays bool, err error) {
	ch, err := conn.Channel()
	if err != nil {
		return false, err
	}
	q, err := ch.QueueDeclarePassive(t.ParkedQueue(), true, false, false, false, nil)
	if err != nil {
		return false, err
	}
	if q.Messages > 0 {
		return true, ch.Close()
	}
	// RabbitMQ also counts none when the queue's leader does not answer within a quarter of a second.
	_, found, err := ch.Get(t.ParkedQueue(), false)
	if err != nil {
		return false, err
	}
	if found {
		return true, ch.Close() // which gives the message back
	}
	// RabbitMQ does not take if-empty for quorum queues, so a message may come in between; it would have been
	// given to a hundred and twenty readers before.
	lost, err := ch.QueueDelete(t.ParkedQueue(), false, false, false)
	if err != nil {
		return false, err
	}
	if lost > 0 {
		err = fmt.Errorf("%d messages that no reader survives came into queue %s while it was replaced, and are gone", lost, t.ParkedQueue())
	}
	return false, errors.Join(err, ch.Close())
}

// workQueue returns the arguments of a queue whose messages go to dead after limit deliveries, and are kept until
// they have arrived there.
func workQueue(limit int32, dead string) amqp.Table {
	return amqp.Table{
		amqp.QueueTypeArg:           amqp.QueueTypeQuorum,
		amqp.QueueOverflowArg:       amqp.QueueOverflowRejectPublish, // at-least-once wants it
		"x-delivery-limit":          limit,
		"x-dead-letter-exchange":    "", // the default exchange, which routes by queue name
		"x-dead-letter-routing-key": dead,
		"x-dead-letter-strategy":    "at-least-once",
	}
}

func (t Topology) declareQueue(ch *amqp.Channel, name string, args amqp.Table) error {
	_, err := ch.QueueDeclare(name, true, false, false, false, args)
	reason, refused := refusal(err)
	switch {
	case err == nil:
		return nil
	case !refused:
		return fmt.Errorf("declare queue %s: %w", name, err)
	case strings.Contains(reason, "'"+amqp.QueueMaxLenBytesArg+"'"):
		return fmt.Errorf("queue %s exists with another limit (%w): set QUEUE_MAX_BYTES to what it was declared with, "+
			"or let the workers empty the queue and delete it", name, err)
	}
	return fmt.Errorf("there is a queue %s of another kind, which Millrace did not make (%w): %s", name, err, foreignAdvice)
}

// foreignAdvice says what to do about a queue or exchange that has our name and is somebody else's.
const foreignAdvice = "give Millrace a virtual host of its own in RABBITMQ_URL (amqp://…/NAME), " +
	"or delete what is there if nobody needs it; it is made anew by itself"

// refusal returns RabbitMQ's reason to refuse a declaration, and reports whether err is one: something of that name
// exists with other properties.
func refusal(err error) (reason string, refused bool) {
	var e *amqp.Error
	if errors.As(err, &e) && (e.Code == amqp.PreconditionFailed || e.Code == amqp.ResourceLocked) {
		return e.Reason, true
	}
	return "", false
}

// Connection is a connection to RabbitMQ whose end can be forced.
type Connection struct {
	*amqp.Connection
	tcp net.Conn
}

// End says good-bye and closes the connection, after at most timeout also when the broker does not answer, or does
// not read what a publish is writing. It may be called by several goroutines, and again.
func (c *Connection) End(timeout time.Duration) {
	cut := time.AfterFunc(timeout, func() { _ = c.tcp.Close() })
	defer cut.Stop()
	_ = c.Close() // it may be closed already; there is nothing to be done about another error
}

// Dial connects to one of the cluster's nodes, trying all in random order. name is shown in RabbitMQ's list of
// connections. The error is that of the node tried last.
func Dial(ctx context.Context, urls config.BrokerURLs, name string) (*Connection, error) {
	return DialThrough(ctx, urls, name, direct.New)
}

// DialThrough is Dial with the client library on what through makes of each TCP connection.
func DialThrough(ctx context.Context, urls config.BrokerURLs, name string, through func(net.Conn) net.Conn) (*Connection, error) {
	if len(urls) == 0 {
		return nil, errors.New("RABBITMQ_URL is not set")
	}
	if err := urls.Check(); err != nil { // the library's error would repeat the URL
		return nil, fmt.Errorf("RABBITMQ_URL: %w", err)
	}
	properties := amqp.NewConnectionProperties()
	properties.SetClientConnectionName(name)
	var last error
	for _, i := range rand.Perm(len(urls)) {
		var tcp net.Conn
		conn, err := amqp.DialConfig(string(urls[i]), amqp.Config{
			Heartbeat:  heartbeat,
			Properties: properties,
			Dial: func(network, addr string) (_ net.Conn, err error) {
				if tcp, err = dial(ctx, network, addr); err != nil {
					return nil, err
				}
				tcp = through(tcp)
				return tcp, nil
			},
		})
		if err == nil {
			return &Connection{conn, tcp}, nil
		}
		last = fmt.Errorf("connect to %s: %w", urls[i], err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, last
}

// dial makes a TCP connection and gives up with ctx. Like amqp.DefaultDial it sets a deadline for the handshake,
// which the library clears once the connection is open.
func dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(dialTimeout)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// Redial calls Dial until it succeeds, with exponential backoff and jitter, and logs each failure. The error
// is ctx's.
func Redial(ctx context.Context, log *slog.Logger, urls config.BrokerURLs, name string) (*Connection, error) {
	wait := NewBackoff()
	for {
		conn, err := Dial(ctx, urls, name)
		if err == nil {
			return conn, nil
		}
		pause := wait.NextBackOff()
		if ctx.Err() == nil {
			log.Warn("RabbitMQ is out of reach", "error", err, "retry_in", pause.Round(time.Millisecond))
		}
		if err := Sleep(ctx, pause); err != nil {
			return nil, err
		}
	}
}

// NewBackoff returns the pauses between tries to reach a server: 0.1 s growing by half to 5 s, each with
// jitter of half its length.
func NewBackoff() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval = 100 * time.Millisecond
	b.MaxInterval = 5 * time.Second
	return b
}

// Sleep waits for d or until ctx is done, and returns ctx's error then.
func Sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
