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

	// KeyAge is how old an Idempotency-Key may be. So long a request may be sent again.
	KeyAge = 24 * time.Hour
	// ClockError is how far the clocks of two machines may differ.
	ClockError = time.Minute

	// LeastNotice is the shortest notice of a change. Whoever reads the file less than that before the change may have made ids already
	// that it is about, and sent their records to another cell.
	LeastNotice = KeyAhead + ClockError

	// DefaultNotice also has the time that a file needs to reach all services, such as Kubernetes' two minutes for a Secret.
	DefaultNotice = 10 * time.Minute
	// LeastKeep is the shortest time for which ids are needed. What a cell has stored of a younger id, a retry under its key must still find:
	// another cell would store it again.
	LeastKeep = KeyAge + ClockError

	// mostRefusals and mostNames bound what a refusal says: the file has room for thousands of both, and a log line has not.
	mostRefusals, mostNames = 10, 8
)

// Rules are what a change of a map must keep to.
type Rules struct {
	// Notice is how long before its time a change must be known, at least LeastNotice.
	Notice time.Duration
	// Keep is how long after their time ids may be asked for, sent again or waited for: in tables, queues, dead letters and the keys of
	// clients; at least LeastKeep. 0 is for ever. What the map said of older ids is no longer needed.
	Keep time.Duration
}

// Difference is a stretch of time whose ids two maps spread over different cells.
type Difference struct {
	From, To      time.Time // To is exclusive. The zero time is the beginning, or the end.
	Before, After string    // the names of the cells, with spaces between them; see Few
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
// Each error is a sentence for people, and they are ten at most and one that counts the others. None says whether a cell that goes is empty, and its queues are: only they know.
func (m *Map) Follows(before *Map, now time.Time, rules Rules) (refusals []error) {
	more := 0
	refuse := func(format string, args ...any) {
		if len(refusals) == mostRefusals {
			more++
			return
		}
		refusals = append(refusals, fmt.Errorf(format, args...))
	}
	if rules.Notice < LeastNotice {
		refuse("the notice is %v, and can't be shorter than %v: keys may be %v ahead of the clock, and clocks differ by %v", rules.Notice, LeastNotice, KeyAhead, ClockError)
		return refusals
	}
	if rules.Keep != 0 && rules.Keep < LeastKeep {
		refuse("ids are kept for %s, and can't be kept for less than %s: a request may be sent again until its key is %v old, and clocks differ by %v",
			inWords(rules.Keep), inWords(LeastKeep), KeyAge, ClockError)
		return refusals
	}
	open := now.Add(rules.Notice) // nobody has made ids of this time and later, and all will know m before
	told := make(map[string]bool)
	for _, d := range before.Differences(m) {
		if rules.Keep > 0 && !d.To.IsZero() && !d.To.After(now.Add(-rules.Keep)) || !d.From.Before(open) {
			continue
		}
		gone := false
		for name := range strings.FieldsSeq(d.Before) {
			if m.find(name) >= 0 {
				continue
			}
			if gone = true; !told[name] {
				told[name] = true
				refuse("cell %s is still needed, and has no line any more: %s", name, before.need(name, now, rules))
			}
		}
		switch {
		case gone:
		case d.From.After(now):
			refuse("too short a notice: ids %s go from %s to %s, and %s is %v from now; the earliest that is safe is %s", d.Stretch(), Few(d.Before), Few(d.After),
				stamp(d.From), d.From.Sub(now).Round(time.Second), stamp(ceilSecond(open)))
		default:
			refuse("ids %s are in %s, and would be looked for in %s: what was said of them must stay; a change is safe for ids from %s on", d.Stretch(), Few(d.Before), Few(d.After),
				stamp(ceilSecond(open)))
		}
	}
	if more > 0 {
		refusals = append(refusals, fmt.Errorf("and %d more", more))
	}
	return refusals
}

// Few returns names that have spaces between them, the first eight of them if they are more.
func Few(names string) string {
	all := strings.Fields(names)
	if len(all) <= mostNames {
		return names
	}
	return fmt.Sprintf("%s and %d more", strings.Join(all[:mostNames], " "), len(all)-mostNames)
}

// inWords returns a duration without units that count nothing.
func inWords(d time.Duration) string {
	text := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(text, zero) {
			text = text[:len(text)-2]
		}
	}
	return text
}

// need says what a cell is needed for by m, and until when.
func (m *Map) need(name string, now time.Time, rules Rules) string {
	for i := len(m.periods) - 1; i >= 0; i-- {
		if !m.takes(i, name) {
			continue
		}
		first := i
		for first > 0 && m.takes(first-1, name) {
			first--
		}
		begin := m.periods[first].Since
		if i == len(m.periods)-1 {
			if begin.After(now) {
				return "it takes ids from " + stamp(begin) + " on; first let a later since leave it out"
			}
			return "it takes ids; first let a later since leave it out"
		}
		end := m.periods[i+1].Since
		switch {
		case begin.After(now):
			return "it takes ids from " + stamp(begin) + " to " + stamp(end)
		case end.After(now):
			return "it takes ids until " + stamp(end)
		case rules.Keep == 0:
			return fmt.Sprintf("it has ids of before %s, and no line keep says how long they are needed", stamp(end))
		}
		return fmt.Sprintf("it has ids of before %s, which are needed until %s", stamp(end), stamp(ceilSecond(end.Add(rules.Keep))))
	}
	return "" // a cell without ids is in no difference
}

// takes reports whether a cell takes ids of the i-th period.
func (m *Map) takes(i int, name string) bool {
	return slices.Contains(m.periods[i].Cells, m.find(name))
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

// Moved returns the names of the cells that both maps have and whose URLs are seen to lead to different places. Their rows must have moved, too.
func (m *Map) Moved(next *Map) (names []string) {
	for _, c := range m.cells {
		if i := next.find(c.Name); i >= 0 && c.URL != "" && next.cells[i].URL != "" && !c.place.isSame(next.cells[i].place) {
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
