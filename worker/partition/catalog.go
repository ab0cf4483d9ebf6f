package partition

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// partition is a partition as the catalog has it.
type partition struct {
	timeRange
	name    string
	pending bool   // a detach was begun and not finished
	closing bool   // it refuses rows, because it is about to be detached
	comment string // see dropMark
}

// closedAfter is how long after its end a partition still gets rows as a matter of course.
const closedAfter = time.Hour

// closed reports whether few rows come in any more.
func (p partition) closed(now time.Time) bool { return !p.to.Add(closedAfter).After(now) }

// marked reports whether retention has marked the partition, to detach and drop it.
func (p partition) marked() bool { return strings.HasPrefix(p.comment, dropMark) }

// quoted returns the partition's name as SQL takes it.
func (p partition) quoted() string { return pgx.Identifier{p.name}.Sanitize() }

const listSQL = `
SELECT c.relname, coalesce(pg_get_expr(c.relpartbound, c.oid), ''), i.inhdetachpending,
       EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND tgname = '` + refusal + `'),
       coalesce(obj_description(c.oid, 'pg_class'), '')
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = $1::text::regclass`

var boundsPattern = regexp.MustCompile(`^FOR VALUES FROM \((?:'([^']+)'|MINVALUE)\) TO \((?:'([^']+)'|MAXVALUE)\)$`)

// list returns the table's partitions in order of time, without a default partition, which has no range.
func list(ctx context.Context, conn *pgx.Conn, t table) ([]partition, error) {
	rows, err := conn.Query(ctx, listSQL, t.name)
	if err != nil {
		return nil, fmt.Errorf("list partitions of %s: %w", t.name, err)
	}
	var all []partition
	var p partition
	var bounds string
	_, err = pgx.ForEachRow(rows, []any{&p.name, &bounds, &p.pending, &p.closing, &p.comment}, func() error {
		m := boundsPattern.FindStringSubmatch(bounds)
		if m == nil {
			return nil // DEFAULT, or dropped this instant
		}
		p.from, p.to = time.Time{}, endOfTime
		var err error
		if m[1] != "" {
			if p.from, err = t.parseBound(m[1]); err != nil {
				return err
			}
		}
		if m[2] != "" {
			if p.to, err = t.parseBound(m[2]); err != nil {
				return err
			}
		}
		all = append(all, p)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list partitions of %s: %w", t.name, err)
	}
	slices.SortFunc(all, func(a, b partition) int { return a.from.Compare(b.from) })
	return all, nil
}

// hasDefault reports whether the table has a default partition.
func hasDefault(ctx context.Context, conn *pgx.Conn, t table) (has bool, err error) {
	const sql = "SELECT partdefid <> 0 FROM pg_partitioned_table WHERE partrelid = $1::text::regclass"
	err = conn.QueryRow(ctx, sql, t.name).Scan(&has)
	return has, err
}

// isDistributed reports whether Citus keeps the table's rows on other servers.
func isDistributed(ctx context.Context, conn *pgx.Conn, t table) (bool, error) {
	var citus, distributed bool
	if err := conn.QueryRow(ctx, "SELECT to_regclass('pg_dist_partition') IS NOT NULL").Scan(&citus); err != nil || !citus {
		return false, err
	}
	err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = $1::text::regclass)", t.name).Scan(&distributed)
	return distributed, err
}
