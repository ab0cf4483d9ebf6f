package searches

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"millrace/internal/pg"
)

// Answers answers routes of the query service.
type Answers interface {
	Answer(ctx context.Context, route string, parameters url.Values) ([]byte, error)
}

// TimelyAnswers are answers some of which are of what the service has read already.
type TimelyAnswers interface {
	Answers
	// Now returns the time up to which records have been read for a search. An evaluation that is due later waits: the record that it needs may
	// be read then for many searches at once. It is the time of the clock for a search that is evaluated by itself, and zero while
	// it is not known yet.
	Now(s *Search) time.Time
}

const (
	// lookEvery is how often a Runner looks what is due.
	lookEvery = 250 * time.Millisecond
	// againAfter is how long after it was found taken a search is looked at again: its process may have been killed.
	againAfter = time.Second
	// tidyEvery is how often a Runner deletes what is old, and resolves what is gone.
	tidyEvery = time.Minute
	// seedTime bounds the look at what was there before the first evaluation.
	seedTime = "30s"
	// sampleTime bounds the look for the records that a message shows of one group.
	sampleTime = "2s"
)

// Runner evaluates the searches of a file and sends their messages.
type Runner struct {
	watch   *Watch
	db      *pgxpool.Pool
	answers TimelyAnswers
	log     *slog.Logger
	client  *http.Client
	metrics runnerMetrics

	mu      sync.Mutex
	done    map[string]time.Time // the last due time of each search that is done, by this process or another
	again   map[string]time.Time // before which a search is not looked at again
	working map[string]bool      // searches that an evaluator has
	failing string               // why the database can't be used; empty: it can

	wakeSenders chan struct{}
}

// runnerMetrics are what /metrics shows of a Runner.
type runnerMetrics struct {
	evaluations *prometheus.CounterVec
	seconds     prometheus.Histogram
	lag         prometheus.Histogram
	messages    *prometheus.CounterVec
}

// NewRunner returns a Runner of the file that w has. It uses db, which Connect has made, and closes it when it has run.
func NewRunner(w *Watch, db *pgxpool.Pool, answers TimelyAnswers, log *slog.Logger) *Runner {
	r := &Runner{
		watch: w, db: db, answers: answers, log: log,
		client: newClient(),
		done:   make(map[string]time.Time), again: make(map[string]time.Time), working: make(map[string]bool), wakeSenders: make(chan struct{}, 1),
		metrics: runnerMetrics{
			evaluations: prometheus.NewCounterVec(prometheus.CounterOpts{
				Name: "millrace_search_evaluations_total",
				Help: "Evaluations of searches that watch, by this service, by result.",
			}, []string{"result"}),
			seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
				Name:    "millrace_search_evaluation_seconds",
				Help:    "Time that an evaluation of a search took.",
				Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
			}),
			lag: prometheus.NewHistogram(prometheus.HistogramOpts{
				Name:    "millrace_search_lag_seconds",
				Help:    "Time from when an evaluation was due to its end.",
				Buckets: []float64{.1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300},
			}),
			messages: prometheus.NewCounterVec(prometheus.CounterOpts{
				Name: "millrace_search_messages_total",
				Help: "Messages about alerts, by receiver and result: sent, failed (tried again), given up.",
			}, []string{"receiver", "result"}),
		},
	}
	for _, result := range []string{"ok", "failed"} {
		r.metrics.evaluations.WithLabelValues(result)
	}
	return r
}

// Register adds the Runner's metrics to a service's. For a nil Runner it adds nothing.
func (r *Runner) Register(to prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	m := r.metrics
	return errors.Join(to.Register(m.evaluations), to.Register(m.seconds), to.Register(m.lag), to.Register(m.messages))
}

// Run works until ctx is done, and then finishes what it has begun or gives it up. It closes the connections.
func (r *Runner) Run(ctx context.Context) {
	defer r.db.Close()
	defer r.client.CloseIdleConnections()
	var all sync.WaitGroup
	defer all.Wait()
	due := make(chan dueSearch)
	for range evaluators {
		all.Go(func() {
			for d := range due {
				r.evaluateLogged(ctx, d)
			}
		})
	}
	for range senders {
		all.Go(func() { r.sendAll(ctx) })
	}
	defer close(due)
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	var tidied time.Time
	var last *File
	for {
		f, _ := r.watch.File()
		if f != nil && f != last {
			last = f
			for _, receiver := range f.Receivers { // series from the start, so that a rate is right from the first message
				for _, result := range []string{sentOff, sendFailed, givenUp} {
					r.metrics.messages.WithLabelValues(receiver.Name, result)
				}
			}
		}
		if f != nil {
			now := time.Now()
			for _, d := range r.whatIsDue(f, now) {
				select {
				case due <- d:
				case <-ctx.Done():
					return
				}
			}
			if now.Sub(tidied) >= tidyEvery {
				tidied = now
				r.noteDatabase(r.tidy(ctx, f))
			}
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
	}
}

// dueSearch is a search that is to be evaluated.
type dueSearch struct {
	file   *File
	search *Search
	due    time.Time
}

// whatIsDue returns the searches that are due and that nobody works on, and notes that they are worked on.
func (r *Runner) whatIsDue(f *File, now time.Time) (all []dueSearch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range f.Searches {
		if s.CountsAlone() || r.working[s.Name] || now.Before(r.again[s.Name]) {
			continue
		}
		if due := s.Due(r.answers.Now(s)); due.After(r.done[s.Name]) {
			r.working[s.Name] = true
			all = append(all, dueSearch{f, s, due})
		}
	}
	return all
}

// evaluateLogged evaluates a search, and notes what came of it.
func (r *Runner) evaluateLogged(ctx context.Context, d dueSearch) {
	began := time.Now()
	d.due = d.search.Due(r.answers.Now(d.search)) // it may have waited
	isOurs, failure, err := r.evaluate(ctx, d)
	now := time.Now()
	r.mu.Lock()
	delete(r.working, d.search.Name)
	if err == nil {
		r.done[d.search.Name] = d.due
		delete(r.again, d.search.Name)
	} else {
		r.again[d.search.Name] = now.Add(againAfter)
	}
	r.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	if !errors.Is(err, errTaken) {
		r.noteDatabase(err)
	}
	if err != nil || !isOurs {
		return
	}
	result := "ok"
	if failure != nil {
		result = "failed"
		r.log.Warn("a search could not be evaluated; its alerts stay as they are", "search", d.search.Name, "error", failure)
	}
	r.metrics.evaluations.WithLabelValues(result).Inc()
	r.metrics.seconds.Observe(now.Sub(began).Seconds())
	r.metrics.lag.Observe(now.Sub(d.due).Seconds())
}

// noteDatabase logs that the state can't be kept in the database, or can again, when that changes.
func (r *Runner) noteDatabase(err error) {
	text := ""
	switch {
	case pg.CodeOf(err) == pg.UndefinedTable:
		text = "the database has no tables for searches: run millrace migrate up"
	case pg.CodeOf(err) == pg.ReadOnlyTransaction:
		text = "the database is a replica, which keeps no state: set SEARCHES_POSTGRES_URL to the primary"
	case err != nil:
		text = pg.Message(err)
	}
	r.mu.Lock()
	last := r.failing
	r.failing = text
	r.mu.Unlock()
	switch {
	case text == last:
	case text == "":
		r.log.Info("searches are evaluated")
	case last == "":
		r.log.Error("searches can't be evaluated", "error", text)
	}
}

// evaluate evaluates a search. isOurs is false if the evaluation was done before. failure is why nothing could be found out; that is noted as well. An
// error means that nothing is noted.
func (r *Runner) evaluate(ctx context.Context, d dueSearch) (isOurs bool, failure, err error) {
	tx, err := r.db.BeginTx(ctx, pgx.TxOptions{BeginQuery: beginSQL})
	if err != nil {
		return false, nil, err
	}
	defer rollback(ctx, tx)
	if err := lock(ctx, tx, d.search.lockID()); err != nil {
		return false, nil, err
	}
	k, err := readKnown(ctx, tx, d.search.Name)
	if err != nil {
		return false, nil, err
	}
	if !k.evaluated.Before(d.due) {
		return false, nil, nil
	}
	began := time.Now()
	s, st := d.search, &k.state
	var changes []Change
	if k.definition != "" && k.definition != s.definition() {
		changes = st.ResolveAll()
		k.succeeded = time.Time{}
	}
	from, to := s.window(d.due, k.succeeded)
	found, failure := r.find(ctx, s, st, d.due, from, to)
	if ctx.Err() != nil {
		return false, nil, ctx.Err()
	}
	e := evaluated{search: s, due: d.due, state: st}
	if failure == nil {
		changes = append(changes, s.Step(st, d.due, from, to, found)...)
		e.more = found.More
	} else {
		e.failure = failure.Error()
	}
	st.Labels = s.Labels
	n := d.file.notice(s, st, d.due, from, to, changes)
	isTold := len(s.Tell) > 0 && (len(changes) > 0 || n.Firing > 0)
	if isTold {
		r.addSamples(ctx, s, st, n)
	}
	e.took = time.Since(began)
	if err := e.write(ctx, tx); err != nil {
		return false, nil, err
	}
	if len(changes) > 0 {
		if err := writeChanges(ctx, tx, s.Name, d.due, changes); err != nil {
			return false, nil, err
		}
	}
	if isTold {
		if err := writeMessages(ctx, tx, d.file, s.Tell, n, len(changes) == 0); err != nil {
			return false, nil, err
		}
	}
	if err := tx.Commit(ctx); err != nil {
		return false, nil, err
	}
	for _, c := range changes {
		r.log.Info("alert "+c.What, "search", s.Name, "group", c.Group.key(), "records", c.Group.Count)
	}
	if len(changes) > 0 || n.Firing > 0 {
		r.wake()
	}
	return true, failure, nil
}

// rollback ends a transaction, unless it has ended.
func rollback(ctx context.Context, tx pgx.Tx) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = tx.Rollback(ctx) // the server ends it when the connection is gone
}

// find returns what a search finds in a window. Before the first evaluation it looks for what was there before.
func (r *Runner) find(ctx context.Context, s *Search, st *State, due, from, to time.Time) (*Found, error) {
	if s.NeedsSeed(st) {
		seedFrom, seedTo := s.SeedWindow(due)
		route, p := s.Parameters(seedFrom, seedTo)
		p.Set("budget", seedTime) // the newest part counts, if all takes too long
		found, err := r.ask(ctx, s, route, p)
		if err != nil {
			return nil, fmt.Errorf("what was there before: %w", err)
		}
		s.Seed(st, due, found)
	}
	route, p := s.Parameters(from, to)
	return r.ask(ctx, s, route, p)
}

// ask asks a route and reads its answer.
func (r *Runner) ask(ctx context.Context, s *Search, route string, p url.Values) (*Found, error) {
	answer, err := r.answers.Answer(ctx, route, p)
	if err != nil {
		return nil, err
	}
	return s.Read(answer)
}

// addSamples adds records to the groups that have fired.
func (r *Runner) addSamples(ctx context.Context, s *Search, st *State, n *notice) {
	sampled := 0
	for i := range n.Groups {
		g := &n.Groups[i]
		if !g.Changed || g.Status != "firing" || s.Condition.kind == absent {
			continue
		}
		if sampled++; sampled > groupsSampled {
			return
		}
		p := s.sampleParameters(&g.of, n.From, n.To)
		p.Set("budget", sampleTime)
		answer, err := r.answers.Answer(ctx, "/logs", p)
		if err != nil {
			r.log.Debug("no sample records", "search", s.Name, "error", err)
			continue // a message without samples is better than none
		}
		var page struct {
			Logs []json.RawMessage `json:"logs"`
		}
		if json.Unmarshal(answer, &page) != nil {
			continue
		}
		for _, record := range page.Logs {
			if len(record) <= sampleBytes && len(g.Samples) < samples {
				g.Samples = append(g.Samples, record)
			}
		}
		if a := st.Alerts[g.of.key()]; a != nil {
			a.Samples = g.Samples // for when the alert is told again
		}
	}
}

// tidy deletes what is old, and resolves the alerts of searches that are in the file no more.
func (r *Runner) tidy(ctx context.Context, f *File) error {
	if _, err := r.db.Exec(ctx, tidySQL, pgx.QueryExecModeSimpleProtocol); err != nil {
		return err
	}
	names := []string{}
	for _, s := range f.Searches {
		if !s.CountsAlone() {
			names = append(names, s.Name)
		}
	}
	rows, err := r.db.Query(ctx, goneSQL, names, int(goneAfter/time.Second))
	if err != nil {
		return err
	}
	gone, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, name := range gone {
		if err := r.bury(ctx, f, name); err != nil && !errors.Is(err, errTaken) {
			return err
		}
	}
	return nil
}

// bury resolves the alerts of a search that is gone, and forgets it.
func (r *Runner) bury(ctx context.Context, f *File, name string) error {
	return pgx.BeginTxFunc(ctx, r.db, pgx.TxOptions{BeginQuery: beginSQL}, func(tx pgx.Tx) error {
		s := &Search{Name: name, Every: time.Minute, Condition: &Condition{Text: "the search is in the file no more"}}
		if err := lock(ctx, tx, s.lockID()); err != nil {
			return err
		}
		k, err := readKnown(ctx, tx, name)
		if err != nil || k.definition == "" {
			return err
		}
		due := time.Now().UTC().Truncate(time.Second)
		s.Labels = k.state.Labels
		if changes := k.state.ResolveAll(); len(changes) > 0 {
			if err := writeChanges(ctx, tx, name, due, changes); err != nil {
				return err
			}
			n := f.notice(s, &k.state, due, due, due, changes)
			if err := writeMessages(ctx, tx, f, k.receivers, n, false); err != nil {
				return err
			}
		}
		_, err = tx.Exec(ctx, "DELETE FROM millrace_searches WHERE name = $1", name)
		return err
	})
}

// wake has a sender look at once.
func (r *Runner) wake() {
	select {
	case r.wakeSenders <- struct{}{}:
	default:
	}
}
