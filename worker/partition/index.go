package partition

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/pg"
)

// indexPatience is how long a build may be put off, from the time that the partition is closed, because the streams are busy.
// One build beside streams that work as fast as they can takes a third of their speed on two cores (268,000 rows/s without
// it, 178,000 with). It takes nothing of a speed that leaves room for it.
const indexPatience = 6 * time.Hour

// Indexer gives closed partitions of logs the index for searches in data, the oldest first. It also gives partitions of before event times
// the indexes on time and inserted_at that new ones are made with, see indexLate and releaseIndex, and all partitions those of
// INDEX_FIELDS, see indexFields. Of all workers one builds at a time. It is not the keeper's work, because a build waits for every
// transaction that began before it.
type Indexer struct {
	Closed     bool       // closed partitions get the index for searches in data
	Fields     [][]string // the fields that have indexes in all partitions, each by the names on the way to it
	Link       pg.Link    // as the user who owns the tables
	Partitions *Set
	Retention  time.Duration              // zero: keep
	Calm       func(context.Context) bool // reports whether the streams leave room for a build
	Log        *slog.Logger
	Now        func() time.Time

	leader      leader
	fieldsSince time.Time // when an index of a field was first to be built; zero: not yet
}

// Run works until ctx is done. It owns the link. If it cuts a build short, the next leader begins that one anew.
func (x *Indexer) Run(ctx context.Context) {
	rounds(ctx, &x.Link, x.Log, "closed partitions could not be indexed", x.Round)
}

// Round makes one round over the partitions. If one can't be indexed, it goes on to the others and returns the error at the end.
func (x *Indexer) Round(ctx context.Context) error {
	conn, leads, err := x.leader.lead(ctx, &x.Link, indexerLock)
	if err != nil || !leads {
		return err
	}
	all, err := list(ctx, conn, x.Partitions.logs)
	if err != nil {
		return err
	}
	var failed []error
	if err := x.indexLate(ctx, conn, all); err != nil {
		failed = append(failed, fmt.Errorf("give each partition its own index on time: %w", err))
	}
	if err := x.releaseIndex(ctx, conn, all); err != nil {
		failed = append(failed, fmt.Errorf("give each partition its own index on inserted_at: %w", err))
	}
	if err := x.indexFields(ctx, conn, all); err != nil {
		failed = append(failed, fmt.Errorf("index fields: %w", err))
	}
	if !x.Closed || conn.IsClosed() {
		return errors.Join(failed...)
	}
	now, err := earlierClock(ctx, conn, x.Now()) // an open partition must not get the index
	if err != nil {
		return errors.Join(append(failed, err)...)
	}
	for _, p := range all {
		if p.pending || !p.closed(now) || !x.Partitions.logs.ownName(p.name) ||
			x.Retention > 0 && !p.to.After(now.Add(-x.Retention)) {
			continue
		}
		if err := x.index(ctx, conn, p); err != nil {
			failed = append(failed, err)
		}
		if conn.IsClosed() {
			break
		}
	}
	return errors.Join(failed...)
}

// index gives a partition its index, unless the streams are too busy. It replaces an index that a build left invalid.
func (x *Indexer) index(ctx context.Context, conn *pgx.Conn, p partition) error {
	name := p.name + "_data_idx"
	var valid bool
	err := conn.QueryRow(ctx, "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)", name).Scan(&valid)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
	case err != nil:
		return err
	case valid:
		return nil
	}
	calm := x.Calm(ctx)
	if x.Now().Before(p.to.Add(closedAfter+indexPatience)) && !calm {
		return nil
	}
	if err == nil { // the invalid one
		if err := x.dropIndex(ctx, conn, name); err != nil {
			return err
		}
	}
	if _, err := conn.Exec(ctx, buildProcesses(conn, calm)); err != nil {
		return err
	}
	began := time.Now()
	err = execPatiently(ctx, conn, 0, fmt.Sprintf("CREATE INDEX CONCURRENTLY %s ON %s USING gin (data jsonb_path_ops)",
		pgx.Identifier{name}.Sanitize(), pgx.Identifier{p.name}.Sanitize()))
	if err == nil {
		x.Log.Info("indexed a closed partition", "table", p.name, "took", time.Since(began).Round(time.Millisecond))
	}
	return err
}

// buildProcesses returns the statement that says how many processes a build may use: one while the streams are busy, for they need
// the other cores. PostgreSQL 18 is the first that builds this kind of index in several processes.
func buildProcesses(conn *pgx.Conn, calm bool) string {
	major, _, _ := strings.Cut(conn.PgConn().ParameterStatus("server_version"), ".")
	if n, _ := strconv.Atoi(major); n >= 18 && calm { // a beta's "19beta1" is no number, and gets one process
		return "RESET max_parallel_maintenance_workers"
	}
	return "SET max_parallel_maintenance_workers = 0"
}

// dropIndex drops an index of a partition. Citus may refuse to do so concurrently.
func (x *Indexer) dropIndex(ctx context.Context, conn *pgx.Conn, name string) error {
	distributed, err := isDistributed(ctx, conn, x.Partitions.logs)
	if err != nil {
		return err
	}
	if !distributed {
		return execPatiently(ctx, conn, 0, "DROP INDEX CONCURRENTLY "+pgx.Identifier{name}.Sanitize())
	}
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '1s'; DROP INDEX "+pgx.Identifier{name}.Sanitize())
		return err
	})
}
