package query

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// getLogs answers GET /logs.
func (s *server) getLogs(w http.ResponseWriter, r *http.Request) error {
	q, err := parseSearch(r.URL.RawQuery, pageParameters, time.Now())
	if err != nil {
		return err
	}
	return s.respondCached(w, r, "/logs", q, s.store.logsAnswer)
}

// logsAnswer returns the answer to GET /logs.
func (s *store) logsAnswer(ctx context.Context, q *search) ([]byte, error) {
	out := []byte(`{"logs":[`)
	rows := 0
	next, err := s.pageRows(ctx, q, func(r row) error {
		if rows++; rows > 1 {
			out = append(out, ',')
		}
		out = r.appendJSON(out)
		return nil
	})
	if err != nil {
		return nil, err
	}
	out = append(out, `],"next":`...)
	if next != nil {
		out = append(out, '"')
		out = append(out, q.cursor(*next)...)
		out = append(out, '"')
	} else {
		out = append(out, "null"...)
	}
	return append(out, "}\n"...), nil
}

// getCount answers GET /logs/count.
func (s *server) getCount(w http.ResponseWriter, r *http.Request) error {
	q, err := parseSearch(r.URL.RawQuery, windowParameters, time.Now())
	if err != nil {
		return err
	}
	return s.respondCached(w, r, "/logs/count", q, s.store.countAnswer)
}

// countAnswer returns the answer to GET /logs/count.
func (s *store) countAnswer(ctx context.Context, q *search) ([]byte, error) {
	n, err := s.countRows(ctx, q)
	if err != nil {
		return nil, err
	}
	return append(strconv.AppendInt([]byte(`{"count":`), n, 10), "}\n"...), nil
}

// getLog answers GET /logs/{id}.
func (s *server) getLog(w http.ResponseWriter, r *http.Request) error {
	if _, err := parseParameters(r.URL.RawQuery, nil); err != nil {
		return err
	}
	id, err := parseID(r.PathValue("id"))
	if err != nil {
		return err
	}
	leave, err := s.takePlace()
	if err != nil {
		return err
	}
	defer leave()
	found, err := s.store.rowByID(r.Context(), id)
	if errors.Is(err, pgx.ErrNoRows) {
		return &failure{http.StatusNotFound, "no log has the id " + id.String()}
	}
	if err != nil {
		return err
	}
	return writeJSON(w, append(found.appendJSON(nil), '\n'))
}
