package chaos

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// A proxy of our own, and not toxiproxy: the faults that matter most here are tied to what travels (the answer to a
// COMMIT, the middle of a COPY, a confirm), and those it can't express.

// direction is which way bytes go through a link.
type direction int

const (
	up   direction = iota // from the one who dialled
	down                  // to the one who dialled
)

// weather is the state of a link.
type weather struct {
	delay  time.Duration // each piece of data waits so long
	rate   int           // bytes a second in each direction; 0 is no limit
	stall  bool          // nothing gets through, nobody is told
	refuse bool          // new connections are reset
	trap   *trap
}

// trap resets a connection at the sight of some bytes.
type trap struct {
	way     direction
	pattern []byte
	keep    int // how many bytes, counted from where the pattern begins, still get through
	times   int // how often it springs

	mu     sync.Mutex
	sprung int
	done   chan struct{} // closed when it has sprung for the last time
}

func newTrap(way direction, pattern string, keep, times int) *trap {
	return &trap{way: way, pattern: []byte(pattern), keep: keep, times: times, done: make(chan struct{})}
}

// take reports whether the trap may spring once more. If so, it counts that as done.
func (t *trap) take() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sprung >= t.times {
		return false
	}
	if t.sprung++; t.sprung == t.times {
		close(t.done)
	}
	return true
}

// count returns how often the trap has sprung.
func (t *trap) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.sprung
}

// link carries the connections from one part to another, and breaks them when told to.
type link struct {
	name   string
	class  string // client-api, api-broker, …
	target string
	ln     net.Listener
	wg     sync.WaitGroup

	mu      sync.Mutex
	weather weather
	changed chan struct{} // closed when the weather changes
	pairs   map[*pair]bool
	closed  bool
}

// pair is one connection through a link.
type pair struct {
	near, far *net.TCPConn // far: to the target
	once      sync.Once
	gone      chan struct{}
}

func newLink(name, class, target string) (*link, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	l := &link{name: name, class: class, target: target, ln: ln, changed: make(chan struct{}), pairs: make(map[*pair]bool)}
	l.wg.Go(l.serve)
	return l, nil
}

// addr returns the address at which the link takes connections.
func (l *link) addr() string { return l.ln.Addr().String() }

// serve takes connections until the listener is closed.
func (l *link) serve() {
	for {
		conn, err := l.ln.Accept()
		if err != nil {
			return
		}
		near := conn.(*net.TCPConn)
		l.wg.Go(func() { l.carry(near) })
	}
}

// carry connects one client with the target until their connection ends.
func (l *link) carry(near *net.TCPConn) {
	w, _ := l.now()
	if w.refuse {
		reset(near)
		return
	}
	conn, err := net.DialTimeout("tcp", l.target, 5*time.Second)
	if err != nil {
		reset(near)
		return
	}
	p := &pair{near: near, far: conn.(*net.TCPConn), gone: make(chan struct{})}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		p.reset()
		return
	}
	l.pairs[p] = true
	l.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { l.pump(p, up, p.near, p.far) })
	both.Go(func() { l.pump(p, down, p.far, p.near) })
	both.Wait()
	p.end()
	l.mu.Lock()
	delete(l.pairs, p)
	l.mu.Unlock()
}

// pump moves bytes one way until that way ends.
func (l *link) pump(p *pair, way direction, from, to *net.TCPConn) {
	buf := make([]byte, 32<<10)
	var tail []byte // of what went before, for patterns that come in two pieces
	fuse := -1      // bytes to go until the reset; -1: no trap has sprung
	for {
		n, err := from.Read(buf)
		if b := buf[:n]; n > 0 {
			w, ok := l.pass(p)
			if !ok {
				return
			}
			if t := w.trap; t != nil && t.way == way && fuse < 0 {
				seen := append(tail, b...)
				if at := bytes.Index(seen, t.pattern); at >= 0 && t.take() {
					fuse = max(at-len(tail)+t.keep, 0)
				}
				tail = append([]byte(nil), seen[max(0, len(seen)-len(t.pattern)+1):]...)
			}
			if fuse >= 0 && fuse <= len(b) {
				_, _ = to.Write(b[:fuse])
				p.reset()
				return
			} else if fuse > 0 {
				fuse -= len(b)
			}
			if !p.write(to, b, w.rate) {
				return
			}
		}
		if errors.Is(err, io.EOF) {
			_ = to.CloseWrite() // the other way may go on
			return
		}
		if err != nil {
			p.reset()
			return
		}
	}
}

// pass waits until the weather lets data through, and returns the weather. It reports false if the connection is gone.
func (l *link) pass(p *pair) (weather, bool) {
	for {
		w, changed := l.now()
		if !w.stall {
			if w.delay > 0 {
				select {
				case <-time.After(w.delay):
				case <-p.gone:
					return w, false
				}
			}
			return w, true
		}
		select {
		case <-changed:
		case <-p.gone:
			return w, false
		}
	}
}

// write writes b, in small pieces if there is a rate to keep. It reports false if the connection is gone.
func (p *pair) write(to *net.TCPConn, b []byte, rate int) bool {
	const piece = 1 << 10
	for len(b) > 0 {
		n := len(b)
		if rate > 0 {
			n = min(n, piece)
			select {
			case <-time.After(time.Duration(n) * time.Second / time.Duration(rate)):
			case <-p.gone:
				return false
			}
		}
		if _, err := to.Write(b[:n]); err != nil {
			p.reset()
			return false
		}
		b = b[n:]
	}
	return true
}

// now returns the weather, and a channel that is closed when the weather changes.
func (l *link) now() (weather, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.weather, l.changed
}

// set changes the weather.
func (l *link) set(w weather) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.weather = w
	close(l.changed)
	l.changed = make(chan struct{})
}

// cut resets all connections that there are, and returns how many.
func (l *link) cut() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	for p := range l.pairs {
		p.reset()
	}
	return len(l.pairs)
}

// open returns how many connections there are.
func (l *link) open() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.pairs)
}

func (l *link) close() {
	_ = l.ln.Close()
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.cut()
	l.wg.Wait()
}

// reset ends both sides with an RST, as a broken network would. What is under way is lost.
func (p *pair) reset() {
	p.once.Do(func() {
		close(p.gone)
		reset(p.near)
		reset(p.far)
	})
}

// end closes both sides in order.
func (p *pair) end() {
	p.once.Do(func() {
		close(p.gone)
		_ = p.near.Close()
		_ = p.far.Close()
	})
}

// reset closes a connection with an RST.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
