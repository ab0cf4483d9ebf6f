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
	// LedgerKeep is how long the ledger remembers a segment, from the end of the segment's partition.
	LedgerKeep = 7 * 24 * time.Hour

	// mostDrops is how many partitions of a table one round drops at most, unless RETENTION was shortened. So a wrong clock costs two
	// partitions a minute, and an operator has time to notice it.
	mostDrops = 2

	// DetachTimeout is how long a detach waits for the transactions under way. A detach that waits longer stays pending, and a
	// later round finishes it.
	DetachTimeout = 50 * time.Second

	// dropMark begins the comment on a partition that retention is about to detach and drop. The partition's range follows. A
	// table that somebody else has detached, to keep it, does not have the mark.
	dropMark = "millrace: to be dropped, "

	// noteSQL notes what the keeper goes by, or what others must know of its settings.
	noteSQL = `INSERT INTO settings (name, value) VALUES ($1, $2)
		ON CONFLICT (name) DO UPDATE SET value = excluded.value, changed_at = now() WHERE settings.value <> excluded.value`

	// noteForgottenSQL notes that the ledger is about to forget segments from before a time.
	noteForgottenSQL = `INSERT INTO settings (name, value) VALUES ('ledger_forgotten', $1)
		ON CONFLICT (name) DO UPDATE SET value = excluded.value, changed_at = now() WHERE settings.value::timestamptz < excluded.value::timestamptz`
)

// NotedRetention returns the retention that the keeper went by last, and reports whether one was noted. Zero means that rows are kept.
func NotedRetention(ctx context.Context, conn *pgx.Conn) (time.Duration, bool, error) {
	return notedDuration(ctx, conn, "retention")
}

// NotedArchiveRetention returns the retention that the worker who copies to the archive went by last. Zero means that files are kept.
func NotedArchiveRetention(ctx context.Context, conn *pgx.Conn) (time.Duration, error) {
	d, _, err := notedDuration(ctx, conn, "archive_retention")
	return d, err
}

func notedDuration(ctx context.Context, conn *pgx.Conn, name string) (time.Duration, bool, error) {
	var text string
	err := conn.QueryRow(ctx, "SELECT value FROM settings WHERE name = $1", name).Scan(&text)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, false, fmt.Errorf("settings: %s: %w", name, err)
	}
	return d, true, nil
}

// dropExpired drops the partitions of logs that are older than the retention: all of them if it was shortened, else at most mostDrops. It
// notes the retention, for the next leader and for replays.
func (k *Keeper) dropExpired(ctx context.Context, conn *pgx.Conn, now time.Time) error {
	noted, isNoted, err := NotedRetention(ctx, conn)
	if err != nil {
		return err
	}
	if k.Retention > 0 {
		most := mostDrops
		if isNoted && (noted == 0 || k.Retention < noted) {
			most = math.MaxInt
		}
		if err := k.dropOld(ctx, conn, k.Partitions.logs, now, k.Retention, most); err != nil {
			return err
		}
	}
	_, err = conn.Exec(ctx, noteSQL, "retention", k.Retention.String())
	return err
}

// dropForgotten drops old partitions of the ledger. Their age counts from the ledger's youngest entry: while nothing comes in, nothing needs
// to be forgotten.
func (k *Keeper) dropForgotten(ctx context.Context, conn *pgx.Conn, now time.Time) error {
	var youngest [16]byte
	err := conn.QueryRow(ctx, "SELECT id FROM ledger ORDER BY id DESC LIMIT 1").Scan(&youngest)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
	case err != nil:
		return err
	case frame.Time(youngest).Before(now):
		now = frame.Time(youngest)
	}
	return k.dropOld(ctx, conn, k.Partitions.ledger, now, k.Remember, mostDrops)
}

// dropOld detaches and drops the partitions that ended longer ago than they are kept, at most so many and the oldest first. It also finishes what an
// earlier round or leader has begun.
func (k *Keeper) dropOld(ctx context.Context, conn *pgx.Conn, t table, now time.Time, keep time.Duration, most int) error {
	before := now.Add(-keep)
	all, err := list(ctx, conn, t)
	if err != nil {
		return err
	}
	k.reportDue(t, all, before, most)
	concurrently, err := detachesConcurrently(ctx, conn, t)
	if err != nil {
		return err
	}
	for _, p := range all {
		var err error
		switch {
		case p.pending && p.marked():
			err = detach(ctx, conn, t, p, "FINALIZE")
		case t.due(p, before) && most > 0:
			if t.name == "logs" {
				var obstacle string
				if obstacle, err = k.release(ctx, conn, p, now); err != nil {
					break
				}
				if obstacle != "" {
					k.Log.Info("a partition is not dropped yet", "table", p.name, "because", obstacle)
					continue
				}
			}
			most--
			err = markAndDetach(ctx, conn, t, p, concurrently)
		case p.marked() && !p.pending && p.to.After(before):
			err = unmark(ctx, conn, p)
		}
		if err != nil {
			return err
		}
	}
	k.Partitions.MarkStale()
	return k.dropDetached(ctx, conn, t, before)
}

// due reports whether a partition of the table is to be marked and detached, because it ended before a time.
func (t table) due(p partition, before time.Time) bool {
	return !p.to.After(before) && !p.pending && t.ownName(p.name)
}

// reportDue sets the gauge to the number of due partitions that this round leaves to later ones. If there are any, it logs a warning.
func (k *Keeper) reportDue(t table, all []partition, before time.Time, most int) {
	due := 0
	for _, p := range all {
		if t.due(p, before) {
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
}

// markAndDetach marks a partition and detaches it. dropDetached drops it.
func markAndDetach(ctx context.Context, conn *pgx.Conn, t table, p partition, concurrently bool) error {
	if t.name == "ledger" { // it must be committed before anything is gone: the worker's transactions read it
		if _, err := conn.Exec(ctx, noteForgottenSQL, p.to.UTC().Format(time.RFC3339)); err != nil {
			return fmt.Errorf("note what the ledger forgets: %w", err)
		}
	}
	if err := mark(ctx, conn, p); err != nil {
		return err
	}
	if !concurrently {
		return detachPlainly(ctx, conn, t, p)
	}
	return detach(ctx, conn, t, p, "CONCURRENTLY")
}

// unmark takes the mark from a partition that is too young to be dropped: retention was shorter when it was marked. With the mark it
// would be dropped if somebody detached it.
func unmark(ctx context.Context, conn *pgx.Conn, p partition) error {
	sql := "COMMENT ON TABLE " + p.quoted() + " IS NULL"
	if p.closing { // it takes rows again
		sql = "SET LOCAL lock_timeout = '2s'; DROP TRIGGER " + refusal + " ON " + p.quoted() + "; " + sql
	}
	if err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, sql)
		return err
	}); err != nil {
		return fmt.Errorf("unmark %s: %w", p.name, err)
	}
	return nil
}

// detach takes a partition out of its table, without a lock that stops reads and writes. It can't run in a transaction. It is not
// cut short by lock_timeout, which would leave it pending for nothing.
func detach(ctx context.Context, conn *pgx.Conn, t table, p partition, how string) error {
	return execPatiently(ctx, conn, DetachTimeout, fmt.Sprintf("ALTER TABLE %s DETACH PARTITION %s %s", t.name, p.quoted(), how))
}

// detachesConcurrently reports whether the table's partitions can be detached without a lock that stops reads and writes. They can't
// if the table has a default partition, or if Citus distributes it.
func detachesConcurrently(ctx context.Context, conn *pgx.Conn, t table) (bool, error) {
	hasDefault, err := hasDefault(ctx, conn, t)
	if err != nil {
		return false, err
	}
	distributed, err := isDistributed(ctx, conn, t)
	return !hasDefault && !distributed, err
}

// detachPlainly takes a partition out of its table. Reads and writes wait behind it. So it gives up after a second if it has to wait
// itself, and the next round tries again.
func detachPlainly(ctx context.Context, conn *pgx.Conn, t table, p partition) error {
	sql := fmt.Sprintf("ALTER TABLE %s DETACH PARTITION %s", t.name, p.quoted())
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

// dropDetached drops the former partitions that carry the mark and ended before a time. The transaction that drops one of logs notes
// the hours that lose rows.
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
		end, err := time.Parse(time.RFC3339, to)
		if err != nil || end.After(before) {
			k.Log.Warn("a detached partition is marked to be dropped and too young for that; it is left alone", "table", o.Name, "mark", o.Comment)
			continue
		}
		err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if t.name == "logs" {
				r := timeRange{to: end}
				if r.from, err = time.Parse(time.RFC3339, from); err != nil {
					return err
				}
				if err := noteLoss(ctx, tx, r); err != nil {
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
