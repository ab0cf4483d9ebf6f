package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"millrace/internal/frame"
	"millrace/internal/pg"
	"millrace/internal/retry"
)

const (
	// parkedLock is held by the worker that replaces the parked queue, "mrparked" in ASCII.
	parkedLock = 0x6d727061726b6564

	// keeperLock and indexerLock are the keys of the advisory locks that the leaders hold, "mrkeeper" and "mrindex"
	// in ASCII.
	keeperLock  = 0x6d726b6565706572
	indexerLock = 0x6d72696e646578

	// keeperInterval is the time from the end of one round to the next.
	keeperInterval = time.Minute

	// intervalsAhead is how many partitions follow the current one.
	intervalsAhead = 2

	// ledgerKeep is how long the ledger remembers a segment, from the end of its partition.
	ledgerKeep = 7 * 24 * time.Hour

	// mostDrops is how many partitions of a table one round drops, unless RETENTION was shortened: a clock that is wrong
	// then costs two a minute, and an operator has the time to see it.
	mostDrops = 2

	// closedAfter is how long after its end a partition still gets rows as a matter of course.
	closedAfter = time.Hour

	// indexPatience is how long after that a build may be put off because the streams are busy. One build beside
	// streams that work as fast as they can takes a third of their speed on two cores (268,000 rows/s without it,
	// 178,000 with), and nothing of a speed that leaves room for it.
	indexPatience = 6 * time.Hour

	// loadWindow is how long the streams are watched before they are said to be busy or not.
	loadWindow = 2 * time.Second

	// detachTimeout bounds the wait of a detach for the transactions under way. One that runs out is left
	// pending and finished later.
	detachTimeout = 50 * time.Second

	// dropMark begins the comment on a partition that retention is about to detach and drop, and is followed by
	// its range. A table that was detached by somebody else, to be kept, does not have it.
	dropMark = "millrace: to be dropped, "
)

// leader is a connection with the advisory lock that makes its holder the only one of all workers.
type leader struct {
	link  pg.Link
	key   int64
	leads bool
	owns  bool // the connection's user may do what only the tables' owner may; others don't lead
}

// lead returns the connection, and whether it holds the lock.
func (l *leader) lead(ctx context.Context) (*pgx.Conn, bool, error) {
	if !l.link.IsOpen() {
		l.leads = false // the lock went with its session
	}
	conn, err := l.link.Open(ctx)
	if err != nil || l.leads {
		return conn, l.leads, err
	}
	const owner = "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = 'logs'::regclass"
	if err = conn.QueryRow(ctx, owner).Scan(&l.owns); err == nil && l.owns {
		err = conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", l.key).Scan(&l.leads)
	}
	return conn, l.leads, err
}

// rounds calls tidy every so often until ctx is done. It owns the link.
func (l *leader) rounds(ctx context.Context, log *slog.Logger, what string, tidy func(context.Context) error) {
	defer l.link.Drop()
	for {
		if err := tidy(ctx); err != nil && ctx.Err() == nil {
			log.Warn(what+", trying again", "error", err, "retry_in", keeperInterval)
			l.link.Rollback(ctx)
		}
		if retry.Sleep(ctx, keeperInterval) != nil {
			return
		}
	}
}

// keeper looks after the partitions. Every worker has one, and the one that leads does the work; the others only
// look how far the partitions reach. One whose user does not own the tables never leads, and makes partitions ahead
// all the same: there may be nobody else.
type keeper struct {
	leader
	parts     *partitions
	retention time.Duration // zero: keep
	remember  time.Duration // how long the ledger remembers a segment, from the end of its partition
	log       *slog.Logger
	now       func() time.Time
	due       *prometheus.GaugeVec // partitions of a table that are left to be dropped by later rounds; may be nil
	told      bool                 // that the user does not own the tables
}

// run works until ctx is done.
func (k *keeper) run(ctx context.Context) {
	k.rounds(ctx, k.log, "partitions could not be looked after", k.tidy)
}

// tidy is one round. The steps don't need each other: one that fails doesn't keep the next from its turn.
func (k *keeper) tidy(ctx context.Context) error {
	conn, leads, err := k.lead(ctx)
	if err != nil {
		return err
	}
	if !leads && k.owns {
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
	if leads {
		now, err := earlierClock(ctx, conn, k.now())
		if err != nil {
			return err
		}
		step("retention", k.retain(ctx, conn, now))
		step("ledger", k.forget(ctx, conn, now))
	} else if !k.told {
		k.told = true
		k.log.Info("the database user does not own the tables: partitions are dropped and indexed by workers whose user does (POSTGRES_OWNER_URL)")
	}
	if len(failed) > 0 {
		return fmt.Errorf("%s", strings.Join(failed, "; "))
	}
	return nil
}

// earlierClock returns the earlier one of a time by the worker's clock and of the database's: one that is wrong must not
// drop anything by itself.
func earlierClock(ctx context.Context, conn *pgx.Conn, now time.Time) (time.Time, error) {
	var there time.Time
	if err := conn.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&there); err != nil {
		return now, err
	}
	if there.Before(now) {
		now = there
	}
	return now, nil
}

const (
	noteSQL = `INSERT INTO settings (name, value) VALUES ($1, $2)
		ON CONFLICT (name) DO UPDATE SET value = excluded.value, changed_at = now() WHERE settings.value <> excluded.value`

	// noteForgottenSQL notes that the ledger is about to forget what is before a time.
	noteForgottenSQL = `INSERT INTO settings (name, value) VALUES ('ledger_forgotten', $1)
		ON CONFLICT (name) DO UPDATE SET value = excluded.value, changed_at = now() WHERE settings.value::timestamptz < excluded.value::timestamptz`
)

// notedRetention returns the retention that the keeper went by last, zero for ever, and whether one was noted.
func notedRetention(ctx context.Context, conn *pgx.Conn) (time.Duration, bool, error) {
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
func (k *keeper) retain(ctx context.Context, conn *pgx.Conn, now time.Time) error {
	noted, was, err := notedRetention(ctx, conn)
	if err != nil {
		return err
	}
	if k.retention > 0 {
		most := mostDrops
		if was && (noted == 0 || k.retention < noted) {
			most = math.MaxInt
		}
		if err := k.dropOld(ctx, conn, k.parts.logs, now.Add(-k.retention), most); err != nil {
			return err
		}
	}
	_, err = conn.Exec(ctx, noteSQL, "retention", k.retention.String())
	return err
}

// forget drops partitions of the ledger. Its own youngest entry, too, must show that their time has passed: where nothing
// comes in, nothing needs to be forgotten.
func (k *keeper) forget(ctx context.Context, conn *pgx.Conn, now time.Time) error {
	var youngest [16]byte
	err := conn.QueryRow(ctx, "SELECT id FROM ledger ORDER BY id DESC LIMIT 1").Scan(&youngest)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
	case err != nil:
		return err
	case frame.Time(youngest).Before(now):
		now = frame.Time(youngest)
	}
	return k.dropOld(ctx, conn, k.parts.ledger, now.Add(-k.remember), mostDrops)
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

// dropOld detaches and drops the partitions that ended before a time, at most so many and the oldest first, and finishes
// what an earlier round or leader had begun.
func (k *keeper) dropOld(ctx context.Context, conn *pgx.Conn, t table, before time.Time, most int) error {
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
	if k.due != nil {
		k.due.WithLabelValues(t.name).Set(float64(max(0, due-most)))
	}
	if due > most {
		k.log.Warn("more partitions are due to be dropped than one round drops; if that is not what you expect, look at the clocks and at RETENTION",
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
	k.parts.forget()
	return k.dropDetached(ctx, conn, t, before)
}

// detach takes a partition out of its table. It does not run in a transaction, and must not be cut short by
// lock_timeout: that would leave it pending for nothing.
func (k *keeper) detach(ctx context.Context, conn *pgx.Conn, t table, name, how string) error {
	return patiently(ctx, conn, detachTimeout, fmt.Sprintf("ALTER TABLE %s DETACH PARTITION %s %s", t.name, pgx.Identifier{name}.Sanitize(), how))
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

// isDistributed reports whether Citus keeps the table's rows on other servers.
func isDistributed(ctx context.Context, conn *pgx.Conn, t table) (bool, error) {
	var citus, distributed bool
	if err := conn.QueryRow(ctx, "SELECT to_regclass('pg_dist_partition') IS NOT NULL").Scan(&citus); err != nil || !citus {
		return false, err
	}
	err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = $1::text::regclass)", t.name).Scan(&distributed)
	return distributed, err
}

// detachPlainly takes a partition out of its table. Reads and writes wait behind it, so it gives up soon when there are
// long ones, and the next round tries again.
func (k *keeper) detachPlainly(ctx context.Context, conn *pgx.Conn, t table, name string) error {
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

// patiently runs a statement that waits for other transactions, within a time; zero is no limit.
func patiently(ctx context.Context, conn *pgx.Conn, within time.Duration, sql string) error {
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

// indexer gives partitions that no longer grow the index for searches in data, the oldest first. The open one
// goes without: it would cut COPY to a quarter of its speed. Of all workers one builds at a time, beside the
// keeper: a build waits for every transaction that was there before it.
type indexer struct {
	leader
	logs      table
	retention time.Duration              // zero: keep
	calm      func(context.Context) bool // see load
	log       *slog.Logger
	now       func() time.Time
}

// run works until ctx is done. A build that is cut short by that is begun anew by the next leader.
func (x *indexer) run(ctx context.Context) {
	x.rounds(ctx, x.log, "closed partitions could not be indexed", x.tidy)
}

// tidy is one round. A partition that can't be indexed doesn't keep the others from it.
func (x *indexer) tidy(ctx context.Context) error {
	conn, leads, err := x.lead(ctx)
	if err != nil || !leads {
		return err
	}
	all, err := listPartitions(ctx, conn, x.logs)
	if err != nil {
		return err
	}
	now, err := earlierClock(ctx, conn, x.now()) // an open partition must not get the index
	if err != nil {
		return err
	}
	var failed []error
	for _, p := range all {
		if p.pending || p.to.Add(closedAfter).After(now) || !x.logs.ownName(p.name) ||
			x.retention > 0 && !p.to.After(now.Add(-x.retention)) {
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

// index gives a partition its index, in place of one that a build left invalid.
func (x *indexer) index(ctx context.Context, conn *pgx.Conn, p partition) error {
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
	calm := x.calm(ctx)
	if x.now().Before(p.to.Add(closedAfter+indexPatience)) && !calm {
		return nil
	}
	if err == nil { // the invalid one
		if err := x.dropInvalid(ctx, conn, name); err != nil {
			return err
		}
	}
	if _, err := conn.Exec(ctx, buildProcesses(conn, calm)); err != nil {
		return err
	}
	began := time.Now()
	err = patiently(ctx, conn, 0, fmt.Sprintf("CREATE INDEX CONCURRENTLY %s ON %s USING gin (data jsonb_path_ops)",
		pgx.Identifier{name}.Sanitize(), pgx.Identifier{p.name}.Sanitize()))
	if err == nil {
		x.log.Info("indexed a closed partition", "table", p.name, "took", time.Since(began).Round(time.Millisecond))
	}
	return err
}

// buildProcesses returns the statement that says how many processes a build may take. PostgreSQL 18 is the first that builds
// this kind of index in several. Busy streams need the other cores.
func buildProcesses(conn *pgx.Conn, calm bool) string {
	major, _, _ := strings.Cut(conn.PgConn().ParameterStatus("server_version"), ".")
	if n, _ := strconv.Atoi(major); n >= 18 && calm { // a beta's "19beta1" is no number, and gets one process
		return "RESET max_parallel_maintenance_workers"
	}
	return "SET max_parallel_maintenance_workers = 0"
}

// dropInvalid drops an index that a build left invalid. Citus may refuse to do so concurrently.
func (x *indexer) dropInvalid(ctx context.Context, conn *pgx.Conn, name string) error {
	distributed, err := isDistributed(ctx, conn, x.logs)
	if err != nil {
		return err
	}
	if !distributed {
		return patiently(ctx, conn, 0, "DROP INDEX CONCURRENTLY "+pgx.Identifier{name}.Sanitize())
	}
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '1s'; DROP INDEX "+pgx.Identifier{name}.Sanitize())
		return err
	})
}
