package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/jackc/pgx/v5"
)

// reader asks the query service for counts of windows that are over, so that they are cached, and asks again in the
// end: by then late records have come in, and Redis has been killed and emptied.
type reader struct {
	run     *run
	http    *http.Client
	windows []window
}

// window is a window of a search by a clock, from inclusive, to exclusive.
type window struct {
	from, to time.Time
	clock    string // a column of logs
}

func newReader(r *run) *reader {
	return &reader{run: r, http: &http.Client{Timeout: 5 * time.Second}}
}

// ask returns the query service's count of a window, and the status of its answer.
func (q *reader) ask(ctx context.Context, w window) (count int, status int, err error) {
	query := url.Values{"from": {w.from.Format(time.RFC3339Nano)}, "to": {w.to.Format(time.RFC3339Nano)}, "clock": {w.clock}}
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
		w := window{now.Add(-12 * time.Second), now.Add(-2 * time.Second), []string{"time", "inserted_at"}[n%20/10]}
		if n%10 == 0 {
			q.windows = append(q.windows, w)
		}
		// Earlier windows are asked for again: their counts may come from the cache, and may change all the same.
		for _, w := range []window{w, q.windows[n/2%len(q.windows)]} {
			_, _, _ = q.ask(ctx, w) // for the cache; what it says is checked in the end
		}
	}
}

// check compares the service's counts of the windows with what is stored. Clients' and APIs' clocks were stepped, so windows may
// have got records late.
func (q *reader) check(ctx context.Context, conn *pgx.Conn) {
	defer q.http.CloseIdleConnections()
	for _, w := range q.windows {
		var want int
		if err := conn.QueryRow(ctx, "SELECT count(*) FROM logs WHERE "+w.clock+" >= $1 AND "+w.clock+" < $2", w.from, w.to).Scan(&want); err != nil {
			q.run.mismatch(broken, "%v", err)
			return
		}
		var got, status int
		err := fmt.Errorf("not asked")
		for range 20 {
			if got, status, err = q.ask(ctx, w); err == nil && status == http.StatusOK {
				break
			}
			pause(ctx, 250*time.Millisecond)
		}
		if err != nil || status != http.StatusOK || got != want {
			q.run.mismatch(stale, "GET /logs/count by %s from %s to %s: got %d (status %d, %v), want %d",
				w.clock, w.from.Format(time.RFC3339), w.to.Format(time.RFC3339), got, status, err, want)
		}
	}
}
