package query

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgxpool"

	"millrace/internal/archive"
	"millrace/internal/config"
	"millrace/internal/pg"
)

const (
	// connectTimeout is the longest wait for a connection, new or out of the pool.
	connectTimeout = 5 * time.Second
	// storeSlack is how long a read may take beyond its statement's timeout, which the database keeps. In that time it begins,
	// reads the rows and ends. After that the database counts as dead.
	storeSlack = connectTimeout + 2*time.Second
)

var (
	errNoSchema  = errors.New("the database has no logs table: run millrace migrate up")
	errForeign   = errors.New("the database's table logs is another program's: use another database, or another schema by search_path")
	errOldSchema = errors.New("the database's schema is of an older version: run millrace migrate up")
	errBusy      = errors.New("no database connection became free")
	errBroken    = errors.New("the database connection is broken")
)

// store reads from PostgreSQL. Many goroutines may use it at once.
type store struct {
	pool    *pgxpool.Pool
	timeout time.Duration
	files   *files // of the archive; nil: there is none
	indexedFields
}

// execMode has statements planned anew each time, because the best plan depends on the window and on what is looked for. It
// leaves nothing in a session, so the service works behind a pooler that lends servers by transaction.
const execMode = pgx.QueryExecModeCacheDescribe

// application is what PostgreSQL calls the service's connections.
const application = "millrace query"

// newStore returns a store that has not connected yet.
func newStore(c Config) (*store, error) {
	pc, err := config.Parse(c.Postgres, pgxpool.ParseConfig)
	if err != nil {
		return nil, fmt.Errorf("POSTGRES_URL: %w", err)
	}
	pc.MaxConns = int32(c.Connections)
	pc.ConnConfig.ConnectTimeout = connectTimeout
	pg.SetDefaults(pc.ConnConfig, application)
	pc.ConnConfig.DefaultQueryExecMode = execMode
	// When a client leaves, its statement is cancelled and the connection is kept.
	pc.ConnConfig.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: conn, DeadlineDelay: time.Second}
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), pc)
	if err != nil {
		return nil, fmt.Errorf("POSTGRES_URL: %w", err)
	}
	s := &store{pool: pool, timeout: c.Timeout}
	archived, err := archive.OpenStore(c.Archive, int64(c.ArchiveCache))
	if err != nil {
		pool.Close()
		return nil, err
	}
	if archived != nil {
		s.files = newFiles(archived)
	}
	return s, nil
}

// checkArchive returns an error if the archive's store refuses the service. A store that is away may come back.
func (s *store) checkArchive(ctx context.Context, log *slog.Logger) error {
	if s.files == nil {
		return nil
	}
	err := archive.CheckReadable(ctx, s.files.store)
	switch {
	case ctx.Err() != nil: // a stop, which is no failure
		return nil
	case errors.As(err, new(*archive.AwayError)):
		log.Warn("the archive can't be read yet", "error", err)
		return nil
	}
	return err
}

// readOnly returns the options of a read's transaction. Compiling a statement for each partition (jit) takes longer than it
// saves, because most of the time is spent in jsonb's functions. All statements see the same rows.
//
// With an archive the table is locked before the snapshot is taken, so that no partition leaves it whose rows the snapshot counts on: whether
// rows are in logs or in files is read from the snapshot, and detaching a partition heeds locks, but no snapshots.
func (s *store) readOnly(timeout time.Duration) pgx.TxOptions {
	begin := fmt.Sprintf("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL jit = off; SET LOCAL statement_timeout = %d", timeout.Milliseconds())
	if s.files != nil {
		begin += "; LOCK TABLE ONLY logs IN ACCESS SHARE MODE"
	}
	return pgx.TxOptions{BeginQuery: begin}
}

// connect opens a connection of its own, beside the pool.
func (s *store) connect(ctx context.Context) (*pgx.Conn, error) {
	return pgx.ConnectConfig(ctx, s.pool.Config().ConnConfig)
}

// name returns the database's host and name, for people.
func (s *store) name() string {
	c := s.pool.Config().ConnConfig
	return c.Host + "/" + c.Database
}

// close closes the connections after the reads under way, then the files.
func (s *store) close() {
	s.pool.Close()
	if s.files != nil {
		s.files.close()
	}
}

// read runs f in a read-only transaction with the statement timeout.
func (s *store) read(ctx context.Context, f func(context.Context, pgx.Tx) error) error {
	return s.readFor(ctx, s.timeout, f)
}

// readFor does what read does, with another timeout.
func (s *store) readFor(ctx context.Context, timeout time.Duration, f func(context.Context, pgx.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout+storeSlack)
	defer cancel()
	conn, tx, err := s.beginRead(ctx, timeout)
	if errors.Is(err, errBroken) && ctx.Err() == nil {
		// The database went away and may be back. The pool holds connections from before.
		s.pool.Reset()
		conn, tx, err = s.beginRead(ctx, timeout)
	}
	if err != nil {
		return err
	}
	defer conn.Release()
	err = f(ctx, tx)
	// There is nothing to commit. The server must be told even when ctx is done.
	ending, cancelEnding := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancelEnding()
	if endErr := tx.Rollback(ending); err == nil {
		err = endErr
	}
	return err
}

// beginRead begins a transaction. Its error is errBroken if a connection of the pool turned out to be dead.
func (s *store) beginRead(ctx context.Context, timeout time.Duration) (*pgxpool.Conn, pgx.Tx, error) {
	// The wait for a connection has a bound of its own, so that a busy pool is told from a slow statement.
	waiting, cancel := context.WithTimeoutCause(ctx, connectTimeout, errBusy)
	defer cancel()
	conn, err := s.pool.Acquire(waiting)
	if err != nil {
		if errors.Is(context.Cause(waiting), errBusy) {
			err = errBusy
		}
		return nil, nil, err
	}
	tx, err := conn.BeginTx(ctx, s.readOnly(timeout))
	if err != nil {
		if conn.Conn().IsClosed() {
			err = fmt.Errorf("%w: %w", errBroken, err)
		}
		conn.Release()
		return nil, nil, err
	}
	return conn, tx, nil
}

// schema is what the catalog tells of the database's schema.
type schema struct {
	hasTables  bool // the tables are there
	hasColumns bool // logs has the columns that every version of it has had
	hasTimes   bool // logs has the column time
	hasArchive bool // the archive's tables are there
	hasCitus   bool // Citus is installed
}

// fault returns what is wrong with the schema, or nil.
func (f schema) fault() error {
	switch {
	case !f.hasTables:
		return errNoSchema
	case !f.hasColumns:
		return errForeign
	case !f.hasTimes:
		return errOldSchema
	}
	return nil
}

// lookAtSchema returns what the catalog tells of the schema.
func lookAtSchema(ctx context.Context, db interface {
	QueryRow(context.Context, string, ...any) pgx.Row
}) (f schema, err error) {
	const sql = `SELECT to_regclass('logs') IS NOT NULL AND to_regclass('late_changes') IS NOT NULL,
		(SELECT count(*) = 3 FROM pg_attribute WHERE attrelid = to_regclass('logs') AND attname IN ('id', 'inserted_at', 'data') AND NOT attisdropped),
		(SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('logs') AND attname = 'time' AND NOT attisdropped)),
		to_regclass('archive_ranges') IS NOT NULL, to_regclass('pg_dist_partition') IS NOT NULL`
	err = db.QueryRow(ctx, sql).Scan(&f.hasTables, &f.hasColumns, &f.hasTimes, &f.hasArchive, &f.hasCitus)
	return f, err
}

// schemaFault returns what is wrong with the database's schema, or nil if it is in order or can't be looked at.
func (s *store) schemaFault() error {
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	found, err := lookAtSchema(ctx, s.pool)
	if err != nil {
		return nil
	}
	if fault := found.fault(); fault != nil || s.files == nil || found.hasArchive {
		return fault
	}
	return errOldSchema
}

// generation identifies a state of a closed window: it changes when rows appear or vanish late.
type generation struct {
	schema  int       // version of the schema
	created time.Time // when this database's schema was made, which tells databases apart
	late    int64     // how many times rows appeared or vanished late in the window's hours
	files   bool      // there is an archive, which may have rows that logs has not
}

// changesSQL returns the rows that tell in which hours of a clock rows appeared or vanished late. A row without a time of its own may be
// noted by its inserted_at alone: workers of before do that.
func (c clock) changesSQL() string {
	if c == byArrival {
		return "late_changes"
	}
	return "(SELECT hour, changes FROM late_times UNION ALL SELECT hour, changes FROM late_changes) AS late"
}

// closedUntilSQL is the time before which no row can appear without a note in late_changes and late_times. It is a minute ago by the
// database's clock, or by what a replica has replayed.
const closedUntilSQL = `CASE WHEN pg_is_in_recovery() THEN pg_last_xact_replay_timestamp() ELSE now() END - interval '1 minute'`

// isClosed reports whether the window ended before closedUntilSQL. If so it returns the window's generation.
//
// An hour touches the window if it begins before the window's end, and less than an hour before its beginning. The hour -infinity touches
// all windows.
func (s *store) isClosed(ctx context.Context, q *search) (closed bool, g generation, err error) {
	sql := `SELECT coalesce($2 <= ` + closedUntilSQL + `, false),
		(SELECT coalesce(sum(changes), 0)::bigint FROM ` + q.clock.changesSQL() + ` WHERE hour > $1::timestamptz - interval '1 hour' AND hour < $2 OR hour = '-infinity'),
		max(version), min(applied_at) FROM schema_migrations`
	err = s.read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		return tx.QueryRow(ctx, sql, time.UnixMilli(q.from), time.UnixMilli(q.to)).Scan(&closed, &g.late, &g.schema, &g.created)
	})
	g.files = s.files != nil
	return closed, g, err
}
