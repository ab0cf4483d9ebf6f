package query

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

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
	insertedAt time.Time
	data       []byte // the record as PostgreSQL writes it
}

// appendJSON appends the row as answers have it.
func (r row) appendJSON(out []byte) []byte {
	out = append(out, `{"id":"`...)
	out = append(out, r.id.String()...)
	out = append(out, `","inserted_at":"`...)
	out = r.insertedAt.UTC().AppendFormat(out, timeFormat)
	out = append(out, `","data":`...)
	out = append(out, r.data...)
	return append(out, '}')
}

// pageRows calls give with the rows of a page. It returns the position behind the last of them, or nil if no more rows
// follow. A row's data is good until give returns.
func (s *store) pageRows(ctx context.Context, q *search, give func(row) error) (next *position, err error) {
	st := pageStatement(q, pageBytes)
	var (
		rowsGiven int
		isFull    bool
		end       position // behind the last row; end.given counts that row too
	)
	if q.after != nil {
		end = *q.after
	}
	err = s.read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		rows, err := tx.Query(ctx, st.sql.String(), st.args...)
		if err != nil {
			return err
		}
		var (
			r    row
			data pgtype.DriverBytes // no copy
		)
		_, err = pgx.ForEachRow(rows, []any{(*[16]byte)(&r.id), &r.insertedAt, &data}, func() error {
			if isFull {
				return nil // another row without its data
			}
			isSame := end.id == r.id && end.at.Equal(r.insertedAt)
			if rowsGiven == q.limit || data == nil { // the first row of the next page
				isFull = true
				if !isSame {
					end.given = 0
				}
				return nil
			}
			if !isSame {
				end = position{at: r.insertedAt, id: r.id}
			}
			end.given++
			rowsGiven++
			r.data = data
			return give(r)
		})
		return err
	})
	if err != nil || !isFull {
		return nil, err
	}
	return &end, nil
}

// exportRows calls give with all rows of a window, in order. It may take as long as timeout. A row's data is good until
// give returns.
func (s *store) exportRows(ctx context.Context, q *search, timeout time.Duration, give func(row) error) error {
	st := exportStatement(q)
	return s.readFor(ctx, timeout, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL enable_sort = off"); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, st.sql.String(), st.args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			raw := rows.RawValues()
			id := uuid.UUID(raw[0])
			if err := give(row{id, frame.Time(id), raw[1]}); err != nil {
				return err
			}
		}
		return rows.Err()
	})
}

// countRows returns how many rows a window has.
func (s *store) countRows(ctx context.Context, q *search) (n int64, err error) {
	st := countStatement(q)
	err = s.read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		return tx.QueryRow(ctx, st.sql.String(), st.args...).Scan(&n)
	})
	return n, err
}

// rowByID returns the row with an id, or pgx.ErrNoRows. An id that no row has may be a client's key: then it returns the
// first row under that key.
func (s *store) rowByID(ctx context.Context, id uuid.UUID) (found row, err error) {
	err = s.read(ctx, func(ctx context.Context, tx pgx.Tx) (err error) {
		for _, id := range []uuid.UUID{id, frame.BaseOfKey(id)} {
			st := byIDStatement(id)
			found = row{id: id, insertedAt: frame.Time(id)}
			err = tx.QueryRow(ctx, st.sql.String(), st.args...).Scan(&found.data)
			if !errors.Is(err, pgx.ErrNoRows) {
				break
			}
		}
		return err
	})
	return found, err
}

// pageStatement selects the rows of a page, and one more to know whether another page follows. If the rows before a row have
// maxBytes of data, the row comes with a null in place of its data. So a page of large records ends early.
//
// The data turns into text only after the innermost select has sorted and cut the rows. Otherwise PostgreSQL would make texts of
// all rows that match. The data is part of the order for the sake of rows that share a time and an id. It is not compared for other
// rows.
func pageStatement(q *search, maxBytes int) *statement {
	s := new(statement)
	direction := "DESC"
	if q.ascending {
		direction = "ASC"
	}
	order := fmt.Sprintf("inserted_at %s, id %[1]s, data %[1]s", direction)
	s.sql.WriteString("SELECT id, inserted_at, CASE WHEN sum(octet_length(body)) OVER page - octet_length(body) < ")
	s.sql.WriteString(s.args.Add(maxBytes))
	s.sql.WriteString("::bigint THEN body END FROM (SELECT id, inserted_at, data, data::text AS body FROM (SELECT id, inserted_at, data FROM logs")
	s.where(q)
	given := 0
	if q.after != nil {
		given = q.after.given
	}
	fmt.Fprintf(&s.sql, " ORDER BY %s LIMIT %s OFFSET %s) AS rows OFFSET 0) AS texts WINDOW page AS (ORDER BY %[1]s ROWS UNBOUNDED PRECEDING) ORDER BY %[1]s",
		order, s.args.Add(q.limit+1), s.args.Add(given))
	return s
}

// exportStatement selects all rows of a window in order, as they come off the index. Sorting millions of rows first would fill
// the database's disk and keep the client waiting.
func exportStatement(q *search) *statement {
	s := new(statement)
	s.sql.WriteString("SELECT id, data::text FROM logs")
	s.where(q)
	direction := " DESC"
	if q.ascending {
		direction = ""
	}
	s.sql.WriteString(" ORDER BY inserted_at" + direction + ", id" + direction)
	return s
}

// countStatement counts the rows of a window.
func countStatement(q *search) *statement {
	s := new(statement)
	s.sql.WriteString("SELECT count(*) FROM logs")
	s.where(q)
	return s
}

// byIDStatement selects the data of one row. The id's time leads to one partition, and in its index to the rows of one
// millisecond.
func byIDStatement(id uuid.UUID) *statement {
	s := new(statement)
	fmt.Fprintf(&s.sql, "SELECT data::text FROM logs WHERE inserted_at = %s AND id = %s LIMIT 1", s.args.Add(frame.Time(id)), s.args.Add([16]byte(id)))
	return s
}

// where adds the WHERE clause of a search. Each bound on inserted_at, a cursor's too, is a condition of its own: those decide which
// partitions are read, and the comparison of (inserted_at, id) does not.
func (s *statement) where(q *search) {
	from, to := time.UnixMilli(q.from), time.UnixMilli(q.to)
	upperOp, cursorOp := "<", "<"
	if q.after != nil {
		if q.ascending {
			from, cursorOp = q.after.at, ">"
		} else {
			to, upperOp = q.after.at, "<="
		}
		if q.after.given > 0 {
			cursorOp += "="
		}
	}
	fmt.Fprintf(&s.sql, " WHERE inserted_at >= %s AND inserted_at %s %s", s.args.Add(from), upperOp, s.args.Add(to))
	if q.after != nil {
		fmt.Fprintf(&s.sql, " AND (inserted_at, id) %s (%s, %s)", cursorOp, s.args.Add(q.after.at), s.args.Add([16]byte(q.after.id)))
	}
	s.sql.WriteString(" AND (" + q.filter.SQL(&s.args) + ")")
}
