package policy

import (
	"context"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/broker"
	"millrace/internal/config"
)

const (
	// canaryMessages is how many messages lie in the canary. With one, a limit of one message would not be seen.
	canaryMessages = 2

	// canaryStay is the age at which the messages are replaced by new ones. A quorum queue sets a message's expiry as the
	// message comes, and checks only the oldest. So messages from before a policy would hide what it does. A time to live
	// that is longer than canaryStay is not seen.
	canaryStay = 2 * time.Minute

	// leastTrust is how long the canary's messages must stay, after some have gone, before all is well again. They must
	// also stay twice as long as those that have gone had stayed.
	leastTrust = time.Minute

	// lookTimeout bounds one look at the canary.
	lookTimeout = 20 * time.Second
)

// canary is a queue of the same kind as the others, with messages that nobody reads. They stay as long as nothing on the
// server removes them. The canary can't show a policy whose pattern leaves it out, a limit above its number of messages, or
// a time to live above canaryStay. If several processes look at it, only the first to look sees what has happened.
type canary struct {
	urls     config.BrokerURLs
	topology broker.Topology
	conn     *broker.Connection
	trust    time.Duration // leastTrust
	stay     time.Duration // canaryStay

	messages   int       // how many messages were left in the queue
	since      time.Time // when they came, or were seen first
	found      []Harm
	foundUntil time.Time // found holds at least until then
}

// newCanary returns a canary that connects on its first look.
func newCanary(c config.Broker) *canary {
	return &canary{urls: c.URLs, topology: broker.NewTopology(c), trust: leastTrust, stay: canaryStay}
}

// close ends the connection, if there is one.
func (c *canary) close() {
	if c.conn != nil {
		c.conn.End(time.Second)
		c.conn = nil
	}
}

// look compares the messages in the queue with what was left there, and fills the queue again. It returns the harm that
// they show.
func (c *canary) look(ctx context.Context) (found []Harm, err error) {
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if c.conn == nil || c.conn.IsClosed() {
		c.close()
		if c.conn, err = broker.Dial(ctx, c.urls, "millrace canary"); err != nil {
			return nil, err
		}
	}
	// A broker that does not answer is given up after lookTimeout, or when the process is to end.
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { c.conn.End(time.Second) })
	defer stop()
	here, exists, err := c.count()
	if err != nil {
		return nil, err
	}
	empty := false
	if here == 0 && exists && c.messages > 0 {
		// RabbitMQ also counts no messages if the queue's leader does not answer within a quarter of a second. A leader
		// that has just confirmed a message does answer.
		published, err := c.fill(ctx, 1, 0)
		if err != nil {
			return nil, err
		}
		if here, exists, err = c.count(); err != nil {
			return nil, err
		}
		empty = here <= published
	}
	now := time.Now()
	switch {
	case c.messages == 0: // the first look
	case !exists:
		c.harm(now, expires, "is gone: a policy deletes queues that nobody reads (expires), or somebody deleted it")
	case empty:
		c.harm(now, messageTTL, "has lost its messages: a policy lets messages expire (message-ttl), or somebody purged it")
	case here < c.messages:
		c.harm(now, maxLength, "has lost messages: a policy cuts queues (max-length, overflow)")
	case c.found != nil && now.After(c.foundUntil):
		c.found = nil
	}
	switch {
	case here < canaryMessages:
		published, failed := c.fill(ctx, canaryMessages-here, 0)
		c.since, c.messages, err = now, here+published, failed
	case c.messages == 0 || now.Sub(c.since) >= c.stay:
		// New messages are published before old ones are taken, so that another process never finds too few.
		take := canaryMessages
		if here > 4*canaryMessages { // processes that ended in between have left some
			take++
		}
		_, err = c.fill(ctx, canaryMessages, take)
		c.since, c.messages = now, canaryMessages
	}
	if err != nil {
		return nil, err
	}
	return c.found, nil
}

// harm notes harm that the canary shows, and until when it holds.
func (c *canary) harm(now time.Time, reason, what string) {
	name := c.topology.Canary()
	c.found = []Harm{{Queue: name, Reason: reason, What: fmt.Sprintf("the queue %s, which nobody reads, %s; set RABBITMQ_MANAGEMENT_URL to be told which", name, what)}}
	c.foundUntil = now.Add(max(c.trust, 2*now.Sub(c.since)))
}

// count returns how many messages are in the queue, and reports whether the queue exists.
func (c *canary) count() (messages int, exists bool, err error) {
	q, exists, err := broker.Inspect(c.conn.Connection, c.topology.Canary())
	return q.Messages, exists, err
}

// fill declares the queue, publishes as many messages as publish says, and takes out as many of the oldest as take says. It
// returns how many messages RabbitMQ has confirmed: a limit may refuse some, which loses nothing.
func (c *canary) fill(ctx context.Context, publish, take int) (published int, err error) {
	ch, err := c.conn.Channel()
	if err != nil {
		return 0, err
	}
	name := c.topology.Canary()
	if _, err := ch.QueueDeclare(name, true, false, false, false, amqp.Table{
		amqp.QueueTypeArg: amqp.QueueTypeQuorum, amqp.QueueOverflowArg: amqp.QueueOverflowRejectPublish,
	}); err != nil {
		return 0, fmt.Errorf("declare queue %s: %w", name, err)
	}
	if err := ch.Confirm(false); err != nil {
		return 0, err
	}
	for range publish {
		confirm, err := ch.PublishWithDeferredConfirmWithContext(ctx, "", name, true, false, amqp.Publishing{
			DeliveryMode: amqp.Persistent, ContentType: "text/plain",
			Body: []byte("Nobody reads this message. Millrace looks whether it stays."),
		})
		if err != nil {
			return 0, err
		}
		confirmed, err := confirm.WaitContext(ctx)
		if err != nil {
			return 0, err
		}
		if !confirmed {
			return published, ch.Close()
		}
		published++
	}
	for range take {
		if _, _, err := ch.Get(name, true); err != nil {
			return 0, err
		}
	}
	return published, ch.Close()
}
