package query

import "testing"

func TestGzipIsTakenAsAcceptEncodingSays(t *testing.T) {
	cases := map[string]bool{
		"":                      false,
		"gzip":                  true,
		"br, GZIP;q=0.5":        true,
		"gzip;q=0":              false,
		"*":                     true,
		"*;q=0":                 false,
		"*, gzip;q=0":           false,
		"gzip;q=0, *":           false,
		"identity;q=0.5, *;q=0": false,
		"gzip;q=x":              false,
		"br":                    false,
	}
	for accept, want := range cases {
		if got := accepts(accept, "gzip"); got != want {
			t.Errorf("Accept-Encoding: %s: got %v, want %v", accept, got, want)
		}
	}
}
