package partition

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/frame"
)

const (
	// LedgerKeep is how long the ledger remembers a segment, from the end of its partition.
	LedgerKeep = 7 * 24 * time.Hour

	// mostDrops is how many partitions of a table one round drops, unless RETENTION was shortened: a clock that is wrong
	// then costs two a minute, and an operator has the time to see it.
	mostDrops = 2

	// DetachTimeout bounds the wait of a detach for the transactions under way. One that runs out is left
	// pending and finished later.
	DetachTimeout = 50 * time.Second

	// dropMark begins the comment on a partition that retention is about to detach and drop, and is followed by
	// its range. A table that was detached by somebody else, to be kept, does not have it.
	dropMark = "millrace: to be dropped, "

	noteSQL = `INSERT INTO settings (name, value) VALUES ($1, $2)

		ON CONFLICT (name) DO UPDATE SET value = excluded.value, changed_at = now() WHERE settings.value <> excluded.value`

	// noteForgottenSQL notes that the ledger is about to forget what is before a time.
	noteForgottenSQL = `INSERT INTO settings (name, value) VALUES ('ledger_forgotten', $1)
		ON CONFLICT (name) DO UPDATE SET value = excluded.value, changed_at = now() WHERE settings.value::timestamptz < excluded.value::timestamptz`
)

// NotedRetention returns the retention that the keeper went by last, zero for ever, and whether one was noted.
func NotedRetention(ctx context.Context, conn *pgx.Conn) (time.Duration, bool, error) {
	var text string
	err := conn.QueryRow(ctx, "SELECT value FROM settings WHERE name = 'retention'").Scan(&text)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, false, fmt.Errorf("settings: retention: %w", err)
	}
	return d, true, nil
}

// retain drops the partitions of logs that are older than the retention: all at once where it was shortened, else some a
// round. It notes the retention, for the next leader and for replays.
func (k *Keeper) retain(ctx context.Context, conn *pgx.Conn, now time.Time) error {
	noted, was, err := NotedRetention(ctx, conn)
	if err != nil {
		return err
	}
	if k.Retention > 0 {
		most := mostDrops
		if was && (noted == 0 || k.Retention < noted) {
			most = math.MaxInt
		}
		if err := k.dropOld(ctx, conn, k.Partitions.logs, now.Add(-k.Retention), most); err != nil {
			return err
		}
	}
	_, err = conn.Exec(ctx, noteSQL, "retention", k.Retention.String())
	return err
}

// forget drops partitions of the ledger. Its own youngest entry, too, must show that their time has passed: where nothing
// comes in, nothing needs to be forgotten.
func (k *Keeper) forget(ctx context.Context, conn *pgx.Conn, now time.Time) error {
	var youngest [16]byte
	err := conn.QueryRow(ctx, "SELECT id FROM ledger ORDER BY id DESC LIMIT 1").Scan(&youngest)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
	case err != nil:
		return err
	case frame.Time(youngest).Before(now):
		now = frame.Time(youngest)
	}
	return k.dropOld(ctx, conn, k.Partitions.ledger, now.Add(-k.Remember), mostDrops)
}

// dropOld detaches and drops the partitions that ended before a time, at most so many and the oldest first, and finishes
// what an earlier round or leader had begun.
func (k *Keeper) dropOld(ctx context.Context, conn *pgx.Conn, t table, before time.Time, most int) error {
	all, err := listPartitions(ctx, conn, t)
	if err != nil {
		return err
	}
	due := 0
	for _, p := range all {
		if !p.to.After(before) && !p.pending && t.ownName(p.name) {
			due++
		}
	}
	if k.Due != nil {
		k.Due.WithLabelValues(t.name).Set(float64(max(0, due-most)))
	}
	if due > most {
		k.Log.Warn("more partitions are due to be dropped than one round drops; if that is not what you expect, look at the clocks and at RETENTION",
			"table", t.name, "due", due, "a_round", most, "ended_before", before.UTC().Format(time.RFC3339))
	}
	concurrently, err := detachesConcurrently(ctx, conn, t)
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
		if p.to.After(before) || p.pending || !t.ownName(p.name) || most == 0 {
			continue
		}
		most--
		if t.name == "ledger" { // committed before anything is gone, see transaction.begin
			if _, err := conn.Exec(ctx, noteForgottenSQL, p.to.UTC().Format(time.RFC3339)); err != nil {
				return fmt.Errorf("note what the ledger forgets: %w", err)
			}
		}
		mark := dropMark + p.from.Format(time.RFC3339) + "/" + p.to.Format(time.RFC3339)
		if _, err := conn.Exec(ctx, fmt.Sprintf("COMMENT ON TABLE %s IS '%s'", pgx.Identifier{p.name}.Sanitize(), mark)); err != nil {
			return fmt.Errorf("mark %s: %w", p.name, err)
		}
		if !concurrently {
			if err := k.detachPlainly(ctx, conn, t, p.name); err != nil {
				return err
			}
			continue
		}
		if err := k.detach(ctx, conn, t, p.name, "CONCURRENTLY"); err != nil {
			return err
		}
	}
	k.Partitions.MarkStale()
	return k.dropDetached(ctx, conn, t, before)
}

// detach takes a partition out of its table. It does not run in a transaction, and must not be cut short by
// lock_timeout: that would leave it pending for nothing.
func (k *Keeper) detach(ctx context.Context, conn *pgx.Conn, t table, name, how string) error {
	return patiently(ctx, conn, DetachTimeout, fmt.Sprintf("ALTER TABLE %s DETACH PARTITION %s %s", t.name, pgx.Identifier{name}.Sanitize(), how))
}

// detachesConcurrently reports whether the table's partitions can be detached without a lock that stops reads and writes.
// Neither a table with a default partition can nor one that Citus distributes.
func detachesConcurrently(ctx context.Context, conn *pgx.Conn, t table) (bool, error) {
	var hasDefault bool
	const sql = "SELECT partdefid <> 0 FROM pg_partitioned_table WHERE partrelid = $1::text::regclass"
	if err := conn.QueryRow(ctx, sql, t.name).Scan(&hasDefault); err != nil {
		return false, err
	}
	distributed, err := isDistributed(ctx, conn, t)
	return !hasDefault && !distributed, err
}

// detachPlainly takes a partition out of its table. Reads and writes wait behind it, so it gives up soon when there are
// long ones, and the next round tries again.
func (k *Keeper) detachPlainly(ctx context.Context, conn *pgx.Conn, t table, name string) error {
	sql := fmt.Sprintf("ALTER TABLE %s DETACH PARTITION %s", t.name, pgx.Identifier{name}.Sanitize())
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '1s'"); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, sql)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	return nil
}

// dropDetached drops the tables that carry the mark, are no partitions any more and ended before a time. The hours that lost rows are
// noted in the same transaction.
func (k *Keeper) dropDetached(ctx context.Context, conn *pgx.Conn, t table, before time.Time) error {
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
			k.Log.Warn("a detached partition is marked to be dropped and too young for that; it is left alone", "table", o.Name, "mark", o.Comment)
			continue
		}
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if t.name == "logs" {
				const note = `INSERT INTO late_changes (hour)
					SELECT generate_series(date_trunc('hour', $1::text::timestamptz), $2::text::timestamptz - interval '1 us', interval '1 hour')` + LateAgainSQL
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
		k.Log.Info("dropped a partition", "table", o.Name, "from", from, "to", to)
	}
	return nil
}
