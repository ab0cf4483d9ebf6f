package archive_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"millrace/internal/archive"
	"millrace/internal/archive/archivetest"
)

// odd are values that a column can't give back by itself, and some that it can.
var odd = []any{
	"", "error", "a\"b\\c\n\t\x01\u007f", "é ſ \u212a 😀", "2026-03-04T12:00:00Z", "2026-03-04T12:00:00.5Z", "2026-03-04T12:00:00.500Z", "2026-03-04T12:00:00.123456Z",
	"2026-03-04T12:00:00.123456789Z", "2026-02-30T00:00:00Z", "0001-01-01T00:00:00.000000Z", "9999-12-31T23:59:59.999999Z", "1969-12-31T23:59:59.999999Z", "2026-03-04T24:00:00Z", "2026-03-04t12:00:00z",
	json.Number("0"), json.Number("5"), json.Number("5.0"), json.Number("5.10"), json.Number("-0.5"), json.Number("0.001"), json.Number("0.0001"), json.Number("-12.345"),
	json.Number("123456789012345"), json.Number("1234567890123456"), json.Number("9223372036854775807"), json.Number("9223372036854775808"), json.Number("-123456789012345678"), json.Number("12345678901234567890123"),
	json.Number("499.9999999999999999999"), json.Number("1e300"), json.Number("1e-300"), json.Number("0.1234567890123456"), json.Number("100000000000000000000"),
	true, false, nil, []any{}, []any{"x", nil, map[string]any{"a": json.Number("1")}, []any{"y"}}, map[string]any{}, map[string]any{"": ""}, map[string]any{"a": map[string]any{"b": "deep"}},
}

func oddObject(rng *rand.Rand, names []string, depth int) map[string]any {
	o := make(map[string]any)
	for range rng.IntN(6) {
		name := names[rng.IntN(len(names))]
		if depth < 3 && rng.IntN(4) == 0 {
			o[name] = oddObject(rng, names, depth+1)
		} else {
			o[name] = odd[rng.IntN(len(odd))]
		}
	}
	return o
}

// TestEveryRecordIsGivenBackByteForByte writes records of all kinds at all paths, with columns of all kinds, and reads them.
func TestEveryRecordIsGivenBackByteForByte(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	names := []string{"a", "b", "A", "a.b", "", `q"u`, "é", "x y", "_id", "level", "http", "zz"}
	for range 60 {
		known := make(map[string]archive.Kind)
		for _, name := range []string{"a", "b", "a.b", "level", "http.a", "zz"} {
			if rng.IntN(3) == 0 {
				known[name] = archive.Kind(rng.IntN(6))
			}
		}
		maker := archivetest.NewRows(rng.Uint64())
		var want []archive.Row
		f, summary, _ := archivetest.File(t, archive.NewRegistry(known), func(add func(*archive.Row)) {
			for range rng.IntN(600) {
				r := *maker.Row(archivetest.JSONB(nil, oddObject(rng, names, 0)))
				want = append(want, r)
				add(&r)
			}
			// What PostgreSQL would not write comes back too.
			for _, text := range []string{"[]", "null", `"x"`, "{}", `{"a":1}`, `{"b": 1, "a": 2}`, `{"a": 1, "a": 2}`, `{"a": "\u0041"}`, `{ }`, "{", "", `{"a": 1} `, `{"a": tru`} {
				r := *maker.Row([]byte(text))
				want = append(want, r)
				add(&r)
			}
		})
		for name, kind := range known {
			for _, c := range f.Columns {
				if c.Name == name && c.Kind != kind {
					t.Errorf("column %s: got %s, the registry has %s", name, c.Kind, kind)
				}
			}
		}
		if summary.Rows != len(want) {
			t.Errorf("got %d rows, want %d", summary.Rows, len(want))
		}
		i := 0
		for k := range f.Groups {
			g := f.Group(k)
			if err := g.Records(t.Context(), archive.AllBits(g.Rows), func(r *archive.Row) error {
				w := want[i]
				i++
				if r.ID != w.ID || r.InsertedAt != w.InsertedAt || r.Time != w.Time || !bytes.Equal(r.Data, w.Data) {
					return fmt.Errorf("row %d: got %v, want %v\n%s\n%s", i, r, w, r.Data, w.Data)
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		if n, err := f.Verify(t.Context()); err != nil || n != len(want) {
			t.Errorf("verify: %d rows, %v; want %d", n, err, len(want))
		}
	}
}

// TestTimesAreThoseOfTheCalendar compares the times of columns with those of package time.
func TestTimesAreThoseOfTheCalendar(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	for range 20_000 {
		at := time.Unix(rng.Int64N(253402300800+62167219200)-62167219200, rng.Int64N(1e9)).UTC()
		for _, format := range []struct {
			layout string
			kind   archive.Kind
			form   archive.Form
		}{
			{"2006-01-02T15:04:05Z", archive.Micros, 0}, {"2006-01-02T15:04:05.000Z", archive.Micros, 3}, {"2006-01-02T15:04:05.000000Z", archive.Micros, 6},
			{"2006-01-02T15:04:05.999999Z", archive.Micros, archive.Trimmed}, {"2006-01-02T15:04:05.000000000Z", archive.Nanos, 9}, {"2006-01-02T15:04:05.999999999Z", archive.Nanos, archive.Trimmed},
		} {
			text := at.Format(format.layout)
			of, err := time.Parse(time.RFC3339Nano, text)
			if err != nil {
				t.Fatal(err)
			}
			want := of.UnixMicro()
			if format.kind == archive.Nanos {
				if want = of.UnixNano(); at.Year() < 1700 || at.Year() > 2200 {
					continue
				}
			}
			if got, ok := archive.ParseTime([]byte(text), format.kind, format.form); !ok || got != want {
				t.Fatalf("%s: got %d, %t, want %d", text, got, ok, want)
			}
			if got := string(archive.AppendTime(nil, want, format.kind, format.form)); got != text {
				t.Fatalf("%d: got %s, want %s", want, got, text)
			}
		}
	}
}

func TestServicesRecordsAreInColumnsAlone(t *testing.T) {
	maker := archivetest.NewRows(1)
	f, _, _ := archivetest.File(t, archive.NewRegistry(nil), func(add func(*archive.Row)) {
		for range 3000 {
			add(maker.Row(maker.Service(nil)))
		}
	})
	if f.Groups[0].RestRows > 0 {
		t.Errorf("%d of 3000 records have something that is in no column", f.Groups[0].RestRows)
	}
	got := make(map[string]string)
	for _, c := range f.Columns {
		got[c.Name] = c.Kind.String()
	}
	for name, kind := range map[string]string{"host": "text", "http.path": "text", "http.status": "double", "duration_ms": "double", "timestamp": "micros", "trace_id": "text"} {
		if got[name] != kind {
			t.Errorf("column %s: got %q, want %s", name, got[name], kind)
		}
	}
}

// TestChosenRowsAreThoseOfTheSet reads some rows of several row groups and pages.
func TestChosenRowsAreThoseOfTheSet(t *testing.T) {
	maker := archivetest.NewRows(2)
	var want []string
	f, _, _ := archivetest.File(t, archive.NewRegistry(nil), func(add func(*archive.Row)) {
		for range archive.GroupRows + 5000 {
			r := maker.Row(maker.Messy())
			want = append(want, string(r.Data))
			add(r)
		}
	})
	if len(f.Groups) != 2 {
		t.Fatalf("%d row groups, want 2", len(f.Groups))
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for round := range 12 {
		base := 0
		for k := range f.Groups {
			g := f.Group(k)
			rows := archive.NewBits(g.Rows)
			for range 1 + rng.IntN(1+round*20) {
				rows.Set(rng.IntN(g.Rows))
			}
			var got []string
			if err := g.Records(t.Context(), rows, func(r *archive.Row) error { got = append(got, string(r.Data)); return nil }); err != nil {
				t.Fatal(err)
			}
			i := 0
			rows.Each(func(row int) {
				if got[i] != want[base+row] {
					t.Fatalf("row %d: got %s, want %s", row, got[i], want[base+row])
				}
				i++
			})
			base += g.Rows
		}
	}
}

// TestADamagedFileIsAnError changes each part of a file: what is read then is an error or the same rows, never a panic.
func TestADamagedFileIsAnError(t *testing.T) {
	maker := archivetest.NewRows(3)
	_, summary, file := archivetest.File(t, archive.NewRegistry(nil), func(add func(*archive.Row)) {
		for range 400 {
			add(maker.Row(maker.Messy()))
		}
	})
	rng := rand.New(rand.NewPCG(5, 5))
	found := 0
	for range 3000 {
		damaged := bytes.Clone(file)
		switch rng.IntN(3) {
		case 0:
			damaged[rng.IntN(len(damaged))] ^= 1 << rng.IntN(8)
		case 1:
			damaged[len(damaged)-1-rng.IntN(int(summary.TailBytes))] = byte(rng.Uint32())
		case 2:
			damaged = damaged[:rng.IntN(len(damaged))]
		}
		f, err := archive.Open(bytes.NewReader(damaged), int64(len(damaged)), summary.TailBytes)
		if err == nil {
			_, err = f.Verify(t.Context())
		}
		if err != nil {
			found++
		}
	}
	if found < 1500 {
		t.Errorf("%d of 3000 damaged files were found out", found)
	}
}

func TestAnEndedRequestEndsReading(t *testing.T) {
	maker := archivetest.NewRows(3)
	f, _, _ := archivetest.File(t, archive.NewRegistry(nil), func(add func(*archive.Row)) {
		for range 100 {
			add(maker.Row(maker.Service(nil)))
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Verify(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

// records returns how many records a benchmark has; MILLRACE_BENCH_ROWS sets it.
func records(b *testing.B) int {
	text := os.Getenv("MILLRACE_BENCH_ROWS")
	if text == "" {
		return 100_000
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// sets are the kinds of records that are measured. MILLRACE_BENCH_NDJSON names a file of others.
func sets(b *testing.B, n int) map[string][]archive.Row {
	all := make(map[string][]archive.Row)
	for _, name := range []string{"service", "messy"} {
		maker := archivetest.NewRows(4)
		for range n {
			record := maker.Service(nil)
			if name == "messy" {
				record = maker.Messy()
			}
			all[name] = append(all[name], *maker.Row(record))
		}
	}
	if path := os.Getenv("MILLRACE_BENCH_NDJSON"); path != "" {
		text, err := os.ReadFile(path)
		if err != nil {
			b.Fatal(err)
		}
		maker := archivetest.NewRows(4)
		for line := range bytes.Lines(text) {
			record, err := archivetest.Canonical(line)
			if err != nil {
				b.Fatal(err)
			}
			all["ndjson"] = append(all["ndjson"], *maker.Row(record))
		}
	}
	return all
}
