package cli

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"millrace/internal/config"
	"millrace/internal/pooler"
)

// database is what the commands that work on the database alone are set by.
type database struct {
	URL   config.PostgresURL `env:"POSTGRES_URL" help:"PostgreSQL."`
	Owner config.PostgresURL `env:"POSTGRES_OWNER_URL" help:"The same as the user that owns the tables; empty: POSTGRES_URL."`
}

func connect(ctx context.Context) (*pgx.Conn, error) {
	var d database
	if err := config.Load(&d); err != nil {
		return nil, err
	}
	return open(ctx, d.Owner, d.URL)
}

// open connects to the database as the user that owns the tables, if there is a URL of that user's.
func open(ctx context.Context, owner, url config.PostgresURL) (*pgx.Conn, error) {
	name := "POSTGRES_URL"
	if owner != "" {
		name, url = "POSTGRES_OWNER_URL", owner
	}
	if url == "" {
		return nil, config.Missing(name)
	}
	c, err := config.Parse(url, pgx.ParseConfig)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := pooler.Check(ctx, &c.Config); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return pgx.ConnectConfig(ctx, c)
}
