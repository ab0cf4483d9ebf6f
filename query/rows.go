package query

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"millrace/internal/frame"
	"millrace/query/language"
)

// pageBytes ends a page early: when its rows have this much data, the next row begins another page. 1000
// records of the usual size (300 bytes) are a tenth of it.
const pageBytes = 4 << 20

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
// otherwise do that to every row that matches. It is part of the order for the sake of rows that share a time and
// an id; of others PostgreSQL compares no more than those.
func pageStatement(q *search, maxBytes int) *statement {
	s := new(statement)
	direction := "DESC"
	if q.ascending {
		direction = "ASC"
	}
	order := fmt.Sprintf("inserted_at %s, id %[1]s, data %[1]s", direction)
	s.sql.WriteString("SELECT id, inserted_at, CASE WHEN sum(octet_length(body)) OVER page - octet_length(body) < ")
	s.sql.WriteString(s.arg(maxBytes))
	s.sql.WriteString("::bigint THEN body END FROM (SELECT id, inserted_at, data, data::text AS body FROM (SELECT id, inserted_at, data FROM logs")
	s.where(q)
	given := 0
	if q.after != nil {
		given = q.after.given
	}
	fmt.Fprintf(&s.sql, " ORDER BY %s LIMIT %s OFFSET %s) AS rows OFFSET 0) AS texts WINDOW page AS (ORDER BY %[1]s ROWS UNBOUNDED PRECEDING) ORDER BY %[1]s",
		order, s.arg(q.limit+1), s.arg(given))
	return s
}

// exportStatement selects all rows of a window in order, as they come off the index: sorting millions of them first
// would take the server's disk, and the client's patience.
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
	from, to := time.UnixMilli(q.from), time.UnixMilli(q.to)
	below, beyond := "<", "<"
	if q.after != nil {
		if q.ascending {
			from, beyond = q.after.at, ">"
		} else {
			to, below = q.after.at, "<="
		}
		if q.after.given > 0 {
			beyond += "="
		}
	}
	fmt.Fprintf(&s.sql, " WHERE inserted_at >= %s AND inserted_at %s %s", s.arg(from), below, s.arg(to))
	if q.after != nil {
		fmt.Fprintf(&s.sql, " AND (inserted_at, id) %s (%s, %s)", beyond, s.arg(q.after.at), s.arg([16]byte(q.after.id)))
	}
	s.filter(q.filter)
}

// filter adds that a row's record satisfies a query.
func (s *statement) filter(q language.Query) {
	condition, args := q.SQL(s.args)
	s.sql.WriteString(" AND (" + condition + ")")
	s.args = args
}
