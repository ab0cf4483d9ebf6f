package pg

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"millrace/internal/config"
	"millrace/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func dial(t *testing.T, url config.PostgresURL, s Session) (*pgx.Conn, error) {
	t.Helper()
	c, err := ParseURL(url, "a test")
	if err != nil {
		t.Fatal(err)
	}
	return s.Connect(t.Context(), c)
}

func scan(t *testing.T, conn *pgx.Conn, sql string) (value string) {
	t.Helper()
	if err := conn.QueryRow(context.Background(), sql).Scan(&value); err != nil {
		t.Fatal(err)
	}
	return value
}

func TestASessionHasItsNameAndSettings(t *testing.T) {
	conn, err := dial(t, testenv.Database(t), Session{Service: "worker", MinVersion: 14, Settings: "SET lock_timeout = '7s';"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if got := scan(t, conn, "SELECT current_setting('application_name') || ', ' || current_setting('lock_timeout')"); got != "a test, 7s" {
		t.Errorf("got %s", got)
	}
}

func TestAnOldServerIsRefused(t *testing.T) {
	_, err := dial(t, testenv.Database(t), Session{Service: "worker", MinVersion: 1000})
	if err == nil || !strings.Contains(err.Error(), "the worker needs 1000 or newer") {
		t.Errorf("got %v", err)
	}
}

func TestALinkOpensAgainAfterItBrokeAndLeavesNothing(t *testing.T) {
	url := testenv.Database(t)
	ctx := context.Background()
	var closing sync.WaitGroup
	l := NewLink(func(context.Context) (*pgx.Conn, error) { return dial(t, url, Session{}) }, &closing)
	defer closing.Wait()
	defer l.Drop()
	if l.IsOpen() {
		t.Error("a new link is open")
	}
	first, err := l.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := l.Open(ctx); again != first || err != nil || !l.IsOpen() {
		t.Errorf("got another connection, or %v", err)
	}

	// A failed transaction ends, and the connection stays.
	if _, err := first.Exec(ctx, "BEGIN; SELECT 1/0"); err == nil {
		t.Fatal("the statement succeeded")
	}
	l.Rollback(ctx)
	if status := first.PgConn().TxStatus(); status != 'I' || !l.IsOpen() {
		t.Errorf("after a rollback: status %c", status)
	}

	if _, err := first.Exec(ctx, "SELECT pg_terminate_backend(pg_backend_pid())"); err == nil || l.IsOpen() {
		t.Fatalf("the connection outlives its server: %v", err)
	}
	l.Rollback(ctx)
	second, err := l.Open(ctx)
	if err != nil || second == first {
		t.Fatalf("got the broken connection, or %v", err)
	}
	if scan(t, second, "SELECT 'here'") != "here" {
		t.Error("the new connection does not answer")
	}
}
