package searches

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Rehearse evaluates a search for each time from first to last at which it would have been due, and calls tell with what would have changed. It begins as
// if the search were new. It changes nothing, and tells no receiver.
func (s *Search) Rehearse(ctx context.Context, answers Answers, first, last time.Time, tell func(due time.Time, changes []Change)) (evaluations int, err error) {
	var st State
	var before time.Time
	ask := func(from, to time.Time) (*Found, error) {
		route, p := s.Parameters(from, to)
		answer, err := answers.Answer(ctx, route, p)
		if err != nil {
			return nil, fmt.Errorf("search %s, the window from %s to %s: %w", s.Name, textOf(from), textOf(to), err)
		}
		return s.Read(answer)
	}
	due := s.Due(first)
	if due.Before(first) {
		due = due.Add(s.Every)
	}
	for ; !due.After(last); due = due.Add(s.Every) {
		if s.NeedsSeed(&st) {
			found, err := ask(s.SeedWindow(due))
			if err != nil {
				return evaluations, err
			}
			s.Seed(&st, due, found)
		}
		from, to := s.window(due, before)
		found, err := ask(from, to)
		if err != nil {
			return evaluations, err
		}
		before = due
		evaluations++
		if changes := s.Step(&st, due, from, to, found); len(changes) > 0 {
			tell(due, changes)
		}
	}
	return evaluations, nil
}

// HoldsNow returns the groups for which the condition holds in the window that was due last, whatever for says.
func (s *Search) HoldsNow(ctx context.Context, answers Answers, now time.Time) (groups []Group, err error) {
	at := s.Due(now)
	once := *s
	once.For = 0
	_, err = once.Rehearse(ctx, answers, at, at, func(_ time.Time, changes []Change) {
		for _, c := range changes {
			groups = append(groups, c.Group)
		}
	})
	return groups, err
}

// Describe returns a group as people read it: its fields with their values, or its pattern, and its figures.
func (g *Group) Describe() (group, figures string) {
	for i, name := range g.Fields {
		if i > 0 {
			group += " "
		}
		if g.Values[i] == nil {
			group += name + " missing"
		} else {
			group += name + "=" + *g.Values[i]
		}
	}
	if g.Text != "" {
		group = g.Text
	}
	figures = fmt.Sprintf("count=%d", g.Count)
	for _, name := range slices.Sorted(maps.Keys(g.Value)) {
		if name != "count" {
			figures += " " + name + "=" + string(g.Value[name])
		}
	}
	return group, figures
}
