// Package broker holds what the API and the workers must agree on in RabbitMQ: the exchange, the queues and
// their arguments, and how a connection is made. It starts no goroutine.
package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/config"
	"millrace/internal/direct"
	"millrace/internal/retry"
)

const (
	// deliveryLimit is how often a frame may be given back before RabbitMQ sets it aside in the dead queue. A worker
	// gives frames back only when it dies or loses its connection. So 100 is far more than any outage needs, and still
	// ends the loop of a frame that kills its reader. The limit must be explicit: RabbitMQ 4 has a default of 20, and
	// 3.x has none.
	deliveryLimit = 100

	// deadDeliveryLimit is the same for the dead queue. Its readers do less with a message, and a message that kills
	// even those is parked.
	deadDeliveryLimit = 20

	// parkedDeliveryLimit is never reached, so what is parked stays parked. It is explicit because of RabbitMQ 4's
	// default.
	parkedDeliveryLimit = 1 << 30

	// heartbeat is how often a silent connection proves that it is alive. It is given up after two missed heartbeats.
	heartbeat = 10 * time.Second

	dialTimeout = 5 * time.Second
)

// DefaultExchange is where frames are published, with a queue's name as the routing key: RabbitMQ's own exchange, which
// hands a message to the queue of that name and to no other. Through an exchange that others may bind to, a frame could
// find somebody's queue in the place of ours, and RabbitMQ would confirm it all the same.
const DefaultExchange = ""

// defaultName is what the queues' names begin with where the settings say nothing else.
const defaultName = "logs"

// Topology describes the exchange and the queues of an installation.
type Topology struct {
	name     string
	shards   int
	maxBytes int64
}

// NewTopology returns the topology that the settings describe.
func NewTopology(c config.Broker) Topology {
	return Topology{name: cmp.Or(c.Name, defaultName), shards: max(c.Shards, 1), maxBytes: int64(c.MaxBytes)}
}

// OfCell returns the settings with which NewTopology describes the exchange and the queues of a cell: their names have the cell's name in them,
// such as logs.a.0.
func OfCell(c config.Broker, cell string) config.Broker {
	c.Name = cmp.Or(c.Name, defaultName) + "." + cell
	return c
}

// Exchange returns the name of the direct exchange for other programs' messages. A queue's name is the routing key.
func (t Topology) Exchange() string { return t.name }

// Shards returns the number of queues that frames are published to.
func (t Topology) Shards() int { return t.shards }

// Limited reports whether the queues have a limit, at which they refuse messages.
func (t Topology) Limited() bool { return t.maxBytes > 0 }

// Queue returns the name of queue i, which is its routing key in both exchanges.
func (t Topology) Queue(i int) string { return t.name + "." + strconv.Itoa(i) }

// DeadQueue returns the name of the queue in which RabbitMQ sets frames aside.
func (t Topology) DeadQueue() string { return t.name + ".dead" }

// ParkedQueue returns the name of the queue for messages that kill even the reader of the dead queue.
func (t Topology) ParkedQueue() string { return t.name + ".parked" }

// LastStream returns the name of the stream that takes what expires or overflows in the parked queue. Policies that
// make messages expire, or that cut or delete queues, do not apply to streams.
func (t Topology) LastStream() string { return t.name + ".last" }

// Canary returns the name of the queue whose messages nobody reads; see package policy.
func (t Topology) Canary() string { return t.name + ".canary" }

// WorkQueues returns the names of the quorum queues that records pass through. Those with the records that wait to be
// stored come first.
func (t Topology) WorkQueues() []string {
	names := make([]string, 0, t.shards+2)
	for i := range t.shards {
		names = append(names, t.Queue(i))
	}
	return append(names, t.DeadQueue(), t.ParkedQueue())
}

// DeliveryLimit returns how often a queue, one of WorkQueues, gives a message to its readers.
func (t Topology) DeliveryLimit(queue string) int {
	switch queue {
	case t.DeadQueue():
		return deadDeliveryLimit
	case t.ParkedQueue():
		return parkedDeliveryLimit
	}
	return deliveryLimit
}

// Ensure declares what is missing, and returns an error if what exists is of another kind. It can't see that only a
// binding is missing. Frames need no binding, and the API binds the queues again every minute.
//
// Ensure binds nothing if all queues exist, because RabbitMQ before 4 writes a binding down on all nodes of a cluster
// even if it exists. While one node hangs, connecting anew to the others would hang until they give that node up, by
// default after a minute.
func (t Topology) Ensure(conn *amqp.Connection) error {
	if _, err := t.ParkedIsOld(conn); err != nil {
		return err
	}
	allThere, err := t.exists(conn)
	if err != nil {
		return err
	}
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	if allThere {
		err = t.declareQueues(ch)
	} else {
		err = t.Declare(ch)
	}
	if err != nil {
		return err // the channel is closed, or the connection will be
	}
	return ch.Close()
}

// Inspect returns what RabbitMQ tells of a queue, and reports whether the queue exists. While the queue's leader does not answer
// within a quarter of a second, RabbitMQ counts no messages and no consumers.
func Inspect(conn *amqp.Connection, queue string) (q amqp.Queue, exists bool, err error) {
	ch, err := conn.Channel()
	if err != nil {
		return q, false, err
	}
	q, err = ch.QueueDeclarePassive(queue, true, false, false, false, nil)
	if isMissing(err) {
		return q, false, nil // the error has closed the channel
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

// exists reports whether the exchange and the queues for frames exist.
func (t Topology) exists(conn *amqp.Connection) (bool, error) {
	ch, err := conn.Channel()
	if err != nil {
		return false, err
	}
	err = ch.ExchangeDeclarePassive(t.Exchange(), amqp.ExchangeDirect, true, false, false, false, nil)
	for i := 0; i < t.shards && err == nil; i++ {
		_, err = ch.QueueDeclarePassive(t.Queue(i), true, false, false, false, nil)
	}
	if isMissing(err) {
		return false, nil // the error has closed the channel
	}
	if err != nil {
		return false, fmt.Errorf("look for the queues: %w", err)
	}
	return true, ch.Close()
}

// Declare makes sure that the exchange and the queues exist, except the parked queue, which Ensure declares. If a queue
// exists with other arguments, the error says what to do; RabbitMQ has then closed the channel.
func (t Topology) Declare(ch *amqp.Channel) error {
	if err := t.declareQueues(ch); err != nil {
		return err
	}
	return t.Bind(ch)
}

// Bind makes sure that the exchange exists and the queues are bound to it. The queues must exist.
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

// declareQueues declares the dead queue and the queues for frames. The dead queue comes first, because at-least-once
// dead-lettering needs its target.
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

// Foreign returns an error if somebody has put another queue in the place of one that frames are published to. RabbitMQ
// confirms what such a queue takes, even if the queue is gone with the next restart. Foreign returns nil if a queue is
// missing, or if RabbitMQ can't be asked: then nothing is confirmed either.
func (t Topology) Foreign(conn *amqp.Connection) error {
	ch, err := conn.Channel()
	if err != nil {
		return nil
	}
	for i := range t.shards {
		// A missing queue is not declared here: the publisher that misses it does that, one at a time.
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
// earlier Millrace, without a stream behind it. Such a queue may hold messages, so it stays until RenewParked finds it
// empty.
func (t Topology) ParkedIsOld(conn *amqp.Connection) (old bool, err error) {
	ch, err := conn.Channel()
	if err != nil {
		return false, err
	}
	if err := t.declareQueue(ch, t.LastStream(), amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeStream}); err != nil {
		return false, err
	}
	declareErr := t.declareQueue(ch, t.ParkedQueue(), workQueue(parkedDeliveryLimit, t.LastStream()))
	if declareErr == nil {
		return false, ch.Close()
	}
	if _, refused := refusal(declareErr); !refused {
		return false, declareErr
	}
	// The refusal has closed the channel.
	if ch, err = conn.Channel(); err != nil {
		return false, err
	}
	err = t.declareQueue(ch, t.ParkedQueue(), amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum})
	if _, refused := refusal(err); refused {
		return false, declareErr // it is neither our queue nor that of an earlier Millrace
	}
	if err != nil {
		return false, err
	}
	return true, ch.Close()
}

// RenewParked replaces the parked queue of an earlier Millrace by one with the stream behind it, if it is empty. It
// reports whether the old queue stays because it is not empty. Only one caller at a time may renew it: a second one
// might delete the queue that the first has made.
func (t Topology) RenewParked(conn *amqp.Connection) (stays bool, err error) {
	for {
		old, err := t.ParkedIsOld(conn)
		if err != nil || !old {
			return false, err
		}
		if stays, err = t.deleteParked(conn); stays || err != nil {
			return stays, err
		}
		// Another caller of ParkedIsOld may just have made the old queue again, empty. So look once more.
	}
}

// deleteParked deletes the parked queue if it is empty. It reports whether the queue stays because it is not.
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
	// RabbitMQ also counts no messages if the queue's leader does not answer within a quarter of a second.
	_, found, err := ch.Get(t.ParkedQueue(), false)
	if err != nil {
		return false, err
	}
	if found {
		return true, ch.Close() // closing the channel gives the message back
	}
	// RabbitMQ does not take if-empty for quorum queues, so a message may come in between. Before that it would have
	// killed a hundred and twenty readers.
	lost, err := ch.QueueDelete(t.ParkedQueue(), false, false, false)
	if err != nil {
		return false, err
	}
	if lost > 0 {
		err = fmt.Errorf("%d messages that no reader survives came into queue %s while it was replaced, and are gone", lost, t.ParkedQueue())
	}
	return false, errors.Join(err, ch.Close())
}

// workQueue returns the arguments of a queue whose messages go to the queue dead after limit deliveries. The queue
// keeps them until they have arrived there.
func workQueue(limit int32, dead string) amqp.Table {
	return amqp.Table{
		amqp.QueueTypeArg:           amqp.QueueTypeQuorum,
		amqp.QueueOverflowArg:       amqp.QueueOverflowRejectPublish, // at-least-once dead-lettering requires it
		"x-delivery-limit":          limit,
		"x-dead-letter-exchange":    "", // the default exchange, which routes by queue name
		"x-dead-letter-routing-key": dead,
		"x-dead-letter-strategy":    "at-least-once",
	}
}

// declareQueue declares a durable queue. The error says what to do if somebody else's queue has that name.
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

// foreignAdvice says what to do about somebody else's queue or exchange with one of our names.
const foreignAdvice = "give Millrace a virtual host of its own in RABBITMQ_URL (amqp://…/NAME), " +
	"or delete what is there if nobody needs it; it is made anew by itself"

// refusal reports whether err is RabbitMQ's refusal of a declaration because something of that name exists with other
// properties. It returns RabbitMQ's reason.
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

// End closes the connection in an orderly way. After timeout it cuts the connection: the broker may not answer, or may
// not read what a publish is writing. Several goroutines may call it, also more than once.
func (c *Connection) End(timeout time.Duration) {
	cut := time.AfterFunc(timeout, func() { _ = c.tcp.Close() })
	defer cut.Stop()
	_ = c.Close() // it may be closed already; there is nothing to be done about another error
}

// Dial connects to one of the cluster's nodes, trying all in random order. name is shown in RabbitMQ's list of
// connections. If none answers, the error is that of the last one tried.
func Dial(ctx context.Context, urls config.BrokerURLs, name string) (*Connection, error) {
	return DialThrough(ctx, urls, name, direct.New)
}

// DialThrough is Dial, with each TCP connection replaced by what through returns for it.
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

// dial opens a TCP connection, and gives up when ctx is done. Like amqp.DefaultDial it sets a deadline for the
// handshake, which the library clears once the connection is open.
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

// Redial calls Dial until it succeeds, with exponential backoff and jitter, and logs each failure. It fails only when
// ctx is done, with the error of ctx.
func Redial(ctx context.Context, log *slog.Logger, urls config.BrokerURLs, name string) (*Connection, error) {
	wait := retry.NewBackoff()
	for {
		conn, err := Dial(ctx, urls, name)
		if err == nil {
			return conn, nil
		}
		pause := wait.NextBackOff()
		if ctx.Err() == nil {
			log.Warn("RabbitMQ is out of reach", "error", err, "retry_in", pause.Round(time.Millisecond))
		}
		if err := retry.Sleep(ctx, pause); err != nil {
			return nil, err
		}
	}
}
