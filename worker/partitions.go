package worker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/internal/frame"
	"millrace/internal/pg"
)

const (
	// partitionLock is the key of the advisory lock under which partitions are made, "mr parts" in ASCII.
	partitionLock = 0x6d72207061727473

	ledgerInterval = 24 * time.Hour

	// lockPatience is how long late records, and their batches with them, wait for a lock that somebody holds on the
	// tables. A schema change takes seconds; what takes longer shall not stop the new records.
	lockPatience = 30 * time.Second

	// ownMinute is the length of the partition that createMinute makes.
	ownMinute = time.Minute
)

// table is a partitioned table. Both are divided by time: logs by inserted_at, the ledger by the time that its
// ids begin with.
type table struct {
	name     string
	interval time.Duration // of new partitions
}

// bound writes a time as a bound of the table's partitions.
func (t table) bound(at time.Time) string {
	if t.name == "ledger" {
		var id uuid.UUID
		binary.BigEndian.PutUint64(id[:], uint64(at.UnixMilli())<<16)
		return id.String()
	}
	return at.UTC().Format("2006-01-02 15:04:05.999999-07")
}

// endOfTime is PostgreSQL's last year, and stands for no bound above.
var endOfTime = time.Date(294276, 1, 1, 0, 0, 0, 0, time.UTC)

// parseBound reads what bound or PostgreSQL wrote. The zero time stands for no bound below.
func (t table) parseBound(s string) (time.Time, error) {
	switch s {
	case "-infinity":
		return time.Time{}, nil
	case "infinity":
		return endOfTime, nil
	}
	if t.name == "ledger" {
		id, err := uuid.Parse(s)
		return frame.Time(id), err
	}
	at, err := time.Parse("2006-01-02 15:04:05.999999-07", s)
	return at.UTC(), err
}

// timeRange is half open.
type timeRange struct{ from, to time.Time }

func (r timeRange) contains(t time.Time) bool { return !t.Before(r.from) && t.Before(r.to) }

// partition is a partition as the catalog has it.
type partition struct {
	timeRange
	name    string
	pending bool   // a detach was begun and not finished
	comment string // see dropMark
}

// slot returns the range of a new partition that is to hold at: the interval that at lies in, less what
// existing partitions have of it. Clipping lets the interval change without a day of overlap.
func slot(at time.Time, interval time.Duration, existing []partition) timeRange {
	from := at.UTC().Truncate(interval) // Truncate counts from a midnight in UTC
	r := timeRange{from, from.Add(interval)}
	for _, p := range existing {
		if !p.to.After(at) && p.to.After(r.from) {
			r.from = p.to
		}
		if p.from.After(at) && p.from.Before(r.to) {
			r.to = p.from
		}
	}
	return r
}

// partitionNames are the names that a partition may have, in order of preference. All but the first are for
// ranges that don't start with a day, and for names that are taken by tables that somebody has detached to keep.
func partitionNames(t table, from time.Time) []string {
	day, minute := t.name+"_"+from.UTC().Format("20060102"), t.name+"_"+from.UTC().Format("20060102_1504")
	names := []string{minute, minute + "_2", minute + "_3", minute + "_4"}
	if t.interval == 24*time.Hour && from.Equal(from.Truncate(24*time.Hour)) {
		names = append([]string{day}, names...)
	}
	return names
}

// ownName recognises the names that partitionNames makes. Nothing else is ever dropped.
func (t table) ownName(name string) bool {
	return regexp.MustCompile(`^` + t.name + `_\d{8}(_\d{4}(_\d)?)?$`).MatchString(name)
}

const listPartitionsSQL = `
SELECT c.relname, coalesce(pg_get_expr(c.relpartbound, c.oid), ''), i.inhdetachpending,
       coalesce(obj_description(c.oid, 'pg_class'), '')
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = $1::text::regclass`

var boundsPattern = regexp.MustCompile(`^FOR VALUES FROM \((?:'([^']+)'|MINVALUE)\) TO \((?:'([^']+)'|MAXVALUE)\)$`)

// listPartitions returns the table's partitions in order of time. A default partition is left out: it holds no
// range.
func listPartitions(ctx context.Context, conn *pgx.Conn, t table) ([]partition, error) {
	rows, err := conn.Query(ctx, listPartitionsSQL, t.name)
	if err != nil {
		return nil, fmt.Errorf("list partitions of %s: %w", t.name, err)
	}
	var all []partition
	var p partition
	var bounds string
	_, err = pgx.ForEachRow(rows, []any{&p.name, &bounds, &p.pending, &p.comment}, func() error {
		m := boundsPattern.FindStringSubmatch(bounds)
		if m == nil {
			return nil // DEFAULT, or dropped this instant
		}
		p.from, p.to = time.Time{}, endOfTime
		var err error
		if m[1] != "" {
			if p.from, err = t.parseBound(m[1]); err != nil {
				return err
			}
		}
		if m[2] != "" {
			if p.to, err = t.parseBound(m[2]); err != nil {
				return err
			}
		}
		all = append(all, p)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list partitions of %s: %w", t.name, err)
	}
	slices.SortFunc(all, func(a, b partition) int { return a.from.Compare(b.from) })
	return all, nil
}

// partitions knows which partitions there are, so that a batch costs no query for it, and makes those that are
// missing. It may be used by many goroutines at once, each with a connection of its own.
type partitions struct {
	logs, ledger table

	mu    sync.Mutex
	known map[string][]timeRange // by table
	stale map[string]bool        // tables whose catalog is to be read before known is relied on

	lockPatience time.Duration // lockPatience, unless a test is in a hurry

	forgotten   time.Time // before this the ledger may have forgotten segments, as the last transaction was told
	lockedSince time.Time // when a lock first kept a partition from being made; zero: none does
}

func newPartitions(interval time.Duration) *partitions {
	return &partitions{
		logs:   table{name: "logs", interval: interval},
		ledger: table{name: "ledger", interval: ledgerInterval},
		known:  make(map[string][]timeRange),
		stale:  map[string]bool{"logs": true, "ledger": true},

		lockPatience: lockPatience,
	}
}

// obstacle is an error that keeps one partition from being made, and no other.
type obstacle struct{ error }

func (e obstacle) Unwrap() error { return e.error }

// present is how far from now a record's time may be for it to be one of the stream of new records. For those an
// obstacle is an outage: they would all become dead letters.
const present = 10 * time.Minute

// misplaced says what a segment lacks a partition of, and why.
type misplaced struct {
	err      error
	ledgered bool // the ledger can take the segment
}

// provide makes sure that segments with these base ids have their partitions. It returns those that can't have them; the others
// don't wait for them. It must be called outside of a transaction.
func (p *partitions) provide(ctx context.Context, conn *pgx.Conn, bases iter.Seq[uuid.UUID]) (map[uuid.UUID]misplaced, error) {
	var apart map[uuid.UUID]misplaced
	for _, t := range []table{p.logs, p.ledger} {
		var last, obstructed timeRange
		var why obstacle
		for base := range bases {
			at := frame.Time(base)
			if last.contains(at) {
				continue
			}
			if _, known := p.lookup(t, at); known || !obstructed.contains(at) {
				r, err := p.ensure(ctx, conn, t, at)
				if err == nil {
					last = r
					continue
				}
				if !errors.As(err, &why) || time.Since(at).Abs() < present {
					return nil, err
				}
				why.error = err
				// Its neighbours in time fare alike: they are not tried one by one.
				obstructed = timeRange{at.Truncate(time.Minute), at.Truncate(time.Minute).Add(time.Minute)}
			}
			if apart == nil {
				apart = make(map[uuid.UUID]misplaced)
			}
			apart[base] = misplaced{err: why.error, ledgered: t.name != p.ledger.name}
		}
	}
	return apart, nil
}

// ensure returns the range of the partition that holds at, after making it if need be.
func (p *partitions) ensure(ctx context.Context, conn *pgx.Conn, t table, at time.Time) (timeRange, error) {
	if r, ok := p.lookup(t, at); ok && !p.isStale(t) {
		return r, nil
	}
	if err := p.refresh(ctx, conn, t); err != nil {
		return timeRange{}, err
	}
	if r, ok := p.lookup(t, at); ok {
		return r, nil
	}
	r, err := createPartition(ctx, conn, t, at)
	if isObstacle(err) || p.lockedForLong(err) {
		err = obstacle{err}
	}
	if err != nil {
		return r, fmt.Errorf("partition of %s for %s: %w", t.name, at.Format(time.RFC3339), err)
	}
	p.mu.Lock()
	p.known[t.name] = append(p.known[t.name], r)
	p.mu.Unlock()
	return r, nil
}

func (p *partitions) lookup(t table, at time.Time) (timeRange, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := p.known[t.name]
	for i := len(known) - 1; i >= 0; i-- { // the youngest are asked for most
		if known[i].contains(at) {
			return known[i], true
		}
	}
	return timeRange{}, false
}

// refresh reads the catalog.
func (p *partitions) refresh(ctx context.Context, conn *pgx.Conn, t table) error {
	all, err := listPartitions(ctx, conn, t)
	if err != nil {
		return err
	}
	p.learn(t, all)
	return nil
}

func (p *partitions) learn(t table, all []partition) {
	var known []timeRange
	for _, e := range all {
		if !e.pending {
			known = append(known, e.timeRange)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known[t.name] = known
	p.stale[t.name] = false
}

// forget makes the next ensure read the catalog.
func (p *partitions) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stale["logs"], p.stale["ledger"] = true, true
}

func (p *partitions) forgottenUntil() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.forgotten
}

func (p *partitions) learnForgotten(until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forgotten = until
}

func (p *partitions) isStale(t table) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stale[t.name]
}

// ahead returns how far the known partitions of logs reach from now without a gap.
func (p *partitions) ahead(now time.Time) time.Duration {
	end := now
	for {
		r, ok := p.lookup(p.logs, end)
		if !ok {
			return end.Sub(now)
		}
		end = r.to
	}
}

// isObstacle reports whether the database refuses one partition rather than any.
func isObstacle(err error) bool {
	switch pg.CodeOf(err) {
	case pg.CheckViolation, // a default partition holds rows of that range
		pg.InvalidObjectDefinition, // it would overlap another
		pg.DuplicateTable:          // somebody else has just made a table of that name
		return true
	}
	return false
}

// lockedForLong reports whether err is that of a lock that somebody else holds, and locks have kept partitions from being made
// for longer than lockPatience. It is told every result of createPartition.
func (p *partitions) lockedForLong(err error) bool {
	locked := pg.CodeOf(err) == pg.LockNotAvailable
	p.mu.Lock()
	defer p.mu.Unlock()
	if !locked {
		p.lockedSince = time.Time{}
		return false
	}
	if p.lockedSince.IsZero() {
		p.lockedSince = time.Now()
	}
	return time.Since(p.lockedSince) > p.lockPatience
}

// createPartition makes the partition that holds at, unless another worker was faster. The database's function does
// it, which the worker's user may call without owning the table.
func createPartition(ctx context.Context, conn *pgx.Conn, t table, at time.Time) (timeRange, error) {
	var made timeRange
	err := pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '2s'"); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", int64(partitionLock)); err != nil {
			return err
		}
		existing, err := listPartitions(ctx, conn, t)
		if err != nil {
			return err
		}
		for _, p := range existing {
			if p.contains(at) {
				if p.pending {
					return obstacle{fmt.Errorf("partition %s is being detached", p.name)}
				}
				made = p.timeRange
				return nil
			}
		}
		made = slot(at, t.interval, existing)
		name := ""
		for _, candidate := range partitionNames(t, made.from) {
			const free = `SELECT to_regclass(quote_ident(n.nspname) || '.' || quote_ident($2)) IS NULL
				FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1::text::regclass`
			var isFree bool
			if err := tx.QueryRow(ctx, free, t.name, candidate).Scan(&isFree); err != nil {
				return err
			}
			if isFree {
				name = candidate
				break
			}
		}
		if name == "" {
			return obstacle{fmt.Errorf("tables that are not partitions have all its names, %s and so on", partitionNames(t, made.from)[0])}
		}
		return addPartition(ctx, tx, t, name, made)
	})
	return made, err
}

// addPartition calls the database's function that makes a partition.
func addPartition(ctx context.Context, tx pgx.Tx, t table, name string, r timeRange) error {
	_, err := tx.Exec(ctx, "SELECT millrace_add_partition($1::text::regclass, $2, $3, $4)", t.name, name, t.bound(r.from), t.bound(r.to))
	return err
}

// costlySQL says whether a minute's partition can't be made for nothing: a default partition would have to be searched for rows
// of it, Citus would make it on other servers, or another table has its name.
const costlySQL = `SELECT EXISTS (SELECT FROM pg_partitioned_table WHERE partrelid = 'logs'::regclass AND partdefid <> 0)
	OR to_regclass('pg_dist_partition') IS NOT NULL OR to_regclass($1) IS NOT NULL`

// createMinute makes a partition of logs for the minute that begins at a time, within a transaction that is to be rolled back. It
// makes none, and reports so, where that would cost something or another partition has some of the minute.
func createMinute(ctx context.Context, tx pgx.Tx, at time.Time) (made bool, err error) {
	t := table{name: "logs", interval: ownMinute}
	minute := timeRange{at, at.Add(ownMinute)}
	name := partitionNames(t, at)[0]
	if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", int64(partitionLock)); err != nil {
		return false, err
	}
	var costly bool
	if err := tx.QueryRow(ctx, costlySQL, name).Scan(&costly); err != nil || costly {
		return false, err
	}
	existing, err := listPartitions(ctx, tx.Conn(), t)
	if err != nil {
		return false, err
	}
	for _, p := range existing {
		if p.from.Before(minute.to) && p.to.After(minute.from) {
			return false, nil
		}
	}
	err = addPartition(ctx, tx, t, name, minute)
	return err == nil, err
}
