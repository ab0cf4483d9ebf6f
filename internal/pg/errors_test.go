package pg

import (
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestErrorsAreToldByCodeAndClass(t *testing.T) {
	for name, c := range map[string]struct {
		err      error
		code     Code
		class    Class
		unrouted bool
		message  string
	}{
		"none of a server's":  {errors.New("broken pipe"), "", "", false, "broken pipe"},
		"wrapped":             {fmt.Errorf("copy: %w", &pgconn.PgError{Code: "22P02", Severity: "ERROR", Message: "no JSON"}), "22P02", DataException, false, "ERROR: no JSON (SQLSTATE 22P02)"},
		"with a detail":       {&pgconn.PgError{Code: "42P07", Severity: "ERROR", Message: "x exists", Detail: "y"}, DuplicateTable, AccessRule, false, "ERROR: x exists (SQLSTATE 42P07): y"},
		"a table's check":     {&pgconn.PgError{Code: "23514", TableName: "logs", ConstraintName: "small"}, CheckViolation, IntegrityViolation, false, ":  (SQLSTATE 23514)"},
		"a trigger's check":   {&pgconn.PgError{Code: "23514"}, CheckViolation, IntegrityViolation, false, ":  (SQLSTATE 23514)"},
		"no partition":        {&pgconn.PgError{Code: "23514", TableName: "logs"}, CheckViolation, IntegrityViolation, true, ":  (SQLSTATE 23514)"},
		"a code that is none": {&pgconn.PgError{Code: "2"}, "2", "unknown", false, ":  (SQLSTATE 2)"},
	} {
		if got := CodeOf(c.err); got != c.code {
			t.Errorf("%s: code: got %q, want %q", name, got, c.code)
		}
		if got := ClassOf(c.err); got != c.class {
			t.Errorf("%s: class: got %q, want %q", name, got, c.class)
		}
		if got := IsUnrouted(c.err); got != c.unrouted {
			t.Errorf("%s: unrouted: got %v, want %v", name, got, c.unrouted)
		}
		if got := Message(c.err); got != c.message {
			t.Errorf("%s: message: got %q, want %q", name, got, c.message)
		}
	}
	if ClassOf(nil) != "" || CodeOf(nil) != "" || IsUnrouted(nil) {
		t.Error("no error has a class")
	}
}
