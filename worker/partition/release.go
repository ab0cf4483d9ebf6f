package partition

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
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
		if err := x.indexArrival(ctx, conn, partitions[0]); err != nil {
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

// indexArrival builds a partition's own index on inserted_at. It replaces one that a build left invalid.
func (x *Indexer) indexArrival(ctx context.Context, conn *pgx.Conn, name string) error {
	index := pgx.Identifier{name + "_came_idx"}
	if err := execPatiently(ctx, conn, 0, "DROP INDEX CONCURRENTLY IF EXISTS "+index.Sanitize()); err != nil {
		return err
	}
	began := time.Now()
	err := execPatiently(ctx, conn, 0, fmt.Sprintf("CREATE INDEX CONCURRENTLY %s ON %s (inserted_at)", index.Sanitize(), pgx.Identifier{name}.Sanitize()))
	if err == nil {
		x.Log.Info("gave a partition its own index on inserted_at", "table", name, "took", time.Since(began).Round(time.Millisecond))
	}
	return err
}
