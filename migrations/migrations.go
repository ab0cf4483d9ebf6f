// Package migrations holds the schema as numbered pairs of SQL files and brings a database up or down.
//
// Every step is one transaction that also writes schema_migrations, under an advisory lock, so that any number
// of workers may start at once and a step that fails leaves nothing behind. It also makes the database users among
// whom the rights to it can be divided. It starts no goroutine.
package migrations

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

//go:embed *.up.sql *.down.sql
var files embed.FS

//go:embed roles.sql
var roles string

//go:embed grants.sql
var grants string

// lockID is the key of the advisory lock, "millrace" in ASCII.
const lockID = 0x6d696c6c72616365

// Migration is one step of the schema. AppliedAt is zero while it has not been applied.
type Migration struct {
	Version   int
	Name      string
	AppliedAt time.Time

	up, down string
}

// Up applies all steps that are missing and returns them. It waits for another Up or Down to finish. If nothing is missing it
// writes nothing, so that a user who may not write can call it.
func Up(ctx context.Context, conn *pgx.Conn) ([]Migration, error) {
	var done []Migration
	err := locked(ctx, conn, func(all []Migration) error {
		for _, m := range all {
			if !m.AppliedAt.IsZero() {
				continue
			}
			if err := apply(ctx, conn, m, m.up,
				"INSERT INTO schema_migrations (version, name) VALUES ($1, $2)", m.Version, m.Name); err != nil {
				return err
			}
			done = append(done, m)
		}
		if len(done) == 0 {
			return nil
		}
		if _, err := conn.Exec(ctx, grants); err != nil {
			return fmt.Errorf("migrations: grants: %w", err)
		}
		return nil
	})
	return done, err
}

// Roles makes the database users millrace_owner, millrace_writer and millrace_reader where they are missing, gives
// the tables to the first and the others the rights that the worker and the query service need. It needs the whole
// schema, and the rights of a superuser, or of the database's owner with CREATEROLE. It may be run again.
func Roles(ctx context.Context, conn *pgx.Conn) error {
	return locked(ctx, conn, func(all []Migration) error {
		if err := pending(all); err != nil {
			return err
		}
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			// A table changes hands under a lock that waits for every statement on it, and all others behind it.
			_, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '10s';"+roles+grants)
			return err
		})
		if err != nil {
			return fmt.Errorf("roles: %w", err)
		}
		return nil
	})
}

// Down takes the latest step back and returns it. It returns nil if no step is applied. What the step had made is dropped with
// all its rows.
func Down(ctx context.Context, conn *pgx.Conn) (*Migration, error) {
	var undone *Migration
	err := locked(ctx, conn, func(all []Migration) error {
		for i := len(all) - 1; i >= 0; i-- {
			m := all[i]
			if m.AppliedAt.IsZero() {
				continue
			}
			undone = &m
			return apply(ctx, conn, m, m.down, "DELETE FROM schema_migrations WHERE version = $1", m.Version)
		}
		return nil
	})
	return undone, err
}

// Status returns all steps, oldest first.
func Status(ctx context.Context, conn *pgx.Conn) ([]Migration, error) {
	all, err := load()
	if err != nil {
		return nil, err
	}
	var present bool
	if err := conn.QueryRow(ctx, "SELECT to_regclass('schema_migrations') IS NOT NULL").Scan(&present); err != nil || !present {
		return all, err
	}
	if err := refuseForeign(ctx, conn); err != nil {
		return all, err
	}
	rows, err := conn.Query(ctx, "SELECT version, name, applied_at FROM schema_migrations ORDER BY version")
	if err != nil {
		return nil, err
	}
	applied, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (m Migration, err error) {
		return m, row.Scan(&m.Version, &m.Name, &m.AppliedAt)
	})
	for _, a := range applied {
		if a.Version > len(all) {
			return nil, fmt.Errorf("the database has migration %d (%s), this program knows %d: it is older than the schema", a.Version, a.Name, len(all))
		}
		if a.Version < 1 {
			return nil, fmt.Errorf("the database has migration %d (%s), and migrations begin with 1: schema_migrations is another program's", a.Version, a.Name)
		}
		all[a.Version-1].AppliedAt = a.AppliedAt
	}
	return all, err
}

// Pending returns an error unless the schema is the one that this program was built for.
func Pending(ctx context.Context, conn *pgx.Conn) error {
	all, err := Status(ctx, conn)
	if err != nil {
		return err
	}
	return pending(all)
}

// pending returns an error if one of the steps is not applied.
func pending(all []Migration) error {
	for _, m := range all {
		if m.AppliedAt.IsZero() {
			return fmt.Errorf("migration %d (%s) is not applied: run millrace migrate up", m.Version, m.Name)
		}
	}
	return nil
}

// locked calls f with all steps while it holds the advisory lock, and returns its error. It makes schema_migrations if it is
// missing, and refuses a database that Millrace can't use.
func locked(ctx context.Context, conn *pgx.Conn, f func([]Migration) error) (err error) {
	if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock($1)", int64(lockID)); err != nil {
		return fmt.Errorf("migrations: lock: %w", err)
	}
	defer func() {
		_, unlockErr := conn.Exec(context.WithoutCancel(ctx), "SELECT pg_advisory_unlock($1)", int64(lockID))
		err = errors.Join(err, unlockErr)
	}()
	const table = `CREATE TABLE schema_migrations (
		version int PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())`
	var encoding string
	var present bool
	const state = "SELECT current_setting('server_encoding'), to_regclass('schema_migrations') IS NOT NULL"
	if err := conn.QueryRow(ctx, state).Scan(&encoding, &present); err != nil {
		return fmt.Errorf("migrations: %w", err)
	}
	if encoding != "UTF8" {
		return fmt.Errorf("migrations: the database's encoding is %s; JSON needs UTF8", encoding)
	}
	if err := refuseForeign(ctx, conn); err != nil {
		return fmt.Errorf("migrations: %w", err)
	}
	if !present {
		if _, err := conn.Exec(ctx, table); err != nil {
			return fmt.Errorf("migrations: %w", err)
		}
	}
	all, err := Status(ctx, conn)
	if err != nil {
		return fmt.Errorf("migrations: %w", err)
	}
	return f(all)
}

// refuseForeign returns an error if another program has made schema_migrations, as Rails and golang-migrate do, or if no step is
// applied and a table of Millrace's names is there.
func refuseForeign(ctx context.Context, conn *pgx.Conn) error {
	const columns = `SELECT coalesce(string_agg(attname || ' ' || format_type(atttypid, NULL), ', ' ORDER BY attnum), ''),
		coalesce(array_agg(attname::text) @> ARRAY['version', 'name', 'applied_at'], false)
		FROM pg_attribute WHERE attrelid = to_regclass('schema_migrations') AND attnum > 0 AND NOT attisdropped`
	const elsewhere = "use another database, or another schema by search_path in the URL's options (…?search_path=millrace)"
	var found string
	var own bool
	if err := conn.QueryRow(ctx, columns).Scan(&found, &own); err != nil {
		return err
	}
	if found != "" {
		if !own {
			return fmt.Errorf("the table schema_migrations is another program's, it has (%s) and not (version, name, applied_at): %s", found, elsewhere)
		}
		var applied bool
		if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM schema_migrations)").Scan(&applied); err != nil || applied {
			return err
		}
	}
	var names string
	const taken = `SELECT coalesce(string_agg(name, ', '), '') FROM unnest(ARRAY['logs', 'ledger', 'dead_letters', 'late_changes']) AS name
		WHERE to_regclass(name) IS NOT NULL`
	if err := conn.QueryRow(ctx, taken).Scan(&names); err != nil {
		return err
	}
	if names != "" {
		return fmt.Errorf("the database has tables of another program under names that Millrace needs, %s: %s", names, elsewhere)
	}
	return nil
}

// apply runs a step's statements and the note of it in one transaction.
func apply(ctx context.Context, conn *pgx.Conn, m Migration, statements, note string, args ...any) error {
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, statements); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, note, args...)
		return err
	})
	if err != nil {
		return fmt.Errorf("migration %d (%s): %w", m.Version, m.Name, err)
	}
	return nil
}

// load returns the steps of the embedded files, NNNN_name.up.sql and NNNN_name.down.sql. They are numbered from 1 without gaps.
func load() ([]Migration, error) {
	names, err := fs.Glob(files, "*.up.sql") // sorted
	if err != nil {
		return nil, err
	}
	var all []Migration
	for i, file := range names {
		base := strings.TrimSuffix(file, ".up.sql")
		number, name, _ := strings.Cut(base, "_")
		version, err := strconv.Atoi(number)
		if err != nil || version != i+1 {
			return nil, fmt.Errorf("migrations: %s should be number %d", file, i+1)
		}
		up, err := files.ReadFile(file)
		if err != nil {
			return nil, err
		}
		down, err := files.ReadFile(base + ".down.sql")
		if err != nil {
			return nil, err
		}
		all = append(all, Migration{Version: version, Name: name, up: string(up), down: string(down)})
	}
	return all, nil
}
