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
	// leastWindow lets one frame travel while the one before is stored, however large they are.
	leastWindow = 2

	// unknownFrame is what a frame is taken to have, in bytes, before any has come: the largest that an API with
	// default settings makes, a record of 1 MiB.
	unknownFrame = 1 << 20

	// windowGrowth is the most by which a window grows at once.
	windowGrowth = 4
)

// window sizes the prefetch of a queue. RabbitMQ counts a window in frames, and a frame has a hundred bytes or a
// million: so it follows the largest frame of late, and what is held stays near the budget.
type window struct {
	budget int // bytes
	most   int // frames
	size   int // frames, in force
	want   int // frames, at most most

	largest int // bytes of a frame, of those that are counted
	before  int // the same of those that were counted before them
	counted int
}

func newWindow(budget, most int) window {
	w := window{budget: budget, most: most}
	w.size = w.fit(unknownFrame)
	w.want = w.size
	return w
}

// fit is how many frames of some bytes the budget has room for.
func (w *window) fit(bytes int) int { return min(max(w.budget/max(bytes, 1), leastWindow), w.most) }

// see takes note of a frame. The window shall shrink at the first frame that is too large, and grow once a window of
// frames was small.
func (w *window) see(bytes int) {
	w.largest = max(w.largest, bytes)
	w.counted++
	fit := w.fit(max(w.largest, w.before))
	over := w.counted >= w.size
	if over {
		w.before, w.largest, w.counted = w.largest, 0, 0
	}
	switch {
	case 2*fit <= w.size:
		w.want = fit
	case over && (fit >= 2*w.size || fit == w.most && w.size < fit):
		w.want = min(fit, windowGrowth*w.size)
	case w.want > fit: // was to grow
		w.want = w.size
	}
}

// consumer takes the frames of one queue.
//
// It has a channel of its own: only within one consumer do deliveries come in the order of their tags, which an
// acknowledgement of all up to one relies on. A channel's prefetch counts for the consumers that start after it, so
// a new size means a new consumer; the frames of the one before stay ours to acknowledge. What is on its way when
// a consumer ends goes back and costs a delivery. So it ends in order to grow only while the window is used up and
// nothing is acknowledged, when nothing can be on its way; to shrink it ends at once, for then that is what should
// not come.
type consumer struct {
	queue   string
	source  int
	decode  func(d *amqp.Delivery, queue string, now time.Time) item
	channel *amqp.Channel
	gate    *gate
	window  window       // receive's
	size    atomic.Int64 // window.size, for others

	received atomic.Int64 // frames; receive's, for others to read
	started  int          // of them, when this consumer started
	acks     sync.Mutex
	acked    int

	mu      sync.Mutex
	tag     string
	tags    int
	stopped bool
}

// consume starts a consumer. The caller holds mu, or is alone.
func (c *consumer) consume(size int) (<-chan amqp.Delivery, error) {
	if err := c.channel.Qos(size, 0, false); err != nil {
		return nil, err
	}
	c.tags++
	c.tag = "millrace-" + strconv.Itoa(c.tags)
	deliveries, err := c.channel.Consume(c.queue, c.tag, false, false, false, false, nil)
	if err != nil {
		return nil, fmt.Errorf("consume %s: %w", c.queue, err)
	}
	c.size.Store(int64(size))
	return deliveries, nil
}

// resize ends the consumer and starts one with another window. The deliveries of the first end when all have been
// received. It returns nil when that can't be done.
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

// stop ends the deliveries.
func (c *consumer) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
	_ = c.channel.Cancel(c.tag, true) // a channel that has ended delivers nothing either
}

// ack acknowledges so many frames, up to a tag.
func (c *consumer) ack(frames int, tag uint64) error {
	c.acks.Lock()
	defer c.acks.Unlock()
	c.acked += frames
	return c.channel.Ack(tag, true)
}

// idle returns how many frames the consumer has received, and reports whether all of them are acknowledged.
func (c *consumer) idle() (received int, idle bool) {
	if !c.acks.TryLock() {
		return 0, false
	}
	defer c.acks.Unlock()
	received = int(c.received.Load())
	return received, received == c.acked
}

// usedUp says whether all the frames of the window are here, and then keeps them from being acknowledged until acks
// is unlocked.
func (c *consumer) usedUp() bool {
	if !c.acks.TryLock() {
		return false // the next frame asks again
	}
	if int(c.received.Load())-max(c.acked, c.started) < c.window.size {
		c.acks.Unlock()
		return false
	}
	return true
}

// receive makes deliveries into items until there are no more or lost is done. It takes them from the client
// library at once, so that the gate knows what is held. It does not close items, which others send to. background
// runs what may outlast it until the connection ends.
func (c *consumer) receive(lost context.Context, deliveries <-chan amqp.Delivery, items chan<- item, background func(func())) {
	var waiting []amqp.Delivery
	var next item
	resumed := make(chan (<-chan amqp.Delivery), 1)
	resizing := false
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
				if !resizing {
					return
				}
				deliveries = nil
				continue
			}
			c.gate.take(len(d.Body))
			waiting = append(waiting, d)
			c.received.Add(1)
			c.window.see(len(d.Body))
			if size := c.window.want; !resizing && size < c.window.size {
				resizing = true
				background(func() { resumed <- c.resize(size) })
			} else if !resizing && size > c.window.size && c.usedUp() {
				resizing = true
				background(func() {
					defer c.acks.Unlock()
					defer c.gate.force()() // nothing that it holds back can be acknowledged now
					resumed <- c.resize(size)
				})
			}
		case deliveries = <-resume:
			if deliveries == nil {
				return
			}
			resizing = false
			c.started, c.window.size = int(c.received.Load()), int(c.size.Load())
			c.window.want = c.window.size
		case out <- next:
			next = item{}
		case <-lost.Done():
			return
		}
	}
}

// gate stops reading from a connection while too many bytes of frames are held. Windows keep what is held below
// that; but when small frames are followed by huge ones, a whole window of them is on its way before the first
// has come. Stopped for long, by a database that is down, the connection is lost and the frames go back.
type gate struct {
	limit int

	mu     sync.Mutex
	held   int
	forced int // it is open whatever is held
	change sync.Cond
}

func newGate(limit int) *gate {
	g := &gate{limit: limit}
	g.change.L = &g.mu
	return g
}

func (g *gate) take(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held += n
}

// release is for frames that are acknowledged.
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

// through returns conn with reads that wait at the gate.
func (g *gate) through(conn net.Conn) net.Conn { return gated{conn, g} }

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
