package api

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"millrace/internal/direct"
	"millrace/internal/service"
)

const (
	// partings is how many connections beyond the limit are told so at once. It bounds what they cost; the others are
	// closed without a word.
	partings = 64

	// partingTime is how long a connection beyond the limit is kept to be told so, a TLS handshake included.
	partingTime = time.Second

	// acceptPause is the wait before the next try when the process has no file descriptor left.
	acceptPause = 50 * time.Millisecond
)

// listener serves at most limit connections at once. One more takes the place of an idle one, or is told that there is none.
// The listener knows the open ones, so that they can be closed when waiting for them must end.
type listener struct {
	net.Listener
	slack  time.Duration // how much earlier than asked for a read or write may time out
	answer []byte        // for a connection beyond the limit: a whole HTTP response
	turned func()        // counts one

	connections *service.Connections

	closing atomic.Bool // nothing more is posted

	parting  sync.WaitGroup
	partings chan struct{}
}

// newListener makes a listener of ln. deadline is the shortest that connections are given; each may be a sixteenth of it
// early. turned is called for every connection beyond the limit.
func newListener(ln net.Listener, limit int, deadline time.Duration, turned func()) *listener {
	body := fmt.Sprintf(`{"error":"%d connections are open, the most that are served (MAX_CONNECTIONS)"}`, limit)
	return &listener{
		Listener: ln,
		slack:    deadline / 16,
		answer: fmt.Appendf(nil, "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: application/json\r\n"+
			"Content-Length: %d\r\nRetry-After: %s\r\n\r\n%s", len(body), retryAfter, body),
		turned:      turned,
		connections: service.NewConnections(limit),
		partings:    make(chan struct{}, partings),
	}
}

// Accept returns the next connection that is served.
func (l *listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		switch {
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM):
			if !l.connections.MakeRoom() {
				time.Sleep(acceptPause) // fasthttp would take it for the end; it passes when other connections close
			}
			continue
		case err != nil:
			return nil, err
		}
		if tracked := l.track(conn); tracked != nil {
			return tracked, nil
		}
		l.turned()
		l.turnAway(conn)
	}
}

// track returns nil when there is no room for the connection.
func (l *listener) track(conn net.Conn) net.Conn {
	conn = direct.New(conn)
	cut := conn
	if secure, ok := conn.(*tls.Conn); ok {
		cut = secure.NetConn() // Close would wait for the client to take its good-bye
	}
	place := l.connections.Open(func() { _ = cut.Close() }) // there is nobody to tell
	if place == nil {
		return nil
	}
	tracked := &trackedConn{Conn: conn, listener: l, place: place, between: true}
	tracked.settled = tracked.settle
	return tracked
}

// turnAway tells a client that there is no room, without keeping the next one waiting. What it sends is read, since
// closing a connection with unread bytes would reset it, and the client would not see why.
func (l *listener) turnAway(conn net.Conn) {
	select {
	case l.partings <- struct{}{}:
	default:
		_ = conn.Close() // there is nobody to tell
		return
	}
	l.parting.Go(func() {
		defer func() { <-l.partings }()
		defer conn.Close() // the client has been told, or is gone
		if conn.SetDeadline(time.Now().Add(partingTime)) != nil {
			return
		}
		if _, err := conn.Write(l.answer); err != nil {
			return
		}
		if half, ok := conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
			_, _ = io.Copy(io.Discard, io.LimitReader(conn, maxDrain)) // as a courtesy; it may fail
		}
	})
}

// closeAll closes the open connections and says how many they were.
func (l *listener) closeAll() int { return l.connections.CutAll() }

// wait returns when the last connection beyond the limit is gone, once Accept has ended.
func (l *listener) wait() { l.parting.Wait() }

// trackedConn is a connection that is served. It is for one goroutine at a time, but for Close.
//
// It sets deadlines as late and as rarely as it can: fasthttp moves them three times a request, and the runtime's timers
// for them cost more than reading its header. And it may have written an answer before fasthttp does: see prepare.
type trackedConn struct {
	net.Conn
	listener *listener
	place    *service.Connection
	readBy   time.Time // the deadline asked for ...
	readEnds time.Time // ... and the one in force, for the next Read
	writeBy  time.Time // the one in force

	between bool   // a request is over and nothing was read since
	moves   int    // of the read deadline since then
	clear   bool   // fasthttp's buffers were empty when the request began
	answer  []byte // prepared
	head    int    // bytes of its header, without the empty line
	posted  int    // bytes of the answer that were written

	settled func(confirmed bool) // settle, made once
	of      budget               // and the bytes that the request holds of it until then
	held    int64

	upload *upload // whose body is being read, nil for most
}

// early says whether the deadline in force does for the one asked for.
func (l *listener) early(inForce, asked time.Time) bool {
	d := asked.Sub(inForce)
	return d >= 0 && d < l.slack
}

// SetReadDeadline is for the Reads to come. A request that came whole needs none between its first byte and the next
// request's.
func (c *trackedConn) SetReadDeadline(t time.Time) error {
	c.readBy = t
	c.moves++
	return nil
}

func (c *trackedConn) Read(p []byte) (int, error) {
	if !c.listener.early(c.readEnds, c.readBy) {
		if err := c.Conn.SetReadDeadline(c.readBy); err != nil {
			return 0, err
		}
		c.readEnds = c.readBy
	}
	if c.between {
		// fasthttp moves the deadline to wait for a request's first byte, and again when it has it. After one move it waits,
		// so nothing is in its buffer for reading; and then it has written all answers there were.
		c.between, c.clear = false, c.moves == 1
	}
	n, err := c.Conn.Read(p)
	if c.upload != nil {
		return c.waitIdly(p, n, err)
	}
	return n, err
}

// Write leaves out the answer that p begins with when it was posted, and completes it when that was only in part.
func (c *trackedConn) Write(p []byte) (int, error) {
	if c.posted == 0 {
		return c.Conn.Write(p)
	}
	rest, done := c.answer[c.posted:], len(c.answer)
	c.posted = 0
	if len(rest) > 0 {
		if _, err := c.Conn.Write(rest); err != nil {
			return 0, err
		}
	}
	switch {
	case !c.same(p): // it has one more header by now, which says that the connection closes
		return 0, net.ErrClosed
	case done == len(p):
		return done, nil
	}
	n, err := c.Conn.Write(p[done:])
	return done + n, err
}

// same says whether p begins with an answer like the prepared one. Its date may differ.
func (c *trackedConn) same(p []byte) bool {
	const status = len("HTTP/1.1 202")
	return len(p) >= len(c.answer) && bytes.Equal(p[:status], c.answer[:status]) && bytes.HasPrefix(p[c.head:], []byte("\r\n\r\n"))
}

// begin and end tell of a request, from when its header was read until fasthttp has its answer.
func (c *trackedConn) begin() {
	if c.between {
		c.clear = false // it came with the one before
	}
}

func (c *trackedConn) end() { c.between, c.moves = true, 0 }

// SetWriteDeadline moves the deadline when that makes a difference.
func (c *trackedConn) SetWriteDeadline(t time.Time) error {
	if c.listener.early(c.writeBy, t) {
		return nil
	}
	c.writeBy = t
	return c.Conn.SetWriteDeadline(t)
}

func (c *trackedConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *trackedConn) Close() error {
	c.place.Close()
	return c.Conn.Close()
}
