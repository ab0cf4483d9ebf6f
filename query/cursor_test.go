package query

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"millrace/internal/frame"
)

func firstPage(t testing.TB, rawQuery string) *search {
	t.Helper()
	s, err := parseSearch(rawQuery, pageParameters, noon)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// after returns the position behind the last row with an id.
func after(id uuid.UUID) position { return position{at: frame.Time(id), id: id} }

func TestACursorKeepsTheWindowOfTheFirstPage(t *testing.T) {
	first := firstPage(t, "from=now-15m&q=a:1")
	last := idAt(noon.Add(-time.Minute), 7)
	next, err := parseSearch("from=now-15m&q=++a:1&limit=5&cursor="+first.cursor(after(last)), pageParameters, noon.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if next.from != first.from || next.to != first.to || *next.after != after(last) {
		t.Errorf("got from %d, to %d, after %v, want %d, %d, %v", next.from, next.to, next.after, first.from, first.to, last)
	}
}

func TestACursorOfAnotherSearchIsRefused(t *testing.T) {
	cursor := firstPage(t, "from=now-15m&to=now&q=a:1").cursor(after(idAt(noon.Add(-time.Minute), 7)))
	for _, other := range []string{
		"from=now-15m&to=now&q=a:2", "from=now-15m&to=now", "from=now-16m&to=now&q=a:1", "from=now-15m&q=a:1", "to=now&q=a:1",
		"from=now-15m&to=now&q=a:1&order=asc", "from=now-15m&to=now-0s&q=a:1", `from=now-15m&to=now&q=a:"1"`,
	} {
		_, err := parseSearch(other+"&cursor="+cursor, pageParameters, noon)
		var f *failure
		if !errors.As(err, &f) || f.status != 400 || !strings.HasPrefix(f.message, "cursor: ") {
			t.Errorf("%s: got %v, want a refusal of the cursor", other, err)
		}
	}
	if _, err := parseSearch("from=now-15m&to=now&q=a:1&order=desc&cursor="+cursor, pageParameters, noon); err != nil {
		t.Errorf("order=desc spelled out: %v", err)
	}
}

func TestAnAlteredCursorIsRefused(t *testing.T) {
	first := firstPage(t, "q=a:1")
	var (
		cursor string
		raw    []byte
	)
	for _, p := range []position{{noon.Add(-time.Minute), uuid.UUID{3}, 2}, after(idAt(noon.Add(-time.Minute), 7))} {
		cursor = first.cursor(p)
		var err error
		if raw, err = base64url.DecodeString(cursor); err != nil {
			t.Fatal(err)
		}
		if err := firstPage(t, "q=a:1").resumeFrom(cursor, true); err != nil {
			t.Errorf("%+v: %v", p, err)
		}
		for i := range raw {
			for bit := range 8 {
				altered := []byte(string(raw))
				altered[i] ^= 1 << bit
				if err := firstPage(t, "q=a:1").resumeFrom(base64url.EncodeToString(altered), true); err == nil {
					t.Errorf("byte %d, bit %d altered: taken", i, bit)
				}
			}
		}
	}
	for _, made := range []string{
		"x", "AAAA", cursor[1:], cursor + "A", cursor + "=", "\n" + cursor, cursor[:55] + "\n", cursor[:10] + "\r\n" + cursor[10:54],
		strings.Repeat("A", len(cursor)), strings.Repeat("_", len(cursor)), strings.Repeat("+", len(cursor)),
		base64.StdEncoding.EncodeToString(raw) + "==",
	} {
		if err := firstPage(t, "q=a:1").resumeFrom(made, true); err == nil {
			t.Errorf("%q: taken", made)
		}
	}
}

// TestACursorOfBeforeStillHolds has one that was given out when cursors had one form.
func TestACursorOfBeforeStillHolds(t *testing.T) {
	s := firstPage(t, "q=a:1")
	if err := s.resumeFrom("AQAAAAGcs5HCAAAAAZy47wyAAZy4tzOgcACAAAAAAAAAB_0PVzorTyAF", false); err != nil || *s.after != after(idAt(noon.Add(-time.Minute), 7)) {
		t.Errorf("got %+v, %v", s.after, err)
	}
}

func FuzzCursor(f *testing.F) {
	first := firstPage(f, "q=a:1")
	f.Add(first.cursor(after(idAt(noon.Add(-time.Minute), 7))))
	f.Add(first.cursor(after(idAt(noon.Add(time.Hour), 7))))
	f.Add(first.cursor(position{noon.Add(-time.Minute).Add(time.Microsecond), uuid.UUID{1}, 3}))
	f.Add(strings.Repeat("A", 56))
	f.Fuzz(func(t *testing.T, cursor string) {
		s := firstPage(t, "q=a:1")
		if s.resumeFrom(cursor, true) != nil {
			return
		}
		if s.after == nil || s.from > s.to {
			t.Errorf("%q: taken as %+v", cursor, s)
		}
		if again := s.cursor(*s.after); again != cursor {
			t.Errorf("%q: taken, but this service would have written %q", cursor, again)
		}
	})
}
