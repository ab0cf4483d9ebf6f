package testenv

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/internal/frame"
)

const (
	// ackPatience is how long Acked goes on sending one request, and how long it waits until all is stored. It is what a busy
	// machine may take to bring its servers back after a fault.
	ackPatience = 5 * time.Minute
	// retryPause is the pause before a request is sent again.
	retryPause = 50 * time.Millisecond
	// errorsShown is how many records Compare complains of.
	errorsShown = 20
)

// Acked is a client that takes Millrace at its word. It posts records under Idempotency-Keys, sends each request again until
// it is acked, and compares what is stored in the end with what was acked. Several goroutines may call its methods at once.
// Its settings are set before the first request.
type Acked struct {
	Client *http.Client
	Sizes  []int // how many records a client's requests have, by turns; 1 and 100 if nothing else is set
	IDs    bool  // it asks for the records' ids and compares them too

	Requests atomic.Int64 // requests sent, each try counted
	Refused  atomic.Int64 // of them answered 503
	Broken   atomic.Int64 // of them without an answer

	urls []string

	mu      sync.Mutex
	acked   map[string]uuid.UUID // by the record's name; uuid.Nil without IDs
	slowest time.Duration
}

// NewAcked returns a client of the APIs at these URLs, such as http://127.0.0.1:8080.
func NewAcked(urls ...string) *Acked {
	return &Acked{
		Client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: time.Minute},
		Sizes:  []int{1, 100},
		urls:   urls,
		acked:  make(map[string]uuid.UUID),
	}
}

// Run posts requests from so many goroutines until ctx is done. The caller waits for the WaitGroup that it returns. Then the last
// requests are acked, or the test has failed.
func (a *Acked) Run(ctx context.Context, t testing.TB, clients int) *sync.WaitGroup {
	var posting sync.WaitGroup
	for client := range clients {
		posting.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				var names []string
				for place := range a.Sizes[(n+client)%len(a.Sizes)] {
					names = append(names, fmt.Sprintf("%d/%d/%d", client, n, place))
				}
				if !a.Post(t, names...) {
					return
				}
			}
		})
	}
	return &posting
}

// Post sends one request with a record of each name until it is acked: first to any of the APIs, then to each in turn. It
// reports whether the request was acked; if not, the test has failed. A name is used once.
func (a *Acked) Post(t testing.TB, names ...string) bool {
	var body bytes.Buffer
	for _, name := range names {
		body.WriteString(ackedRecord(name))
		body.WriteByte('\n')
	}
	key := frame.NewBase().String()
	for try, deadline := rand.IntN(len(a.urls)), time.Now().Add(ackPatience); ; try++ {
		begin := time.Now()
		status, retryAfter, ids, err := a.try(a.urls[try%len(a.urls)], key, body.Bytes())
		took := time.Since(begin)
		a.Requests.Add(1)
		a.mu.Lock()
		a.slowest = max(a.slowest, took)
		a.mu.Unlock()
		switch {
		case err != nil:
			a.Broken.Add(1)
		case status == http.StatusAccepted:
			if a.IDs && len(ids) != len(names) {
				t.Errorf("got %d ids for %d records", len(ids), len(names))
				return false
			}
			a.mu.Lock()
			defer a.mu.Unlock()
			for i, name := range names {
				a.acked[name] = uuid.Nil
				if a.IDs {
					a.acked[name] = ids[i]
				}
			}
			return true
		case status == http.StatusServiceUnavailable && retryAfter != "":
			a.Refused.Add(1)
		default:
			t.Errorf("got %d with Retry-After %q, want 202, or 503 with Retry-After", status, retryAfter)
			return false
		}
		if time.Now().After(deadline) {
			t.Errorf("a request was not acked within %v: status %d, error %v", ackPatience, status, err)
		}
		if t.Failed() {
			return false
		}
		time.Sleep(retryPause)
	}
}

// try sends a request once.
func (a *Acked) try(url, key string, body []byte) (status int, retryAfter string, ids []uuid.UUID, err error) {
	url += "/log/batch"
	if a.IDs {
		url += "?ids=true"
	}
	req, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return 0, "", nil, err
	}
	req.Header.Set("Idempotency-Key", key)
	resp, err := a.Client.Do(req)
	if err != nil {
		return 0, "", nil, err
	}
	text, err := io.ReadAll(resp.Body)
	err = errors.Join(err, resp.Body.Close())
	if a.IDs && err == nil && resp.StatusCode == http.StatusAccepted {
		var answer struct{ IDs []uuid.UUID }
		err = json.Unmarshal(text, &answer)
		ids = answer.IDs
	}
	return resp.StatusCode, resp.Header.Get("Retry-After"), ids, err
}

// ackedRecord returns the record of a name. If the name ends with the record's place in its request, as Run's do, some records
// are longer than others, so that a request of a hundred is cut into several segments.
func ackedRecord(name string) string {
	place, err := strconv.Atoi(name[strings.LastIndexByte(name, '/')+1:])
	if err != nil {
		place = 0
	}
	return fmt.Sprintf(`{"name":%q,"pad":%q}`, name, strings.Repeat("x", 700*(place%3)))
}

// Records returns how many records were acked.
func (a *Acked) Records() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.acked)
}

// Slowest returns the longest that one try took.
func (a *Acked) Slowest() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.slowest
}

// Compare fails the test unless what is stored is what was acked: each record once, as it was sent and, with IDs, under the id
// that was answered, and nothing else. stored yields ids and records. No request may be under way.
func (a *Acked) Compare(t testing.TB, stored iter.Seq2[uuid.UUID, string]) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	wrong := 0
	complain := func(format string, args ...any) {
		t.Helper()
		if wrong++; wrong <= errorsShown {
			t.Errorf(format, args...)
		}
	}
	times := make(map[string]int, len(a.acked))
	for id, record := range stored {
		var r struct{ Name string }
		if err := json.Unmarshal([]byte(record), &r); err != nil {
			complain("%.80s is stored: %v", record, err)
			continue
		}
		want, acked := a.acked[r.Name]
		times[r.Name]++
		switch {
		case !acked || record != ackedRecord(r.Name):
			complain("%.80s is stored, which was not acked", record)
		case times[r.Name] > 1:
			complain("record %s is stored %d times", r.Name, times[r.Name])
		case a.IDs && id != want:
			complain("record %s is stored under the id %s, %s was answered", r.Name, id, want)
		}
	}
	for name := range a.acked {
		if times[name] == 0 {
			complain("record %s was acked and is not stored", name)
		}
	}
	if wrong > errorsShown {
		t.Errorf("%d records are wrong", wrong)
	}
	t.Logf("%d records acked in %d requests; %d answers 503, %d without an answer, the slowest after %v",
		len(a.acked), a.Requests.Load(), a.Refused.Load(), a.Broken.Load(), a.slowest.Round(time.Millisecond))
}

// CompareRows waits until as many rows are stored as records were acked, and compares them. There must be no dead letter.
func (a *Acked) CompareRows(t testing.TB, conn *pgx.Conn) {
	t.Helper()
	Eventually(t, ackPatience, fmt.Sprintf("the %d acked records are stored", a.Records()), func() bool {
		return Count(t, conn, "SELECT count(*) FROM logs") >= a.Records()
	})
	rows, err := conn.Query(context.Background(),
		`SELECT id, coalesce('{"name":' || (data->'name')::text || ',"pad":' || (data->'pad')::text || '}', data::text) FROM logs`)
	if err != nil {
		t.Fatal(err)
	}
	a.Compare(t, func(yield func(uuid.UUID, string) bool) {
		var id uuid.UUID
		var record string
		if _, err := pgx.ForEachRow(rows, []any{&id, &record}, func() error {
			if !yield(id, record) {
				return errors.New("the comparing ended")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	})
	if n := Count(t, conn, "SELECT count(*) FROM dead_letters"); n > 0 {
		t.Errorf("%d dead letters, want none", n)
	}
}
