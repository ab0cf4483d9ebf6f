package worker

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"millrace/internal/config"
)

const (
	connectTimeout = 5 * time.Second

	// attemptTimeout bounds one transaction. A batch takes tens of milliseconds; this is for a network that
	// went silent, and far from the worst stall of a busy disk.
	attemptTimeout = 2 * time.Minute

	// minServerVersion is the first PostgreSQL with DETACH PARTITION CONCURRENTLY.
	minServerVersion = 140000
)

// sessionSettings make a session safe to leave alone: the server ends what a frozen or cut-off worker holds, so
// that its locks on the ledger don't outlive it by hours. The formats are what partitions.go reads.
const sessionSettings = `
SET TimeZone = 'UTC';
SET DateStyle = 'ISO';
SET lock_timeout = '10s';
SET statement_timeout = 0;
SET idle_in_transaction_session_timeout = '60s';
SET tcp_keepalives_idle = 20;
SET tcp_keepalives_interval = 10;
SET tcp_keepalives_count = 3;
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';
SELECT current_setting('server_version_num')`

// parseURL returns how a database is connected to.
func parseURL(url config.PostgresURL) (*pgx.ConnConfig, error) {
	c, err := config.Parse(url, pgx.ParseConfig)
	if err != nil {
		return nil, err
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = connectTimeout
	}
	if c.RuntimeParams["application_name"] == "" {
		c.RuntimeParams["application_name"] = "millrace worker"
	}
	c.DialFunc = (&net.Dialer{Timeout: c.ConnectTimeout, KeepAlive: 15 * time.Second}).DialContext
	return c, nil
}

// connect opens a connection for the worker's own use.
func connect(ctx context.Context, url config.PostgresURL) (*pgx.Conn, error) {
	c, err := parseURL(url)
	if err != nil {
		return nil, fmt.Errorf("POSTGRES_URL: %w", err)
	}
	c.AfterConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		results, err := conn.Exec(ctx, sessionSettings).ReadAll()
		if err != nil {
			return err
		}
		version := 0
		if last := results[len(results)-1]; len(last.Rows) == 1 {
			_, _ = fmt.Sscan(string(last.Rows[0][0]), &version) // zero is refused below
		}
		if version < minServerVersion {
			return fmt.Errorf("PostgreSQL is version %d, the worker needs 14 or newer", version/10000)
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout+c.ConnectTimeout)
	defer cancel()
	return pgx.ConnectConfig(ctx, c)
}

// link is one goroutine's connection to PostgreSQL, opened when it is needed.
type link struct {
	url  config.PostgresURL
	conn *pgx.Conn

	// closing counts the connections that pgx is still closing in the background, after they broke.
	closing *sync.WaitGroup
}

// open returns the connection, a new one when there is none.
func (l *link) open(ctx context.Context) (*pgx.Conn, error) {
	if l.conn != nil && l.conn.IsClosed() {
		l.drop()
	}
	if l.conn == nil {
		conn, err := connect(ctx, l.url)
		if err != nil {
			return nil, err
		}
		l.conn = conn
	}
	return l.conn, nil
}

// rollback ends a failed transaction, or drops the connection if that can't be done.
func (l *link) rollback(ctx context.Context) {
	if l.conn == nil {
		return
	}
	if l.conn.IsClosed() {
		l.drop()
		return
	}
	if l.conn.PgConn().TxStatus() == 'I' {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if _, err := l.conn.Exec(ctx, "ROLLBACK"); err != nil {
		l.drop()
	}
}

// drop closes the connection.
func (l *link) drop() {
	conn := l.conn
	if conn == nil {
		return
	}
	l.conn = nil
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // nothing is under way that the answer could tell about
	l.closing.Go(func() { <-conn.PgConn().CleanupDone() })
}
