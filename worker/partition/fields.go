package partition

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/fieldindex"
)

// fieldIndexesSQL lists the indexes of fields that partitions of a table have. An index of somebody else's is not among them, nor is one that a
// REINDEX CONCURRENTLY is making: their names end otherwise.
const fieldIndexesSQL = `SELECT c.relname, xc.relname, x.indisvalid FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
	JOIN pg_index x ON x.indrelid = c.oid JOIN pg_class xc ON xc.oid = x.indexrelid
	WHERE i.inhparent = $1::text::regclass AND starts_with(xc.relname, c.relname || $2)
	  AND substr(xc.relname, length(c.relname || $2) + 1) ~ '^[0-9a-f]{8}$'`

// fieldIndex is the index of a field that a partition has.
type fieldIndex struct {
	partition, name string
	valid           bool
}

// indexFields gives all partitions the indexes of the fields, the newest partition first, and drops those that no field asks for. The
// search service learns of the fields by a note in settings.
func (x *Indexer) indexFields(ctx context.Context, conn *pgx.Conn, all []partition) error {
	note, _ := json.Marshal(x.Fields) // strings always have a JSON form
	if _, err := conn.Exec(ctx, noteSQL, "index_fields", string(note)); err != nil {
		return err
	}
	rows, err := conn.Query(ctx, fieldIndexesSQL, x.Partitions.logs.name, fieldindex.Infix)
	if err != nil {
		return err
	}
	have := make(map[string]fieldIndex) // by name
	var index fieldIndex
	_, err = pgx.ForEachRow(rows, []any{&index.partition, &index.name, &index.valid}, func() error {
		have[index.name] = index
		return nil
	})
	if err != nil {
		return err
	}
	wanted := make(map[string]bool)
	for _, path := range x.Fields {
		wanted[fieldindex.Suffix(path)] = true
	}
	var failed []error
	for name, index := range have {
		if index.valid && wanted[strings.TrimPrefix(name, index.partition)] {
			continue
		}
		err := x.dropIndex(ctx, conn, name)
		if err == nil {
			x.Log.Info("dropped an index of a field that is no longer asked for, or was not finished", "index", name)
			delete(have, name)
		}
		failed = append(failed, err)
	}
	for _, p := range slices.Backward(all) {
		if p.pending || !x.Partitions.logs.ownName(p.name) || x.Retention > 0 && !p.to.After(x.Now().Add(-x.Retention)) {
			continue
		}
		for _, path := range x.Fields {
			name := p.name + fieldindex.Suffix(path)
			if _, has := have[name]; has {
				continue
			}
			if err := x.indexField(ctx, conn, p, path, name); err != nil {
				failed = append(failed, fmt.Errorf("%s: %w", name, err))
			}
			if conn.IsClosed() || ctx.Err() != nil {
				return errors.Join(failed...)
			}
		}
	}
	return errors.Join(failed...)
}

// indexField builds the index of a field for a partition, unless the partition has rows and the streams are too busy.
func (x *Indexer) indexField(ctx context.Context, conn *pgx.Conn, p partition, path []string, name string) error {
	var empty bool
	if err := conn.QueryRow(ctx, "SELECT pg_relation_size($1::text::regclass) = 0", p.quoted()).Scan(&empty); err != nil {
		return err
	}
	calm := empty || x.Calm(ctx)
	if x.fieldsSince.IsZero() {
		x.fieldsSince = x.Now()
	}
	if !calm && x.Now().Before(x.fieldsSince.Add(indexPatience)) {
		return nil
	}
	if _, err := conn.Exec(ctx, buildProcesses(conn, calm)); err != nil {
		return err
	}
	began := time.Now()
	err := execPatiently(ctx, conn, 0, fmt.Sprintf("CREATE INDEX CONCURRENTLY %s ON %s (%s)",
		pgx.Identifier{name}.Sanitize(), p.quoted(), fieldindex.Expression(path)))
	if err == nil && !empty {
		x.Log.Info("indexed a field", "field", strings.Join(path, "."), "table", p.name, "took", time.Since(began).Round(time.Millisecond))
	}
	return err
}
