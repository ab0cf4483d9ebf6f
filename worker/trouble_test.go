package worker

import (
	"context"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/config"
	"millrace/internal/frame"
	"millrace/internal/localstack"
	"millrace/internal/testenv"
)

// The database is in trouble: the worker keeps its frames, says so, and goes on by itself. Each test counts the rows
// in the end, and that no frame was given back.

// settled waits for so many rows and checks that each is there once, at its frame's first delivery.
func (r *running) settled(p *publisher, db *pgx.Conn, rows int) {
	r.t.Helper()
	want(r.t, db, rows, allLogs)
	testenv.Eventually(r.t, 20*time.Second, "ready, and the queues are empty", func() bool {
		return strings.Contains(r.get("/ready"), `"ready"`) && p.waiting() == 0
	})
	if got := r.metric("millrace_worker_redelivered_total"); got != 0 {
		r.t.Errorf("redelivered: got %v, want 0", got)
	}
	distinct(r.t, db, rows)
}

// unready waits until /ready gives a reason.
func (r *running) unready(reason string) {
	r.t.Helper()
	last := ""
	defer func() {
		if r.t.Failed() {
			r.t.Logf("ready: %s", last)
		}
	}()
	testenv.Eventually(r.t, 20*time.Second, "not ready: "+reason, func() bool {
		last = r.get("/ready")
		return strings.Contains(last, reason)
	})
}

const terminateWorkers = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
	WHERE datname = current_database() AND application_name = 'millrace worker'`

func TestTroubleOfTheDatabaseIsWaitedOut(t *testing.T) {
	cases := map[string]struct {
		begin, end string // run once each; {db} and {role} are the worker's
		reason     string // in /ready
		class      string // of SQLSTATE in the metric of retries
	}{
		"read only": {
			"ALTER DATABASE {db} SET default_transaction_read_only = on;" + terminateWorkers,
			"ALTER DATABASE {db} RESET default_transaction_read_only", "25006", "25",
		},
		"too many connections": {
			"ALTER ROLE {role} CONNECTION LIMIT 0;" + terminateWorkers,
			"ALTER ROLE {role} CONNECTION LIMIT -1", "53300", "53",
		},
		"a lock that is held for long": {
			"BEGIN; LOCK TABLE ledger", "COMMIT", "55P03", "55",
		},
		"a table that was dropped": {
			"DROP TABLE ledger",
			"CREATE TABLE ledger (id uuid PRIMARY KEY, records int NOT NULL, checksum bigint NOT NULL) PARTITION BY RANGE (id); ALTER TABLE ledger OWNER TO {role}",
			"42P01", "42",
		},
		"a missing privilege": {
			"REVOKE INSERT ON logs FROM {role}; REVOKE millrace FROM {role}", "GRANT millrace TO {role}", "42501", "42",
		},
	}
	for name, test := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			role := aRole(t)
			c := testConfig(t, 1)
			c.slowAfter = time.Minute
			u, err := url.Parse(string(c.Postgres))
			if err != nil {
				t.Fatal(err)
			}
			p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
			u.User = url.UserPassword(role, role)
			c.Postgres = config.PostgresURL(u.String())
			own := strings.NewReplacer("{db}", strings.TrimPrefix(u.Path, "/"), "{role}", role)

			w := start(t, c)
			p.send(0, aFrame(frame.NewBase(), 1))
			want(t, db, 1, allLogs)
			exec(t, db, own.Replace(test.begin))
			for range 10 {
				p.send(0, aFrame(frame.NewBase(), 10))
			}
			w.unready(test.reason)
			testenv.Eventually(t, 20*time.Second, "the retry is counted", func() bool {
				return w.metric(`millrace_worker_retries_total{class="`+test.class+`"}`) > 0
			})
			exec(t, db, own.Replace(test.end))
			w.settled(p, db, 101)
		})
	}
}

// aRole makes a role that may do what the tests' own may, except what takes a superuser.
func aRole(t *testing.T) string {
	t.Helper()
	admin := testenv.Connect(t, testenv.Database(t))
	role := testenv.Name()
	exec(t, admin, "CREATE ROLE "+role+" LOGIN PASSWORD '"+role+"'; GRANT millrace TO "+role)
	t.Cleanup(func() { exec(t, admin, "DROP ROLE "+role) }) // the database, with what the role has in it, is gone then
	return role
}

// TestCancelledStatementsAreTriedAgain: an administrator's cancel looks like nothing that a record could be
// blamed for.
func TestCancelledStatementsAreTriedAgain(t *testing.T) {
	t.Parallel()
	c := testConfig(t, 1)
	c.BatchRows = 50
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	w := start(t, c)
	const frames, rows = 200, 20
	var published sync.WaitGroup
	published.Go(func() {
		for range frames {
			p.send(0, aFrame(frame.NewBase(), rows))
		}
	})
	const cancel = `SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity
		WHERE datname = current_database() AND application_name = 'millrace worker' AND state = 'active'`
	testenv.Eventually(t, 20*time.Second, "some were cancelled", func() bool {
		count(t, db, cancel)
		return w.metric(`millrace_worker_retries_total{class="57"}`) >= 3 || count(t, db, allLogs) == frames*rows
	})
	published.Wait()
	w.settled(p, db, frames*rows)
	want(t, db, 0, "SELECT count(*) FROM dead_letters")
}

// TestTheServerMayGoAndComeBack: down at the start, stopped in order under load, killed.
func TestTheServerMayGoAndComeBack(t *testing.T) {
	t.Parallel()
	c := testConfig(t, 1)
	stack := ownPostgres(t, &c)
	ctx := context.Background()
	restart := func() {
		t.Helper()
		if err := stack.Restart(ctx, "postgres"); err != nil {
			t.Fatal(err)
		}
	}
	kill := func() {
		t.Helper()
		if err := stack.Kill("postgres"); err != nil {
			t.Fatal(err)
		}
	}
	c.BatchRows = 100
	p := newPublisher(t, c)
	kill()
	w := start(t, c)
	const frames, rows = 600, 20
	var published sync.WaitGroup
	published.Go(func() {
		for range frames {
			p.send(0, aFrame(frame.NewBase(), rows))
		}
	})
	w.unready("connect")
	stored := func(n float64) func() bool {
		return func() bool { return w.metric("millrace_worker_rows_stored_total") >= n }
	}
	restart()
	testenv.Eventually(t, 20*time.Second, "some are stored", stored(1000))
	restart()
	testenv.Eventually(t, 20*time.Second, "more are stored", stored(5000))
	kill()
	w.unready("postgres")
	restart()
	published.Wait()
	w.settled(p, testenv.Connect(t, c.Postgres), frames*rows)
}

// TestACommitThatWaitsForAStandbyHoldsTheFrames: even when its session is ended while it waits. It is committed
// then, but not where the standby would have it, and the frames are all that could bring it back.
func TestACommitThatWaitsForAStandbyHoldsTheFrames(t *testing.T) {
	t.Parallel()
	c := testConfig(t, 1)
	ownPostgres(t, &c)
	c.slowAfter = 200 * time.Millisecond
	p := newPublisher(t, c)
	w := start(t, c)
	p.send(0, aFrame(frame.NewBase(), 1))
	testenv.Eventually(t, 20*time.Second, "the first is stored", func() bool { return w.metric("millrace_worker_rows_stored_total") == 1 })
	db := testenv.Connect(t, c.Postgres)
	exec(t, db, "ALTER SYSTEM SET synchronous_standby_names = 'missing'")
	exec(t, db, "SELECT pg_reload_conf()")
	exec(t, db, "SET synchronous_commit = local")
	p.send(0, aFrame(frame.NewBase(), 10))
	waiting := func() int { // the worker's process that waits for the standby, or 0
		return count(t, db, "SELECT coalesce(max(pid), 0) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
	}
	first := 0
	testenv.Eventually(t, 20*time.Second, "the commit waits", func() bool { first = waiting(); return first != 0 })
	w.unready("a transaction has not ended")
	exec(t, db, "SELECT pg_terminate_backend($1)", first)
	testenv.Eventually(t, 20*time.Second, "the next try waits too", func() bool { n := waiting(); return n != 0 && n != first })
	if got := w.metric("millrace_worker_rows_"); got != 1 {
		t.Errorf("%v rows are said to be stored, want 1", got)
	}
	exec(t, db, "ALTER SYSTEM RESET synchronous_standby_names")
	exec(t, db, "SELECT pg_reload_conf()")
	w.settled(p, db, 11)
}

// ownPostgres gives the worker a server that nobody else uses.
func ownPostgres(t *testing.T, c *Config) *localstack.Stack {
	t.Helper()
	stack, err := localstack.Start(context.Background(), localstack.Options{Need: localstack.Need{Postgres: true}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stack.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	c.Postgres = config.PostgresURL(stack.PostgresURL)
	return stack
}
