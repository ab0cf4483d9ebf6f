package service

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// MaxHeaderBytes is the largest header of a request to Serve: its first line and fields.
	MaxHeaderBytes = 16 << 10

	// maxHeaderLines bounds the number of a header's fields. net/http keeps them in a map, where 16 KiB of fields of 5
	// bytes each would take 400 KiB. Browsers and proxies send some 40 fields.
	maxHeaderLines = 128

	headerTime  = 10 * time.Second // for a header, and a TLS handshake before the first
	idleTime    = 2 * time.Minute  // between requests
	partingTime = time.Second      // for the answer to a connection that finds no room
	acceptPause = 50 * time.Millisecond
)

// Options are what Serve needs beside a listener and a handler.
type Options struct {
	Grace          time.Duration // for requests under way at the end
	AnswerTime     time.Duration // for a body to come and the answer to be taken; with 0 the handler sets the deadlines
	MaxConnections int           // most connections at once; 0 means AdminConnections
	Setting        string        // name of the setting of MaxConnections, for the answer to those turned away; may be empty
	Log            *slog.Logger
}

// AdminConnections is how many connections a server for probes, scrapes and profiles has at most.
const AdminConnections = 256

// Serve answers on ln until ctx is done. Then it lets requests under way finish, for at most o.Grace. It returns nil after
// an ordered stop.
//
// It bounds the number of connections, the size of a request's header, and the time that a header may take. A handler that
// lets a request in calls Admitted. All other connections may be closed to make room.
func Serve(ctx context.Context, ln net.Listener, handler http.Handler, o Options) error {
	if o.MaxConnections == 0 {
		o.MaxConnections = AdminConnections
	}
	l := &boundedListener{Listener: ln, connections: NewConnections(WithinDescriptors(o.Setting, o.MaxConnections, o.Log)), setting: o.Setting}
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c := r.Context().Value(connectionKey{}).(*boundedConn)
			c.isWhole.Store(true) // also if the header came together with the request before
			came := time.Now()
			defer func() { c.place.Leave(came) }()
			if o.AnswerTime > 0 {
				deadline := http.NewResponseController(w)
				_ = errors.Join(deadline.SetReadDeadline(came.Add(o.AnswerTime)), deadline.SetWriteDeadline(came.Add(o.AnswerTime))) // fails when the connection is broken
			}
			handler.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: headerTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    MaxHeaderBytes - 4<<10, // net/http adds 4 KiB
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connectionKey{}, c)
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			if state == http.StateIdle {
				c.(*boundedConn).nextHeader()
			}
		},
		ErrorLog: slog.NewLogLogger(o.Log.Handler(), slog.LevelWarn), // it quotes nothing that a client sent
	}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		deadline, cancel := context.WithTimeout(context.WithoutCancel(ctx), o.Grace)
		defer cancel()
		err := server.Shutdown(deadline)
		if err != nil {
			err = errors.Join(err, server.Close())
		}
		stopped <- err
	})
	defer l.parting.Wait()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		stop()
		return err
	}
	return <-stopped
}

// connectionKey is the key under which a request's context holds its connection.
type connectionKey struct{}

// Admitted tells Serve that a request was let in. Until the request is answered, its connection is not closed to make
// room. Admitted reports false if the connection has just been closed.
func Admitted(r *http.Request) bool {
	c, ok := r.Context().Value(connectionKey{}).(*boundedConn)
	return !ok || c.place.Enter()
}

// boundedListener accepts as many connections as there is room for, and answers the others that there is none.
type boundedListener struct {
	net.Listener
	connections *Connections
	setting     string
	parting     sync.WaitGroup
	partings    atomic.Int32
}

// maxPartings is how many connections beyond the limit are answered at once. The others are closed without an answer.
const maxPartings = 64

func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		switch {
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM):
			if !l.connections.MakeRoom() {
				time.Sleep(acceptPause) // it passes when other connections close
			}
			continue
		case err != nil:
			return nil, err
		}
		cut := conn
		if secure, ok := conn.(*tls.Conn); ok {
			cut = secure.NetConn() // Close would wait for the client to take its good-bye
		}
		if place := l.connections.Open(func() { _ = cut.Close() }); place != nil { // there is nobody to tell
			return &boundedConn{Conn: conn, place: place}, nil
		}
		l.turnAway(conn)
	}
}

// turnAway answers a client that there is no room, and closes its connection. It does so on a goroutine, to keep no other
// client waiting.
func (l *boundedListener) turnAway(conn net.Conn) {
	if l.partings.Add(1) > maxPartings {
		l.partings.Add(-1)
		_ = conn.Close() // there is nobody to tell
		return
	}
	l.parting.Go(func() {
		defer l.partings.Add(-1)
		defer conn.Close() // the client has been told, or is gone
		if conn.SetDeadline(time.Now().Add(partingTime)) != nil {
			return
		}
		text := fmt.Sprintf("%d connections are busy, the most that are served", l.connections.maxOpen)
		if l.setting != "" {
			text += " (" + l.setting + ")"
		}
		if sayBeforeClose(conn, http.StatusServiceUnavailable, "Retry-After: 1\r\n", text) != nil {
			return
		}
		if half, ok := conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
			_, _ = io.Copy(io.Discard, io.LimitReader(conn, 1<<20)) // closing with unread bytes would reset the connection
		}
	})
}

// sayBeforeClose writes a whole answer to a connection that is about to be closed.
func sayBeforeClose(conn net.Conn, status int, header, text string) error {
	body := fmt.Sprintf("{\"error\":%q}\n", text)
	_, err := fmt.Fprintf(conn, "HTTP/1.1 %d %s\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%s",
		status, http.StatusText(status), len(body), header, body)
	return err
}

// boundedConn is a connection that has a place among Connections. It bounds the lines of a request's header.
type boundedConn struct {
	net.Conn
	place *Connection

	// Only the goroutine that serves the connection uses these, except where they say otherwise.
	lines       int         // lines of the header that is being read
	isLineEmpty bool        // nothing but a carriage return has come of the last of them
	isWhole     atomic.Bool // the header has come whole; net/http's goroutine that waits for the client to leave reads it too
}

func (c *boundedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	var plain tls.RecordHeaderError
	if errors.As(err, &plain) && plain.Conn != nil && looksLikeHTTP(plain.RecordHeader) {
		_ = sayBeforeClose(plain.Conn, http.StatusBadRequest, "", "this port takes HTTPS, and the request came without TLS") // the client may be gone
	}
	if !c.isWhole.Load() && !c.countLines(p[:n]) {
		_ = sayBeforeClose(c.Conn, http.StatusRequestHeaderFieldsTooLarge, "", fmt.Sprintf("the header has more than %d lines", maxHeaderLines))
		if c.SetReadDeadline(time.Now().Add(acceptPause)) == nil {
			_, _ = io.CopyN(io.Discard, c.Conn, 1<<20) // closing with unread bytes would reset the connection
		}
		return 0, io.EOF // to net/http the client has left, so it adds no answer
	}
	return n, err
}

// countLines counts the lines of a header in p, its next bytes. It reports false if the header has too many.
func (c *boundedConn) countLines(p []byte) bool {
	for _, b := range p {
		switch b {
		case '\n':
			if c.isLineEmpty && c.lines > 0 {
				c.isWhole.Store(true)
				return c.lines <= maxHeaderLines
			}
			c.lines++
			c.isLineEmpty = true
		case '\r':
		default:
			c.isLineEmpty = false
		}
	}
	return c.lines <= maxHeaderLines
}

// nextHeader resets the count for the next request's header.
func (c *boundedConn) nextHeader() {
	c.lines, c.isLineEmpty = 0, false
	c.isWhole.Store(false)
}

func (c *boundedConn) Close() error {
	c.place.Close()
	return c.Conn.Close()
}

// looksLikeHTTP reports whether the first bytes of a TLS connection are those of an HTTP request.
func looksLikeHTTP(header [5]byte) bool {
	switch string(header[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO":
		return true
	}
	return false
}
