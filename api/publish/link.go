package publish

import (
	"context"
	"fmt"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/broker"
	"millrace/internal/retry"
)

const (
	// bindPeriod is how often one of the links binds the queues for other programs, in case somebody has unbound them.
	bindPeriod = time.Minute

	// queuePeriod is how often each link checks that the queues are still those that were declared.
	queuePeriod = 5 * time.Second

	// closeTimeout bounds the closing of a connection whose broker may not answer.
	closeTimeout = 2 * time.Second
)

// link is a connection to publish on and its lanes. One connection of the client library is one mutex and one
// socket, so a few connections carry more than one with many channels.
type link struct {
	pub    *Publisher
	number int
	reset  chan struct{} // holds one when the connection is to be given up
}

// giveUp asks for the connection to be closed, and does not wait for that.
func (l *link) giveUp() {
	select {
	case l.reset <- struct{}{}:
	default:
	}
}

// run connects, runs the lanes until the connection ends, and connects again, until ctx is done.
func (l *link) run(ctx context.Context) {
	wait := retry.NewBackoff()
	for {
		conn, err := broker.Redial(ctx, l.pub.log, l.pub.urls, fmt.Sprintf("%s %d", l.pub.name, l.number))
		if err != nil {
			return
		}
		if l.serve(ctx, conn) {
			wait.Reset()
		}
		if retry.Sleep(ctx, wait.NextBackOff()) != nil {
			return
		}
	}
}

// serve runs the lanes on conn until conn ends. It reports whether any lane could be opened.
func (l *link) serve(ctx context.Context, conn *broker.Connection) (up bool) {
	// When ctx is done conn is ended, and with it all that waits for the broker.
	stop := context.AfterFunc(ctx, func() { conn.End(closeTimeout) })
	defer stop()
	var watching sync.WaitGroup
	defer watching.Wait()
	defer conn.End(closeTimeout)
	select {
	case <-l.reset: // it was meant for the previous connection
	default:
	}
	ended := conn.NotifyClose(make(chan *amqp.Error, 1))
	watching.Go(func() {
		select {
		case <-l.reset:
			l.pub.log.Warn("RabbitMQ does not confirm; connecting anew")
			conn.End(0) // at once, so that the frames go to another connection
		case err := <-ended: // nil when closed from this side
			if err != nil {
				l.pub.log.Warn("RabbitMQ ended a connection", "error", err)
			}
		}
	})
	blockings := conn.NotifyBlocked(make(chan amqp.Blocking, 1))
	watching.Go(func() {
		for b := range blockings { // closed with the connection
			l.setBlocked(b)
		}
		l.setBlocked(amqp.Blocking{})
	})

	if err := l.declareAlone(func() error { return l.pub.topology.Ensure(conn.Connection) }); err != nil {
		l.fail("the queues can't be declared", err)
		return false
	}
	if l.number == 0 {
		watching.Go(func() { l.keepBindings(conn) })
	}
	watching.Go(func() { l.watchQueues(conn) })
	opened := make(chan bool, l.pub.channels)
	var lanes sync.WaitGroup
	for range l.pub.channels {
		lanes.Go(func() { opened <- l.serveLane(ctx, conn) })
	}
	lanes.Wait()
	close(opened)
	for one := range opened {
		up = up || one
	}
	return up
}

// declareAlone calls declare while no other link declares anything: RabbitMQ may fail two declarations of the same quorum
// queue that run at once.
func (l *link) declareAlone(declare func() error) error {
	l.pub.declaring.Lock()
	defer l.pub.declaring.Unlock()
	return declare()
}

// keepBindings binds the queues to the exchange that other programs publish to, now and every bindPeriod, until the
// connection ends. Frames need no binding, so they do not wait for it.
func (l *link) keepBindings(conn *broker.Connection) {
	ended := conn.NotifyClose(make(chan *amqp.Error, 1))
	for {
		if err := onChannel(conn, l.pub.topology.Bind); err != nil && !conn.IsClosed() {
			l.pub.log.Warn("other programs' messages may not reach the queues", "error", err)
		}
		select {
		case <-time.After(bindPeriod):
		case <-ended:
			return
		}
	}
}

// watchQueues ends the connection if somebody else's queue has taken the place of one that frames are published to. The
// next connection opens lanes only once that queue is gone. watchQueues returns when the connection ends.
func (l *link) watchQueues(conn *broker.Connection) {
	ended := conn.NotifyClose(make(chan *amqp.Error, 1))
	for {
		select {
		case <-time.After(queuePeriod):
		case <-ended:
			return
		}
		if err := l.pub.topology.Foreign(conn.Connection); err != nil {
			l.fail("what was accepted since the last look, at most "+queuePeriod.String()+" ago, may be in a queue that is not ours", err)
			conn.End(closeTimeout)
			return
		}
	}
}

// onChannel calls f with a new channel, and closes the channel afterwards.
func onChannel(conn *broker.Connection, f func(*amqp.Channel) error) error {
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	if err := f(ch); err != nil {
		return err // the channel is closed, or the connection will be
	}
	return ch.Close()
}

// fail logs why there is no lane, and makes it the reason that /ready and the clients are told.
func (l *link) fail(what string, err error) {
	l.pub.log.Error(what, "error", err)
	l.pub.mu.Lock()
	defer l.pub.mu.Unlock()
	l.pub.noLaneReason = fmt.Errorf("%s: %w", what, err)
	l.pub.reportLocked()
}

// setBlocked notes that RabbitMQ has begun or stopped to block the link's connection.
func (l *link) setBlocked(b amqp.Blocking) {
	l.pub.mu.Lock()
	defer l.pub.mu.Unlock()
	if l.pub.isBlockedLocked(l) == b.Active {
		return
	}
	if b.Active {
		l.pub.blocked[l] = b.Reason
		l.pub.refuseUnsentLocked(ErrBlocked) // those that were sent may be confirmed yet
		l.pub.log.Warn("RabbitMQ blocks publishers", "reason", b.Reason)
	} else {
		delete(l.pub.blocked, l)
		l.pub.log.Info("RabbitMQ takes messages again")
	}
	l.pub.reportLocked()
	l.pub.work.Broadcast()
}

// serveLane publishes on a channel, and opens another when it ends, until the connection ends. It reports whether a
// channel could be opened.
func (l *link) serveLane(ctx context.Context, conn *broker.Connection) (up bool) {
	for wait := retry.NewBackoff(); ; {
		lane, err := l.openLane(conn)
		if err == nil {
			up = true
			began := time.Now()
			err = lane.publish()
			if time.Since(began) > time.Minute {
				wait.Reset()
			}
		}
		if conn.IsClosed() {
			return up
		}
		l.fail("a channel ended", err)
		if retry.Sleep(ctx, wait.NextBackOff()) != nil {
			return up
		}
		// A message was not routed, or the channel ended: the exchange or a queue may be gone.
		if err := l.declareAlone(func() error { return onChannel(conn, l.pub.topology.Declare) }); err != nil {
			l.fail("the queues can't be declared", err)
			conn.End(closeTimeout)
			return up
		}
	}
}
