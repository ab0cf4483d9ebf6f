// Package direct reads and writes TCP sockets by system calls that Go's scheduler is not told of.
//
// To the scheduler a system call may last: it takes note of each, and a thread of its own looks every 20 to 100 µs
// whether one does, from the first call after the process was idle on. A call on a socket that doesn't block does not
// last, but for what any access to memory may meet, a page that is not there. In a service that is idle some hundred
// times a second, while it waits for a confirm, that thread takes a tenth of the service's processor time, and the
// processor from others at every look.
package direct

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
)

// most is how many bytes one system call is asked for: the garbage collector may have to wait for its end.
const most = 64 << 10

// Conn is a TCP connection. At most one Read and one Write or Try may be under way at a time; Close may be called at any
// time. Nothing but Close may close the connection.
type Conn struct {
	*net.TCPConn
	raw     syscall.RawConn
	in, out transfer

	// What is called with the descriptor, made once: a closure for each call would be garbage.
	read, write func(fd uintptr) bool

	// Try has the descriptor from here: less memory to be fetched than by way of raw.
	mu     sync.Mutex
	fd     int
	closed bool // the descriptor may be another's
}

// transfer is the state of a Read or a Write.
type transfer struct {
	call func(fd int, p []byte) (int, syscall.Errno)
	rest []byte // what is still to be read into, or written
	n    int    // bytes done
	err  error
}

// New returns conn as a Conn, or as it is when it is not of TCP.
func New(conn net.Conn) net.Conn {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return conn
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return conn // closed: whoever uses it gets to know
	}
	c := &Conn{TCPConn: tcp, raw: raw, in: transfer{call: read}, out: transfer{call: write}}
	c.read, c.write = c.in.step, c.out.all
	if raw.Control(func(fd uintptr) { c.fd = int(fd) }) != nil {
		return conn
	}
	return c
}

// all goes on until everything is done, and reports whether it is.
func (t *transfer) all(fd uintptr) bool {
	for len(t.rest) > 0 && t.err == nil {
		if !t.step(fd) {
			return false
		}
	}
	return true
}

// step makes one system call. It reports false when the socket would have to be waited for.
func (t *transfer) step(fd uintptr) bool {
	for {
		n, errno := t.call(int(fd), t.rest[:min(len(t.rest), most)])
		switch errno {
		case 0:
			t.n += n
			t.rest = t.rest[n:]
			if n == 0 {
				t.err = io.EOF // of a Read; no Write of TCP does nothing
			}
			return true
		case syscall.EAGAIN:
			return false
		case syscall.EINTR:
		default:
			t.err = errno
			return true
		}
	}
}

// run has p transferred by how, and returns what came of it.
func (t *transfer) run(p []byte, on func(func(fd uintptr) bool) error, how func(fd uintptr) bool) (int, error) {
	t.rest, t.n, t.err = p, 0, nil
	err := on(how)
	t.rest = nil // the caller's
	if err == nil {
		err = t.err
	}
	return t.n, err
}

// Read is net.Conn's.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := c.in.run(p, c.raw.Read, c.read)
	return n, c.explain("read", err)
}

// Write is net.Conn's.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.out.run(p, c.raw.Write, c.write)
	return n, c.explain("write", err)
}

// Try writes as much of p as the socket takes at once, and returns how much that was: nothing also when the connection
// is broken or closed. It knows no deadline. Whoever writes the rest gets to know.
func (c *Conn) Try(p []byte) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0
	}
	n, errno := write(c.fd, p[:min(len(p), most)])
	if errno != 0 {
		return 0
	}
	return n
}

// Close is net.Conn's.
func (c *Conn) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	return c.TCPConn.Close()
}

// explain makes err what a net.TCPConn would return.
func (c *Conn) explain(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	var outer *net.OpError
	var errno syscall.Errno
	switch {
	case errors.As(err, &outer): // raw-read, raw-write
		err = outer.Err
	case errors.As(err, &errno):
		err = os.NewSyscallError(op, errno)
	}
	return &net.OpError{Op: op, Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}
