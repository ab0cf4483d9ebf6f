package api

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/broker"
	"millrace/internal/frame"
)

// window is how many frames a lane may have published and not yet seen confirmed. Two keep the channel busy
// while a confirm travels; more would only make the frames smaller.
const window = 2

// closeTimeout bounds the goodbye to a broker that may not answer.
const closeTimeout = 2 * time.Second

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

// run connects, runs the lanes until the connection ends, and connects again, until ctx is done and its lanes
// have nothing left to do, or flush is done.
func (l *link) run(ctx, flush context.Context) {
	wait := broker.NewBackoff()
	for {
		conn, err := broker.Redial(ctx, l.log, l.urls, fmt.Sprintf("millrace api %d", l.number))
		if err != nil {
			return // stopping
		}
		up := l.serve(conn, flush)
		if up {
			wait.Reset()
		}
		if broker.Sleep(ctx, wait.NextBackOff()) != nil {
			return
		}
	}
}

// serve runs the lanes on conn until it ends. It says whether any lane could be opened.
func (l *link) serve(conn *amqp.Connection, flush context.Context) (up bool) {
	select {
	case <-l.reset: // meant for the connection before
	default:
	}
	if err := l.declare(conn); err != nil {
		l.log.Error("the queues can't be declared", "error", err)
		l.setTrouble(err)
		l.close(conn)
		return false
	}
	blockings := conn.NotifyBlocked(make(chan amqp.Blocking, 1))
	ended := conn.NotifyClose(make(chan *amqp.Error, 1))
	var watch, lanes sync.WaitGroup
	watch.Go(func() {
		select {
		case <-l.reset:
			l.log.Warn("RabbitMQ does not confirm; connecting anew")
			l.close(conn)
		case err := <-ended: // nil when closed from this side
			if err != nil {
				l.log.Warn("RabbitMQ ended a connection", "error", err)
			}
		}
	})
	watch.Go(func() {
		for b := range blockings { // closed with the connection
			l.setBlocked(b)
		}
	})
	// A socket that the broker does not read from would hold up a lane for ever.
	cut := context.AfterFunc(flush, func() { l.close(conn) })
	opened := make(chan bool, l.lanes)
	for range l.lanes {
		lanes.Go(func() {
			opened <- l.serveLanes(conn)
		})
	}
	lanes.Wait()
	cut()
	l.close(conn)
	watch.Wait()
	l.setBlocked(amqp.Blocking{})
	close(opened)
	for one := range opened {
		up = up || one
	}
	return up
}

// declare makes sure that the queues are there, one link at a time: RabbitMQ may fail two declarations of the
// same quorum queue that run at once.
func (l *link) declare(conn *amqp.Connection) error {
	l.declaring.Lock()
	defer l.declaring.Unlock()
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	if err := l.topology.Declare(ch); err != nil {
		return err // the channel is closed, or the connection will be
	}
	return ch.Close()
}

func (l *link) close(conn *amqp.Connection) {
	if err := conn.CloseDeadline(time.Now().Add(closeTimeout)); err != nil && !errors.Is(err, amqp.ErrClosed) {
		l.log.Debug("close of a connection to RabbitMQ", "error", err)
	}
}

func (l *link) setBlocked(b amqp.Blocking) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, was := l.blocked[l]; was == b.Active {
		return
	}
	if b.Active {
		l.blocked[l] = b.Reason
		l.log.Warn("RabbitMQ blocks publishers", "reason", b.Reason)
	} else {
		delete(l.blocked, l)
		l.log.Info("RabbitMQ takes messages again")
	}
	l.report()
	l.work.Broadcast()
}

// serveLanes opens a channel and publishes on it, and opens another when it ends, until the connection has
// ended or there is nothing left to do. It says whether a channel could be opened.
func (l *link) serveLanes(conn *amqp.Connection) (up bool) {
	for !conn.IsClosed() {
		lane, err := l.openLane(conn)
		if err != nil {
			if !conn.IsClosed() {
				l.log.Error("no channel to publish on", "error", err)
				l.setTrouble(err)
				l.close(conn)
			}
			return up
		}
		up = true
		if lane.publish() {
			return up
		}
		if lane.unroutable && !conn.IsClosed() {
			if err := l.declare(conn); err != nil {
				l.log.Error("the queues can't be declared", "error", err)
				l.setTrouble(err)
				l.close(conn)
			}
		}
	}
	return up
}

// lane is a channel to publish on, in confirm mode.
type lane struct {
	*link
	ch       *amqp.Channel
	confirms chan amqp.Confirmation
	returns  chan amqp.Return
	slots    chan struct{} // holds one for each frame that is published and not confirmed

	ended bool // under the publisher's mutex: takes no more frames

	unroutable bool // a frame was returned; set by receive, read when it has ended

	mu          sync.Mutex
	outstanding []sent // by delivery tag
}

type sent struct {
	frame *pending
	at    time.Time
}

func (l *link) openLane(conn *amqp.Connection) (*lane, error) {
	ch, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	if err := ch.Confirm(false); err != nil {
		return nil, err
	}
	// The buffers hold all that can come, so that the library never waits for the receiver, or gives up on it.
	return &lane{
		link:     l,
		ch:       ch,
		confirms: ch.NotifyPublish(make(chan amqp.Confirmation, window)),
		returns:  ch.NotifyReturn(make(chan amqp.Return, window)),
		slots:    make(chan struct{}, window),
	}, nil
}

// publish sends frames until the channel ends or there is nothing left to do; the latter is its result.
func (l *lane) publish() (finished bool) {
	l.count(+1)
	received := make(chan struct{})
	go func() {
		l.receive()
		l.end()
		close(received)
	}()
	defer func() {
		if err := l.ch.Close(); err != nil && !errors.Is(err, amqp.ErrClosed) {
			l.log.Debug("close of a channel", "error", err)
		}
		<-received
		l.count(-1)
	}()
	for {
		select {
		case l.slots <- struct{}{}:
		case <-received:
			return false
		}
		f, queue := l.take(l)
		if f == nil {
			return l.drain(received)
		}
		l.mu.Lock()
		l.outstanding = append(l.outstanding, sent{f, time.Now()})
		l.mu.Unlock()
		err := l.ch.Publish(l.topology.Exchange(), queue, true, false, amqp.Publishing{
			Headers:      frame.Headers(f.segments),
			ContentType:  frame.ContentType,
			DeliveryMode: amqp.Persistent,
			MessageId:    f.segments[0].Base.String(),
			Timestamp:    time.Now(),
			Type:         frame.Type,
			Body:         f.body,
		})
		if err != nil {
			return false // the frame is among the outstanding ones: receive gives it back
		}
	}
}

// drain waits until every frame is confirmed, when there are no more to publish.
func (l *lane) drain(received <-chan struct{}) (finished bool) {
	if l.hasEnded() {
		return false
	}
	for range cap(l.slots) - 1 { // one is held already, for the frame that did not come
		select {
		case l.slots <- struct{}{}:
		case <-received:
			return false
		}
	}
	return true
}

// receive settles frames as their confirms come, until the channel is closed, and gives back those left.
func (l *lane) receive() {
	returned := make(map[string]bool)
	for c := range l.confirms {
		// A message that could not be routed is returned before it is acked.
		for more := true; more; {
			select {
			case r := <-l.returns:
				returned[r.MessageId] = true
			default:
				more = false
			}
		}
		s := l.confirmed()
		id := s.frame.segments[0].Base.String()
		switch {
		case c.Ack && returned[id]:
			delete(returned, id)
			l.log.Error("a frame could not be routed; declaring the queues anew", "exchange", l.topology.Exchange())
			l.unroutable = true
			l.end() // first, so that another lane's frame is not taken on the way out
			l.giveBack([]*pending{s.frame})
		case c.Ack:
			l.metrics.confirmSeconds.Observe(time.Since(s.at).Seconds())
			l.metrics.frameRecords.Observe(float64(s.frame.records))
			s.frame.settle(nil)
			l.recycle(s.frame)
		default:
			s.frame.settle(errRefused)
		}
		<-l.slots
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var unknown []*pending
	for _, s := range l.outstanding {
		unknown = append(unknown, s.frame)
	}
	l.outstanding = nil
	l.giveBack(unknown)
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

// end has the lane take no more frames, and wakes it up when it waits for one.
func (l *lane) end() {
	l.publisher.mu.Lock()
	defer l.publisher.mu.Unlock()
	l.ended = true
	l.work.Broadcast()
}

func (l *lane) hasEnded() bool {
	l.publisher.mu.Lock()
	defer l.publisher.mu.Unlock()
	return l.ended
}

func (l *lane) count(n int) {
	l.publisher.mu.Lock()
	defer l.publisher.mu.Unlock()
	l.lanesUp += n
	if l.lanesUp > 0 {
		l.trouble = nil
	}
	l.report()
}

func (l *link) setTrouble(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trouble = err
	l.report()
}
