package partition

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/testenv"
)

// BenchmarkRoundsOverAMillionRanges runs the statements by which workers look after a partition, with a made-up catalog of a million ranges of eight
// minutes, which are fifteen years.
func BenchmarkRoundsOverAMillionRanges(b *testing.B) {
	db := workerConn(b, testenv.Schema(b))
	end := time.Now().UTC().Truncate(24 * time.Hour)
	exec(b, db, `INSERT INTO archive_ranges (from_at, to_at, generation, changes, files_only)
		SELECT $1::timestamptz - i * interval '8 minutes', $1::timestamptz - (i - 1) * interval '8 minutes', 1, 0, i > 5000 FROM generate_series(1, 1000000) AS i`, end)
	exec(b, db, "ANALYZE archive_ranges")
	day := timeRange{end.Add(-48 * time.Hour), end.Add(-24 * time.Hour)}
	for name, run := range map[string]func(tx pgx.Tx) error{
		"the ranges of a partition": func(tx pgx.Tx) error {
			ranges, err := archivedRanges(b.Context(), tx.Conn(), day, "")
			if len(ranges) != 180 {
				b.Fatalf("%d ranges, want 180", len(ranges))
			}
			return err
		},
		"whether somebody reads in an older snapshot": func(tx pgx.Tx) error {
			var older bool
			return tx.QueryRow(b.Context(), olderSnapshotSQL, day.from, day.to).Scan(&older)
		},
		"a batch noted": func(tx pgx.Tx) error {
			_, err := tx.Exec(b.Context(), NoteLateSQL, []time.Time{time.Now()})
			return err
		},
		"a partition dropped": func(tx pgx.Tx) error { return noteLoss(b.Context(), tx, day) },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				tx, err := db.Begin(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				if err := run(tx); err != nil {
					b.Fatal(err)
				}
				if err := tx.Rollback(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/1000/float64(b.N), "ms/op")
		})
	}
}
