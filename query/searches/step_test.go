package searches

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// walk evaluates a search every minute and returns what changed, as "3 fired a": found has the groups of each minute.
func walk(s *Search, found ...[]string) (changes []string) {
	s.Name, s.Every = "s", time.Minute
	st := new(State)
	st.Seeded = true
	begin := time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	for minute, values := range found {
		due := begin.Add(time.Duration(minute) * time.Minute)
		from, to := s.window(due, time.Time{})
		f := new(Found)
		for _, v := range values {
			f.Groups = append(f.Groups, Group{Fields: s.By, Values: []*string{&v}, Count: 1})
		}
		for _, c := range s.Step(st, due, from, to, f) {
			name := "-"
			if len(c.Group.Values) > 0 {
				name = *c.Group.Values[0]
			}
			changes = append(changes, fmt.Sprintf("%d %s %s", minute, c.What, name))
		}
	}
	return changes
}

func TestAlertsFireAndAreResolvedOnce(t *testing.T) {
	a, b, ab, none := []string{"a"}, []string{"b"}, []string{"a", "b"}, []string(nil)
	condition := func(k kind, window time.Duration) *Condition { return &Condition{kind: k, Window: window} }
	by := []string{"service"}
	for name, c := range map[string]struct {
		search Search
		found  [][]string
		want   []string
	}{
		"at once": {Search{By: by, Condition: condition(figures, time.Minute)}, [][]string{none, a, a, ab, b, none, a},
			[]string{"1 fired a", "3 fired b", "4 resolved a", "5 resolved b", "6 fired a"}},
		"when it has held": {Search{By: by, For: 2 * time.Minute, Condition: condition(figures, time.Minute)}, [][]string{a, a, none, a, a, a, a, none},
			[]string{"5 fired a", "7 resolved a"}},
		"until it is over for good": {Search{By: by, Keep: 2 * time.Minute, Condition: condition(figures, time.Minute)}, [][]string{a, none, a, none, none, none},
			[]string{"0 fired a", "4 resolved a"}},
		"nothing comes": {Search{Condition: condition(absent, time.Minute)}, [][]string{a, none, none, a, none},
			[]string{"1 fired -", "3 resolved -", "4 fired -"}},
		"a group stops, and is forgotten": {Search{By: by, Remember: 3 * time.Minute, Condition: condition(absent, time.Minute)},
			[][]string{ab, ab, a, a, ab, a, a, a, a, a}, []string{"2 fired b", "4 resolved b", "5 fired b", "8 resolved b"}},
		"a pattern is new for a window": {Search{Remember: time.Hour, Condition: condition(newPattern, 2*time.Minute)},
			[][]string{a, a, a, ab, a, b, none, a}, []string{"0 fired a", "2 resolved a", "3 fired b", "4 resolved b"}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, walk(&c.search, c.found...)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestWhatWasThereBeforeIsNotNew(t *testing.T) {
	s := &Search{Name: "s", Every: time.Minute, Remember: time.Hour, Condition: &Condition{kind: newPattern, Window: 2 * time.Minute}}
	st := new(State)
	due := time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	if !s.NeedsSeed(st) {
		t.Fatal("a new search needs a seed")
	}
	old, young := "old", "young"
	s.Seed(st, due, &Found{Groups: []Group{{Values: []*string{&old}}}})
	from, to := s.window(due, time.Time{})
	changes := s.Step(st, due, from, to, &Found{Groups: []Group{{Values: []*string{&old}}, {Values: []*string{&young}}}})
	if len(changes) != 1 || *changes[0].Group.Values[0] != young || s.NeedsSeed(st) {
		t.Errorf("got %+v", changes)
	}
}

// TestNoRecordIsMissedAfterAnOutage has a window that is shorter than the outage: count>0 looks back to what was missed, and no other condition does.
func TestNoRecordIsMissedAfterAnOutage(t *testing.T) {
	due := time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		condition Condition
		before    time.Time
		want      time.Duration // the window's length
	}{
		"never evaluated":    {Condition{kind: figures, Window: time.Minute, grows: true}, time.Time{}, time.Minute},
		"on time":            {Condition{kind: figures, Window: time.Minute, grows: true}, due.Add(-time.Minute), time.Minute},
		"ten minutes missed": {Condition{kind: figures, Window: time.Minute, grows: true}, due.Add(-10 * time.Minute), 10 * time.Minute},
		"a week missed":      {Condition{kind: figures, Window: time.Minute, grows: true}, due.Add(-7 * 24 * time.Hour), 24 * time.Hour},
		"an average":         {Condition{kind: figures, Window: time.Minute}, due.Add(-10 * time.Minute), time.Minute},
		"a new pattern":      {Condition{kind: newPattern, Window: time.Minute}, due.Add(-10 * time.Minute), 10 * time.Minute},
	} {
		s := &Search{Every: time.Minute, Delay: 10 * time.Second, Condition: &c.condition}
		if from, to := s.window(due, c.before); to.Sub(from) != c.want || !to.Equal(due.Add(-10*time.Second)) {
			t.Errorf("%s: got %v to %v, want %v", name, from, to, c.want)
		}
	}
}

func TestSearchesSpreadOverTheirInterval(t *testing.T) {
	now := time.Date(2026, 3, 4, 12, 0, 30, 0, time.UTC)
	seconds := make(map[int]int)
	for i := range 200 {
		s := &Search{Name: fmt.Sprintf("search %d", i), Every: time.Minute}
		due := s.Due(now)
		if due.After(now) || now.Sub(due) >= time.Minute {
			t.Errorf("%s is due %v at %v", s.Name, due, now)
		}
		if next := s.Due(due.Add(time.Minute - 1)); !next.Equal(due) {
			t.Errorf("%s is due %v, and %v before the next time", s.Name, due, next)
		}
		seconds[due.Second()]++
	}
	for second, n := range seconds {
		if n > 15 {
			t.Errorf("%d of 200 are due in second %d", n, second)
		}
	}
}
