package searches

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"
)

// State is what is known of a search after an evaluation.
type State struct {
	Alerts map[string]*Alert `json:"alerts,omitempty"` // by the groups' keys
	Seen   map[string]*Seen  `json:"seen,omitempty"`   // groups or patterns of conditions that remember, by their keys
	Seeded bool              `json:"seeded,omitempty"` // Seen has what was there before the first evaluation
	Labels map[string]string `json:"labels,omitempty"` // of the search
	All    *Group            `json:"all,omitempty"`    // as Found has it
}

// Alert is a group for which the condition holds, or held lately.
type Alert struct {
	Group Group      `json:"group"`
	Since time.Time  `json:"since"`           // the evaluation at which the condition began to hold
	Held  time.Time  `json:"held"`            // the last evaluation at which it held
	Fired *time.Time `json:"fired,omitempty"` // nil: the alert waits until the condition has held long enough

	Samples []json.RawMessage `json:"samples,omitempty"` // records of when it fired
}

// Seen is a group or a pattern that was there.
type Seen struct {
	Values []*string `json:"values"`
	First  time.Time `json:"first,omitzero"` // the end of the window in which it was seen first; zero: it was there before
	Last   time.Time `json:"last"`           // the end of the window in which it was seen last
}

// Change is an alert that fired or was resolved.
type Change struct {
	What  string // fired or resolved
	Group Group
	Since time.Time // when the condition began to hold
	Fired time.Time
}

// The kinds of changes.
const (
	fired    = "fired"
	resolved = "resolved"
)

// maxSeen is how many groups or patterns are known at most. Those that were seen last stay.
const maxSeen = 5000

// NeedsSeed reports whether what was there before the first evaluation must be found out first: see SeedWindow.
func (s *Search) NeedsSeed(st *State) bool {
	return !st.Seeded && (s.Condition.kind == newPattern || s.Condition.kind == absent && len(s.By) > 0)
}

// SeedWindow returns the window whose groups or patterns are known before the first evaluation.
func (s *Search) SeedWindow(due time.Time) (from, to time.Time) {
	to = due.Add(-s.Delay - s.Condition.Window)
	return to.Add(-s.Remember), to
}

// Seed notes what was found in the seed's window.
func (s *Search) Seed(st *State, due time.Time, found *Found) {
	_, to := s.SeedWindow(due)
	st.Seen = make(map[string]*Seen, len(found.Groups))
	for _, g := range found.Groups {
		st.Seen[g.key()] = &Seen{Values: g.Values, Last: to}
	}
	st.Seeded = true
}

// Step changes the state by the evaluation that is due at a time and found this in the window that ends at to, and returns what changed, in order of
// the groups' keys.
func (s *Search) Step(st *State, due, from, to time.Time, found *Found) []Change {
	held := s.held(st, from, to, found.Groups)
	st.All = found.All
	if st.Alerts == nil {
		st.Alerts = make(map[string]*Alert)
	}
	var changes []Change
	for _, key := range slices.Sorted(maps.Keys(held)) {
		a := st.Alerts[key]
		if a == nil {
			a = &Alert{Since: due}
			st.Alerts[key] = a
		}
		a.Group, a.Held = held[key], due
		if a.Fired == nil && due.Sub(a.Since) >= s.For {
			at := due
			a.Fired = &at
			changes = append(changes, Change{fired, a.Group, a.Since, due})
		}
	}
	for _, key := range slices.Sorted(maps.Keys(st.Alerts)) {
		a := st.Alerts[key]
		if _, holds := held[key]; holds {
			continue
		}
		switch {
		case a.Fired == nil:
			delete(st.Alerts, key)
		case due.Sub(a.Held) >= s.Keep:
			delete(st.Alerts, key)
			changes = append(changes, Change{resolved, a.Group, a.Since, *a.Fired})
		}
	}
	return changes
}

// ResolveAll resolves all alerts, and forgets all else: the search is another one now, or is gone.
func (st *State) ResolveAll() (changes []Change) {
	for _, key := range slices.Sorted(maps.Keys(st.Alerts)) {
		if a := st.Alerts[key]; a.Fired != nil {
			changes = append(changes, Change{resolved, a.Group, a.Since, *a.Fired})
		}
	}
	*st = State{}
	return changes
}

// held returns the groups for which the condition holds, by their keys, and notes what was seen.
func (s *Search) held(st *State, from, to time.Time, groups []Group) map[string]Group {
	held := make(map[string]Group)
	switch {
	case s.Condition.kind == figures:
		for _, g := range groups {
			held[g.key()] = g
		}
		return held
	case s.Condition.kind == absent && len(s.By) == 0:
		if len(groups) == 0 {
			held["[]"] = Group{Values: []*string{}}
		}
		return held
	}
	if st.Seen == nil {
		st.Seen = make(map[string]*Seen)
	}
	present := make(map[string]bool, len(groups))
	for _, g := range groups {
		key := g.key()
		present[key] = true
		known := st.Seen[key]
		if known == nil {
			known = &Seen{Values: g.Values, First: to}
			st.Seen[key] = known
		}
		known.Last = to
		if s.Condition.kind == newPattern && known.First.After(from) {
			held[key] = g
		}
	}
	for key, known := range st.Seen {
		switch {
		case known.Last.Before(to.Add(-s.Remember)):
			delete(st.Seen, key)
		case s.Condition.kind == absent && !present[key]:
			held[key] = Group{Fields: s.By, Values: known.Values}
		}
	}
	if len(st.Seen) > maxSeen {
		keys := slices.SortedFunc(maps.Keys(st.Seen), func(a, b string) int {
			if c := st.Seen[b].Last.Compare(st.Seen[a].Last); c != 0 {
				return c
			}
			return strings.Compare(a, b)
		})
		for _, key := range keys[maxSeen:] {
			delete(st.Seen, key)
		}
	}
	return held
}
