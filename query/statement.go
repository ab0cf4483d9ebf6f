package query

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"millrace/internal/frame"
	"millrace/internal/scan"
)

// statement is SQL under construction. Everything that came from outside is an argument, never SQL.
type statement struct {
	sql  strings.Builder
	args []any
}

// arg adds an argument and returns its placeholder.
func (s *statement) arg(v any) string {
	s.args = append(s.args, v)
	return "$" + strconv.Itoa(len(s.args))
}

// pageStatement selects the rows of a page, one more than asked for to know whether another page follows. A row
// that begins when the rows before it have maxBytes of data comes with a null, so that a page of large
// records ends early instead of growing without bound.
//
// The data turns into text only after the innermost select has sorted and cut the rows: PostgreSQL would
// otherwise do that to every row that matches.
func pageStatement(q *search, maxBytes int) *statement {
	s := new(statement)
	direction := "DESC"
	if q.ascending {
		direction = "ASC"
	}
	order := fmt.Sprintf("inserted_at %s, id %[1]s", direction)
	s.sql.WriteString("SELECT id, inserted_at, CASE WHEN sum(octet_length(body)) OVER page - octet_length(body) < ")
	s.sql.WriteString(s.arg(maxBytes))
	s.sql.WriteString("::bigint THEN body END FROM (SELECT id, inserted_at, data::text AS body FROM (SELECT id, inserted_at, data FROM logs")
	s.where(q)
	fmt.Fprintf(&s.sql, " ORDER BY %s LIMIT %s) AS rows OFFSET 0) AS texts WINDOW page AS (ORDER BY %[1]s ROWS UNBOUNDED PRECEDING) ORDER BY %[1]s",
		order, s.arg(q.limit+1))
	return s
}

// countStatement counts the rows of a window.
func countStatement(q *search) *statement {
	s := new(statement)
	s.sql.WriteString("SELECT count(*) FROM logs")
	s.where(q)
	return s
}

// byIDStatement selects the data of one row. The id's time leads to the one partition and, in its index, to the
// rows of one millisecond.
func byIDStatement(id uuid.UUID) *statement {
	s := new(statement)
	fmt.Fprintf(&s.sql, "SELECT data::text FROM logs WHERE inserted_at = %s AND id = %s LIMIT 1", s.arg(frame.Time(id)), s.arg([16]byte(id)))
	return s
}

// where adds the conditions. The bounds on inserted_at stand on their own, the cursor's too: they decide which
// partitions are read, which the comparison of rows alone does not.
func (s *statement) where(q *search) {
	from, to, beyond, than := q.from, q.to, "<", "<"
	if q.after != nil {
		if at := frame.Millis(*q.after); q.ascending {
			from, than = at, ">"
		} else {
			to, beyond = at, "<="
		}
	}
	fmt.Fprintf(&s.sql, " WHERE inserted_at >= %s AND inserted_at %s %s", s.arg(time.UnixMilli(from)), beyond, s.arg(time.UnixMilli(to)))
	if q.after != nil {
		fmt.Fprintf(&s.sql, " AND (inserted_at, id) %s (%s, %s)", than, s.arg(frame.Time(*q.after)), s.arg([16]byte(*q.after)))
	}
	s.condition(q.filter)
}

// condition adds what n asks for.
func (s *statement) condition(n node) {
	switch n := n.(type) {
	case all:
		for _, part := range n {
			s.condition(part)
		}
	case equals:
		readings := containments(n)
		for i, doc := range readings {
			readings[i] = "data @> " + s.arg(doc) + "::jsonb"
		}
		if len(readings) == 0 {
			readings = []string{"false"}
		}
		s.sql.WriteString(" AND (" + strings.Join(readings, " OR ") + ")")
	default:
		panic(fmt.Sprintf("query: no SQL for %T", n))
	}
}

// containments returns the documents one of which a record must contain to satisfy n. What no record can hold
// is left out: PostgreSQL would refuse to read it, a number too large for one.
func containments(n equals) []string {
	text, err := json.Marshal(n.value)
	if err != nil {
		panic(err) // a string always has a JSON form
	}
	values := []string{string(text)}
	if n.typed {
		values = append(values, n.value)
	}
	var docs []string
	for _, doc := range values {
		for i := len(n.path) - 1; i >= 0; i-- {
			name, err := json.Marshal(n.path[i])
			if err != nil {
				panic(err)
			}
			doc = "{" + string(name) + ":" + doc + "}"
		}
		var body scan.Body
		if body.Single([]byte(doc), scan.Limits{RecordBytes: scan.MaxRecordBytes, PieceBytes: 1}) == nil {
			docs = append(docs, doc)
		}
	}
	return docs
}
