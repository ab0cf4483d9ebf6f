package pooler

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"millrace/internal/config"
	"millrace/internal/testenv"
)

func parse(t *testing.T, url config.PostgresURL) *pgconn.Config {
	t.Helper()
	c, err := pgconn.ParseConfig(string(url))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestAPoolerThatLendsServersByTransactionIsKnown(t *testing.T) {
	for _, mode := range []string{"transaction", "statement", "session"} {
		t.Run(mode, func(t *testing.T) {
			c := parse(t, testenv.Pooler(t, testenv.Database(t), mode))
			for i := range 5 {
				err := Check(t.Context(), c)
				if want := mode != "session"; errors.Is(err, ErrTransactions) != want || !want && err != nil {
					t.Fatalf("try %d: got %v", i, err)
				}
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		if err := Check(t.Context(), parse(t, testenv.Database(t))); err != nil {
			t.Fatal(err)
		}
	})
}

// Others use the pool: its servers change hands all the time.
func TestABusyPoolerIsKnown(t *testing.T) {
	for _, mode := range []string{"transaction", "session"} {
		t.Run(mode, func(t *testing.T) {
			c := parse(t, testenv.Pooler(t, testenv.Database(t), mode))
			ctx, cancel := context.WithCancel(t.Context())
			var others sync.WaitGroup
			defer others.Wait()
			defer cancel()
			for range 4 {
				conn, err := pgconn.ConnectConfig(ctx, c)
				if err != nil {
					t.Fatal(err)
				}
				others.Go(func() {
					defer end(context.Background(), conn)
					for ctx.Err() == nil {
						_, _ = conn.Exec(ctx, "SELECT pg_sleep(0.002)").ReadAll() // until the end of the test
						time.Sleep(time.Millisecond)
					}
				})
			}
			for i := range 30 {
				err := Check(t.Context(), c)
				if want := mode == "transaction"; errors.Is(err, ErrTransactions) != want || !want && err != nil {
					t.Fatalf("try %d: got %v", i, err)
				}
			}
		})
	}
}
