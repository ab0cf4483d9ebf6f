package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// reader asks the query service for counts of windows that are over, so that they are cached, and asks again in the
// end: by then late records have come in, and Redis has been killed and emptied. With an archive it also counts each client's records all
// along, while they go from the table to files: they may never get fewer, nor be more than were sent.
type reader struct {
	run     *run
	http    *http.Client
	windows []window       // that are asked for in the end, besides those of followClients
	stored  map[window]int // in the end: how many rows each window has

	// Of followClients.
	seen    map[window]int // the most that a window had
	answers int
}

// window is a window of a search by a clock, from inclusive, to exclusive.
type window struct {
	from, to time.Time
	clock    string // a column of logs
	client   int    // whose records count; everybody: all count
}

// everybody stands for no client.
const everybody = -1

func newReader(r *run) *reader {
	return &reader{run: r, http: &http.Client{Timeout: 5 * time.Second}, seen: make(map[window]int)}
}

func (w window) String() string {
	text := fmt.Sprintf("by %s from %s to %s", w.clock, w.from.UTC().Format(time.RFC3339), w.to.UTC().Format(time.RFC3339))
	if w.client != everybody {
		text += fmt.Sprintf(" of client %d", w.client)
	}
	return text
}

// search returns the condition of the window's client.
func (w window) search() string {
	if w.client == everybody {
		return ""
	}
	return fmt.Sprintf("c:%d", w.client)
}

// has reports whether a row is in the window.
func (w window) has(client int, came, at time.Time) bool {
	if w.client != everybody && w.client != client {
		return false
	}
	if w.clock == "time" {
		came = at
	}
	return !came.Before(w.from) && came.Before(w.to)
}

// ask returns the query service's count of a window's records for which a condition holds, and the status of its answer.
func (q *reader) ask(ctx context.Context, w window, condition string) (count int, status int, err error) {
	query := url.Values{"from": {w.from.Format(time.RFC3339Nano)}, "to": {w.to.Format(time.RFC3339Nano)}, "clock": {w.clock}}
	if condition != "" {
		query.Set("q", condition)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+q.run.unit("query").addr+"/logs/count?"+query.Encode(), nil)
	if err != nil {
		return 0, 0, err
	}
	resp, err := q.http.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close() // read to its end
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, 0, err
	}
	var answer struct{ Count int }
	if resp.StatusCode == http.StatusOK {
		err = json.Unmarshal(body, &answer)
	}
	return answer.Count, resp.StatusCode, err
}

// count does what ask does, and reports whether there was a count. It notes a mismatch if the answer is neither a count nor one that says
// that there is none now.
func (q *reader) count(ctx context.Context, w window, condition string) (n int, ok bool) {
	n, status, err := q.ask(ctx, w, condition)
	switch {
	case err != nil: // the service was killed, or is slow
		return 0, false
	case status == http.StatusOK:
		return n, true
	case status != http.StatusServiceUnavailable && status != http.StatusTooManyRequests && status != http.StatusGatewayTimeout:
		q.run.mismatch(wrongAnswer, "GET /logs/count %s: status %d", w, status)
	}
	return 0, false
}

// follow asks until ctx is done.
func (q *reader) follow(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			q.http.CloseIdleConnections()
			return
		}
		now := time.Now().UTC().Truncate(time.Second)
		w := window{now.Add(-12 * time.Second), now.Add(-2 * time.Second), []string{"time", "inserted_at"}[n%20/10], everybody}
		if n%10 == 0 {
			q.windows = append(q.windows, w)
		}
		// Earlier windows are asked for again: their counts may come from the cache, and may change all the same.
		for _, w := range []window{w, q.windows[n/2%len(q.windows)]} {
			_, _, _ = q.ask(ctx, w, w.search()) // for the cache; what it says is checked in the end
		}
	}
}

// countEvery is the time between two counts of a client's records.
const countEvery = 250 * time.Millisecond

// followClients counts the records of one client after another until ctx is done, by both clocks: all of them, and those of a minute that is
// over. The first come from table and files, the second from the cache if that has them.
func (q *reader) followClients(ctx context.Context) {
	tick := time.NewTicker(countEvery)
	defer tick.Stop()
	l := q.run.load
	first := l.start.UTC().Truncate(time.Minute)
	for n := 0; ; n++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			q.http.CloseIdleConnections()
			return
		}
		clock := []string{"inserted_at", "time"}[n/2%2]
		client := n / 4 % l.clients
		w := window{first.Add(-400 * 24 * time.Hour), first.Add(10 * 24 * time.Hour), clock, client}
		if minutes := int(time.Since(first) / time.Minute); n%2 == 1 && minutes > 0 {
			minute := n / 4 % minutes
			from := first.Add(time.Duration(minute) * time.Minute)
			w = window{from, from.Add(time.Minute), clock, minute % l.clients}
		}
		got, ok := q.count(ctx, w, w.search())
		if !ok {
			continue
		}
		q.answers++
		if sent := int(l.begun[w.client].Load()); got > sent {
			q.run.mismatch(grown, "%s there are %d records, and %d were sent%s", w, got, sent, q.run.inForceNow())
		}
		if got < q.seen[w] {
			q.run.mismatch(shrunk, "%s there are %d records, and there were %d%s", w, got, q.seen[w], q.run.inForceNow())
		}
		q.seen[w] = max(q.seen[w], got)
	}
}

// expect readies the reader for note.
func (q *reader) expect() {
	q.stored = make(map[window]int)
	for w := range q.seen {
		q.windows = append(q.windows, w)
	}
}

// note counts a row that is stored in the end.
func (q *reader) note(client int, came, at time.Time) {
	for _, w := range q.windows {
		if w.has(client, came, at) {
			q.stored[w]++
		}
	}
}

// check compares the service's counts of the windows with what is stored. Clients' and APIs' clocks were stepped, so windows may
// have got records late.
func (q *reader) check(ctx context.Context) {
	defer q.http.CloseIdleConnections()
	for _, w := range q.windows {
		want := q.stored[w]
		var got, status int
		err := fmt.Errorf("not asked")
		for range 20 {
			if got, status, err = q.ask(ctx, w, w.search()); err == nil && status == http.StatusOK {
				break
			}
			pause(ctx, 250*time.Millisecond)
		}
		if err != nil || status != http.StatusOK || got != want {
			q.run.mismatch(stale, "GET /logs/count %s: got %d (status %d, %v), want %d", w, got, status, err, want)
		}
	}
}
