package query

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"millrace/internal/frame"
)

// logs answers GET /logs.
func (s *server) logs(w http.ResponseWriter, r *http.Request) error {
	q, err := parseSearch(r.URL.RawQuery, pageTakes, time.Now())
	if err != nil {
		return err
	}
	return s.search(w, r, "/logs", q, func(ctx context.Context) ([]byte, error) { return s.store.page(ctx, q) })
}

// page returns the answer to GET /logs.
func (s *store) page(ctx context.Context, q *search) ([]byte, error) {
	st := pageStatement(q, pageBytes)
	out := []byte(`{"logs":[`)
	var (
		n    int
		last position // its given counts the rows up to now
		more bool     // the page's rows are all of a longer list
	)
	if q.after != nil {
		last = *q.after
	}
	err := s.read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		rows, err := tx.Query(ctx, st.sql.String(), st.args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var (
				id   [16]byte
				at   time.Time
				data pgtype.DriverBytes // good until the next row
			)
			if err := rows.Scan(&id, &at, &data); err != nil {
				return err
			}
			if more {
				continue // rows without their data
			}
			same := last.id == id && last.at.Equal(at)
			if more = n == q.limit || data == nil; more { // the first row of the page after
				if !same {
					last.given = 0
				}
				continue
			}
			if n++; n > 1 {
				out = append(out, ',')
			}
			out = appendLog(out, id, at, data)
			if !same {
				last = position{at: at, id: id}
			}
			last.given++
		}
		return rows.Err()
	})
	if err != nil {
		return nil, err
	}
	out = append(out, `],"next":`...)
	if more {
		out = append(out, '"')
		out = append(out, q.cursor(last)...)
		out = append(out, '"')
	} else {
		out = append(out, "null"...)
	}
	return append(out, "}\n"...), nil
}

// count answers GET /logs/count.
func (s *server) count(w http.ResponseWriter, r *http.Request) error {
	q, err := parseSearch(r.URL.RawQuery, windowTakes, time.Now())
	if err != nil {
		return err
	}
	return s.search(w, r, "/logs/count", q, func(ctx context.Context) ([]byte, error) { return s.store.count(ctx, q) })
}

// count returns the answer to GET /logs/count.
func (s *store) count(ctx context.Context, q *search) ([]byte, error) {
	st := countStatement(q)
	var n int64
	err := s.read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		return tx.QueryRow(ctx, st.sql.String(), st.args...).Scan(&n)
	})
	if err != nil {
		return nil, err
	}
	return append(strconv.AppendInt([]byte(`{"count":`), n, 10), "}\n"...), nil
}

// one answers GET /logs/{id}.
func (s *server) one(w http.ResponseWriter, r *http.Request) error {
	if _, err := parseParameters(r.URL.RawQuery, nil); err != nil {
		return err
	}
	id, err := parseID(r.PathValue("id"))
	if err != nil {
		return err
	}
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	body, err := s.store.one(r.Context(), id)
	if errors.Is(err, pgx.ErrNoRows) {
		return &failure{http.StatusNotFound, "no log has the id " + id.String()}
	}
	if err != nil {
		return err
	}
	return write(w, body)
}

// one returns the answer to GET /logs/{id}, or pgx.ErrNoRows. An id that no row has may be a key: then it is the first
// record under that.
func (s *store) one(ctx context.Context, id uuid.UUID) (out []byte, err error) {
	err = s.read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		out, err = findByID(ctx, tx, id)
		if errors.Is(err, pgx.ErrNoRows) {
			out, err = findByID(ctx, tx, frame.BaseOfKey(id))
		}
		return err
	})
	return out, err
}

// findByID returns the row with an id as a line of JSON, or pgx.ErrNoRows.
func findByID(ctx context.Context, tx pgx.Tx, id uuid.UUID) ([]byte, error) {
	st := byIDStatement(id)
	rows, err := tx.Query(ctx, st.sql.String(), st.args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	if !rows.Next() {
		if err := rows.Err(); err != nil {
			return nil, err
		}
		return nil, pgx.ErrNoRows
	}
	return append(appendLog(nil, id, frame.Time(id), rows.RawValues()[0]), '\n'), nil
}

// appendLog adds a row's JSON object. data is as PostgreSQL wrote it.
func appendLog(out []byte, id uuid.UUID, at time.Time, data []byte) []byte {
	out = append(out, `{"id":"`...)
	out = append(out, id.String()...)
	out = append(out, `","inserted_at":"`...)
	out = at.UTC().AppendFormat(out, timeFormat)
	out = append(out, `","data":`...)
	out = append(out, data...)
	return append(out, '}')
}
