package load

import (
	"testing"
	"time"
)

func TestAQuantileIsOfTheNearestRank(t *testing.T) {
	var r Result
	if got := r.Quantile(.5); got != 0 {
		t.Errorf("without answers: got %v, want 0", got)
	}
	for i := range 10 {
		r.Latencies = append(r.Latencies, time.Duration(i+1))
	}
	for q, want := range map[float64]time.Duration{0: 1, .05: 1, .1: 1, .11: 2, .5: 5, .9: 9, .91: 10, .99: 10, 1: 10} {
		if got := r.Quantile(q); got != want {
			t.Errorf("q=%v of 1 to 10: got %d, want %d", q, got, want)
		}
	}
}
