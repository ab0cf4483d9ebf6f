package query

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"millrace/internal/config"
	"millrace/internal/frame"
)

const (
	// pageBytes ends a page early: when its rows have this much data, the next row begins another page. 1000
	// records of the usual size (300 bytes) are a tenth of it.
	pageBytes = 4 << 20

	// connectTimeout is the longest wait for a connection, new or out of the pool.
	connectTimeout = 5 * time.Second
	// storeSlack is what a read may take beyond its statement's timeout, which the server keeps: beginning,
	// reading the rows and ending. After that the server is taken for dead.
	storeSlack = connectTimeout + 2*time.Second
)

var (
	errNoSchema = errors.New("the database has no logs table: run millrace migrate up")
	errForeign  = errors.New("the database's table logs is another program's: use another database, or another schema by search_path")
	errBusy     = errors.New("no database connection became free")
	errBroken   = errors.New("the database connection is broken")
)

// store reads from PostgreSQL. It may be used by many goroutines at once.
type store struct {
	pool    *pgxpool.Pool
	timeout time.Duration
}

// execMode has statements planned anew each time: what is a good plan depends on the window and on what is looked for. It
// leaves nothing in a session, so that the service works behind a pooler that lends servers by transaction.
const execMode = pgx.QueryExecModeCacheDescribe

// newStore connects to nothing yet.
func newStore(c Config) (*store, error) {
	pc, err := config.Parse(c.Postgres, pgxpool.ParseConfig)
	if err != nil {
		return nil, fmt.Errorf("POSTGRES_URL: %w", err)
	}
	pc.MaxConns = int32(c.Connections)
	pc.ConnConfig.ConnectTimeout = connectTimeout
	if pc.ConnConfig.RuntimeParams["application_name"] == "" {
		pc.ConnConfig.RuntimeParams["application_name"] = "millrace query"
	}
	pc.ConnConfig.DefaultQueryExecMode = execMode
	// A client that goes costs the server its statement, not us the connection.
	pc.ConnConfig.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: conn, DeadlineDelay: time.Second}
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), pc)
	if err != nil {
		return nil, fmt.Errorf("POSTGRES_URL: %w", err)
	}
	return &store{pool: pool, timeout: c.Timeout}, nil
}

// begin begins a read. Compiling a statement for each partition (jit) takes longer than it saves: what takes the
// time is within jsonb's functions.
func begin(timeout time.Duration) pgx.TxOptions {
	return pgx.TxOptions{BeginQuery: fmt.Sprintf("BEGIN READ ONLY; SET LOCAL jit = off; SET LOCAL statement_timeout = %d", timeout.Milliseconds())}
}

// connect opens a connection of its own, beside the pool.
func (s *store) connect(ctx context.Context) (*pgx.Conn, error) {
	return pgx.ConnectConfig(ctx, s.pool.Config().ConnConfig)
}

// name tells people which database it is: its host and name.
func (s *store) name() string {
	c := s.pool.Config().ConnConfig
	return c.Host + "/" + c.Database
}

// close waits for reads under way.
func (s *store) close() { s.pool.Close() }

// read runs f in a read-only transaction with the statement timeout.
func (s *store) read(ctx context.Context, f func(context.Context, pgx.Tx) error) error {
	return s.readFor(ctx, s.timeout, f)
}

// readFor is read with another timeout.
func (s *store) readFor(ctx context.Context, timeout time.Duration, f func(context.Context, pgx.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout+storeSlack)
	defer cancel()
	conn, tx, err := s.start(ctx, timeout)
	if errors.Is(err, errBroken) && ctx.Err() == nil {
		// The server went away and may be back: what the pool holds are connections to the old one.
		s.pool.Reset()
		conn, tx, err = s.start(ctx, timeout)
	}
	if err != nil {
		return err
	}
	defer conn.Release()
	err = f(ctx, tx)
	// There is nothing to commit. The server must be told also when ctx is done.
	ending, cancelEnding := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancelEnding()
	if endErr := tx.Rollback(ending); err == nil {
		err = endErr
	}
	return err
}

// start begins a transaction. Its error is errBroken when a pooled connection turned out to be dead.
func (s *store) start(ctx context.Context, timeout time.Duration) (*pgxpool.Conn, pgx.Tx, error) {
	// The wait for the pool has a bound of its own, to tell a busy pool from a slow statement.
	waiting, cancel := context.WithTimeoutCause(ctx, connectTimeout, errBusy)
	defer cancel()
	conn, err := s.pool.Acquire(waiting)
	if err != nil {
		if errors.Is(context.Cause(waiting), errBusy) {
			err = errBusy
		}
		return nil, nil, err
	}
	tx, err := conn.BeginTx(ctx, begin(timeout))
	if err != nil {
		if conn.Conn().IsClosed() {
			err = fmt.Errorf("%w: %w", errBroken, err)
		}
		conn.Release()
		return nil, nil, err
	}
	return conn, tx, nil
}

// schema is what a look at the catalog tells.
type schema struct {
	present bool // the tables are there
	own     bool // logs has the columns that are read
	citus   bool // Citus is installed
}

// fault returns what is wrong with the schema.
func (f schema) fault() error {
	switch {
	case !f.present:
		return errNoSchema
	case !f.own:
		return errForeign
	}
	return nil
}

// lookAtSchema reads the catalog.
func lookAtSchema(ctx context.Context, db interface {
	QueryRow(context.Context, string, ...any) pgx.Row
}) (f schema, err error) {
	const sql = `SELECT to_regclass('logs') IS NOT NULL AND to_regclass('late_changes') IS NOT NULL,
		(SELECT count(*) = 3 FROM pg_attribute WHERE attrelid = to_regclass('logs') AND attname IN ('id', 'inserted_at', 'data') AND NOT attisdropped),
		to_regclass('pg_dist_partition') IS NOT NULL`
	err = db.QueryRow(ctx, sql).Scan(&f.present, &f.own, &f.citus)
	return f, err
}

// schemaFault returns what is wrong with the schema, or nil when it is in order or can't be looked at.
func (s *store) schemaFault() error {
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	found, err := lookAtSchema(ctx, s.pool)
	if err != nil {
		return nil
	}
	return found.fault()
}

// page returns the answer to GET /logs.
func (s *store) page(ctx context.Context, q *search) ([]byte, error) {
	st := pageStatement(q, pageBytes)
	out := []byte(`{"logs":[`)
	var (
		n    int
		last position // its given counts the rows up to now
		more bool     // the page's rows are all of a longer list
	)
	if q.after != nil {
		last = *q.after
	}
	err := s.read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		rows, err := tx.Query(ctx, st.sql.String(), st.args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var (
				id   [16]byte
				at   time.Time
				data pgtype.DriverBytes // good until the next row
			)
			if err := rows.Scan(&id, &at, &data); err != nil {
				return err
			}
			if more {
				continue // rows without their data
			}
			same := last.id == id && last.at.Equal(at)
			if more = n == q.limit || data == nil; more { // the first row of the page after
				if !same {
					last.given = 0
				}
				continue
			}
			if n++; n > 1 {
				out = append(out, ',')
			}
			out = appendLog(out, id, at, data)
			if !same {
				last = position{at: at, id: id}
			}
			last.given++
		}
		return rows.Err()
	})
	if err != nil {
		return nil, err
	}
	out = append(out, `],"next":`...)
	if more {
		out = append(out, '"')
		out = append(out, q.cursor(last)...)
		out = append(out, '"')
	} else {
		out = append(out, "null"...)
	}
	return append(out, "}\n"...), nil
}

// count returns the answer to GET /logs/count.
func (s *store) count(ctx context.Context, q *search) ([]byte, error) {
	st := countStatement(q)
	var n int64
	err := s.read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		return tx.QueryRow(ctx, st.sql.String(), st.args...).Scan(&n)
	})
	if err != nil {
		return nil, err
	}
	return append(strconv.AppendInt([]byte(`{"count":`), n, 10), "}\n"...), nil
}

// one returns the answer to GET /logs/{id}, or pgx.ErrNoRows. An id that no row has may be a key: then it is the first
// record under that.
func (s *store) one(ctx context.Context, id uuid.UUID) (out []byte, err error) {
	err = s.read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		out, err = findByID(ctx, tx, id)
		if errors.Is(err, pgx.ErrNoRows) {
			out, err = findByID(ctx, tx, frame.BaseOfKey(id))
		}
		return err
	})
	return out, err
}

// findByID returns the row with an id as a line of JSON, or pgx.ErrNoRows.
func findByID(ctx context.Context, tx pgx.Tx, id uuid.UUID) ([]byte, error) {
	st := byIDStatement(id)
	rows, err := tx.Query(ctx, st.sql.String(), st.args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	if !rows.Next() {
		if err := rows.Err(); err != nil {
			return nil, err
		}
		return nil, pgx.ErrNoRows
	}
	return append(appendLog(nil, id, frame.Time(id), rows.RawValues()[0]), '\n'), nil
}

// appendLog adds a row's JSON object. data is as PostgreSQL wrote it.
func appendLog(out []byte, id uuid.UUID, at time.Time, data []byte) []byte {
	out = append(out, `{"id":"`...)
	out = append(out, id.String()...)
	out = append(out, `","inserted_at":"`...)
	out = at.UTC().AppendFormat(out, timeFormat)
	out = append(out, `","data":`...)
	out = append(out, data...)
	return append(out, '}')
}

// generation tells one state of a closed window from any other.
type generation struct {
	schema  int       // version of the schema
	created time.Time // when this database's schema was made: another database is another one
	late    int64     // how many times rows appeared in the window's hours, or vanished, when they were no longer new
}

// closedUntil is the time before which no row can come unnoticed: a minute ago by the database's clock, or by what a
// replica has replayed.
const closedUntil = `CASE WHEN pg_is_in_recovery() THEN pg_last_xact_replay_timestamp() ELSE now() END - interval '1 minute'`

// closed says whether no row can join the window unnoticed: it ended a minute ago by the database's clock, or
// by what a replica has replayed. If so it returns the window's generation.
//
// An hour of late_changes touches the window when its beginning lies less than an hour before it.
func (s *store) closed(ctx context.Context, q *search) (closed bool, g generation, err error) {
	const sql = `SELECT coalesce($2 <= ` + closedUntil + `, false),
		(SELECT coalesce(sum(changes), 0)::bigint FROM late_changes WHERE hour > $1::timestamptz - interval '1 hour' AND hour < $2),
		max(version), min(applied_at) FROM schema_migrations`
	err = s.read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		return tx.QueryRow(ctx, sql, time.UnixMilli(q.from), time.UnixMilli(q.to)).Scan(&closed, &g.late, &g.schema, &g.created)
	})
	return closed, g, err
}

// isNetwork says whether a connection broke in the middle of a read.
func isNetwork(err error) bool {
	var netErr net.Error
	return errors.As(err, &netErr) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}
