package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/eventtime"
	"millrace/internal/frame"
	"millrace/internal/pg"
	"millrace/internal/retry"
	"millrace/worker/partition"
)

// A user may alter logs so that it takes no row of id, inserted_at, time and data. The catalog shows some of the reasons. A row that is
// copied and taken back shows the others, in PostgreSQL's own words.

// tableError is the reason that logs takes no rows at all. The table's owner can mend that at any time, so the worker waits as in an
// outage.
type tableError struct{ error }

func (e tableError) Unwrap() error { return e.error }

// rehearsedTime is the time of the row that the first rehearsal stores, and of the partition that it makes. No log has a record of that
// time, and a partition's name can hold it.
var rehearsedTime = time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)

// columnsSQL lists the reasons that the table's definition shows. A generated column counts as one with a default.
const columnsSQL = `SELECT coalesce(string_agg(what, '; '), '') FROM (
	SELECT format('column %s is NOT NULL without a default', a.attname) AS what
	FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
	WHERE a.attrelid = 'logs'::regclass AND a.attnum > 0 AND NOT a.attisdropped AND NOT a.atthasdef AND a.attidentity = ''
	  AND a.attname NOT IN ('id', 'inserted_at', 'time', 'data')
	  AND (a.attnotnull OR t.typtype = 'd' AND t.typnotnull AND t.typdefault IS NULL)
	UNION ALL
	SELECT CASE
		WHEN a.attname IS NULL THEN format('column %s is missing', want.name)
		WHEN a.attgenerated <> '' THEN format('column %s is generated', want.name)
		ELSE format('column %s is of type %s, not %s', want.name, format_type(a.atttypid, a.atttypmod), format_type(want.type, NULL)) END
	FROM (VALUES ('id', 'uuid'::regtype), ('inserted_at', 'timestamptz'), ('time', 'timestamptz'), ('data', 'jsonb')) AS want (name, type)
	LEFT JOIN pg_attribute a ON a.attrelid = 'logs'::regclass AND a.attname = want.name AND NOT a.attisdropped
	LEFT JOIN pg_type t ON t.oid = a.atttypid
	WHERE a.attname IS NULL OR a.attgenerated <> '' OR CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END <> want.type
) AS found`

// rehearser finds out whether logs takes rows of the present, even while none come in. /ready shows what refuses them.
type rehearser struct {
	link     pg.Link // as the user who stores rows
	postgres *condition
}

// rehearsalName stands for the rehearser among the streams' names.
const rehearsalName = "rehearsal"

// run rehearses every minute until ctx is done, and sooner while the table takes no rows.
func (r *rehearser) run(ctx context.Context) {
	wait := retry.NewBackoff()
	for pause := rehearsalInterval; retry.Sleep(ctx, pause) == nil; {
		if pause = rehearsalInterval; r.rehearse(ctx) {
			wait.Reset()
		} else {
			pause = wait.NextBackOff()
		}
	}
}

// rehearsalInterval is the pause between two rehearsals.
const rehearsalInterval = time.Minute

// rehearse makes one rehearsal. It reports false only if the table takes no rows: other errors are the streams' to report.
func (r *rehearser) rehearse(ctx context.Context) bool {
	defer r.link.Drop()
	conn, err := r.link.Open(ctx)
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

// rehearseAtStart rehearses in a partition that is made for it, as others will be made, and then in the present partition if there is
// one.
func rehearseAtStart(ctx context.Context, l *pg.Link) error {
	conn, err := l.Open(ctx)
	if err != nil {
		return err
	}
	if err := rehearse(ctx, conn, rehearsedTime); err != nil {
		return err
	}
	return rehearse(ctx, conn, time.Now())
}

// rehearse stores a row with a time in logs and takes it back. The connection is that of the user who stores rows. A tableError says
// that the table would take no row. A refusal of this one row, by a constraint or a trigger that looks into it, is no error. A lock
// that somebody holds is none either, nor a time without a partition, because partitions are made.
func rehearse(ctx context.Context, conn *pgx.Conn, at time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, pg.ConnectTimeout+rehearsalLockTimeout)
	defer cancel()
	var found string
	err := conn.QueryRow(ctx, columnsSQL).Scan(&found)
	if found != "" {
		return tableError{errors.New("logs takes no rows: " + found)}
	}
	if err == nil {
		err = tryRow(ctx, conn, at)
	}
	if partition.IsObstacle(err) { // somebody has just made a partition of that time
		return nil
	}
	switch pg.ClassOf(err) {
	case "":
		return err // nil, or the connection's
	case pg.FeatureNotSupported, pg.InvalidAuthorization, pg.AccessRule: // whatever is in a row
		return tableError{fmt.Errorf("logs takes no rows: %s", pg.Message(err))}
	}
	return nil
}

// rehearsalLockTimeout is how long a rehearsal waits for a lock on the table.
const rehearsalLockTimeout = 2 * time.Second

// tryRow copies one empty record with a time, in a transaction that is rolled back.
func tryRow(ctx context.Context, conn *pgx.Conn, at time.Time) error {
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	if err != nil {
		return err
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) // if that fails, the connection is closed, and its next user finds out
	if _, err := tx.Exec(ctx, fmt.Sprintf("SET LOCAL lock_timeout = %d", rehearsalLockTimeout.Milliseconds())); err != nil {
		return err
	}
	if at.Equal(rehearsedTime) {
		if made, err := partition.CreateMinute(ctx, tx, at); err != nil || !made {
			return err
		}
	}
	canary := frame.Segment{Base: frame.BaseAt(at), Records: 1}
	rule, _ := eventtime.New(nil, nil, 0) // nothing is refused
	return copyRows(ctx, conn, []segment{{Span: frame.Span{Segment: canary, Body: []byte("{}\n")}}}, newRecordTimes(rule, partition.New(time.Hour)))
}
