package worker

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestErrorsAreSorted(t *testing.T) {
	pg := func(code, constraint string) error { return &pgconn.PgError{Code: code, ConstraintName: constraint} }
	inCopy := func(err error) error { return fmt.Errorf("batch: %w", copyError{err}) }
	unrouted := func(table string) error { return &pgconn.PgError{Code: "23514", TableName: table} }
	cases := map[string]struct {
		err  error
		want errorClass
	}{
		"invalid JSON":                  {inCopy(pg("22P02", "")), badRecord},
		"a check constraint":            {inCopy(pg("23514", "logs_check")), badRecord},
		"a unique index":                {inCopy(pg("23505", "logs_key")), badRecord},
		"a limit":                       {inCopy(pg("54000", "")), badRecord},
		"a data error of the ledger":    {pg("22P02", ""), outage},
		"no partition":                  {inCopy(unrouted("logs")), noPartition},
		"no partition of the ledger":    {unrouted("ledger"), noPartition},
		"a trigger's check":             {inCopy(pg("23514", "")), badRecord},
		"a trigger's exception":         {inCopy(pg("P0001", "")), doubtful},
		"an internal error":             {inCopy(pg("XX000", "")), doubtful},
		"an exception of the ledger":    {pg("P0001", ""), outage},
		"a missing privilege":           {inCopy(pg("42501", "")), outage},
		"a dropped partition":           {inCopy(pg("42P01", "")), noPartition},
		"shutdown":                      {inCopy(pg("57P01", "")), outage},
		"read only":                     {inCopy(pg("25006", "")), outage},
		"disk full":                     {inCopy(pg("53100", "")), outage},
		"too many connections":          {pg("53300", ""), outage},
		"lock timeout":                  {pg("55P03", ""), outage},
		"deadlock":                      {pg("40P01", ""), outage},
		"a network that is gone":        {inCopy(io.ErrUnexpectedEOF), outage},
		"something that nobody foresaw": {errors.New("?"), outage},
	}
	for name, c := range cases {
		if got := classify(c.err); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}
