package language

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/internal/archive"
	"millrace/internal/archive/archivetest"
	"millrace/internal/fieldindex"
	"millrace/internal/testenv"
)

// generator makes records and queries about the same few names and values, so that they meet.
type generator struct{ *rand.Rand }

func (g generator) pick(of ...string) string { return of[g.IntN(len(of))] }

func (g generator) name() string {
	return g.pick("a", "a", "b", "c", "level", "a.b", "", `q"u`, "é", "x y", "%", "*", `\`)
}

var values = []string{
	"", "error", "Error", "ERROR", "5", "500", "-5", "0.5", "true", "null", "connection reset", "CONNECTION RESET by peer", "reset",
	"Größe", "GRÖSSE", "GRÖßE", "ſtop", "STOP", "Kelvin", "kelvin", "100%", "a_b", "axb", `C:\temp`, `back\\slash`, `say "x"`, "tab\tnew\nline", "\x01", "ünïcode 😀", "a.b*c",
	"10.1.2.3", "10.0.0.0/8", "255.255.255.255", "010.1.2.3", "10.1.2", "fe80::1", "FE80::1%eth0", "::", "::ffff:10.1.2.3", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7::", "1::2::3", "2001:db8::/32",
	"1e3", "+5", " 5", "5 ", "05", "1e1000", "1e-5", "-0.0", "NaN", "first line\nsecond error", "error-17", "x\u00e4y", "018f0000-0000-7000-8000-000000000003", "2026-03-04T12:00:00.000003Z",
	"$.a", `"; DROP`, "'; DROP TABLE logs; --", "[a-z]+", "(x)", "x{2}", "\u2028", "\u0085", "İ", "ı",
	"2026-03-04T12:00:00Z", "2026-03-04T13:00:00+01:00", "2026-03-04T12:00:00.1234567Z", "2026-03-04T12:00:00.123456Z", "2026-02-30T00:00:00Z", "2024-02-29T00:00:00Z",
	"2100-02-29T00:00:00Z", "2000-02-29T23:59:59.999999999-15:59", "0001-01-01T00:00:00+10:00", "9999-12-31T23:59:59-15:00", "0000-01-01T00:00:00Z",
	"1969-12-31T23:59:59.9999999Z", "2026-03-04T24:00:00Z", "2026-03-04T12:00:60Z", "2026-03-04 12:00:00Z", "2026-03-04T12:00:00", "2026-03-04T12:00:00+16:00", "2026-03-04", "2026-12-31T00:00:00,5Z",
	"2026-03-04t12:00:00z", "2026-03-04t13:00:00.000000000001+01:00", "2026-03-04T12:00:00.999999999999Z", "2026-03-04T12:00:00.Z", "2026-03-04T12:00:00-00:00", "2026-03-04T11:59:60Z",
	"2016-12-31T23:59:60Z", "2016-12-31T15:59:60.25-08:00", "2017-01-01T00:00:00Z", "2017-01-01T00:00:00.25Z", "2016-12-31T23:59:61Z", "1969-12-31T23:59:60.9999999Z", "2026-03-05T11:59:00+23:59",
	"2026-03-03T12:01:00-23:59", "2026-03-04T12:00:00-24:00", "0000-02-29T12:00:60.123456789-23:59", "0000-12-31T23:59:60Z", "0000-01-01T00:00:00.000001+00:01", "9999-12-31T23:59:60Z",
}

var numbers = []string{"0", "-0", "5", "5.0", "5e0", "50e-1", "500", "-5", "0.5", "5e-1", "499.9999999999999999999", "500.0000000000000000001", "12345678901234567890123", "1e400", "1e-400", "-1e400", "3", "7"}

func (g generator) value(depth int) any {
	switch n := g.IntN(14); {
	case n < 5:
		return values[g.IntN(len(values))]
	case n < 8:
		return json.Number(numbers[g.IntN(len(numbers))])
	case n < 9:
		return g.IntN(2) == 0
	case n < 10:
		return nil
	case n < 12 && depth < 4:
		array := make([]any, g.IntN(4))
		for i := range array {
			array[i] = g.value(depth + 1)
		}
		return array
	case depth < 4:
		return g.object(depth + 1)
	}
	return "error"
}

func (g generator) object(depth int) map[string]any {
	o := make(map[string]any)
	for range g.IntN(5) {
		o[g.name()] = g.value(depth)
	}
	return o
}

func (g generator) path() path {
	var p path
	for len(p.names) == 0 || g.IntN(3) == 0 {
		name := g.name()
		p.names, p.firm = append(p.names, name), append(p.firm, name == "" || g.IntN(3) == 0)
	}
	return p
}

func (g generator) word() string { return values[g.IntN(len(values))] }

// pattern cuts a value at random and leaves parts out.
func (g generator) pattern() pattern {
	word := []rune(g.word())
	var p pattern
	for range 1 + g.IntN(3) {
		n := g.IntN(len(word) + 1)
		part := word[:n]
		word = word[n:]
		if len(word) > 0 && g.IntN(2) == 0 {
			word = word[1:]
		}
		if len(p) > 0 && len(p) < 3 && len(part) == 0 {
			continue
		}
		p = append(p, string(part))
	}
	return p
}

func (g generator) bounds() (low, high bound) {
	one := func(kind boundKind) bound {
		b := bound{kind: kind, inclusive: g.IntN(2) == 0}
		if kind == numeric {
			b.number = parseDecimal(numbers[g.IntN(len(numbers))])
			return b
		}
		for {
			if at, ok := parseInstant(g.word()); ok && 0 <= at.Year() && at.Year() <= 9999 {
				b.at = at
				return b
			}
		}
	}
	kind := boundKind(1 + g.IntN(2))
	switch g.IntN(3) {
	case 0:
		return one(kind), bound{}
	case 1:
		return bound{}, one(kind)
	}
	return one(kind), one(kind)
}

// node returns a query that Parse could have returned, except for what the normal form leaves out.
func (g generator) node(depth int) node {
	if depth < 4 {
		switch g.IntN(7) {
		case 0:
			return all{g.node(depth + 1), g.node(depth + 1)}
		case 1:
			return either{g.node(depth + 1), g.node(depth + 1)}
		case 2:
			return not{g.node(depth + 1)}
		}
	}
	switch g.IntN(13) {
	case 6:
		if p := g.pattern(); strings.Join(p, "") != "" && p[0] != "" && p[len(p)-1] != "" {
			return contains{g.signedPath(), p}
		}
	case 7:
		return same{g.path(), g.word()}
	case 8, 9:
		re, fold := g.pick(regexes...), g.IntN(2) == 0
		matches, forPostgres, err := parseRegex(re, fold)
		if err != nil {
			panic(re)
		}
		return matching{g.path(), re, fold, matches, forPostgres}
	case 10:
		word := g.pick("10.0.0.0/8", "10.1.2.3/32", "0.0.0.0/0", "fe80::/10", "::/0", "::ffff:10.0.0.0/104", "2001:db8::/32", "::1/128")
		return network{g.path(), netip.MustParsePrefix(word).Masked(), word}
	case 11:
		n := column{name: g.pick("time", "inserted_at")}
		one := func() bound {
			return bound{kind: temporal, inclusive: g.IntN(2) == 0, at: rowTime(g.IntN(400))}
		}
		switch g.IntN(3) {
		case 0:
			n.low = one()
		case 1:
			n.high = one()
		default:
			n.low, n.high = one(), one()
		}
		return n
	case 12:
		if g.IntN(2) == 0 {
			id := rowID(g.IntN(400))
			return identity{id, id.String()}
		}
		at := rowTime(g.IntN(400))
		return moment{g.pick("time", "inserted_at"), at.Format(microsFormat), at, at.Add(time.Microsecond)}
	case 0:
		return exists{g.path()}
	case 1:
		if p := g.pattern(); len(p) > 1 {
			return like{g.path(), p}
		}
	case 2:
		n := within{path: g.path()}
		n.low, n.high = g.bounds()
		return n
	case 3:
		if p := g.pattern(); p[0] != "" && p[len(p)-1] != "" {
			return text{p}
		}
	case 4:
		if word := numbers[g.IntN(len(numbers))]; g.IntN(2) == 0 {
			return equals{g.path(), word, true}
		}
		return equals{g.path(), g.pick("true", "false", "null"), true}
	}
	return equals{path: g.path(), value: g.word()}
}

// signedPath returns a path that a sign can stand behind.
func (g generator) signedPath() path {
	for {
		if p := g.path(); p.firm[0] || unicode.IsLetter([]rune(p.names[0])[0]) {
			return p
		}
	}
}

var regexes = []string{
	"err", "^err", "or$", "^error$", "e.*r", "[a-z]+", "[^a-z]", "^[A-Z_]+$", `\d+`, `\D`, `\s`, `\S+ \S+`, `\w+\b`, `\berror\b`, `\Br`, "(err|reset)", "^(5|500)$", "^-?[0-9]+(\\.[0-9]+)?$", "x{2}", "(a|b){0,3}c?",
	"", "a?", "(^|x)e", "$^", `^$`, `\x{e9}`, "[\\]\\[^-]", `[\s\S]{3}`, "(?s)line.second", "line.second", "(?m)^second", "(?m)line$", `\n`, `\t`, "[\x01-\x1f]", "gr(ö|o)ße", "[ß-ü]", "K", "ſ", "😀", `\.`, `\$\.a`, `a\/b`, "(?i)ERROR", "(?:ab)*?", "^.{1,5}$", `[[:alpha:]]`, `\Q$.a\E`, "(a*)*", "(a|)+x", "()",
}

// The columns of the rows.
func rowTime(n int) time.Time { return time.Date(2026, 3, 4, 12, 0, 0, n*1000, time.UTC) }
func rowID(n int) uuid.UUID {
	return uuid.MustParse(fmt.Sprintf("018f0000-0000-7000-8000-%012x", n))
}

// TestSQLAndMatchersAgree compares PostgreSQL with the matchers over generated records and queries, and the columns of the archive with
// both.
func TestSQLAndMatchersAgree(t *testing.T) {
	ctx := context.Background()
	conn := testenv.Connect(t, testenv.Database(t))
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := conn.Exec(ctx, sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	g := generator{rand.New(rand.NewPCG(seed, 0))}

	const records, queries = 400, 1500
	exec("CREATE TABLE logs (n int, data jsonb, id uuid, time timestamptz, inserted_at timestamptz)")
	docs := make([]string, records)
	for i := range docs {
		b, err := json.Marshal(g.object(0))
		if err != nil {
			t.Fatal(err)
		}
		docs[i] = string(b)
	}
	// Every fifth row has no time of its own.
	exec(`INSERT INTO logs SELECT n, doc::jsonb, ('018f0000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid,
		CASE WHEN n % 5 = 0 THEN '1970-01-01 00:00:00+00' ELSE '2026-03-04 12:00:00+00'::timestamptz + n * interval '1 us' END,
		'2026-03-04 12:00:00.000007+00'::timestamptz + n * interval '1 us'
		FROM unnest($1::text[]) WITH ORDINALITY AS t (doc, n)`, docs)
	exec("CREATE INDEX ON logs USING gin (data jsonb_path_ops)")
	indexed := Indexed{{"a"}, {"a", "b"}, {`q"u`}, {`\`, "a.b"}}
	for _, path := range indexed {
		exec("CREATE INDEX ON logs (" + fieldindex.Expression(path) + ")")
	}
	exec("ANALYZE logs")
	exec("SET jit = off") // as in the service
	rows, err := conn.Query(ctx, "SELECT data::text FROM logs ORDER BY n")
	if err != nil {
		t.Fatal(err)
	}
	stored, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}

	var archived []archive.Row
	for k, doc := range stored {
		row := archive.Row{ID: rowID(k + 1), Time: rowTime(k + 1).UnixMicro(), InsertedAt: rowTime(k + 8).UnixMicro(), Data: []byte(doc)}
		if (k+1)%5 == 0 {
			row.Time = archive.NoTime
		}
		archived = append(archived, row)
	}
	file, _, _ := archivetest.File(t, archive.NewRegistry(g.columnKinds()), func(add func(*archive.Row)) {
		for i := range archived {
			add(&archived[i])
		}
	})

	found := make(map[string]int)
	for i := range queries {
		// With the index and without it, with and without a plan of several processes.
		exec("SELECT set_config('enable_seqscan', $1, false)", g.pick("on", "off"))
		n := g.node(0)
		if parsed, err := Parse(n.String()); err != nil {
			t.Fatalf("query %d, %s: %v", i, n, err)
		} else if again, err := Parse(parsed.String()); err != nil || again.String() != parsed.String() {
			t.Fatalf("query %d: %s has the normal form %s, which reads as %v, %v", i, n, parsed, again, err)
		} else if g.IntN(2) == 0 {
			n = parsed.root
		}
		var args Args
		var known Indexed
		if g.IntN(2) == 0 {
			known = indexed
		}
		condition := Query{root: n}.SQL(&args, known)
		rows, err := conn.Query(ctx, "SELECT n FROM logs WHERE "+condition+" ORDER BY n", append([]any{pgx.QueryExecModeDescribeExec}, args...)...)
		if err != nil {
			t.Fatalf("%s: %v", n, err)
		}
		got, err := pgx.CollectRows(rows, pgx.RowTo[int])
		if err != nil {
			t.Fatalf("%s\n%s\n%q: %v", n, condition, args, err)
		}
		match := compile(n)
		want := []int{}
		var r Record
		for k, doc := range stored {
			r.ID, r.Time, r.InsertedAt = rowID(k+1), rowTime(k+1), rowTime(k+8)
			if (k+1)%5 == 0 {
				r.Time = r.InsertedAt
			}
			if err := r.Read([]byte(doc)); err != nil {
				t.Fatal(err)
			}
			if match(&r) {
				want = append(want, k+1)
			}
		}
		if diff := cmp.Diff(want, append([]int{}, got...)); diff != "" {
			k := firstDifference(want, got)
			t.Fatalf("%s\n%s\n%q\nmatcher and PostgreSQL (-matcher +PostgreSQL):\n%srecord %d: %s", n, condition, args, diff, k, stored[k-1])
		}
		checkColumns(t, file, archived, n, everyRow)
		if len(got) > 0 && len(got) < records {
			found[fmt.Sprintf("%T", n)]++
		}
	}
	t.Logf("queries that found some records and not all: %v", found)
	for _, kind := range []string{"all", "either", "not", "text", "equals", "exists", "like", "within", "contains", "same", "matching", "network", "column", "moment", "identity"} {
		if found["language."+kind] == 0 {
			t.Errorf("no query of the kind %s told records apart", kind)
		}
	}
}

func firstDifference(a, b []int) int {
	for _, n := range a {
		if !slices.Contains(b, n) {
			return n
		}
	}
	for _, n := range b {
		if !slices.Contains(a, n) {
			return n
		}
	}
	return 1
}

func TestMatches(t *testing.T) {
	const doc = `{"level": "error", "n": 5, "tags": ["x", "y"], "http": [{"status": 500}, {"status": 404}], "deep": [["no"]], "msg": "Connection RESET by peer", "at": "2026-03-04T13:00:00+01:00", "nil": null, "ok": true}`
	var r Record
	if err := r.Read([]byte(doc)); err != nil {
		t.Fatal(err)
	}
	for q, want := range map[string]bool{
		"": true, "*": true, "-*": false, "level:error": true, "level:Error": false, "level:(warn OR error)": true, "level:err*": true, "level:*rr*": true, "level:*x*": false,
		"n:5": true, "n:5.0": true, `n:"5"`: false, "n:>4 n:<6": true, "n:>5": false, "n:>=5": true, "n:[1 TO 5}": false, "n:[5 TO *]": true,
		"tags:y": true, "tags:(x y)": true, "-tags:x": false, "http.status:404": true, "http.status:>450": true, "deep:no": false, "no": true,
		`"connection reset"`: true, `"reset connection"`: false, "conn*peer": true, "peer*conn": false, "RESET": true, "5": true, "true": true, "null": false,
		"at:2026-03-04T12:00:00Z": false, "at:>=2026-03-04T12:00:00Z": true, "at:>2026-03-04T12:00:00Z": false, "nil:*": true, "nil:null": true, "missing:*": false,
		"NOT missing:x": true, "-missing:>5": true, "ok:true": true, "ok:false": false, "status": false,
		"level:warn OR n:5 tags:x": true, "(level:warn OR n:5) tags:z": false,
	} {
		n, err := Parse(q)
		if err != nil {
			t.Errorf("%s: %v", q, err)
		} else if got := n.Matcher()(&r); got != want {
			t.Errorf("%s (%s): got %t, want %t", q, n, got, want)
		}
	}
}

func BenchmarkMatch(b *testing.B) {
	const doc = `{"time": "2026-11-02T10:00:00.123456Z", "level": "info", "service": "checkout", "trace_id": "0123456789abcdef", "http": {"method": "GET", "path": "/api/v1/orders/7", "status": 200}, "duration_ms": 12.345, "message": "request served from the upstream pool after one retry"}`
	for _, q := range []string{"level:error", "http.status:>=500", `"connection reset"`, "-path:/healthz service:cart"} {
		b.Run(strings.ReplaceAll(q, " ", "_"), func(b *testing.B) {
			n, err := Parse(q)
			if err != nil {
				b.Fatal(err)
			}
			match := n.Matcher()
			var r Record
			for b.Loop() {
				if err := r.Read([]byte(doc)); err != nil {
					b.Fatal(err)
				}
				match(&r)
			}
		})
	}
}

// TestEveryTimeOfRFC3339IsATimeToAQuery has each form that the grammar allows as a record's value and as a bound.
func TestEveryTimeOfRFC3339IsATimeToAQuery(t *testing.T) {
	for _, tt := range []struct{ low, text, high string }{
		{"2026-11-27T13:42:33Z", "2026-11-27t13:42:33z", "2026-11-27T13:42:33.000001Z"},
		{"2026-11-27T13:42:33.123456Z", "2026-11-27T13:42:33.123456789012Z", "2026-11-27T13:42:33.123457Z"},
		{"2016-12-31T23:59:59.999999Z", "2016-12-31T23:59:60Z", "2017-01-01T00:00:00.000001Z"},
		{"2017-01-01T00:00:00.25Z", "2016-12-31T15:59:60.25-08:00", "2017-01-01T00:00:00.250001Z"},
		{"2026-11-27T13:42:33Z", "2026-11-27T13:42:33-00:00", "2026-11-27T13:42:33.000001Z"},
		{"2026-11-26T13:43:33Z", "2026-11-27T13:42:33+23:59", "2026-11-26T13:43:33.000001Z"},
		{"0000-02-29T00:00:00Z", "0000-02-29T00:00:00Z", "0000-02-29T00:00:00.000001Z"},
	} {
		var r Record
		if err := r.Read([]byte(`{"at": "` + tt.text + `"}`)); err != nil {
			t.Fatal(err)
		}
		for q, want := range map[string]bool{
			"at:[" + tt.low + " TO " + tt.high + "}": true, "at:>=" + tt.text: true, "at:<=" + tt.text: true, "at:>" + tt.text: false,
			"at:<" + tt.low: false, "at:>=" + tt.high: false,
		} {
			n, err := Parse(q)
			if err != nil {
				t.Errorf("%s: %v", q, err)
			} else if got := n.Matcher()(&r); got != want {
				t.Errorf("%s in %s: got %t, want %t", tt.text, q, got, want)
			}
		}
	}
}
