package worker

import (
	"sync/atomic"
	"time"
)

// item is a decoded delivery: what to store and what to set aside.
type item struct {
	source      int    // which of the stream's queues it came from
	tag         uint64 // delivery tag, counting up by source
	redelivered bool
	size        int // bytes of the delivery's body
	segments    []segment
	dead        []DeadLetter
}

// batch is what one transaction stores. Its frames are acknowledged together.
type batch struct {
	segments []segment
	dead     []DeadLetter
	frames   []int    // by source
	tags     []uint64 // by source: of the last frame

	rows          int
	bytes         int // of records and of dead letters' payloads
	deliveryBytes int // of the deliveries' bodies, as they came
	redelivered   int // frames that RabbitMQ had delivered before
}

func newBatch(sources int) *batch {
	return &batch{frames: make([]int, sources), tags: make([]uint64, sources)}
}

// add puts an item into the batch. A source's items must come in the order of their tags.
func (b *batch) add(it item) {
	b.segments = append(b.segments, it.segments...)
	b.dead = append(b.dead, it.dead...)
	b.frames[it.source]++
	b.tags[it.source] = it.tag
	b.deliveryBytes += it.size
	for _, s := range it.segments {
		b.rows += s.Records
		b.bytes += len(s.Body)
	}
	for _, d := range it.dead {
		b.bytes += len(d.Payload)
	}
	if it.redelivered {
		b.redelivered++
	}
}

// total returns the number of frames of all sources.
func (b *batch) total() int {
	n := 0
	for _, f := range b.frames {
		n += f
	}
	return n
}

// release drops the references to the deliveries' bodies.
func (b *batch) release() {
	clear(b.segments)
	clear(b.dead)
}

// reset empties the batch, so that it can be filled again.
func (b *batch) reset() {
	b.release()
	b.segments, b.dead = b.segments[:0], b.dead[:0]
	clear(b.frames)
	clear(b.tags)
	b.rows, b.bytes, b.deliveryBytes, b.redelivered = 0, 0, 0, 0
}

// batcher gathers items into batches. While one batch commits, it gathers the next one.
type batcher struct {
	// A batch closes when it has this many rows or bytes, when it is as old as linger, or when a source has as many unacknowledged
	// frames as its window: then that source sends no more.
	rows, bytes int
	linger      time.Duration
	window      func(source int) int
	sources     int

	items   <-chan item
	batches chan<- *batch   // unbuffered, closed by run; the receiver works on one at a time
	stop    <-chan struct{} // closed: hand over what there is, and end
	abandon <-chan struct{} // closed: end

	// finished counts the batches that the receiver is done with. The receiver counts a batch before it acknowledges the batch's
	// frames. So the window is open already when another frame comes in the place of an acknowledged one.
	finished atomic.Int64
}

// run gathers until stop or abandon is closed.
func (g *batcher) run() {
	defer close(g.batches)
	current, other := newBatch(g.sources), newBatch(g.sources)
	var handed int64 // batches handed over; the last one is other

	// The state of the current batch. empty: it has no item. due: it is handed over as soon as the receiver takes a batch. full: until
	// then no more items are read.
	empty, due, full := true, false, false
	timer := time.NewTimer(g.linger)
	timer.Stop()
	defer timer.Stop()
	for {
		items, batches := g.items, g.batches
		if full {
			items = nil
		}
		if !due {
			batches = nil
		}
		select {
		case it := <-items:
			current.add(it)
			if empty {
				empty = false
				timer.Reset(g.linger)
			}
			unacknowledged := current.frames[it.source]
			if g.finished.Load() < handed {
				unacknowledged += other.frames[it.source]
			}
			full = current.rows >= g.rows || current.bytes >= g.bytes
			due = due || full || unacknowledged >= g.window(it.source)
		case batches <- current:
			handed++
			current, other = other, current
			current.reset() // the receiver was done with it, or it would not have taken the next one
			empty, due, full = true, false, false
			timer.Stop()
		case <-timer.C:
			due = true
		case <-g.stop:
			if !empty {
				select {
				case g.batches <- current:
				case <-g.abandon:
				}
			}
			return
		case <-g.abandon:
			return
		}
	}
}
