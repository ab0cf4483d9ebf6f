package query

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/internal/frame"
	"millrace/internal/keys"
	"millrace/internal/testenv"
)

// stream is a client of the tail.
type stream struct {
	t      testing.TB
	events chan sse
	places chan string // of events without data
	stop   func()
}

type sse struct{ name, id, data string }

// follow opens a stream and returns when it has begun. It is closed with the test.
func (c *client) follow(q, lastID string) *stream {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, "GET", c.base+with("/logs/tail", "q", q), nil)
	if err != nil {
		c.t.Fatal(err)
	}
	if c.key != "" {
		req.Header.Set("X-API-Key", c.key)
	}
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		c.t.Fatalf("got %s, %v", resp.Status, resp.Header)
	}
	s := &stream{t: c.t, events: make(chan sse, 100_000), places: make(chan string, 1000)}
	var reading sync.WaitGroup
	reading.Go(func() {
		defer close(s.events)
		defer resp.Body.Close()
		var e sse
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			name, value, _ := strings.Cut(lines.Text(), ": ")
			switch name {
			case "id":
				e.id = value
			case "event":
				e.name = value
			case "data":
				e.data = value
			case "":
				switch {
				case e.data != "":
					s.events <- e
				case e.id != "" && value == "":
					s.places <- e.id
				}
				if value == "" && lines.Text() == "" {
					e = sse{}
				}
			}
		}
	})
	s.stop = func() { cancel(); reading.Wait() }
	c.t.Cleanup(s.stop)
	return s
}

// place returns the place that the next event without data tells.
func (s *stream) place() string {
	s.t.Helper()
	select {
	case place := <-s.places:
		return place
	case <-time.After(10 * time.Second): // before the first heartbeat
		s.t.Fatal("no place within 10 s")
	}
	return ""
}

// next returns the next event.
func (s *stream) next() sse {
	s.t.Helper()
	select {
	case e, ok := <-s.events:
		if !ok {
			s.t.Fatal("the stream has ended")
		}
		return e
	case <-time.After(15 * time.Second):
		s.t.Fatal("no event within 15 s")
	}
	return sse{}
}

// wants reads events until one with the last text has come, and compares the texts of their records.
func (s *stream) wants(texts ...string) (last string) {
	s.t.Helper()
	var got []string
	for len(got) < len(texts) {
		e := s.next()
		var l struct{ Data struct{ N string } }
		if err := json.Unmarshal([]byte(e.data), &l); err != nil || e.name != "" {
			s.t.Fatalf("got %+v, %v", e, err)
		}
		got, last = append(got, l.Data.N), e.id
	}
	if diff := cmp.Diff(texts, got); diff != "" {
		s.t.Errorf("(-want +got):\n%s", diff)
	}
	return last
}

// storeSegment stores records as a worker does: ledger first, in one transaction that the caller commits.
func storeSegment(t testing.TB, tx pgx.Tx, at time.Time, n int, docs ...string) {
	t.Helper()
	ctx := context.Background()
	base := idAt(at, n)
	if _, err := tx.Exec(ctx, "INSERT INTO ledger (id, records, checksum) VALUES ($1, $2, 0)", [16]byte(base), len(docs)); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, "SAVEPOINT s"); err != nil { // a subtransaction, as after a bad record
		t.Fatal(err)
	}
	for k, doc := range docs {
		if _, err := tx.Exec(ctx, "INSERT INTO logs (id, inserted_at, data) VALUES ($1, $2, $3)", [16]byte(frame.ID(base, k)), frame.Time(base), doc); err != nil {
			t.Fatal(err)
		}
	}
	const note = `INSERT INTO late_changes (hour) SELECT date_trunc('hour', $1::timestamptz) WHERE $1 < clock_timestamp() - interval '30 seconds'
		ON CONFLICT (hour, slot) DO UPDATE SET changes = late_changes.changes + 1`
	if _, err := tx.Exec(ctx, note, frame.Time(base)); err != nil {
		t.Fatal(err)
	}
}

func ledgerFixture(t *testing.T, settings map[string]string) fixture {
	f := newFixture(t, settings)
	now := time.Now()
	partition(t, f.db, now.Add(-24*time.Hour))
	partition(t, f.db, now)
	partition(t, f.db, now.Add(24*time.Hour))
	f.exec("CREATE TABLE ledger_all PARTITION OF ledger FOR VALUES FROM (MINVALUE) TO (MAXVALUE)")
	return f
}

func (f fixture) begin() pgx.Tx {
	f.t.Helper()
	tx, err := testenv.Connect(f.t, f.url).Begin(context.Background())
	if err != nil {
		f.t.Fatal(err)
	}
	return tx
}

func commit(t testing.TB, tx pgx.Tx) {
	t.Helper()
	if err := tx.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func n(s string) string { return `{"n": "` + s + `"}` }

func TestTheTailNeverSkipsARowThatCommitsLate(t *testing.T) {
	f := ledgerFixture(t, nil)
	now := time.Now()
	before := f.begin()
	storeSegment(t, before, now.Add(-time.Minute), 1, n("open before anybody followed"))
	s, dropped := f.follow("", ""), f.follow("-n:*", "")
	insert(t, f.db, now, 100, n("1"), n("2"))
	last := s.wants("1", "2")

	late, later := f.begin(), f.begin()
	storeSegment(t, late, now.Add(-5*time.Second), 1, n("late a"), n("late b"))
	storeSegment(t, later, now.Add(-2*time.Hour), 1, n("an outage ago"))
	for i := range 5 { // others commit meanwhile
		tx := f.begin()
		storeSegment(t, tx, now.Add(time.Duration(i)*time.Millisecond), 200, n(fmt.Sprint("m", i)))
		commit(t, tx)
		s.wants(fmt.Sprint("m", i))
	}
	commit(t, late)
	s.wants("late a", "late b")
	commit(t, before)
	s.wants("open before anybody followed")
	commit(t, later)
	s.wants("an outage ago")
	insert(t, f.db, now.Add(time.Second), 7, n("end"))
	s.wants("end") // and nothing twice in between
	if events := len(dropped.events); events > 0 {
		t.Errorf("the other filter got %d events", events)
	}

	// Who comes back gets the rest once, whatever was open when it left.
	again := f.follow("", last)
	seen := map[string]bool{}
	for range 10 {
		e := again.next()
		var l struct{ Data struct{ N string } }
		if err := json.Unmarshal([]byte(e.data), &l); err != nil {
			t.Fatalf("%v in %s", err, e.data)
		}
		if seen[l.Data.N] {
			t.Errorf("%s came twice", l.Data.N)
		}
		seen[l.Data.N] = true
		if len(seen) == 10 {
			break
		}
	}
	if seen["1"] || seen["2"] || !seen["late a"] || !seen["m4"] || !seen["end"] {
		t.Errorf("got %v", seen)
	}
	insert(t, f.db, now, 8, n("live"))
	again.wants("live")
}

func TestTheTailTellsItsPlaceBeforeTheFirstRecord(t *testing.T) {
	f := ledgerFixture(t, nil)
	now := time.Now()
	insert(t, f.db, now, 1, n("before anybody followed"))
	s := f.follow("-n:other", "")
	place := s.place()
	s.stop()

	insert(t, f.db, now, 2, n("1"), n("other"))
	late := f.begin()
	storeSegment(t, late, now.Add(-2*time.Hour), 1, n("2 of an outage"))
	commit(t, late)
	again := f.follow("-n:other", place)
	got := []string{}
	for range 2 {
		var l struct{ Data struct{ N string } }
		if err := json.Unmarshal([]byte(again.next().data), &l); err != nil {
			t.Fatal(err)
		}
		got = append(got, l.Data.N)
	}
	slices.Sort(got)
	if diff := cmp.Diff([]string{"1", "2 of an outage"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	// So does one who joins a tail that others follow. It may get what became visible shortly before it joined.
	second := f.follow("n:*", "")
	place = second.place()
	second.stop()
	insert(t, f.db, now, 4, n("3"))
	again.wants("3")
	for third := f.follow("n:*", place); ; {
		var l struct{ Data struct{ N string } }
		if err := json.Unmarshal([]byte(third.next().data), &l); err != nil {
			t.Fatal(err)
		}
		if l.Data.N == "before anybody followed" {
			t.Error("it came again")
		}
		if l.Data.N == "3" {
			break
		}
	}
}

func TestWhoComesBackTooLateGetsANewPlace(t *testing.T) {
	f := ledgerFixture(t, nil)
	first := f.follow("", "")
	parts := strings.Split(first.place(), ".")
	parts[1] = strconv.FormatInt(time.Now().Add(-11*time.Minute).UnixMilli(), 36)
	s := f.follow("", strings.Join(parts, "."))
	if e := s.next(); e.name != "missed" || !strings.Contains(e.data, "too long ago") {
		t.Errorf("got %+v", e)
	}
	place := s.place()
	s.stop()
	insert(t, f.db, time.Now(), 1, n("1"))
	f.follow("", place).wants("1")
}

func TestAReplayedDeadLetterIsInTheTail(t *testing.T) {
	f := ledgerFixture(t, nil)
	old := time.Now().Add(-3 * time.Hour)
	id := idAt(old, 5)
	f.exec("INSERT INTO dead_letters (id, reason, error, payload, record_id, queue, properties) VALUES ($1, 'data', '', '', $2, '', '{}')", [16]byte(uuid.New()), [16]byte(id))
	s := f.follow("n:replayed", "")
	tx := f.begin()
	for _, sql := range []string{"DELETE FROM dead_letters", "INSERT INTO late_changes (hour) VALUES (date_trunc('hour', now() - interval '3 hours'))"} {
		if _, err := tx.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tx.Exec(t.Context(), "INSERT INTO logs VALUES ($1, $2, $3)", [16]byte(id), frame.Time(id), n("replayed")); err != nil {
		t.Fatal(err)
	}
	commit(t, tx)
	s.wants("replayed")
}

func TestTheTailGoesOnAfterADatabaseThatWentAway(t *testing.T) {
	direct := testenv.Schema(t)
	relay, through := newWire(t, string(direct))
	c := start(t, map[string]string{"POSTGRES_URL": through})
	db := testenv.Connect(t, direct)
	now := time.Now()
	partition(t, db, now)
	s := c.follow("", "")
	insert(t, db, now, 1, n("1"))
	s.wants("1")
	relay.cut()
	insert(t, db, now, 2, n("2"))
	relay.mend()
	insert(t, db, now, 3, n("3"))
	got := map[string]bool{}
	for range 2 {
		got[s.next().data[len(`{"id":"`):][:36]] = true
	}
	if !got[idAt(now, 2).String()] || !got[idAt(now, 3).String()] {
		t.Errorf("got %v", got)
	}
}

func TestTheTailGoesOnAfterAPartitionWasDropped(t *testing.T) {
	f := ledgerFixture(t, nil)
	now := time.Now()
	name := partition(t, f.db, now.Add(-24*time.Hour))
	insert(t, f.db, now.Add(-24*time.Hour), 1, n("old"))
	s := f.follow("", "")
	insert(t, f.db, now, 1, n("1"))
	last := s.wants("1")
	f.exec("ALTER TABLE logs DETACH PARTITION " + name)
	f.exec("DROP TABLE " + name)
	insert(t, f.db, now, 2, n("2"))
	s.wants("2")
	f.follow("", last).wants("2")
}

func TestASlowFollowerIsToldWhatItMissedAndSlowsNobody(t *testing.T) {
	f := ledgerFixture(t, nil)
	fast := f.follow("", "")
	req, err := http.NewRequestWithContext(t.Context(), "GET", f.base+"/logs/tail", nil)
	if err != nil {
		t.Fatal(err)
	}
	slow, err := f.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Body.Close()
	const rows, batches = 1000, 20
	doc := `{"long": "` + strings.Repeat("x", 1500) + `"}`
	got := 0
	for i := range batches { // 30 MB: more than the sockets and the buffer hold
		f.exec("INSERT INTO logs SELECT gen_random_uuid(), now() + $3 * interval '1 ms', $1::jsonb FROM generate_series(1, $2)", doc, rows, i)
		for ; got < (i+1)*rows; got++ {
			fast.next()
		}
	}
	missed, had := 0, 0
	lines := bufio.NewScanner(slow.Body)
	for had+missed < rows*batches && lines.Scan() {
		if rest, found := strings.CutPrefix(lines.Text(), `data: {"missed":`); found {
			var n int
			if _, err := fmt.Sscanf(rest, "%d}", &n); err != nil {
				t.Fatal(err)
			}
			missed += n
		} else if strings.HasPrefix(lines.Text(), "data: ") {
			had++
		}
	}
	if had+missed != rows*batches || missed == 0 {
		t.Errorf("the slow one got %d and missed %d of %d: %v", had, missed, rows*batches, lines.Err())
	}
	if m := f.get("/metrics").body; !strings.Contains(m, fmt.Sprintf("millrace_query_tail_missed_total %d\n", missed)) || !strings.Contains(m, "millrace_query_tail_followers 2\n") {
		t.Error("the metrics say otherwise")
	}
}

func TestAStreamEndsWhenItsKeyIsRevoked(t *testing.T) {
	k, secret, err := keys.New("reader", []string{keys.Read})
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := keys.New("other", []string{keys.Read})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "keys")
	write := func(lines ...string) {
		if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(k.String(), other.String())
	f := newFixture(t, map[string]string{"KEYS_FILE": file})
	f.key = secret
	s := f.follow("", "")
	write(other.String())
	if e := s.next(); e.name != "end" || !strings.Contains(e.data, "revoked") {
		t.Errorf("got %+v", e)
	}
	if _, open := <-s.events; open {
		t.Error("the stream goes on")
	}

	// An export that has not begun to answer says so too.
	write(k.String(), other.String())
	testenv.Eventually(t, 10*time.Second, "the key is back", func() bool { return f.get("/logs/count").status == 200 })
	look := testenv.Connect(t, f.url)
	unlock := f.lock()
	answered := make(chan reply, 1)
	go func() {
		r, err := f.do(t.Context(), "GET", "/logs/export")
		if err != nil {
			t.Error(err)
		}
		answered <- r
	}()
	testenv.Eventually(t, 10*time.Second, "the export waits", func() bool { return f.waiting(look) == 1 })
	write(other.String())
	if r := <-answered; r.status != 401 || !strings.Contains(r.body, "revoked") {
		t.Errorf("got %d %s", r.status, r.body)
	}
	unlock()
}

func TestFollowersAreBounded(t *testing.T) {
	f := newFixture(t, map[string]string{"TAIL_FOLLOWERS": "1"})
	s := f.follow("", "")
	if r := f.get("/logs/tail"); r.status != 429 || r.header.Get("Retry-After") == "" {
		t.Errorf("got %d %s, want 429", r.status, r.body)
	}
	s.stop()
	testenv.Eventually(t, 20*time.Second, "there is room", func() bool {
		return strings.Contains(f.get("/metrics").body, "millrace_query_tail_followers 0\n")
	})
	f.follow("", "1.1.1").stop()
}
