package cells

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"millrace/internal/frame"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// must returns the map of a text that has no mistake.
func must(t testing.TB, text string) *Map {
	t.Helper()
	m, err := Parse([]byte(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return m
}

// moment returns a time that RFC 3339 writes.
func moment(t testing.TB, text string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// idAt returns an id of a time.
func idAt(random *rand.Rand, at time.Time) (id uuid.UUID) {
	binary.BigEndian.PutUint64(id[:8], uint64(at.UnixMilli())<<16|7<<12|random.Uint64()&0xfff)
	binary.BigEndian.PutUint64(id[8:], 1<<63|random.Uint64()>>3)
	return id
}

// TestWhereAnIDLeadsNeverChanges has cells of ids as they were when the package was made. Another result would lose sight of what is stored,
// and let a request that is sent again be stored again.
func TestWhereAnIDLeadsNeverChanges(t *testing.T) {
	m := must(t, "cell a\ncell b\ncell c\nsince beginning a\nsince 2026-01-01T00:00:00Z a b\nsince 2027-01-01T00:00:00.5Z c a b")
	for id, want := range map[string]string{
		"00000000-0000-7000-8000-000000000000": "a",
		"019b76da-a7ff-7fff-8000-000000000000": "a", // the last millisecond of 2025
		"019b76da-a800-7000-8000-000000000000": "b", // 2026 begins
		"019b76da-a800-7001-8000-000000000000": "a",
		"019b76da-a800-7002-bfff-ffffffffffff": "b",
		"01a2ce8b-d5f3-7000-8000-000000000000": "b", // 2027-01-01T00:00:00.499Z
		"01a2ce8b-d5f4-7000-8000-000000000000": "a", // and .5
		"01a2ce8b-d5f4-7001-8000-000000000000": "a",
		"01a2ce8b-d5f4-7002-8000-000000000000": "c",
		"ffffffff-ffff-7fff-bfff-ffffffffffff": "c",
	} {
		if got := m.Cells()[m.Of(uuid.MustParse(id))].Name; got != want {
			t.Errorf("%s (%s): got %s, want %s", id, frame.Time(uuid.MustParse(id)).Format(time.RFC3339Nano), got, want)
		}
	}
}

// TestTheRecordsOfARequestShareACell tries bases made with a key and without, and ids that count up from them.
func TestTheRecordsOfARequestShareACell(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	m := must(t, "cell a\ncell b\ncell c\nsince beginning a b c")
	for range 10_000 {
		base := frame.BaseOfKey(idAt(random, time.UnixMilli(random.Int64N(1<<48))))
		if random.IntN(2) == 0 {
			base = frame.NewBase()
		}
		if k := int(random.Int64N(math.MaxInt32)); m.Of(frame.ID(base, k)) != m.Of(base) {
			t.Fatalf("%s and its record %d are in different cells", base, k)
		}
	}
}

func TestIDsAreSpreadEvenly(t *testing.T) {
	for _, cells := range []int{2, 3, 7, 64} {
		text, names := "", ""
		for i := range cells {
			text += fmt.Sprintf("cell c%d\n", i)
			names += fmt.Sprintf(" c%d", i)
		}
		m := must(t, text+"since beginning"+names)
		const each = 4000
		for kind, next := range map[string]func(i int) uuid.UUID{
			"without a key": func(i int) (id uuid.UUID) { // bases count up by steps of 1/4096 ms
				at := uint64(1_800_000_000_000)<<12 + uint64(i)
				binary.BigEndian.PutUint64(id[:8], at>>12<<16|7<<12|at&0xfff)
				return id
			},
			"with a key": func(i int) uuid.UUID {
				var key uuid.UUID
				binary.BigEndian.PutUint64(key[:8], uint64(1_800_000_000_000+i)<<16|7<<12)
				return frame.BaseOfKey(key)
			},
		} {
			counts := make([]int, cells)
			for i := range each * cells {
				counts[m.Of(next(i))]++
			}
			for c, n := range counts { // 6 standard deviations of a fair die
				if off := math.Abs(float64(n - each)); off > 6*math.Sqrt(each) {
					t.Errorf("%d cells, ids %s: cell %d has %d of %d", cells, kind, c, n, each*cells)
				}
			}
		}
	}
}

func TestTheFingerprintIsOfTheMapAlone(t *testing.T) {
	const text = "cell a postgres://u:p@h/a\ncell b postgres://u:p@h/b\nsince beginning a\nsince 2026-01-01T00:00:00Z a b"
	print := must(t, text).Fingerprint()
	for change, other := range map[string]string{
		"the URLs":                         strings.ReplaceAll(text, "u:p@h", "v:q@i"),
		"no URLs":                          "cell a\ncell b\nsince beginning a\nsince 2026-01-01T00:00:00Z a b",
		"the order of the cells' lines":    "cell b\ncell a\nsince beginning a\nsince 2026-01-01T00:00:00Z a b",
		"a period that changes nothing":    text + "\nsince 2027-01-01T00:00:00Z a b",
		"a time that is written otherwise": strings.ReplaceAll(text, "2026-01-01T00:00:00Z", "2026-01-01T02:00:00.000+02:00"),
	} {
		if got := must(t, other).Fingerprint(); got != print {
			t.Errorf("%s: got %s, want %s", change, got, print)
		}
	}
	for change, other := range map[string]string{
		"the order of a period's cells": strings.ReplaceAll(text, "Z a b", "Z b a"),
		"a millisecond":                 strings.ReplaceAll(text, "00:00Z", "00:00.001Z"),
		"no change":                     "cell a\nsince beginning a",
	} {
		if got := must(t, other).Fingerprint(); got == print {
			t.Errorf("%s: the same %s", change, print)
		}
	}
}

func TestOfAllocatesNothing(t *testing.T) {
	m := must(t, "cell a\ncell b\nsince beginning a\nsince 2026-01-01T00:00:00Z a b")
	id := frame.NewBase()
	if n := testing.AllocsPerRun(100, func() { m.Of(id) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestABaseIsMadeInACell has bases made for cells that take ids now, took them last a second ago, or will from an hour on.
func TestABaseIsMadeInACell(t *testing.T) {
	now := time.Now().UTC().Truncate(time.Millisecond)
	ago, soon := now.Add(-time.Second), now.Add(time.Hour)
	m := must(t, "cell a\ncell b\ncell c\ncell d\nsince beginning a b\nsince "+stamp(ago)+" b c\nsince "+stamp(soon)+" c d")
	for cell, earliest := range []time.Time{ago.Add(-time.Millisecond), now, now, soon} {
		for range 500 {
			base := m.BaseIn(cell)
			at := frame.Time(base)
			if m.Of(base) != cell || at.Before(earliest) || at.After(earliest.Add(time.Minute)) {
				t.Fatalf("cell %d: got %s, which leads to %d, at %s", cell, base, m.Of(base), stamp(at))
			}
		}
	}
	for from, want := range map[time.Time]string{ago.Add(-time.Hour): "[0 1 2 3]", now: "[1 2 3]", soon: "[2 3]"} {
		if got := fmt.Sprint(m.Since(from)); got != want {
			t.Errorf("since %s: got %s, want %s", stamp(from), got, want)
		}
	}
}

func BenchmarkBaseIn(b *testing.B) {
	for _, n := range []int{1, 3, 64} {
		text, names := "", ""
		for i := range n {
			text += fmt.Sprintf("cell c%d\n", i)
			names += fmt.Sprintf(" c%d", i)
		}
		m := must(b, text+"since beginning"+names)
		b.Run(fmt.Sprintf("cells=%d", n), func(b *testing.B) {
			for b.Loop() {
				m.BaseIn(n - 1)
			}
		})
	}
}
