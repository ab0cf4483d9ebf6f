package cells

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"millrace/internal/frame"
)

func TestWhatAChangeMustKeepTo(t *testing.T) {
	now := moment(t, "2026-03-04T12:00:00Z")
	const (
		abc = "cell a\ncell b\ncell c\n"
		one = abc + "since beginning a\n"
		two = one + "since 2026-03-01T00:00:00Z a b\n"
	)
	for _, c := range []struct {
		name, before, after string
		keep                time.Duration
		want                []string // what the refusals begin with
	}{
		{"nothing", two, two, 0, nil},
		{"a cell without ids comes", two, two + "cell d\n", 0, nil},
		{"a cell without ids goes", two, "cell a\ncell b\nsince beginning a\nsince 2026-03-01T00:00:00Z a b\n", 0, nil},
		{"cells come with notice", one, one + "since 2026-03-04T12:10:00Z a b c\n", 0, nil},
		{"cells come with too short a notice", one, one + "since 2026-03-04T12:09:59.999Z a b\n", 0,
			[]string{"too short a notice: ids from 2026-03-04T12:09:59.999Z on go from a to a b, and 2026-03-04T12:09:59.999Z is 10m0s from now; the earliest that is safe is 2026-03-04T12:10:00Z"}},
		{"cells come in the past", one, two, 0,
			[]string{"ids from 2026-03-01T00:00:00Z on are in a, and would be looked for in a b: what was said of them must stay; a change is safe for ids from 2026-03-04T12:10:00Z on"}},
		{"a line is changed in place", two, one + "since 2026-03-01T00:00:00Z a c\n", 0, []string{"ids from 2026-03-01T00:00:00Z on are in a b, and would be looked for in a c"}},
		{"the order is changed", two, one + "since 2026-03-01T00:00:00Z b a\n", 0, []string{"ids from 2026-03-01T00:00:00Z on are in a b, and would be looked for in b a"}},
		{"the beginning is changed", two, abc + "since beginning b\nsince 2026-03-01T00:00:00Z a b\n", 0, []string{"ids of before 2026-03-01T00:00:00Z are in a, and would be looked for in b"}},
		{"a cell is drained with notice", two, two + "since 2026-03-04T13:00:00Z a\n", 0, nil},
		{"a cell that takes ids goes", two, "cell a\nsince beginning a\n", 0, []string{"cell b is still needed, and has no line any more: it takes ids; first let a later since leave it out"}},
		{"a drained cell goes while it takes ids", two + "since 2026-03-04T13:00:00Z a\n", "cell a\nsince beginning a\n", 0,
			[]string{"cell b is still needed, and has no line any more: it takes ids until 2026-03-04T13:00:00Z"}},
		{"a drained cell goes", two + "since 2026-03-04T00:00:00Z a\n", "cell a\nsince beginning a\n", 0,
			[]string{"cell b is still needed, and has no line any more: it has ids of before 2026-03-04T00:00:00Z, and no line keep says how long they are needed"}},
		{"a drained cell goes too early", two + "since 2026-03-03T00:00:00Z a\n", "cell a\nsince beginning a\n", 37 * time.Hour,
			[]string{"cell b is still needed, and has no line any more: it has ids of before 2026-03-03T00:00:00Z, which are needed until 2026-03-04T13:00:00Z"}},
		{"a drained cell goes when its ids are old", two + "since 2026-03-03T00:00:00Z a\n", "cell a\nsince beginning a\n", 36 * time.Hour, nil},
		{"ids are kept for less than a request may be sent again", two + "since 2026-03-03T00:00:00Z a\n", "cell a\nsince beginning a\n", 24 * time.Hour,
			[]string{"ids are kept for 24h, and can't be kept for less than 24h1m: a request may be sent again until its key is 24h0m0s old"}},
		{"two cells go", abc + "since beginning a b c\n", "cell a\nsince beginning a\n", 0, []string{"cell b is still needed", "cell c is still needed"}},
		{"a cell to come goes", one + "since 2026-03-04T13:00:00Z b\n", "cell a\nsince beginning a\nsince 2026-03-04T13:00:00Z a\n", 0, nil},
		{"a cell to come soon goes", one + "since 2026-03-04T12:05:00Z b\n", "cell a\nsince beginning a\n", 0,
			[]string{"cell b is still needed, and has no line any more: it takes ids from 2026-03-04T12:05:00Z on; first let a later since leave it out"}},
		{"a cell to come soon, for a while, goes", one + "since 2026-03-04T12:05:00Z b\nsince 2026-03-04T13:00:00Z a\n", "cell a\nsince beginning a\n", 0,
			[]string{"cell b is still needed, and has no line any more: it takes ids from 2026-03-04T12:05:00Z to 2026-03-04T13:00:00Z"}},
		{"a cell goes that takes ids now and later", two + "since 2026-03-04T13:00:00Z b\n", "cell a\nsince beginning a\n", 0,
			[]string{"cell b is still needed, and has no line any more: it takes ids; first let a later since leave it out"}},
		{"a cell gets another name", two, strings.ReplaceAll(strings.ReplaceAll(two, " b\n", " x\n"), "cell b", "cell x"), 0, []string{"cell b is still needed, and has no line any more"}},
		{"a change that was announced moves on", one + "since 2026-03-04T13:00:00Z a b\n", one + "since 2026-03-04T14:00:00Z a b\n", 0, nil},
		{"a change that was announced moves on too late", one + "since 2026-03-04T12:05:00Z a b\n", one + "since 2026-03-04T14:00:00Z a b\n", 0,
			[]string{"too short a notice: ids from 2026-03-04T12:05:00Z to 2026-03-04T14:00:00Z go from a b to a, and 2026-03-04T12:05:00Z is 5m0s from now"}},
		{"a cell is looked for elsewhere in a stretch", two, one + "since 2026-02-01T00:00:00Z c\nsince 2026-03-01T00:00:00Z a b\n", 0,
			[]string{"ids from 2026-02-01T00:00:00Z to 2026-03-01T00:00:00Z are in a, and would be looked for in c"}},
		{"all is another", "cell a\nsince beginning a", "cell z\nsince beginning z", 0, []string{"cell a is still needed"}},
		{"two mistakes", two, abc + "since beginning b\nsince 2026-03-01T00:00:00Z a b\nsince 2026-03-04T12:01:00Z c\n", 0, []string{"ids of before", "too short a notice"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			refusals := must(t, c.after).Follows(must(t, c.before), now, Rules{Notice: DefaultNotice, Keep: c.keep})
			if len(refusals) != len(c.want) {
				t.Fatalf("got %q, want %q", refusals, c.want)
			}
			for i, want := range c.want {
				if !strings.HasPrefix(refusals[i].Error(), want) {
					t.Errorf("got  %v\nwant %s", refusals[i], want)
				}
			}
		})
	}
	if refusals := must(t, one).Follows(must(t, one), now, Rules{Notice: LeastNotice - 1}); len(refusals) != 1 || !strings.Contains(refusals[0].Error(), "can't be shorter than 6m0s") {
		t.Errorf("a shorter notice than any: got %q", refusals)
	}
}

// world makes maps at random: of four cells, with periods around a time.
type world struct {
	*rand.Rand
	begin time.Time
}

// text returns a file of cells at random, in which times are whole minutes of two hours.
func (w world) text() string {
	names := []string{"a", "b", "c", "d"}
	text := "cell a\ncell b\ncell c\ncell d\n"
	minutes := w.Perm(120)[:w.IntN(5)]
	slices.Sort(minutes)
	for _, minute := range append([]int{-1}, minutes...) {
		w.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		since := beginning
		if minute >= 0 {
			since = stamp(w.begin.Add(time.Duration(minute) * time.Minute))
		}
		text += "since " + since + " " + strings.Join(names[:1+w.IntN(2)], " ") + "\n"
	}
	return text
}

// changed returns the text with a change of one line at random: one is there no more, or one is new at its end.
func (w world) changed(text string, now time.Time) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if last := len(lines) - 1; last > 4 && w.IntN(3) == 0 {
		return strings.Join(lines[:last], "\n") + "\n"
	}
	return text + "since " + stamp(now.Truncate(time.Minute).Add(time.Duration(w.IntN(40))*time.Minute)) + " " + []string{"a", "b", "c d", "d a"}[w.IntN(4)] + "\n"
}

// TestARefusalIsOfAnIDThatMoves compares Follows with what it promises, for ids of all minutes: it refuses a change exactly if an id of the
// past, or of the notice, would move.
func TestARefusalIsOfAnIDThatMoves(t *testing.T) {
	w := world{rand.New(rand.NewPCG(3, 4)), moment(t, "2026-03-04T00:00:00Z")}
	refused, taken := 0, 0
	for range 3000 {
		now := w.begin.Add(time.Duration(w.IntN(120*60)) * time.Second)
		text := w.text()
		before, after := must(t, text), must(t, w.text())
		if changed, err := Parse([]byte(w.changed(text, now))); err == nil {
			after = changed
		}
		rules := Rules{Notice: LeastNotice + time.Duration(w.IntN(20))*time.Minute, Keep: LeastKeep + time.Duration(w.IntN(120))*time.Minute}
		if w.IntN(3) == 0 {
			rules.Keep = 0
		}
		now = now.Add(rules.Keep) // so that the ids of the two hours become too old to count, one after another
		moves := ""
		for minute := -1; minute <= 170; minute++ {
			at := w.begin.Add(time.Duration(minute) * time.Minute) // and until the next minute
			if !at.Before(now.Add(rules.Notice)) || rules.Keep > 0 && !at.Add(time.Minute).After(now.Add(-rules.Keep)) {
				continue
			}
			if b, a := before.names(before.At(at)), after.names(after.At(at)); a != b {
				moves = fmt.Sprintf("ids of %s: %s, %s", stamp(at), b, a)
			}
		}
		refusals := after.Follows(before, now, rules)
		if (moves != "") != (len(refusals) > 0) {
			t.Fatalf("at %s with %+v: got %q, but %q", stamp(now), rules, refusals, moves)
		}
		if refused++; moves == "" {
			refused--
			taken++
		}
	}
	if refused < 100 || taken < 100 {
		t.Errorf("%d refused and %d taken show little", refused, taken)
	}
}

// TestAKeyLeadsToOneCellThroughAllChanges has a file change again and again, and each service read it up to LeastNotice apart. A key may be sent
// to any of them from the moment on that a clock allows it.
func TestAKeyLeadsToOneCellThroughAllChanges(t *testing.T) {
	w := world{rand.New(rand.NewPCG(5, 6)), moment(t, "2026-03-04T00:00:00Z")}
	changes := 0
	for range 300 {
		texts, readAt := []string{"cell a\ncell b\ncell c\ncell d\nsince beginning a\n"}, []time.Time{{}}
		maps := []*Map{must(t, texts[0])}
		now := w.begin
		for range 30 {
			now = now.Add(time.Duration(w.IntN(600)) * time.Second)
			text := w.changed(texts[len(texts)-1], now)
			m, err := Parse([]byte(text))
			if err != nil || len(m.Follows(maps[len(maps)-1], now, Rules{Notice: LeastNotice})) > 0 {
				continue // refused: the service keeps what it has
			}
			changes++
			texts, readAt, maps = append(texts, text), append(readAt, now), append(maps, m)
		}
		for range 100 {
			id := idAt(w.Rand, w.begin.Add(time.Duration(w.Int64N(int64(now.Sub(w.begin)+time.Hour)))))
			at := frame.Time(id)
			cell := ""
			for i, m := range maps {
				// Nobody takes the key before its time less KeyAhead and ClockError. A map is in force until the next one is read.
				if i+1 < len(texts) && readAt[i+1].Before(at.Add(-LeastNotice)) {
					continue
				}
				got := m.Cells()[m.Of(id)].Name
				if cell != "" && got != cell {
					t.Fatalf("%s (%s) leads to %s and %s through\n%s", id, stamp(at), cell, got, strings.Join(texts, "\n"))
				}
				cell = got
			}
		}
	}
	if changes < 500 {
		t.Errorf("%d changes show little", changes)
	}
}

func TestWhatElseAChangeDoes(t *testing.T) {
	before := must(t, "cell a postgres://u:p@h/a\ncell b postgres://u:p@h/b\nsince beginning a b")
	after := must(t, "cell a postgres://v:q@h/a\ncell b postgres://u:p@i/b\ncell c postgres://u:p@h/c\nsince beginning a b")
	if got := fmt.Sprint(before.Moved(after), before.Added(after)); got != "[b] [c]" {
		t.Errorf("got %s, want b moved and c added", got)
	}
	before = must(t, "cell a host=h dbname=a\ncell b postgres:///b?host=h\ncell c postgres://h/c\ncell d postgres://h/d?search_path=x\nsince beginning a")
	after = must(t, "cell a host=i dbname=a\ncell b postgres:///b?host=i\ncell c host=H. port=5432 dbname=c\ncell d postgres://h/d?search_path=y\nsince beginning a")
	if got := fmt.Sprint(before.Moved(after)); got != "[a b d]" {
		t.Errorf("got %s, want a, b and d moved", got)
	}
}

// TestRefusalsAreShort has the largest files there may be, of which each period is refused.
func TestRefusalsAreShort(t *testing.T) {
	cells, all := "", ""
	for i := range maxCells {
		name := fmt.Sprintf("a%02d%s", i, strings.Repeat("x", 29))
		cells += "cell " + name + "\n"
		all += " " + name
	}
	before, after := "since beginning"+all+"\n", "since beginning a00"+strings.Repeat("x", 29)+"\n"
	for i := range 300 { // of 2 KB each, in a file of 1 MiB
		at := stamp(moment(t, "2026-03-04T12:00:00Z").Add(time.Duration(i) * time.Hour))
		before += "since " + at + " " + strings.Join(strings.Fields(all)[:1+i%maxCells], " ") + "\n"
		after += "since " + at + " " + strings.Join(strings.Fields(all)[1+i%(maxCells-1):], " ") + "\n"
	}
	refusals := must(t, cells+after).Follows(must(t, cells+before), moment(t, "2027-03-04T12:00:00Z"), Rules{Notice: LeastNotice})
	gone := must(t, "cell z\nsince beginning z").Follows(must(t, cells+before), moment(t, "2027-03-04T12:00:00Z"), Rules{Notice: LeastNotice})
	for _, refusals := range [][]error{refusals, gone} {
		if len(refusals) != mostRefusals+1 || !strings.HasPrefix(refusals[mostRefusals].Error(), "and ") {
			t.Fatalf("got %d refusals, want ten and the number of the others", len(refusals))
		}
		for _, r := range refusals {
			if len(r.Error()) > 1000 {
				t.Errorf("a refusal has %d bytes: %.200s", len(r.Error()), r)
			}
		}
	}
}
