package query

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/internal/rfc3339"
)

// defaultContext and maxContext are how many rows a context has on each side.
const (
	defaultContext = 20
	maxContext     = 500
)

// getContext answers GET /logs/{id}/context: the rows before a row and after it.
func (s *server) getContext(w http.ResponseWriter, r *http.Request) error {
	p, err := parseParameters(r.URL.RawQuery, contextParameters)
	if err != nil {
		return err
	}
	id, err := parseID(r.PathValue("id"))
	if err != nil {
		return err
	}
	around := search{from: rfc3339.Earliest, to: rfc3339.Latest}
	if err := around.what(p, time.Now()); err != nil {
		return err
	}
	counts := map[string]int{"before": defaultContext, "after": defaultContext}
	for name := range counts {
		if text := p[name]; text != "" {
			n, ok := parseDigits(text)
			if !ok || n > maxContext {
				return refused(name, text, "a whole number from 0 to "+strconv.Itoa(maxContext))
			}
			counts[name] = int(n)
		}
	}
	return s.respond(w, r, func() ([]byte, string, error) {
		body, err := s.store.contextAnswer(r.Context(), id, &around, counts["before"], counts["after"])
		return body, bypass, err
	})
}

// contextAnswer returns the answer to GET /logs/{id}/context. The rows are those of q, in the order of its clock; the row itself need not
// be one of them.
func (s *store) contextAnswer(ctx context.Context, id uuid.UUID, q *search, before, after int) ([]byte, error) {
	log, err := s.rowByID(ctx, id)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, noSuchLog(id)
	}
	if err != nil {
		return nil, err
	}
	half := *q
	if q.budget > 0 {
		half.deadline = time.Now().Add(time.Until(q.deadline) / 2) // the other half is for the rows after it
	}
	earlier, moreBefore, err := s.besides(ctx, &half, log, before, false)
	if err != nil {
		return nil, err
	}
	later, moreAfter, err := s.besides(ctx, q, log, after, true)
	if err != nil {
		return nil, err
	}
	out := []byte(`{"before":[`)
	for i := range earlier { // which come the nearest first
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, earlier[len(earlier)-1-i]...)
	}
	out = log.appendJSON(append(out, `],"log":`...))
	out = append(out, `,"after":[`...)
	for i, row := range later {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, row...)
	}
	out = strconv.AppendBool(append(out, `],"more_before":`...), moreBefore)
	out = strconv.AppendBool(append(out, `,"more_after":`...), moreAfter)
	return append(out, "}\n"...), nil
}

// besides returns the rows of q on one side of a row, the nearest first, as answers have them, and reports whether there are more.
func (s *store) besides(ctx context.Context, q *search, log row, limit int, ascending bool) (rows [][]byte, more bool, err error) {
	side := *q
	side.ascending, side.limit = ascending, max(limit, 1)
	side.after = &position{at: log.at(q.clock), id: log.id}
	next, reached, err := s.pageRows(ctx, &side, func(r row) error {
		rows = append(rows, r.appendJSON(nil))
		return nil
	}, func(n int) { rows = rows[:len(rows)-n] })
	if limit == 0 {
		return nil, len(rows) > 0 || !reached.complete, err
	}
	return rows, next != nil, err
}

// noSuchLog returns the failure for an id that no row has.
func noSuchLog(id uuid.UUID) error {
	return &failure{http.StatusNotFound, "no log has the id " + id.String()}
}
