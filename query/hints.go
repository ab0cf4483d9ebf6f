package query

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"millrace/query/language"
)

const (
	// hintTime is how long the look for hints may take. If it takes longer, there are none.
	hintTime = 300 * time.Millisecond
	// hintRows is how many of a window's records are looked at.
	hintRows = 100_000
)

// hint tells somebody whose search found nothing what finds something.
type hint struct {
	Text string `json:"text"`
	Q    string `json:"q"`
}

// appendHints appends the hints of a search that found nothing, as a member of the answer, if there are any.
func (s *store) appendHints(ctx context.Context, out []byte, q *search) []byte {
	hints := s.hints(ctx, q)
	if len(hints) == 0 {
		return out
	}
	list, _ := json.Marshal(hints) // texts always have a JSON form
	return append(append(out, `,"hints":`...), list...)
}

// hints counts what the alternatives of a search find, with one statement. An error costs the hints alone.
func (s *store) hints(ctx context.Context, q *search) (found []hint) {
	alternatives := q.filter.Alternatives()
	if len(alternatives) == 0 {
		return nil
	}
	window := *q
	window.filter, window.after, window.deadline = language.Query{}, nil, time.Now().Add(hintTime)
	if q.budget > 0 && q.deadline.Before(window.deadline) {
		window.deadline = q.deadline
	}
	counts := make([]int64, len(alternatives))
	total := int64(0)
	err := s.readLogs(ctx, &window, func(ctx context.Context, of *part) error {
		if len(of.files.files) > 0 {
			return errEnough // a count of what logs has would tell of a part of the window
		}
		st := hintStatement(of.search, alternatives, of.arrived)
		into := []any{&total}
		for i := range counts {
			into = append(into, &counts[i])
		}
		return of.tx.QueryRow(ctx, st.sql.String(), st.args...).Scan(into...)
	})
	if err != nil {
		return nil
	}
	of := ""
	if total == hintRows {
		of = fmt.Sprintf(" of %d", hintRows)
	}
	for i, a := range alternatives {
		switch counts[i] {
		case 0:
		case 1:
			found = append(found, hint{"1 record" + of + " " + one(a.Finds), a.Text})
		default:
			found = append(found, hint{fmt.Sprintf("%d records%s %s", counts[i], of, a.Finds), a.Text})
		}
	}
	return found
}

// one returns what records do as one record does it.
func one(finds string) string {
	if rest, found := strings.CutPrefix(finds, "have"); found {
		return "has" + rest
	}
	return strings.Replace(finds, "contain", "contains", 1)
}

// hintStatement counts a window's rows, and those of each alternative.
func hintStatement(q *search, alternatives []language.Alternative, arrived spans) *statement {
	s := new(statement)
	s.sql.WriteString("SELECT count(*)")
	for _, a := range alternatives {
		fmt.Fprintf(&s.sql, ", count(*) FILTER (WHERE %s)", a.Query.SQL(&s.args, nil))
	}
	s.sql.WriteString(" FROM (SELECT * FROM ")
	s.found(q, arrived)
	s.sql.WriteString(" LIMIT " + s.args.Add(hintRows) + ") AS logs")
	return s
}
