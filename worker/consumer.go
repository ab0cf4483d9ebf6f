package worker

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	// leastWindow lets one frame travel while another one is stored, however large they are.
	leastWindow = 2

	// unknownFrame is the size in bytes that frames are assumed to have before the first one has come. It is that of the largest frame
	// that an API with default settings makes, of one record of 1 MiB.
	unknownFrame = 1 << 20

	// windowGrowth is the largest factor by which a window grows at once.
	windowGrowth = 4

	// idleAfter is the time between two looks whether a consumer is idle.
	idleAfter = 10 * time.Second
)

// window decides a queue's prefetch. RabbitMQ counts a window in frames, and a frame may have a hundred bytes or a million. So the
// window follows the size of the largest recent frame, and the bytes of the frames that are held stay near the budget.
type window struct {
	budget  int // bytes
	maxSize int // frames
	size    int // frames: the window in force
	want    int // frames: the window that there should be, at most maxSize

	// Frames are counted in rounds of size frames.
	counted       int // frames of this round
	largest       int // bytes of the largest frame of this round
	largestBefore int // bytes of the largest frame of the round before
}

func newWindow(budget, maxSize int) window {
	w := window{budget: budget, maxSize: maxSize}
	w.size = w.fit(unknownFrame)
	w.want = w.size
	return w
}

// fit returns how many frames of a size the budget has room for. It returns leastWindow at least and maxSize at most.
func (w *window) fit(bytes int) int {
	return min(max(w.budget/max(bytes, 1), leastWindow), w.maxSize)
}

// observe takes note of a frame and sets want. The window should shrink as soon as one frame is too large. It should grow after a round
// of small frames.
func (w *window) observe(bytes int) {
	w.largest = max(w.largest, bytes)
	w.counted++
	fit := w.fit(max(w.largest, w.largestBefore))
	roundEnds := w.counted >= w.size
	if roundEnds {
		w.largestBefore, w.largest, w.counted = w.largest, 0, 0
	}
	switch {
	case 2*fit <= w.size:
		w.want = fit
	case roundEnds && (fit >= 2*w.size || fit == w.maxSize && w.size < fit):
		w.want = min(fit, windowGrowth*w.size)
	case w.want > fit: // the window was to grow to want, for which frames are now too large
		w.want = w.size
	}
}

// consumer takes the frames of one queue.
//
// It has a channel of its own: an acknowledgement counts for all frames up to a tag, and deliveries come in the order of their tags only
// if the channel has no other consumer.
//
// A channel's prefetch counts for consumers that start after it was set. So a new window needs a new consumer at RabbitMQ. The frames
// of the old one can still be acknowledged. Frames that are in flight when it ends go back to the queue, which costs each of them one
// of its deliveries. So a consumer is replaced by one with a larger window only while its window is full and no acknowledgement is
// under way: then no frame is in flight. It is replaced by one with a smaller window at once: frames that are in flight then are too
// many anyway.
//
// A consumer that is idle is renewed, on a new channel. Its queue may have forgotten it: RabbitMQ tells a consumer when its queue is
// deleted, but drops the notice if the channel is on another node and the link between the two is busy. Or RabbitMQ has forgotten the
// queue: when it hears that a queue was deleted, and there is a new one of that name by then, it starts the consumer again, and drops
// what the new queue delivers (handle_eol in rabbit_channel). Such frames would stay out of reach for half an hour. Frames that are in
// flight when the old channel closes go back to the queue.
type consumer struct {
	queue     string
	source    int
	decode    func(d *amqp.Delivery, queue string, now time.Time) item
	open      func() (*amqp.Channel, error) // opens a channel
	gate      *gate
	idleAfter time.Duration // see the constant
	window    window        // belongs to receive
	size      atomic.Int64  // window.size, for other goroutines

	received        atomic.Int64 // frames; receive adds to it
	receivedAtStart int          // what received was when the present consumer started

	acks  sync.Mutex // held while frames are acknowledged, and while none may be
	acked int        // frames

	mu        sync.Mutex    // guards the fields below, and the channel's consumer
	channel   *amqp.Channel // changes while acks is held too
	tag       string        // of the present consumer
	consumers int           // how many have started
	stopped   bool
}

// start opens a channel and starts a consumer at RabbitMQ on it, with the window in force. It returns the deliveries. The caller holds
// mu and acks, or no other goroutine knows c yet.
func (c *consumer) start() (deliveries <-chan amqp.Delivery, err error) {
	channel, err := c.open()
	if err != nil {
		return nil, err // the channel of before stays, closed: others may still stop the consumer
	}
	c.channel = channel
	return c.consume(c.window.size)
}

// consume starts a consumer at RabbitMQ with a window of size frames, and returns its deliveries. The caller holds mu, or no other
// goroutine knows c yet.
func (c *consumer) consume(size int) (<-chan amqp.Delivery, error) {
	if err := c.channel.Qos(size, 0, false); err != nil {
		return nil, err
	}
	c.consumers++
	c.tag = "millrace-" + strconv.Itoa(c.consumers)
	deliveries, err := c.channel.Consume(c.queue, c.tag, false, false, false, false, nil)
	if err != nil {
		return nil, fmt.Errorf("consume %s: %w", c.queue, err)
	}
	c.size.Store(int64(size))
	return deliveries, nil
}

// resize ends the consumer, starts one with another window, and returns its deliveries. It returns nil if that fails. The channel of
// the old consumer's deliveries is closed after the last of them.
func (c *consumer) resize(size int) <-chan amqp.Delivery {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped || c.channel.Cancel(c.tag, false) != nil {
		return nil
	}
	deliveries, err := c.consume(size)
	if err != nil {
		return nil // the channel has ended
	}
	return deliveries
}

// renew closes the channel, and starts a consumer with the same window on another one. It returns its deliveries, or nil if that fails.
// The caller holds acks, and the consumer is idle.
func (c *consumer) renew() <-chan amqp.Delivery {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped || c.channel.Close() != nil {
		return nil
	}
	deliveries, err := c.start()
	if err != nil {
		return nil // the queue is gone, or the connection
	}
	return deliveries
}

// stop ends the consumer for good.
func (c *consumer) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
	_ = c.channel.Cancel(c.tag, true) // it fails if the channel has ended, which ends the consumer too
}

// ack acknowledges all frames up to a tag. frames is how many those are.
func (c *consumer) ack(frames int, tag uint64) error {
	c.acks.Lock()
	defer c.acks.Unlock()
	c.acked += frames
	return c.channel.Ack(tag, true)
}

// lockIfIdle reports whether all frames that came are acknowledged. If so, lockIfIdle has locked acks.
func (c *consumer) lockIfIdle() bool {
	return c.lockIf(func() bool { return int(c.received.Load()) == c.acked })
}

// lockIfFull reports whether the window is full. If it is, lockIfFull has locked acks.
func (c *consumer) lockIfFull() bool {
	return c.lockIf(func() bool {
		return int(c.received.Load())-max(c.acked, c.receivedAtStart) >= c.window.size
	})
}

// lockIf locks acks if the condition holds then, and reports whether it has: no frame is acknowledged until the caller unlocks it. It
// does not wait for an acknowledgement that is under way; the caller asks again later.
func (c *consumer) lockIf(holds func() bool) bool {
	if !c.acks.TryLock() {
		return false
	}
	if !holds() {
		c.acks.Unlock()
		return false
	}
	return true
}

// receive makes items of deliveries until there are no more or lost is done. It takes deliveries from the client library at once, so
// that the gate knows what is held. It does not close items, because others send to it. background starts a goroutine that may
// outlast receive, but not the connection.
func (c *consumer) receive(lost context.Context, deliveries <-chan amqp.Delivery, items chan<- item, background func(func())) {
	var waiting []amqp.Delivery
	var next item
	resumed := make(chan (<-chan amqp.Delivery), 1)
	changing := false // resized or renewed
	heard := true     // whether a frame has come since the last look
	look := time.NewTicker(c.idleAfter)
	defer look.Stop()
	for {
		if next.tag == 0 && len(waiting) > 0 {
			next = c.decode(&waiting[0], c.queue, time.Now())
			next.source, next.size = c.source, len(waiting[0].Body)
			waiting[0] = amqp.Delivery{}
			waiting = waiting[1:]
		}
		var out chan<- item
		if next.tag != 0 {
			out = items
		}
		var resume <-chan (<-chan amqp.Delivery)
		if deliveries == nil {
			resume = resumed
		}
		select {
		case d, ok := <-deliveries:
			if !ok {
				if !changing {
					return
				}
				deliveries = nil
				continue
			}
			heard = true
			c.gate.take(len(d.Body))
			waiting = append(waiting, d)
			c.received.Add(1)
			c.window.observe(len(d.Body))
			if size := c.window.want; !changing && size < c.window.size {
				changing = true
				background(func() { resumed <- c.resize(size) })
			} else if !changing && size > c.window.size && c.lockIfFull() {
				changing = true
				background(func() {
					defer c.acks.Unlock()
					defer c.gate.force()() // RabbitMQ's answer must get through, though no frame is acknowledged meanwhile
					resumed <- c.resize(size)
				})
			}
		case deliveries = <-resume:
			if deliveries == nil {
				return
			}
			changing = false
			c.receivedAtStart, c.window.size = int(c.received.Load()), int(c.size.Load())
			c.window.want = c.window.size
		case <-look.C:
			if !heard && !changing && c.lockIfIdle() {
				changing, deliveries = true, nil
				background(func() {
					defer c.acks.Unlock()
					resumed <- c.renew()
				})
			}
			heard = false
		case out <- next:
			next = item{}
		case <-lost.Done():
			return
		}
	}
}

// gate stops reading from a connection while the frames that are held have too many bytes. Mostly the windows keep them below that. But
// if huge frames follow small ones, a whole window of huge ones is in flight before the first has come. If reading stops for long,
// because the database is down, the connection is lost and the frames go back.
type gate struct {
	limit int // bytes

	mu     sync.Mutex
	held   int // bytes
	forced int // above zero: the gate is open whatever is held
	change sync.Cond
}

func newGate(limit int) *gate {
	g := &gate{limit: limit}
	g.change.L = &g.mu
	return g
}

// take counts the bytes of a frame that has come.
func (g *gate) take(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held += n
}

// release counts off the bytes of frames that were acknowledged.
func (g *gate) release(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held -= n
	g.change.Broadcast()
}

// force opens the gate until undo is called.
func (g *gate) force() (undo func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.forced++
	g.change.Broadcast()
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.forced--
	}
}

// through returns conn with reads that wait while the gate is closed.
func (g *gate) through(conn net.Conn) net.Conn { return gated{conn, g} }

// gated is a connection whose reads wait while the gate is closed.
type gated struct {
	net.Conn
	gate *gate
}

func (c gated) Read(p []byte) (int, error) {
	c.gate.mu.Lock()
	for c.gate.held > c.gate.limit && c.gate.forced == 0 {
		c.gate.change.Wait()
	}
	c.gate.mu.Unlock()
	return c.Conn.Read(p)
}
