package language

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"millrace/internal/archive"
	"millrace/internal/archive/archivetest"
)

// columnKinds makes a registry that has kinds for the paths that the generator's records have, so that few values are of their column's
// kind.
func (g generator) columnKinds() map[string]archive.Kind {
	known := make(map[string]archive.Kind)
	for _, name := range []string{"a", "b", "c", "level", "a.b", "a.a", "b.level", `q"u`, "é", "x y", "%", "*", `\`, "a.c"} {
		if g.IntN(2) == 0 {
			known[name] = archive.Kind(g.IntN(int(archive.Nanos) + 1))
		}
	}
	return known
}

// checkColumns compares a selector with a matcher over all rows of a file.
func checkColumns(t *testing.T, f *archive.File, rows []archive.Row, n node, pick func(g *archive.Group) archive.Bits) (found int) {
	t.Helper()
	selector, match := Query{root: n}.Selector(), compile(n)
	var r Record
	base := 0
	for k := range f.Groups {
		g := f.Group(k)
		among := pick(g)
		got, err := selector.Select(t.Context(), g, among)
		if err != nil {
			t.Fatalf("%s: %v", n, err)
		}
		for i := range g.Rows {
			row := rows[base+i]
			r.ID, r.Time, r.InsertedAt = row.ID, time.UnixMicro(row.Time), time.UnixMicro(row.InsertedAt)
			if row.Time == archive.NoTime {
				r.Time = r.InsertedAt
			}
			if err := r.Read(row.Data); err != nil {
				t.Fatal(err)
			}
			want := among.Has(i) && match(&r)
			if got.Has(i) != want {
				var columns string
				for _, c := range f.Columns {
					columns += fmt.Sprintf(" %q %s %d,", c.Name, c.Kind, c.Form)
				}
				t.Fatalf("%s (%T)\nrow %d of row group %d: in columns %t, by the matcher %t, looked at %t\n%s\ncolumns%s", n, n, i, k, got.Has(i), want, among.Has(i), row.Data, columns)
			}
			if want {
				found++
			}
		}
		base += g.Rows
	}
	return found
}

func everyRow(g *archive.Group) archive.Bits { return archive.AllBits(g.Rows) }

// TestColumnsAndMatchersAgree compares selectors with matchers over generated records and queries.
func TestColumnsAndMatchersAgree(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	g := generator{rand.New(rand.NewPCG(seed, 0))}
	found := make(map[string]int)
	for range 12 {
		var rows []archive.Row
		for n := range 400 {
			record := archivetest.JSONB(nil, g.object(0))
			if g.IntN(3) == 0 { // many of few kinds, for columns without rests
				record = archivetest.JSONB(nil, map[string]any{"level": g.pick("error", "Error", "warn"), "a": g.word(), "n": json.Number(numbers[g.IntN(len(numbers))])})
			}
			row := archive.Row{ID: rowID(n + 1), Time: rowTime(n + 1).UnixMicro(), InsertedAt: rowTime(n + 8).UnixMicro(), Data: record}
			if n%5 == 0 {
				row.Time = archive.NoTime
			}
			rows = append(rows, row)
		}
		f, _, _ := archivetest.File(t, archive.NewRegistry(g.columnKinds()), func(add func(*archive.Row)) {
			for i := range rows {
				add(&rows[i])
			}
		})
		for range 250 {
			n := g.node(0)
			pick := everyRow
			if g.IntN(3) == 0 {
				pick = func(group *archive.Group) archive.Bits {
					some := archive.NewBits(group.Rows)
					for range 100 {
						some.Set(g.IntN(group.Rows))
					}
					return some
				}
			}
			if count := checkColumns(t, f, rows, n, pick); count > 0 && count < len(rows) {
				found[fmt.Sprintf("%T", n)]++
			}
		}
	}
	t.Logf("queries that found some records and not all: %v", found)
	for _, kind := range []string{"all", "either", "not", "text", "equals", "exists", "like", "within", "contains", "same", "matching", "network", "column", "moment", "identity"} {
		if found["language."+kind] == 0 {
			t.Errorf("no query of the kind %s told records apart", kind)
		}
	}
}

// serviceQueries are what people ask of records like those of services.
var serviceQueries = []string{
	``, `level:error`, `-level:error`, `level:(error OR warn) service:checkout`, `"connection reset"`, `CONNECTION`, `user*5175`, `user:*`, `"user:51751"`, `404`, `400`, `http.status:400`, `http.status:"400"`,
	`http.status:>=500`, `http.status:[400 TO 499]`, `duration_ms:>100.5`, `duration_ms:<=1e2`, `duration_ms:unknown`, `-duration_ms:>100`, `duration_ms:42.974`, `http:*`, `error:*`, `error:null`, `tags:blue`, `tags.zone:3`,
	`labels.attr_7:*`, `labels.attr_7:true`, `labels.attr_7:>500`, `labels:*`, `value-7`, `true`, `timestamp:>=2026-11-23T09:00:10Z`, `timestamp:2026-11-23T09*`, `"09:00:1"`, `http.path:*orders*`, `http.path~ORDERS`,
	`-level:info http.path:*orders* duration_ms:>=100.5`, `level:error OR http.status:500`, `nosuch:*`, `-nosuch:x`, `32`, `duration_ms:*2.9*`, `ſerved`, `level:i(ERROR)`, `message:/user:\d+5 /`, `message~"POOL AFTER 3"`,
	`time:>=2026-11-23T09:00:03Z`, `inserted_at:<2026-11-23T09:00:03Z`, `"é"`, `level:7`, `http.status:2*`, `duration_ms:/^1\d\./`, `trace_id:deadbeef`, `host:web-0*`,
}

func TestColumnsAndMatchersAgreeOnServices(t *testing.T) {
	maker := archivetest.NewRows(rand.Uint64())
	var rows []archive.Row
	f, _, _ := archivetest.File(t, archive.NewRegistry(nil), func(add func(*archive.Row)) {
		for i := range 20_000 {
			record := maker.Messy()
			if i%2 == 0 {
				record = maker.Service(nil)
			}
			rows = append(rows, *maker.Row(record))
			add(&rows[i])
		}
	})
	var first struct {
		Trace string `json:"trace_id"`
	}
	if err := json.Unmarshal(rows[0].Data, &first); err != nil {
		t.Fatal(err)
	}
	for _, q := range append(serviceQueries, "trace_id:"+first.Trace) {
		parsed, err := Parse(q)
		if err != nil {
			t.Fatal(err)
		}
		checkColumns(t, f, rows, parsed.node(), everyRow)
	}
}

// TestColumnsAndMatchersAgreeAtTheEdges asks for values beside those that columns have: between two doubles, between two integers, within
// a microsecond.
func TestColumnsAndMatchersAgreeAtTheEdges(t *testing.T) {
	bounds := map[string][]string{
		"n": {"0.1", "0.1000000000000000055", "0.09999999999999999", "0.3", "0.30000000000000001", "1e-400", "-1e-400", "0", "1e400", "-1e400", "123456789012345", "123456789012344.9999", "1.7976931348623157e308"},
		"i": {"123456789012345678", "123456789012345677.5", "123456789012345678.5", "-123456789012345678", "-123456789012345678.5", "9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809", "1e400", "-1e400", "0", "0.5"},
		"t": {"2026-03-04T12:00:00.123456Z", "2026-03-04T12:00:00.123457Z", "2026-03-04T12:00:00.123456789Z", "2026-03-04T13:00:00.123456+01:00", "1969-12-31T23:59:59.999999Z", "1970-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"},
		"m": {"2026-03-04T12:00:00.123Z", "2026-03-04T12:00:00.123001Z", "2026-03-04T12:00:00.122999Z", "9999-12-31T23:59:59.999Z", "0000-01-01T00:00:00Z"},
	}
	values := map[string][]any{
		"n": {json.Number("0.1"), json.Number("0.3"), json.Number("0"), json.Number("123456789012345"), json.Number("-0.1"), json.Number("5")},
		"i": {json.Number("123456789012345678"), json.Number("123456789012345677"), json.Number("-123456789012345678"), json.Number("0"), json.Number("1")},
		"t": {"2026-03-04T12:00:00.123456789Z", "2026-03-04T12:00:00.123456000Z", "2026-03-04T12:00:00.123457000Z", "2026-03-04T12:00:00.123455999Z", "1969-12-31T23:59:59.999999999Z", "1970-01-01T00:00:00.000000000Z"},
		"m": {"2026-03-04T12:00:00.123Z", "2026-03-04T12:00:00.122Z", "0000-01-01T00:00:00.000Z", "9999-12-31T23:59:59.999Z"},
	}
	var rows []archive.Row
	for i := range 6 {
		record := make(map[string]any)
		for name, all := range values {
			record[name] = all[i%len(all)]
		}
		rows = append(rows, archive.Row{ID: rowID(i), InsertedAt: rowTime(i).UnixMicro(), Data: archivetest.JSONB(nil, record)})
	}
	kinds := map[string]archive.Kind{"n": archive.Double, "i": archive.Integer, "t": archive.Nanos, "m": archive.Micros}
	f, _, _ := archivetest.File(t, archive.NewRegistry(kinds), func(add func(*archive.Row)) {
		for i := range rows {
			add(&rows[i])
		}
	})
	if f.Groups[0].RestRows > 0 || len(f.Columns) != len(kinds) {
		t.Fatalf("%d rows have a rest, and the columns are %v: this test is one of columns", f.Groups[0].RestRows, f.Columns)
	}
	for name, all := range bounds {
		var queries []string
		for _, bound := range all {
			for _, operator := range []string{">", ">=", "<", "<="} {
				queries = append(queries, name+":"+operator+bound)
			}
			queries = append(queries, name+":"+bound, name+`:"`+bound+`"`)
			for _, other := range all {
				queries = append(queries, name+":["+bound+" TO "+other+"}")
			}
		}
		for _, q := range queries {
			parsed, err := Parse(q)
			if err != nil {
				t.Fatalf("%s: %v", q, err)
			}
			checkColumns(t, f, rows, parsed.node(), everyRow)
		}
	}
}
