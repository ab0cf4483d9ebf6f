package query

import (
	"bytes"
	"cmp"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/query/columns"
	"millrace/query/language"
)

const (
	// maxCalcs and maxBy are the most figures and fields that a table of stats has.
	maxCalcs, maxBy = 20, 5
	// statsCharacters is how many characters a table has of a value. Longer ones that begin the same are one group.
	statsCharacters = columns.TextCharacters
	// defaultGroups and maxGroups are how many groups a table has.
	defaultGroups, maxGroups = 100, 10_000
)

// calc is a figure that stats compute of the records of a group.
type calc struct {
	text     string // as it was asked for, which is the column's name
	function string
	path     []string       // the field, nil if the function takes none
	query    language.Query // share's
	quantile float64        // of p50 and the like, from 0 to 1
}

var (
	callPattern     = regexp.MustCompile(`^([a-z]+)([0-9]+(?:\.[0-9]+)?)?(?:\((.*)\))?$`)
	calcTakes       = "count, count(FIELD), sum(FIELD), avg(FIELD), min(FIELD), max(FIELD), p50(FIELD) and the like, uniq(FIELD), first(FIELD), last(FIELD), rate, share(QUERY)"
	fieldCalcs      = map[string]bool{"count": true, "sum": true, "avg": true, "min": true, "max": true, "p": true, "uniq": true, "first": true, "last": true}
	errWithoutField = "needs a field in parentheses"
)

// parseCalcs returns the figures that a list asks for, such as count,p95(duration_ms),share(level:error). A comma in parentheses or quotes
// separates nothing.
func parseCalcs(list string) ([]calc, error) {
	var calcs []calc
	for _, text := range splitList(list) {
		c, why := parseCalc(text)
		if why != "" {
			return nil, badRequest("calc: %.64q %s; takes %s", text, why, calcTakes)
		}
		calcs = append(calcs, c)
	}
	if len(calcs) > maxCalcs {
		return nil, badRequest("calc: got %d figures, takes at most %d", len(calcs), maxCalcs)
	}
	return calcs, nil
}

// parseCalc returns the figure that a text asks for, or why it asks for none.
func parseCalc(text string) (c calc, why string) {
	m := callPattern.FindStringSubmatch(text)
	if m == nil {
		return c, "is no figure"
	}
	c.text, c.function = text, m[1]
	argument := strings.TrimSpace(m[3])
	if (m[2] != "") != (c.function == "p") {
		return c, "is no figure"
	}
	if c.function == "p" {
		percent, _ := strconv.ParseFloat(m[2], 64) // the pattern has taken a number
		if percent > 100 {
			return c, "is above 100"
		}
		c.quantile = percent / 100
	}
	var err error
	switch {
	case c.function == "rate" || c.function == "count" && argument == "":
		if argument != "" {
			return c, "takes nothing in parentheses"
		}
	case c.function == "share":
		if argument == "" {
			return c, "needs a query in parentheses"
		}
		c.query, err = language.Parse(argument)
	case fieldCalcs[c.function]:
		if argument == "" {
			return c, errWithoutField
		}
		c.path, err = language.ParseField(argument)
	default:
		return c, "is no figure"
	}
	if err != nil {
		return c, "can't be read: " + err.Error()
	}
	return c, ""
}

// splitList splits a list at its commas, except for those in parentheses and in quotes.
func splitList(list string) (parts []string) {
	depth, quoted, start := 0, false, 0
	for i := 0; i < len(list); i++ {
		switch c := list[i]; {
		case c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '(':
			depth++
		case c == ')':
			depth--
		case c == ',' && depth == 0:
			parts = append(parts, strings.TrimSpace(list[start:i]))
			start = i + 1
		}
	}
	return append(parts, strings.TrimSpace(list[start:]))
}

// value returns the value of a field as SQL, jsonb. Of several members that the field may mean it is the first that is there.
func value(path []string, args *language.Args) string {
	ways := language.Ways(path)
	members := make([]string, len(ways))
	for i, way := range ways {
		members[i] = "data #> " + args.Add(way)
	}
	if len(members) == 1 {
		return "(" + members[0] + ")"
	}
	return "coalesce(" + strings.Join(members, ", ") + ")"
}

// cutText returns the text of a value as SQL, cut to what a table has of it.
func cutText(value string) string {
	return fmt.Sprintf("left(%s #>> '{}', %d)", value, statsCharacters)
}

// number returns the number that a value is as SQL, or null. A string that is a JSON number counts.
func number(value string) string {
	return fmt.Sprintf("(CASE WHEN jsonb_typeof(%[1]s) = 'number' THEN (%[1]s)::numeric WHEN jsonb_typeof(%[1]s) = 'string' AND %[2]s THEN (%[1]s #>> '{}')::numeric END)",
		value, language.IsNumberSQL(value+" #>> '{}'"))
}

// sql returns the figure as SQL, jsonb, over the rows found. span is how many seconds a group's rows are of.
func (c calc) sql(args *language.Args, span float64) string {
	var v, n string
	if c.path != nil {
		v = value(c.path, args)
		n = number(v)
	}
	// A number that float8 can't hold is left out of what is computed with it.
	float := fmt.Sprintf("(CASE WHEN %[1]s = 0 OR abs(%[1]s) BETWEEN 1e-300 AND 1e300 THEN (%[1]s)::float8 END)", n)
	of := func(expression string) string { return "to_jsonb(" + expression + ")" }
	extreme := func(f string) string {
		text := cutText(v)
		return fmt.Sprintf("coalesce(to_jsonb(trim_scale(%[1]s(%[2]s))), to_jsonb(%[1]s((%[3]s) COLLATE \"C\")))", f, n, text)
	}
	// The value of the first row or the last: texts of one length put the times in order.
	at := "to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')"
	edge := func(f string) string {
		short := fmt.Sprintf("CASE WHEN octet_length(%s #>> '{}') > %d THEN to_jsonb(%s) ELSE %[1]s END", v, statsCharacters, cutText(v))
		return fmt.Sprintf("((%s(ARRAY[%s, id::text, (%s)::text] COLLATE \"C\") FILTER (WHERE %s IS NOT NULL))[3])::jsonb", f, at, short, v)
	}
	switch c.function {
	case "count":
		if c.path == nil {
			return of("count(*)")
		}
		return of("count(" + v + ")")
	case "sum":
		return of("trim_scale(sum(" + n + "))")
	case "avg":
		// The exact sum, whatever the order of the rows is: so the table's rows and those of files have one average.
		inBounds := fmt.Sprintf("FILTER (WHERE %[1]s = 0 OR abs(%[1]s) BETWEEN 1e-300 AND 1e300)", n)
		sum := fmt.Sprintf("sum(%s) %s", n, inBounds)
		return of(fmt.Sprintf("(CASE WHEN %[1]s = 0 OR abs(%[1]s) BETWEEN 1e-300 AND 1e308 THEN (%[1]s)::float8 WHEN abs(%[1]s) < 1e-300 THEN 0 END) / (count(%[2]s) %[3]s)", sum, n, inBounds))
	case "min", "max":
		return extreme(c.function)
	case "p":
		return of("percentile_cont(" + args.Add(c.quantile) + "::float8) WITHIN GROUP (ORDER BY " + float + ")")
	case "uniq":
		return of("count(DISTINCT " + v + " #>> '{}')")
	case "first":
		return edge("min")
	case "last":
		return edge("max")
	case "rate":
		return of("count(*)::float8 / " + args.Add(span) + "::float8")
	case "share":
		return of("count(*) FILTER (WHERE " + c.query.SQL(args, nil) + ")::float8 / nullif(count(*), 0)")
	}
	panic("query: no SQL for " + c.function)
}

// orderSQL returns the order by the figure as SQL: values of different kinds as jsonb orders them, texts by their bytes, whatever the database's collation is.
func (c calc) orderSQL(figure, direction string) string {
	switch c.function {
	case "min", "max", "first", "last":
		return fmt.Sprintf("array_position(ARRAY['null', 'string', 'number', 'boolean', 'array', 'object'], jsonb_typeof(%[1]s))%[2]s, "+
			"(CASE WHEN jsonb_typeof(%[1]s) = 'number' THEN (%[1]s)::numeric END)%[2]s, (%[1]s #>> '{}') COLLATE \"C\"%[2]s", figure, direction)
	}
	return figure + direction
}

// stats is what a request asks of GET /logs/stats.
type stats struct {
	search
	by     [][]string
	calcs  []calc
	series bool // by buckets of time too
	limit  int  // groups
	order  int  // the figure that the groups are ordered by
	rising bool // the least first
	having []having
}

// having is a condition that a group must meet to be in the table.
type having struct {
	calc  calc
	op    string // as SQL
	value string // a JSON number, unless the figure is compared as text
	text  bool
}

// isMetBy reports whether a figure meets the condition that is less than its value (n < 0), equal to it, or greater (n > 0).
func (h having) isMetBy(n int) bool {
	switch h.op {
	case ">=":
		return n >= 0
	case "<=":
		return n <= 0
	case "<>":
		return n != 0
	case ">":
		return n > 0
	case "<":
		return n < 0
	}
	return n == 0
}

// havingOperators are the operators of conditions, the longer ones first, and what they are in SQL.
var havingOperators = [][2]string{{">=", ">="}, {"<=", "<="}, {"!=", "<>"}, {">", ">"}, {"<", "<"}, {"=", "="}}

// parseHaving returns the conditions of a list such as count>100,p95(duration_ms)>=2.5,first(level)=error. All of them must be met.
func parseHaving(list string) ([]having, error) {
	var conditions []having
	for _, text := range splitList(list) {
		h, why := parseCondition(text)
		if why != "" {
			return nil, badRequest("having: %.64q %s; takes conditions such as count>100 or p95(duration_ms)>=2.5, separated by commas", text, why)
		}
		conditions = append(conditions, h)
	}
	if len(conditions) > maxCalcs {
		return nil, badRequest("having: got %d conditions, takes at most %d", len(conditions), maxCalcs)
	}
	return conditions, nil
}

// parseCondition returns the condition that a text asks for, or why it asks for none.
func parseCondition(text string) (h having, why string) {
	// The operator is behind the figure's parentheses, which may hold a query with operators of its own.
	for i := max(0, strings.LastIndexByte(text, ')')); i < len(text); i++ {
		for _, op := range havingOperators {
			if !strings.HasPrefix(text[i:], op[0]) {
				continue
			}
			h.op, h.value = op[1], strings.TrimSpace(text[i+len(op[0]):])
			if h.calc, why = parseCalc(strings.TrimSpace(text[:i])); why != "" {
				return h, why
			}
			if h.text = !language.IsNumber(h.value); h.text {
				if op[0] != "=" && op[0] != "!=" {
					return h, "compares with " + strconv.Quote(h.value) + ", which is no number"
				}
				if unquoted, err := strconv.Unquote(h.value); err == nil {
					h.value = unquoted
				}
			}
			return h, ""
		}
	}
	return h, "has no comparison"
}

// sql returns the condition as SQL.
func (h having) sql(args *language.Args, span float64) string {
	figure := "(" + h.calc.sql(args, span) + ")"
	if h.text {
		return figure + " #>> '{}' " + h.op + " " + args.Add(h.value)
	}
	return fmt.Sprintf("CASE WHEN jsonb_typeof(%s) = 'number' THEN %[1]s::numeric %s %s::numeric END", figure, h.op, args.Add(h.value))
}

// parseStats returns what a URL's query asks of GET /logs/stats.
func parseStats(rawQuery string, now time.Time) (*stats, error) {
	p, err := parseParameters(rawQuery, statsParameters)
	if err != nil {
		return nil, err
	}
	st := &stats{limit: defaultGroups}
	if err := st.window(p["from"], p["to"], now); err != nil {
		return nil, err
	}
	if err := st.what(p, now); err != nil {
		return nil, err
	}
	if st.calcs, err = parseCalcs(cmp.Or(p["calc"], "count")); err != nil {
		return nil, err
	}
	if p["by"] != "" {
		for _, field := range splitList(p["by"]) {
			path, err := language.ParseField(field)
			if err != nil {
				return nil, badRequest("by: %v", err)
			}
			st.by = append(st.by, path)
		}
		if len(st.by) > maxBy {
			return nil, badRequest("by: got %d fields, takes at most %d", len(st.by), maxBy)
		}
	}
	if p["every"] != "" {
		st.series = true
		if err := st.buckets(p["every"], p["tz"], p["to"] == "", now); err != nil {
			return nil, badRequest("every: got %.64q, takes auto, or a whole number with a unit (s m h d w) that makes at most %d buckets", p["every"], maxBuckets)
		}
	} else if p["tz"] != "" {
		return nil, badRequest("tz: takes effect with every alone")
	}
	if err := readLimit(&st.limit, p["limit"], maxGroups); err != nil {
		return nil, err
	}
	if p["having"] != "" {
		if st.having, err = parseHaving(p["having"]); err != nil {
			return nil, err
		}
	}
	if text := p["order"]; text != "" {
		name, falling := strings.CutPrefix(text, "-")
		st.rising = !falling
		st.order = slices.IndexFunc(st.calcs, func(c calc) bool { return c.text == name })
		if st.order < 0 {
			return nil, refused("order", text, "one of the figures of calc, with - before it for the largest first")
		}
	}
	return st, nil
}

// getStats answers GET /logs/stats.
func (s *server) getStats(w http.ResponseWriter, r *http.Request) error {
	st, err := parseStats(r.URL.RawQuery, time.Now())
	if err != nil {
		return err
	}
	leave, err := s.takePlace()
	if err != nil {
		return err
	}
	defer leave()
	table, err := s.store.stats(r.Context(), st)
	if err != nil {
		return err
	}
	if strings.Contains(r.Header.Get("Accept"), "text/csv") {
		return s.compressor.write(w, r, "text/csv; charset=utf-8", table.csv())
	}
	body, err := json.Marshal(table)
	if err != nil {
		return err
	}
	return s.writeJSON(w, r, append(body, '\n'))
}

// statsTable is the answer to GET /logs/stats.
type statsTable struct {
	Columns []string            `json:"columns"`
	Rows    [][]json.RawMessage `json:"rows"`
	Others  [][]json.RawMessage `json:"others,omitempty"` // the same columns for all groups beyond the limit
	// SearchedTo is how far a search with a budget came: the table is that of the records from there on.
	SearchedTo string `json:"searched_to,omitempty"`
	Complete   bool   `json:"complete"`
}

// csv returns the table as CSV, the groups beyond the limit with (others) in place of their values.
func (t *statsTable) csv() []byte {
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	_ = w.Write(t.Columns) // a buffer takes everything
	for _, rows := range [][][]json.RawMessage{t.Rows, t.Others} {
		for _, row := range rows {
			cells := make([]string, len(row))
			for i, cell := range row {
				if string(cell) != "null" && json.Unmarshal(cell, &cells[i]) != nil {
					cells[i] = string(cell)
				}
			}
			_ = w.Write(cells)
		}
	}
	w.Flush()
	return b.Bytes()
}

// stats computes a table. Groups beyond the limit are summed up in others: first the groups are found, then everything is computed for
// those, by buckets where a series is asked for, and for all others together.
func (s *store) stats(ctx context.Context, st *stats) (table *statsTable, err error) {
	if st.budget == 0 {
		err := s.readWindow(ctx, &st.search, s.part, func(ctx context.Context, of *part) (err error) {
			table, err = st.read(ctx, of)
			return err
		})
		return table, err
	}
	table = st.emptyTable()
	var edges []int64
	if st.series {
		edges = st.edges
	}
	reached, err := s.widen(ctx, &st.search, edges, func(ctx context.Context, of *part) error {
		t, err := st.read(ctx, of)
		if err == nil {
			table = t
		}
		return err
	})
	table.SearchedTo, table.Complete = string(appendEdge(nil, reached.reached)), reached.complete
	return table, err
}

// emptyTable returns a table without rows.
func (st *stats) emptyTable() *statsTable {
	table := &statsTable{Columns: []string{}, Rows: [][]json.RawMessage{}, Complete: true}
	if st.series {
		table.Columns = append(table.Columns, "time")
	}
	for _, path := range st.by {
		table.Columns = append(table.Columns, language.FormatField(path))
	}
	for _, c := range st.calcs {
		table.Columns = append(table.Columns, c.text)
	}
	return table
}

// readLogs computes the table from logs and the rows that were brought. Its statements end by the search's deadline, if it has one.
func (st *stats) readLogs(ctx context.Context, of *part) (*statsTable, error) {
	tx, arrived := of.tx, of.arrived
	whole := st
	st = new(stats)
	*st = *whole
	st.search = *of.search
	table := st.emptyTable()
	if st.series && st.from >= st.to {
		return table, nil // there is no bucket
	}
	if _, err := tx.Exec(ctx, exportMemory); err != nil {
		return nil, err
	}
	collect := func(kind statsKind, groups []string) ([][]json.RawMessage, error) {
		if err := setTimeout(ctx, tx, st.deadline); err != nil {
			return nil, err
		}
		return collect(ctx, tx, st.statement(arrived, kind, groups))
	}
	var groups []string // the keys of those that are told apart
	if len(st.by) > 0 {
		keyed, err := collect(statsGroups, nil)
		if err != nil {
			return nil, err
		}
		isMore := len(keyed) > st.limit
		keyed = keyed[:min(len(keyed), st.limit)]
		groups = make([]string, len(keyed))
		for i, row := range keyed {
			if err := json.Unmarshal(row[0], &groups[i]); err != nil {
				return nil, err
			}
			keyed[i] = row[1:]
		}
		if isMore {
			if table.Others, err = collect(statsOthers, groups); err != nil {
				return nil, err
			}
		}
		if !st.series {
			table.Rows = append(table.Rows, keyed...)
			return table, nil
		}
	}
	rows, err := collect(statsRows, groups)
	table.Rows = append(table.Rows, rows...)
	return table, err
}

// collect returns the rows of a statement whose columns are jsonb.
func collect(ctx context.Context, tx pgx.Tx, st *statement) ([][]json.RawMessage, error) {
	rows, err := tx.Query(ctx, st.sql.String(), st.args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(r pgx.CollectableRow) ([]json.RawMessage, error) {
		cells := make([]*string, len(r.FieldDescriptions()))
		into := make([]any, len(cells))
		for i := range cells {
			into[i] = &cells[i]
		}
		err := r.Scan(into...)
		row := make([]json.RawMessage, len(cells))
		for i, cell := range cells {
			row[i] = json.RawMessage("null")
			if cell != nil {
				row[i] = json.RawMessage(*cell)
			}
		}
		return row, err
	})
}

// The statements of stats.
type statsKind int

const (
	statsGroups statsKind = iota // the groups in order, one more than the limit, with their keys before them
	statsRows                    // the rows of the groups told apart
	statsOthers                  // the rows of all other groups together
)

// addHaving adds the conditions that a group must meet.
func (st *stats) addHaving(s *statement, span float64) {
	for i, h := range st.having {
		s.sql.WriteString([]string{" HAVING ", " AND "}[min(i, 1)] + "(" + h.sql(&s.args, span) + ")")
	}
}

// statement returns a statement of stats. groups are the keys of the groups that are told apart.
func (st *stats) statement(arrived spans, kind statsKind, groups []string) *statement {
	s := new(statement)
	series := st.series && kind != statsGroups
	window := float64(st.to-st.from) / 1000
	span := window
	if series {
		span = float64(st.interval) / 1000
	}
	var keys, columns []string
	for i, path := range st.by {
		keys = append(keys, fmt.Sprintf("%s AS k%d", cutText(value(path, &s.args)), i))
		columns = append(columns, fmt.Sprintf("k%d", i))
	}
	key := "ROW(" + strings.Join(columns, ", ") + ")::text"
	var selected, grouped []string
	if kind == statsGroups {
		selected = append(selected, "to_jsonb("+key+")::text")
	}
	if series {
		selected = append(selected, `to_jsonb(to_char(bucket AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'))::text`)
		grouped = append(grouped, "bucket")
	}
	for _, column := range columns {
		if kind == statsOthers {
			selected = append(selected, `'"(others)"'::text`)
			continue
		}
		selected = append(selected, "to_jsonb("+column+")::text")
		grouped = append(grouped, column)
	}
	var order string
	for i, c := range st.calcs {
		figure := c.sql(&s.args, span)
		selected = append(selected, "("+figure+")::text")
		if i == st.order {
			order = figure
		}
	}
	s.sql.WriteString("SELECT " + strings.Join(selected, ", ") + " FROM ")
	records := func(series bool) {
		s.sql.WriteString("(SELECT id, at, time, inserted_at, data")
		if series {
			s.sql.WriteString(", " + bucketStart(&st.search, s) + " AS bucket")
		}
		for _, k := range keys {
			s.sql.WriteString(", " + k)
		}
		s.sql.WriteString(" FROM ")
		s.found(&st.search, arrived)
		s.sql.WriteString(") AS logs")
	}
	records(series)
	switch {
	case kind == statsRows && groups != nil:
		s.sql.WriteString(" WHERE " + key + " = ANY (" + s.args.Add(groups) + ")")
	case kind == statsOthers:
		s.sql.WriteString(" WHERE " + key + " <> ALL (" + s.args.Add(groups) + ")")
		if st.having != nil {
			s.sql.WriteString(" AND " + key + " IN (SELECT " + key + " FROM ")
			records(false)
			s.sql.WriteString(" GROUP BY " + strings.Join(columns, ", "))
			st.addHaving(s, window)
			s.sql.WriteString(")")
		}
	}
	if len(grouped) > 0 {
		s.sql.WriteString(" GROUP BY " + strings.Join(grouped, ", "))
	}
	if kind == statsGroups || len(columns) == 0 {
		st.addHaving(s, span)
	}
	direction := " DESC NULLS LAST"
	if st.rising {
		direction = " ASC NULLS LAST"
	}
	if order != "" {
		order = st.calcs[st.order].orderSQL(order, direction)
	}
	switch {
	case kind == statsGroups:
		s.sql.WriteString(" ORDER BY " + order)
		for _, column := range columns {
			s.sql.WriteString(", " + column + ` COLLATE "C"`)
		}
		s.sql.WriteString(" LIMIT " + s.args.Add(st.limit+1))
	case series:
		s.sql.WriteString(" ORDER BY bucket")
		if kind == statsRows && len(columns) > 0 {
			s.sql.WriteString(", " + order)
			for _, column := range columns {
				s.sql.WriteString(", " + column + ` COLLATE "C"`)
			}
		}
	}
	return s
}
