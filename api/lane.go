package api

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/broker"
	"millrace/internal/frame"
	"millrace/internal/retry"
)

const (
	// window is how many frames a lane may have published and not yet seen confirmed. Two keep the channel busy
	// while a confirm travels; more would only make the frames smaller.
	window = 2

	// probeBody is what a probe holds: a message without records, as other programs may send it too. Workers of any
	// version acknowledge it and store nothing.
	probeBody = "[]"

	// bindPeriod is how often one of the links binds the queues for other programs, in case somebody has unbound them.
	bindPeriod = time.Minute

	// queuePeriod is how often each link looks whether the queues are still those that were declared.
	queuePeriod = 5 * time.Second

	// closeTimeout bounds the good-bye to a broker that may not answer.
	closeTimeout = 2 * time.Second
)

// link is a connection to publish on and its lanes. One connection of the client library is one mutex and one
// socket, so a few connections carry more than one with many channels.
type link struct {
	*publisher
	number int
	reset  chan struct{} // holds one when the connection is to be given up
}

// giveUp has the connection closed, without waiting for it.
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
		conn, err := broker.Redial(ctx, l.log, l.urls, fmt.Sprintf("millrace api %d", l.number))
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

// serve runs the lanes on conn until it ends. It says whether any lane could be opened.
func (l *link) serve(ctx context.Context, conn *broker.Connection) (up bool) {
	// From here on the end of ctx ends whatever waits for the broker.
	stop := context.AfterFunc(ctx, func() { conn.End(closeTimeout) })
	defer stop()
	var watching sync.WaitGroup
	defer watching.Wait()
	defer conn.End(closeTimeout)
	select {
	case <-l.reset: // meant for the connection before
	default:
	}
	ended := conn.NotifyClose(make(chan *amqp.Error, 1))
	watching.Go(func() {
		select {
		case <-l.reset:
			l.log.Warn("RabbitMQ does not confirm; connecting anew")
			conn.End(0) // the frames shall be on their way elsewhere
		case err := <-ended: // nil when closed from this side
			if err != nil {
				l.log.Warn("RabbitMQ ended a connection", "error", err)
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

	if err := l.declare(func() error { return l.topology.Ensure(conn.Connection) }); err != nil {
		l.fail("the queues can't be declared", err)
		return false
	}
	if l.number == 0 {
		watching.Go(func() { l.keepBindings(conn) })
	}
	watching.Go(func() { l.watchQueues(conn) })
	opened := make(chan bool, l.channels)
	var lanes sync.WaitGroup
	for range l.channels {
		lanes.Go(func() { opened <- l.serveLane(ctx, conn) })
	}
	lanes.Wait()
	close(opened)
	for one := range opened {
		up = up || one
	}
	return up
}

// declare makes sure that the queues are there, one link at a time: RabbitMQ may fail two declarations of the
// same quorum queue that run at once.
func (l *link) declare(by func() error) error {
	l.declaring.Lock()
	defer l.declaring.Unlock()
	return by()
}

// keepBindings binds the queues to the exchange that other programs publish to, now and every bindPeriod, until the
// connection ends. Frames do not wait for it, for they don't need it.
func (l *link) keepBindings(conn *broker.Connection) {
	ended := conn.NotifyClose(make(chan *amqp.Error, 1))
	for {
		if err := l.bind(conn); err != nil && !conn.IsClosed() {
			l.log.Warn("other programs' messages may not reach the queues", "error", err)
		}
		select {
		case <-time.After(bindPeriod):
		case <-ended:
			return
		}
	}
}

// watchQueues gives the connection up when another queue is in the place of one that frames are published to. The next
// connection serves once that is gone. It returns when the connection ends.
func (l *link) watchQueues(conn *broker.Connection) {
	ended := conn.NotifyClose(make(chan *amqp.Error, 1))
	for {
		select {
		case <-time.After(queuePeriod):
		case <-ended:
			return
		}
		if err := l.topology.Foreign(conn.Connection); err != nil {
			l.fail("what was accepted since the last look, at most "+queuePeriod.String()+" ago, may be in a queue that is not ours", err)
			conn.End(closeTimeout)
			return
		}
	}
}

func (l *link) bind(conn *broker.Connection) error {
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	if err := l.topology.Bind(ch); err != nil {
		return err // the channel is closed, or the connection will be
	}
	return ch.Close()
}

// redeclare declares everything, for a message was not routed or a channel ended.
func (l *link) redeclare(conn *broker.Connection) error {
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	if err := l.topology.Declare(ch); err != nil {
		return err // the channel is closed, or the connection will be
	}
	return ch.Close()
}

// fail logs why there is no lane, and lets /ready and the clients know.
func (l *link) fail(what string, err error) {
	l.log.Error(what, "error", err)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trouble = fmt.Errorf("%s: %w", what, err)
	l.report()
}

func (l *link) setBlocked(b amqp.Blocking) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.isBlocked(l) == b.Active {
		return
	}
	if b.Active {
		l.blocked[l] = b.Reason
		l.refuseUnsent(errBlocked) // those that were sent may be confirmed yet
		l.log.Warn("RabbitMQ blocks publishers", "reason", b.Reason)
	} else {
		delete(l.blocked, l)
		l.log.Info("RabbitMQ takes messages again")
	}
	l.report()
	l.work.Broadcast()
}

// serveLane opens a channel and publishes on it, and opens another when it ends, until the connection does. It
// says whether a channel could be opened.
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
		if err := l.declare(func() error { return l.redeclare(conn) }); err != nil {
			l.fail("the queues can't be declared", err)
			conn.End(closeTimeout)
			return up
		}
	}
}

// lane is a channel to publish on, in confirm mode.
type lane struct {
	*link
	ch       *amqp.Channel
	confirms chan amqp.Confirmation
	returns  chan amqp.Return
	closed   chan *amqp.Error
	compress *frame.Compressor
	slots    chan struct{} // holds one for each frame that is published and not confirmed
	sequence uint64

	ended      bool // under the publisher's mutex: takes no more frames
	unroutable bool // a frame was returned; set by receive, read when it has ended

	mu           sync.Mutex
	outstanding  []sent    // by delivery tag
	refusedSince time.Time // since then RabbitMQ refuses what the lane publishes; zero while it confirms
	refusedLast  time.Time // when it did so last
}

// sent is a frame that was published. id is unique on its lane, to tell which frame a return means.
type sent struct {
	frame *pending
	id    string
	at    time.Time
}

func (l *link) openLane(conn *broker.Connection) (*lane, error) {
	ch, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	if err := ch.Confirm(false); err != nil {
		return nil, err
	}
	compress, err := frame.NewCompressor(l.publisher.compress)
	if err != nil {
		return nil, err
	}
	// The buffers hold all that can come, so that the library never waits for the receiver, or gives up on it.
	return &lane{
		link:     l,
		ch:       ch,
		compress: compress,
		confirms: ch.NotifyPublish(make(chan amqp.Confirmation, window)),
		returns:  ch.NotifyReturn(make(chan amqp.Return, window)),
		closed:   ch.NotifyClose(make(chan *amqp.Error, 1)),
		slots:    make(chan struct{}, window),
	}, nil
}

// publish sends frames until the channel ends, and returns why it did.
func (l *lane) publish() error {
	l.open()
	received := make(chan struct{})
	go func() {
		l.receive()
		close(received)
	}()
	err := l.feed(received)
	closeErr := l.ch.Close()
	<-received
	switch reason := <-l.closed; {
	case reason != nil:
		return reason
	case l.unroutable:
		return errUnroutable
	case err != nil:
		return err
	}
	return closeErr
}

// feed publishes frames until the lane takes no more.
func (l *lane) feed(received <-chan struct{}) error {
	for {
		select {
		case l.slots <- struct{}{}:
		case <-received:
			return nil
		}
		f, queue := l.take(l)
		if f == nil {
			return nil
		}
		l.sequence++
		s := sent{f, strconv.FormatUint(l.sequence, 10), time.Now()}
		l.mu.Lock()
		l.outstanding = append(l.outstanding, s)
		l.mu.Unlock()
		m := amqp.Publishing{
			DeliveryMode:  amqp.Persistent,
			CorrelationId: s.id,
			Timestamp:     s.at,
		}
		if f.probe {
			m.ContentType, m.Body = "application/json", f.body
		} else {
			m.Headers, m.MessageId = frame.Headers(f.segments), f.segments[0].Base.String()
			m.ContentType, m.Type = frame.ContentType, frame.Type
			m.Body, m.ContentEncoding = l.compress.Compress(f.body)
		}
		if err := l.ch.Publish(broker.DefaultExchange, queue, true, false, m); err != nil {
			return err // the frame is among the outstanding ones: receive gives it back
		}
	}
}

// receive settles frames as their confirms come, until the channel is closed, and gives back those left.
func (l *lane) receive() {
	returned := make(map[string]bool)
	for c := range l.confirms {
		l.collectReturns(returned)
		s := l.confirmed()
		var took time.Duration
		done := false
		switch {
		case c.Ack && returned[s.id]:
			delete(returned, s.id)
			l.unroutable = true
			l.end() // first, so that this lane does not take the frame again
			l.giveBack([]*pending{s.frame})
		case c.Ack:
			took, done = time.Since(s.at), true
			l.confirmedAfter(s.at)
			if !s.frame.probe {
				l.metrics.confirmSeconds.Observe(took.Seconds())
				l.metrics.frameRecords.Observe(float64(s.frame.records))
			}
		default:
			l.refused(s.frame, time.Now())
		}
		l.outcome(c.Ack, time.Now())
		l.came(took, s.frame) // before the clients get their answers: those who come again would be counted twice
		if done {
			s.frame.settle(nil)
			l.recycle(s.frame)
		}
		<-l.slots
	}
	l.end()
	unknown := l.unknown()
	l.came(0, unknown...)
	l.giveBack(unknown)
}

// collectReturns notes the messages that could not be routed. One is returned before it is acked. The library
// closes the channel of returns before that of confirms.
func (l *lane) collectReturns(returned map[string]bool) {
	for {
		select {
		case r, ok := <-l.returns:
			if !ok {
				l.returns = nil
				return
			}
			returned[r.CorrelationId] = true
		default:
			return
		}
	}
}

// confirmed returns the frame that was published first of those outstanding. The library hands confirms over
// in the order of publishing.
func (l *lane) confirmed() sent {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.outstanding[0]
	l.outstanding[0] = sent{}
	l.outstanding = l.outstanding[1:]
	return s
}

// unknown returns the frames whose confirms can't come any more.
func (l *lane) unknown() []*pending {
	l.mu.Lock()
	defer l.mu.Unlock()
	var frames []*pending
	for _, s := range l.outstanding {
		frames = append(frames, s.frame)
	}
	l.outstanding = nil
	return frames
}

// stuck says whether a frame was published before since and is not confirmed, or frames have been refused, and none
// confirmed, from before until after it.
func (l *lane) stuck(since time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.outstanding) > 0 && l.outstanding[0].at.Before(since) ||
		!l.refusedSince.IsZero() && l.refusedSince.Before(since) && l.refusedLast.After(since)
}

// outcome keeps since when the lane's frames are refused.
func (l *lane) outcome(ack bool, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case ack:
		l.refusedSince = time.Time{}
		return
	case l.refusedSince.IsZero():
		l.refusedSince = now
	}
	l.refusedLast = now
}

// open lets the lane take frames.
func (l *lane) open() {
	l.publisher.mu.Lock()
	defer l.publisher.mu.Unlock()
	l.lanes[l] = true
	l.trouble = nil
	l.report()
	l.probe(time.Now())
}

// end has the lane take no more frames, and wakes it up when it waits for one.
func (l *lane) end() {
	l.publisher.mu.Lock()
	defer l.publisher.mu.Unlock()
	if !l.ended {
		l.ended = true
		delete(l.lanes, l)
		t := asked
		if len(l.lanes) == 0 {
			t = doubted // whoever serves the next ones has to prove himself
		}
		l.question(t, time.Now())
	}
	l.report()
	l.work.Broadcast()
}
