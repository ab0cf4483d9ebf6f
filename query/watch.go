package query

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/config"
	"millrace/internal/pg"
	"millrace/internal/service"
)

const (
	// watchEvery is the time between two looks at the database. What /ready says is about that old at most.
	watchEvery = time.Second
	// watchTimeout is the longest one look may take.
	watchTimeout = 5 * time.Second
	// databaseCondition is the name that what watch finds has in /ready.
	databaseCondition = "database"
	// notReached is what /ready says before the first look.
	notReached = "not reached yet"
)

// watch keeps ready informed whether the database can be used, until ctx is done. It has a connection of its own, because a pool that
// is busy with long queries does not mean that the database is down. It sets distributed if Citus keeps the rows of logs on
// other servers.
func watch(ctx context.Context, db config.PostgresURL, ready *service.Ready, distributed *atomic.Bool, log *slog.Logger) {
	w := &watcher{db: db, distributed: distributed}
	defer w.close(ctx)
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	last := notReached
	for {
		err := w.look(ctx)
		if ctx.Err() != nil {
			return
		}
		reason := ""
		switch {
		case errors.Is(err, errNoSchema), errors.Is(err, errForeign):
			reason = err.Error()
		case err != nil:
			w.close(ctx)
			reason = "can't be reached" // /ready needs no key, so hosts and users stay in the log
		}
		ready.Set(databaseCondition, reason)
		switch {
		case reason == last:
		case reason == "":
			log.Info("database is there")
		default:
			log.Warn("database can't be used", "error", err)
		}
		last = reason
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// watcher looks at the database over one connection.
type watcher struct {
	db          config.PostgresURL
	distributed *atomic.Bool
	conn        *pgx.Conn // nil: none is open
}

// look returns the reason that the database can't be used, or nil.
func (w *watcher) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, watchTimeout)
	defer cancel()
	if w.conn == nil {
		c, err := pg.ParseURL(w.db, application)
		if err != nil {
			return err
		}
		c.DefaultQueryExecMode = execMode
		if w.conn, err = pgx.ConnectConfig(ctx, c); err != nil {
			return err
		}
	}
	found, err := lookAtSchema(ctx, w.conn)
	if err != nil {
		return err
	}
	if found.hasTables && found.hasCitus {
		const sql = "SELECT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = 'logs'::regclass)"
		var isDistributed bool
		if err := w.conn.QueryRow(ctx, sql).Scan(&isDistributed); err != nil {
			return err
		}
		w.distributed.Store(isDistributed)
	}
	return found.fault()
}

// close closes the connection, if one is open.
func (w *watcher) close(ctx context.Context) {
	if w.conn == nil {
		return
	}
	pg.Close(ctx, w.conn)
	w.conn = nil
}
