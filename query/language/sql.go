package language

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"millrace/internal/eventtime"
	"millrace/internal/fieldindex"
)

// Args are the arguments of a statement. Everything that came from outside is an argument, never SQL.
type Args []any

// Add adds an argument and returns its placeholder.
func (a *Args) Add(value any) string {
	*a = append(*a, value)
	return "$" + strconv.Itoa(len(*a))
}

// Indexed are fields that have an index, see package fieldindex, each by the names on the way to it.
type Indexed [][]string

// SQL returns the condition that is true for the rows whose column data satisfies the query. It adds the condition's
// arguments to args. Tests of equality on the fields that are indexed can be looked up.
func (q Query) SQL(args *Args, indexed Indexed) string {
	w := conditionWriter{args: args, indexed: indexed}
	w.node(q.node())
	return w.sql.String()
}

// conditionWriter writes a condition.
type conditionWriter struct {
	sql     strings.Builder
	args    *Args
	indexed Indexed
}

// node adds a condition that is true where n holds, and false or null where n does not.
//
// jsonpath follows a path in its lax mode, which steps into an array wherever one stands. A comparison in a filter would
// step into one more array, so it asks for the type first.
func (w *conditionWriter) node(n node) {
	switch n := n.(type) {
	case all:
		if len(n) == 0 {
			w.sql.WriteString("true")
		}
		for i, part := range n {
			if i > 0 {
				w.sql.WriteString(" AND ")
			}
			w.operand(part)
		}
	case either:
		for i, part := range n {
			if i > 0 {
				w.sql.WriteString(" OR ")
			}
			w.operand(part)
		}
	case not:
		w.operand(n.node)
		w.sql.WriteString(" IS NOT TRUE")
	case equals:
		w.equals(n)
	case exists:
		w.predicate(n.path, func(way string) string { return "exists(" + way + ")" })
	case text:
		w.text(n.pattern)
	case like:
		w.anyValue(n.path, "jsonb_typeof(v) IN ('string', 'number', 'boolean') AND v #>> '{}' LIKE "+w.args.Add(likePattern(n.pattern)))
	case contains:
		w.matches(n.path, foldRegexp(n.pattern), n.pattern.mayBeInNumbers())
	case same:
		w.matches(n.path, `\A`+foldRegexp(pattern{n.value})+`\Z`, pattern{n.value}.mayBeInNumbers())
	case matching:
		w.matches(n.path, n.forPostgres, true)
	case network:
		w.network(n)
	case within:
		w.within(n)
	case column:
		w.between(columns[n.name], n.low, n.high)
	case moment:
		w.equals(equals{path: firmPath(n.name), value: n.word})
		w.sql.WriteString(" OR ")
		w.between(columns[n.name], bound{kind: temporal, inclusive: true, at: n.from}, bound{kind: temporal, at: n.to})
	case identity:
		w.equals(equals{path: firmPath("id"), value: n.word})
		w.sql.WriteString(" OR id = " + w.args.Add([16]byte(n.id)))
	default:
		panic(fmt.Sprintf("language: no SQL for %T", n))
	}
}

// operand adds the condition of a node that stands beside others.
func (w *conditionWriter) operand(n node) {
	w.sql.WriteByte('(')
	w.node(n)
	w.sql.WriteByte(')')
}

// predicate adds a jsonpath predicate that one of the ways to a member satisfies. A GIN index (jsonb_path_ops) serves it as far as it is
// made of ==.
func (w *conditionWriter) predicate(p path, of func(way string) string) {
	var parts []string
	for _, way := range p.ways() {
		parts = append(parts, of(jsonPath(way)))
	}
	w.sql.WriteString("data @@ " + w.args.Add(strings.Join(parts, " || ")))
}

// anyValue adds the condition that a condition on v holds for a value at the path, or for a member of an array there.
func (w *conditionWriter) anyValue(p path, condition string) {
	for i, way := range p.ways() {
		if i > 0 {
			w.sql.WriteString(" OR ")
		}
		fmt.Fprintf(&w.sql, "EXISTS (SELECT FROM jsonb_path_query(data, %s) AS v WHERE %s)", w.args.Add(ValuesPath(way)), condition)
	}
}

// matches adds the condition that a regular expression matches a value at the path. inNumbers says that it may match a number's text, true
// or false.
func (w *conditionWriter) matches(p path, re string, inNumbers bool) {
	w.predicate(p, func(way string) string {
		return "exists(" + way + ` ? (@.type() == "string" && @ like_regex ` + jsonString(re) + ` flag "s"))`
	})
	if inNumbers {
		w.sql.WriteString(" OR ")
		w.anyValue(p, "jsonb_typeof(v) IN ('number', 'boolean') AND v #>> '{}' ~ "+w.args.Add(re))
	}
}

// network adds the condition that the member at a path is an address of a network, or its word.
func (w *conditionWriter) network(n network) {
	w.equals(equals{path: n.path, value: n.word})
	w.sql.WriteString(" OR ")
	// CASE keeps the cast from texts that are no addresses.
	w.anyValue(n.path, fmt.Sprintf("CASE WHEN jsonb_typeof(v) = 'string' AND v #>> '{}' ~ %s THEN (v #>> '{}')::inet <<= %s::inet END",
		w.args.Add(n.isAddress()), w.args.Add(n.prefix.String())))
}

// columns are the columns with times, as SQL.
var columns = map[string]string{"time": "(" + TimeSQL + ")", "inserted_at": "inserted_at"}

// TimeSQL is a row's time. A row that has none of its own counts as if its event had happened when it came.
const TimeSQL = "CASE WHEN time = " + eventtime.NoTimeSQL + " THEN inserted_at ELSE time END"

// between adds the condition that a time lies between two bounds. One of them may be open.
func (w *conditionWriter) between(at string, low, high bound) {
	if low.kind != open {
		w.sql.WriteString(at + " " + operator(">", low) + " " + w.args.Add(low.at))
	}
	if low.kind != open && high.kind != open {
		w.sql.WriteString(" AND ")
	}
	if high.kind != open {
		w.sql.WriteString(at + " " + operator("<", high) + " " + w.args.Add(high.at))
	}
}

// mostDocuments is the most documents that a test of equality makes, to ask whether the record contains one of them. If it takes
// more, the test is a jsonpath. One document costs as much as jsonpath (0.15 µs a row, PostgreSQL 15), two cost 0.2, eight 0.7
// against 0.3. The index serves both.
const mostDocuments = 4

// equals adds the condition that the member at a path is a value.
func (w *conditionWriter) equals(n equals) {
	readings := []string{jsonString(n.value)}
	if n.typed && (!isNumber(n.value) || isStorable(n.value)) {
		readings = append(readings, n.value)
	}
	if slices.ContainsFunc(w.indexed, func(names []string) bool { return slices.Equal(names, n.path.names) }) {
		values := make([]string, len(readings))
		for i, value := range readings {
			values[i] = w.args.Add(value) + "::jsonb"
		}
		w.sql.WriteString(fieldindex.Condition(n.path.names, values) + " AND (")
		defer w.sql.WriteByte(')')
	}
	var docs []string
	for _, way := range n.path.ways() {
		if len(way) >= mostDocuments || len(docs)+len(readings)<<len(way) > mostDocuments { // first: a long path would shift to nothing
			docs = nil
			break
		}
		docs = append(docs, containments(way, readings)...)
	}
	if docs == nil {
		w.predicate(n.path, func(way string) string {
			tests := make([]string, len(readings))
			for i, value := range readings {
				tests[i] = way + " == " + value
			}
			return strings.Join(tests, " || ")
		})
		return
	}
	for i, doc := range docs {
		if i > 0 {
			w.sql.WriteString(" OR ")
		}
		w.sql.WriteString("data @> " + w.args.Add(doc))
	}
}

// containments returns documents with and without an array at each step. A record contains one of them if its member at the
// path is one of the values.
func containments(path, values []string) []string {
	docs := values
	for i := len(path) - 1; i >= 0; i-- {
		name := jsonString(path[i])
		var longer []string
		for _, doc := range docs {
			longer = append(longer, "{"+name+":"+doc+"}", "{"+name+":["+doc+"]}")
		}
		docs = longer
	}
	return docs
}

// text adds the condition that the pattern is in one of the record's values. The record's JSON is looked at first: that costs
// half as much, and most records don't have the pattern there.
//
// CASE keeps that order. In an AND the planner would reverse it, because it thinks that the look at the JSON, a cast and a
// comparison, costs more than the one operator. The CASE's value is compared with something, which tells the planner that few
// records match. If the CASE itself were the condition, the planner would expect every second record to match, and would
// rather read all rows in their order than look up those of a trace.
func (w *conditionWriter) text(p pattern) {
	escaped := make(pattern, len(p))
	for i, part := range p {
		escaped[i] = escapeJSON(part)
	}
	re := w.args.Add(foldRegexp(escaped))
	exact := w.args.Add(`strict exists($.** ? (@ like_regex ` + jsonString(foldRegexp(p)) + ` flag "s"))`)
	if !p.mayBeInNumbers() {
		fmt.Fprintf(&w.sql, "CASE WHEN data::text ~ %s THEN data END @@ %s", re, exact)
		return
	}
	fmt.Fprintf(&w.sql, `CASE WHEN data::text ~ %s THEN (data @@ %s OR EXISTS (SELECT FROM jsonb_path_query(data, `+
		`'strict $.** ? (@.type() == "number" || @.type() == "boolean")') AS v WHERE v #>> '{}' ~ %[1]s))::int END = 1`, re, exact)
}

// within adds the condition that the member at a path lies between two bounds.
func (w *conditionWriter) within(n within) {
	if n.low.kind == numeric || n.high.kind == numeric {
		test := ""
		exact := "(v #>> '{}')::numeric"
		var tests []string
		if n.low.kind != open {
			test += " && @ " + operator(">", n.low) + " " + n.low.number.String()
			tests = append(tests, exact+" "+operator(">", n.low)+" "+w.args.Add(n.low.number.String())+"::numeric")
		}
		if n.high.kind != open {
			test += " && @ " + operator("<", n.high) + " " + n.high.number.String()
			tests = append(tests, exact+" "+operator("<", n.high)+" "+w.args.Add(n.high.number.String())+"::numeric")
		}
		w.predicate(n.path, func(way string) string { return `exists(` + way + ` ? (@.type() == "number"` + test + `))` })
		// Few records have numbers in strings, and those cost more.
		w.sql.WriteString(" OR (")
		w.predicate(n.path, func(way string) string {
			return `exists(` + way + ` ? (@.type() == "string" && @ like_regex "^-?[0-9]"))`
		})
		w.sql.WriteString(" AND (")
		w.anyValue(n.path, fmt.Sprintf("CASE WHEN jsonb_typeof(v) = 'string' AND %s THEN %s END", IsNumberSQL("v #>> '{}'"), strings.Join(tests, " AND ")))
		w.sql.WriteString("))")
		return
	}
	for i, way := range n.path.ways() {
		if i > 0 {
			w.sql.WriteString(" OR ")
		}
		// OFFSET 0 keeps the planner from writing the cast out for each bound.
		fmt.Fprintf(&w.sql, "EXISTS (SELECT FROM (SELECT CASE WHEN jsonb_typeof(v) = 'string' AND v #>> '{}' ~ '%s' THEN %s END AS at FROM jsonb_path_query(data, %s) AS v OFFSET 0) AS times WHERE ",
			isInstant, instantOf, w.args.Add(ValuesPath(way)))
		w.between("at", n.low, n.high)
		w.sql.WriteString(")")
	}
}

// IsNumberSQL returns the condition that a text, as SQL, is a JSON number that comparisons take.
func IsNumberSQL(text string) string {
	return fmt.Sprintf("octet_length(%[1]s) <= %[2]d AND %[1]s ~ '%[3]s'", text, maxNumberText, numberText)
}

// isInstant matches what parseInstant takes: days that the months have, leap years. instantOf never fails on that.
const isInstant = `^(([0-9]{4}-((0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31))` +
	`|(([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29))` +
	`[Tt]([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(\.[0-9]+)?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$`

// instantOf is the timestamptz of a text that isInstant matches, to the microsecond. PostgreSQL's cast takes nearly all of
// them, once the fraction has no more than six digits. It does not take the year 0, which it calls 1 BC, the second 60 with a
// fraction, and offsets from 16:00 on. Those are put together of parts.
const instantOf = `CASE WHEN v #>> '{}' ~ '^0000|:60\.|[+-](1[6-9]|2[0-3]):[0-9]{2}$' THEN ` +
	`(regexp_replace(left(v #>> '{}', 16), '^0000', '0001') || 'Z' || CASE WHEN v #>> '{}' ~ '^0000' THEN ' BC' ELSE '' END)::timestamptz` +
	` + (substring(v #>> '{}' FROM '^.{17}([0-9]{2}(\.[0-9]{1,6})?)') || ' seconds')::interval` +
	` - coalesce(substring(v #>> '{}' FROM '[+-][0-9]{2}:[0-9]{2}$'), '0')::interval` +
	` ELSE regexp_replace(v #>> '{}', '(\.[0-9]{6})[0-9]+', '\1')::timestamptz END`

// operator returns the comparison for a bound.
func operator(sign string, b bound) string {
	if b.inclusive {
		return sign + "="
	}
	return sign
}

// jsonPath returns a path as PostgreSQL's jsonpath.
func jsonPath(path []string) string {
	var b strings.Builder
	b.WriteByte('$')
	for _, name := range path {
		b.WriteByte('.')
		b.WriteString(jsonString(name))
	}
	return b.String()
}

// ValuesPath returns the jsonpath of the values at a path. The members of an array stand for it.
func ValuesPath(path []string) string { return jsonPath(path) + "[*]" }

// jsonString returns a string as JSON and jsonpath write it.
func jsonString(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string always has a JSON form
	}
	return string(b)
}

// escapeJSON returns s as PostgreSQL writes it within a string of jsonb's text.
func escapeJSON(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == '"' || r == '\\' }) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		switch i := strings.IndexRune("\"\\\b\f\n\r\t", r); {
		case i >= 0:
			b.WriteByte('\\')
			b.WriteByte(`"\bfnrt`[i])
		case r < ' ':
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// likePattern returns a pattern for LIKE.
func likePattern(p pattern) string {
	parts := make([]string, len(p))
	for i, part := range p {
		parts[i] = likeQuoter.Replace(part)
	}
	return strings.Join(parts, "%")
}

var likeQuoter = strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`)

// foldRegexp returns a pattern as a regular expression for PostgreSQL. Each letter in it stands for all letters that it folds
// to. So what is found does not depend on the database's locale, and it is as fast as ~*.
func foldRegexp(p pattern) string {
	var b strings.Builder
	for i, part := range p {
		if i > 0 {
			b.WriteString(".*")
		}
		for _, r := range part {
			next := unicode.SimpleFold(r)
			switch {
			case next != r:
				b.WriteByte('[')
				for b.WriteRune(r); next != r; next = unicode.SimpleFold(next) {
					b.WriteRune(next)
				}
				b.WriteByte(']')
			case isEscapable(r) && r < utf8.RuneSelf && r > ' ':
				b.WriteByte('\\')
				b.WriteRune(r)
			default:
				b.WriteRune(r)
			}
		}
	}
	return b.String()
}
