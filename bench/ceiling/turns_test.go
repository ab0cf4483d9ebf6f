package ceiling

import "testing"

func TestTheMedianIsTheMiddle(t *testing.T) {
	turns := NewTurns("req/s")
	for i, want := range []float64{8, 4.5, 3, 4.5, 5, 4.5, 4, 4.5} {
		turns.Also("req/s", []float64{8, 1, 3, 6, 5, 4, 2, 7}[i])
		if got := turns.Median("req/s"); got != want {
			t.Errorf("of the first %d: got %v, want %v", i+1, got, want)
		}
	}
}
