package publish

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"millrace/internal/frame"
)

const (
	// callsPerGroup is how many requests one goroutine tells of their frame's confirm. Some hundred requests wait for one
	// confirm. If each were woken to write its own answer, the processor would go through a stack and much of fasthttp for
	// every answer, and all answers would be later. Groups this small let the other processors share the work.
	callsPerGroup = 16

	// maxPooled is the capacity up to which a frame's body is used again.
	maxPooled = 1 << 20
)

// Frame is a frame on its way to a confirm. The publisher's mutex guards body to retryAt until a lane takes the frame. From
// then on the lane owns them. err may be read once done is closed.
type Frame struct {
	body     []byte
	segments []frame.Segment
	keyed    bool      // the last segment belongs to one keyed request
	since    time.Time // when the last segment was begun
	begun    time.Time // when the frame was begun; its deadline counts from here
	records  int
	requests int
	attempts int       // how often it was published
	probe    bool      // the frame has no records: it is sent for its confirm alone
	retryAt  time.Time // earliest time to publish it again, set when RabbitMQ refused it

	settled atomic.Bool
	done    chan struct{}
	err     error

	callsMu sync.Mutex
	calls   []*calls // nil once settled
}

// Done returns a channel that is closed once f is settled.
func (f *Frame) Done() <-chan struct{} { return f.done }

// Err returns why f was not confirmed, nil if it was. It may be called once f is settled.
func (f *Frame) Err() error { return f.err }

// calls is a group of functions that are called, one after the other, when a frame is settled.
type calls struct {
	functions []func(confirmed bool)
	done      chan struct{} // closed after the last
}

// callAll calls the functions one after the other, and then closes c.done.
func (c *calls) callAll(confirmed bool) {
	for _, f := range c.functions {
		f(confirmed)
	}
	close(c.done)
}

// OnSettled arranges for call to be called when f is settled. It returns a channel that is closed after the call. If f is
// settled already, ok is false and call is never called. confirmed tells call whether RabbitMQ has confirmed f. call must
// not block: others are called after it.
func (f *Frame) OnSettled(call func(confirmed bool)) (called <-chan struct{}, ok bool) {
	f.callsMu.Lock()
	defer f.callsMu.Unlock()
	if f.settled.Load() {
		return nil, false
	}
	last := len(f.calls) - 1
	if last < 0 || len(f.calls[last].functions) == callsPerGroup {
		f.calls = append(f.calls, &calls{make([]func(bool), 0, callsPerGroup), make(chan struct{})})
		last++
	}
	group := f.calls[last]
	group.functions = append(group.functions, call)
	return group.done, true
}

// settle ends the wait of all requests that have records in f. err is nil if f is confirmed, else the reason. settle reports
// whether f was unsettled until now.
func (f *Frame) settle(err error) bool {
	if !f.settled.CompareAndSwap(false, true) {
		return false
	}
	f.err = err
	close(f.done)
	f.callsMu.Lock()
	groups := f.calls
	f.calls = nil
	f.callsMu.Unlock()
	for i, group := range groups {
		if err == nil && i < len(groups)-1 {
			go group.callAll(true)
		} else {
			group.callAll(err == nil)
		}
	}
	return true
}

// Ticket is a request's share of a frame: records with the ids that count up from Base.
type Ticket struct {
	Frame   *Frame
	Base    uuid.UUID
	Records int
}

// Wait returns when all frames of tickets are confirmed, or when one of them has failed. It returns why that one failed, nil
// if none did.
func Wait(tickets []Ticket) error {
	// The last frame comes first: while RabbitMQ blocks, it is the one that was not sent and is refused at once.
	for _, t := range slices.Backward(tickets) {
		<-t.Frame.Done()
		if t.Frame.err != nil {
			return t.Frame.err
		}
	}
	return nil
}

// framePool makes frames. It reuses the memory of confirmed ones.
type framePool struct{ bodies sync.Pool } // of *[]byte

// get returns an empty frame whose deadline counts from now.
func (p *framePool) get(now time.Time) *Frame {
	f := &Frame{done: make(chan struct{}), begun: now}
	if b, ok := p.bodies.Get().(*[]byte); ok {
		f.body = (*b)[:0]
	}
	return f
}

// recycle takes a confirmed frame's memory back. A frame that was published twice may still be in the hands of a connection
// that is going down, so its memory is left to the garbage collector.
func (p *framePool) recycle(f *Frame) {
	if body := f.body; f.attempts == 1 && cap(body) <= maxPooled {
		f.body = nil
		p.bodies.Put(&body)
	}
}
