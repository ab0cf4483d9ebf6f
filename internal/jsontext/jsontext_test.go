package jsontext

import "testing"

func TestTheEndOfAStringIsFound(t *testing.T) {
	for text, want := range map[string]int{`""`: 2, `"a"b"`: 3, `"\""`: 4, `"\\"x`: 4, `"\\\""x`: 6, `"`: -1, `"\"`: -1, `"a\\\"`: -1, `"é\\" "`: 6} {
		if got := StringEnd([]byte(text), 0); got != want {
			t.Errorf("%s: got %d, want %d", text, got, want)
		}
	}
}
