package query

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/valyala/fastjson"

	"millrace/query/language"
)

const (
	// sampleRows is how many of a window's newest records are looked at for its fields. The bytes of a page bound them too.
	sampleRows = 1000
	// sampleValues is how many records are looked at for the values of one field. The database counts them.
	sampleValues = 10_000
	// maxFields and maxValues are the longest lists that are answered with.
	maxFields = 1000
	maxValues = 100
	// cutCharacters is how many characters the answer has of a value that is too long for a query to ask for.
	cutCharacters = 1000
	// fieldBytes is the longest path that is listed. fieldsKept is how many paths are told apart, those of the newest records.
	// Each record adds maxFields at most. Without these bounds, one record of a megabyte could make gigabytes of paths.
	fieldBytes = 512
	fieldsKept = 10_000
)

// getFields answers GET /logs/fields.
func (s *server) getFields(w http.ResponseWriter, r *http.Request) error {
	q, err := parseSearch(r.URL.RawQuery, windowParameters, time.Now())
	if err != nil {
		return err
	}
	return s.respondCached(w, r, "/logs/fields", q, s.store.fieldsAnswer)
}

// fieldsAnswer returns the answer to GET /logs/fields: what is in the newest records of the window.
func (s *store) fieldsAnswer(ctx context.Context, q *search) ([]byte, error) {
	newest := *q
	newest.limit = sampleRows
	sample := fieldSample{fields: make(map[string]*fieldCount)}
	var parser fastjson.Parser
	_, _, err := s.pageRows(ctx, &newest, func(r row) error {
		record, err := parser.ParseBytes(r.data)
		if err == nil {
			sample.add(record)
		}
		return err
	}, func(int) {}) // an error ends it
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(map[string]any{"sampled": sample.records, "fields": sample.commonest()})
	return append(body, '\n'), err
}

// fieldSample counts the fields of records. A path goes through arrays as in a query.
type fieldSample struct {
	records int
	added   int // paths that the last record has added
	fields  map[string]*fieldCount
}

// fieldCount is how many records have a field, and what is in it.
type fieldCount struct {
	Path  string   `json:"path"` // as a query writes it
	Count int      `json:"count"`
	Types []string `json:"types"`

	lastRecord int // the last record that was counted
}

// add counts the fields of a record.
func (s *fieldSample) add(record *fastjson.Value) {
	s.records++
	s.added = 0
	s.walk("", record)
}

// walk counts the fields within the value at a path.
func (s *fieldSample) walk(path string, v *fastjson.Value) {
	switch v.Type() {
	case fastjson.TypeObject:
		// All members come before what is in them, so that a member with many members hides none beside it.
		eachMember(path, v.GetObject(), s.count)
		eachMember(path, v.GetObject(), s.walk)
	case fastjson.TypeArray:
		for _, e := range v.GetArray() {
			if e.Type() == fastjson.TypeObject {
				s.walk(path, e)
			}
		}
	}
}

// eachMember calls f with the path and the value of each member of the object at a path, unless the member's path is too long.
func eachMember(path string, object *fastjson.Object, f func(member string, v *fastjson.Value)) {
	object.Visit(func(key []byte, v *fastjson.Value) {
		if len(path)+len(key) > fieldBytes {
			return
		}
		member := language.FormatName(string(key))
		if path != "" {
			member = path + "." + member
		}
		f(member, v)
	})
}

// count counts a field of the last record. A field counts once for a record.
func (s *fieldSample) count(path string, v *fastjson.Value) {
	f := s.fields[path]
	if f == nil {
		if len(s.fields) == fieldsKept || s.added == maxFields {
			return
		}
		s.added++
		f = &fieldCount{Path: path}
		s.fields[path] = f
	}
	if f.lastRecord != s.records {
		f.lastRecord = s.records
		f.Count++
	}
	kind := v.Type().String()
	if kind == "true" || kind == "false" {
		kind = "boolean"
	}
	if !slices.Contains(f.Types, kind) {
		f.Types = append(f.Types, kind)
	}
}

// commonest returns the fields that most records have, at most maxFields.
func (s *fieldSample) commonest() []*fieldCount {
	list := make([]*fieldCount, 0, len(s.fields))
	for _, f := range s.fields {
		slices.Sort(f.Types)
		list = append(list, f)
	}
	slices.SortFunc(list, func(a, b *fieldCount) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Path, b.Path))
	})
	return list[:min(len(list), maxFields)]
}

// getValues answers GET /logs/fields/{path}/values.
func (s *server) getValues(w http.ResponseWriter, r *http.Request) error {
	q, err := parseSearch(r.URL.RawQuery, windowParameters, time.Now())
	if err != nil {
		return err
	}
	if q.groupBy, err = language.ParseField(r.PathValue("path")); err != nil {
		return badRequest("path: %v", err)
	}
	return s.respondCached(w, r, "/logs/fields/values", q, s.store.valuesAnswer)
}

// valuesAnswer returns the answer to GET /logs/fields/{path}/values: the commonest strings, numbers, trues and falses of a
// field in the newest records of the window. If a value is too long for a query to ask for, the answer has only its beginning.
// The hashes of such values tell those apart that begin the same.
func (s *store) valuesAnswer(ctx context.Context, q *search) ([]byte, error) {
	var out []byte
	sampled := int64(0)
	err := s.read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		newest, err := newestOf(ctx, tx, q, sampleValues)
		if err != nil {
			return err
		}
		arrived, err := arrivedSpans(ctx, tx, newest)
		if err != nil {
			return err
		}
		st := valuesStatement(newest, arrived)
		rows, err := tx.Query(ctx, st.sql.String(), st.args...)
		if err != nil {
			return err
		}
		var (
			value string
			cut   bool
			n     int64
		)
		_, err = pgx.ForEachRow(rows, []any{&sampled, &value, &cut, &n}, func() error {
			if len(out) > 0 {
				out = append(out, ',')
			}
			out = append(append(out, `{"value":`...), value...)
			out = strconv.AppendInt(append(out, `,"count":`...), n, 10)
			if cut {
				out = append(out, `,"cut":true`...)
			}
			out = append(out, '}')
			return nil
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	name, _ := json.Marshal(language.FormatField(q.groupBy)) // a text always has a JSON form
	head := `{"path":` + string(name) + `,"sampled":` + strconv.FormatInt(sampled, 10) + `,"values":[`
	return append(append([]byte(head), out...), "]}\n"...), nil
}

// valuesStatement returns the statement behind valuesAnswer.
func valuesStatement(q *search, arrived spans) *statement {
	st := new(statement)
	st.sql.WriteString("WITH sample AS MATERIALIZED (SELECT data FROM ")
	st.found(q, arrived)
	st.sql.WriteString(" ORDER BY at DESC LIMIT " + st.args.Add(sampleValues) + ")")
	fmt.Fprintf(&st.sql, ` SELECT (SELECT count(*) FROM sample), (CASE WHEN cut THEN to_jsonb(left(v #>> '{}', %s)) ELSE v END)::text COLLATE "C" AS value, cut, count(*)
		FROM (SELECT v, octet_length(v #>> '{}') > %s AS cut FROM sample, jsonb_path_query(data, %s) AS v
			WHERE jsonb_typeof(v) IN ('string', 'number', 'boolean')) AS found
		GROUP BY 2, 3, CASE WHEN cut THEN sha256(convert_to(v #>> '{}', 'UTF8')) END ORDER BY 4 DESC, 2, CASE WHEN cut THEN sha256(convert_to(v #>> '{}', 'UTF8')) END LIMIT %s`,
		st.args.Add(cutCharacters), st.args.Add(groupBytes), st.args.Add(language.ValuesPath(q.groupBy)), st.args.Add(maxValues))
	return st
}
