// Package pooler tells whether a URL leads to PostgreSQL through a pooler that lends its servers for a transaction at a
// time. Nothing that a session keeps is kept there: settings, prepared statements and advisory locks stay with whichever
// server ran them, and the next statement may run on another. It starts no goroutine.
package pooler

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// rounds is how often a pooler is asked. One round shows a pooler that has one idle server, or hands out the one that
	// came back last, as PgBouncer does. The others are for pools that somebody else uses meanwhile: there one round in four
	// shows nothing (measured with four such clients).
	rounds = 30

	// patience is how long the second connection may wait for a server in a round. A pooler that keeps one server for each
	// client may have no other one.
	patience = 5 * time.Second
)

// ErrTransactions says what is wrong with a URL, and what to do about it.
var ErrTransactions = errors.New("leads to a pooler that lends its servers by transaction (PgBouncer's pool_mode = transaction or statement): " +
	"advisory locks, session settings and prepared statements don't work there; connect to PostgreSQL directly, or through a pooler in session mode")

// Check returns ErrTransactions when connections of c are lent servers by transaction, and other errors when it can't tell
// because nothing can be reached. It takes no lock and changes no setting of a server: it compares which server answers.
func Check(ctx context.Context, c *pgconn.Config) error {
	c = c.Copy()
	c.AfterConnect = nil
	first, err := pgconn.ConnectConfig(ctx, c)
	if err != nil {
		return err
	}
	defer end(ctx, first)
	pid, err := backend(ctx, first)
	if err != nil || pid == fmt.Sprint(first.PID()) {
		return err // what PostgreSQL said of itself when it let the client in
	}

	// A pooler makes up the number that it gives its client. Who else can get this client's server?
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	second, err := pgconn.ConnectConfig(waiting, c)
	if err != nil {
		return noVerdict(ctx, waiting, err)
	}
	defer end(ctx, second)
	for range rounds {
		if done, err := changesHands(ctx, first, second, pid); done || err != nil {
			return err
		}
	}
	return nil
}

// changesHands is one round. It returns ErrTransactions if second, which is in a transaction, has the server pid that first
// had before, or if first has another one now. It reports whether that was the last round.
func changesHands(ctx context.Context, first, second *pgconn.PgConn, pid string) (done bool, err error) {
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if _, err := second.Exec(waiting, "BEGIN").ReadAll(); err != nil {
		return true, noVerdict(ctx, waiting, err)
	}
	for _, conn := range []*pgconn.PgConn{second, first} {
		now, err := backend(waiting, conn)
		if err != nil {
			return true, noVerdict(ctx, waiting, err)
		}
		if (now == pid) == (conn == second) {
			return true, ErrTransactions
		}
	}
	if _, err := second.Exec(waiting, "ROLLBACK").ReadAll(); err != nil {
		return true, noVerdict(ctx, waiting, err)
	}
	return false, nil
}

// noVerdict returns what an error of the second connection says about the pooler.
func noVerdict(ctx, waiting context.Context, err error) error {
	var answer *pgconn.PgError
	switch {
	case errors.As(err, &answer) && strings.Contains(answer.Message, "statement pooling mode"):
		return ErrTransactions // PgBouncer lets no transaction begin
	case waiting.Err() != nil && ctx.Err() == nil:
		return nil // no server was left for a second client: the first one keeps its own
	}
	return err
}

// backend returns the number of the server process that answers.
func backend(ctx context.Context, conn *pgconn.PgConn) (string, error) {
	results, err := conn.Exec(ctx, "SELECT pg_backend_pid()").ReadAll()
	if err != nil {
		return "", err
	}
	if len(results) != 1 || len(results[0].Rows) != 1 {
		return "", errors.New("pg_backend_pid() returned no row")
	}
	return string(results[0].Rows[0][0]), nil
}

// end closes a connection, with the transaction that it may be in.
func end(ctx context.Context, conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // nothing is under way that the answer could tell about
	<-conn.CleanupDone()
}
