package searches

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// Overview is the answer to GET /searches.
type Overview struct {
	File       *FileOverview      `json:"file"` // null: no file is set
	StateError string             `json:"state_error,omitempty"`
	Searches   []*SearchOverview  `json:"searches"`
	Receivers  []ReceiverOverview `json:"receivers"`
}

// FileOverview tells of the file.
type FileOverview struct {
	Taken    string    `json:"taken,omitempty"` // when the searches in force were read
	Error    string    `json:"error,omitempty"` // why the file as it is now is not taken
	Mistakes []wrongAt `json:"mistakes,omitempty"`
}

type wrongAt struct {
	Line   int    `json:"line"`
	Reason string `json:"reason"`
}

// SearchOverview tells of a search.
type SearchOverview struct {
	Name       string            `json:"name"`
	Q          string            `json:"q"`
	Condition  string            `json:"condition,omitempty"`
	By         []string          `json:"by,omitempty"`
	Every      string            `json:"every,omitempty"`
	For        string            `json:"for,omitempty"`
	KeepFiring string            `json:"keep_firing,omitempty"`
	Delay      string            `json:"delay,omitempty"`
	Summary    string            `json:"summary,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	Tell       []string          `json:"tell,omitempty"`
	State      string            `json:"state"` // counted, new, ok, no data, pending, firing or failing
	Evaluated  string            `json:"evaluated,omitempty"`
	Window     *windowOverview   `json:"window,omitempty"` // of the last evaluation
	All        *allOverview      `json:"all,omitempty"`    // what the last evaluation found, if the search has no groups
	TookMs     int               `json:"took_ms,omitempty"`
	Failure    string            `json:"failure,omitempty"`
	More       bool              `json:"more_groups,omitempty"`
	Alerts     []alertOverview   `json:"alerts,omitempty"`
	History    []changeOverview  `json:"history,omitempty"`

	search *Search
}

// allOverview tells of all records of a window.
type allOverview struct {
	Count int64                      `json:"count"`
	Value map[string]json.RawMessage `json:"value,omitempty"`
}

// windowOverview is a window that was looked at: to is not in it.
type windowOverview struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// windowAt returns the window of the evaluation that was due at a time.
func (s *Search) windowAt(due time.Time) *windowOverview {
	to := due.Add(-s.Delay)
	return &windowOverview{textOf(to.Add(-s.Condition.Window)), textOf(to)}
}

// alertOverview tells of an alert that waits or fires.
type alertOverview struct {
	State   string                     `json:"state"`
	Group   map[string]*string         `json:"group"`
	Pattern string                     `json:"pattern,omitempty"`
	Q       string                     `json:"q"` // finds its records
	Since   string                     `json:"since"`
	Fired   string                     `json:"fired,omitempty"`
	Count   int64                      `json:"count"`
	Value   map[string]json.RawMessage `json:"value,omitempty"`
}

// changeOverview tells what changed.
type changeOverview struct {
	At      string                     `json:"at"`
	What    string                     `json:"what"`
	Group   map[string]*string         `json:"group"`
	Pattern string                     `json:"pattern,omitempty"`
	Q       string                     `json:"q"` // finds its records
	Window  *windowOverview            `json:"window"`
	Since   string                     `json:"since"`
	Count   int64                      `json:"count"`
	Value   map[string]json.RawMessage `json:"value,omitempty"`
}

// ReceiverOverview tells of a receiver.
type ReceiverOverview struct {
	Name    string   `json:"name"`
	Kind    string   `json:"kind"`
	To      []string `json:"to"` // the hosts
	Waiting int      `json:"waiting"`
	GivenUp int      `json:"given_up"`
	Failure string   `json:"failure,omitempty"` // of the message that failed last
}

// historyShown is how many changes of a search are shown, the latest first.
const historyShown = 20

// Overview returns what there is to tell. If the database can't be asked, it tells the file alone, and why. A nil Runner has no file.
func (r *Runner) Overview(ctx context.Context) *Overview {
	o := &Overview{Searches: []*SearchOverview{}, Receivers: []ReceiverOverview{}}
	if r == nil {
		return o
	}
	o.File = new(FileOverview)
	taken, wrong := r.watch.Status()
	if !taken.IsZero() {
		o.File.Taken = textOf(taken)
	}
	if wrong != nil {
		o.File.Error = wrong.Error()
		var mistakes Mistakes
		if errors.As(wrong, &mistakes) {
			for _, m := range mistakes {
				o.File.Mistakes = append(o.File.Mistakes, wrongAt(m))
			}
		}
	}
	f, _ := r.watch.File()
	if f == nil {
		return o
	}
	byName := make(map[string]*SearchOverview)
	for _, s := range f.Searches {
		told := &SearchOverview{Name: s.Name, Q: s.Q, Summary: s.Summary, State: "counted", search: s}
		if c := s.Condition; c != nil {
			told.Condition, told.By, told.Labels, told.Tell, told.State = c.Text, s.By, s.Labels, s.Tell, "new"
			told.Every, told.For, told.KeepFiring, told.Delay = short(s.Every), short(s.For), short(s.Keep), short(s.Delay)
			byName[s.Name] = told
		}
		o.Searches = append(o.Searches, told)
	}
	for _, receiver := range f.Receivers {
		told := ReceiverOverview{Name: receiver.Name, Kind: "webhook"}
		if receiver.Alertmanagers != nil {
			told.Kind = "alertmanager"
		}
		for _, u := range receiver.targets() {
			told.To = append(told.To, u.String())
		}
		o.Receivers = append(o.Receivers, told)
	}
	if err := r.addState(ctx, o, byName); err != nil {
		o.StateError = "the state can't be read from the database"
		r.log.Debug("the searches' state can't be read", "error", err)
	}
	return o
}

// overviewTime bounds how long the state is waited for.
const overviewTime = 5 * time.Second

// addState adds what the database knows.
func (r *Runner) addState(ctx context.Context, o *Overview, byName map[string]*SearchOverview) error {
	ctx, cancel := context.WithTimeout(ctx, overviewTime)
	defer cancel()
	return pgx.BeginTxFunc(ctx, r.db, pgx.TxOptions{BeginQuery: "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"}, func(tx pgx.Tx) error {
		if err := addSearches(ctx, tx, byName); err != nil {
			return err
		}
		if err := addHistory(ctx, tx, byName); err != nil {
			return err
		}
		return addMessages(ctx, tx, o)
	})
}

// addSearches adds what is known of the searches after their last evaluations.
func addSearches(ctx context.Context, tx pgx.Tx, byName map[string]*SearchOverview) error {
	rows, err := tx.Query(ctx, "SELECT name, evaluated_at, took_ms, coalesce(failure, ''), more, state::text FROM millrace_searches WHERE name = ANY ($1)",
		slices.Collect(maps.Keys(byName)))
	if err != nil {
		return err
	}
	var (
		name, failure string
		evaluated     time.Time
		took          int
		more          bool
		text          string
	)
	_, err = pgx.ForEachRow(rows, []any{&name, &evaluated, &took, &failure, &more, &text}, func() error {
		told := byName[name]
		told.Evaluated, told.TookMs, told.Failure, told.More, told.State = textOf(evaluated), took, failure, more, "ok"
		told.Window = told.search.windowAt(evaluated)
		var st State
		if err := json.Unmarshal([]byte(text), &st); err != nil {
			return err
		}
		if st.All != nil {
			told.All = &allOverview{st.All.Count, st.All.Value}
			if st.All.Count == 0 {
				told.State = "no data"
			}
		}
		for _, key := range slices.Sorted(maps.Keys(st.Alerts)) {
			a := st.Alerts[key]
			alert := alertOverview{State: "pending", Group: a.Group.Named(), Pattern: a.Group.Text, Q: told.search.groupQuery(&a.Group), Since: textOf(a.Since), Count: a.Group.Count, Value: a.Group.Value}
			if a.Fired != nil {
				alert.State, alert.Fired = "firing", textOf(*a.Fired)
				told.State = "firing"
			} else if told.State != "firing" {
				told.State = "pending"
			}
			told.Alerts = append(told.Alerts, alert)
		}
		if failure != "" && told.State != "firing" {
			told.State = "failing"
		}
		return nil
	})
	return err
}

// Named returns the values of a group by its fields.
func (g *Group) Named() map[string]*string {
	named := make(map[string]*string, len(g.Fields))
	for i, name := range g.Fields {
		named[name] = g.Values[i]
	}
	return named
}

// addHistory adds what changed.
func addHistory(ctx context.Context, tx pgx.Tx, byName map[string]*SearchOverview) error {
	rows, err := tx.Query(ctx, `SELECT name, at, what, since, "group"::text FROM unnest($1::text[]) AS name CROSS JOIN LATERAL (
		SELECT * FROM millrace_search_changes WHERE search = name ORDER BY id DESC LIMIT $2) AS latest ORDER BY name, id DESC`,
		slices.Collect(maps.Keys(byName)), historyShown)
	if err != nil {
		return err
	}
	var (
		name, what, text string
		at, since        time.Time
	)
	_, err = pgx.ForEachRow(rows, []any{&name, &at, &what, &since, &text}, func() error {
		var g Group
		if err := json.Unmarshal([]byte(text), &g); err != nil {
			return err
		}
		told := byName[name]
		told.History = append(told.History,
			changeOverview{At: textOf(at), What: what, Group: g.Named(), Pattern: g.Text, Q: told.search.groupQuery(&g), Window: told.search.windowAt(at), Since: textOf(since), Count: g.Count, Value: g.Value})
		return nil
	})
	return err
}

// addMessages adds how the messages to the receivers fare.
func addMessages(ctx context.Context, tx pgx.Tx, o *Overview) error {
	rows, err := tx.Query(ctx, `SELECT receiver, count(*) FILTER (WHERE state = 'waiting')::int, count(*) FILTER (WHERE state = 'given up')::int,
		(array_agg(failure ORDER BY state_at DESC) FILTER (WHERE failure IS NOT NULL))[1] FROM millrace_search_messages GROUP BY receiver`)
	if err != nil {
		return err
	}
	var (
		name             string
		waiting, givenUp int
		failure          *string
	)
	_, err = pgx.ForEachRow(rows, []any{&name, &waiting, &givenUp, &failure}, func() error {
		for i := range o.Receivers {
			if r := &o.Receivers[i]; r.Name == name {
				r.Waiting, r.GivenUp, r.Failure = waiting, givenUp, *cmp.Or(failure, new(string))
			}
		}
		return nil
	})
	return err
}
