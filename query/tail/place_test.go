package tail

import (
	"strings"
	"testing"

	"github.com/google/uuid"
)

func TestPlacesAreChecked(t *testing.T) {
	for _, bad := range []string{"x", "1", "1.x.ü", "1.1.-1", "2.1.1", "1.1.1.1", "1.1.1.1.x", strings.Repeat("1.", 3000), "1.zzzzzzzzzzzzz.1"} {
		if _, ok := ParsePlace(bad); ok {
			t.Errorf("%.40s: taken", bad)
		}
	}
}

func FuzzPlace(f *testing.F) {
	f.Add("1.m3x0.5-4-3.6." + uuid.Nil.String())
	f.Add("1.m3x0.5")
	f.Fuzz(func(t *testing.T, s string) {
		if p, ok := ParsePlace(s); ok {
			p.lacks(uuid.Nil, 5)
		}
	})
}
