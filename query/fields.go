package query

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fastjson"

	"millrace/query/language"
)

const (
	// sampleRows is how many of a search's records are looked at for its fields, sampleValues how many for the values of one field. The
	// bytes of a page bound them too.
	sampleRows, sampleValues = 1000, 10_000
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
	q, err := parseSearch(r.URL.RawQuery, countParameters, time.Now())
	if err != nil {
		return err
	}
	return s.respondCached(w, r, "/logs/fields", q, s.store.fieldsAnswer)
}

// fieldsAnswer returns the answer to GET /logs/fields: what is in a sample of the search's records.
func (s *store) fieldsAnswer(ctx context.Context, q *search) ([]byte, error) {
	records, isAll, err := s.sample(ctx, q, sampleRows, func(*statement) string { return "data::text" })
	if err != nil {
		return nil, err
	}
	sample := fieldSample{fields: make(map[string]*fieldCount)}
	var parser fastjson.Parser
	for _, data := range records {
		record, err := parser.ParseBytes(data)
		if err != nil {
			return nil, err
		}
		sample.add(record)
	}
	body, err := json.Marshal(struct {
		Sampled  int           `json:"sampled"`
		Fields   []*fieldCount `json:"fields"`
		Complete bool          `json:"complete"`
	}{sample.records, sample.commonest(), isAll})
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
	// Numbers tells of the numbers among the values.
	Numbers *distribution `json:"numbers,omitempty"`

	numbers    []float64
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
	if n, isNumber := numberOf(v); isNumber {
		f.numbers = append(f.numbers, n)
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
		f.Numbers = distributionOf(f.numbers)
		list = append(list, f)
	}
	slices.SortFunc(list, func(a, b *fieldCount) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Path, b.Path))
	})
	return list[:min(len(list), maxFields)]
}

// getValues answers GET /logs/fields/{path}/values.
func (s *server) getValues(w http.ResponseWriter, r *http.Request) error {
	q, err := parseSearch(r.URL.RawQuery, countParameters, time.Now())
	if err != nil {
		return err
	}
	if q.groupBy, err = language.ParseField(r.PathValue("path")); err != nil {
		return badRequest("path: %v", err)
	}
	return s.respondCached(w, r, "/logs/fields/values", q, s.store.valuesAnswer)
}

// numberOf returns the number that a value is, or that its text is.
func numberOf(v *fastjson.Value) (float64, bool) {
	var text string
	switch v.Type() {
	case fastjson.TypeNumber:
		text = string(v.MarshalTo(nil))
	case fastjson.TypeString:
		if text = string(v.GetStringBytes()); !language.IsNumber(text) {
			return 0, false
		}
	default:
		return 0, false
	}
	n, err := strconv.ParseFloat(text, 64)
	return n, err == nil
}

// valueCount is how many records have a value.
type valueCount struct {
	Value json.RawMessage `json:"value"`
	Count int             `json:"count"`
	Cut   bool            `json:"cut,omitempty"`

	key string
}

// valuesAnswer returns the answer to GET /logs/fields/{path}/values: the commonest strings, numbers, trues and falses of a
// field in a sample of the search's records. If a value is too long for a query to ask for, the answer has only its beginning.
// The hashes of such values tell those apart that begin the same.
func (s *store) valuesAnswer(ctx context.Context, q *search) ([]byte, error) {
	records, isAll, err := s.sample(ctx, q, sampleValues, func(st *statement) string { return valuesSQL(st, q.groupBy) })
	if err != nil {
		return nil, err
	}
	counts := make(map[string]*valueCount)
	var numbers []float64
	var parser fastjson.Parser
	for _, body := range records {
		values, err := parser.ParseBytes(body)
		if err != nil {
			return nil, err
		}
		seen := make(map[string]bool) // a value counts once for a record
		for _, v := range values.GetArray() {
			key := string(v.MarshalTo(nil))
			if seen[key] {
				continue
			}
			seen[key] = true
			c := counts[key]
			if c == nil {
				c = &valueCount{Value: json.RawMessage(key), key: key}
				if cut := v.GetArray(); cut != nil {
					c.Value, c.Cut = cut[0].MarshalTo(nil), true
				}
				counts[key] = c
			}
			c.Count++
			if n, isNumber := numberOf(v); isNumber {
				numbers = append(numbers, n)
			}
		}
	}
	list := slices.SortedFunc(maps.Values(counts), func(a, b *valueCount) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(string(a.Value), string(b.Value)), strings.Compare(a.key, b.key))
	})
	if list == nil {
		list = []*valueCount{}
	}
	distributed := distributionOf(numbers)
	if distributed != nil {
		distributed.Bins = binsOf(numbers)
	}
	answer, err := json.Marshal(struct {
		Path     string        `json:"path"`
		Sampled  int           `json:"sampled"`
		Values   []*valueCount `json:"values"`
		Distinct int           `json:"distinct"`
		Numbers  *distribution `json:"numbers,omitempty"`
		Complete bool          `json:"complete"`
	}{language.FormatField(q.groupBy), len(records), list[:min(len(list), maxValues)], len(list), distributed, isAll})
	return append(answer, '\n'), err
}

// valuesSQL returns the values of a field as SQL, the text of a JSON array. In place of a value that is too long it has an array of the
// value's beginning and its hash. Numbers have no zeros at their end, so that equal ones are the same.
func valuesSQL(st *statement, path []string) string {
	var selects []string
	for _, way := range language.Ways(path) {
		selects = append(selects, "SELECT * FROM jsonb_path_query(data, "+st.args.Add(language.ValuesPath(way))+")")
	}
	return fmt.Sprintf(`coalesce((SELECT jsonb_agg(CASE WHEN octet_length(v #>> '{}') > %s THEN jsonb_build_array(left(v #>> '{}', %s), encode(sha256(convert_to(v #>> '{}', 'UTF8')), 'hex'))
		WHEN jsonb_typeof(v) = 'number' THEN to_jsonb(trim_scale((v #>> '{}')::numeric)) ELSE v END)
		FROM (%s) AS found (v) WHERE jsonb_typeof(v) IN ('string', 'number', 'boolean')), '[]')::text`,
		st.args.Add(groupBytes), st.args.Add(cutCharacters), strings.Join(selects, " UNION ALL "))
}
