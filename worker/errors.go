package worker

import (
	"cmp"
	"errors"

	"github.com/jackc/pgx/v5/pgconn"
)

// errorClass says what a failed transaction calls for.
type errorClass int

const (
	// outage is everything that may pass by itself or by an operator's hand: the connection, a full disk, a
	// missing privilege. The batch waits and tries again.
	outage errorClass = iota

	// badRecord is a record that PostgreSQL refuses. The batch is searched for it.
	badRecord

	// doubtful is a refusal that may be about a record or about the table: a trigger's, an internal error. An
	// empty record that is taken shows that it is the former.
	doubtful

	// noPartition is a record's time for which there is no partition, or no longer. It is made, and the batch
	// tries again.
	noPartition
)

// copyError is an error of COPY. Only there can a record be at fault: the same SQLSTATE from another statement
// says something about the program or the schema.
type copyError struct{ error }

func (e copyError) Unwrap() error { return e.error }

// classify sorts the error of a transaction.
func classify(err error) errorClass {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return outage
	}
	switch {
	case pg.Code == "42P01":
		return noPartition // undefined_table: a partition dropped under a running statement
	case pg.Code == "23514" && pg.ConstraintName == "" && pg.TableName != "":
		// check_violation: the routing of rows to partitions reports itself under it, with the table and without a
		// constraint. The message would tell too, but it is translated.
		return noPartition
	}
	if !errors.As(err, new(copyError)) {
		return outage
	}
	switch sqlClass(pg.Code) {
	case "22", "23", "54": // data exception, integrity constraint violation, program limit exceeded
		return badRecord
	case "08", "25", "28", "40", "42", "53", "55", "57", "58":
		// connection, transaction state, authorization, rollback, schema and rights, resources, object state,
		// operator intervention, system error
		return outage
	}
	return doubtful
}

// isReadOnly says that the transaction was not let to write.
func isReadOnly(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "25006"
}

// connectionLabel stands for errors that no server reported.
const connectionLabel = "connection"

// retryLabel is the class of err's SQLSTATE, for the metric of retries.
func retryLabel(err error) string {
	return cmp.Or(classOf(err), connectionLabel)
}

// classOf returns the class of err's SQLSTATE, or "" when no server reported it.
func classOf(err error) string {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return ""
	}
	return sqlClass(pg.Code)
}

// sqlClass is the class of an SQLSTATE, its first two characters.
func sqlClass(code string) string {
	if len(code) < 2 {
		return "unknown"
	}
	return code[:2]
}

// serverMessage is what PostgreSQL said, with its SQLSTATE, or else err's text.
func serverMessage(err error) string {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return err.Error()
	}
	if pg.Detail == "" {
		return pg.Error()
	}
	return pg.Error() + ": " + pg.Detail
}
