package query

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"millrace/internal/config"
	"millrace/internal/frame"
	"millrace/internal/keys"
	"millrace/internal/service"
	"millrace/internal/testenv"
	"millrace/query/language"
)

// fixture is a service on a database of its own, without a cache.
type fixture struct {
	*client
	db  *pgx.Conn
	url config.PostgresURL
}

func newFixture(t *testing.T, settings map[string]string) fixture {
	t.Helper()
	url := testenv.Schema(t)
	merged := map[string]string{"POSTGRES_URL": string(url)}
	for k, v := range settings {
		merged[k] = v
	}
	return fixture{start(t, merged), testenv.Connect(t, url), url}
}

func (f fixture) exec(sql string, args ...any) {
	f.t.Helper()
	if _, err := f.db.Exec(context.Background(), sql, args...); err != nil {
		f.t.Fatal(err)
	}
}

func TestPagingNeitherRepeatsNorMissesARow(t *testing.T) {
	for _, order := range []string{"desc", "asc"} {
		t.Run(order, func(t *testing.T) {
			f := newFixture(t, nil)
			// Two days, some milliseconds of 150 rows each: pages of 37 end within a millisecond.
			now := time.Now().Truncate(time.Millisecond)
			partition(t, f.db, now)
			partition(t, f.db, now.Add(-24*time.Hour))
			partition(t, f.db, now.Add(time.Hour))
			docs := slices.Repeat([]string{`{"there": "first"}`}, 150)
			var want []string
			for _, ago := range []time.Duration{23 * time.Hour, time.Hour, 3 * time.Millisecond, 2 * time.Millisecond, 0} {
				want = append(want, insert(t, f.db, now.Add(-ago), 1000, docs...)...)
			}
			if order == "desc" {
				slices.Reverse(want)
			}

			// Meanwhile rows arrive, newer ones, and late ones of the same milliseconds.
			var writing sync.WaitGroup
			late := testenv.Connect(t, f.url)
			writing.Go(func() {
				for n := range 400 { // with an end: the pages would follow the writer for ever
					insert(t, late, now.Add(time.Duration(n)*time.Millisecond), 5000+n, `{"there": "later"}`)
					insert(t, late, now.Add(-time.Hour), 10_000*(n%2)+n, `{"there": "later"}`)
				}
			})
			var got []string
			seen := make(map[string]bool)
			for cursor := ""; ; {
				var page logsPage
				f.ok(with("/logs", "order", order, "limit", "37", "cursor", cursor), &page)
				for _, l := range page.Logs {
					if seen[l.ID] {
						t.Errorf("%s came twice", l.ID)
					}
					seen[l.ID] = true
					if strings.Contains(string(l.Data), "first") {
						got = append(got, l.ID)
					}
				}
				if page.Next == nil {
					break
				}
				cursor = *page.Next
			}
			writing.Wait()
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("rows that were there at the first page (-want +got):\n%s", diff)
			}
		})
	}
}

// TestPagesOfRowsThatShareAnIDNeitherRepeatNorMissOne has rows that only foreign writers, or versions of before, make:
// of one time and id, with equal contents among them, and of a time that is not the id's.
func TestPagesOfRowsThatShareAnIDNeitherRepeatNorMissOne(t *testing.T) {
	f := newFixture(t, nil)
	at := time.Now().UTC().Truncate(time.Millisecond).Add(-time.Minute)
	partition(t, f.db, at)
	partition(t, f.db, at.Add(-24*time.Hour))
	add := func(at time.Time, id uuid.UUID, data string) {
		f.exec("INSERT INTO logs (id, inserted_at, data) VALUES ($1, $2, $3)", [16]byte(id), at, data)
	}
	want := make(map[string]int)
	for n, doc := range []string{"x", "a", "b", "b", "c", "a", "z", "e"} {
		id := 7 // the same for most
		switch doc {
		case "x":
			id = 6
		case "z":
			id = 8
		}
		data := fmt.Sprintf(`{"n": %d, "doc": %q}`, n%2, doc)
		add(at, idAt(at, id), data)
		want[data]++
	}
	for n, at := range []time.Time{at.Add(400 * time.Microsecond), at.Add(400 * time.Microsecond), at.Add(401 * time.Microsecond), at.Add(-24 * time.Hour)} {
		data := fmt.Sprintf(`{"n": %d, "doc": "of another time"}`, n)
		add(at, idAt(time.Now().Add(-time.Hour), 3), data)
		want[data]++
		random := uuid.New()
		data = fmt.Sprintf(`{"n": %d, "doc": "without a time"}`, n)
		add(at, random, data)
		want[data]++
	}
	for limit := 1; limit <= 17; limit++ {
		var first []string
		for _, order := range []string{"asc", "desc"} {
			got := make(map[string]int)
			var all []string
			for cursor := ""; ; {
				var page logsPage
				f.ok(with("/logs", "from", "now-2d", "order", order, "limit", fmt.Sprint(limit), "cursor", cursor), &page)
				for _, l := range page.Logs {
					got[string(l.Data)]++
					all = append(all, l.InsertedAt+l.ID+string(l.Data))
				}
				if page.Next == nil || len(all) > 100 {
					break
				}
				cursor = *page.Next
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s, limit %d (-want +got):\n%s", order, limit, diff)
			}
			if order == "asc" {
				first = all
				continue
			}
			slices.Reverse(all)
			if diff := cmp.Diff(first, all); diff != "" {
				t.Errorf("limit %d, oldest first and newest first (-asc +desc):\n%s", limit, diff)
			}
		}
	}
}

func TestAPageHasItsRowsAsTheyWereStored(t *testing.T) {
	f := newFixture(t, nil)
	at := time.Now().Truncate(time.Second).Add(-time.Minute)
	partition(t, f.db, at)
	ids := insert(t, f.db, at, 1, `{"n": 12345678901234567890.10, "s": "<&> é \" \\", "nested": {"a": [1, null, {}]}}`)
	came := at.UTC().Format("2006-01-02T15:04:05") + ".000Z"
	want := `{"logs":[{"id":"` + ids[0] + `","time":"` + came + `","inserted_at":"` + came + `","data":{"n": 12345678901234567890.10, "s": "<&> é \" \\", "nested": {"a": [1, null, {}]}}}],"next":null}` + "\n"
	var page logsPage
	if got := f.ok("/logs", &page); got.body != want || got.header.Get("X-Cache") != "bypass" {
		t.Errorf("got  %s\nwant %s\nX-Cache %q", got.body, want, got.header.Get("X-Cache"))
	}
	one := strings.TrimSuffix(strings.TrimPrefix(want, `{"logs":[`), "],\"next\":null}\n") + "\n"
	if got := f.get("/logs/" + strings.ToUpper(ids[0])); got.status != 200 || got.body != one {
		t.Errorf("by id: got %d %s\nwant %s", got.status, got.body, one)
	}
	if got := f.ok("/logs?to=now-1h", &page); got.body != `{"logs":[],"next":null}`+"\n" {
		t.Errorf("an empty window: got %s", got.body)
	}
	if r, err := f.do(t.Context(), "HEAD", "/logs"); err != nil || r.status != 200 || r.body != "" {
		t.Errorf("HEAD: got %+v, %v", r, err)
	}
}

func TestByID(t *testing.T) {
	f := newFixture(t, nil)
	at := time.Now()
	partition(t, f.db, at)
	insert(t, f.db, at, 1, `{"a": 1}`)
	for path, want := range map[string]int{
		"/logs/" + idAt(at, 2).String():                   404,
		"/logs/" + idAt(at.Add(-9*time.Hour), 1).String(): 404,
		"/logs/ffffffff-ffff-7fff-bfff-ffffffffffff":      404, // the year 10889
		"/logs/00000000-0000-7000-8000-000000000000":      404,
		"/logs/" + uuid.NewString():                       400, // version 4
		"/logs/{" + idAt(at, 1).String() + "}":            400,
		"/logs/urn:uuid:" + idAt(at, 1).String():          400,
		"/logs/x":                                         400,
		"/logs/%00":                                       400,
		"/logs/a%2Fb":                                     400,
		"/logs/" + idAt(at, 1).String() + "?q=a:1":        400,
		"/logs/" + idAt(at, 1).String():                   200,
	} {
		if got := f.get(path); got.status != want {
			t.Errorf("GET %s: got %d %s, want %d", path, got.status, got.body, want)
		}
	}
}

// TestAKeyFindsTheFirstRecordUnderIt: a client may ask by its Idempotency-Key. A record that has the id itself is meant.
func TestAKeyFindsTheFirstRecordUnderIt(t *testing.T) {
	f := newFixture(t, nil)
	at := time.Now()
	partition(t, f.db, at)
	key := idAt(at, 7)
	base := frame.BaseOfKey(key)
	if _, err := f.db.Exec(t.Context(), "INSERT INTO logs VALUES ($1, $2, '{\"n\":1}')", [16]byte(base), frame.Time(base)); err != nil {
		t.Fatal(err)
	}
	for _, id := range []uuid.UUID{key, base} {
		if got := f.get("/logs/" + id.String()); got.status != 200 || !strings.HasPrefix(got.body, `{"id":"`+base.String()+`"`) {
			t.Errorf("GET /logs/%s: got %d %s", id, got.status, got.body)
		}
	}
	insert(t, f.db, at, 7, `{"n": 2}`)
	if got := f.get("/logs/" + key.String()); got.status != 200 || !strings.Contains(got.body, `{"n": 2}`) {
		t.Errorf("GET /logs/%s: got %d %s", key, got.status, got.body)
	}
}

func TestFiltersAndCountsAgree(t *testing.T) {
	f := newFixture(t, nil)
	at := time.Now().Add(-time.Minute)
	partition(t, f.db, at)
	insert(t, f.db, at, 0,
		`{"n": "0", "level": "error", "http": {"status": 500}}`,
		`{"n": "1", "level": "error", "http": {"status": "500"}, "tags": ["a", "b"]}`,
		`{"n": "2", "level": "warn", "http": {"status": 500.0}, "msg": "connection \"reset\""}`,
		`{"n": "3", "level": null, "ok": true, "a.b": {"c d": 1}}`,
		`{"n": "4", "level": "null", "ok": "true", "big": 1e400, "": "empty"}`,
		`{"n": "5", "größe": "über", "tab": "a\tb", "http.status": 500}`,
	)
	for q, want := range map[string]string{
		"":                                "012345",
		"level:error":                     "01",
		`level:"error" `:                  "01",
		"level:error http.status:500":     "01",
		"http.status:500":                 "0125",
		`"http"."status":500`:             "012",
		`http.status:"500"`:               "1",
		"http.status:5e2":                 "025",
		"http.status>499":                 "0125",
		"level:i(ERROR) or big>1":         "014",
		`msg~"CONNECTION"`:                "2",
		"level:/^(warn|err)/":             "012",
		"level:null":                      "34",
		`level:"null"`:                    "4",
		"ok:true":                         "34",
		"ok:false":                        "",
		"n:3":                             "3",
		`"a.b"."c d":1`:                   "3",
		`"http.status":500`:               "5",
		`"":empty`:                        "4",
		"größe:über":                      "5",
		`tab:"a\tb"`:                      "5",
		`msg:"connection \"reset\""`:      "2",
		"big:1e400":                       "4",
		"big:1e999999":                    "",
		"big:1e-9999999999":               "",
		"tags:a":                          "1",
		`n:"'; DROP TABLE logs; --"`:      "",
		`n:$1`:                            "",
		strings.Repeat("a.", 127) + "a:1": "",
	} {
		var page logsPage
		f.ok(with("/logs", "q", q, "order", "asc"), &page)
		got := ""
		for _, l := range page.Logs {
			var data struct{ N string }
			if err := json.Unmarshal(l.Data, &data); err != nil {
				t.Fatal(err)
			}
			got += data.N
		}
		var count struct{ Count int }
		f.ok(with("/logs/count", "q", q), &count)
		if got != want || count.Count != len(want) {
			t.Errorf("%s: got rows %q, count %d, want %q", q, got, count.Count, want)
		}
	}
}

func TestTheWindowHoldsFromAndNotTo(t *testing.T) {
	f := newFixture(t, nil)
	at := time.Now().Add(-2 * time.Hour).Truncate(time.Second)
	partition(t, f.db, at)
	ahead := time.Now().Add(time.Minute)
	partition(t, f.db, ahead)
	insert(t, f.db, at, 0, `{}`)
	insert(t, f.db, at.Add(time.Millisecond), 0, `{}`)
	insert(t, f.db, ahead, 0, `{}`) // another machine's clock is ahead
	ms := at.UnixMilli()
	for _, tt := range []struct {
		from, to any
		want     int
	}{
		{ms, ms + 1, 1}, {ms, ms, 0}, {ms, ms + 2, 2}, {ms + 1, ms + 2, 1}, {ms - 1, ms, 0}, {"", "", 3}, {"", "now", 2},
		{at.Add(time.Microsecond).Format(time.RFC3339Nano), ms + 2, 1},
		{ms, at.Add(time.Microsecond).Format(time.RFC3339Nano), 1},
	} {
		var count struct{ Count int }
		f.ok(with("/logs/count", "from", fmt.Sprint(tt.from), "to", fmt.Sprint(tt.to)), &count)
		var page logsPage
		f.ok(with("/logs", "from", fmt.Sprint(tt.from), "to", fmt.Sprint(tt.to)), &page)
		if count.Count != tt.want || len(page.Logs) != tt.want {
			t.Errorf("from %v to %v: got count %d, %d rows, want %d", tt.from, tt.to, count.Count, len(page.Logs), tt.want)
		}
	}
}

func TestAPageOfLargeRecordsEndsEarly(t *testing.T) {
	f := newFixture(t, nil)
	at := time.Now()
	partition(t, f.db, at)
	f.exec(`INSERT INTO logs SELECT ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, $1,
		jsonb_build_object('x', repeat('x', 1500000)) FROM generate_series(1, 7) n`, at.Truncate(time.Millisecond))
	f.exec(`UPDATE logs SET id = (lpad(to_hex($1::bigint), 12, '0') || substr(replace(id::text, '-', ''), 13))::uuid`, at.UnixMilli())
	seen := make(map[string]bool)
	pages := 0
	for cursor := ""; ; pages++ {
		var page logsPage
		r := f.ok(with("/logs", "cursor", cursor), &page)
		if len(r.body) > pageBytes+2_000_000 || len(page.Logs) == 0 {
			t.Errorf("a page of %d rows has %d bytes", len(page.Logs), len(r.body))
		}
		for _, id := range page.ids() {
			seen[id] = true
		}
		if page.Next == nil {
			break
		}
		cursor = *page.Next
	}
	if len(seen) != 7 || pages != 2 {
		t.Errorf("got %d rows on %d pages, want 7 on 3", len(seen), pages+1)
	}
}

func TestOnlyThePartitionsOfTheWindowAreRead(t *testing.T) {
	url := testenv.Schema(t)
	db := testenv.Connect(t, url)
	day := time.Now().UTC().Truncate(24 * time.Hour).Add(-72 * time.Hour)
	var names []string
	for i := range 6 {
		names = append(names, partition(t, db, day.Add(time.Duration(i-1)*24*time.Hour)))
	}
	touched := func(st *statement) string {
		t.Helper()
		plan, out := explain(t, db, st), ""
		for i, name := range names {
			if strings.Contains(plan, name) {
				out += fmt.Sprint(i)
			}
		}
		return out
	}
	spansOf := func(q *search) spans {
		t.Helper()
		var found spans
		err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) (err error) {
			found, err = arrivedSpans(t.Context(), tx, q)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	arrivalOf := func(q *search) *search {
		other := *q
		other.clock = byArrival
		return &other
	}
	noon := func(i int) time.Time { return day.Add(time.Duration(i-1)*24*time.Hour + 12*time.Hour) }
	last := idAt(noon(3), 1)
	end := after(last)
	filter, err := language.Parse("a:1")
	if err != nil {
		t.Fatal(err)
	}
	window := search{from: noon(1).UnixMilli(), to: noon(4).UnixMilli(), filter: filter, limit: 10}
	descending, ascending, chart := window, window, window
	chart.interval, chart.groupBy = time.Hour.Milliseconds(), []string{"level"}
	chart.edges, _ = bucketEdges(window.from, window.to, chart.interval, time.UTC, maxBuckets)
	descending.after, ascending.after = &end, &end
	ascending.ascending = true
	for _, tt := range []struct {
		name string
		st   *statement
		want string
	}{
		{"first page", pageStatement(&window, spansOf(&window), 11, pageBytes), "1234"},
		{"next page, newest first", pageStatement(&descending, spansOf(&descending), 11, pageBytes), "123"},
		{"next page, oldest first", pageStatement(&ascending, spansOf(&ascending), 11, pageBytes), "34"},
		{"count", countStatement(&window, spansOf(&window)), "1234"},
		{"histogram", histogramStatement(&chart, spansOf(&chart)), "1234"},
		{"export", exportStatement(&window, spansOf(&window)), "1234"},
		{"first page by arrival", pageStatement(arrivalOf(&window), nil, 11, pageBytes), "1234"},
		{"next page by arrival, newest first", pageStatement(arrivalOf(&descending), nil, 11, pageBytes), "123"},
		{"next page by arrival, oldest first", pageStatement(arrivalOf(&ascending), nil, 11, pageBytes), "34"},
		{"count by arrival", countStatement(arrivalOf(&window), nil), "1234"},
		{"histogram by arrival", histogramStatement(arrivalOf(&chart), nil), "1234"},
		{"export by arrival", exportStatement(arrivalOf(&window), nil), "1234"},
		{"by id", byIDStatement(last), "3"},
	} {
		if got := touched(tt.st); got != tt.want {
			t.Errorf("%s: touches partitions %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestReadsAreReadOnlyAndTimeOut(t *testing.T) {
	c := Config{Postgres: testenv.Schema(t), Connections: 1, Timeout: 1234 * time.Millisecond}
	s, err := newStore(c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	err = s.read(t.Context(), func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "INSERT INTO late_changes VALUES (now())")
		return err
	})
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != "25006" {
		t.Errorf("a write: got %v, want read_only_sql_transaction", err)
	}
	var timeout string
	err = s.read(t.Context(), func(ctx context.Context, tx pgx.Tx) error {
		return tx.QueryRow(ctx, "SHOW statement_timeout").Scan(&timeout)
	})
	if err != nil || timeout != "1234ms" {
		t.Errorf("statement_timeout: got %q, %v", timeout, err)
	}
}

// lock keeps everybody from logs until unlock.
func (f fixture) lock() (unlock func()) {
	f.t.Helper()
	tx, err := f.db.Begin(context.Background())
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := tx.Exec(context.Background(), "LOCK TABLE logs IN ACCESS EXCLUSIVE MODE"); err != nil {
		f.t.Fatal(err)
	}
	return func() {
		f.t.Helper()
		if err := tx.Rollback(context.Background()); err != nil {
			f.t.Fatal(err)
		}
	}
}

// waiting counts the queries that wait for a lock.
func (f fixture) waiting(look *pgx.Conn) (n int) {
	f.t.Helper()
	const sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
	if err := look.QueryRow(context.Background(), sql).Scan(&n); err != nil {
		f.t.Fatal(err)
	}
	return n
}

func TestASlowQueryIs504(t *testing.T) {
	f := newFixture(t, map[string]string{"QUERY_TIMEOUT": "100ms"})
	unlock := f.lock()
	got := f.get("/logs")
	unlock()
	want := `{"error":"the query took longer than 100ms; narrow the time range"}` + "\n"
	if got.status != 504 || got.body != want {
		t.Errorf("got %d %s, want 504 %s", got.status, got.body, want)
	}
	if got := f.get("/logs"); got.status != 200 {
		t.Errorf("afterwards: got %d %s", got.status, got.body)
	}
}

func TestAQueryEndsWhenItsClientGoes(t *testing.T) {
	f := newFixture(t, nil)
	look := testenv.Connect(t, f.url)
	unlock := f.lock()
	ctx, cancel := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	asking.Go(func() {
		if r, err := f.do(ctx, "GET", "/logs"); err == nil {
			t.Errorf("got %d %s", r.status, r.body)
		}
	})
	testenv.Eventually(t, 20*time.Second, "the query waits", func() bool { return f.waiting(look) == 1 })
	cancel()
	asking.Wait()
	testenv.Eventually(t, 20*time.Second, "the query is gone", func() bool { return f.waiting(look) == 0 })
	unlock()
	testenv.Eventually(t, 20*time.Second, "the request is counted", func() bool {
		return strings.Contains(f.get("/metrics").body, `millrace_query_requests_total{code="499",route="/logs"} 1`)
	})
}

func TestAClientThatClosesItsSideIsNotTold200(t *testing.T) {
	f := newFixture(t, nil)
	unlock := f.lock()
	defer unlock()
	conn, err := net.Dial("tcp", strings.TrimPrefix(f.base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /logs HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if answer, _ := io.ReadAll(conn); len(answer) > 0 {
		t.Errorf("got %s", answer)
	}
}

func TestTooManyRequestsAre429AtOnce(t *testing.T) {
	f := newFixture(t, map[string]string{"QUERY_CONNECTIONS": "1"})
	unlock := f.lock()
	var asking sync.WaitGroup
	for range placesPerConnection {
		asking.Go(func() {
			if r, err := f.do(t.Context(), "GET", "/logs"); err != nil || r.status != 200 {
				t.Errorf("a request with a place: got %d %s, %v", r.status, r.body, err)
			}
		})
	}
	testenv.Eventually(t, 20*time.Second, "all places are taken", func() bool {
		return strings.Contains(f.get("/metrics").body, fmt.Sprintf("millrace_query_inflight_requests %d\n", placesPerConnection))
	})
	if r := f.get("/logs/count"); r.status != 429 || r.header.Get("Retry-After") == "" || !strings.Contains(r.body, "8 requests are under way") {
		t.Errorf("one more: got %d %s", r.status, r.body)
	}
	unlock()
	asking.Wait()
}

func TestWithoutADatabaseTheAnswerIs503UntilItIsBack(t *testing.T) {
	relay, through := newWire(t, string(testenv.Schema(t)))
	relay.cut()
	c := start(t, map[string]string{"POSTGRES_URL": through})
	down := func(when string) {
		t.Helper()
		for _, path := range []string{"/logs", "/logs/count", "/logs/" + idAt(time.Now(), 1).String()} {
			r := c.get(path)
			if r.status != 503 || r.header.Get("Retry-After") == "" || !strings.HasPrefix(r.body, `{"error":"`) {
				t.Errorf("%s, GET %s: got %d %s", when, path, r.status, r.body)
			}
		}
		testenv.Eventually(t, 20*time.Second, when+": not ready", func() bool {
			r := c.get("/ready")
			return r.status == 503 && strings.Contains(r.body, `"database"`)
		})
		if r := c.get("/health"); r.status != 200 {
			t.Errorf("%s: /health is %d", when, r.status)
		}
	}
	up := func(when string) {
		t.Helper()
		testenv.Eventually(t, 20*time.Second, when+": ready", func() bool { return c.get("/ready").status == 200 })
		if r := c.get("/logs"); r.status != 200 {
			t.Errorf("%s: got %d %s", when, r.status, r.body)
		}
	}
	down("at the start")
	relay.mend()
	up("when it came")
	relay.cut()
	down("when it went")
	relay.mend()
	up("when it came back")
	relay.cut() // and back before anybody asks: the pool holds dead connections
	relay.mend()
	if r := c.get("/logs"); r.status != 200 {
		t.Errorf("with dead connections in the pool: got %d %s", r.status, r.body)
	}
}

func TestWithoutASchemaItIsNotReady(t *testing.T) {
	c := start(t, map[string]string{"POSTGRES_URL": string(testenv.Database(t))})
	testenv.Eventually(t, 20*time.Second, "the reason is told", func() bool {
		r := c.get("/ready")
		return r.status == 503 && strings.Contains(r.body, "millrace migrate up")
	})
	if r := c.get("/logs"); r.status != 503 || !strings.Contains(r.body, "millrace migrate up") {
		t.Errorf("got %d %s", r.status, r.body)
	}
}

// closedWindow fills a fixture with rows of two hours ago and returns requests about them.
func closedWindow(t *testing.T, f fixture) (logs, count string, hour time.Time) {
	t.Helper()
	hour = time.Now().Truncate(time.Hour).Add(-2 * time.Hour)
	partition(t, f.db, hour)
	insert(t, f.db, hour.Add(time.Minute), 0, `{"a": 1}`, `{"a": 2}`, `{"a": 1}`)
	window := []string{"from", fmt.Sprint(hour.UnixMilli()), "to", fmt.Sprint(hour.Add(30 * time.Minute).UnixMilli()), "q", "a:1"}
	return with("/logs", window...), with("/logs/count", window...), hour
}

func (c *client) cached(path, want string) reply {
	c.t.Helper()
	r := c.get(path)
	if got := r.header.Get("X-Cache"); r.status != 200 || got != want {
		c.t.Fatalf("GET %s: got %d, X-Cache %q, want 200, %q: %s", path, r.status, got, want, r.body)
	}
	return r
}

func TestAnswersAboutClosedWindowsAreKeptUntilSomethingChangesThere(t *testing.T) {
	f := newFixture(t, map[string]string{"REDIS_URL": string(testenv.Redis(t))})
	logs, count, hour := closedWindow(t, f)
	for _, path := range []string{logs, count, strings.Replace(logs, "/logs?", "/logs?limit=1&", 1)} {
		first := f.cached(path, "miss")
		second := f.cached(path, "hit")
		if first.body != second.body {
			t.Errorf("GET %s: got %s, out of the cache %s", path, first.body, second.body)
		}
	}
	before := f.cached(logs, "hit")

	// A change that nobody noted can't be seen, which shows that the answer is the kept one.
	insert(t, f.db, hour.Add(2*time.Minute), 0, `{"a": 1}`)
	if got := f.cached(logs, "hit"); got.body != before.body {
		t.Errorf("got another answer: %s", got.body)
	}
	// Notes about other hours change nothing.
	f.exec("INSERT INTO late_changes (hour) VALUES ($1), ($2)", hour.Add(-time.Hour), hour.Add(time.Hour))
	f.cached(logs, "hit")
	// A note about this one does, each time.
	for range 2 {
		f.exec("INSERT INTO late_changes (hour, slot) VALUES ($1, 1) ON CONFLICT (hour, slot) DO UPDATE SET changes = late_changes.changes + 1", hour)
		if got := f.cached(logs, "miss"); strings.Count(got.body, `"id"`) != 3 {
			t.Errorf("after the note: got %s", got.body)
		}
		f.cached(count, "miss")
		f.cached(logs, "hit")
	}
	// The same window written differently has the same answer.
	q, err := url.Parse(count)
	if err != nil {
		t.Fatal(err)
	}
	v := q.Query()
	v.Set("from", hour.UTC().Format(time.RFC3339))
	v.Set("q", `  "a":1 `)
	f.cached("/logs/count?"+v.Encode(), "hit")

	metrics := f.get("/metrics").body
	for _, want := range []string{`millrace_query_cache_total{result="miss"} 7`, `millrace_query_requests_total{code="200",route="/logs/count"}`, `millrace_query_seconds_count{route="/logs"}`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %s in the metrics", want)
		}
	}
}

func TestAnOpenWindowIsNeverKept(t *testing.T) {
	f := newFixture(t, map[string]string{"REDIS_URL": string(testenv.Redis(t))})
	partition(t, f.db, time.Now())
	ms := func(d time.Duration) string { return fmt.Sprint(time.Now().Add(d).UnixMilli()) }
	for _, path := range []string{
		"/logs", "/logs/count", with("/logs", "from", ms(-time.Hour)), with("/logs", "to", ms(0)), with("/logs", "to", ms(time.Hour)),
		with("/logs", "to", ms(-50*time.Second)), with("/logs", "to", "now-1h"), with("/logs", "from", "now-3h", "to", ms(-time.Hour)),
	} {
		for range 2 {
			f.cached(path, "bypass")
		}
	}
	f.cached(with("/logs", "to", ms(-65*time.Second)), "miss")
}

func TestTwoDatabasesShareNoAnswers(t *testing.T) {
	redis := map[string]string{"REDIS_URL": string(testenv.Redis(t))}
	a, b := newFixture(t, redis), newFixture(t, redis)
	_, count, hour := closedWindow(t, a)
	partition(t, b.db, hour)
	if a, b := a.cached(count, "miss").body, b.cached(count, "miss").body; a == b {
		t.Errorf("the empty database answers %s", b)
	}
}

func TestARedisThatDiesCostsNoAnswer(t *testing.T) {
	relay, through := newWire(t, string(testenv.Redis(t)))
	f := newFixture(t, map[string]string{"REDIS_URL": through})
	logs, _, _ := closedWindow(t, f)
	want := f.cached(logs, "miss")
	f.cached(logs, "hit")
	relay.cut()
	for range 3 {
		if got := f.cached(logs, "bypass"); got.body != want.body {
			t.Errorf("got %s, want %s", got.body, want.body)
		}
	}
	relay.mend()
	testenv.Eventually(t, 20*time.Second, "the cache is used again", func() bool { return f.get(logs).header.Get("X-Cache") == "hit" })
}

func TestARedisThatHangsCostsLittleTime(t *testing.T) {
	relay, through := newWire(t, string(testenv.Redis(t)))
	f := newFixture(t, map[string]string{"REDIS_URL": through})
	logs, _, _ := closedWindow(t, f)
	f.cached(logs, "miss")
	relay.hang()
	began := time.Now()
	f.cached(logs, "bypass")
	if took := time.Since(began); took > testenv.Patience { // cacheTimeout, on a machine that does nothing else
		t.Errorf("took %v", took)
	}
}

func TestWithoutRedisAtTheStartItRuns(t *testing.T) {
	f := newFixture(t, map[string]string{"REDIS_URL": "redis://127.0.0.1:1/0"})
	logs, _, _ := closedWindow(t, f)
	f.cached(logs, "bypass")
	testenv.Eventually(t, 20*time.Second, "ready", func() bool { return f.get("/ready").status == 200 })
}

func TestAnAnswerIsKeptForTheTTL(t *testing.T) {
	f := newFixture(t, map[string]string{"REDIS_URL": string(testenv.Redis(t)), "CACHE_TTL": "1s"})
	logs, _, _ := closedWindow(t, f)
	f.cached(logs, "miss")
	testenv.Eventually(t, 20*time.Second, "the answer is gone", func() bool { return f.get(logs).header.Get("X-Cache") == "miss" })
}

func TestManyWhoAskTheSameCostOneQuery(t *testing.T) {
	f := newFixture(t, map[string]string{"REDIS_URL": string(testenv.Redis(t))})
	logs, _, _ := closedWindow(t, f)
	look := testenv.Connect(t, f.url)
	unlock := f.lock()
	gone, leave := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	asking.Go(func() {
		if r, err := f.do(gone, "GET", logs); err == nil {
			t.Errorf("the first got %d %s", r.status, r.body)
		}
	})
	testenv.Eventually(t, 20*time.Second, "the query waits", func() bool { return f.waiting(look) == 1 })
	const others = 5
	bodies := make(chan string, others)
	for range others {
		asking.Go(func() {
			r, err := f.do(t.Context(), "GET", logs)
			if err != nil || r.status != 200 {
				t.Errorf("got %d %s, %v", r.status, r.body, err)
			}
			bodies <- r.body
		})
	}
	testenv.Eventually(t, 20*time.Second, "the others are there", func() bool {
		return strings.Contains(f.get("/metrics").body, fmt.Sprintf("millrace_query_inflight_requests %d\n", others+1))
	})
	leave() // the one that began the query
	if n := f.waiting(look); n != 1 {
		t.Errorf("%d queries wait, want 1", n)
	}
	unlock()
	asking.Wait()
	first := <-bodies
	for range others - 1 {
		if body := <-bodies; body != first || !strings.Contains(body, `"id"`) {
			t.Errorf("got %s and %s", first, body)
		}
	}
}

func TestHostileRequestsAreRefused(t *testing.T) {
	f := newFixture(t, nil)
	for _, tt := range badParameters {
		if strings.Contains(tt.query, "2026-03-04T13") {
			continue // is about the tests' noon
		}
		if len(tt.query) > service.MaxHeaderBytes {
			continue // is not read whole: TestQueriesReadNoBodiesAndBoundHeaders
		}
		r := f.get("/logs?" + tt.query)
		var e struct{ Error string }
		if err := json.Unmarshal([]byte(r.body), &e); r.status != 400 || err != nil || e.Error == "" {
			t.Errorf("GET /logs?%.80s: got %d %s, want 400 and an error", tt.query, r.status, r.body)
		}
	}
	for _, path := range []string{"/x", "/logs/", "//logs", "/logs//count", "/logs/../logs", "/logs/x/y", "/LOGS", "/index.html"} {
		if r := f.get(path); r.status != 404 || !strings.HasPrefix(r.body, `{"error":"no such path`) {
			t.Errorf("GET %s: got %d %s, want 404", path, r.status, r.body)
		}
	}
	for _, path := range []string{"/logs", "/logs/count", "/logs/" + idAt(noon, 1).String(), "/health", "/ready", "/metrics"} {
		for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"} {
			r, err := f.do(t.Context(), method, path)
			allow := "GET, HEAD"
			if path == "/logs" || path == "/logs/count" {
				if allow += ", POST"; method == "POST" {
					continue
				}
			}
			if err != nil || r.status != 405 || r.header.Get("Allow") != allow || !strings.HasPrefix(r.body, `{"error":"`) {
				t.Errorf("%s %s: got %d, Allow %q, %s, %v, want 405", method, path, r.status, r.header.Get("Allow"), r.body, err)
			}
		}
	}
	if metrics := f.get("/metrics").body; strings.Contains(metrics, "index.html") || !strings.Contains(metrics, `code="404",route="other"`) {
		t.Error("a raw path is a label, or route=\"other\" is missing")
	}
}

func TestKeysAreAskedForWithTheReadScope(t *testing.T) {
	var lines, secrets []string
	for _, scope := range []string{keys.Read, keys.Write} {
		k, secret, err := keys.New(scope, []string{scope})
		if err != nil {
			t.Fatal(err)
		}
		lines, secrets = append(lines, k.String()), append(secrets, secret)
	}
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, map[string]string{"KEYS_FILE": file})
	for _, tt := range []struct {
		key, path string
		want      int
	}{
		{secrets[0], "/logs", 200}, {secrets[0], "/logs/count", 200}, {secrets[0], "/", 200}, {secrets[0], "/x", 404},
		{secrets[1], "/logs", 403}, {secrets[1], "/", 200},
		{"", "/logs", 401}, {"", "/logs/" + idAt(noon, 1).String(), 401}, {"", "/", 200}, {"", "/x", 401}, {"", "//logs", 401}, {"", "/assets/../logs", 404}, {"", "/assets/%2e%2e/logs", 404}, {"", "/assets/%2e%2e%2flogs", 404},
		{secrets[0] + "x", "/logs", 401},
		{"", "/health", 200}, {"", "/metrics", 200},
	} {
		f.key = tt.key
		r := f.get(tt.path)
		if r.status != tt.want || (r.header.Get("WWW-Authenticate") == "Bearer") != (tt.want == 401) {
			t.Errorf("key %.4q, GET %s: got %d, WWW-Authenticate %q, want %d", tt.key, tt.path, r.status, r.header.Get("WWW-Authenticate"), tt.want)
		}
	}
	f.key = secrets[0]
	if sum := sha256.Sum256([]byte(secrets[0])); strings.Contains(f.get("/metrics").body, fmt.Sprintf("%x", sum)) {
		t.Error("a key's hash is in the metrics")
	}
}

func TestRequestsUnderWayAreAnsweredBeforeTheStop(t *testing.T) {
	url := testenv.Schema(t)
	db := testenv.Connect(t, url)
	f := fixture{&client{t: t}, db, url}
	var c Config
	if err := config.LoadFrom(map[string]string{"POSTGRES_URL": string(url), "QUERY_ADDR": "127.0.0.1:0", "SHUTDOWN_DELAY": "0s", "LOG_LEVEL": "error"}, &c); err != nil {
		t.Fatal(err)
	}
	f.http = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	running := make(chan string, 1)
	c.OnListen = func(a net.Addr) { running <- "http://" + a.String() }
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, c) }()
	f.base = <-running
	look := testenv.Connect(t, url)
	unlock := f.lock()
	var asking sync.WaitGroup
	asking.Go(func() {
		if r, err := f.do(context.Background(), "GET", "/logs"); err != nil || r.status != 200 {
			t.Errorf("got %d %s, %v", r.status, r.body, err)
		}
	})
	testenv.Eventually(t, 20*time.Second, "the query waits", func() bool { return f.waiting(look) == 1 })
	stop()
	testenv.Eventually(t, 20*time.Second, "no new connection is taken", func() bool {
		_, err := f.do(context.Background(), "GET", "/health")
		return err != nil
	})
	unlock()
	asking.Wait()
	if err := <-ended; err != nil {
		t.Errorf("Run returned %v", err)
	}
}

// TestLoadBalancersSeeThatItStopsBeforeItDoes holds that /ready fails for SHUTDOWN_DELAY while requests are still answered, and that
// QUERY_METRICS_ADDR answers to the end.
func TestLoadBalancersSeeThatItStopsBeforeItDoes(t *testing.T) {
	url := testenv.Schema(t)
	plain := testenv.FreeAddress(t)
	var c Config
	if err := config.LoadFrom(map[string]string{"POSTGRES_URL": string(url), "QUERY_ADDR": "127.0.0.1:0", "QUERY_METRICS_ADDR": plain, "SHUTDOWN_DELAY": "3s", "LOG_LEVEL": "error"}, &c); err != nil {
		t.Fatal(err)
	}
	f := &client{t: t, http: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
	running := make(chan string, 1)
	c.OnListen = func(a net.Addr) { running <- "http://" + a.String() }
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, c) }()
	f.base = <-running
	metrics := &client{t: t, base: "http://" + plain, http: f.http}
	testenv.Eventually(t, 20*time.Second, "it is ready, at both addresses", func() bool { return f.get("/ready").status == 200 && metrics.get("/ready").status == 200 })
	if r := metrics.get("/metrics"); r.status != 200 || !strings.Contains(r.body, "millrace_ready 1") {
		t.Errorf("GET /metrics at QUERY_METRICS_ADDR: got %d %.200s", r.status, r.body)
	}
	if r := metrics.get("/logs"); r.status != 404 {
		t.Errorf("GET /logs at QUERY_METRICS_ADDR: got %d, want 404: records are not for those who need no certificate", r.status)
	}

	stop()
	testenv.Eventually(t, 20*time.Second, "/ready fails", func() bool { return metrics.get("/ready").status == 503 })
	if ready, logs := f.get("/ready"), f.get("/logs"); ready.status != 503 || logs.status != 200 {
		t.Errorf("while load balancers notice: /ready %d, /logs %d, want 503 and 200", ready.status, logs.status)
	}
	if err := <-ended; err != nil {
		t.Errorf("Run returned %v", err)
	}
	if _, err := f.do(t.Context(), "GET", "/health"); err == nil {
		t.Error("it answers after its end")
	}
}
