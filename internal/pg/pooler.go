package pg

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// poolerRounds is how often a pooler is asked. One round is enough if the pooler has one idle server, or hands out the server that
	// came back last, as PgBouncer does. The others are for pools that somebody else uses meanwhile: there one round in four shows
	// nothing (measured with four such clients).
	poolerRounds = 30

	// poolerPatience is how long the second connection may wait for a server in a round. A pooler that keeps a server for each client
	// may have none left.
	poolerPatience = 5 * time.Second
)

// ErrTransactionPooler says what is wrong with a URL, and what to do about it.
var ErrTransactionPooler = errors.New("leads to a pooler that lends its servers by transaction (PgBouncer's pool_mode = transaction or statement): " +
	"advisory locks, session settings and prepared statements don't work there; connect to PostgreSQL directly, or through a pooler in session mode")

// CheckPooler returns ErrTransactionPooler if c leads to a pooler that lends its servers by transaction. It returns other errors if it
// can't tell because nothing can be reached. Behind such a pooler, settings, prepared statements and advisory locks stay with the server
// that ran them, and the next statement may run on another server. CheckPooler takes no lock and changes no setting of a server. It
// compares which server answers.
func CheckPooler(ctx context.Context, c *pgconn.Config) error {
	c = c.Copy()
	c.AfterConnect = nil
	first, err := pgconn.ConnectConfig(ctx, c)
	if err != nil {
		return err
	}
	defer end(ctx, first)
	pid, err := backendPID(ctx, first)
	if err != nil || pid == fmt.Sprint(first.PID()) {
		return err // PostgreSQL itself: it gave this number when it let the client in
	}

	// It is a pooler: the number that it gave its client is not the server's. Can another client get this client's server?
	waiting, cancel := context.WithTimeout(ctx, poolerPatience)
	defer cancel()
	second, err := pgconn.ConnectConfig(waiting, c)
	if err != nil {
		return verdictOf(ctx, waiting, err)
	}
	defer end(ctx, second)
	for range poolerRounds {
		if done, err := changesHands(ctx, first, second, pid); done || err != nil {
			return err
		}
	}
	return nil
}

// changesHands makes one round: it begins a transaction on second. It returns ErrTransactionPooler if second then has the server pid
// that first had before, or if first has another one now. It reports whether no further round is needed.
func changesHands(ctx context.Context, first, second *pgconn.PgConn, pid string) (done bool, err error) {
	waiting, cancel := context.WithTimeout(ctx, poolerPatience)
	defer cancel()
	if _, err := second.Exec(waiting, "BEGIN").ReadAll(); err != nil {
		return true, verdictOf(ctx, waiting, err)
	}
	for _, conn := range []*pgconn.PgConn{second, first} {
		now, err := backendPID(waiting, conn)
		if err != nil {
			return true, verdictOf(ctx, waiting, err)
		}
		if (now == pid) == (conn == second) {
			return true, ErrTransactionPooler
		}
	}
	if _, err := second.Exec(waiting, "ROLLBACK").ReadAll(); err != nil {
		return true, verdictOf(ctx, waiting, err)
	}
	return false, nil
}

// verdictOf returns what an error of the second connection tells about the pooler: ErrTransactionPooler if it lends by transaction, nil
// if it does not, or err if there is no telling.
func verdictOf(ctx, waiting context.Context, err error) error {
	var answer *pgconn.PgError
	switch {
	case errors.As(err, &answer) && strings.Contains(answer.Message, "statement pooling mode"):
		return ErrTransactionPooler // PgBouncer lets no transaction begin
	case waiting.Err() != nil && ctx.Err() == nil:
		return nil // no server was left for a second client, so the first client keeps its server
	}
	return err
}

// backendPID returns the number of the server process that answers.
func backendPID(ctx context.Context, conn *pgconn.PgConn) (string, error) {
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
	Close(ctx, conn)
	<-conn.CleanupDone()
}
