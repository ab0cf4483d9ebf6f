package worker

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/frame"
	"millrace/internal/testenv"
	"millrace/worker/partition"
)

// savepoints counts those of a connection: the search for bad records makes one before each COPY.
type savepoints int

func (n *savepoints) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	if strings.HasPrefix(q.SQL, "SAVEPOINT") {
		*n++
	}
	return ctx
}

func (n *savepoints) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TestABadRecordIsFoundInFewCopies: three when the server says which row it is; two for each halving when it
// doesn't, as with a trigger that looks at the rows after the last of them.
func TestABadRecordIsFoundInFewCopies(t *testing.T) {
	const n, bad = 5000, 3210
	cases := map[string]struct {
		record, prepare string
		most            savepoints
	}{
		"told":   {`{"a":nonsense}`, "SELECT", 4},
		"halved": {`{"boom":1}`, "CREATE TRIGGER refuse AFTER INSERT ON logs FOR EACH ROW EXECUTE FUNCTION refuse()", 2*13 + 1}, // 2¹³ > n
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			url := testenv.Schema(t)
			config, err := pgx.ParseConfig(string(url))
			if err != nil {
				t.Fatal(err)
			}
			var copies savepoints
			config.Tracer = &copies
			db, err := pgx.ConnectConfig(ctx, config)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close(ctx)
			exec(t, db, `SET TimeZone = 'UTC'; CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				IF NEW.data ? 'boom' THEN RAISE EXCEPTION 'boom' USING ERRCODE = '22023'; END IF; RETURN NULL; END $$`)
			exec(t, db, c.prepare)
			records := slices.Repeat([]string{`{"a":1}`}, n)
			records[bad] = c.record
			base := frame.NewBase()
			out, err := store(ctx, db, partition.New(24*time.Hour), testRule, []segment{segmentOf(base, records...)}, nil, nil)
			if err != nil || out.rows != n-1 || out.dead[reasonData] != 1 {
				t.Fatalf("got %+v, %v", out, err)
			}
			if copies > c.most {
				t.Errorf("%d COPYs, want at most %d", copies, c.most)
			}
			distinct(t, db, n-1)
			want(t, db, 1, "SELECT count(*) FROM dead_letters WHERE record_id = $1", frame.ID(base, bad))
		})
	}
}
