package worker

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/broker"
)

const (
	// keeperLock is the key of the advisory lock that the leader holds, "mrkeeper" in ASCII.
	keeperLock = 0x6d726b6565706572

	keeperInterval = time.Minute

	// intervalsAhead is how many partitions follow the current one.
	intervalsAhead = 2

	// ledgerKeep is how long the ledger remembers a segment, from the end of its partition.
	ledgerKeep = 7 * 24 * time.Hour

	// closedAfter is how long after its end a partition still gets rows as a matter of course.
	closedAfter = time.Hour

	// detachTimeout bounds the wait of a detach for the transactions under way. One that runs out is left
	// pending and finished later.
	detachTimeout = 50 * time.Second

	// dropMark begins the comment on a partition that retention is about to detach and drop, and is followed by
	// its range. A table that was detached by somebody else, to be kept, does not have it.
	dropMark = "millrace: to be dropped, "
)

// keeper looks after the partitions. Every worker has one, and the one that holds the advisory lock does the
// work; the others only look how far the partitions reach.
type keeper struct {
	link      link
	parts     *partitions
	retention time.Duration // zero: keep
	index     bool
	log       *slog.Logger
	now       func() time.Time

	leader bool
}

// run works until ctx is done. It owns the link.
func (k *keeper) run(ctx context.Context) {
	defer k.link.drop()
	for {
		if err := k.tidy(ctx); err != nil && ctx.Err() == nil {
			k.log.Warn("partitions could not be looked after, trying again", "error", err, "retry_in", keeperInterval)
			k.link.rollback(ctx)
		}
		if broker.Sleep(ctx, keeperInterval) != nil {
			return
		}
	}
}

// tidy is one round. The steps don't need each other: one that fails doesn't keep the next from its turn.
func (k *keeper) tidy(ctx context.Context) error {
	if k.link.conn != nil && k.link.conn.IsClosed() {
		k.link.drop()
	}
	if k.link.conn == nil {
		k.leader = false // the lock went with its session
	}
	conn, err := k.link.open(ctx)
	if err != nil {
		return err
	}
	if !k.leader {
		if err := conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", int64(keeperLock)).Scan(&k.leader); err != nil {
			return err
		}
	}
	if !k.leader {
		return k.parts.refresh(ctx, conn, k.parts.logs)
	}
	var failed []string
	step := func(name string, err error) {
		if err != nil {
			failed = append(failed, name+": "+err.Error())
		}
	}
	for _, t := range []table{k.parts.logs, k.parts.ledger} {
		step("make ahead", k.makeAhead(ctx, conn, t))
	}
	if k.retention > 0 {
		step("retention", k.dropOld(ctx, conn, k.parts.logs, k.now().Add(-k.retention)))
	}
	step("ledger", k.dropOld(ctx, conn, k.parts.ledger, k.now().Add(-ledgerKeep)))
	if k.index {
		step("index", k.indexClosed(ctx, conn))
	}
	if len(failed) > 0 {
		return fmt.Errorf("%s", strings.Join(failed, "; "))
	}
	return nil
}

// makeAhead makes partitions from now on without a gap.
func (k *keeper) makeAhead(ctx context.Context, conn *pgx.Conn, t table) error {
	if err := k.parts.refresh(ctx, conn, t); err != nil {
		return err
	}
	at := k.now()
	for last := at.Add(intervalsAhead * t.interval); !at.After(last); {
		r, err := k.parts.ensure(ctx, conn, t, at)
		if err != nil {
			return err
		}
		at = r.to
	}
	return nil
}

// dropOld detaches and drops the partitions that ended before a time, and finishes what an earlier round or
// leader had begun.
func (k *keeper) dropOld(ctx context.Context, conn *pgx.Conn, t table, before time.Time) error {
	all, err := listPartitions(ctx, conn, t)
	if err != nil {
		return err
	}
	for _, p := range all {
		if p.pending && strings.HasPrefix(p.comment, dropMark) {
			if err := k.detach(ctx, conn, t, p.name, "FINALIZE"); err != nil {
				return err
			}
			continue
		}
		if p.to.After(before) && !p.pending && strings.HasPrefix(p.comment, dropMark) {
			// Retention was longer when it was marked, and shall not be remembered when somebody detaches it.
			if _, err := conn.Exec(ctx, fmt.Sprintf("COMMENT ON TABLE %s IS NULL", pgx.Identifier{p.name}.Sanitize())); err != nil {
				return fmt.Errorf("unmark %s: %w", p.name, err)
			}
		}
		if p.to.After(before) || p.pending || !t.ownName(p.name) {
			continue
		}
		mark := dropMark + p.from.Format(time.RFC3339) + "/" + p.to.Format(time.RFC3339)
		if _, err := conn.Exec(ctx, fmt.Sprintf("COMMENT ON TABLE %s IS '%s'", pgx.Identifier{p.name}.Sanitize(), mark)); err != nil {
			return fmt.Errorf("mark %s: %w", p.name, err)
		}
		if err := k.detach(ctx, conn, t, p.name, "CONCURRENTLY"); err != nil {
			return err
		}
	}
	k.parts.forget()
	return k.dropDetached(ctx, conn, t, before)
}

// detach takes a partition out of its table. It does not run in a transaction, and must not be cut short by
// lock_timeout: that would leave it pending for nothing.
func (k *keeper) detach(ctx context.Context, conn *pgx.Conn, t table, name, how string) error {
	return k.patiently(ctx, conn, detachTimeout, fmt.Sprintf("ALTER TABLE %s DETACH PARTITION %s %s", t.name, pgx.Identifier{name}.Sanitize(), how))
}

// patiently runs a statement that waits for other transactions, within a time; zero is no limit.
func (k *keeper) patiently(ctx context.Context, conn *pgx.Conn, within time.Duration, sql string) error {
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

// dropDetached drops the tables that carry the mark, are no partitions any more and ended before a time. The hours that lost rows are
// noted in the same transaction.
func (k *keeper) dropDetached(ctx context.Context, conn *pgx.Conn, t table, before time.Time) error {
	const marked = `SELECT c.relname, d.description FROM pg_class c
		JOIN pg_description d ON d.objoid = c.oid AND d.classoid = 'pg_class'::regclass AND d.objsubid = 0
		WHERE c.relkind = 'r' AND NOT c.relispartition AND starts_with(d.description, $2)
		AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = $1::text::regclass)`
	rows, err := conn.Query(ctx, marked, t.name, dropMark)
	if err != nil {
		return err
	}
	type orphan struct{ Name, Comment string }
	orphans, err := pgx.CollectRows(rows, pgx.RowToStructByPos[orphan])
	if err != nil {
		return err
	}
	for _, o := range orphans {
		if !t.ownName(o.Name) {
			continue
		}
		from, to, _ := strings.Cut(strings.TrimPrefix(o.Comment, dropMark), "/")
		if end, err := time.Parse(time.RFC3339, to); err != nil || end.After(before) {
			k.log.Warn("a detached partition is marked to be dropped and too young for that; it is left alone", "table", o.Name, "mark", o.Comment)
			continue
		}
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if t.name == "logs" {
				const note = `INSERT INTO late_changes (hour)
					SELECT generate_series(date_trunc('hour', $1::text::timestamptz), $2::text::timestamptz - interval '1 us', interval '1 hour')` + lateAgainSQL
				if _, err := tx.Exec(ctx, note, from, to); err != nil {
					return err
				}
			}
			_, err := tx.Exec(ctx, "DROP TABLE "+pgx.Identifier{o.Name}.Sanitize())
			return err
		})
		if err != nil {
			return fmt.Errorf("drop %s: %w", o.Name, err)
		}
		k.log.Info("dropped a partition", "table", o.Name, "from", from, "to", to)
	}
	return nil
}

// indexClosed gives partitions that no longer grow the index for searches in data, the oldest first. The open
// one goes without: it would cut COPY to a quarter of its speed.
func (k *keeper) indexClosed(ctx context.Context, conn *pgx.Conn) error {
	all, err := listPartitions(ctx, conn, k.parts.logs)
	if err != nil {
		return err
	}
	for _, p := range all {
		if p.pending || p.to.Add(closedAfter).After(k.now()) || !k.parts.logs.ownName(p.name) {
			continue
		}
		name := p.name + "_data_idx"
		var valid bool
		err := conn.QueryRow(ctx, "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)", name).Scan(&valid)
		switch {
		case err == pgx.ErrNoRows:
		case err != nil:
			return err
		case valid:
			continue
		default: // left by a build that was cut short
			if err := k.patiently(ctx, conn, 0, "DROP INDEX CONCURRENTLY "+pgx.Identifier{name}.Sanitize()); err != nil {
				return err
			}
		}
		began := time.Now()
		err = k.patiently(ctx, conn, 0, fmt.Sprintf("CREATE INDEX CONCURRENTLY %s ON %s USING gin (data jsonb_path_ops)",
			pgx.Identifier{name}.Sanitize(), pgx.Identifier{p.name}.Sanitize()))
		if err != nil {
			return err
		}
		k.log.Info("indexed a closed partition", "table", p.name, "took", time.Since(began).Round(time.Millisecond))
	}
	return nil
}
