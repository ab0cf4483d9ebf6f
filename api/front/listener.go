package front

import (
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
	// maxPartings is how many connections beyond the limit are answered at once. It bounds their cost; the others are closed
	// without an answer.
	maxPartings = 64

	// partingTime is how long a connection beyond the limit is kept to be answered, a TLS handshake included.
	partingTime = time.Second

	// maxDrain is how many bytes are read from a client that is turned away.
	maxDrain = 64 << 20

	// RetryAfter is how long a client that was answered 503 should wait, in seconds.
	RetryAfter = "1"

	// acceptPause is the wait before the next Accept when the process has no file descriptor left.
	acceptPause = 50 * time.Millisecond
)

// Options are what a listener needs.
type Options struct {
	Limit      int           // most connections that are served at once
	Deadline   time.Duration // the shortest deadline of connections; any may end early by a sixteenth of it
	OnTurnAway func()        // called for every connection beyond the limit; may be nil

	// Plain turns off early answers: it leaves all answers to fasthttp, and sockets to package net. Benchmarks use it to
	// show what early answers are worth.
	Plain bool
}

// Listener serves a bounded number of connections at once. One more takes the place of an idle one, or is answered that
// there is no room. CloseAll closes the open ones, when waiting for them must end.
type Listener struct {
	net.Listener
	slack      time.Duration // by how much a Read or Write may time out before its deadline
	answer     []byte        // for a connection beyond the limit: a whole HTTP response
	onTurnAway func()
	plain      bool

	connections *service.Connections

	stopping atomic.Bool // true once no more answers may be written early

	parting  sync.WaitGroup
	partings chan struct{} // holds one for each connection that is being told that there is no room
}

// NewListener returns a Listener that accepts from ln.
func NewListener(ln net.Listener, o Options) *Listener {
	body := fmt.Sprintf(`{"error":"%d connections are open, the most that are served (MAX_CONNECTIONS)"}`, o.Limit)
	return &Listener{
		Listener: ln,
		slack:    o.Deadline / 16,
		answer: fmt.Appendf(nil, "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: application/json\r\n"+
			"Content-Length: %d\r\nRetry-After: %s\r\n\r\n%s", len(body), RetryAfter, body),
		onTurnAway:  o.OnTurnAway,
		plain:       o.Plain,
		connections: service.NewConnections(o.Limit),
		partings:    make(chan struct{}, maxPartings),
	}
}

// Accept returns the next connection that is served.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		switch {
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM):
			if !l.connections.MakeRoom() {
				time.Sleep(acceptPause) // to fasthttp the error would be the end, but it passes when other connections close
			}
			continue
		case err != nil:
			return nil, err
		}
		if tracked := l.Track(conn); tracked != nil {
			return tracked, nil
		}
		if l.onTurnAway != nil {
			l.onTurnAway()
		}
		l.turnAway(conn)
	}
}

// Track returns conn as a Conn that is served, or nil if there is no room for it. Accept calls it.
func (l *Listener) Track(conn net.Conn) *Conn {
	c := &Conn{Conn: conn, listener: l, between: true}
	if !l.plain {
		c.Conn = direct.New(conn)
		c.socket, _ = c.Conn.(*direct.Conn)
	}
	c.onSettled = c.settle
	cut := c.Conn
	if secure, ok := conn.(*tls.Conn); ok {
		cut = secure.NetConn() // Close would wait for the client to take its good-bye
	}
	if c.Place = l.connections.Open(func() { _ = cut.Close() }); c.Place == nil { // there is nobody to tell
		return nil
	}
	return c
}

// turnAway answers a client that there is no room, and closes its connection. It does so on a goroutine, to keep no other
// client waiting. It reads what the client sends: closing a connection with unread bytes would reset it, and the client
// would not see the answer.
func (l *Listener) turnAway(conn net.Conn) {
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

// CloseAll closes the open connections and returns their number.
func (l *Listener) CloseAll() int { return l.connections.CutAll() }

// Wait returns when the last connection beyond the limit is closed. Accept must have ended before.
func (l *Listener) Wait() { l.parting.Wait() }
