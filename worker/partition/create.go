package partition

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/pg"
)

const (
	// createLock is the key of the advisory lock under which partitions are made, "mr parts" in ASCII.
	createLock = 0x6d72207061727473

	// createLockTimeout is how long one try waits for a lock.
	createLockTimeout = "2s"
)

// obstacle is an error that keeps one partition from being made. Others may still be made.
type obstacle struct{ error }

func (e obstacle) Unwrap() error { return e.error }

// closingError says that a partition refuses rows until it is detached. That passes, as a lock does.
type closingError struct{ error }

// IsObstacle reports whether err is the database's refusal of one partition. It may make others.
func IsObstacle(err error) bool {
	switch pg.CodeOf(err) {
	case pg.CheckViolation, // a default partition holds rows of that range
		pg.InvalidObjectDefinition, // it would overlap another
		pg.DuplicateTable:          // somebody else has just made a table of that name
		return true
	}
	return false
}

// lockedForLong reports whether somebody else's lock is the cause of err, and locks have kept partitions from being made for longer
// than LockPatience. It must be told every result of create.
func (s *Set) lockedForLong(err error) bool {
	locked := pg.CodeOf(err) == pg.LockNotAvailable || errors.As(err, new(closingError))
	s.mu.Lock()
	defer s.mu.Unlock()
	if !locked {
		s.lockedSince = time.Time{}
		return false
	}
	if s.lockedSince.IsZero() {
		s.lockedSince = time.Now()
	}
	return time.Since(s.lockedSince) > s.LockPatience
}

// create makes the partition that holds a time, unless another worker was faster, and returns its range.
func create(ctx context.Context, conn *pgx.Conn, t table, at time.Time) (timeRange, error) {
	var made timeRange
	err := pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '"+createLockTimeout+"'"); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", int64(createLock)); err != nil {
			return err
		}
		existing, err := list(ctx, conn, t)
		if err != nil {
			return err
		}
		for _, p := range existing {
			if p.contains(at) {
				if p.closing {
					return closingError{fmt.Errorf("partition %s is about to be detached", p.name)}
				}
				if p.pending {
					return obstacle{fmt.Errorf("partition %s is being detached", p.name)}
				}
				made = p.timeRange
				return nil
			}
		}
		made = slot(at, t.interval, existing)
		name, err := freeName(ctx, tx, t, made.from)
		if err != nil {
			return err
		}
		return add(ctx, tx, t, name, made)
	})
	return made, err
}

// freeName returns the first of a partition's names that no table has.
func freeName(ctx context.Context, tx pgx.Tx, t table, from time.Time) (string, error) {
	const sql = `SELECT to_regclass(quote_ident(n.nspname) || '.' || quote_ident($2)) IS NULL
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1::text::regclass`
	names := t.names(from)
	for _, name := range names {
		var free bool
		if err := tx.QueryRow(ctx, sql, t.name, name).Scan(&free); err != nil {
			return "", err
		}
		if free {
			return name, nil
		}
	}
	return "", obstacle{fmt.Errorf("tables that are not partitions have all its names, %s and so on", names[0])}
}

// add makes a partition, attached to its table. A function in the database does it, so that the worker's user need not own the table.
func add(ctx context.Context, tx pgx.Tx, t table, name string, r timeRange) error {
	_, err := tx.Exec(ctx, "SELECT millrace_add_partition($1::text::regclass, $2, $3, $4)", t.name, name, t.bound(r.from), t.bound(r.to))
	return err
}

// costlySQL reports whether CreateMinute would cost something: a default partition would have to be searched for rows of that
// minute, Citus would make the partition on other servers, or another table has its name.
const costlySQL = `SELECT EXISTS (SELECT FROM pg_partitioned_table WHERE partrelid = 'logs'::regclass AND partdefid <> 0)
	OR to_regclass('pg_dist_partition') IS NOT NULL OR to_regclass($1) IS NOT NULL`

// CreateMinute makes a partition of logs for the minute that begins at a time, to see whether the table takes rows. The caller rolls
// the transaction back. It makes none, and returns false, if that would cost something or if another partition has some of the minute.
func CreateMinute(ctx context.Context, tx pgx.Tx, at time.Time) (made bool, err error) {
	t := table{name: "logs", interval: time.Minute}
	minute := timeRange{at, at.Add(t.interval)}
	name := t.names(at)[0]
	if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", int64(createLock)); err != nil {
		return false, err
	}
	var costly bool
	if err := tx.QueryRow(ctx, costlySQL, name).Scan(&costly); err != nil || costly {
		return false, err
	}
	existing, err := list(ctx, tx.Conn(), t)
	if err != nil {
		return false, err
	}
	for _, p := range existing {
		if p.from.Before(minute.to) && p.to.After(minute.from) {
			return false, nil
		}
	}
	err = add(ctx, tx, t, name, minute)
	return err == nil, err
}
