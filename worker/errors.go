package worker

import (
	"cmp"
	"errors"

	"millrace/internal/pg"
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

// retryLabel is the class of err's SQLSTATE, for the metric of retries.
func retryLabel(err error) string { return cmp.Or(string(pg.ClassOf(err)), connectionLabel) }
