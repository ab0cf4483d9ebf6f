package front

import (
	"bytes"
	"errors"
	"net"
	"time"

	"millrace/internal/direct"
	"millrace/internal/service"
)

// Conn is a connection that is served. It is for one goroutine at a time, but for Close.
//
// It sets deadlines as late and as rarely as it can: fasthttp moves them three times a request, and the runtime's timers
// for them cost more than reading its header. And it may have written an answer before fasthttp does: see Prepare.
type Conn struct {
	net.Conn
	listener *Listener
	Place    *service.Connection // among all connections; the request under way may use it

	readDeadlineAsked   time.Time
	readDeadlineInForce time.Time // set anew in the next Read
	writeDeadline       time.Time // in force

	// What early answers need; see answer.go.
	socket  *direct.Conn // nil where no answer is written early
	between bool         // a request is over and nothing was read since
	moves   int          // how often the read deadline was moved since then
	clear   bool         // fasthttp's buffers were empty when the request began
	answer  []byte       // the prepared answer
	head    int          // bytes of its header, without the empty line
	early   int          // bytes of the answer that were written early

	settled func(confirmed bool) // settle, made once
	budget  Budget               // what the request's bytes are given back to
	held    int64                // the request's bytes

	idler Idler // nil for most
}

// isNear reports whether the deadline in force is near enough to the one that is asked for to stay.
func (l *Listener) isNear(inForce, asked time.Time) bool {
	d := asked.Sub(inForce)
	return d >= 0 && d < l.slack
}

// SetReadDeadline sets the deadline of the Reads to come. A request that came whole needs none between its first byte and the
// next request's, so it is put off to the next Read.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.readDeadlineAsked = t
	c.moves++
	return nil
}

// Read is net.Conn's.
func (c *Conn) Read(p []byte) (int, error) {
	if !c.listener.isNear(c.readDeadlineInForce, c.readDeadlineAsked) {
		if err := c.Conn.SetReadDeadline(c.readDeadlineAsked); err != nil {
			return 0, err
		}
		c.readDeadlineInForce = c.readDeadlineAsked
	}
	if c.between {
		// fasthttp moves the deadline to wait for a request's first byte, and again when it has it. After one move it waits,
		// so nothing is in its buffer for reading; and then it has written all answers there were.
		c.between, c.clear = false, c.moves == 1
	}
	n, err := c.Conn.Read(p)
	if c.idler != nil {
		return c.waitIdly(p, n, err)
	}
	return n, err
}

// Write leaves out the answer that p begins with if it was written early, and completes it if it was only in part.
func (c *Conn) Write(p []byte) (int, error) {
	if c.early == 0 {
		return c.Conn.Write(p)
	}
	rest, done := c.answer[c.early:], len(c.answer)
	c.early = 0
	if len(rest) > 0 {
		if _, err := c.Conn.Write(rest); err != nil {
			return 0, err
		}
	}
	switch {
	case !c.isPrepared(p): // it has one more header by now, which says that the connection closes
		return 0, net.ErrClosed
	case done == len(p):
		return done, nil
	}
	n, err := c.Conn.Write(p[done:])
	return done + n, err
}

// isPrepared reports whether p begins with an answer like the prepared one. Its date may differ.
func (c *Conn) isPrepared(p []byte) bool {
	const status = len("HTTP/1.1 202")
	return len(p) >= len(c.answer) && bytes.Equal(p[:status], c.answer[:status]) && bytes.HasPrefix(p[c.head:], []byte("\r\n\r\n"))
}

// Begin is called when a request's header was read.
func (c *Conn) Begin() {
	if c.between {
		c.clear = false // it came with the one before
	}
}

// End is called when fasthttp has the request's answer.
func (c *Conn) End() { c.between, c.moves = true, 0 }

// SetWriteDeadline sets the deadline of Writes, unless the one in force is near enough.
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

// Close is net.Conn's. It makes room for another connection.
func (c *Conn) Close() error {
	c.Place.Close()
	return c.Conn.Close()
}

// Idler has something to do while a connection waits for bytes.
type Idler interface {
	// Idle is called in a Read whose deadline has passed without a byte. p is where the Read would put what comes. It reports
	// whether to wait on, or else whether to return from the Read without an error.
	Idle(p []byte) (wait, handBack bool)
}

// SetIdler has i called in Reads to come, nobody if it is nil.
func (c *Conn) SetIdler(i Idler) { c.idler = i }

// waitIdly goes on with a Read that has timed out, for the one that SetIdler has named.
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
