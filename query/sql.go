package query

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/google/uuid"
)

// getSQL answers GET /logs/sql: the statement that finds the rows of a search, as text for psql.
func (s *server) getSQL(w http.ResponseWriter, r *http.Request) error {
	q, err := parseSearch(r.URL.RawQuery, sqlParameters, time.Now())
	if err != nil {
		return err
	}
	leave, err := s.takePlace()
	if err != nil {
		return err
	}
	defer leave()
	var text string
	err = s.store.readLogs(r.Context(), q, func(ctx context.Context, of *part) error {
		for _, file := range of.files.files {
			if alone := rangeText(file.from, file.to); !strings.Contains(text, alone) {
				text += "-- not in this table, but in files of the archive alone: rows that came from " + alone + "\n"
			}
		}
		arrived, err := arrivedSpans(ctx, of.tx, q)
		if err != nil {
			return err
		}
		text += rowsStatement(q, arrived).pasted()
		return nil
	})
	if err != nil {
		return err
	}
	return s.compressor.write(w, r, "text/plain; charset=utf-8", []byte(text+";\n"))
}

// rowsStatement selects the rows of a page, without the page's bound of bytes.
func rowsStatement(q *search, arrived spans) *statement {
	s := new(statement)
	direction := "DESC"
	if q.ascending {
		direction = "ASC"
	}
	s.sql.WriteString("SELECT id, time, inserted_at, data FROM ")
	s.found(q, arrived)
	fmt.Fprintf(&s.sql, " ORDER BY at %s, id %[1]s, data %[1]s LIMIT %s", direction, s.args.Add(q.limit))
	return s
}

var placeholder = regexp.MustCompile(`\$[0-9]+`)

// pasted returns the statement with its arguments written out.
//
// A text is written as a literal without a type, which PostgreSQL resolves as it resolves an argument without one. So the statement stays
// the same.
func (s *statement) pasted() string {
	return placeholder.ReplaceAllStringFunc(s.sql.String(), func(place string) string {
		n, _ := strconv.Atoi(place[1:]) // the expression has taken digits
		return literal(s.args[n-1])
	})
}

// literal returns an argument as SQL.
func literal(argument any) string {
	switch v := argument.(type) {
	case string:
		return quoteSQL(v)
	case int:
		return quoteNumber(int64(v))
	case int64:
		return quoteNumber(v)
	case float64:
		return quoteSQL(strconv.FormatFloat(v, 'g', -1, 64))
	case time.Time:
		return quoteSQL(timestampSQL(v))
	case [16]byte:
		return quoteSQL(uuid.UUID(v).String())
	case []string:
		parts := make([]string, len(v))
		for i, text := range v {
			parts[i] = quoteSQL(text)
		}
		return "ARRAY[" + strings.Join(parts, ", ") + "]::text[]"
	case []time.Time:
		parts := make([]string, len(v))
		for i, at := range v {
			parts[i] = quoteSQL(timestampSQL(at))
		}
		return "ARRAY[" + strings.Join(parts, ", ") + "]"
	}
	panic(fmt.Sprintf("query: no literal for %T", argument))
}

// quoteNumber returns a whole number as SQL. A negative one is quoted, because a cast binds stronger than a sign.
func quoteNumber(n int64) string {
	text := strconv.FormatInt(n, 10)
	if n < 0 {
		return quoteSQL(text)
	}
	return text
}

// timestampSQL returns a time as PostgreSQL reads it, to the microsecond. Its years before 1 have no form with four digits.
func timestampSQL(t time.Time) string {
	t = t.UTC()
	if t.Year() < 1 {
		return fmt.Sprintf("%04d%s BC", 1-t.Year(), t.Format("-01-02 15:04:05.999999+00"))
	}
	return t.Format("2006-01-02 15:04:05.999999+00")
}

// quoteSQL returns a text as a literal, whatever standard_conforming_strings says. What is not to be seen, and what a terminal could take
// for a command, is written by its number.
func quoteSQL(text string) string {
	var b strings.Builder
	isEscaped := false
	for _, r := range text {
		switch {
		case r == '\'':
			b.WriteString("''")
		case r == '\\':
			b.WriteString(`\\`)
			isEscaped = true
		case !unicode.IsPrint(r) && r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
			isEscaped = true
		case !unicode.IsPrint(r):
			fmt.Fprintf(&b, `\u%04x`, r)
			isEscaped = true
		default:
			b.WriteRune(r)
		}
	}
	if isEscaped {
		return "E'" + b.String() + "'"
	}
	return "'" + b.String() + "'"
}
