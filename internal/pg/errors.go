package pg

import (
	"errors"

	"github.com/jackc/pgx/v5/pgconn"
)

// Code is an SQLSTATE: five characters, of which the first two are its class.
// https://www.postgresql.org/docs/current/errcodes-appendix.html
type Code string

// The codes that Millrace tells from others of their class, by PostgreSQL's names for them.
const (
	CheckViolation          Code = "23514" // also of a row that no partition takes, see IsUnrouted
	ReadOnlyTransaction     Code = "25006"
	UndefinedColumn         Code = "42703"
	UndefinedTable          Code = "42P01"
	DuplicateTable          Code = "42P07"
	InvalidObjectDefinition Code = "42P17" // also of a partition that would overlap another
	LockNotAvailable        Code = "55P03" // lock_timeout
	QueryCanceled           Code = "57014" // also statement_timeout
)

// Class is the class of an SQLSTATE.
type Class string

// The classes that Millrace acts by, by PostgreSQL's names for them.
const (
	ConnectionException   Class = "08"
	FeatureNotSupported   Class = "0A"
	DataException         Class = "22"
	IntegrityViolation    Class = "23"
	TransactionState      Class = "25" // such as a write in a read-only transaction
	InvalidAuthorization  Class = "28"
	TransactionRollback   Class = "40" // such as a deadlock, or a replica's conflict with recovery
	AccessRule            Class = "42" // syntax, missing tables and columns, missing privileges
	InsufficientResources Class = "53" // out of memory, disk or connections
	LimitExceeded         Class = "54"
	ObjectState           Class = "55" // such as a lock that was not available
	OperatorIntervention  Class = "57" // such as shutting down, starting up, a cancelled statement
	SystemError           Class = "58" // such as input or output
)

// CodeOf returns the SQLSTATE that a server reported, or "" when err is no server's.
func CodeOf(err error) Code {
	var reported *pgconn.PgError
	if !errors.As(err, &reported) {
		return ""
	}
	return Code(reported.Code)
}

// ClassOf returns the class of the SQLSTATE that a server reported, or "" when err is no server's.
func ClassOf(err error) Class {
	var reported *pgconn.PgError
	switch {
	case !errors.As(err, &reported):
		return ""
	case len(reported.Code) < 2:
		return "unknown"
	}
	return Class(reported.Code[:2])
}

// IsUnrouted reports whether err is PostgreSQL's refusal of a row that no partition takes. It reports that as a check violation
// with the table and without a constraint. The message would tell too, but it is translated.
func IsUnrouted(err error) bool {
	var reported *pgconn.PgError
	return errors.As(err, &reported) && Code(reported.Code) == CheckViolation && reported.ConstraintName == "" && reported.TableName != ""
}

// Message returns what the server said, with its SQLSTATE, or else err's text.
func Message(err error) string {
	var reported *pgconn.PgError
	if !errors.As(err, &reported) {
		return err.Error()
	}
	if reported.Detail == "" {
		return reported.Error()
	}
	return reported.Error() + ": " + reported.Detail
}
