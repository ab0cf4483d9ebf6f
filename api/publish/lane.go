package publish

import (
	"strconv"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/broker"
	"millrace/internal/frame"
)

const (
	// window is how many frames of a lane may be published and not yet confirmed. Two keep the channel busy while a
	// confirm travels; more would only make the frames smaller.
	window = 2

	// ProbeBody is the body of a probe, a message without records. Other programs may send it too. Workers of any
	// version acknowledge it and store nothing.
	ProbeBody = "[]"
)

// lane is a channel to publish on, in confirm mode.
type lane struct {
	link     *link
	pub      *Publisher // the link's
	ch       *amqp.Channel
	confirms chan amqp.Confirmation
	returns  chan amqp.Return
	closed   chan *amqp.Error
	compress *frame.Compressor
	slots    chan struct{} // holds one for each frame that is published and not confirmed
	sequence uint64

	ended      bool // takes no more frames; the publisher's mutex guards it
	unroutable bool // a frame was returned; receive sets it, and it is read once receive has returned

	mu           sync.Mutex
	outstanding  []sent    // by delivery tag
	refusedSince time.Time // when RabbitMQ began to refuse what the lane publishes; zero while it confirms
	refusedLast  time.Time // when it last refused a frame
}

// sent is a frame that was published. id is unique on its lane: a return names the frame by it.
type sent struct {
	frame *Frame
	id    string
	at    time.Time
}

// openLane opens a channel in confirm mode.
func (l *link) openLane(conn *broker.Connection) (*lane, error) {
	ch, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	if err := ch.Confirm(false); err != nil {
		return nil, err
	}
	compress, err := frame.NewCompressor(l.pub.compress)
	if err != nil {
		return nil, err
	}
	// The channels' buffers hold all that can come, so that the library never waits for the receiver, or gives up on it.
	return &lane{
		link:     l,
		pub:      l.pub,
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
		return ErrUnroutable
	case err != nil:
		return err
	}
	return closeErr
}

// feed publishes frames until the lane takes no more, when it returns nil, or a publish fails.
func (l *lane) feed(received <-chan struct{}) error {
	for {
		select {
		case l.slots <- struct{}{}:
		case <-received:
			return nil
		}
		f, queue := l.pub.take(l)
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

// receive settles frames as their confirms come, until the channel is closed. Then it gives back the frames that are
// left.
func (l *lane) receive() {
	returned := make(map[string]bool)
	for c := range l.confirms {
		l.collectReturns(returned)
		s := l.takeFirst()
		var took time.Duration
		done := false
		switch {
		case c.Ack && returned[s.id]:
			delete(returned, s.id)
			l.unroutable = true
			l.end() // first, so that this lane does not take the frame again
			l.pub.giveBack([]*Frame{s.frame})
		case c.Ack:
			took, done = time.Since(s.at), true
			l.pub.confirmed(s.at)
			if !s.frame.probe {
				l.pub.metrics.confirmSeconds.Observe(took.Seconds())
				l.pub.metrics.frameRecords.Observe(float64(s.frame.records))
			}
		default:
			l.pub.refused(s.frame, time.Now())
		}
		l.noteOutcome(c.Ack, time.Now())
		l.pub.answered(took, s.frame) // before the clients get their answers, or those that come again would be counted twice
		if done {
			s.frame.settle(nil)
			l.pub.frames.recycle(s.frame)
		}
		<-l.slots
	}
	l.end()
	unknown := l.takeAll()
	l.pub.answered(0, unknown...)
	l.pub.giveBack(unknown)
}

// collectReturns adds the ids of the messages that could not be routed to returned. A message is returned before it is
// acked. The library closes the channel of returns before that of confirms.
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

// takeFirst takes out the oldest of the outstanding frames. It is the one that a confirm means: the library hands
// confirms over in the order of publishing.
func (l *lane) takeFirst() sent {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.outstanding[0]
	l.outstanding[0] = sent{}
	l.outstanding = l.outstanding[1:]
	return s
}

// takeAll takes out the outstanding frames, whose confirms can't come any more.
func (l *lane) takeAll() []*Frame {
	l.mu.Lock()
	defer l.mu.Unlock()
	var frames []*Frame
	for _, s := range l.outstanding {
		frames = append(frames, s.frame)
	}
	l.outstanding = nil
	return frames
}

// isStuck reports whether a frame published before since is still not confirmed, or whether RabbitMQ has refused
// everything from before since until after it.
func (l *lane) isStuck(since time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.outstanding) > 0 && l.outstanding[0].at.Before(since) ||
		!l.refusedSince.IsZero() && l.refusedSince.Before(since) && l.refusedLast.After(since)
}

// noteOutcome notes a confirm, or a refusal if ack is false, for isStuck.
func (l *lane) noteOutcome(ack bool, now time.Time) {
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
	l.pub.mu.Lock()
	defer l.pub.mu.Unlock()
	l.pub.lanes[l] = true
	l.pub.noLaneReason = nil
	l.pub.reportLocked()
	l.pub.probeLocked(time.Now())
}

// end stops the lane from taking frames, and wakes it up if it waits for one.
func (l *lane) end() {
	l.pub.mu.Lock()
	defer l.pub.mu.Unlock()
	if !l.ended {
		l.ended = true
		delete(l.pub.lanes, l)
		t := confirmWanted
		if len(l.pub.lanes) == 0 {
			t = doubted // the server of the next lanes has yet to confirm something
		}
		l.pub.questionLocked(t, time.Now())
	}
	l.pub.reportLocked()
	l.pub.work.Broadcast()
}
