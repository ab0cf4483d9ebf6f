package partition

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/pg"
	"millrace/internal/retry"
)

const (
	// keeperLock and indexerLock are the keys of the advisory locks that the leaders hold, "mrkeeper" and "mrindex"
	// in ASCII.
	keeperLock  = 0x6d726b6565706572
	indexerLock = 0x6d72696e646578

	// RoundInterval is the time from the end of one round to the beginning of the next.
	RoundInterval = time.Minute
)

// leader knows whether a connection holds an advisory lock. Of all workers the one that holds it leads.
type leader struct {
	leads bool
	owns  bool // the connection's user may do what only the tables' owner may; no other user leads
}

// lead returns the link's connection, and reports whether it holds the lock. It takes the lock if that is free.
func (l *leader) lead(ctx context.Context, link *pg.Link, key int64) (*pgx.Conn, bool, error) {
	if !link.IsOpen() {
		l.leads = false // the lock went with its session
	}
	conn, err := link.Open(ctx)
	if err != nil || l.leads {
		return conn, l.leads, err
	}
	const owner = "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = 'logs'::regclass"
	if err = conn.QueryRow(ctx, owner).Scan(&l.owns); err == nil && l.owns {
		err = conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", key).Scan(&l.leads)
	}
	return conn, l.leads, err
}

// rounds calls round every RoundInterval until ctx is done. If round fails, rounds logs the message failure with the error. It owns the
// link.
func rounds(ctx context.Context, link *pg.Link, log *slog.Logger, failure string, round func(context.Context) error) {
	defer link.Drop()
	for {
		if err := round(ctx); err != nil && ctx.Err() == nil {
			log.Warn(failure+", trying again", "error", err, "retry_in", RoundInterval)
			link.Rollback(ctx)
		}
		if retry.Sleep(ctx, RoundInterval) != nil {
			return
		}
	}
}

// earlierClock returns the earlier of now, which is by the worker's clock, and the database's time. One wrong clock alone must not have
// anything dropped.
func earlierClock(ctx context.Context, conn *pgx.Conn, now time.Time) (time.Time, error) {
	var databaseNow time.Time
	if err := conn.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&databaseNow); err != nil {
		return now, err
	}
	if databaseNow.Before(now) {
		now = databaseNow
	}
	return now, nil
}

// execPatiently runs a statement that waits for other transactions, for a time at most; zero is no limit. Afterwards the session has the
// worker's timeouts again.
func execPatiently(ctx context.Context, conn *pgx.Conn, within time.Duration, sql string) error {
	if _, err := conn.Exec(ctx, fmt.Sprintf("SET lock_timeout = 0; SET statement_timeout = %d", within.Milliseconds())); err != nil {
		return err
	}
	_, err := conn.Exec(ctx, sql)
	if !conn.IsClosed() {
		if _, resetErr := conn.Exec(ctx, "SET lock_timeout = '10s'; SET statement_timeout = 0"); err == nil {
			err = resetErr
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	return nil
}
