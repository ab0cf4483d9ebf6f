package testenv

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Count returns the number that a statement returns.
func Count(t testing.TB, conn *pgx.Conn, sql string, args ...any) int {
	t.Helper()
	var n int
	if err := conn.QueryRow(context.Background(), sql, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

// Exec runs a statement.
func Exec(t testing.TB, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(context.Background(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// ShiftClock sets the database's clock ahead, or back if by is less than zero, for the sessions of these connections: what they call as
// clock_timestamp() is so much later than it is. The sessions must be of one database, and have no search_path of their own.
func ShiftClock(t testing.TB, by time.Duration, conns ...*pgx.Conn) {
	t.Helper()
	for _, conn := range conns {
		Exec(t, conn, "SET search_path = public, pg_catalog")
	}
	Exec(t, conns[0], fmt.Sprintf(`CREATE OR REPLACE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
		AS $$ SELECT pg_catalog.clock_timestamp() + interval '%d ms' $$`, by.Milliseconds()))
}
