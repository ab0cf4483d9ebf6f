package migrations_test

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace/internal/testenv"
	"millrace/migrations"
)

func TestTablesOfAnotherProgramAreRefusedByNameAndLeftAlone(t *testing.T) {
	cases := []struct{ sql, want string }{
		{"CREATE TABLE schema_migrations (version bigint PRIMARY KEY, dirty boolean NOT NULL)", "schema_migrations is another program's, it has (version bigint, dirty boolean)"},
		{"CREATE TABLE schema_migrations (version varchar PRIMARY KEY)", "schema_migrations is another program's"},
		{"CREATE TABLE logs (id bigserial PRIMARY KEY, line text)", "names that Millrace needs, logs"},
		{"CREATE VIEW ledger AS SELECT 1 AS one", "names that Millrace needs, ledger"},
	}
	ctx := context.Background()
	for _, c := range cases {
		conn := testenv.Connect(t, testenv.Database(t))
		if _, err := conn.Exec(ctx, c.sql); err != nil {
			t.Fatal(err)
		}
		before := catalog(t, conn)
		_, err := migrations.Up(ctx, conn)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "search_path") {
			t.Errorf("%s: got %v, want %q and what to do", c.sql, err, c.want)
		}
		if diff := cmp.Diff(before, catalog(t, conn)); diff != "" {
			t.Errorf("%s: (-before +after):\n%s", c.sql, diff)
		}
	}
}
