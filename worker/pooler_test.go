package worker

import (
	"context"
	"errors"
	"strings"
	"testing"

	"millrace/internal/frame"
	"millrace/internal/pg"
	"millrace/internal/testenv"
)

func TestAWorkerBehindATransactionPoolerSaysSoAndLeavesNoLock(t *testing.T) {
	for _, name := range []string{"POSTGRES_URL", "POSTGRES_OWNER_URL"} {
		t.Run(name, func(t *testing.T) {
			c := testConfig(t, 1)
			direct := c.Postgres
			through := testenv.Pooler(t, direct, "transaction")
			if name == "POSTGRES_URL" {
				c.Postgres = through
			} else {
				c.Owner = through
			}
			ctx, cancel := context.WithTimeout(t.Context(), testenv.LeastWait)
			defer cancel()
			err := Run(ctx, c)
			if !errors.Is(err, pg.ErrTransactionPooler) || !strings.HasPrefix(err.Error(), name+": ") || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v", err)
			}
			db := workerConn(t, direct)
			if n := count(t, db, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"); n != 0 {
				t.Errorf("%d advisory locks are left", n)
			}
		})
	}
}

func TestAWorkerBehindASessionPoolerStores(t *testing.T) {
	c := testConfig(t, 1)
	db := workerConn(t, c.Postgres)
	c.Postgres = testenv.Pooler(t, c.Postgres, "session")
	start(t, c)
	newPublisher(t, c).send(0, aFrame(frame.NewBase(), 3))
	want(t, db, 3, allLogs)
}
