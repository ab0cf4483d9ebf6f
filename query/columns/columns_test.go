package columns_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace/internal/archive"
	"millrace/internal/archive/archivetest"
	"millrace/query/columns"
	"millrace/query/language"
)

// written makes a few files of records of services, with and without a rest, and returns all rows beside them.
func written(t testing.TB, files, rows int) (all []*archive.File, want []archive.Row) {
	registry := archive.NewRegistry(nil)
	maker := archivetest.NewRows(9)
	for range files {
		f, _, _ := archivetest.File(t, registry, func(add func(*archive.Row)) {
			for i := range rows {
				record := maker.Messy()
				if i%3 == 0 {
					record = maker.Service(nil)
				}
				r := *maker.Row(record)
				want = append(want, r)
				add(&r)
			}
		})
		all = append(all, f)
	}
	return all, want
}

func parse(t testing.TB, q string) language.Query {
	t.Helper()
	parsed, err := language.Parse(q)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func at(r *archive.Row, axis archive.Axis) int64 {
	if axis == archive.ByArrival || r.Time == archive.NoTime {
		return r.InsertedAt
	}
	return r.Time
}

// matching returns the rows of a search as the matcher finds them, in the order of their times, and of their ids.
func matching(t *testing.T, s *columns.Search, rows []archive.Row) (found []archive.Row) {
	t.Helper()
	match := s.Query.Matcher()
	var r language.Record
	for _, row := range rows {
		if when := at(&row, s.Axis); when < s.From || when >= s.To {
			continue
		}
		r.ID, r.Time, r.InsertedAt = row.ID, time.UnixMicro(at(&row, archive.ByTime)), time.UnixMicro(row.InsertedAt)
		if err := r.Read(row.Data); err != nil {
			t.Fatal(err)
		}
		if match(&r) {
			found = append(found, row)
		}
	}
	slices.SortFunc(found, func(a, b archive.Row) int {
		if x, y := at(&a, s.Axis), at(&b, s.Axis); x != y {
			return int(x - y)
		}
		return bytes.Compare(a.ID[:], b.ID[:])
	})
	return found
}

// textOf returns what #>> says of a record's member, by a decoder of its own. A name is looked for as a path and as one member's name.
func textOf(t *testing.T, record []byte, path string) (string, bool) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(record))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Split(path, ".") {
		switch of := v.(type) {
		case map[string]any:
			v = of[name]
		case []any:
			i, err := strconv.Atoi(name)
			if v = nil; err == nil && i < len(of) {
				v = of[i]
			}
		default:
			v = nil
		}
	}
	switch v := v.(type) {
	case nil:
		return "", false
	case string:
		return v, true
	}
	return string(archivetest.JSONB(nil, v)), true
}

func TestAnswersAreThoseOfTheMatcher(t *testing.T) {
	files, rows := written(t, 3, 4000)
	begin, end := rows[0].InsertedAt, rows[len(rows)-1].InsertedAt
	middle := begin + (end-begin)/2
	for _, q := range []string{"", "level:error", `"connection reset"`, "-level:info http.status:>=400", "tags:blue", "labels:*", "duration_ms:unknown OR level:7", "nosuch:x"} {
		for _, axis := range []archive.Axis{archive.ByTime, archive.ByArrival} {
			for _, window := range [][2]int64{{math.MinInt64, math.MaxInt64}, {begin + 1_234_567, end - 2_345_678}, {middle, middle + 1}, {end + 1, math.MaxInt64}} {
				s := &columns.Search{Files: files, Query: parse(t, q), Axis: axis, From: window[0], To: window[1], Groups: 2}
				found := matching(t, s, rows)
				name := fmt.Sprintf("%q axis %d window %v", q, axis, window)
				if n, err := s.Count(t.Context()); err != nil || n != int64(len(found)) {
					t.Errorf("%s: counted %d, %v, want %d", name, n, err, len(found))
				}
				for _, n := range []int{1, 100, 100_000} {
					latest, err := latestOf(t.Context(), s, n)
					if err != nil {
						t.Fatal(err)
					}
					want := slices.Clone(found)
					slices.Reverse(want)
					want = want[:min(n, len(want))]
					if len(latest) != len(want) {
						t.Fatalf("%s: %d of the latest %d, want %d", name, len(latest), n, len(want))
					}
					for i, r := range latest {
						if r.ID != want[i].ID || !bytes.Equal(r.Data, want[i].Data) || r.Time != want[i].Time {
							t.Fatalf("%s: row %d of the latest: got %x %s, want %x %s", name, i, r.ID, r.Data, want[i].ID, want[i].Data)
						}
					}
				}
				ids := make(map[[16]byte]bool)
				if err := s.Each(t.Context(), func(r *archive.Row) error { ids[r.ID] = true; return nil }); err != nil || len(ids) != len(found) {
					t.Errorf("%s: %d rows, %v, want %d", name, len(ids), err, len(found))
				}
				if window[0] == math.MinInt64 || window[1] == math.MaxInt64 {
					continue
				}
				edges := []int64{s.From}
				for s.To > edges[len(edges)-1] {
					edges = append(edges, edges[len(edges)-1]+3_000_000)
				}
				for _, by := range []string{"", "level", "http.status", "http", "labels.attr_7", "tags.1", "tags", "duration_ms", "error", "timestamp"} {
					var path []string
					if by != "" {
						path = strings.Split(by, ".")
					}
					got, err := s.Histogram(t.Context(), edges, path)
					if err != nil {
						t.Fatal(err)
					}
					want := make([]columns.Bucket, len(edges)-1)
					for _, r := range found {
						i := 0
						for edges[i+1] <= at(&r, axis) {
							i++
						}
						want[i].Count++
						if by == "" {
							continue
						}
						if want[i].Values == nil {
							want[i].Values = make(map[string]int64)
						}
						if text, ok := textOf(t, r.Data, by); ok {
							want[i].Values[text]++
						} else {
							want[i].Missing++
						}
					}
					if diff := cmp.Diff(want, got); diff != "" {
						t.Fatalf("%s by %q (-want +got):\n%s", name, by, diff)
					}
				}
			}
		}
	}
}

func TestASearchThatIsEndedEnds(t *testing.T) {
	files, _ := written(t, 1, 100)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := &columns.Search{Files: files, Query: parse(t, "level:error"), From: math.MinInt64, To: math.MaxInt64}
	if _, err := s.Count(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

// latestOf returns the last n rows that are found, the last one first.
func latestOf(ctx context.Context, s *columns.Search, n int) (rows []*columns.Row, err error) {
	err = s.Sorted(ctx, columns.Order{Descending: true, Limit: n, Bytes: math.MaxInt}, func(r *columns.Row) error {
		rows = append(rows, r)
		return nil
	})
	return rows, err
}

// BenchmarkSearch asks files as people and dashboards do. MILLRACE_BENCH_ROWS sets how many records there are.
func BenchmarkSearch(b *testing.B) {
	n := 200_000
	if text := os.Getenv("MILLRACE_BENCH_ROWS"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			b.Fatal(err)
		}
	}
	for _, kind := range []string{"service", "messy"} {
		b.Run(kind, func(b *testing.B) { benchmarkKind(b, kind, n) })
	}
}

func benchmarkKind(b *testing.B, kind string, n int) {
	maker := archivetest.NewRows(4)
	trace := ""
	f, summary, _ := archivetest.File(b, archive.NewRegistry(nil), func(add func(*archive.Row)) {
		for i := range n {
			record := maker.Service(nil)
			if i == n/2 {
				_, rest, _ := strings.Cut(string(record), `"trace_id": "`)
				trace, _, _ = strings.Cut(rest, `"`)
			}
			if kind == "messy" {
				record = maker.Messy()
			}
			add(maker.Row(record))
		}
	})
	b.Logf("%s: %d records, %.1f bytes each", kind, summary.Rows, float64(summary.Bytes)/float64(summary.Rows))
	first, last := f.Groups[0].MinTime, f.Groups[len(f.Groups)-1].MaxTime+1
	search := func(q string) *columns.Search {
		return &columns.Search{Files: []*archive.File{f}, Query: parse(b, q), From: first, To: last, Groups: 1}
	}
	minutes := []int64{first}
	for minutes[len(minutes)-1] < last {
		minutes = append(minutes, minutes[len(minutes)-1]+60e6)
	}
	count := func(q string) func(*testing.B) {
		return func(b *testing.B) {
			s := search(q)
			for b.Loop() {
				if _, err := s.Count(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	latest := func(q string) func(*testing.B) {
		return func(b *testing.B) {
			s := search(q)
			for b.Loop() {
				if rows, err := latestOf(b.Context(), s, 100); err != nil || len(rows) != 100 {
					b.Fatal(err, len(rows))
				}
			}
		}
	}
	histogram := func(q string, edges []int64, by ...string) func(*testing.B) {
		return func(b *testing.B) {
			s := search(q)
			for b.Loop() {
				if _, err := s.Histogram(b.Context(), edges, by); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	stats := func(by [][]string, figures ...columns.Figure) func(*testing.B) {
		return func(b *testing.B) {
			s := search("")
			for b.Loop() {
				t := columns.NewTable(by, figures, nil, func(int) error { return nil })
				if err := s.Stats(b.Context(), t); err != nil {
					b.Fatal(err)
				}
				t.Done()
				for group := range t.Groups() {
					for i := range figures {
						t.Value(i, t.Cells(group))
					}
				}
			}
		}
	}
	for _, bench := range []struct {
		name string
		run  func(*testing.B)
	}{
		{"count/equal", count("level:error")},
		{"count/phrase", count(`"connection reset"`)},
		{"count/rare", count(`"user:51751"`)},
		{"count/number", count("http.status:>=500")},
		{"count/three", count("-level:info http.path:*orders* duration_ms:>=100.5")},
		{"count/wildcard", count("user*5175")},
		{"count/hex", count("dead")},
		{"count/404", count("404")},
		{"count/true", count("true")},
		{"count/partOfTime", count(`"09:00:1"`)},
		{"count/regex", count(`message:/user:\d+5 /`)},
		{"count/trace", count("trace_id:" + trace)},
		{"histogram/minutes", histogram("", minutes)},
		{"histogram/level", histogram("", minutes, "level")},
		{"histogram/errorsByService", histogram("level:error", minutes, "service")},
		{"top/path", histogram("", []int64{first, last}, "http", "path")},
		{"stats/p95ByPath", stats([][]string{{"http", "path"}}, columns.Figure{Function: columns.Quantile, Field: []string{"duration_ms"}, Quantile: 0.95})},
		{"stats/averageByService", stats([][]string{{"service"}}, columns.Figure{Function: columns.CountRows}, columns.Figure{Function: columns.Average, Field: []string{"duration_ms"}})},
		{"stats/distinctTraces", stats(nil, columns.Figure{Function: columns.Distinct, Field: []string{"trace_id"}})},
		{"latest", latest("")},
		{"latest/filtered", latest("level:error service:checkout")},
		{"export", func(b *testing.B) {
			s := search("")
			for b.Loop() {
				if err := s.Each(b.Context(), func(*archive.Row) error { return nil }); err != nil {
					b.Fatal(err)
				}
			}
		}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			before := processorTime()
			bench.run(b)
			// The processor's time says more than the clock's where other programs run.
			b.ReportMetric(float64((processorTime()-before).Microseconds())/1000/float64(b.N)*1e6/float64(n), "cpu-ms/million")
		})
	}
}

// processorTime returns how long this program has computed.
func processorTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
