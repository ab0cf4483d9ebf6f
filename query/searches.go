package query

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/internal/retry"
	"millrace/internal/service"
	"millrace/query/searches"
	"millrace/query/tail"
)

// searchTerms reads what a file of searches says in this service's terms.
type searchTerms struct{}

// SearchTerms returns the terms in which searches.Parse reads conditions.
func SearchTerms() searches.Terms { return searchTerms{} }

// Figures implements searches.Terms.
func (searchTerms) Figures(having string) (figures []string, hold func(map[string]json.RawMessage) bool, err error) {
	conditions, err := parseHaving(having)
	if err != nil {
		return nil, nil, err
	}
	asked := make(map[string]bool)
	for _, h := range conditions {
		if !asked[h.calc.text] {
			asked[h.calc.text] = true
			figures = append(figures, h.calc.text)
		}
	}
	hold = func(values map[string]json.RawMessage) bool {
		for _, h := range conditions {
			if !h.holds(values[h.calc.text]) {
				return false
			}
		}
		return true
	}
	return figures, hold, nil
}

// Check implements searches.Terms.
func (searchTerms) Check(route string, parameters url.Values) error {
	var err error
	if route == "/logs/patterns" {
		_, err = parsePatterns(parameters.Encode(), time.Now())
	} else {
		_, err = parseStats(parameters.Encode(), time.Now())
	}
	return err
}

// Answer implements searches.Answers. Its errors are for people.
func (s *server) Answer(ctx context.Context, route string, parameters url.Values) ([]byte, error) {
	if route == "/logs/stats" {
		if table := s.sharing.table(parameters); table != nil {
			return json.Marshal(table)
		}
	}
	answer, err := s.answerSearch(ctx, route, parameters.Encode())
	if err != nil {
		f := s.failureOf(err)
		if f.status == http.StatusInternalServerError {
			s.log.Error("a search failed", "route", route, "error", err)
		}
		return nil, errors.New(f.message)
	}
	return answer, nil
}

// Now implements searches.TimelyAnswers.
func (s *server) Now(search *searches.Search) time.Time { return s.sharing.Now(search) }

// answerSearch returns the answer to a search that watches. It takes no place among the requests: few are under way at once.
func (s *server) answerSearch(ctx context.Context, route, rawQuery string) ([]byte, error) {
	switch now := time.Now(); route {
	case "/logs/stats":
		st, err := parseStats(rawQuery, now)
		if err != nil {
			return nil, err
		}
		table, err := s.store.stats(ctx, st)
		if err != nil {
			return nil, err
		}
		return json.Marshal(table)
	case "/logs/patterns":
		q, err := parsePatterns(rawQuery, now)
		if err != nil {
			return nil, err
		}
		return s.store.patternsAnswer(ctx, q)
	case "/logs":
		q, err := parseSearch(rawQuery, pageParameters, now)
		if err != nil {
			return nil, err
		}
		return s.store.logsAnswer(ctx, q)
	}
	return nil, errors.New("no such route: " + route)
}

// getSearches answers GET /searches.
func (s *server) getSearches(w http.ResponseWriter, r *http.Request) error {
	if _, err := parseParameters(r.URL.RawQuery, nil); err != nil {
		return err
	}
	leave, err := s.takePlace()
	if err != nil {
		return err
	}
	defer leave()
	body, err := json.Marshal(s.searches.Overview(r.Context()))
	if err != nil {
		return err
	}
	return s.writeJSON(w, r, append(body, '\n'))
}

// matchCounter counts the records that searches find, as they are stored.
type matchCounter struct {
	watch       *searches.Watch
	tail        *tail.Tail
	ready       *service.Ready
	distributed *atomic.Bool
	matches     *prometheus.CounterVec
	log         *slog.Logger

	counting map[string]countedSearch // by the searches' names
}

// countedSearch is a search whose records are counted.
type countedSearch struct {
	query    string
	follower *tail.Follower
}

// lookForDatabase is how often a matchCounter looks whether the database is there.
const lookForDatabase = 250 * time.Millisecond

// run counts until ctx is done.
func (c *matchCounter) run(ctx context.Context) {
	c.counting = make(map[string]countedSearch)
	defer c.count(nil)
	if file, _ := c.watch.File(); file != nil {
		for _, s := range file.Searches {
			if s.Count {
				c.matches.WithLabelValues(s.Name) // a series from the start, so that a rate is right from the first record
			}
		}
	}
	for c.ready.Holds(databaseCondition) == 0 { // then it is known whether the database is distributed, too
		if retry.Sleep(ctx, lookForDatabase) != nil {
			return
		}
	}
	if c.distributed.Load() {
		c.log.Warn("the records that searches find are not counted: the database is distributed by Citus, where new rows can't be followed")
		return
	}
	for {
		file, changed := c.watch.File()
		c.count(file)
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// count counts the records of a file's searches from now on, and those of no other. nil is a file without searches.
func (c *matchCounter) count(file *searches.File) {
	wanted := make(map[string]bool)
	if file != nil {
		for _, s := range file.Searches {
			if !s.Count {
				continue
			}
			wanted[s.Name] = true
			text, known := s.Query.Text(), c.counting[s.Name]
			if known.follower != nil && known.query == text {
				continue
			}
			if known.follower != nil {
				c.tail.Leave(known.follower)
			}
			c.counting[s.Name] = countedSearch{text, c.tail.Count(s.Query, c.matches.WithLabelValues(s.Name))}
		}
	}
	for name, known := range c.counting {
		if !wanted[name] {
			c.tail.Leave(known.follower)
			delete(c.counting, name)
			c.matches.DeleteLabelValues(name)
		}
	}
}
