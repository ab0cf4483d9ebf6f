package service

import (
	"cmp"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// The states of a connection, in the order in which they are closed to make room.
const (
	stranger int32 = iota // none of its requests was let in
	waiting               // between requests, one of which was let in
	busy                  // a request that was let in is under way: it is never closed
	closed
)

const (
	// firstToGo is how many strangers one look at all connections finds. While connections come faster than they are served,
	// every 64th of them costs such a look, of some 100 µs at 10,000 connections.
	firstToGo = 64

	// firstRequest is how long a stranger is safe while strangers have less than one in fewStrangers of the places.
	// Otherwise, if all places were taken, a client that has just connected would be closed for the next one before its
	// request was read.
	firstRequest = 50 * time.Millisecond
	fewStrangers = 8

	// restBeforeClose is how long a connection is safe after a request that was let in. Clients that send once a second keep
	// their connection, whatever strangers do.
	restBeforeClose = time.Second

	// ownDescriptors is how many file descriptors a service needs for itself: for servers, files, other listeners.
	ownDescriptors = 128
)

// Connections bounds how many connections a server has open at once. When it is full, a new connection takes the place of the
// stranger that has been idle for longest. If no stranger can go, it takes the place of the longest idle of the others. So
// clients that were never let in can't keep out those that are. Many goroutines may use it at once.
type Connections struct {
	maxOpen int
	began   time.Time // Connection.since counts from here

	mu       sync.Mutex
	open     map[*Connection]struct{}
	nextToGo []candidate // strangers to close next, in this order
}

// Connection is one of Connections. Only one goroutine at a time may call its methods, except where they say otherwise.
type Connection struct {
	of    *Connections
	cut   func()
	state atomic.Int32
	since atomic.Int64 // time of its opening or of its last request: nanoseconds after of.began
}

// candidate is a connection that was found idle, and its since at that moment.
type candidate struct {
	*Connection
	since int64
}

// NewConnections returns Connections that bound how many are open to most.
func NewConnections(most int) *Connections {
	return &Connections{maxOpen: most, began: time.Now(), open: make(map[*Connection]struct{})}
}

// Open adds a connection, or returns nil if there is no room and none can be made. cut must close the connection at once,
// without waiting for its client. Any goroutine may call cut until Close returns, and once after that.
func (s *Connections) Open(cut func()) *Connection {
	c := &Connection{of: s, cut: cut}
	c.since.Store(int64(time.Since(s.began)))
	s.mu.Lock()
	var victim *Connection
	if len(s.open) >= s.maxOpen {
		if victim = s.takeLongestIdle(); victim == nil {
			s.mu.Unlock()
			return nil
		}
	}
	s.open[c] = struct{}{}
	s.mu.Unlock()
	if victim != nil {
		victim.cut()
	}
	return c
}

// MakeRoom closes the longest idle connection, for a process that has no file descriptor left. It reports whether an idle one
// was found.
func (s *Connections) MakeRoom() bool {
	s.mu.Lock()
	victim := s.takeLongestIdle()
	s.mu.Unlock()
	if victim != nil {
		victim.cut()
	}
	return victim != nil
}

// CutAll closes all connections, busy ones too, and returns their number.
func (s *Connections) CutAll() int {
	s.mu.Lock()
	open := slices.Collect(maps.Keys(s.open))
	s.mu.Unlock()
	for _, c := range open {
		c.cut()
	}
	return len(open)
}

// Len returns how many connections are open.
func (s *Connections) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

// takeLongestIdle removes and returns the connection to close next, or nil if none may be closed. The caller holds s.mu.
func (s *Connections) takeLongestIdle() *Connection {
	if c := s.takeNext(); c != nil {
		return c
	}
	var longest candidate // the longest idle of those that were let in
	s.nextToGo = s.nextToGo[:0]
	for c := range s.open {
		since := c.since.Load()
		switch c.state.Load() {
		case stranger:
			s.nextToGo = append(s.nextToGo, candidate{c, since})
		case waiting:
			if longest.Connection == nil || since < longest.since {
				longest = candidate{c, since}
			}
		}
	}
	if len(s.nextToGo)*fewStrangers < s.maxOpen {
		now := int64(time.Since(s.began))
		s.nextToGo = slices.DeleteFunc(s.nextToGo, func(c candidate) bool { return now-c.since < int64(firstRequest) })
	}
	slices.SortFunc(s.nextToGo, func(a, b candidate) int { return cmp.Compare(a.since, b.since) })
	s.nextToGo = s.nextToGo[:min(len(s.nextToGo), firstToGo)]
	if c := s.takeNext(); c != nil {
		return c
	}
	if longest.Connection != nil && time.Since(s.began)-time.Duration(longest.since) >= restBeforeClose && longest.state.CompareAndSwap(waiting, closed) {
		delete(s.open, longest.Connection)
		return longest.Connection
	}
	return nil
}

// takeNext removes and returns the first of s.nextToGo that has not been used since it was found, or nil if there is none. The
// caller holds s.mu.
func (s *Connections) takeNext() *Connection {
	for len(s.nextToGo) > 0 {
		c := s.nextToGo[0]
		s.nextToGo = s.nextToGo[1:]
		if _, open := s.open[c.Connection]; open && c.Connection.since.Load() == c.since && c.state.CompareAndSwap(stranger, closed) {
			delete(s.open, c.Connection)
			return c.Connection
		}
	}
	return nil
}

// Enter notes that a request of the connection was let in. It reports false if the connection was closed to make room.
func (c *Connection) Enter() bool {
	for {
		state := c.state.Load()
		if state == closed {
			return false
		}
		if c.state.CompareAndSwap(state, busy) {
			return true
		}
	}
}

// Leave notes that the request that came at came is answered, whether it was let in or not.
func (c *Connection) Leave(came time.Time) {
	c.since.Store(int64(came.Sub(c.of.began)))
	c.state.CompareAndSwap(busy, waiting)
}

// Cut closes the connection at once, whatever it does. Any goroutine may call it.
func (c *Connection) Cut() { c.cut() }

// Close gives the connection's place back. Any goroutine may call it, also more than once.
func (c *Connection) Close() {
	c.state.Store(closed)
	c.of.mu.Lock()
	delete(c.of.open, c)
	c.of.mu.Unlock()
}

// WithinDescriptors returns most, or fewer if the process has too few file descriptors for so many connections. It logs that
// with the name of the setting, unless setting is empty.
func WithinDescriptors(setting string, most int, log *slog.Logger) int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur >= uint64(most)+ownDescriptors {
		return most
	}
	fewer := max(1, int(limit.Cur)-ownDescriptors, int(limit.Cur)/2)
	if fewer >= most {
		return most
	}
	if setting == "" {
		return fewer
	}
	log.Warn("fewer connections are served than "+setting+" allows: the process may have too few files open at once", "connections", fewer, "wanted", most, "files", limit.Cur)
	return fewer
}
