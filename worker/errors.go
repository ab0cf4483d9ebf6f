package worker

import (
	"cmp"
	"errors"

	"millrace/internal/pg"
)

// errorClass is a kind of error that a transaction fails with. It decides what is done about it.
type errorClass int

const (
	// outage is what may end by itself or because an operator does something: a lost connection, a full disk, a missing privilege. The
	// batch waits and tries again.
	outage errorClass = iota

	// badRecord says that PostgreSQL refuses a record. The batch is searched for it.
	badRecord

	// doubtful is a refusal that may be about a record or about the table, such as a trigger's, or an internal error. If the table
	// takes an empty record, the refusal is about a record.
	doubtful

	// noPartition says that a record's time has no partition, or has it no longer. One is made, and the batch tries again.
	noPartition
)

// copyError is an error of COPY. Only COPY's errors can be a record's fault. The same SQLSTATE of another statement says something
// about the program or the schema.
type copyError struct{ error }

func (e copyError) Unwrap() error { return e.error }

// classify returns the class of a transaction's error.
func classify(err error) errorClass {
	switch {
	case pg.ClassOf(err) == "":
		return outage
	case pg.CodeOf(err) == pg.UndefinedTable: // a partition dropped under a running statement
		return noPartition
	case pg.IsUnrouted(err):
		return noPartition
	case !errors.As(err, new(copyError)):
		return outage
	}
	switch pg.ClassOf(err) {
	case pg.DataException, pg.IntegrityViolation, pg.LimitExceeded:
		return badRecord
	case pg.ConnectionException, pg.TransactionState, pg.InvalidAuthorization, pg.TransactionRollback, pg.AccessRule,
		pg.InsufficientResources, pg.ObjectState, pg.OperatorIntervention, pg.SystemError:
		return outage
	}
	return doubtful
}

// connectionLabel stands for errors that no server reported.
const connectionLabel = "connection"

// retryLabel returns the class of err's SQLSTATE, for the metric of retries.
func retryLabel(err error) string { return cmp.Or(string(pg.ClassOf(err)), connectionLabel) }
