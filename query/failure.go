package query

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/jackc/pgx/v5/pgconn"

	"millrace/internal/pg"
	"millrace/internal/service"
)

// failure is an error whose text the client is told as it is.
type failure struct {
	status  int
	message string
}

func (f *failure) Error() string { return f.message }

// badRequest returns a failure with the status 400.
func badRequest(format string, args ...any) error {
	return &failure{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// refused returns the refusal of a parameter's value. It repeats the beginning of the value.
func refused(name, got, takes string) error {
	return badRequest("%s: got %.64q, takes %s", name, got, takes)
}

// tooMany returns a failure with the status 429.
func tooMany(message string) error { return &failure{http.StatusTooManyRequests, message} }

// answerFailure answers with the failure that failureOf makes of an error, and logs those that are not the client's fault.
func (s *server) answerFailure(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		// The client is gone, or has closed its side of the connection only. net/http would answer 200.
		panic(http.ErrAbortHandler)
	}
	f := s.failureOf(err)
	if f.status >= 500 && f.status != http.StatusServiceUnavailable && f.status != http.StatusHTTPVersionNotSupported {
		s.log.Error("query failed", "route", route(r), "status", f.status, "error", err)
	} else if f.status >= 500 {
		s.log.Debug("query failed", "route", route(r), "status", f.status, "error", err) // watch logs what is wrong with the database
	}
	if f.status == http.StatusServiceUnavailable || f.status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "1")
	}
	service.WriteJSON(w, f.status, map[string]string{"error": f.message})
}

// failureOf returns what a client is told of an error. It is the one place that knows which error is which status.
func (s *server) failureOf(err error) *failure {
	var (
		f       *failure
		pgErr   *pgconn.PgError
		connErr *pgconn.ConnectError
	)
	tooLong := &failure{http.StatusGatewayTimeout, "the query took longer than " + s.timeText + "; narrow the time range"}
	var alone *rangeFailure
	switch {
	case errors.As(err, &f):
		return f
	case errors.As(err, &alone):
		return &failure{http.StatusServiceUnavailable, "the archive can't be read for the range " + rangeText(alone.file.from, alone.file.to)}
	case errors.Is(err, errOutOfTime):
		return tooLong
	case errors.Is(err, errBusy):
		return &failure{http.StatusServiceUnavailable, "all database connections are in use"}
	case errors.As(err, &connErr), errors.Is(err, errBroken):
		return &failure{http.StatusServiceUnavailable, "the database can't be reached"}
	case errors.As(err, &pgErr):
		switch pg.CodeOf(err) {
		case pg.QueryCanceled: // by the timeout
			return tooLong
		case pg.UndefinedTable:
			fault := s.store.schemaFault()
			if fault == nil {
				fault = errNoSchema
			}
			return &failure{http.StatusServiceUnavailable, fault.Error()}
		case pg.UndefinedColumn: // no column's name comes from a client
			if fault := s.store.schemaFault(); fault != nil {
				return &failure{http.StatusServiceUnavailable, fault.Error()}
			}
		}
		switch pg.ClassOf(err) {
		case pg.DataException, pg.LimitExceeded:
			return &failure{http.StatusBadRequest, "q: the database can't look for that: " + pgErr.Message}
		case pg.ConnectionException, pg.TransactionRollback, pg.InsufficientResources, pg.ObjectState, pg.OperatorIntervention, pg.SystemError:
			return &failure{http.StatusServiceUnavailable, "the database can't answer now"}
		}
	case errors.Is(err, context.DeadlineExceeded):
		return tooLong
	case pgconn.SafeToRetry(err), isNetwork(err):
		return &failure{http.StatusServiceUnavailable, "the database can't be reached"}
	}
	return &failure{http.StatusInternalServerError, "internal error"}
}

// isNetwork reports whether a connection broke in the middle of a read.
func isNetwork(err error) bool {
	var netErr net.Error
	return errors.As(err, &netErr) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}
