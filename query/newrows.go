package query

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/internal/eventtime"
	"millrace/query/language"
)

// visible tells which rows a snapshot of the database shows: those that transactions before xmin wrote, and those of writers.
type visible struct {
	xmin, xmax int64 // as PostgreSQL has them: every transaction before xmin has ended, none from xmax on had begun
	at         time.Time
	writers    map[int64]bool // transactions from xmin on, as far as their rows were read
}

// newRowsReader reads each row of logs once, by event time: first what is there from some time on, then with each snapshot what the one before did not
// show. It knows no clock: a row that commits late is found by the transaction that wrote it, as package tail finds it.
type newRowsReader struct {
	last    *visible // nil: nothing was read
	from    int64    // rows from that time on, in Unix milliseconds, were read, and no others
	history []visible
}

const (
	// unnotedAge is the age up to which a worker stores rows without a note in late_changes, and some time for the clocks. Package tail has the same.
	unnotedAge = 35 * time.Second
	// unknownReach is how far back rows are looked for while nobody knows when the oldest transaction began.
	unknownReach = 10 * time.Minute
)

const (
	visibleSQL = `SELECT pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint, clock_timestamp() FROM pg_current_snapshot() AS s`

	// newSQL keeps rows that transactions from $1 on wrote, without those of the transactions $2. age counts back from the present, so that it does
	// not matter when 32 bits have gone round.
	newSQL       = ` age(xmin) <= (SELECT age($1::text::xid)) AND NOT xmin = ANY($2::text[]::xid[])`
	lateNewSQL   = `SELECT DISTINCT CASE WHEN isfinite(hour) THEN hour END FROM late_changes WHERE` + newSQL // null: so many hours that they are not noted one by one
	newColumns   = `SELECT xmin, id, ` + language.TimeSQL + `, inserted_at, data::text FROM logs WHERE` + newSQL
	sinceSQL     = newColumns + ` AND inserted_at >= $3`
	betweenSQL   = newColumns + ` AND inserted_at >= $3 AND inserted_at < $4`
	lateTimesSQL = newColumns + ` AND time >= $3 AND ` + eventtime.LateSQL
)

// low32 writes the 32 bits of a transaction id that a row keeps.
func low32(x int64) string { return strconv.FormatInt(x&0xffffffff, 10) }

// full returns all 64 bits of a transaction id before xmax.
func (v *visible) full(x uint32) int64 {
	full := v.xmax&^0xffffffff | int64(x)
	if full >= v.xmax {
		full -= 1 << 32
	}
	return full
}

// foundNew is a row that a newRowsReader found. Its data is good until give returns.
type foundNew struct {
	id               uuid.UUID
	time, insertedAt time.Time
	data             []byte
}

// A transaction of anybody in the cluster of databases that runs for very long makes each pass look at all that came since it began, and at very many writers.
// Beyond these bounds the reader gives up: nobody who waits for it is the better for it. mostReach is more than a reader that begins has.
const (
	mostWriters = 20_000
	mostReach   = 15 * time.Minute
)

// errBeginAnew says that nobody can tell which rows are new.
var errBeginAnew = errors.New("nobody can tell which rows are new")

// pass calls give with the rows that the transaction's snapshot shows and the one before did not, from r.from on. Then it calls it with all rows from extendTo
// on up to r.from. r stays as it is. The error is errBeginAnew if nobody can tell what is new.
func (r *newRowsReader) pass(ctx context.Context, s *store, tx pgx.Tx, extendTo int64, give func(foundNew) error) (n newRowsReader, err error) {
	now := visible{writers: make(map[int64]bool)}
	if err := tx.QueryRow(ctx, visibleSQL).Scan(&now.xmin, &now.xmax, &now.at); err != nil {
		return n, err
	}
	n = *r
	n.history = slices.Clone(r.history)
	if r.last != nil {
		if now.xmax < r.last.xmax || len(r.last.writers) > mostWriters || now.at.Sub(n.reach()) > mostReach {
			return n, errBeginAnew
		}
		for x := range r.last.writers {
			if x >= now.xmin {
				now.writers[x] = true
			}
		}
		if err := r.findNew(ctx, s, tx, &now, &n, give); err != nil {
			return n, err
		}
	} else {
		n.history = []visible{{xmax: now.xmin, at: now.at.Add(-unknownReach)}}
	}
	if extendTo < n.from {
		extended, err := n.extend(ctx, s, tx, &now, extendTo, give)
		if err != nil {
			return n, err
		}
		if extended {
			n.from = extendTo
		}
	}
	n.history = append(n.history, visible{xmax: now.xmax, at: now.at})
	n.last = &now
	return n, nil
}

// reach returns the time from which on new rows can be without a note in late_changes: no transaction that ran at the last snapshot had begun then.
func (r *newRowsReader) reach() time.Time {
	for len(r.history) > 1 && r.history[1].xmax <= r.last.xmin {
		r.history = r.history[1:]
	}
	return r.history[0].at.Add(-unnotedAge)
}

// byIndexes keeps the planner to the indexes. Its statistics know nothing of the rows that just came.
const byIndexes = "SET LOCAL enable_seqscan = off"

// findNew gives the new rows.
func (r *newRowsReader) findNew(ctx context.Context, s *store, tx pgx.Tx, now *visible, n *newRowsReader, give func(foundNew) error) error {
	oldest, seen := low32(r.last.xmin), make([]string, 0, len(r.last.writers))
	for x := range r.last.writers {
		seen = append(seen, low32(x))
	}
	reach := n.reach()
	rows, err := tx.Query(ctx, lateNewSQL, oldest, seen)
	if err != nil {
		return err
	}
	hours, err := pgx.CollectRows(rows, pgx.RowTo[*time.Time])
	if err != nil {
		return err
	}
	var late spans
	for _, hour := range hours {
		if hour == nil {
			return errBeginAnew
		}
		late = append(late, span{*hour, hour.Add(time.Hour)})
	}
	if _, err := tx.Exec(ctx, byIndexes); err != nil {
		return err
	}
	from := time.UnixMilli(r.from)
	giveNew := func(f foundNew) error {
		if f.time.Before(from) {
			return nil
		}
		return give(f)
	}
	// Rows lie at their time or up to now behind it, or have an index on their time.
	for _, l := range late.merge(maxSpans) {
		l.from, l.to = maxTime(l.from, from), minTime(l.to, reach)
		if l.from.Before(l.to) {
			if err := readNew(ctx, tx, now, giveNew, betweenSQL, oldest, seen, l.from, l.to); err != nil {
				return err
			}
		}
	}
	if edge := minTime(from, reach); len(late) > 0 {
		giveEarly := func(f foundNew) error {
			if !f.insertedAt.Before(edge) {
				return nil // found by where it lies
			}
			return giveNew(f)
		}
		if err := readNew(ctx, tx, now, giveEarly, lateTimesSQL, oldest, seen, from); err != nil {
			return err
		}
	}
	return readNew(ctx, tx, now, giveNew, sinceSQL, oldest, seen, reach)
}

// readNew gives the rows of a statement that has the columns of newColumns, and notes who wrote them.
func readNew(ctx context.Context, tx pgx.Tx, now *visible, give func(foundNew) error, sql string, args ...any) error {
	rows, err := tx.Query(ctx, sql, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	var f foundNew
	var writer, lastWriter uint32
	for rows.Next() {
		raw := rows.RawValues()
		if err := rows.Scan(&writer, nil, &f.time, &f.insertedAt, nil); err != nil {
			return err
		}
		f.id, f.data = uuid.UUID(raw[1]), raw[4]
		if writer != lastWriter {
			lastWriter = writer
			if x := now.full(writer); x >= now.xmin {
				now.writers[x] = true
			}
		}
		if err := give(f); err != nil {
			return err
		}
	}
	return rows.Err()
}

// extend gives all rows from a time on up to r.from. extended is false if files of the archive alone have some of them: those it can't give.
func (r *newRowsReader) extend(ctx context.Context, s *store, tx pgx.Tx, now *visible, from int64, give func(foundNew) error) (extended bool, err error) {
	q := &search{from: from, to: r.from, clock: byTime}
	p, err := s.logsPart(ctx, tx, q, time.Time{})
	if err != nil || len(p.files.files) > 0 {
		return false, err
	}
	st := allOfStatement(q, p.arrived)
	return true, readNew(ctx, tx, now, give, st.sql.String(), st.args...)
}

// allOfStatement selects all rows of a window by time, with the columns of newColumns. These are the three selects of statement.found.
func allOfStatement(q *search, arrived spans) *statement {
	s := new(statement)
	from, to, upperOp := q.bounds()
	s.sql.WriteString("SELECT xmin, id, time, inserted_at, data::text FROM logs")
	s.where(q, "time")
	fmt.Fprintf(&s.sql, " AND %s AND inserted_at >= %s AND inserted_at %s %s", promptSQL, s.args.Add(from), upperOp, s.args.Add(to.Add(promptness)))
	s.sql.WriteString(" UNION ALL SELECT xmin, id, time, inserted_at, data::text FROM logs")
	s.where(q, "time")
	s.sql.WriteString(" AND time <> " + eventtime.NoTimeSQL + " AND " + eventtime.LateSQL)
	s.came(arrived)
	s.sql.WriteString(" UNION ALL SELECT xmin, id, inserted_at, inserted_at, data::text FROM logs")
	s.where(q, "inserted_at")
	s.sql.WriteString(" AND time = " + eventtime.NoTimeSQL + " AND " + eventtime.LateSQL)
	return s
}

func minTime(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
