package partition

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/eventtime"
)

// tableIndex is the index on inserted_at that the table had before event times. All partitions have it while the table does. A table can't
// give it up and leave it to its partitions.
const tableIndex = "logs_inserted_at_idx"

// unindexedSQL lists the partitions that would have no index on inserted_at without the table's.
const unindexedSQL = `SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
	WHERE i.inhparent = 'logs'::regclass AND NOT i.inhdetachpending AND NOT EXISTS (
		SELECT FROM pg_index x JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = x.indkey[0]
		WHERE x.indrelid = c.oid AND x.indisvalid AND a.attname = 'inserted_at'
		AND NOT EXISTS (SELECT FROM pg_inherits p WHERE p.inhrelid = x.indexrelid AND p.inhparent = to_regclass($1)))
	ORDER BY c.relname`

// releaseIndex drops the table's index on inserted_at, which costs new partitions a third of their speed. Before that it builds one for
// each partition that has no other. So no search is slow meanwhile, and a worker may stop at any moment.
func (x *Indexer) releaseIndex(ctx context.Context, conn *pgx.Conn, all []partition) error {
	var there bool
	if err := conn.QueryRow(ctx, "SELECT to_regclass($1) IS NOT NULL", tableIndex).Scan(&there); err != nil || !there {
		return err
	}
	for {
		rows, err := conn.Query(ctx, unindexedSQL, tableIndex)
		if err != nil {
			return err
		}
		partitions, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		if len(partitions) == 0 {
			break
		}
		if !x.Calm(ctx) {
			return nil // a later round goes on
		}
		if err := x.buildIndex(ctx, conn, partitions[0], "_came_idx", "(inserted_at)"); err != nil {
			return err
		}
	}
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '1s'; DROP INDEX "+tableIndex)
		if err == nil {
			x.Log.Info("dropped the table's index on inserted_at; each partition has its own", "partitions", len(all))
		}
		return err
	})
}

// withoutLateIndexSQL lists the partitions that have no index on time.
const withoutLateIndexSQL = `SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
	WHERE i.inhparent = $1::text::regclass AND NOT EXISTS (
		SELECT FROM pg_index x JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = x.indkey[0]
		WHERE x.indrelid = c.oid AND x.indisvalid AND a.attname = 'time')`

// indexLate gives partitions of before event times the index on time of late rows that others are made with, the newest partition first.
// Without it each slice of a search reads what came within an hour of it. Rows of before have no time, and are not in it. So it is
// small, and open partitions get it however busy the streams are: there the most is searched.
func (x *Indexer) indexLate(ctx context.Context, conn *pgx.Conn, all []partition) error {
	rows, err := conn.Query(ctx, withoutLateIndexSQL, x.Partitions.logs.name)
	if err != nil {
		return err
	}
	lacking, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(lacking) == 0 {
		return err
	}
	for _, p := range slices.Backward(all) {
		if p.pending || !x.Partitions.logs.ownName(p.name) || !slices.Contains(lacking, p.name) {
			continue
		}
		if p.closed(x.Now()) && !x.Calm(ctx) {
			return nil // a later round goes on
		}
		if err := x.buildIndex(ctx, conn, p.name, "_late_idx", "(time) WHERE "+eventtime.LateSQL+" AND time <> "+eventtime.NoTimeSQL); err != nil {
			return err
		}
	}
	return nil
}

// buildIndex builds an index of a partition. It replaces one that a build left invalid.
func (x *Indexer) buildIndex(ctx context.Context, conn *pgx.Conn, name, suffix, on string) error {
	index := pgx.Identifier{name + suffix}
	if err := execPatiently(ctx, conn, 0, "DROP INDEX CONCURRENTLY IF EXISTS "+index.Sanitize()); err != nil {
		return err
	}
	began := time.Now()
	err := execPatiently(ctx, conn, 0, fmt.Sprintf("CREATE INDEX CONCURRENTLY %s ON %s %s", index.Sanitize(), pgx.Identifier{name}.Sanitize(), on))
	if err == nil {
		x.Log.Info("gave a partition of before event times an index of its own", "index", name+suffix, "took", time.Since(began).Round(time.Millisecond))
	}
	return err
}
