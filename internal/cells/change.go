package cells

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	// KeyAhead is how far the time of an Idempotency-Key, and so of ids, may be ahead of the clock of the API that takes it.
	KeyAhead = 5 * time.Minute

	// ClockError is how far the clocks of two machines may differ.
	ClockError = time.Minute

	// LeastNotice is the shortest notice of a change. Whoever reads the file less than that before the change may have made ids already
	// that it is about, and sent their records to another cell.
	LeastNotice = KeyAhead + ClockError

	// DefaultNotice also has the time that a file needs to reach all services, such as Kubernetes' two minutes for a Secret.
	DefaultNotice = 10 * time.Minute
)

// Rules are what a change of a map must keep to.
type Rules struct {
	// Notice is how long before its time a change must be known, at least LeastNotice.
	Notice time.Duration
	// Keep is how long after their time ids may be asked for, sent again or waited for: in tables, queues, dead letters and the keys of
	// clients. 0 is for ever. What the map said of older ids is no longer needed.
	Keep time.Duration
}

// Difference is a stretch of time whose ids two maps spread over different cells.
type Difference struct {
	From, To      time.Time // To is exclusive. The zero time is the beginning, or the end.
	Before, After string    // the names of the cells, with spaces between them
}

// Differences returns the stretches of time in which next spreads ids otherwise than m does, the earliest first.
func (m *Map) Differences(next *Map) (all []Difference) {
	var bounds []int64 // in Unix milliseconds
	for _, p := range slices.Concat(m.periods, next.periods) {
		bounds = append(bounds, p.millis)
	}
	slices.Sort(bounds)
	bounds = slices.Compact(bounds)
	for i, from := range bounds {
		before, after := m.Names(*m.at(from)), next.Names(*next.at(from))
		if before == after {
			continue
		}
		d := Difference{Before: before, After: after}
		if from > 0 {
			d.From = time.UnixMilli(from).UTC()
		}
		if i+1 < len(bounds) {
			d.To = time.UnixMilli(bounds[i+1]).UTC()
		}
		if last := len(all) - 1; last >= 0 && all[last].To.Equal(d.From) && all[last].Before == before && all[last].After == after {
			all[last].To = d.To
			continue
		}
		all = append(all, d)
	}
	return all
}

// Follows returns why m may not take the place of before at the time now; nothing if it may. It may if both maps agree on all ids that
// somebody can have made until each service knows m, and that are younger than rules.Keep. Then a request that is sent again leads to the
// same cell by either map, and so does a look for an id.
//
// Each error is a sentence for people. None says whether a cell that goes is empty, and its queues are: only they know.
func (m *Map) Follows(before *Map, now time.Time, rules Rules) (refusals []error) {
	refuse := func(format string, args ...any) { refusals = append(refusals, fmt.Errorf(format, args...)) }
	if rules.Notice < LeastNotice {
		refuse("the notice is %v, and can't be shorter than %v: keys may be %v ahead of the clock, and clocks differ by %v", rules.Notice, LeastNotice, KeyAhead, ClockError)
		return refusals
	}
	open := now.Add(rules.Notice) // nobody has made ids of this time and later, and all will know m before
	told := make(map[string]bool)
	for _, d := range before.Differences(m) {
		if rules.Keep > 0 && !d.To.IsZero() && !d.To.After(now.Add(-rules.Keep)) || !d.From.Before(open) {
			continue
		}
		gone := ""
		for name := range strings.FieldsSeq(d.Before) {
			if m.find(name) < 0 && gone == "" {
				gone = name
			}
		}
		switch {
		case gone != "":
			if !told[gone] {
				told[gone] = true
				refuse("cell %s is still needed, and has no line any more: %s", gone, before.need(gone, now, rules))
			}
		case d.From.After(now):
			refuse("too short a notice: ids %s go from %s to %s, and %s is %v from now; the earliest that is safe is %s", d.Stretch(), d.Before, d.After,
				stamp(d.From), d.From.Sub(now).Round(time.Second), stamp(ceilSecond(open)))
		default:
			refuse("ids %s are in %s, and would be looked for in %s: what was said of them must stay; a change is safe for ids from %s on", d.Stretch(), d.Before, d.After,
				stamp(ceilSecond(open)))
		}
	}
	return refusals
}

// need says what a cell is needed for by m, and until when.
func (m *Map) need(name string, now time.Time, rules Rules) string {
	for i := len(m.periods) - 1; i >= 0; i-- {
		if !slices.Contains(strings.Fields(m.Names(m.periods[i])), name) {
			continue
		}
		if i == len(m.periods)-1 {
			return "it takes ids; first let a later since leave it out"
		}
		end := m.periods[i+1].Since
		switch {
		case end.After(now):
			return "it takes ids until " + stamp(end)
		case rules.Keep == 0:
			return fmt.Sprintf("it has ids of before %s; say with --keep how long they are needed", stamp(end))
		}
		return fmt.Sprintf("it has ids of before %s, which are needed until %s", stamp(end), stamp(ceilSecond(end.Add(rules.Keep))))
	}
	return "" // a cell without ids is in no difference
}

// Stretch returns the time of the ids in words.
func (d Difference) Stretch() string {
	switch {
	case d.From.IsZero() && d.To.IsZero():
		return "of all times"
	case d.From.IsZero():
		return "of before " + stamp(d.To)
	case d.To.IsZero():
		return "from " + stamp(d.From) + " on"
	}
	return "from " + stamp(d.From) + " to " + stamp(d.To)
}

// stamp returns a time as the file has it.
func stamp(t time.Time) string {
	if t.IsZero() {
		return beginning
	}
	return t.UTC().Format("2006-01-02T15:04:05.999Z07:00")
}

// Stamp returns when the period begins, as the file has it.
func (p Period) Stamp() string { return stamp(p.Since) }

// ceilSecond returns t, or the next whole second after it.
func ceilSecond(t time.Time) time.Time {
	if whole := t.Truncate(time.Second); whole.Before(t) {
		return whole.Add(time.Second)
	}
	return t
}

// Moved returns the names of the cells that both maps have and whose URLs lead to different places. Their rows must have moved, too.
func (m *Map) Moved(next *Map) (names []string) {
	for _, c := range m.cells {
		if i := next.find(c.Name); i >= 0 && c.URL != "" && next.cells[i].URL != "" && c.URL.String() != next.cells[i].URL.String() {
			names = append(names, c.Name)
		}
	}
	return names
}

// Added returns the names of the cells of next that m lacks.
func (m *Map) Added(next *Map) (names []string) {
	for _, c := range next.cells {
		if m.find(c.Name) < 0 {
			names = append(names, c.Name)
		}
	}
	return names
}
