package partition

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/archive"
	"millrace/internal/retry"
)

// writersEndWithin is how long a copy waits for transactions that store rows of its range. A batch takes tens of milliseconds.
const writersEndWithin = 10 * time.Second

// announce notes that a range is copied for the first time, and waits for the transactions that may not have seen the note. So the snapshot
// that is taken afterwards has each row of the range that nothing has noted, and each row that comes later is noted, whatever the clocks of the workers and
// of the database say: they may have been ahead, and be set back.
//
// The note is a row of archive_ranges of the generation 0. Searches take the range's rows from logs all the while: no sum of changes is -1.
func (a *Archiver) announce(ctx context.Context, conn *pgx.Conn, r timeRange) error {
	if err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		// Copies that were given up may have had other bounds.
		if _, err := tx.Exec(ctx, "DELETE FROM archive_ranges WHERE generation = 0 AND "+archive.TouchesSQL("$1", "$2"), r.from, r.to); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "INSERT INTO archive_ranges (from_at, to_at, generation, changes) VALUES ($1, $2, 0, -1)", r.from, r.to)
		return err
	}); err != nil {
		return fmt.Errorf("announce: %w", err)
	}
	return a.awaitWriters(ctx, conn, r)
}

// writersSQL lists the transactions that have stored or changed rows of some tables, or have begun to. A transaction keeps its locks until all others see its rows.
const writersSQL = `SELECT array_agg(DISTINCT virtualtransaction) FROM pg_locks
	WHERE locktype = 'relation' AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND mode = 'RowExclusiveLock' AND granted
	AND pid IS DISTINCT FROM pg_backend_pid() AND relation = ANY (SELECT to_regclass(quote_ident(name))::oid FROM unnest($1::text[]) AS t (name))`

// awaitWriters waits until the transactions have ended that store rows of a range at this moment. One that begins to store later also notes its
// rows later, and the statement that does so sees what was committed before this call.
func (a *Archiver) awaitWriters(ctx context.Context, conn *pgx.Conn, r timeRange) error {
	all, err := list(ctx, conn, a.Partitions.logs)
	if err != nil {
		return err
	}
	var names []string
	for _, p := range all {
		if p.from.Before(r.to) && p.to.After(r.from) {
			names = append(names, p.name)
		}
	}
	// Rows of the range may lie elsewhere, too: on other servers, or in the default partition. The lock on logs stands for these.
	distributed, err := isDistributed(ctx, conn, a.Partitions.logs)
	if err != nil {
		return err
	}
	withDefault, err := hasDefault(ctx, conn, a.Partitions.logs)
	if err != nil {
		return err
	}
	if distributed || withDefault {
		names = append(names, a.Partitions.logs.name)
	}
	within := a.writersEndWithin
	if within == 0 {
		within = writersEndWithin
	}
	var waitFor []string
	for began, first := time.Now(), true; ; first = false {
		var writing []string
		if err := conn.QueryRow(ctx, writersSQL, names).Scan(&writing); err != nil {
			return err
		}
		if first {
			waitFor = writing
		}
		waitFor = slices.DeleteFunc(waitFor, func(w string) bool { return !slices.Contains(writing, w) })
		if len(waitFor) == 0 {
			return nil
		}
		if time.Since(began) > within {
			return fmt.Errorf("%d transactions write to rows from %s to %s and have not ended within %v", len(waitFor), r.from.Format(time.RFC3339), r.to.Format(time.RFC3339), within)
		}
		if err := retry.Sleep(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}
