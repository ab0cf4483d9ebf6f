package fieldindex

import (
	"strings"
	"testing"
)

func TestNamesAreQuoted(t *testing.T) {
	for name, want := range map[string]string{"a": `'a'::text`, "it's": `'it''s'::text`, `a\'b`: `E'a\\''b'::text`} {
		if got := literal(name); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}

func TestFieldsHaveNamesOfTheirOwn(t *testing.T) {
	seen := map[string]bool{}
	for _, path := range [][]string{{"a"}, {"a", "b"}, {"a.b"}, {"b", "a"}, {`a","b`}} {
		s := Suffix(path)
		if seen[s] || !strings.HasPrefix(s, Infix) || len(s) != len(Infix)+8 {
			t.Errorf("%q has the suffix %s", path, s)
		}
		seen[s] = true
	}
}
