package query

import (
	"math"
	"slices"
)

const (
	// maxBins is the largest number of bins of a histogram of numbers. The page has 200 pixels for them.
	maxBins = 20
	// farthest is the largest absolute value that is counted into bins. Beyond it, edges may not be float64s.
	farthest = 1e300
	// closest is the least distance of the least and the greatest number, as a part of the larger one. A float64 has 16 digits, bins take two of them, and
	// one is to spare.
	closest = 1e-13
)

// bin counts the numbers from From up to To, To excluded. Both are round, so that a query can ask for just these numbers.
type bin struct {
	From  float64 `json:"from"`
	To    float64 `json:"to"`
	Count int     `json:"count"`
}

// binsOf returns the histogram of sorted numbers: at most maxBins bins without gaps. They are equally wide, unless that would put most
// of the numbers into one of them, as it does with latencies. Then each of them is some times as wide as the one before. It returns nil
// if all numbers are the same, too large, or so close together that edges between them could be one float64.
func binsOf(sorted []float64) []bin {
	if len(sorted) == 0 {
		return nil
	}
	low, high := sorted[0], sorted[len(sorted)-1]
	if !areBinned(low, high) {
		return nil
	}
	isWhole := !slices.ContainsFunc(sorted, func(n float64) bool { return n != math.Trunc(n) })
	bins := countInto(equalEdges(low, high, isWhole), sorted)
	if low >= 0 && isLopsided(bins, len(sorted)) {
		return countInto(growingEdges(sorted), sorted)
	}
	return bins
}

// areBinned reports whether there are bins for numbers from low to high.
func areBinned(low, high float64) bool {
	most := max(-low, high)
	return most <= farthest && high-low > most*closest && high-low > 1/farthest
}

// isLopsided reports whether one of the bins has more than two thirds of n numbers.
func isLopsided(bins []bin, n int) bool {
	return slices.ContainsFunc(bins, func(b bin) bool { return 3*b.Count > 2*n })
}

// countInto counts sorted numbers into the bins between the edges.
func countInto(edges, sorted []float64) []bin {
	bins := make([]bin, len(edges)-1)
	first := 0
	for i := range bins {
		bins[i].From, bins[i].To = edges[i], edges[i+1]
		next, _ := slices.BinarySearch(sorted, edges[i+1])
		bins[i].Count = next - first
		first = next
	}
	return bins
}

// decimal returns n times ten to a power. The result is the float64 nearest to it, as a reader of the decimal number gets it.
func decimal(n float64, power int) float64 {
	if power < 0 {
		return n / math.Pow10(-power)
	}
	return n * math.Pow10(power)
}

// equalEdges returns the edges of equally wide bins, multiples of 1, 2 or 5 times a power of ten. low is in the first bin, high in the last.
// isWhole has edges at integers alone.
func equalEdges(low, high float64, isWhole bool) []float64 {
	for power := int(math.Floor(math.Log10((high-low)/maxBins))) - 1; ; power++ {
		for _, digit := range []float64{1, 2, 5} {
			width := decimal(digit, power)
			if width == 0 || isWhole && width < 1 {
				continue
			}
			first, last := math.Floor(low/width), math.Floor(high/width)+1
			if last-first > maxBins {
				continue
			}
			var edges []float64
			for n := first; n <= last; n++ {
				edges = append(edges, decimal(n*digit, power))
			}
			// Divisions round: the ends may be a bin off.
			if low < edges[0] {
				edges = slices.Insert(edges, 0, decimal((first-1)*digit, power))
			}
			if high >= edges[len(edges)-1] {
				edges = append(edges, decimal((last+1)*digit, power))
			}
			if len(edges)-1 <= maxBins && slices.IsSorted(edges) {
				return slices.Compact(edges)
			}
		}
	}
}

// growingEdges returns the edges of bins for sorted numbers from 0 on: 1, 2, 5, 10, 20 and so on, or powers of ten if that would be
// too many. The first bin begins at 0 if a number lies below the first such edge.
func growingEdges(sorted []float64) []float64 {
	high := sorted[len(sorted)-1]
	at, _ := slices.BinarySearch(sorted, math.SmallestNonzeroFloat64)
	least := sorted[at] // greater than 0: not all numbers are the same
	from, to := int(math.Floor(math.Log10(least))), int(math.Floor(math.Log10(high)))+1
	digits := []float64{1, 2, 5}
	step := 1
	if 3*(to-from) > maxBins-2 {
		digits = digits[:1]
		step = (to-from)/(maxBins-2) + 1
	}
	edges := []float64{0}
	for power := from; ; power += step {
		for _, digit := range digits {
			edge := decimal(digit, power)
			if edge <= least && len(edges) > 1 {
				edges = edges[:1] // the bins begin with the last edge below
			}
			edges = append(edges, edge)
			if edge > high {
				if sorted[0] >= edges[1] {
					return edges[1:]
				}
				return edges
			}
		}
	}
}
