package query

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/archive"
	"millrace/internal/testenv"
)

// BenchmarkCatalogOfAMillionFiles reads what a search needs of a made-up catalog: a million ranges of eight minutes, which are fifteen years, each
// with a file. Some files have rows whose events were a month before.
func BenchmarkCatalogOfAMillionFiles(b *testing.B) {
	const files = 1_000_000
	url := testenv.Schema(b)
	db := testenv.Connect(b, url)
	end := time.Now().UTC().Truncate(time.Hour).Add(-time.Hour)
	testenv.Exec(b, db, `INSERT INTO archive_ranges (from_at, to_at, generation, changes, files_only)
		SELECT $1::timestamptz - i * interval '8 minutes', $1::timestamptz - (i - 1) * interval '8 minutes', 1, 0, i > 5000 FROM generate_series(1, $2::int) AS i`, end, files)
	testenv.Exec(b, db, `INSERT INTO archive_files (name, from_at, to_at, generation, state, rows, bytes, tail_bytes, first_id, last_id, first_at, last_at, first_time, last_time)
		SELECT 'v1/logs/' || to_char(from_at, 'YYYY/MM/DD/HH24-MI'), from_at, to_at, 1, 'published', 1000000, 35000000, 1600000, gen_random_uuid(), gen_random_uuid(),
			from_at, to_at - interval '1 ms', from_at - CASE WHEN extract(epoch FROM from_at)::bigint / 480 % 1000 = 0 THEN interval '30 days' ELSE interval '1 minute' END, to_at
		FROM archive_ranges`)
	testenv.Exec(b, db, `INSERT INTO late_changes (hour, slot) SELECT date_trunc('hour', $1::timestamptz) + i * interval '1 hour', i % 32 FROM generate_series(-20000, -100) AS i`, end)
	testenv.Exec(b, db, "ANALYZE; SET jit = off") // as readOnly has it
	f := newFiles(archive.Folder(b.TempDir()))
	for _, c := range []struct {
		name   string
		before time.Duration // from the window's end to now
		length time.Duration
	}{
		{"an hour, the last", 0, time.Hour},
		{"a day, the last", 0, 24 * time.Hour},
		{"an hour, a year ago", 365 * 24 * time.Hour, time.Hour},
		{"an hour, fourteen years ago", 14 * 365 * 24 * time.Hour, time.Hour},
		{"a day, a year ago", 365 * 24 * time.Hour, 24 * time.Hour},
		{"thirty days, a year ago", 365 * 24 * time.Hour, 30 * 24 * time.Hour},
	} {
		for _, axis := range []clock{byArrival, byTime} {
			b.Run(c.name+" by "+string(axis), func(b *testing.B) {
				window := span{end.Add(-c.before - c.length), end.Add(-c.before)}
				found := 0
				for b.Loop() {
					if err := pgx.BeginTxFunc(b.Context(), db, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
						all, err := f.read(b.Context(), tx, axis, window, window, false)
						found = len(all.files)
						return err
					}); err != nil {
						b.Fatal(err)
					}
				}
				if least := int(c.length / (8 * time.Minute)); found < least {
					b.Fatalf("found %d files, want %d at least", found, least)
				}
				b.ReportMetric(float64(found), "files")
				b.ReportMetric(float64(b.Elapsed().Microseconds())/1000/float64(b.N), "ms/op")
			})
		}
	}
}
