package query

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace/internal/fieldindex"
	"millrace/internal/testenv"
	"millrace/query/language"
)

// TestASearchReadsThePartitionsThatMayHaveItsRows reads from the plans which partitions of forty days are looked at, and by which indexes.
func TestASearchReadsThePartitionsThatMayHaveItsRows(t *testing.T) {
	ctx := context.Background()
	db := testenv.Connect(t, testenv.Schema(t))
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := db.Exec(ctx, sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	first := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	day := func(n int) time.Time { return first.AddDate(0, 0, n) }
	name := func(n int) string { return "logs_" + day(n).Format("20060102") }
	for n := range 40 {
		exec("SELECT millrace_add_partition('logs', $1, $2, $3)", name(n), day(n).Format(time.RFC3339), day(n+1).Format(time.RFC3339))
	}
	exec(`INSERT INTO logs (id, inserted_at, time, data) SELECT gen_random_uuid(), at, at - interval '2 s', jsonb_build_object('trace_id', md5(at::text), 'n', 1)
		FROM generate_series($1::timestamptz, $2, interval '10 min') at`, day(0), day(40).Add(-time.Second))
	// A row of day 10 that came on day 35.
	exec("INSERT INTO logs (id, inserted_at, time, data) VALUES (gen_random_uuid(), $1, $2, '{}')", day(35).Add(time.Hour), day(10).Add(12*time.Hour))
	exec("INSERT INTO late_hours (hour, from_at, to_at) VALUES ($1, $2, $3)", day(10).Add(12*time.Hour), day(35), day(36))
	path := []string{"trace_id"}
	for n := range 40 {
		exec(fmt.Sprintf("CREATE INDEX %s ON %s (%s)", name(n)+fieldindex.Suffix(path), name(n), fieldindex.Expression(path)))
	}
	exec("ANALYZE logs")
	tx, err := db.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(ctx)
	exec("SET LOCAL enable_seqscan = off")

	for _, tt := range []struct {
		name     string
		from, to time.Time
		clock    clock
		want     []int // days
	}{
		{"a day that late rows are noted for", day(10), day(11), byTime, []int{9, 10, 11, 35}},
		{"an hour that none are noted for", day(10).Add(6 * time.Hour), day(10).Add(7 * time.Hour), byTime, []int{10}},
		{"a day without any", day(20), day(21), byTime, []int{19, 20, 21}},
		{"a day by arrival", day(10), day(11), byArrival, []int{10}},
	} {
		filter, err := language.Parse("trace_id:0123456789abcdef0123456789abcdef")
		if err != nil {
			t.Fatal(err)
		}
		q := &search{from: tt.from.UnixMilli(), to: tt.to.UnixMilli(), clock: tt.clock, limit: 100}
		arrived, err := arrivedSpans(ctx, tx, q)
		if err != nil {
			t.Fatal(err)
		}
		for kind, make := range map[string]func() *statement{
			"page":   func() *statement { return pageStatement(q, arrived, 101, pageBytes) },
			"count":  func() *statement { return countStatement(q, arrived) },
			"export": func() *statement { return exportStatement(q, arrived) },
		} {
			q.filter, q.indexed = language.Query{}, nil
			plan := explain(t, db, make())
			var got []string
			for _, found := range regexp.MustCompile(`Scan (?:using \S+ )?on (logs_\d{8})\b`).FindAllStringSubmatch(plan, -1) {
				if !slices.Contains(got, found[1]) {
					got = append(got, found[1])
				}
			}
			slices.Sort(got)
			var want []string
			for _, n := range tt.want {
				want = append(want, name(n))
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s, %s: partitions (-want +got):\n%s%s", tt.name, kind, diff, plan)
			}
			if tt.clock == byTime && (!strings.Contains(plan, name(10)+"_late_idx") && !strings.Contains(plan, name(20)+"_late_idx") || !strings.Contains(plan, "_came_brin")) {
				t.Errorf("%s, %s: the late rows and the prompt ones are not both looked up:\n%s", tt.name, kind, plan)
			}
			q.filter, q.indexed = filter, language.Indexed{path}
			if plan := explain(t, db, make()); strings.Count(plan, fieldindex.Infix) < 1 {
				t.Errorf("%s, %s: the field's index is not used:\n%s", tt.name, kind, plan)
			}
		}
	}
}
