package searches

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"millrace/internal/config"
	"millrace/internal/pg"
)

const (
	// connections is how many connections to the database a service has for its searches: for two evaluations, two messages, and what else
	// there is.
	evaluators, senders = 2, 2
	connections         = evaluators + senders + 1
	// application is what PostgreSQL calls them.
	application = "millrace searches"
)

// Connect returns the pool of connections with which a Runner works. It has not connected yet.
func Connect(url config.PostgresURL) (*pgxpool.Pool, error) {
	c, err := config.Parse(url, pgxpool.ParseConfig)
	if err != nil {
		return nil, err
	}
	c.MaxConns = connections
	pg.SetDefaults(c.ConnConfig, application)
	// Nothing is left in a session, so a pooler may lend servers by transaction.
	c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	return pgxpool.NewWithConfig(context.Background(), c)
}

// beginSQL begins a transaction. A dead process must not keep it open: its server notices within that time even if the network says nothing.
const beginSQL = "BEGIN; SET LOCAL jit = off; SET LOCAL idle_in_transaction_session_timeout = '5min'"

// known is a row of millrace_searches.
type known struct {
	definition string
	receivers  []string
	evaluated  time.Time // zero: never
	succeeded  time.Time
	state      State
	stateText  string
}

// errTaken means that another process evaluates a search.
var errTaken = errors.New("another process evaluates the search")

// lock takes the advisory lock of a search until the transaction ends. Its error is errTaken if another process has it.
func lock(ctx context.Context, tx pgx.Tx, id int64) error {
	var isOurs bool
	if err := tx.QueryRow(ctx, "SELECT pg_try_advisory_xact_lock($1)", id).Scan(&isOurs); err != nil {
		return err
	}
	if !isOurs {
		return errTaken
	}
	return nil
}

// readKnown returns what is known of a search. For one that was never evaluated that is nothing.
func readKnown(ctx context.Context, tx pgx.Tx, name string) (k known, err error) {
	var succeeded *time.Time
	err = tx.QueryRow(ctx, "SELECT definition, receivers, evaluated_at, succeeded_at, state::text FROM millrace_searches WHERE name = $1", name).
		Scan(&k.definition, &k.receivers, &k.evaluated, &succeeded, &k.stateText)
	if errors.Is(err, pgx.ErrNoRows) {
		return known{}, nil
	}
	if err != nil {
		return k, err
	}
	if succeeded != nil {
		k.succeeded = *succeeded
	}
	if err := json.Unmarshal([]byte(k.stateText), &k.state); err != nil {
		return k, fmt.Errorf("the state of the search can't be read: %w", err)
	}
	return k, nil
}

// evaluated is what an evaluation writes.
type evaluated struct {
	search  *Search
	due     time.Time
	took    time.Duration
	failure string // empty: it succeeded
	more    bool
	state   *State
}

// write writes what is known of a search now.
func (e *evaluated) write(ctx context.Context, tx pgx.Tx) error {
	state, err := json.Marshal(e.state)
	if err != nil {
		return err
	}
	const sql = `INSERT INTO millrace_searches AS s (name, definition, every_seconds, receivers, evaluated_at, succeeded_at, took_ms, failure, more, state)
		VALUES ($1, $2, $3, $4, $5::timestamptz, CASE WHEN $6 = '' THEN $5::timestamptz END, $7, nullif($6, ''), $8, $9::text::jsonb)
		ON CONFLICT (name) DO UPDATE SET definition = excluded.definition, every_seconds = excluded.every_seconds, receivers = excluded.receivers,
			evaluated_at = excluded.evaluated_at, succeeded_at = coalesce(excluded.succeeded_at, s.succeeded_at), took_ms = excluded.took_ms,
			failure = excluded.failure, more = excluded.more, state = excluded.state`
	tell := e.search.Tell
	if tell == nil {
		tell = []string{}
	}
	_, err = tx.Exec(ctx, sql, e.search.Name, e.search.definition(), int(e.search.Every/time.Second), tell, e.due, e.failure,
		int(e.took.Milliseconds()), e.more, string(state))
	return err
}

// writeChanges notes what changed in the history.
func writeChanges(ctx context.Context, tx pgx.Tx, search string, at time.Time, changes []Change) error {
	batch := new(pgx.Batch)
	for _, c := range changes {
		group, err := json.Marshal(c.Group)
		if err != nil {
			return err
		}
		batch.Queue(`INSERT INTO millrace_search_changes (search, at, what, since, "group") VALUES ($1, $2, $3, $4, $5::text::jsonb)`, search, at, c.What, c.Since, string(group))
	}
	return tx.SendBatch(ctx, batch).Close()
}

// writeMessages notes a notice for each place of the receivers. One that only repeats what fires is for Alertmanagers, and not noted where one
// waits already.
func writeMessages(ctx context.Context, tx pgx.Tx, f *File, names []string, n *notice, repeats bool) error {
	content, err := json.Marshal(n)
	if err != nil {
		return err
	}
	const sql = `INSERT INTO millrace_search_messages (search, receiver, target, repeats, content)
		SELECT $1, $2, $3, $4::boolean, $5::text::jsonb WHERE NOT ($4::boolean AND EXISTS (
			SELECT FROM millrace_search_messages WHERE state = 'waiting' AND search = $1 AND receiver = $2 AND target = $3))`
	batch := new(pgx.Batch)
	for _, name := range names {
		r := f.receiver(name)
		if r == nil || repeats && r.Alertmanagers == nil {
			continue
		}
		for target := range r.targets() {
			batch.Queue(sql, n.Search, name, target, repeats, string(content))
		}
	}
	if batch.Len() == 0 {
		return nil
	}
	return tx.SendBatch(ctx, batch).Close()
}

// receiver returns the receiver of a name, or nil.
func (f *File) receiver(name string) *Receiver {
	for _, r := range f.Receivers {
		if r.Name == name {
			return r
		}
	}
	return nil
}

const (
	// historyKept is how long changes are kept, and sentKept how long it is known of messages that they were sent or given up.
	historyKept, sentKept = "30 days", "7 days"
	// goneAfter is how long nobody has evaluated a search that is not in the file until its alerts are resolved: other services may have another
	// file for a while.
	goneAfter = 10 * time.Minute
)

// tidySQL deletes what is old.
const tidySQL = `DELETE FROM millrace_search_changes WHERE at < now() - interval '` + historyKept + `';
	DELETE FROM millrace_search_messages WHERE state <> 'waiting' AND state_at < now() - interval '` + sentKept + `'`

// goneSQL finds searches that nobody evaluates any more. Parameters: the names of those in the file, goneAfter in seconds.
const goneSQL = `SELECT name FROM millrace_searches WHERE name <> ALL ($1) AND evaluated_at < now() - make_interval(secs => greatest($2, 3 * every_seconds))`
