package query

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/config"
	"millrace/internal/service"
)

const (
	// watchEvery is the pause between two looks at the database. What /ready says is about that old.
	watchEvery = time.Second
	// watchTimeout is the longest one look may take.
	watchTimeout = 5 * time.Second
	// databaseCondition is what /ready calls what watch finds.
	databaseCondition = "database"
)

// watch tells ready whether the database can be used, until ctx is done. It has a connection of its own, because a pool that
// is busy with long queries does not mean that the database is down. It sets distributed if Citus keeps the rows of logs on
// other servers.
func watch(ctx context.Context, db config.PostgresURL, ready *service.Ready, distributed *atomic.Bool, log *slog.Logger) {
	var conn *pgx.Conn
	leave := func() {
		if conn != nil {
			closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			_ = conn.Close(closing) // it was read from only, and may be broken
			conn = nil
		}
	}
	defer leave()
	look := func() error {
		ctx, cancel := context.WithTimeout(ctx, watchTimeout)
		defer cancel()
		if conn == nil {
			c, err := config.Parse(db, pgx.ParseConfig)
			if err == nil {
				c.DefaultQueryExecMode = execMode
				conn, err = pgx.ConnectConfig(ctx, c)
			}
			if err != nil {
				return err
			}
		}
		found, err := lookAtSchema(ctx, conn)
		if err != nil {
			return err
		}
		if found.hasTables && found.hasCitus {
			var is bool
			err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = 'logs'::regclass)").Scan(&is)
			if err != nil {
				return err
			}
			distributed.Store(is)
		}
		return found.fault()
	}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	last := "not reached yet"
	for {
		err := look()
		if ctx.Err() != nil {
			return
		}
		reason := ""
		switch {
		case errors.Is(err, errNoSchema), errors.Is(err, errForeign):
			reason = err.Error()
		case err != nil:
			leave()
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
