package cli

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"millrace/internal/config"
	"millrace/internal/pg"
)

// databaseSettings are the settings of the commands that need nothing but the database.
type databaseSettings struct {
	URL   config.PostgresURL `env:"POSTGRES_URL" help:"PostgreSQL."`
	Owner config.PostgresURL `env:"POSTGRES_OWNER_URL" help:"The same as the user that owns the tables; empty: POSTGRES_URL."`
}

// connect connects to the database that the settings name. It refuses CELLS_FILE, with which it would be one of several.
func connect(ctx context.Context) (*pgx.Conn, error) {
	environ, err := config.Environ()
	if err != nil {
		return nil, err
	}
	if err := refuseCells(environ); err != nil {
		return nil, err
	}
	var d databaseSettings
	if err := config.LoadFrom(environ, &d); err != nil {
		return nil, err
	}
	return openDatabase(ctx, d.Owner, d.URL)
}

// openDatabase connects to the database by the owner's URL, or by url if owner is empty. It fails if the URL leads through a
// pooler that lends its servers by transaction.
func openDatabase(ctx context.Context, owner, url config.PostgresURL) (*pgx.Conn, error) {
	name := "POSTGRES_URL"
	if owner != "" {
		name, url = "POSTGRES_OWNER_URL", owner
	}
	if url == "" {
		return nil, config.Missing(name)
	}
	c, err := pg.ParseURL(url, "millrace")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := pg.CheckPooler(ctx, &c.Config); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return pgx.ConnectConfig(ctx, c)
}
