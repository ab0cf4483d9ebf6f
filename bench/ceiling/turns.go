// Package ceiling holds what the benchmarks of several packages share: how product and ceiling take turns and are
// reported, and the publisher that is the ceiling of everything that goes through RabbitMQ.
//
// Nothing here may be used by two goroutines at once.
package ceiling

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// Round is how long product or ceiling run in one turn.
const Round = 400 * time.Millisecond

// Turns gathers what product and ceiling reached, turn by turn. It reports medians, because one turn that another program
// disturbed should not count. For the ratio it reports the spread too: the distance between its quartiles as a share of it.
type Turns struct {
	unit   string
	units  []string // in the order of their coming
	values map[string][]float64
}

// NewTurns returns Turns for figures of a unit. If the unit is a time, less is better, and the ratio is that of the speeds.
func NewTurns(unit string) *Turns {
	return &Turns{unit: unit, values: make(map[string][]float64)}
}

// Add adds a turn's figure and its ceiling.
func (t *Turns) Add(figure, ceiling float64) {
	t.Also(t.unit, figure)
	t.Also("ceiling-"+t.unit, ceiling)
	ratio := figure / ceiling
	if strings.HasSuffix(t.unit, "ms") {
		ratio = 1 / ratio
	}
	t.Also("ratio", ratio)
}

// Also adds another figure of the turn.
func (t *Turns) Also(unit string, value float64) {
	if t.values[unit] == nil {
		t.units = append(t.units, unit)
	}
	t.values[unit] = append(t.values[unit], value)
}

// Median returns the median of a unit's figures so far. If their number is even, that is halfway between the two in the middle.
func (t *Turns) Median(unit string) float64 {
	v := slices.Sorted(slices.Values(t.values[unit]))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// Report reports the medians, the ratio and its spread as the benchmark's metrics.
func (t *Turns) Report(b *testing.B) {
	for _, unit := range t.units {
		b.ReportMetric(t.Median(unit), unit)
	}
	if v := slices.Sorted(slices.Values(t.values["ratio"])); len(v) > 0 {
		b.ReportMetric((v[len(v)*3/4]-v[len(v)/4])/t.Median("ratio"), "spread")
	}
	b.ReportMetric(0, "ns/op") // a turn's length says nothing
}
