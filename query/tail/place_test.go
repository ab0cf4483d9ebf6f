package tail

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
)

func TestPlacesAreChecked(t *testing.T) {
	for _, bad := range []string{"x", "1", "1.x.ü", "1.1.-1", "2.1.1", "1.1.1.1", "1.1.1.1.x", strings.Repeat("1.", 3000), "1.zzzzzzzzzzzzz.1"} {
		if _, ok := ParsePlace(bad); ok {
			t.Errorf("%.40s: taken", bad)
		}
	}
}

func TestAPlaceIsReadAsItWasWritten(t *testing.T) {
	at := time.UnixMilli(1772625600123)
	before := &snapshot{xmin: 95, xmax: 100, pending: []int64{95, 97}, at: at}
	after := &snapshot{xmin: 97, xmax: 1 << 40, pending: []int64{97}}
	last := uuid.UUID{6: 0x70, 8: 0x80, 15: 1}
	row := Row{ID: last, placePrefix: placePrefix(before, after)}
	for text, want := range map[string]Place{
		wholePlace(before):           {at: at, before: before},
		string(row.AppendPlace(nil)): {at: at, before: before, after: after, last: last},
	} {
		got, ok := ParsePlace(text)
		got.before.at = at // a place has one time
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(Place{}, snapshot{})); !ok || diff != "" {
			t.Errorf("%s: read: %t (-want +got):\n%s", text, ok, diff)
		}
	}
	for x := range int64(1000) {
		after.pending = append(after.pending, 1<<39+x)
	}
	if text := placePrefix(before, after); len(text) > 1000 {
		t.Errorf("a place of %d bytes for many pending transactions", len(text))
	}
}

func TestAFollowerLacksWhatItsPlaceDoesNotShow(t *testing.T) {
	id := func(n byte) uuid.UUID { return uuid.UUID{15: n} }
	before := &snapshot{xmin: 90, xmax: 100, pending: []int64{90}}
	after := &snapshot{xmin: 105, xmax: 110, pending: []int64{105}}
	whole, part := &Place{before: before}, &Place{before: before, after: after, last: id(5)}
	for _, tt := range []struct {
		name   string
		place  *Place
		id     byte
		writer int64
		want   bool
	}{
		{"visible before", whole, 9, 99, false},
		{"pending before", whole, 1, 90, true},
		{"written since", whole, 1, 100, true},
		{"visible before, of part", part, 9, 99, false},
		{"visible after, up to the last", part, 5, 101, false},
		{"visible after, beyond the last", part, 6, 101, true},
		{"pending before, visible after, up to the last", part, 5, 90, false},
		{"pending after", part, 1, 105, true},
		{"written since, of part", part, 1, 110, true},
	} {
		if got := tt.place.lacks(id(tt.id), tt.writer); got != tt.want {
			t.Errorf("%s: lacks it: %t, want %t", tt.name, got, tt.want)
		}
	}
}

// TestATransactionIDIsMadeWhole has ids on both sides of where 32 bits go round.
func TestATransactionIDIsMadeWhole(t *testing.T) {
	const round = 1 << 32
	for _, tt := range []struct {
		xmax int64
		x    uint32
		want int64
	}{
		{1000, 999, 999},
		{3*round + 1000, 999, 3*round + 999},
		{3*round + 1000, 1000, 2*round + 1000}, // not yet begun in this round
		{3*round + 1000, 1<<32 - 1, 3*round - 1},
		{3 * round, 1<<32 - 1, 3*round - 1},
	} {
		if got := (&snapshot{xmax: tt.xmax}).full(tt.x); got != tt.want {
			t.Errorf("%d before %d: got %d, want %d", tt.x, tt.xmax, got, tt.want)
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
