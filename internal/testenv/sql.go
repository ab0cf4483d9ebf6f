package testenv

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// MustExec runs a statement, and fails the test where it fails.
func MustExec(t testing.TB, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(context.Background(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// AwaitCount waits until the count that sql returns is want.
func AwaitCount(t testing.TB, conn *pgx.Conn, want int, sql string) {
	t.Helper()
	Eventually(t, 20*time.Second, fmt.Sprintf("%s is %d", sql, want), func() bool { return CountRows(t, conn, sql) == want })
}

// CountRows returns the count that sql returns.
func CountRows(t testing.TB, conn *pgx.Conn, sql string) (n int) {
	t.Helper()
	if err := conn.QueryRow(context.Background(), sql).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}
