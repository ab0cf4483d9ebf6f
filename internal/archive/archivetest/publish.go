package archivetest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/internal/archive"
)

// Publish copies the rows that the table logs has of a range to files, and publishes them, as the worker does. The files of before are superseded,
// unless the new ones come beside them: then the table must have no row that those have.
func Publish(tb testing.TB, db *pgx.Conn, store archive.Store, from, to time.Time, beside bool) {
	tb.Helper()
	ctx := context.Background()
	generation := 0
	if err := db.QueryRow(ctx, "SELECT coalesce(max(generation), 0) + 1 FROM archive_files WHERE from_at = $1", from).Scan(&generation); err != nil {
		tb.Fatal(err)
	}
	fields, err := db.Query(ctx, "SELECT name, kind FROM archive_fields")
	if err != nil {
		tb.Fatal(err)
	}
	known := make(map[string]archive.Kind)
	var name, kind string
	if _, err := pgx.ForEachRow(fields, []any{&name, &kind}, func() (err error) {
		var ok bool
		if known[name], ok = archive.ParseKind(kind); !ok {
			err = fmt.Errorf("no kind %q", kind)
		}
		return err
	}); err != nil {
		tb.Fatal(err)
	}
	registry := archive.NewRegistry(known)
	if err := pgx.BeginTxFunc(ctx, db, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, "SELECT id, inserted_at, time, data::text FROM logs WHERE inserted_at >= $1 AND inserted_at < $2 ORDER BY inserted_at, id", from, to)
		if err != nil {
			return err
		}
		part := uuid.New()
		entries, err := archive.Copy(ctx, store, func(n int) (string, error) {
			return archive.FileName(from, generation, part, n), nil
		}, registry, func(yield func(*archive.Row, error) bool) {
			var row archive.Row
			var came, when time.Time
			_, err := pgx.ForEachRow(rows, []any{&row.ID, &came, &when, &row.Data}, func() error {
				if row.InsertedAt, row.Time = came.UnixMicro(), when.UnixMicro(); !yield(&row, nil) {
					return context.Canceled
				}
				return nil
			})
			if err != nil {
				yield(nil, err)
			}
		})
		if err != nil {
			return err
		}
		for name, kind := range registry.Kinds() {
			if _, err := tx.Exec(ctx, "INSERT INTO archive_fields VALUES ($1, $2) ON CONFLICT DO NOTHING", name, kind.String()); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, `INSERT INTO archive_ranges (from_at, to_at, generation, changes)
			VALUES ($1, $2, $3, `+archive.ChangesSQL("$1::timestamptz", "$2::timestamptz")+`)
			ON CONFLICT (from_at) DO UPDATE SET generation = excluded.generation, changes = excluded.changes`, from, to, generation); err != nil {
			return err
		}
		if !beside {
			if _, err := tx.Exec(ctx, "UPDATE archive_files SET state = 'superseded', state_at = now() WHERE from_at = $1 AND state = 'published'", from); err != nil {
				return err
			}
		}
		for _, e := range entries {
			b := e.Bounds()
			if _, err := tx.Exec(ctx, `INSERT INTO archive_files (name, from_at, to_at, generation, state, rows, bytes, tail_bytes, first_at, last_at, first_time, last_time)
				VALUES ($1, $2, $3, $4, 'published', $5, $6, $7, $8, $9, $10, $11)`, e.Name, from, to, generation, e.Rows, e.Bytes, e.TailBytes,
				time.UnixMicro(b.MinCame), time.UnixMicro(b.MaxCame), time.UnixMicro(b.MinTime), time.UnixMicro(b.MaxTime)); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		tb.Fatal(err)
	}
}
