package migrations_test

import (
	"context"
	"strings"
	"testing"

	"millrace/internal/testenv"
	"millrace/migrations"
)

// TestADatabaseOfBeforeEventTimesMigratesInPlace takes the last step with data in the table, and then stores rows as a worker of before
// does.
func TestADatabaseOfBeforeEventTimesMigratesInPlace(t *testing.T) {
	ctx := context.Background()
	conn := testenv.Connect(t, testenv.Database(t))
	if _, err := migrations.Up(ctx, conn); err != nil {
		t.Fatal(err)
	}
	for undone := true; undone; {
		m, err := migrations.Down(ctx, conn)
		if err != nil {
			t.Fatal(err)
		}
		undone = m.Name != "event_time"
	}
	const partition = "SELECT millrace_add_partition('logs', 'logs_20260301', '2026-03-01', '2026-03-02')"
	testenv.Exec(t, conn, partition)
	testenv.Exec(t, conn, "INSERT INTO logs SELECT gen_random_uuid(), '2026-03-01 10:00+00', '{}' FROM generate_series(1, 100)")
	var before, after uint32
	file := func(into *uint32) {
		t.Helper()
		if err := conn.QueryRow(ctx, "SELECT relfilenode FROM pg_class WHERE relname = 'logs_20260301'").Scan(into); err != nil {
			t.Fatal(err)
		}
	}
	file(&before)
	if done, err := migrations.Up(ctx, conn); err != nil || len(done) == 0 {
		t.Fatalf("got %v, %v", done, err)
	}
	if file(&after); before != after {
		t.Error("the partition was written anew")
	}
	testenv.Exec(t, conn, strings.NewReplacer("20260301", "20260302", "2026-03-02", "2026-03-03", "2026-03-01", "2026-03-02").Replace(partition))
	for _, day := range []string{"01", "02"} {
		copied, err := conn.PgConn().CopyFrom(ctx, strings.NewReader("01234567-89ab-7cde-8000-000000000000\t2026-03-"+day+" 12:00+00\t{}\n"), "COPY logs (id, inserted_at, data) FROM STDIN")
		if err != nil || copied.RowsAffected() != 1 {
			t.Errorf("a worker of before: %v, %v", copied, err)
		}
	}
	if got := testenv.Count(t, conn, "SELECT count(*) FROM logs WHERE time = '1970-01-01 00:00+00'"); got != 102 {
		t.Errorf("%d rows have the time that stands for their inserted_at, want 102", got)
	}
	if got := testenv.Count(t, conn, "SELECT count(*) FROM pg_indexes WHERE tablename LIKE 'logs_2026%' AND indexdef LIKE '%btree (inserted_at)'"); got != 2 {
		t.Errorf("%d partitions have an index on inserted_at, want both", got)
	}
	if _, err := migrations.Down(ctx, conn); err != nil {
		t.Fatal(err)
	}
	if got := testenv.Count(t, conn, "SELECT count(*) FROM logs"); got != 102 {
		t.Errorf("%d rows are left after the way back, want 102", got)
	}
}
