package query

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"millrace/internal/archive"
	"millrace/query/columns"
	"millrace/query/language"
)

const (
	// mostTableBytes bounds the memory of a table of stats that is computed here, and mostTablesBytes that of all at once.
	mostTableBytes, mostTablesBytes = 128 << 20, 256 << 20
)

// read computes the table of a part of the search's window. Where files have some of the rows it is computed here, of the values that files and logs have. If
// that takes too much memory or a file can't be read, it is computed in PostgreSQL, which may have those rows yet.
func (st *stats) read(ctx context.Context, of *part) (*statsTable, error) {
	if len(of.files.files) == 0 {
		return st.readLogs(ctx, of)
	}
	table, err := st.readFiles(ctx, of)
	var unread *rangeFailure
	if err == nil || !errors.Is(err, columns.ErrLarge) && !errors.As(err, &unread) {
		return table, err
	}
	if of, err = of.store.logsPart(ctx, of.tx, of.search, of.deadline); err != nil {
		return nil, err
	}
	if err := of.bring(ctx, 0); err != nil {
		return nil, err
	}
	return st.readLogs(ctx, of)
}

// functions are those of figures whose values are computed of rows. Others follow from them.
var functions = map[string]columns.Function{
	"count": columns.CountRows, "rate": columns.CountRows, "sum": columns.Sum, "avg": columns.Average, "min": columns.Least, "max": columns.Greatest,
	"p": columns.Quantile, "uniq": columns.Distinct, "first": columns.First, "last": columns.Last, "share": columns.Share,
}

// figure returns what the figure is of columns.
func (c calc) figure() columns.Figure {
	f := columns.Figure{Function: functions[c.function], Field: c.path, Quantile: c.quantile, Query: c.query}
	if c.function == "count" && c.path != nil {
		f.Function = columns.CountValues
	}
	return f
}

// readFiles computes the table of the rows of all sources.
func (st *stats) readFiles(ctx context.Context, of *part) (*statsTable, error) {
	a := &statsAnswer{stats: st, search: of.search, span: float64(of.search.to-of.search.from) / 1000}
	if st.series && a.search.from >= a.search.to {
		return st.emptyTable(), nil // there is no bucket
	}
	var figures []columns.Figure
	for _, c := range st.calcs {
		figures = append(figures, c.figure())
	}
	for _, h := range st.having {
		figures = append(figures, h.calc.figure())
	}
	var edges []int64
	if st.series {
		for _, edge := range a.search.edges {
			edges = append(edges, micros(edge))
		}
	}
	taken, give := 0, func(bytes int) { of.store.files.tableBytes.Add(-int64(bytes)) }
	defer func() { give(taken) }()
	a.table = columns.NewTable(st.by, figures, edges, func(bytes int) error {
		more := bytes - taken
		taken = bytes
		if all := of.store.files.tableBytes.Add(int64(more)); bytes > mostTableBytes || all > mostTablesBytes {
			return columns.ErrLarge
		}
		return nil
	})
	for _, s := range of.sources {
		if err := s.stats(ctx, st, a.table); err != nil {
			return nil, err
		}
	}
	a.table.Done()
	return a.rows(ctx)
}

// stats adds the rows found to a table.
func (s *filesSource) stats(ctx context.Context, _ *stats, t *columns.Table) error {
	return s.each(ctx, s.columns(), func(ctx context.Context, of *columns.Search) error { return of.Stats(ctx, t) })
}

// microsTo2000 is where PostgreSQL's times begin, in Unix microseconds.
const microsTo2000 = 946_684_800_000_000

// stats adds the rows found to a table.
func (s *tableSource) stats(ctx context.Context, st *stats, t *columns.Table) error {
	if err := setTimeout(ctx, s.tx, s.search.deadline); err != nil {
		return err
	}
	query := st.valuesStatement(s.search, s.arrived, t.Fields())
	rows, err := s.tx.Query(ctx, query.sql.String(), query.args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	into := t.Rows()
	var shares []bool
	for rows.Next() {
		raw := rows.RawValues()
		at, id, values := int64(binary.BigEndian.Uint64(raw[0]))+microsTo2000, [16]byte(raw[1]), raw[2:]
		by, values := values[:len(st.by)], values[len(st.by):]
		fields, values := values[:len(t.Fields())], values[len(t.Fields()):]
		shares = shares[:0]
		for _, value := range values {
			shares = append(shares, len(value) == 1 && value[0] == 1)
		}
		if err := into.Add(at, id, by, fields, shares); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	return into.Flush()
}

// valuesStatement selects what stats are computed of, row by row: the time, the id, the texts of the fields grouped by, values of fields, and whether the row satisfies the
// queries of shares.
func (st *stats) valuesStatement(q *search, arrived spans, fields [][]string) *statement {
	s := new(statement)
	selected := []string{"at", "id"}
	for _, path := range st.by {
		selected = append(selected, cutText(value(path, &s.args)))
	}
	for _, path := range fields {
		selected = append(selected, value(path, &s.args)+"::text")
	}
	share := func(c calc) {
		if c.function == "share" {
			selected = append(selected, "("+c.query.SQL(&s.args, nil)+")")
		}
	}
	for _, c := range st.calcs {
		share(c)
	}
	for _, h := range st.having {
		share(h.calc)
	}
	s.sql.WriteString("SELECT " + strings.Join(selected, ", ") + " FROM (SELECT id, at, time, inserted_at, data FROM ")
	s.found(q, arrived)
	s.sql.WriteString(") AS logs")
	return s
}

// statsAnswer puts an answer together from a table that has all rows.
type statsAnswer struct {
	*stats
	search *search
	table  *columns.Table
	span   float64 // seconds of the window
}

// value returns a figure of some cells that span so many seconds.
func (a *statsAnswer) value(number int, c calc, cells []uint32, span float64) columns.Value {
	v := a.table.Value(number, cells)
	if c.function == "rate" {
		n, _ := v.Number()
		var rows float64
		_ = json.Unmarshal([]byte(n), &rows) // it is a number
		return columns.NumberOf(rows / span)
	}
	return v
}

// isHad reports whether a group meets the conditions.
func (a *statsAnswer) isHad(cells []uint32, span float64) bool {
	for i, h := range a.having {
		v := a.value(len(a.calcs)+i, h.calc, cells, span)
		if !h.isMet(&v) {
			return false
		}
	}
	return true
}

// isMet reports whether a figure's value meets the condition.
func (h having) isMet(v *columns.Value) bool {
	if h.text {
		text, ok := v.Text()
		return ok && h.isMetBy(strings.Compare(text, h.value))
	}
	number, ok := v.Number()
	return ok && h.isMetBy(language.CompareNumbers(number, h.value))
}

// group is a group of a table, and where it comes in the order.
type groupOf struct {
	number int
	keys   []string
	has    []bool
	by     columns.Value
	cell   uint32 // of a bucket
}

// compare orders groups as answers have them.
func (a *statsAnswer) compare(x, y *groupOf) int {
	n := 0
	switch {
	case x.by.Is && y.by.Is:
		if n = x.by.Compare(&y.by); !a.rising {
			n = -n
		}
	case x.by.Is: // null comes last
		n = -1
	case y.by.Is:
		n = 1
	}
	for i := 0; i < len(x.keys) && n == 0; i++ {
		switch {
		case x.has[i] && y.has[i]:
			n = strings.Compare(x.keys[i], y.keys[i])
		case x.has[i]:
			n = -1
		case y.has[i]:
			n = 1
		}
	}
	return n
}

// rows returns the answer.
func (a *statsAnswer) rows(ctx context.Context) (*statsTable, error) {
	answer := a.emptyTable()
	if len(a.by) == 0 {
		if a.table.Groups() > 0 {
			answer.Rows = append(answer.Rows, a.ofCells(a.table.Cells(0), nil)...)
		}
		return answer, nil
	}
	var groups []groupOf
	for number := range a.table.Groups() {
		if number%4096 == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		cells := a.table.Cells(number)
		if !a.isHad(cells, a.span) {
			continue
		}
		g := groupOf{number: number, by: a.value(a.order, a.calcs[a.order], cells, a.span)}
		g.keys, g.has = a.table.Key(number)
		groups = append(groups, g)
	}
	slices.SortFunc(groups, func(x, y groupOf) int { return a.compare(&x, &y) })
	told := groups[:min(len(groups), a.limit)]
	if len(groups) > len(told) {
		var cells []uint32
		for _, g := range groups[len(told):] {
			cells = append(cells, a.table.Cells(g.number)...)
		}
		others := make([]json.RawMessage, len(a.by))
		for i := range others {
			others[i] = json.RawMessage(`"(others)"`)
		}
		answer.Others = a.ofCells(cells, others)
	}
	if !a.series {
		for i := range told {
			answer.Rows = append(answer.Rows, a.row(nil, told[i].names(), a.table.Cells(told[i].number), a.span))
		}
		return answer, nil
	}
	// Within a bucket the groups come in the order of their figures there.
	seconds := float64(a.interval) / 1000
	var all []groupOf
	for _, g := range told {
		for _, cell := range a.table.Cells(g.number) {
			of := g
			of.cell = cell
			of.by = a.value(a.order, a.calcs[a.order], []uint32{cell}, seconds)
			all = append(all, of)
		}
	}
	slices.SortFunc(all, func(x, y groupOf) int {
		return cmp.Or(cmp.Compare(a.table.Bucket(x.cell), a.table.Bucket(y.cell)), a.compare(&x, &y))
	})
	for i := range all {
		answer.Rows = append(answer.Rows, a.row(a.time(all[i].cell), all[i].names(), []uint32{all[i].cell}, seconds))
	}
	return answer, nil
}

// names returns the values of the group's fields as JSON.
func (g *groupOf) names() (names []json.RawMessage) {
	for i, key := range g.keys {
		name := json.RawMessage("null")
		if g.has[i] {
			name = archive.AppendString(nil, []byte(key))
		}
		names = append(names, name)
	}
	return names
}

// time returns the beginning of a cell's bucket as JSON.
func (a *statsAnswer) time(cell uint32) json.RawMessage {
	return fmt.Appendf(nil, "%q", appendEdge(nil, a.search.edges[a.table.Bucket(cell)]))
}

// ofCells returns the row of cells together, or one for each bucket that they are of.
func (a *statsAnswer) ofCells(cells []uint32, names []json.RawMessage) (rows [][]json.RawMessage) {
	if !a.series {
		if names == nil && !a.isHad(cells, a.span) {
			return nil
		}
		return append(rows, a.row(nil, names, cells, a.span))
	}
	seconds := float64(a.interval) / 1000
	cells = slices.Clone(cells)
	slices.SortStableFunc(cells, func(x, y uint32) int { return cmp.Compare(a.table.Bucket(x), a.table.Bucket(y)) })
	for len(cells) > 0 {
		n := 1
		for n < len(cells) && a.table.Bucket(cells[n]) == a.table.Bucket(cells[0]) {
			n++
		}
		if names != nil || a.isHad(cells[:n], seconds) {
			rows = append(rows, a.row(a.time(cells[0]), names, cells[:n], seconds))
		}
		cells = cells[n:]
	}
	return rows
}

// row returns a row of the answer.
func (a *statsAnswer) row(time json.RawMessage, names []json.RawMessage, cells []uint32, span float64) (row []json.RawMessage) {
	if time != nil {
		row = append(row, time)
	}
	row = append(row, names...)
	for i, c := range a.calcs {
		v := a.value(i, c, cells, span)
		row = append(row, v.JSON())
	}
	return row
}
