package partition

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/pg"
)

const (
	// partitionLock is the key of the advisory lock under which partitions are made, "mr parts" in ASCII.
	partitionLock = 0x6d72207061727473

	// lockPatience is how long late records, and their batches with them, wait for a lock that somebody holds on the
	// tables. A schema change takes seconds; what takes longer shall not stop the new records.
	lockPatience = 30 * time.Second

	// ownMinute is the length of the partition that CreateMinute makes.
	ownMinute = time.Minute
)

// obstacle is an error that keeps one partition from being made, and no other.
type obstacle struct{ error }

func (e obstacle) Unwrap() error { return e.error }

// IsObstacle reports whether the database refuses one partition rather than any.
func IsObstacle(err error) bool {
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
func (p *Set) lockedForLong(err error) bool {
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
	return time.Since(p.lockedSince) > p.LockPatience
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

// CreateMinute makes a partition of logs for the minute that begins at a time, within a transaction that is to be rolled back. It
// makes none, and reports so, where that would cost something or another partition has some of the minute.
func CreateMinute(ctx context.Context, tx pgx.Tx, at time.Time) (made bool, err error) {
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
