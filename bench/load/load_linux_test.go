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

func TestAnAnswerWithoutABodyIsWhole(t *testing.T) {
	for answer, want := range map[string]bool{
		"HTTP/1.1 204 No Content\r\nDate: x\r\n\r\n":     true,
		"HTTP/1.1 204 No Content\r\nDate: x\r\n":         false,
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nx":  false,
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nxy": true,
	} {
		if _, whole, err := parse([]byte(answer)); err != nil || whole != want {
			t.Errorf("%q: got %v, %v, want %v", answer, whole, err, want)
		}
	}
	if _, _, err := parse([]byte("HTTP/1.1 200 OK\r\n\r\n")); err == nil {
		t.Error("a 200 of unknown length is no error")
	}
}
