package query

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/internal/eventtime"
	"millrace/internal/frame"
	"millrace/query/language"
)

// pageBytes ends a page early. When its rows have this much data, the next row begins another page. 1000 records of the usual
// size (300 bytes) are a tenth of it.
const pageBytes = 4 << 20

// statement is SQL under construction.
type statement struct {
	sql  strings.Builder
	args language.Args
}

// row is a row of logs.
type row struct {
	id         uuid.UUID
	time       time.Time // when its event happened, as the record tells
	insertedAt time.Time
	data       []byte // the record as PostgreSQL writes it
}

// at returns the row's time by a clock.
func (r row) at(c clock) time.Time {
	if c == byArrival {
		return r.insertedAt
	}
	return r.time
}

// appendJSON appends the row as answers have it.
func (r row) appendJSON(out []byte) []byte {
	out = append(out, `{"id":"`...)
	out = append(out, r.id.String()...)
	out = append(out, `","time":"`...)
	out = appendTime(out, r.time)
	out = append(out, `","inserted_at":"`...)
	out = r.insertedAt.UTC().AppendFormat(out, timeFormat)
	out = append(out, `","data":`...)
	out = append(out, r.data...)
	return append(out, '}')
}

// appendTime appends a time, to the microsecond unless it is a whole millisecond.
func appendTime(out []byte, at time.Time) []byte {
	format := timeFormat
	if at.Nanosecond()%int(time.Millisecond) != 0 {
		format = "2006-01-02T15:04:05.000000Z"
	}
	return at.UTC().AppendFormat(out, format)
}

// pageRows calls give with the rows of a page. It returns how far it came, and the position behind the last row, or nil if no more rows
// follow. A row's data is good until give returns. If a slice is tried again, its rows come again: takeBack is called with how many were
// given that don't count.
func (s *store) pageRows(ctx context.Context, q *search, give func(row) error, takeBack func(rows int)) (next *position, reached progress, err error) {
	p := rowsPage{limit: q.limit, bytes: pageBytes, give: give}
	if q.after != nil {
		p.end = *q.after
	}
	reached, err = s.walk(ctx, q, true, func(ctx context.Context, of *part) (rows int, enough bool, err error) {
		before := p
		if err = p.read(ctx, of); err != nil {
			takeBack(before.limit - p.limit)
			p = before
		}
		return before.limit - p.limit, p.isFull, err
	})
	switch {
	case err != nil:
		return nil, reached, err
	case p.isFull:
		reached.reached = p.end.at.UnixMilli()
		return &p.end, reached, nil
	case !reached.complete && reached.slices == 0 && q.after != nil: // no further than the page before
		return q.after, reached, nil
	case !reached.complete:
		behind := q.behind(reached.reached)
		return &behind, reached, nil
	}
	return nil, reached, nil
}

// rowsPage is a page that is being filled.
type rowsPage struct {
	limit  int // rows that still fit
	bytes  int // bytes of data that still fit
	give   func(row) error
	isFull bool     // another row follows
	end    position // behind the last row; end.given counts that row too
}

// read reads the rows of a slice into the page.
func (p *rowsPage) read(ctx context.Context, of *part) error {
	for r, err := range of.page(ctx, p.limit+1, p.bytes) {
		if err != nil {
			return err
		}
		at := r.at(of.search.clock)
		isSame := p.end.id == r.id && p.end.at.Equal(at)
		if p.limit == 0 || p.bytes <= 0 || r.data == nil { // the first row of the next page
			p.isFull = true
			if !isSame {
				p.end.given = 0
			}
			return nil
		}
		if !isSame {
			p.end = position{at: at, id: r.id}
		}
		p.end.given++
		p.limit--
		p.bytes -= len(r.data)
		if err := p.give(r); err != nil {
			return err
		}
	}
	return nil
}

// exportRows calls give with all rows of a window, in order. It may take as long as timeout. A row's data is good until
// give returns. As for a page, the rows are looked for in slices. Sorting millions of rows at once would fill the database's disk and
// keep the client waiting.
func (s *store) exportRows(ctx context.Context, q *search, timeout time.Duration, give func(row) error) error {
	q.indexed = s.indexed(ctx)
	return s.readFor(ctx, timeout, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, exportMemory); err != nil {
			return err
		}
		deadline := time.Now().Add(timeout)
		var known catalog
		left := q.limit // of the rows; meaningless without a limit
		for slices := newSlicer(q, time.Now()); ; {
			slice, ok := slices.next()
			if !ok {
				return nil
			}
			if q.limit > 0 {
				slice.limit = left
			}
			of, err := s.slice(ctx, tx, slice, deadline, &known)
			if err != nil {
				return err
			}
			n, err := exportPart(ctx, of, give)
			if err != nil {
				return err
			}
			if left -= n; q.limit > 0 && left == 0 {
				return nil
			}
			if err := slices.exported(ctx, of, n); err != nil {
				return err
			}
		}
	})
}

// exportMemory has the rows of a slice sorted in memory.
const exportMemory = "SET LOCAL work_mem = '64MB'"

// exportPart calls give with the rows of a part, as many as its search's limit, and returns how many they are.
func exportPart(ctx context.Context, of *part, give func(row) error) (n int, err error) {
	for r, err := range of.all(ctx) {
		if err != nil {
			return n, err
		}
		if err := give(r); err != nil {
			return n, err
		}
		if n++; n == of.search.limit {
			break
		}
	}
	return n, nil
}

// rowsOf returns the rows of a statement that selects their id, time, inserted_at and data. A row's data is good until the next row.
func rowsOf(ctx context.Context, tx pgx.Tx, st *statement) iter.Seq2[row, error] {
	return func(yield func(row, error) bool) {
		rows, err := tx.Query(ctx, st.sql.String(), st.args...)
		if err != nil {
			yield(row{}, err)
			return
		}
		defer rows.Close()
		var r row
		for rows.Next() {
			raw := rows.RawValues()
			if err := rows.Scan(nil, &r.time, &r.insertedAt, nil); err != nil {
				yield(row{}, err)
				return
			}
			r.id, r.data = uuid.UUID(raw[0]), raw[3]
			if !yield(r, nil) {
				return
			}
		}
		if err := rows.Err(); err != nil {
			yield(row{}, err)
		}
	}
}

// countRows returns how many rows a window has.
func (s *store) countRows(ctx context.Context, q *search) (n int64, err error) {
	err = s.readPart(ctx, q, func(ctx context.Context, of *part) (err error) {
		n, err = of.count(ctx)
		return err
	})
	return n, err
}

// countOf returns the number that a statement selects. PostgreSQL may send it and fail then, for example because the time is over: such a
// number is none.
func countOf(ctx context.Context, tx pgx.Tx, st *statement) (n int64, err error) {
	if err = tx.QueryRow(ctx, st.sql.String(), st.args...).Scan(&n); err != nil {
		return 0, err
	}
	return n, nil
}

// rowByID returns the row with an id, or pgx.ErrNoRows. An id that no row has may be a client's key: then it returns the
// first row under that key.
func (s *store) rowByID(ctx context.Context, id uuid.UUID) (found row, err error) {
	err = s.read(ctx, func(ctx context.Context, tx pgx.Tx) (err error) {
		for _, id := range []uuid.UUID{id, frame.BaseOfKey(id)} {
			found, err = s.rowIn(ctx, tx, id)
			if !errors.Is(err, pgx.ErrNoRows) {
				break
			}
		}
		return err
	})
	return found, err
}

// rowIn returns the row with an id, or pgx.ErrNoRows. Its time is the id's.
func (s *store) rowIn(ctx context.Context, tx pgx.Tx, id uuid.UUID) (row, error) {
	if s.files == nil {
		return rowOfTable(ctx, tx, id)
	}
	at := frame.Time(id).UnixMilli()
	of, err := s.logsPart(ctx, tx, &search{from: at, to: at + 1, clock: byArrival}, time.Now().Add(s.timeout))
	if err != nil {
		return row{}, err
	}
	return of.byID(ctx, id)
}

// rowOfTable returns the row of logs with an id, or pgx.ErrNoRows.
func rowOfTable(ctx context.Context, tx pgx.Tx, id uuid.UUID) (found row, err error) {
	st := byIDStatement(id)
	found = row{id: id, insertedAt: frame.Time(id)}
	err = tx.QueryRow(ctx, st.sql.String(), st.args...).Scan(&found.time, &found.data)
	return found, err
}

// pageStatement selects rows of a page, at most maxRows. If the rows before a row have maxBytes of data, the row comes with a null in place
// of its data. So a page of large records ends early.
//
// The data turns into text only after the innermost select has sorted and cut the rows. Otherwise PostgreSQL would make texts of
// all rows that match. The data is part of the order for the sake of rows that share a time and an id. It is not compared for other
// rows.
func pageStatement(q *search, arrived spans, maxRows, maxBytes int) *statement {
	s := new(statement)
	direction := "DESC"
	if q.ascending {
		direction = "ASC"
	}
	order := fmt.Sprintf("at %s, id %[1]s, data %[1]s", direction)
	s.sql.WriteString("SELECT id, time, inserted_at, CASE WHEN sum(octet_length(body)) OVER page - octet_length(body) < ")
	s.sql.WriteString(s.args.Add(maxBytes))
	s.sql.WriteString("::bigint THEN body END FROM (SELECT *, data::text AS body FROM (SELECT * FROM ")
	s.found(q, arrived)
	given := 0
	if q.after != nil {
		given = q.after.given
	}
	fmt.Fprintf(&s.sql, " ORDER BY %s LIMIT %s OFFSET %s) AS rows OFFSET 0) AS texts WINDOW page AS (ORDER BY %[1]s ROWS UNBOUNDED PRECEDING) ORDER BY %[1]s",
		order, s.args.Add(maxRows), s.args.Add(given))
	return s
}

// exportStatement selects all rows of a slice in order.
func exportStatement(q *search, arrived spans) *statement {
	s := new(statement)
	s.sql.WriteString("SELECT id, time, inserted_at, data::text FROM ")
	s.found(q, arrived)
	direction := " DESC"
	if q.ascending {
		direction = ""
	}
	s.sql.WriteString(" ORDER BY at" + direction + ", id" + direction)
	if q.limit > 0 {
		s.sql.WriteString(" LIMIT " + s.args.Add(q.limit))
	}
	return s
}

// countStatement counts the rows of a window.
func countStatement(q *search, arrived spans) *statement {
	s := new(statement)
	s.sql.WriteString("SELECT count(*) FROM ")
	s.found(q, arrived)
	return s
}

// givenStatement counts the rows with the time and the id of the search's cursor.
func givenStatement(q *search, arrived spans) *statement {
	s := countStatement(q, arrived)
	fmt.Fprintf(&s.sql, " WHERE at = %s AND id = %s", s.args.Add(q.after.at), s.args.Add([16]byte(q.after.id)))
	return s
}

// existsStatement asks whether a window has rows.
func existsStatement(q *search, arrived spans) *statement {
	s := new(statement)
	s.sql.WriteString("SELECT EXISTS (SELECT FROM ")
	s.found(q, arrived)
	s.sql.WriteString(")")
	return s
}

// byIDStatement selects the time and the data of one row. The id's time leads to one partition, and there to the rows of one millisecond.
func byIDStatement(id uuid.UUID) *statement {
	s := new(statement)
	fmt.Fprintf(&s.sql, "SELECT %s, data::text FROM logs WHERE inserted_at = %s AND id = %s LIMIT 1", language.TimeSQL, s.args.Add(frame.Time(id)), s.args.Add([16]byte(id)))
	return s
}

// A row is prompt if it came at its time or within promptness of it. Then the index on inserted_at finds it by its time, too. The other rows
// have an index on time for themselves, with the condition eventtime.LateSQL.
const (
	promptSQL  = "time <= inserted_at AND time - inserted_at >= '-10 s'::interval"
	promptness = 10 * time.Second
)

// found adds the rows that a search finds, as a table "found" with the columns id, time, inserted_at, data, and at, which is the time by
// the search's clock. arrived are the spans of inserted_at that arrivedSpans has found.
//
// By time these are three selects, because an index serves each: the prompt rows, the late ones, and those that have no time.
func (s *statement) found(q *search, arrived spans) {
	filter := q.filter.SQL(&s.args, q.indexed)
	table, filtered := "logs", " AND ("+filter+")"
	if q.fenced {
		table, filtered = "(SELECT id, time, inserted_at, data FROM logs", " OFFSET 0) AS logs WHERE ("+filter+")"
	}
	if q.clock == byArrival {
		s.sql.WriteString("(SELECT id, " + language.TimeSQL + " AS time, inserted_at, inserted_at AS at, data FROM " + table)
		s.where(q, "inserted_at")
		s.outside(q, 0)
		s.sql.WriteString(filtered)
		s.brought(q)
		s.sql.WriteString(") AS found")
		return
	}
	from, to, upperOp := q.bounds()
	s.sql.WriteString("(SELECT id, time, inserted_at, time AS at, data FROM " + table)
	s.where(q, "time")
	fmt.Fprintf(&s.sql, " AND %s AND inserted_at >= %s AND inserted_at %s %s", promptSQL, s.args.Add(from), upperOp, s.args.Add(to.Add(promptness)))
	s.outside(q, promptness)
	s.sql.WriteString(filtered + " UNION ALL SELECT id, time, inserted_at, time, data FROM logs")
	s.where(q, "time")
	s.sql.WriteString(" AND time <> " + eventtime.NoTimeSQL + " AND " + eventtime.LateSQL + "")
	s.came(arrived)
	s.sql.WriteString(" AND (" + filter + ") UNION ALL SELECT id, inserted_at, inserted_at, inserted_at, data FROM logs")
	s.where(q, "inserted_at")
	s.outside(q, 0)
	s.sql.WriteString(" AND time = " + eventtime.NoTimeSQL + " AND " + eventtime.LateSQL + " AND (" + filter + ")")
	s.brought(q)
	s.sql.WriteString(") AS found")
}

// brought adds the rows that were brought from the archive.
func (s *statement) brought(q *search) {
	if b := q.brought; b != nil {
		fmt.Fprintf(&s.sql, " UNION ALL SELECT id, time, inserted_at, at, data::jsonb FROM unnest(%s::uuid[], %s::timestamptz[], %s::timestamptz[], %s::timestamptz[], %s::text[]) AS brought (id, time, inserted_at, at, data)",
			s.args.Add(b.ids), s.args.Add(b.times), s.args.Add(b.cames), s.args.Add(b.ats), s.args.Add(b.data))
	}
}

// came adds the condition that inserted_at is in one of the spans.
func (s *statement) came(in spans) {
	if len(in) == 0 {
		s.sql.WriteString(" AND false")
		return
	}
	s.sql.WriteString(" AND (")
	for i, span := range in {
		if i > 0 {
			s.sql.WriteString(" OR ")
		}
		fmt.Fprintf(&s.sql, "inserted_at >= %s AND inserted_at < %s", s.args.Add(span.from), s.args.Add(span.to))
	}
	s.sql.WriteString(")")
}

// outside adds the condition that inserted_at is in none of the spans that are read from the archive. It is in the search's bounds already, or
// up to beyond after them. The condition names what is left of those, because PostgreSQL leaves partitions out by that.
func (s *statement) outside(q *search, beyond time.Duration) {
	if len(q.archived) == 0 {
		return
	}
	from, to, _ := q.bounds()
	all := spans{{from, to.Add(beyond + time.Microsecond)}}
	if left := all.without(q.archived); len(left) != 1 || left[0] != all[0] {
		s.came(left)
	}
}

// where adds a WHERE clause with a search's window and cursor on a column. Each bound, a cursor's too, is a condition of its own: on
// inserted_at those decide which partitions are read, and the comparison of (inserted_at, id) does not.
func (s *statement) where(q *search, column string) {
	from, to, upperOp := q.bounds()
	fmt.Fprintf(&s.sql, " WHERE %[1]s >= %[2]s AND %[1]s %[3]s %[4]s", column, s.args.Add(from), upperOp, s.args.Add(to))
	if q.after != nil {
		cursorOp := "<"
		if q.ascending {
			cursorOp = ">"
		}
		if q.after.given > 0 {
			cursorOp += "="
		}
		fmt.Fprintf(&s.sql, " AND (%s, id) %s (%s, %s)", column, cursorOp, s.args.Add(q.after.at), s.args.Add([16]byte(q.after.id)))
	}
}

// bounds returns the bounds of a search's rows: the window's, or a cursor's if that is narrower. upperOp compares a time with to.
func (s *search) bounds() (from, to time.Time, upperOp string) {
	from, to, upperOp = time.UnixMilli(s.from), time.UnixMilli(s.to), "<"
	if s.after != nil && s.ascending {
		from = s.after.at
	} else if s.after != nil {
		to, upperOp = s.after.at, "<="
	}
	return from, to, upperOp
}
