package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/config"
)

// OutsideOptions are what an Outside is to post, and where.
type OutsideOptions struct {
	APIs     []string // addresses, HOST:PORT
	Query    string   // address of the query service
	Postgres config.PostgresURL
	Seed     uint64    // of the records
	Rate     int       // records a second
	Clients  int       // that post at once
	Out      io.Writer // progress
}

// Outside is the fault proof's clients against a Millrace that somebody else runs, and breaks: one in a cluster. They post and
// search until they are told to end. In the end every record is compared with what is stored. Others may write to the same
// database; their rows are left out.
type Outside struct {
	OutsideOptions
	run    *run
	answer *http.Client // of the searches

	mu       sync.Mutex
	searches map[string]int // answers by status, or by why there was none
	phase    phase
}

// phase is a part of a run.
type phase struct {
	name     string
	from     time.Duration
	acked    int64          // requests, until it began
	codes    map[string]int // answers to posts until it began
	searches map[string]int // answers to searches until it began
}

// mine is the SQL condition that the records of an Outside meet.
const mine = `data ? 'pad' AND data ? 'c'`

// redial is how often the clients make new connections. A Service's balancer chooses a pod for each connection, so pods that are
// new would have no requests otherwise.
const redial = 500 * time.Millisecond

// NewOutside returns clients that have not begun.
func NewOutside(o OutsideOptions) *Outside {
	out := &Outside{OutsideOptions: o, searches: make(map[string]int)}
	r := &run{Options: Options{Seed: o.Seed, Out: o.Out, Patience: 90 * time.Second}, system: &system{db: o.Postgres}, counts: make(map[mismatch]int)}
	requests := min(float64(o.Rate)/8, 250) // a second
	m := newMaker(o.Seed, float64(o.Rate)/requests, time.Now())
	r.load = newLoad(m, o.Clients, requests, o.APIs, r.mismatch)
	r.poison = &poison{maker: m}
	r.late = &late{maker: m}
	r.load.began = time.Now()
	out.run = r
	out.answer = &http.Client{Timeout: tryTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
	out.phase = phase{name: "start", codes: map[string]int{}, searches: map[string]int{}}
	return out
}

// Run posts and searches until posting is done, waits until all is stored that was acked, and compares. An error says why it could not.
func (o *Outside) Run(ctx, posting context.Context) (*Report, error) {
	giveUp, giveUpNow := context.WithCancel(ctx)
	defer giveUpNow()
	var clients sync.WaitGroup
	clients.Go(func() { o.run.load.run(posting, giveUp) })
	clients.Go(func() { o.search(posting) })
	clients.Go(func() {
		for pause(posting, redial); posting.Err() == nil; pause(posting, redial) {
			o.run.load.http.CloseIdleConnections()
		}
	})
	<-posting.Done()
	timer := time.AfterFunc(o.run.Patience, giveUpNow)
	clients.Wait()
	timer.Stop()
	o.run.say("all clients have ended")
	if err := o.stored(ctx); err != nil {
		o.run.mismatch(stuck, "%v", err)
	}
	report := &Report{run: o.run}
	compare := o.run.comparison(report)
	if err := o.run.snapshot(ctx, func(tx pgx.Tx) error { return logsRows(ctx, tx, " WHERE "+mine, nil, compare) }); err != nil {
		return nil, err
	}
	if err := o.run.checkRest(ctx, report); err != nil {
		return nil, err
	}
	report.finish()
	return report, nil
}

// stored waits until there are as many rows as records were acked, and no more come.
func (o *Outside) stored(ctx context.Context) error {
	want := 0
	for client, requests := range o.run.load.sent {
		for number, r := range requests {
			if r.acked {
				want += o.run.load.shape(client, number).accepted()
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, o.run.Patience)
	defer cancel()
	for before := -1; ; {
		found, err := o.count(ctx)
		if err == nil && found >= want && found == before {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%d records are stored of %d that were acked, %v after the end: %w", found, want, o.run.Patience, errors.Join(err, ctx.Err()))
		}
		before = found
		pause(ctx, 2*time.Second) // what is stored twice may come later
	}
}

// count returns how many rows there are of these clients.
func (o *Outside) count(ctx context.Context) (n int, err error) {
	conn, err := o.run.connect(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close(ctx) // nothing to lose
	return n, conn.QueryRow(ctx, "SELECT count(*) FROM logs WHERE "+mine).Scan(&n)
}

// search asks the query service ten times a second until ctx is done, each time by a new connection.
func (o *Outside) search(ctx context.Context) {
	for ; ctx.Err() == nil; pause(ctx, 100*time.Millisecond) {
		resp, err := o.answer.Get("http://" + o.Query + "/logs?limit=10")
		said := ""
		if err != nil {
			said = brief(err)
		} else {
			if _, err = io.Copy(io.Discard, resp.Body); err != nil {
				said = "answer cut off"
			} else if said = strconv.Itoa(resp.StatusCode); resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") == "" {
				said += " without Retry-After"
			}
			_ = resp.Body.Close() // read to its end
		}
		o.mu.Lock()
		o.searches[said]++
		o.mu.Unlock()
	}
}

// Phase ends the phase that the clients are in, and begins one of a name. It returns what became of the requests of the one that
// has ended, and whether each was answered at once as it should be: no other status, and no connection refused or lost.
func (o *Outside) Phase(name string) (text string, clean bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	l := o.run.load
	l.mu.Lock()
	defer l.mu.Unlock()
	now, acked := time.Since(l.began), l.acked.Load()
	var longest time.Duration
	for _, w := range l.waits {
		if w.to > o.phase.from {
			longest = max(longest, w.to-w.from)
		}
	}
	posts, cleanPosts := changed(o.phase.codes, l.codes, "200", "202", "204", "207")
	searches, cleanSearches := changed(o.phase.searches, o.searches, "200")
	text = fmt.Sprintf("%s: %.0f s; %d requests acked; posts: %s; searches: %s; longest wait for an ack %v",
		o.phase.name, (now - o.phase.from).Seconds(), acked-o.phase.acked, posts, searches, longest.Round(10*time.Millisecond))
	o.phase = phase{name: name, from: now, acked: acked, codes: maps.Clone(l.codes), searches: maps.Clone(o.searches)}
	return text, cleanPosts && cleanSearches
}

// changed returns by how much counts are more than they were, as text, and whether only wanted ones are.
func changed(before, after map[string]int, wanted ...string) (text string, clean bool) {
	clean = true
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(after)) {
		if n := after[k] - before[k]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d × %s", n, k))
			clean = clean && slices.Contains(wanted, k)
		}
	}
	return strings.Join(parts, ", "), clean
}
