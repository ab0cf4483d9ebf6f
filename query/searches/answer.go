package searches

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// Found is what a search found in a window.
type Found struct {
	Groups []Group
	More   bool // there are more groups than are told apart
	// All has the figures of all records, whether the condition holds or not; nil if the search has groups or another kind of condition.
	All *Group
}

// Read reads the answer to what Parameters returned.
func (s *Search) Read(answer []byte) (*Found, error) {
	if s.Condition.kind == newPattern {
		return s.readPatterns(answer)
	}
	return s.readStats(answer)
}

// readPatterns reads an answer to GET /logs/patterns.
func (s *Search) readPatterns(answer []byte) (*Found, error) {
	var a struct {
		Patterns []struct {
			Pattern string `json:"pattern"`
			Q       string `json:"q"`
			Count   int64  `json:"count"`
		} `json:"patterns"`
		Other int64 `json:"other"`
	}
	if err := json.Unmarshal(answer, &a); err != nil {
		return nil, fmt.Errorf("the answer is no table of patterns: %w", err)
	}
	found := &Found{More: a.Other > 0}
	for _, p := range a.Patterns {
		found.Groups = append(found.Groups, Group{Values: []*string{&p.Q}, Text: p.Pattern, Count: p.Count})
	}
	return found, nil
}

// readStats reads an answer to GET /logs/stats. Its columns are the fields of By, then the figures.
func (s *Search) readStats(answer []byte) (*Found, error) {
	var a struct {
		Columns []string            `json:"columns"`
		Rows    [][]json.RawMessage `json:"rows"`
		Others  [][]json.RawMessage `json:"others"`
	}
	if err := json.Unmarshal(answer, &a); err != nil {
		return nil, fmt.Errorf("the answer is no table: %w", err)
	}
	found := &Found{More: len(a.Others) > 0}
	if found.More && s.Condition.kind == absent {
		return nil, fmt.Errorf("there are more than %d groups, so nobody can tell which are absent: takes fewer fields, or a narrower q", maxGroups)
	}
	count := slices.Index(a.Columns, "count")
	for _, row := range a.Rows {
		if len(row) != len(a.Columns) || len(row) < len(s.By) || count < 0 {
			return nil, errors.New("the answer is no table: a row has more or fewer cells than there are columns")
		}
		g := Group{Fields: s.By, Values: make([]*string, len(s.By)), Value: make(map[string]json.RawMessage)}
		for i, cell := range row {
			var err error
			switch {
			case i < len(s.By):
				err = json.Unmarshal(cell, &g.Values[i])
			case i == count:
				err = json.Unmarshal(cell, &g.Count)
			}
			if err != nil {
				return nil, fmt.Errorf("the answer is no table: %w", err)
			}
			if i >= len(s.By) && slices.Contains(s.Condition.figures, a.Columns[i]) {
				g.Value[a.Columns[i]] = cell
			}
		}
		if s.Condition.kind == figures && len(s.By) == 0 {
			found.All = &g
			if !s.Condition.hold(g.Value) {
				continue
			}
		}
		found.Groups = append(found.Groups, g)
	}
	return found, nil
}
