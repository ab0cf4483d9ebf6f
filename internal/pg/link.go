package pg

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// Link is one goroutine's connection to PostgreSQL, opened when it is needed. Its zero value can't be used.
type Link struct {
	connect func(context.Context) (*pgx.Conn, error)
	conn    *pgx.Conn
	closing *sync.WaitGroup // see NewLink
}

// NewLink returns a link that opens connections by connect. closing counts the dropped connections that pgx is still closing in the
// background. Whoever uses links waits for it at the end.
func NewLink(connect func(context.Context) (*pgx.Conn, error), closing *sync.WaitGroup) Link {
	return Link{connect: connect, closing: closing}
}

// IsOpen reports whether there is a connection. It does not ask the server.
func (l *Link) IsOpen() bool { return l.conn != nil && !l.conn.IsClosed() }

// Open returns the connection, a new one when there is none.
func (l *Link) Open(ctx context.Context) (*pgx.Conn, error) {
	if l.conn != nil && l.conn.IsClosed() {
		l.Drop()
	}
	if l.conn == nil {
		conn, err := l.connect(ctx)
		if err != nil {
			return nil, err
		}
		l.conn = conn
	}
	return l.conn, nil
}

// Rollback ends the transaction that the connection is in, if any. It drops the connection if that fails.
func (l *Link) Rollback(ctx context.Context) {
	if l.conn == nil {
		return
	}
	if l.conn.IsClosed() {
		l.Drop()
		return
	}
	if l.conn.PgConn().TxStatus() == 'I' {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if _, err := l.conn.Exec(ctx, "ROLLBACK"); err != nil {
		l.Drop()
	}
}

// Drop closes the connection, if there is one. The next Open makes a new one.
func (l *Link) Drop() {
	conn := l.conn
	if conn == nil {
		return
	}
	l.conn = nil
	Close(context.Background(), conn)
	l.closing.Go(func() { <-conn.PgConn().CleanupDone() })
}
