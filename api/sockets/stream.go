package sockets

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"iter"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"millrace/api/protocol"
	"millrace/internal/service"
)

// Options are what a Stream or Datagrams needs.
type Options struct {
	Protocol     protocol.Messages
	Admission    Admission
	Sink         Sink
	Budget       *Budget
	Metrics      *Metrics
	Log          *slog.Logger
	MessageBytes int // the longest message; longer ones are cut
	Times        Times

	// For a Stream.
	Framer func(most int) Framer
	TLS    *tls.Config // nil means none
	Places *service.Connections

	// For Datagrams.
	QueueBytes int             // most bytes of packets that wait
	Unpacker   func() Unpacker // makes one for each worker
	Chunks     *Chunks         // what the Unpackers keep of messages that come in several packets; nil for none
	Workers    int             // how many goroutines publish: while one waits for a confirm, others make records
}

// batch returns what publishes the messages.
func (o *Options) batch() batch { return batch{o.Protocol, o.Sink, o.Budget, o.Metrics, o.Log} }

// Stream takes messages over TCP, and over TLS if Options.TLS is set.
type Stream struct {
	o  Options
	ln net.Listener
	batch
	connections sync.WaitGroup
}

// NewStream returns a Stream for a listener of TCP. Run closes the listener.
func NewStream(ln net.Listener, o Options) *Stream { return &Stream{o: o, ln: ln, batch: o.batch()} }

// acceptPause is the pause after the process had no file descriptor left.
const acceptPause = 50 * time.Millisecond

// Run takes messages until ctx is done. Then no more connections are taken, the open ones are read until they are quiet for a moment, and what was read is published, for as long
// as flush lasts. Run returns an error if the listener fails.
func (s *Stream) Run(ctx, flush context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.ln.Close() })
	defer s.connections.Wait()
	defer stop()
	for {
		conn, err := s.ln.Accept()
		switch {
		case err == nil:
			s.open(ctx, flush, conn)
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM):
			if !s.o.Places.MakeRoom() {
				time.Sleep(acceptPause) // it passes when other connections close
			}
		case errors.Is(err, net.ErrClosed):
			return err
		}
	}
}

// open begins to serve a connection, or closes it if it is not admitted.
func (s *Stream) open(ctx, flush context.Context, conn net.Conn) {
	peer := addressOf(conn.RemoteAddr())
	if !s.o.Admission.Admits(peer) {
		s.o.Metrics.Refused(Address).Inc()
		_ = conn.Close() // there is nobody to tell
		return
	}
	place := s.o.Places.Open(func() { _ = conn.Close() })
	if place == nil {
		s.o.Metrics.Refused(Connections).Inc()
		_ = conn.Close()
		return
	}
	s.o.Metrics.connections.Inc()
	s.connections.Go(func() {
		defer s.o.Metrics.connections.Dec()
		defer place.Close()
		defer conn.Close() // all that came has been read, or the connection is broken
		c := &connection{s: s, conn: conn, place: place, framer: s.o.Framer(s.o.MessageBytes)}
		c.message.Peer = peer
		if s.o.TLS != nil {
			secure := tls.Server(conn, s.o.TLS)
			deadline, cancel := context.WithTimeout(ctx, s.o.Times.Handshake)
			err := secure.HandshakeContext(deadline)
			cancel()
			if err != nil {
				if ctx.Err() == nil {
					s.o.Metrics.Refused(Handshake).Inc()
					s.log.Debug("handshake of TLS", "peer", peer, "error", err)
				}
				return
			}
			c.conn = secure
		}
		c.serve(ctx, flush)
	})
}

// connection is a connection whose messages are taken. One goroutine uses it.
type connection struct {
	s       *Stream
	conn    net.Conn
	place   *service.Connection
	framer  Framer
	message protocol.Message // the one that is handed on; its Peer stays

	buf        []byte    // what came and is not taken yet is buf[:have]
	have       int       // how many bytes that are
	reserved   int64     // bytes of the budget that buf holds
	filled     bool      // the last Read filled its room, so more is there
	began      time.Time // when the first byte of what is not taken came; zero if there is none
	wasLetIn   bool      // a message came: the connection is not closed to make room for another
	failure    error     // what the framer said
	isStopping bool      // the stop was begun
	stopBy     time.Time // when reading ends then, whatever comes
}

// The sizes of buffers. An idle connection has the smallest, of which no budget knows: the process counts it with its connections.
const (
	smallBuffer  = 4 << 10
	middleBuffer = 64 << 10
	largeBuffer  = 256 << 10
)

// buffers are the pools of those sizes.
var buffers = [...]struct {
	size int
	pool sync.Pool
}{{size: smallBuffer}, {size: middleBuffer}, {size: largeBuffer}}

// getBuffer returns a buffer of a size.
func getBuffer(size int) []byte {
	for i := range buffers {
		if b := &buffers[i]; b.size == size {
			if one, ok := b.pool.Get().(*[]byte); ok {
				return *one
			}
		}
	}
	return make([]byte, size)
}

// putBuffer gives a buffer back.
func putBuffer(buf []byte) {
	for i := range buffers {
		if b := &buffers[i]; b.size == len(buf) {
			b.pool.Put(&buf)
		}
	}
}

// serve reads until the connection ends, or the service stops and the connection is quiet.
func (c *connection) serve(ctx, flush context.Context) {
	c.buf = getBuffer(smallBuffer)
	defer func() { c.setBuffer(nil, 0) }()
	// A Read that waits is woken at the stop. The sender is told that nothing more is read of it, so that it can go elsewhere with what comes next.
	stop := context.AfterFunc(ctx, func() {
		_ = c.conn.SetDeadline(time.Now().Add(c.s.o.Times.Quiet))
		if half, ok := c.conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite() // the sender may be gone
		}
	})
	defer stop()
	for {
		if !c.makeRoom(flush) || !c.setDeadline(ctx) {
			break
		}
		n, err := c.conn.Read(c.buf[c.have:])
		now := time.Now()
		if n > 0 && c.have == 0 {
			c.began = now
		}
		c.have += n
		c.filled = c.have == len(c.buf)
		c.message.Came = now
		ended := err != nil
		c.take(flush, ended)
		if ended {
			switch {
			case err == io.EOF, ctx.Err() != nil:
			case errors.Is(err, os.ErrDeadlineExceeded):
				c.s.o.Metrics.Cut(Slow).Inc()
			default:
				c.s.log.Debug("a connection broke", "peer", c.message.Peer, "error", err)
			}
			return
		}
		if c.failure != nil {
			c.s.o.Metrics.Refused(Framing).Inc()
			c.s.log.Debug("a connection is closed", "peer", c.message.Peer, "error", c.failure)
			return
		}
	}
	if ctx.Err() == nil {
		c.s.o.Metrics.Cut(Full).Inc()
	}
	c.take(flush, true)
}

// setDeadline sets how long the next Read may wait. It reports false if nothing more shall be read.
func (c *connection) setDeadline(ctx context.Context) bool {
	deadline := time.Time{} // senders may be silent for days
	if c.have > 0 {
		deadline = c.began.Add(c.s.o.Times.Message)
	}
	if err := c.conn.SetReadDeadline(deadline); err != nil {
		return false
	}
	if ctx.Err() == nil {
		return true // if the stop begins now, its deadline comes after this one
	}
	now := time.Now()
	if !c.isStopping {
		c.isStopping, c.stopBy = true, now.Add(c.s.o.Times.Stop)
	}
	return now.Before(c.stopBy) && c.conn.SetReadDeadline(now.Add(c.s.o.Times.Quiet)) == nil
}

// makeRoom sees to it that the next Read has room. It reports false if there is none, and none comes before the message must be whole.
func (c *connection) makeRoom(flush context.Context) bool {
	most := c.s.o.MessageBytes + mostLengthDigits + 2
	switch {
	case c.have == len(c.buf): // a message is longer than the buffer
		size := middleBuffer
		if len(c.buf) >= middleBuffer {
			size = min(4*len(c.buf), max(most, largeBuffer))
		}
		if size <= len(c.buf) {
			return false // the framer would have cut the message
		}
		deadline, cancel := context.WithDeadline(flush, c.began.Add(c.s.o.Times.Message))
		defer cancel()
		if c.s.budget.buffers.Acquire(deadline, int64(size)) != nil {
			return false
		}
		c.setBuffer(getBuffer(size), int64(size))
	case c.filled && len(c.buf) < largeBuffer:
		size := middleBuffer
		if len(c.buf) >= middleBuffer {
			size = largeBuffer
		}
		if c.s.budget.buffers.TryAcquire(int64(size)) {
			c.setBuffer(getBuffer(size), int64(size))
		}
	case !c.filled && len(c.buf) > smallBuffer && c.have <= smallBuffer/2:
		c.setBuffer(getBuffer(smallBuffer), 0)
	}
	return true
}

// setBuffer replaces the buffer by one for which so many bytes of the budget are reserved, and gives back the old one. The new one has what is not taken yet.
func (c *connection) setBuffer(buf []byte, reserved int64) {
	copy(buf, c.buf[:c.have])
	putBuffer(c.buf)
	if c.reserved > 0 {
		c.s.budget.buffers.Release(c.reserved)
	}
	c.buf, c.reserved = buf, reserved
}

// take publishes the messages that have come whole; all that has come if nothing more will.
func (c *connection) take(flush context.Context, ended bool) {
	at := 0
	first := c.next(&at, ended)
	if first != nil {
		if !c.wasLetIn {
			c.wasLetIn = true
			c.place.Enter() // it may have been closed to make room just now; what it sent is taken all the same
		}
		c.s.take(flush, c.have, c.messages(first, &at, ended))
	}
	if at > 0 {
		c.have = copy(c.buf, c.buf[at:c.have])
		c.began = c.message.Came
	}
	if c.have == 0 {
		c.began = time.Time{}
	}
}

// messages are first and those that follow it in the buffer.
func (c *connection) messages(first []byte, at *int, ended bool) iter.Seq[protocol.Message] {
	return func(yield func(protocol.Message) bool) {
		for text := first; text != nil; text = c.next(at, ended) {
			if c.message.Text = text; !yield(c.message) {
				return
			}
		}
	}
}

// next returns the next message of the buffer, nil if none is whole. at is where it may begin, and is moved behind it.
func (c *connection) next(at *int, ended bool) []byte {
	for c.failure == nil {
		message, n, cut, err := c.framer.Next(c.buf[*at:c.have], ended)
		*at += n
		c.failure = err
		if cut {
			c.s.o.Metrics.Cut(TooLong).Inc()
		}
		if message != nil || n == 0 {
			return message
		}
	}
	return nil
}
