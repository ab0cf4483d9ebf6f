// Package archivetest makes rows for the tests and benchmarks of the archive.
package archivetest

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/big"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"millrace/internal/archive"
)

// JSONB returns a value as PostgreSQL writes it as jsonb: the names of an object by length, then by bytes, numbers without an exponent.
func JSONB(b []byte, v any) []byte {
	switch v := v.(type) {
	case map[string]any:
		names := make([]string, 0, len(v))
		for name := range v {
			names = append(names, name)
		}
		slices.SortFunc(names, func(a, b string) int {
			if len(a) != len(b) {
				return len(a) - len(b)
			}
			return strings.Compare(a, b)
		})
		b = append(b, '{')
		for i, name := range names {
			if i > 0 {
				b = append(b, ", "...)
			}
			b = archive.AppendString(b, []byte(name))
			b = append(b, ": "...)
			b = JSONB(b, v[name])
		}
		return append(b, '}')
	case []any:
		b = append(b, '[')
		for i, e := range v {
			if i > 0 {
				b = append(b, ", "...)
			}
			b = JSONB(b, e)
		}
		return append(b, ']')
	case string:
		return archive.AppendString(b, []byte(v))
	case json.Number:
		return append(b, plain(string(v))...)
	case nil:
		return append(b, "null"...)
	case bool:
		return fmt.Appendf(b, "%t", v)
	}
	panic(fmt.Sprintf("%T is no value of JSON as this package reads it", v))
}

// plain returns a number without an exponent, with the digits behind the point that it has.
func plain(number string) string {
	mantissa, exponent, ok := strings.Cut(strings.ToLower(number), "e")
	if !ok {
		if number == "-0" {
			return "0"
		}
		return number
	}
	var e int
	fmt.Sscan(exponent, &e)
	_, fraction, _ := strings.Cut(mantissa, ".")
	r, _ := new(big.Rat).SetString(number)
	return r.FloatString(max(0, len(fraction)-e))
}

// Canonical returns a record as PostgreSQL writes it.
func Canonical(record []byte) ([]byte, error) {
	d := json.NewDecoder(bytes.NewReader(record))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	return JSONB(nil, v), nil
}

// start is when the first of the rows came, in Unix microseconds.
var start = time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC).UnixMicro()

// Rows makes rows of records, with ids and times as the worker gives them: a segment of 250 a millisecond.
type Rows struct {
	rng *rand.Rand
	n   int
	id  [16]byte
	at  int64 // when the event of the last record happened, Unix microseconds
	row archive.Row
}

// NewRows returns a maker of rows that are the same for the same seed.
func NewRows(seed uint64) *Rows { return &Rows{rng: rand.New(rand.NewPCG(seed, 0))} }

// Row returns the next row, with the record as its data. Four in five records of Service have their time. The row is good until the next
// call.
func (r *Rows) Row(record []byte) *archive.Row {
	came := start + int64(r.n/250)*250_000
	if r.n%250 == 0 {
		binary.BigEndian.PutUint64(r.id[:], uint64(came/1000)<<16|0x7000|r.rng.Uint64()&0xfff)
		binary.BigEndian.PutUint64(r.id[8:], r.rng.Uint64()&(1<<60-1)|1<<63)
	}
	binary.BigEndian.PutUint64(r.id[8:], binary.BigEndian.Uint64(r.id[8:])+1)
	r.n++
	r.row = archive.Row{ID: r.id, InsertedAt: came, Time: r.at, Data: record}
	if r.n%5 == 0 {
		r.row.Time = archive.NoTime
	}
	r.at = archive.NoTime
	return &r.row
}

// Service returns a record of 284 bytes, like those that services write: an access log with a trace. One in five is an error, one in a
// thousand has the phrase "connection reset".
func (r *Rows) Service(b []byte) []byte {
	rng := r.rng
	pick := func(of ...string) string { return of[rng.IntN(len(of))] }
	message := fmt.Sprintf("request for user:%d served from the upstream pool after %d retries", rng.IntN(100_000), rng.IntN(4))
	if rng.IntN(1000) == 7 {
		message = fmt.Sprintf("user:%d: read tcp: Connection reset by peer", rng.IntN(100_000))
	}
	r.at = start + int64(r.n)*1000 - rng.Int64N(2_000_000)
	return fmt.Appendf(b, `{"host": "web-%02d", "http": {"path": "/api/v1/%s/%d", "method": "%s", "status": %d}, "level": "%s", "message": "%s", "service": "%s", "trace_id": "%016x%016x", "timestamp": "%s", "duration_ms": %s}`,
		rng.IntN(20), pick("orders", "users", "items"), rng.IntN(25_000), pick("GET", "POST"), 200+rng.IntN(4)*100, pick("info", "info", "info", "warn", "error"), message,
		pick("checkout", "cart", "search", "auth"), rng.Uint64(), rng.Uint64(), time.UnixMicro(r.at).UTC().Format("2006-01-02T15:04:05.000000Z"),
		strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.3f", rng.ExpFloat64()*40), "0"), "."))
}

// Messy returns a record of a service with what records have besides: one of 500 rare labels, arrays, nulls, values of another kind.
func (r *Rows) Messy() []byte {
	d := json.NewDecoder(bytes.NewReader(r.Service(nil)))
	d.UseNumber()
	var v map[string]any
	if err := d.Decode(&v); err != nil {
		panic(err)
	}
	rng := r.rng
	if rng.IntN(3) == 0 {
		value := any(fmt.Sprintf("value-%d", rng.IntN(1000)))
		switch rng.IntN(4) {
		case 0:
			value = json.Number(fmt.Sprint(rng.IntN(1000)))
		case 1:
			value = rng.IntN(2) == 0
		}
		v["labels"] = map[string]any{fmt.Sprintf("attr_%d", rng.IntN(500)): value}
	}
	if rng.IntN(10) == 0 {
		v["tags"] = []any{"blue", "eu", map[string]any{"zone": fmt.Sprint(rng.IntN(9))}}
	}
	if rng.IntN(20) == 0 {
		v["error"] = nil
	}
	switch rng.IntN(50) {
	case 0:
		v["duration_ms"] = "unknown"
	case 1:
		v["http"] = []any{v["http"]}
	case 2:
		v["level"] = json.Number("7")
	}
	return JSONB(nil, v)
}

// File writes a file of rows in memory and opens it.
func File(tb testing.TB, registry *archive.Registry, rows func(add func(*archive.Row))) (*archive.File, archive.Summary, []byte) {
	tb.Helper()
	var out bytes.Buffer
	w := archive.NewWriter(&out, registry)
	rows(func(r *archive.Row) {
		if err := w.Add(r); err != nil {
			tb.Fatal(err)
		}
	})
	summary, err := w.Close()
	if err != nil {
		tb.Fatal(err)
	}
	f, err := archive.Open(bytes.NewReader(out.Bytes()), summary.Bytes, summary.TailBytes)
	if err != nil {
		tb.Fatal(err)
	}
	return f, summary, out.Bytes()
}
