package front

import (
	"bytes"
	"errors"
	"net"
	"time"

	"millrace/internal/direct"
	"millrace/internal/service"
)

// Conn is a connection that is served. Only one goroutine at a time may use it, except that any may call Close.
//
// It sets deadlines as late and as rarely as it can: fasthttp moves them three times a request, and the runtime's timers for
// that cost more than reading the header. It may also write an answer before fasthttp does: see Prepare.
type Conn struct {
	net.Conn
	listener *Listener
	Place    *service.Connection // the place among all connections; the request under way may use it

	readDeadlineAsked   time.Time
	readDeadlineInForce time.Time // the next Read sets it anew
	writeDeadline       time.Time // in force

	// What early answers need; see answer.go.
	socket        *direct.Conn // nil if no answer is written early
	between       bool         // the last request is over and nothing was read since
	deadlineMoves int          // how often the read deadline was moved since the last request
	isClear       bool         // fasthttp's buffers were empty when the request began
	answer        []byte       // the prepared answer
	headBytes     int          // bytes of its header, without the empty line
	earlyBytes    int          // bytes of the answer that were written early

	onSettled func(confirmed bool) // the method settle; made once, so that Hold allocates nothing
	budget    Budget               // what the request's bytes are given back to
	heldBytes int64                // the request's bytes

	idler Idler // nil for most
}

// isNear reports whether the deadline in force may stay, because it is near enough to the one asked for.
func (l *Listener) isNear(inForce, asked time.Time) bool {
	d := asked.Sub(inForce)
	return d >= 0 && d < l.slack
}

// SetReadDeadline notes the deadline of later Reads. The next Read sets it: a request that came whole needs no Read, and so
// no deadline, until the next request.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.readDeadlineAsked = t
	c.deadlineMoves++
	return nil
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	if !c.listener.isNear(c.readDeadlineInForce, c.readDeadlineAsked) {
		if err := c.Conn.SetReadDeadline(c.readDeadlineAsked); err != nil {
			return 0, err
		}
		c.readDeadlineInForce = c.readDeadlineAsked
	}
	if c.between {
		// fasthttp moves the deadline before it waits for a request's first byte, and again when it has the byte. After a
		// single move it is waiting: its read buffer is empty, and it has written all answers.
		c.between, c.isClear = false, c.deadlineMoves == 1
	}
	n, err := c.Conn.Read(p)
	if c.idler != nil {
		return c.waitIdly(p, n, err)
	}
	return n, err
}

// Write implements net.Conn. If p begins with an answer that was written early, Write leaves it out; if only a part of that
// was written, Write writes the rest of it first.
func (c *Conn) Write(p []byte) (int, error) {
	if c.earlyBytes == 0 {
		return c.Conn.Write(p)
	}
	rest, done := c.answer[c.earlyBytes:], len(c.answer)
	c.earlyBytes = 0
	if len(rest) > 0 {
		if _, err := c.Conn.Write(rest); err != nil {
			return 0, err
		}
	}
	switch {
	case !c.isPrepared(p): // p has one more header, which says that the connection closes
		return 0, net.ErrClosed
	case done == len(p):
		return done, nil
	}
	n, err := c.Conn.Write(p[done:])
	return done + n, err
}

// isPrepared reports whether p begins with the prepared answer. The date may differ.
func (c *Conn) isPrepared(p []byte) bool {
	const status = len("HTTP/1.1 202")
	return len(p) >= len(c.answer) && bytes.Equal(p[:status], c.answer[:status]) && bytes.HasPrefix(p[c.headBytes:], []byte("\r\n\r\n"))
}

// Begin must be called when a request's header has been read.
func (c *Conn) Begin() {
	if c.between {
		c.isClear = false // the request came together with the one before
	}
}

// End must be called when fasthttp has the request's answer.
func (c *Conn) End() { c.between, c.deadlineMoves = true, 0 }

// SetWriteDeadline sets the deadline of later Writes, unless the one in force is near enough.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	if c.listener.isNear(c.writeDeadline, t) {
		return nil
	}
	c.writeDeadline = t
	return c.Conn.SetWriteDeadline(t)
}

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// Close implements net.Conn. It makes room for another connection.
func (c *Conn) Close() error {
	c.Place.Close()
	return c.Conn.Close()
}

// Idler has something to do while a connection waits for bytes.
type Idler interface {
	// Idle is called in a Read whose deadline has passed without a byte. p is where the Read would put what comes. If wait is
	// true the Read waits on. Otherwise it returns: without an error if handBack is true, else with its time-out.
	Idle(p []byte) (wait, handBack bool)
}

// SetIdler has later Reads call i while they wait; nil ends that.
func (c *Conn) SetIdler(i Idler) { c.idler = i }

// waitIdly goes on with a Read that has returned n and err. While it times out, waitIdly calls the Idler.
func (c *Conn) waitIdly(p []byte, n int, err error) (int, error) {
	for {
		var timeout interface{ Timeout() bool }
		if n > 0 || err == nil || !errors.As(err, &timeout) || !timeout.Timeout() {
			return n, err
		}
		wait, handBack := c.idler.Idle(p)
		switch {
		case handBack:
			return 0, nil
		case !wait:
			return 0, err
		}
		if err := c.Conn.SetReadDeadline(c.readDeadlineAsked); err != nil {
			return 0, err
		}
		c.readDeadlineInForce = c.readDeadlineAsked
		n, err = c.Conn.Read(p)
	}
}
