package migrations_test

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"millrace/internal/testenv"
	"millrace/migrations"
)

// catalog describes every table, column and index of the schema, in a form that can be compared.
func catalog(t *testing.T, conn *pgx.Conn) []string {
	t.Helper()
	rows, err := conn.Query(context.Background(), `
		SELECT format('%s.%s %s %s', table_name, column_name, data_type, is_nullable) FROM information_schema.columns WHERE table_schema = 'public'
		UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func TestUpDownUpGivesTheSameSchema(t *testing.T) {
	ctx := context.Background()
	conn := testenv.Connect(t, testenv.Database(t))
	if err := migrations.Pending(ctx, conn); err == nil || !strings.Contains(err.Error(), "millrace migrate up") {
		t.Errorf("Pending on an empty database: got %v, want the command to run", err)
	}
	applied, err := migrations.Up(ctx, conn)
	if err != nil || len(applied) == 0 {
		t.Fatalf("Up applied %d steps: %v", len(applied), err)
	}
	first := catalog(t, conn)
	if err := migrations.Pending(ctx, conn); err != nil {
		t.Errorf("Pending after Up: %v", err)
	}
	if again, err := migrations.Up(ctx, conn); err != nil || len(again) > 0 {
		t.Errorf("a second Up applied %d steps: %v", len(again), err)
	}
	for i := len(applied) - 1; i >= 0; i-- {
		undone, err := migrations.Down(ctx, conn)
		if err != nil || undone == nil || undone.Version != applied[i].Version {
			t.Fatalf("Down took back %+v (%v), want version %d", undone, err, applied[i].Version)
		}
	}
	if undone, err := migrations.Down(ctx, conn); err != nil || undone != nil {
		t.Errorf("Down on an empty schema took back %+v: %v", undone, err)
	}
	for _, line := range catalog(t, conn) {
		if !strings.Contains(line, "schema_migrations") {
			t.Errorf("Down left %s", line)
		}
	}
	if _, err := migrations.Up(ctx, conn); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, catalog(t, conn)); diff != "" {
		t.Errorf("the schema after up, down, up (-first +second):\n%s", diff)
	}
}

func TestManyMayGoUpAtOnce(t *testing.T) {
	db := testenv.Database(t)
	var all sync.WaitGroup
	var mu sync.Mutex
	applied := 0
	for range 8 {
		conn := testenv.Connect(t, db)
		all.Go(func() {
			done, err := migrations.Up(context.Background(), conn)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			applied += len(done)
			mu.Unlock()
		})
	}
	all.Wait()
	status, err := migrations.Status(context.Background(), testenv.Connect(t, db))
	if err != nil {
		t.Fatal(err)
	}
	if applied != len(status) {
		t.Errorf("8 at once applied %d steps, want each of the %d once", applied, len(status))
	}
}

func TestAMigrationThatThisProgramDoesNotHaveIsRefused(t *testing.T) {
	ctx := context.Background()
	for _, m := range []struct {
		version    int
		name, want string
	}{
		{999, "of the future", "of the future"},
		{0, "another program's", "migration 0 (another program's)"},
	} {
		conn := testenv.Connect(t, testenv.Schema(t))
		if _, err := conn.Exec(ctx, "INSERT INTO schema_migrations (version, name) VALUES ($1, $2)", m.version, m.name); err != nil {
			t.Fatal(err)
		}
		if _, err := migrations.Up(ctx, conn); err == nil || !strings.Contains(err.Error(), m.want) {
			t.Errorf("%d: got %v, want an error that names the migration", m.version, err)
		}
	}
}

func TestADatabaseOfAnotherEncodingIsRefused(t *testing.T) {
	ctx := context.Background()
	admin := testenv.Connect(t, testenv.Database(t))
	name := testenv.Name()
	if _, err := admin.Exec(ctx, "CREATE DATABASE "+name+" ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := admin.Exec(ctx, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Error(err)
		}
	}()
	c := admin.Config().Copy()
	c.Database = name
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx) // nothing to lose
	if _, err := migrations.Up(ctx, conn); err == nil || !strings.Contains(err.Error(), "SQL_ASCII") {
		t.Errorf("got %v, want an error that names the encoding", err)
	}
}
