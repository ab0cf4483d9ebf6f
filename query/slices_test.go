package query

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"millrace/internal/testenv"
	"millrace/query/language"
)

// TestTheSliceBehindAGapIsShort: a minute has a thousand rows a second, and hours around it have none.
func TestTheSliceBehindAGapIsShort(t *testing.T) {
	ctx := context.Background()
	db := testenv.Connect(t, testenv.Schema(t))
	day := time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, -1)
	begin := day.Add(10 * time.Hour)
	for _, sql := range []string{
		fmt.Sprintf("SELECT millrace_add_partition('logs', 'logs_%s', '%s', '%s')", day.Format("20060102"), day.Format(time.RFC3339), day.Add(24*time.Hour).Format(time.RFC3339)),
		fmt.Sprintf(`INSERT INTO logs (id, inserted_at, time, data) SELECT gen_random_uuid(), at, at - interval '1 s', '{}'
			FROM generate_series('%s'::timestamptz, '%s', interval '1 ms') at`, begin.Format(time.RFC3339), begin.Add(time.Minute).Format(time.RFC3339)),
		"VACUUM ANALYZE logs",
	} {
		if _, err := db.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	for _, ascending := range []bool{false, true} {
		for _, c := range []clock{byTime, byArrival} {
			t.Run(fmt.Sprintf("ascending=%t,%s", ascending, c), func(t *testing.T) {
				tx, err := db.Begin(ctx)
				if err != nil {
					t.Fatal(err)
				}
				defer tx.Rollback(ctx)
				q := &search{from: day.UnixMilli(), to: day.Add(24 * time.Hour).UnixMilli(), clock: c, ascending: ascending, limit: 100}
				slices := newSlicer(q, time.Now())
				rows, steps := 0, 0
				for ; rows == 0; steps++ {
					slice, ok := slices.next()
					if !ok {
						t.Fatal("no slice has rows")
					}
					of, err := new(store).part(ctx, tx, slice, time.Time{})
					if err != nil {
						t.Fatal(err)
					}
					n, err := of.count(ctx)
					if err != nil {
						t.Fatal(err)
					}
					rows = int(n)
					slices.grow()
					if err := slices.passGap(ctx, of, rows); err != nil {
						t.Fatal(err)
					}
				}
				if most := int(firstSlice.Milliseconds()); rows > most || steps > 3 {
					t.Errorf("slice %d is the first with rows and has %d, want at most %d in the third", steps, rows, most)
				}
				if slices.length != firstSlice.Milliseconds()*growth {
					t.Errorf("the next slice is %d ms long, want %d", slices.length, firstSlice.Milliseconds()*growth)
				}
			})
		}
	}
}

func TestAWindowWithoutRowsEnds(t *testing.T) {
	ctx := context.Background()
	db := testenv.Connect(t, testenv.Schema(t))
	tx, err := db.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(ctx)
	slices := newSlicer(&search{from: 0, to: time.Now().UnixMilli(), clock: byTime, limit: 100}, time.Now())
	slice, ok := slices.next()
	if !ok {
		t.Fatal("no slice")
	}
	of, err := new(store).part(ctx, tx, slice, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	slices.grow()
	if err := slices.passGap(ctx, of, 0); err != nil {
		t.Fatal(err)
	}
	if slice, ok := slices.next(); ok {
		t.Errorf("another slice: %v to %v", slice.from, slice.to)
	}
}

// TestAnExportSkipsEveryGap has minutes with rows, and hours between them without any.
func TestAnExportSkipsEveryGap(t *testing.T) {
	ctx := context.Background()
	db := testenv.Connect(t, testenv.Schema(t))
	day := time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, -1)
	testenv.Exec(t, db, "SELECT millrace_add_partition('logs', $1, $2, $3)", "logs_"+day.Format("20060102"), day.Format(time.RFC3339), day.AddDate(0, 0, 1).Format(time.RFC3339))
	const bursts = 5
	testenv.Exec(t, db, `INSERT INTO logs (id, inserted_at, time, data) SELECT gen_random_uuid(), at, at - interval '1 s', '{}'
		FROM generate_series(1, $2) AS burst, generate_series($1::timestamptz + burst * interval '2 h', $1 + burst * interval '2 h' + interval '1 min', interval '100 ms') AS at`, day, bursts)
	tx, err := db.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(ctx)
	testenv.Exec(t, db, "SET LOCAL jit = off") // as readOnly has it
	q := &search{from: day.UnixMilli(), to: day.Add(24 * time.Hour).UnixMilli(), clock: byTime, ascending: true}
	longest, rows := int64(0), 0
	for slices := newSlicer(q, time.Now()); ; {
		slice, ok := slices.next()
		if !ok {
			break
		}
		of, err := new(store).part(ctx, tx, slice, time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		n, err := exportPart(ctx, of, func(row) error { return nil })
		if err == nil {
			err = slices.exported(ctx, of, n)
		}
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 {
			longest = max(longest, slice.to-slice.from)
			rows += n
		}
	}
	if most := (2 * time.Minute).Milliseconds(); longest > most || rows != bursts*601 {
		t.Errorf("%d rows, and the longest slice with rows has %d ms, want %d and at most %d", rows, longest, bursts*601, most)
	}
}

// TestACommonValueIsReadFromTheWindow reads from the plans that the index on data is left alone as long as rows are found.
func TestACommonValueIsReadFromTheWindow(t *testing.T) {
	ctx := context.Background()
	db := testenv.Connect(t, testenv.Schema(t))
	day := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	for _, sql := range []string{
		"SELECT millrace_add_partition('logs', 'logs_20260301', '2026-03-01', '2026-03-02')",
		`INSERT INTO logs (id, inserted_at, time, data) SELECT gen_random_uuid(), at, at - interval '1 s', '{"level":"error"}'
			FROM generate_series('2026-03-01'::timestamptz, '2026-03-01 01:00', interval '100 ms') at`,
		"CREATE INDEX logs_20260301_data_idx ON logs_20260301 USING gin (data jsonb_path_ops)",
		"VACUUM ANALYZE logs", "SET enable_seqscan = off",
	} {
		if _, err := db.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	tx, err := db.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(ctx)
	filter, err := language.Parse("level:error")
	if err != nil {
		t.Fatal(err)
	}
	slices := newSlicer(&search{from: day.UnixMilli(), to: day.Add(time.Hour).UnixMilli(), clock: byTime, filter: filter, limit: 100}, time.Now())
	slices.fences = true
	for _, found := range []bool{true, false} {
		slices.fence(found)
		slice, ok := slices.next()
		if !ok {
			t.Fatal("no slice")
		}
		arrived, err := arrivedSpans(ctx, tx, slice)
		if err != nil {
			t.Fatal(err)
		}
		plan := explain(t, db, pageStatement(slice, arrived, 101, pageBytes))
		if got := strings.Contains(plan, "_came_brin"); !got {
			t.Errorf("found %t: the index on inserted_at is not used:\n%s", found, plan)
		}
		if fenced := !strings.Contains(plan, "Bitmap Index Scan on logs_20260301_data_idx"); found && !fenced {
			t.Errorf("the index on data is used:\n%s", plan)
		}
	}
}
