package worker

import (
	"context"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"

	"millrace/internal/config"
	"millrace/internal/pg"
)

// databaseSession is what each of the worker's sessions begins with. The timeouts have the server end the session of a worker that is
// frozen or cut off, so that its locks on the ledger don't outlive it by hours. The package partition reads times in these formats.
//
// PostgreSQL 14 is the first version with DETACH PARTITION CONCURRENTLY.
var databaseSession = pg.Session{Service: "worker", MinVersion: 14, Settings: `
SET TimeZone = 'UTC';
SET DateStyle = 'ISO';
SET lock_timeout = '10s';
SET statement_timeout = 0;
SET idle_in_transaction_session_timeout = '60s';
SET tcp_keepalives_idle = 20;
SET tcp_keepalives_interval = 10;
SET tcp_keepalives_count = 3;
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';
`}

// parseURL returns how the worker connects to a database.
func parseURL(url config.PostgresURL) (*pgx.ConnConfig, error) {
	return pg.ParseURL(url, "millrace worker")
}

// connect opens a connection for the worker's own use.
func connect(ctx context.Context, url config.PostgresURL) (*pgx.Conn, error) {
	c, err := parseURL(url)
	if err != nil {
		return nil, fmt.Errorf("POSTGRES_URL: %w", err)
	}
	return databaseSession.Connect(ctx, c)
}

// newLink returns a link to the database. See pg.NewLink.
func newLink(url config.PostgresURL, closing *sync.WaitGroup) pg.Link {
	return pg.NewLink(func(ctx context.Context) (*pgx.Conn, error) { return connect(ctx, url) }, closing)
}
