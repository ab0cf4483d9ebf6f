package partition

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"millrace/internal/config"
	"millrace/internal/frame"
	"millrace/internal/pg"
	"millrace/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var count, exec = testenv.Count, testenv.Exec

// workerConn returns a connection with those of a worker's session settings that matter to partitions.
func workerConn(t testing.TB, url config.PostgresURL) *pgx.Conn {
	t.Helper()
	conn := testenv.Connect(t, url)
	exec(t, conn, "SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET lock_timeout = '10s'")
	return conn
}

// linkTo returns a link that has the test's connection.
func linkTo(conn *pgx.Conn) pg.Link {
	return pg.NewLink(func(context.Context) (*pgx.Conn, error) { return conn, nil }, nil)
}

func testKeeper(conn *pgx.Conn, p *Set, retention time.Duration) *Keeper {
	return &Keeper{
		Link: linkTo(conn), Partitions: p, Retention: retention, Remember: LedgerKeep,
		Log: slog.New(slog.DiscardHandler), Now: time.Now,
	}
}

func testIndexer(conn *pgx.Conn, p *Set) *Indexer {
	return &Indexer{
		Closed: true, Link: linkTo(conn), Partitions: p, Calm: func(context.Context) bool { return true },
		Log: slog.New(slog.DiscardHandler), Now: time.Now,
	}
}

// put stores an empty record of each time and enters its segment in the ledger, as the worker does.
func put(t testing.TB, conn *pgx.Conn, p *Set, times ...time.Time) {
	t.Helper()
	for _, at := range times {
		base := frame.BaseAt(at)
		if apart, err := p.Provide(context.Background(), conn, slices.Values([]uuid.UUID{base})); err != nil || len(apart) > 0 {
			t.Fatalf("%v: got %v, %v", at, apart, err)
		}
		exec(t, conn, "INSERT INTO ledger (id, records, checksum) VALUES ($1, 1, 0)", base)
		exec(t, conn, "INSERT INTO logs (id, inserted_at, data) VALUES ($1, $2, '{}')", base, frame.Time(base))
	}
}

const allLogs = "SELECT count(*) FROM logs"

// want fails the test when a count is not what it should be.
func want(t testing.TB, conn *pgx.Conn, rows int, sql string, args ...any) {
	t.Helper()
	if got := count(t, conn, sql, args...); got != rows {
		t.Fatalf("%s: got %d, want %d", sql, got, rows)
	}
}
