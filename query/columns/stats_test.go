package columns_test

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace/internal/archive"
	"millrace/query/columns"
)

// statsOf returns the figures of all rows of files by a group's key, computed from the columns and, where rows are given, from those besides.
func statsOf(t *testing.T, s *columns.Search, by [][]string, figures []columns.Figure, edges []int64) map[string][]string {
	t.Helper()
	table := columns.NewTable(by, figures, edges, func(int) error { return nil })
	if err := s.Stats(t.Context(), table); err != nil {
		t.Fatal(err)
	}
	table.Done()
	got := make(map[string][]string)
	for group := range table.Groups() {
		values, has := table.Key(group)
		for i := range has {
			if !has[i] {
				values[i] = "null"
			}
		}
		var row []string
		for i := range figures {
			v := table.Value(i, table.Cells(group))
			row = append(row, string(v.JSON()))
		}
		got[strings.Join(values, " ")] = row
	}
	return got
}

// TestStatsAreThoseOfTheRecords compares figures with those of the records, computed in another way: sums by rational numbers.
func TestStatsAreThoseOfTheRecords(t *testing.T) {
	files, rows := written(t, 3, 3000)
	duration := []string{"duration_ms"}
	figures := []columns.Figure{
		{Function: columns.CountRows}, {Function: columns.CountValues, Field: duration}, {Function: columns.Sum, Field: duration},
		{Function: columns.Quantile, Field: duration, Quantile: 0.95}, {Function: columns.Quantile, Field: duration, Quantile: 0.5}, {Function: columns.Distinct, Field: []string{"host"}},
		{Function: columns.Share, Query: parse(t, "level:error")}, {Function: columns.Least, Field: duration}, {Function: columns.Greatest, Field: []string{"message"}},
	}
	for _, few := range []int{1 << 20, 100} {
		restore := columns.KeepFewNumbers(few)
		defer restore()
		for _, by := range [][][]string{nil, {{"service"}}, {{"level"}, {"http", "status"}}} {
			for _, edges := range [][]int64{nil, {math.MinInt64, rows[4000].InsertedAt, math.MaxInt64}} {
				s := &columns.Search{Files: files, Query: parse(t, `-host:"web-03"`), From: math.MinInt64, To: math.MaxInt64, Groups: 2}
				groups := make(map[string][]archive.Row)
				for _, r := range matching(t, s, rows) {
					var key []string
					for _, path := range by {
						text, ok := textOf(t, r.Data, strings.Join(path, "."))
						if !ok {
							text = "null"
						}
						key = append(key, text)
					}
					groups[strings.Join(key, " ")] = append(groups[strings.Join(key, " ")], r)
				}
				want := make(map[string][]string)
				for key, of := range groups {
					want[key] = figuresOf(t, of)
				}
				if diff := cmp.Diff(want, statsOf(t, s, by, figures, edges)); diff != "" {
					t.Fatalf("by %q, edges %v, few %d (-want +got):\n%s", by, edges, few, diff)
				}
			}
		}
	}
}

// figuresOf returns the figures of TestStatsAreThoseOfTheRecords.
func figuresOf(t *testing.T, rows []archive.Row) []string {
	t.Helper()
	durations, errorRows := 0, 0
	sum := new(big.Rat)
	var numbers []float64
	hosts := make(map[string]bool)
	greatest := ""
	for _, r := range rows {
		if text, ok := textOf(t, r.Data, "duration_ms"); ok {
			durations++
			if n, ok := new(big.Rat).SetString(text); ok {
				sum.Add(sum, n)
				f, _ := strconv.ParseFloat(text, 64)
				numbers = append(numbers, f)
			}
		}
		if host, ok := textOf(t, r.Data, "host"); ok {
			hosts[host] = true
		}
		if level, _ := textOf(t, r.Data, "level"); level == "error" {
			errorRows++
		}
		if message, ok := textOf(t, r.Data, "message"); ok {
			greatest = max(greatest, message)
		}
	}
	slices.Sort(numbers)
	quantile := func(q float64) string {
		place := q * float64(len(numbers)-1)
		low, high := numbers[int(math.Floor(place))], numbers[int(math.Ceil(place))]
		return strconv.FormatFloat(low+(place-math.Floor(place))*(high-low), 'f', -1, 64)
	}
	total := sum.FloatString(20)
	total = strings.TrimSuffix(strings.TrimRight(total, "0"), ".")
	return []string{
		strconv.Itoa(len(rows)), strconv.Itoa(durations), total, quantile(0.95), quantile(0.5), strconv.Itoa(len(hosts)),
		strconv.FormatFloat(float64(errorRows)/float64(len(rows)), 'f', -1, 64), strconv.FormatFloat(numbers[0], 'f', -1, 64), fmt.Sprintf("%q", greatest),
	}
}

func TestATableTakesNoMoreMemoryThanItMay(t *testing.T) {
	files, _ := written(t, 1, 3000)
	s := &columns.Search{Files: files, From: math.MinInt64, To: math.MaxInt64, Groups: 1}
	for _, figure := range []columns.Figure{{Function: columns.CountRows}, {Function: columns.Quantile, Field: []string{"duration_ms"}}, {Function: columns.Distinct, Field: []string{"trace_id"}}} {
		by := [][]string{{"trace_id"}}
		if figure.Field != nil {
			by = nil
		}
		most := 0
		table := columns.NewTable(by, []columns.Figure{figure}, nil, func(bytes int) error {
			if most = bytes; bytes > 20_000 {
				return columns.ErrLarge
			}
			return nil
		})
		if err := s.Stats(t.Context(), table); !errors.Is(err, columns.ErrLarge) {
			t.Errorf("%v: got %v at %d bytes, want %v", figure.Function, err, most, columns.ErrLarge)
		}
	}
}
