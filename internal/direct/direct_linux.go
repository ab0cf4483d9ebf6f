// Package direct reads and writes TCP sockets by system calls without telling Go's scheduler.
//
// The scheduler assumes that any system call may take long. It notes each call, and after the first one a thread of its
// own checks every 20 to 100 µs whether a call lasts, until the process is idle. A call on a non-blocking socket does
// not take long, unless it touches a page that is not in memory, as any access to memory may. In a service that is idle
// some hundred times a second, while it waits for a confirm, that thread takes a tenth of the service's processor time,
// and interrupts others at every check.
package direct

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
)

// maxCallBytes is the most bytes that one system call moves: the garbage collector may have to wait for its end.
const maxCallBytes = 64 << 10

// Conn is a TCP connection. At most one Read and one Write or Try may be under way at a time; Close may be called at any
// time. Nothing but Close may close the connection.
type Conn struct {
	*net.TCPConn
	raw     syscall.RawConn
	in, out transfer

	// The methods in.step and out.all, made once: a closure for each call would be garbage.
	read, write func(fd uintptr) bool

	// Try takes the descriptor from here, which touches less memory than raw does.
	mu     sync.Mutex
	fd     int
	closed bool // then fd may be another connection's
}

// transfer is the state of one Read or Write.
type transfer struct {
	call func(fd int, p []byte) (int, syscall.Errno)
	rest []byte // the part of the buffer that is still to be read into, or written
	n    int    // bytes done
	err  error
}

// New returns conn as a *Conn, or conn itself if it is no TCP connection or is closed.
func New(conn net.Conn) net.Conn {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return conn
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return conn // it is closed, as its next use will tell
	}
	c := &Conn{TCPConn: tcp, raw: raw, in: transfer{call: read}, out: transfer{call: write}}
	c.read, c.write = c.in.step, c.out.all
	if raw.Control(func(fd uintptr) { c.fd = int(fd) }) != nil {
		return conn
	}
	return c
}

// all makes system calls until everything is done or one fails. It reports false if it must wait for the socket.
func (t *transfer) all(fd uintptr) bool {
	for len(t.rest) > 0 && t.err == nil {
		if !t.step(fd) {
			return false
		}
	}
	return true
}

// step makes one system call. It reports false if it must wait for the socket.
func (t *transfer) step(fd uintptr) bool {
	for {
		n, errno := t.call(int(fd), t.rest[:min(len(t.rest), maxCallBytes)])
		switch errno {
		case 0:
			t.n += n
			t.rest = t.rest[n:]
			if n == 0 {
				t.err = io.EOF // of a Read: a Write never moves 0 bytes
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

// run transfers p. until is raw.Read or raw.Write: it calls step, and waits for the socket while step reports false. run
// returns the number of bytes transferred, and why there are no more.
func (t *transfer) run(p []byte, until func(func(fd uintptr) bool) error, step func(fd uintptr) bool) (int, error) {
	t.rest, t.n, t.err = p, 0, nil
	err := until(step)
	t.rest = nil // the caller's
	if err == nil {
		err = t.err
	}
	return t.n, err
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := c.in.run(p, c.raw.Read, c.read)
	return n, c.explain("read", err)
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.out.run(p, c.raw.Write, c.write)
	return n, c.explain("write", err)
}

// Try writes as much of p as the socket takes at once, and returns how many bytes that is. It returns 0 also if the
// connection is broken or closed; the next Write returns the error. It ignores deadlines.
func (c *Conn) Try(p []byte) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0
	}
	n, errno := write(c.fd, p[:min(len(p), maxCallBytes)])
	if errno != 0 {
		return 0
	}
	return n
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	return c.TCPConn.Close()
}

// explain returns err in the form in which a net.TCPConn would return it.
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
