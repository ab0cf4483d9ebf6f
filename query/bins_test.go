package query

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// written is a histogram in few words: the edges, and behind each the count of its bin.
func written(bins []bin) string {
	var b strings.Builder
	for _, one := range bins {
		fmt.Fprintf(&b, "%v:%d ", one.From, one.Count)
	}
	if len(bins) > 0 {
		fmt.Fprintf(&b, "%v", bins[len(bins)-1].To)
	}
	return b.String()
}

func TestBinsHaveRoundEdges(t *testing.T) {
	upTo := func(n int, scale float64) (list []float64) {
		for i := range n {
			list = append(list, float64(i+1)*scale)
		}
		return list
	}
	latencies := slices.Concat(upTo(90, 0.5), []float64{120, 700, 3000, 31000})
	for _, c := range []struct {
		name    string
		numbers []float64
		want    string
	}{
		{"none", nil, ""},
		{"all the same", []float64{7, 7, 7}, ""},
		{"two", []float64{200, 503}, "200:1 220:0 240:0 260:0 280:0 300:0 320:0 340:0 360:0 380:0 400:0 420:0 440:0 460:0 480:0 500:1 520"},
		{"small integers", upTo(10, 1), "1:1 2:1 3:1 4:1 5:1 6:1 7:1 8:1 9:1 10:1 11"},
		{"tenths", upTo(4, 0.1), "0.1:1 0.12:0 0.14:0 0.16:0 0.18:0 0.2:1 0.22:0 0.24:0 0.26:0 0.28:0 0.3:1 0.32:0 0.34:0 0.36:0 0.38:0 0.4:1 0.42"},
		{"below zero", []float64{-10, -5, 0, 3}, "-10:1 -9:0 -8:0 -7:0 -6:0 -5:1 -4:0 -3:0 -2:0 -1:0 0:1 1:0 2:0 3:1 4"},
		{"latencies", latencies, "0.5:1 1:2 2:6 5:10 10:20 20:51 50:0 100:1 200:0 500:1 1000:0 2000:1 5000:0 10000:0 20000:1 50000"},
		{"latencies with zeros", append([]float64{0, 0}, latencies...), "0:2 0.5:1 1:2 2:6 5:10 10:20 20:51 50:0 100:1 200:0 500:1 1000:0 2000:1 5000:0 10000:0 20000:1 50000"},
		{"many powers of ten", []float64{1e-9, 1e-9, 1e-9, 1e-9, 2, 3e11}, "1e-09:4 1e-07:0 1e-05:0 0.001:0 0.1:1 10:0 1000:0 100000:0 1e+07:0 1e+09:0 1e+11:1 1e+13"},
		{"neighbours among float64s", []float64{1 << 53, 1<<53 + 2}, ""},
		{"close together", []float64{1e18, 1e18 + 1024}, ""},
		{"the least float64", []float64{0, math.SmallestNonzeroFloat64}, ""},
		{"as close as may be", []float64{1e6, 1e6 + 2e-6}, "1e+06:1 1.0000000000002e+06:0 1.0000000000004e+06:0 1.0000000000006e+06:0 1.0000000000008e+06:0 1.000000000001e+06:0 1.0000000000012e+06:0 1.0000000000014e+06:0 1.0000000000016e+06:0 1.0000000000018e+06:0 1.000000000002e+06:1 1.0000000000022e+06"},
		{"too large", []float64{-1.7e308, 1.7e308}, ""},
	} {
		if got := written(binsOf(c.numbers)); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}

// Whatever the numbers are, each of them is in one bin, and no bin lacks a neighbour.
func TestBinsHoldAllNumbers(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 5000 {
		scale := math.Pow10(random.IntN(600) - 300)
		numbers := make([]float64, 1+random.IntN(40))
		for i := range numbers {
			switch numbers[i] = random.NormFloat64() * scale; random.IntN(4) {
			case 0:
				numbers[i] = math.Exp(20*random.NormFloat64()) * 1000
			case 1:
				numbers[i] = float64(random.IntN(1000)) / 10
			}
		}
		if random.IntN(2) == 0 {
			for i := range numbers {
				numbers[i] = math.Abs(numbers[i])
			}
		}
		if random.IntN(4) == 0 { // close together, as ids and times are
			base := math.Pow10(random.IntN(40))
			for i := range numbers {
				numbers[i] = base + float64(random.IntN(2000))
			}
		}
		slices.Sort(numbers)
		bins := binsOf(numbers)
		if bins == nil {
			if areBinned(numbers[0], numbers[len(numbers)-1]) {
				t.Fatalf("no bins of %v", numbers)
			}
			continue
		}
		if len(bins) > maxBins {
			t.Fatalf("%d bins of %v", len(bins), numbers)
		}
		total := 0
		for i, one := range bins {
			within := 0
			for _, n := range numbers {
				if n >= one.From && n < one.To {
					within++
				}
			}
			if within != one.Count || one.From >= one.To || i > 0 && bins[i-1].To != one.From {
				t.Fatalf("bin %d of %s has %d of %v", i, written(bins), within, numbers)
			}
			total += one.Count
		}
		if total != len(numbers) {
			t.Fatalf("%s has %d of %d: %v", written(bins), total, len(numbers), numbers)
		}
	}
}
