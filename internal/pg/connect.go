package pg

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"millrace/internal/config"
)

const (
	// ConnectTimeout is how long a connection may take to open where its URL doesn't say.
	ConnectTimeout = 5 * time.Second

	// keepAlive is the time between two looks at whether a silent server is still there.
	keepAlive = 15 * time.Second
)

// ParseURL returns the options with which to connect to a database: those of the URL, completed by SetDefaults.
func ParseURL(url config.PostgresURL, application string) (*pgx.ConnConfig, error) {
	c, err := config.Parse(url, pgx.ParseConfig)
	if err != nil {
		return nil, err
	}
	SetDefaults(c, application)
	return c, nil
}

// SetDefaults bounds the time that a connection takes to open and finds out about servers that are gone. PostgreSQL shows the
// connection under the application's name in pg_stat_activity. What a URL says wins.
func SetDefaults(c *pgx.ConnConfig, application string) {
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = ConnectTimeout
	}
	if c.RuntimeParams["application_name"] == "" {
		c.RuntimeParams["application_name"] = application
	}
	c.DialFunc = (&net.Dialer{Timeout: c.ConnectTimeout, KeepAlive: keepAlive}).DialContext
}

// Session is what each of a service's connections begins with.
type Session struct {
	Service    string // such as worker
	Settings   string // statements, each with its semicolon
	MinVersion int    // the oldest PostgreSQL that the service works with, such as 14
}

// Connect opens a connection as c says, and gives it the session's settings. It fails if PostgreSQL is older than MinVersion.
func (s Session) Connect(ctx context.Context, c *pgx.ConnConfig) (*pgx.Conn, error) {
	c.AfterConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		results, err := conn.Exec(ctx, s.Settings+"SELECT current_setting('server_version_num')").ReadAll()
		if err != nil {
			return err
		}
		version := 0
		if last := results[len(results)-1]; len(last.Rows) == 1 {
			_, _ = fmt.Sscan(string(last.Rows[0][0]), &version) // zero is refused below
		}
		if major := version / 10000; major < s.MinVersion {
			return fmt.Errorf("PostgreSQL is version %d, the %s needs %d or newer", major, s.Service, s.MinVersion)
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, ConnectTimeout+c.ConnectTimeout)
	defer cancel()
	return pgx.ConnectConfig(ctx, c)
}
