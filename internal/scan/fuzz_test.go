package scan

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

func FuzzBody(f *testing.F) {
	for _, seed := range []string{
		"{\"a\":1}\n{\"b\":2}\r\n\r\n{\"c\":\"x\"}", `{"a":1}{"b":2}5 "x"`, "[{\"a\": 1},\n5,{}]", "[]",
		"{\n  \"a\": [1, 2],\n  \"b\": {}\n}\n{\n}\n", "{\"a\":1}\n{\"x\":[\n{\"b\":2}\n{\"c\":\n3}\n", "{\"a\":1,\n{\"b\":2}\n",
		"{\"a\":1} oops\n{\"b\":2}", "{\"a\":\"\\ud83d\\ude00\\u0000\xff\"}\n{}", "{\"a\":1e999999}\n\"s\"\n}", "\ufeff{}", " \n",
		"{\"a\":\"one\ntwo\"}\n{}", "{\"a\":\n1} {\"b\":\n", "\"a\"\n{x\n",
		"[{\"a\":1}]\n\ufeff[{}][5]", "\ufeff{\"a\":1}\n\ufeff{\"b\":2}\ufeff\n\ufeff\n{\"c\":\ufeff", "{\"a\":1,\n\ufeff{\"b\":2}\n", "\x1f\x8b{}\n{}", "{\x00}\x00", "\"{\\\"a\\\":1}\"\n{}", strings.Repeat("[", 200) + strings.Repeat("]", 200), nest(129) + "{}",
	} {
		f.Add([]byte(seed), uint8(30))
	}
	f.Fuzz(func(t *testing.T, src []byte, size uint8) {
		lim := Limits{RecordBytes: 64 + int(size), PieceBytes: int(size)}
		before := bytes.Clone(src)
		var b, again Body
		err := b.Batch(src, lim)
		if !bytes.Equal(src, before) {
			t.Fatal("the source was changed")
		}
		if b.s.scanned > 3*len(src) {
			t.Fatalf("scanned %d bytes of %d", b.s.scanned, len(src))
		}
		checkBody(t, &b, lim)
		if err != nil {
			if b.Accepted+b.Rejected+len(b.NDJSON) != 0 || err.Msg == "" || err.Offset > len(src) {
				t.Fatalf("refused for %v, and left %+v", err, b)
			}
			return
		}
		for line := range bytes.Lines(b.NDJSON) {
			if line[0] != '{' || !json.Valid(line) || len(line) > lim.RecordBytes+1 {
				t.Fatalf("accepted %q", line)
			}
		}
		for _, e := range b.Errors {
			if e.Err.Offset > len(src) {
				t.Fatalf("error behind the end: %+v", e)
			}
		}

		// What the beginning of a body shows must hold for all of it, as long
		// as its lines are records.
		if end := bytes.LastIndexByte(src, '\n') + 1; end > 0 {
			var first, second Body
			if first.IsLines(&again, src[:end], lim) {
				checkBody(t, &first, lim)
				lines := slices.Concat(src[:end], []byte("{\"x\":1}\n"))
				if err := second.Batch(lines, lim); err != nil || second.Accepted != first.Accepted+1 || !bytes.HasPrefix(second.NDJSON, first.NDJSON) {
					t.Fatalf("%q was taken for lines that are %q, but a line more makes it %q, %v", src[:end], first.NDJSON, second.NDJSON, err)
				}
			}
		}

		// The same body once more in the same Body. Then the accepted records
		// in other forms.
		for _, form := range []struct {
			name string
			src  []byte
		}{
			{"again", src},
			{"as NDJSON", bytes.Clone(b.NDJSON)},
			{"as an array", slices.Concat([]byte("["), bytes.ReplaceAll(bytes.TrimSuffix(b.NDJSON, []byte("\n")), []byte("\n"), []byte(", ")), []byte("]"))},
			{"run together", bytes.ReplaceAll(b.NDJSON, []byte("\n"), nil)},
		} {
			if b.Accepted == 0 && form.name != "again" {
				continue
			}
			if err := again.Batch(form.src, lim); err != nil {
				t.Fatalf("%s: %v", form.name, err)
			}
			if diff := cmp.Diff(string(b.NDJSON), string(again.NDJSON)); diff != "" {
				t.Fatalf("%s, records differ (-first +now):\n%s", form.name, diff)
			}
			if !slices.Equal(b.Pieces, again.Pieces) {
				t.Fatalf("%s, got pieces %v, want %v", form.name, again.Pieces, b.Pieces)
			}
			if form.name != "again" && again.Rejected != 0 {
				t.Fatalf("%s, %v", form.name, again.Errors)
			}
		}
	})
}

// FuzzValueAgainstPostgres compares Single with the server's own verdict. It
// needs a PostgreSQL database in UTF-8, named by POSTGRES_URL, and changes
// nothing in it.
func FuzzValueAgainstPostgres(f *testing.F) {
	for _, seed := range postgresSeeds() {
		f.Add([]byte(seed))
	}
	for _, record := range logRecords(20, true) {
		f.Add(record)
	}
	conn := postgres(f)
	var b Body
	f.Fuzz(func(t *testing.T, src []byte) { compareWithPostgres(t, conn, &b, src) })
}

// Fuzzing seldom gets far into JSON, so these seeds start there.
func TestAgreesWithPostgres(t *testing.T) {
	conn := postgres(t)
	rng := rand.New(rand.NewPCG(7, 8))
	const pieces = "{ } [ ] \" : , \\ \\u \\u0000 \\ud83d \\ude00 \\uD8 \\n \\x \xc3 \xa9 \xe2\x82 \xed\xa0\x80 \xf0\x9f\x8e\x89 \xf4\x90 \x80 " +
		"0 1 9 - + . e E e5 e-16383 e-16384 e131071 e131072 e1073741823 0.0 true nul \x00 \x1f \x7f \t \r \u00a0 \u2028 \ufeff /*"
	words := strings.Split(pieces, " ")
	words = append(words, " ", "\n")
	var b Body
	accepted := 0
	const n = 5000
	for range n {
		src := []byte(`{"v": ` + generate(rng, 3) + `}`)
		for range rng.IntN(3) {
			at := rng.IntN(len(src) + 1)
			src = slices.Replace(src, at, min(len(src), at+rng.IntN(3)), []byte(words[rng.IntN(len(words))])...)
		}
		compareWithPostgres(t, conn, &b, src)
		accepted += b.Accepted
	}
	if accepted < n/10 || accepted > n*9/10 {
		t.Errorf("%d of %d inputs were records, the test tests little", accepted, n)
	}
}

func TestNumbersAreAsLongAsPostgresWritesThem(t *testing.T) {
	conn := postgres(t)
	for _, number := range []string{
		"0e5", "-0e5", "0.0e1", "0e-3", "1e0", "1E+2", "-1e2", "1e-2", "12.50e1", "12.50e0", "12.5e-1", "0.001e3", "0.001e2", "0.001e-2",
		"100e-2", "123e-1", "-0.00e-1", "1e131071", "1e-16383", "0.10e131072",
	} {
		got, ok := asNumeric([]byte(number))
		var want int
		if err := conn.QueryRow(context.Background(), "SELECT length(j::text) FROM (SELECT $1::jsonb) AS n (j)", number).Scan(&want); err != nil {
			t.Fatal(err)
		}
		if number[0] == '-' && strings.Trim(number[:strings.IndexByte(number, 'e')], "-0.") == "" {
			want++ // the sign of zero, which numeric has not
		}
		if !ok || got != want {
			t.Errorf("asNumeric(%s) = %d, %t; PostgreSQL writes %d characters", number, got, ok, want)
		}
	}
}

func postgres(tb testing.TB) *pgx.Conn {
	tb.Helper()
	url := os.Getenv("POSTGRES_URL")
	if url == "" {
		tb.Skip("POSTGRES_URL is not set: no server to compare with")
	}
	conn, err := pgx.Connect(context.Background(), url)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func compareWithPostgres(t *testing.T, conn *pgx.Conn, b *Body, src []byte) {
	t.Helper()
	ours := b.Single(src, Limits{RecordBytes: MaxRecordBytes, PieceBytes: 1})
	if ours != nil && ours.Reason == Depth {
		return // our own limit; the server's is the depth of its stack
	}
	var compacted any // what we made of it; null when refused
	if ours == nil {
		compacted = b.NDJSON
	}
	var object, same bool
	err := conn.QueryRow(context.Background(), `
		with sent as materialized (select convert_from($1::bytea, 'UTF8')::jsonb j)
		select jsonb_typeof(j) = 'object', coalesce(j = convert_from($2::bytea, 'UTF8')::jsonb
			and j::text = convert_from($2::bytea, 'UTF8')::jsonb::text, false) from sent`,
		withoutBOM(src), compacted).Scan(&object, &same)
	var refusal *pgconn.PgError
	switch {
	case err != nil && !errors.As(err, &refusal):
		t.Fatal(err)
	case err != nil && refusal.Code[:2] != "22":
		t.Fatalf("%q: %v", src, err) // neither yes nor no
	case err != nil && ours == nil:
		t.Fatalf("%q: Single takes it; the server: %v", src, err)
	case err == nil && ours != nil && ours.Reason == Number && lastExponent.Match(src):
		// PostgreSQL 15 refuses this exponent, and 18 takes it in a zero. All
		// versions must take what is stored.
	case err == nil && object != (ours == nil):
		t.Fatalf("%q: the server takes it, an object: %t; Single: %v", src, object, ours)
	case err == nil && ours != nil && ours.Reason != NotObject:
		t.Fatalf("%q: the server takes it; Single: %v", src, ours)
	case ours == nil && !same:
		t.Fatalf("%q: compacted to another value, %q", src, b.NDJSON)
	}
}

// withoutBOM returns src without a byte-order mark before its record. Single
// passes over that.
func withoutBOM(src []byte) []byte {
	if i := skipSpace(src, 0); startsBOM(src, i) {
		return src[i+len(bom):]
	}
	return src
}

// lastExponent is the first exponent that not all versions of PostgreSQL take.
var lastExponent = regexp.MustCompile(`[eE]\+?0*1073741823\b`)

func postgresSeeds() []string {
	zeros := func(n int) string { return strings.Repeat("0", n) }
	seeds := []string{
		`{"a":[1,-0,1.5e3,true,false,null,{}],"b":"\"\\\/\b\f\n\r\t\u00e9"}`, " {\"a\" :\t1\r\n} ", `{"a":1,"a":2}`, `[1]`, `"x"`, `5`,
		`{"a":"\u0000"}`, `{"\u0000":1}`, `{"a":"\ud83d\ude00"}`, `{"a":"\ud83d"}`, `{"a":"\ude00"}`, `{"a":"\ud83d\ud83d\ude00"}`, `{"a":"\ud83dx\ude00"}`,
		`{"a":"\ud83d\n"}`, `{"a":"\uDBFF\uDFFF\uFFFF\ufffe"}`, `{"a":"\ud83d\u0000"}`,
		"{\"a\":\"\xc3\xa9\xe6\x97\xa5\xf0\x9f\x8e\x89\"}", "{\"a\":\"\xc0\x80\"}", "{\"a\":\"\xed\xa0\x80\"}", "{\"a\":\"\xf4\x90\x80\x80\"}", "{\"a\":\"\xe2\x82\"}",
		"{\"a\":\"\x7f\u0080\u2028\ufeff\"}", "{\"a\":\"\x1f\"}", "{\"a\":\"\x00\"}", "\x00", "{\"a\":\v1}", "\ufeff{}", "{}\u00a0", "",
		`{"a":01}`, `{"a":1.}`, `{"a":.1}`, `{"a":+1}`, `{"a":1e}`, `{"a":-}`, `{"a":-0.0e-0}`, `{"a":Infinity}`, `{"a":NaN}`, `{"a":0x1}`, `{"a":1_000}`,
		`{"a":0e400000}`, `{"a":0e-400000}`, `{"a":0e-16383}`, `{"a":0e-16384}`, `{"a":0.00e-16381}`, `{"a":0.00e-16382}`, `{"a":1e131071}`, `{"a":1e131072}`,
		`{"a":12e131070}`, `{"a":12e131071}`, `{"a":0.01e131073}`, `{"a":0.01e131074}`, `{"a":0e1073741822}`, `{"a":0e1073741823}`, `{"a":1e-16383}`, `{"a":1e-16384}`,
		`{"a":1e99999999999999999999}`, `{"a":1e-00000000000000000000000001}`, `{"a":1e+0}`, `{"a":9.99e131071}`, `{"a":0.000e131075}`, `{"a":-1.10E-16381}`,
		`{"a":1}}`, `{"a":1},`, `{"a":1 "b":2}`, `{"a":[1,]}`, `{,}`, `{"a":tru}`, `{'a':1}`, `{"a":1//
}`, nest(128), nest(129), nest(1000),
	}
	for _, n := range []int{16383, 16384, 131071, 131072} {
		seeds = append(seeds, `{"a":0.`+zeros(n)+`}`, `{"a":0.`+zeros(n)+`1e5}`, `{"a":1`+zeros(n)+`}`, `{"a":1`+zeros(n)+`e-5}`,
			`{"a":0.`+zeros(n)+`1e200000}`, `{"a":0.`+strings.Repeat("7", n)+`e`+"131072}", `{"a":0.`+strings.Repeat("7", n)+`e`+"100000}")
	}
	return seeds
}
