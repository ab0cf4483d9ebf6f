package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/broker"
	"millrace/internal/frame"
)

// A user may alter logs in ways that leave no row of id, inserted_at and data valid. The catalog tells of some of them, and a
// row that is copied and taken back tells of the others, in PostgreSQL's own words.

// tableError says why logs takes no rows at all. Its owner can mend that at any time, so it is waited for like an outage.
type tableError struct{ error }

func (e tableError) Unwrap() error { return e.error }

// rehearsedTime is the time of the rehearsal's row and partition. No record of a log is so old, and it is one of the minutes
// that a partition's name can have.
var rehearsedTime = time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)

const (
	// columnsSQL lists what the table's definition tells. A column that is generated has a default.
	columnsSQL = `SELECT coalesce(string_agg(what, '; '), '') FROM (
		SELECT format('column %s is NOT NULL without a default', a.attname) AS what
		FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
		WHERE a.attrelid = 'logs'::regclass AND a.attnum > 0 AND NOT a.attisdropped AND NOT a.atthasdef AND a.attidentity = ''
		  AND a.attname NOT IN ('id', 'inserted_at', 'data')
		  AND (a.attnotnull OR t.typtype = 'd' AND t.typnotnull AND t.typdefault IS NULL)
		UNION ALL
		SELECT CASE
			WHEN a.attname IS NULL THEN format('column %s is missing', want.name)
			WHEN a.attgenerated <> '' THEN format('column %s is generated', want.name)
			ELSE format('column %s is of type %s, not %s', want.name, format_type(a.atttypid, a.atttypmod), format_type(want.type, NULL)) END
		FROM (VALUES ('id', 'uuid'::regtype), ('inserted_at', 'timestamptz'), ('data', 'jsonb')) AS want (name, type)
		LEFT JOIN pg_attribute a ON a.attrelid = 'logs'::regclass AND a.attname = want.name AND NOT a.attisdropped
		LEFT JOIN pg_type t ON t.oid = a.atttypid
		WHERE a.attname IS NULL OR a.attgenerated <> '' OR CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END <> want.type
	) AS found`

	// pastSQL says whether a partition of the rehearsal's own can be made for nothing: no other holds its time, a default
	// partition would have to be searched for rows of it, and Citus would make it on other servers.
	pastSQL = `SELECT EXISTS (SELECT FROM pg_partitioned_table WHERE partrelid = 'logs'::regclass AND partdefid <> 0)
		OR to_regclass('pg_dist_partition') IS NOT NULL OR to_regclass($1) IS NOT NULL`
)

// rehearser finds out whether logs takes rows of the present, also where none come in. What refuses them is in /ready.
type rehearser struct {
	link     link // as the user who stores rows
	postgres *condition
}

// rehearsalName is what a rehearser is called among the streams.
const rehearsalName = "rehearsal"

// run rehearses every minute until ctx is done, and sooner while the table takes no rows.
func (r *rehearser) run(ctx context.Context) {
	wait := broker.NewBackoff()
	for pause := rehearsalInterval; broker.Sleep(ctx, pause) == nil; {
		if pause = rehearsalInterval; r.rehearse(ctx) {
			wait.Reset()
		} else {
			pause = wait.NextBackOff()
		}
	}
}

// rehearsalInterval is the pause between two rehearsals.
const rehearsalInterval = time.Minute

// rehearse is one rehearsal. It reports false while the table takes no rows. What else goes wrong, the streams tell of.
func (r *rehearser) rehearse(ctx context.Context) bool {
	defer r.link.drop()
	conn, err := r.link.open(ctx)
	if err == nil {
		err = rehearse(ctx, conn, time.Now())
	}
	switch {
	case errors.As(err, new(tableError)):
		r.postgres.fail(rehearsalName, err)
		return false
	case err == nil:
		r.postgres.hold(rehearsalName)
	}
	return true
}

// rehearseAtStart is rehearse in a partition that is made for it, as others will be, and then in the present one if there is one.
func rehearseAtStart(ctx context.Context, l *link) error {
	conn, err := l.open(ctx)
	if err != nil {
		return err
	}
	if err := rehearse(ctx, conn, rehearsedTime); err != nil {
		return err
	}
	return rehearse(ctx, conn, time.Now())
}

// rehearse stores a row of a time in logs and takes it back. The connection is that of the user who stores rows. A tableError
// says that no row would be taken. What may be said about this one row, by a constraint or a trigger that looks into it, is
// none. Neither is a lock that somebody holds, or a time without a partition: partitions are made.
func rehearse(ctx context.Context, conn *pgx.Conn, at time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout+rehearsalLockTimeout)
	defer cancel()
	var found string
	err := conn.QueryRow(ctx, columnsSQL).Scan(&found)
	if found != "" {
		return tableError{errors.New("logs takes no rows: " + found)}
	}
	if err == nil {
		err = tryRow(ctx, conn, at)
	}
	switch class := classOf(err); {
	case class == "":
		return err // nil, or the connection's
	case isObstacle(err): // somebody has just made a partition of that time
	case class == "0A", class == "28", class == "42": // not supported, authorization, schema and rights: whatever is in a row
		return tableError{fmt.Errorf("logs takes no rows: %s", serverMessage(err))}
	}
	return nil
}

// rehearsalLockTimeout is how long a rehearsal waits for a lock on the table.
const rehearsalLockTimeout = 2 * time.Second

// tryRow copies one empty record of a time, in a transaction that is rolled back.
func tryRow(ctx context.Context, conn *pgx.Conn, at time.Time) error {
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	if err != nil {
		return err
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) // a connection that fails here is found closed
	if _, err := tx.Exec(ctx, fmt.Sprintf("SET LOCAL lock_timeout = %d", rehearsalLockTimeout.Milliseconds())); err != nil {
		return err
	}
	if at.Equal(rehearsedTime) {
		if made, err := rehearsePartition(ctx, conn, tx); err != nil || !made {
			return err
		}
	}
	canary := frame.Segment{Base: frame.BaseAt(at), Records: 1}
	return copyRows(ctx, conn, []segment{{Span: frame.Span{Segment: canary, Body: []byte("{}\n")}}})
}

// rehearsePartition makes the rehearsal's own partition, unless that would cost something.
func rehearsePartition(ctx context.Context, conn *pgx.Conn, tx pgx.Tx) (made bool, err error) {
	t := table{name: "logs", interval: time.Minute}
	name := partitionNames(t, rehearsedTime)[0]
	if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", int64(partitionLock)); err != nil {
		return false, err
	}
	var costly bool
	if err := tx.QueryRow(ctx, pastSQL, name).Scan(&costly); err != nil || costly {
		return false, err
	}
	existing, err := listPartitions(ctx, conn, t)
	if err != nil {
		return false, err
	}
	for _, p := range existing {
		if p.from.Before(rehearsedTime.Add(t.interval)) && p.to.After(rehearsedTime) {
			return false, nil
		}
	}
	_, err = tx.Exec(ctx, "SELECT millrace_add_partition($1::text::regclass, $2, $3, $4)",
		t.name, name, t.bound(rehearsedTime), t.bound(rehearsedTime.Add(t.interval)))
	return err == nil, err
}
