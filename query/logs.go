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
	const head = `{"logs":[`
	out := []byte(head)
	var ends []int // of the rows in out
	next, reached, err := s.pageRows(ctx, q, func(r row) error {
		if len(ends) > 0 {
			out = append(out, ',')
		}
		out = r.appendJSON(out)
		ends = append(ends, len(out))
		return nil
	}, func(rows int) {
		ends = ends[:len(ends)-rows]
		out = out[:len(head)]
		if len(ends) > 0 {
			out = out[:ends[len(ends)-1]]
		}
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
	if len(ends) == 0 && reached.complete && q.after == nil {
		out = s.appendHints(ctx, out, q)
	}
	if q.budget > 0 {
		out = appendProgress(out, reached)
	}
	return append(out, "}\n"...), nil
}

// getCount answers GET /logs/count.
func (s *server) getCount(w http.ResponseWriter, r *http.Request) error {
	q, err := parseSearch(r.URL.RawQuery, countParameters, time.Now())
	if err != nil {
		return err
	}
	return s.respondCached(w, r, "/logs/count", q, s.store.countAnswer)
}

// countAnswer returns the answer to GET /logs/count.
func (s *store) countAnswer(ctx context.Context, q *search) ([]byte, error) {
	if q.budget > 0 {
		return s.partialCountAnswer(ctx, q)
	}
	n, err := s.countRows(ctx, q)
	if err != nil {
		return nil, err
	}
	out := strconv.AppendInt([]byte(`{"count":`), n, 10)
	if n == 0 {
		out = s.appendHints(ctx, out, q)
	}
	return append(out, "}\n"...), nil
}

// partialCountAnswer returns the answer to GET /logs/count within a budget: the count of the newest part of the window.
func (s *store) partialCountAnswer(ctx context.Context, q *search) ([]byte, error) {
	total := int64(0)
	reached, err := s.walk(ctx, q, false, func(ctx context.Context, tx pgx.Tx, slice *search, arrived spans) (rows int, enough bool, err error) {
		n, err := countOf(ctx, tx, countStatement(slice, arrived))
		total += n
		return int(n), false, err
	})
	if err != nil {
		return nil, err
	}
	out := strconv.AppendInt([]byte(`{"count":`), total, 10)
	if total == 0 && reached.complete {
		out = s.appendHints(ctx, out, q)
	}
	return append(appendProgress(out, reached), "}\n"...), nil
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
		return noSuchLog(id)
	}
	if err != nil {
		return err
	}
	return s.writeJSON(w, r, append(found.appendJSON(nil), '\n'))
}
