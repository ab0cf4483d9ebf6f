package query

import (
	"context"
	"encoding/json"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace/internal/pg"
	"millrace/internal/testenv"
)

// TestWhatABudgetLeavesOutIsFoundByGoingOn searches four thousand rows again and again within the least budget. However far each answer
// comes, together they must say what one answer without a budget says.
func TestWhatABudgetLeavesOutIsFoundByGoingOn(t *testing.T) {
	f := newFixture(t, nil)
	now := time.Now().UTC().Truncate(time.Hour)
	f.exec("SELECT millrace_add_partition('logs', $1, $2, $3)", "logs_"+now.Format("20060102"),
		now.Truncate(24*time.Hour).Format(time.RFC3339), now.Truncate(24*time.Hour).Add(24*time.Hour).Format(time.RFC3339))
	f.exec(`INSERT INTO logs (id, inserted_at, time, data) SELECT gen_random_uuid(), at, at - n % 3 * interval '7 s', jsonb_build_object('n', n, 'message', repeat(md5(n::text), 20))
		FROM (SELECT n, $1::timestamptz + n * interval '900 ms' AS at FROM generate_series(1, 4000) n) AS rows`, now)
	from, to := now.Add(-time.Minute).Format(time.RFC3339), now.Add(time.Hour).Format(time.RFC3339)
	const q = "message:/(a|b)c[0-9]+d/ OR n:17"
	const budget = "50ms"
	type partial struct {
		logsPage
		Count      int       `json:"count"`
		SearchedTo time.Time `json:"searched_to"`
		Complete   bool      `json:"complete"`
	}

	for _, order := range []string{"desc", "asc"} {
		var want logsPage
		f.ok(with("/logs", "q", q, "from", from, "to", to, "order", order, "limit", "1000"), &want)
		if want.Next != nil || len(want.Logs) < 5 {
			t.Fatalf("%d rows match", len(want.Logs))
		}
		var got []string
		answers, cursor := 0, ""
		for ; ; answers++ {
			var p partial
			f.ok(with("/logs", "q", q, "from", from, "to", to, "order", order, "limit", "7", "budget", budget, "cursor", cursor), &p)
			got = append(got, p.ids()...)
			if p.Next == nil {
				if !p.Complete {
					t.Fatalf("%s: nothing follows, and the answer is not complete", order)
				}
				break
			}
			cursor = *p.Next
		}
		t.Logf("%s: %d answers", order, answers)
		if diff := cmp.Diff(want.ids(), got); diff != "" {
			t.Errorf("%s (-without a budget +within one):\n%s", order, diff)
		}
	}

	var want partial
	f.ok(with("/logs/count", "q", q, "from", from, "to", to), &want)
	got := 0
	for end := to; ; {
		var p partial
		f.ok(with("/logs/count", "q", q, "from", from, "to", end, "budget", budget), &p)
		got += p.Count
		if p.Complete {
			break
		}
		end = strconv.FormatInt(p.SearchedTo.UnixMilli(), 10)
	}
	if got != want.Count {
		t.Errorf("the counts within a budget make %d, want %d", got, want.Count)
	}

	var whole, part struct {
		Buckets []struct {
			Start  string
			Count  *int
			Groups map[string]int
		}
		SearchedTo time.Time `json:"searched_to"`
		Complete   *bool     `json:"complete"`
	}
	f.ok(with("/logs/histogram", "q", q, "from", from, "to", to, "interval", "1m"), &whole)
	f.ok(with("/logs/histogram", "q", q, "from", from, "to", to, "interval", "1m", "budget", budget), &part)
	reached := 0
	for i, b := range part.Buckets {
		start, err := time.Parse(time.RFC3339, b.Start)
		if err != nil {
			t.Fatal(err)
		}
		if (b.Count == nil) != start.Before(part.SearchedTo.Truncate(time.Minute)) {
			t.Errorf("the bucket of %s is counted: %t, and searched_to is %s", b.Start, b.Count != nil, part.SearchedTo)
		}
		if b.Count == nil {
			continue
		}
		if start.Before(part.SearchedTo) { // its newest part is counted
			if *b.Count > *whole.Buckets[i].Count {
				t.Errorf("a part of the bucket of %s has %d, all of it %d", b.Start, *b.Count, *whole.Buckets[i].Count)
			}
			continue
		}
		reached++
		a, _ := json.Marshal(whole.Buckets[i])
		if b, _ := json.Marshal(b); string(a) != string(b) {
			t.Errorf("within a budget %s, without %s", b, a)
		}
	}
	if *part.Complete != (reached == len(whole.Buckets)) || whole.Complete != nil {
		t.Errorf("%d of %d buckets are counted, and complete is %t", reached, len(whole.Buckets), *part.Complete)
	}
	t.Logf("%d of %d buckets", reached, len(whole.Buckets))
}

// TestWhatTheCacheHasOfAWindowIsCountedOnce has the newest bucket take longer than the budget, while older ones are in the cache. Who
// goes on where the answer ended must not count those twice.
func TestWhatTheCacheHasOfAWindowIsCountedOnce(t *testing.T) {
	f := newFixture(t, map[string]string{"REDIS_URL": string(testenv.Redis(t))})
	_, _, hour := closedWindow(t, f)
	insert(t, f.db, time.Now(), 100, `{"a": 1}`)
	type answer struct {
		Buckets []struct {
			Start time.Time
			Count *int
		}
		SearchedTo time.Time `json:"searched_to"`
		Complete   bool
	}
	ask := func(pairs ...string) (a answer, count int) {
		t.Helper()
		f.ok(with("/logs/histogram", append([]string{"from", hour.Format(time.RFC3339), "interval", "10m"}, pairs...)...), &a)
		for _, b := range a.Buckets {
			if b.Count != nil {
				count += *b.Count
			}
		}
		return a, count
	}
	_, want := ask() // and the cache has what is closed
	unlock := f.lock()
	first, count := ask("budget", "300ms")
	unlock()
	if first.Complete {
		t.Fatal("it is complete, though no statement could come to its end")
	}
	for _, b := range first.Buckets {
		if isReached := b.Start.Add(10 * time.Minute).After(first.SearchedTo); !isReached && b.Count != nil {
			t.Errorf("the bucket of %s has a count, and searched_to is %s", b.Start, first.SearchedTo)
		}
	}
	second, rest := ask("to", strconv.FormatInt(first.SearchedTo.UnixMilli(), 10), "budget", "10s")
	if !second.Complete || count+rest != want {
		t.Errorf("got %d and then %d (complete: %t), want %d together", count, rest, second.Complete, want)
	}
}

// TestANumberBeforeAnErrorIsNone: the time of a statement may be over when PostgreSQL has sent its only row. Then the slice is counted again.
func TestANumberBeforeAnErrorIsNone(t *testing.T) {
	tx, err := testenv.Connect(t, testenv.Database(t)).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	st := new(statement)
	st.sql.WriteString("SELECT 5::bigint UNION ALL SELECT 1 / (0 * random()::int)")
	if n, err := countOf(t.Context(), tx, st); n != 0 || pg.CodeOf(err) != "22012" {
		t.Errorf("got %d, %v, want 0 and the division by zero", n, err)
	}
}

// TestStatsWithinABudgetAreThoseOfTheirPartOfTheWindow compares what a budget left time for with the same part of the window, asked for
// without one.
func TestStatsWithinABudgetAreThoseOfTheirPartOfTheWindow(t *testing.T) {
	f := newFixture(t, map[string]string{"QUERY_TIMEOUT": "5m"})
	now := time.Now().UTC().Truncate(time.Hour)
	partition(t, f.db, now)
	f.exec(`INSERT INTO logs (id, inserted_at, time, data) SELECT gen_random_uuid(), at, at, jsonb_build_object('n', n, 'kind', n % 7, 'message', repeat(md5(n::text), 50))
		FROM (SELECT n, $1::timestamptz + n * interval '100 ms' AS at FROM generate_series(1, 30000) n) AS rows`, now)
	to := now.Add(time.Hour).Format(time.RFC3339)
	for _, every := range []string{"", "1m"} {
		for _, budget := range []string{"50ms", "200ms", "1m"} {
			ask := []string{"q", "message:/(a|b)c[0-9]+d/", "to", to, "by", "kind", "calc", "count,p50(n),uniq(n),last(n)", "every", every}
			var got, want statsTable
			f.ok(with("/logs/stats", append(ask, "from", now.Format(time.RFC3339), "budget", budget)...), &got)
			reached, err := time.Parse(time.RFC3339, got.SearchedTo)
			if err != nil {
				t.Fatal(err)
			}
			if got.Complete != reached.Equal(now) || budget == "1m" && !got.Complete {
				t.Errorf("every %q, budget %s: complete is %t, searched to %s", every, budget, got.Complete, got.SearchedTo)
			}
			f.ok(with("/logs/stats", append(ask, "from", got.SearchedTo)...), &want)
			a, _ := json.Marshal(want.Rows) // what was read has a JSON form
			b, _ := json.Marshal(got.Rows)
			if string(a) != string(b) {
				t.Errorf("every %q, budget %s, from %s:\ngot  %s\nwant %s", every, budget, got.SearchedTo, b, a)
			}
			t.Logf("every %q, budget %s: %v of the window", every, budget, now.Add(time.Hour).Sub(reached))
		}
	}
}

// TestNoQueryMakesAStatementOutliveItsBudget asks what takes PostgreSQL minutes, of texts that are made for it.
func TestNoQueryMakesAStatementOutliveItsBudget(t *testing.T) {
	f := newFixture(t, map[string]string{"QUERY_TIMEOUT": "1m"})
	at := time.Now().Add(-time.Minute)
	partition(t, f.db, at)
	insert(t, f.db, at, 0, slices.Repeat([]string{
		`{"a": "` + strings.Repeat("ab", 100_000) + `"}`, `{"a": "` + strings.Repeat("a", 200_000) + `"}`, `{"a": "` + strings.Repeat("1.", 100_000) + `"}`,
		`{"a": [` + strings.Repeat(`"abc", `, 30_000) + `1]}`, `{"a": "` + strings.Repeat("9", 90) + `"}`,
	}, 60)...)
	const budget = 200 * time.Millisecond
	var longest time.Duration
	var slowest string
	for _, q := range []string{
		`a:*a*b*a*b*a*bc`, `a:*ab*ab*ab*ab*ab*abc`, "ab*ab*ab*ab*ab*ab*abc", `"` + strings.Repeat("a", 255) + `b"`, "a:/((a*)*)*c/", "a:/(a|b|ab)*c$/", "a:/(a{30}){30}b/",
		"a:/[^a-b]+(a+b+)+$/i", "a:/(.*a){20}c/", "a:/(a?){100}a{100}c/", "a~*ab*ab*ab*ab*ab*abc", "a:i(" + strings.Repeat("ab", 120) + ")", "a>1e99 OR a<1", "a:::/0",
		strings.Repeat("x*y*z OR ", 63) + "x", strings.Repeat("a:/(a|b)*c/ OR ", 63) + "x", strings.Repeat("a:*a*b*a*c OR ", 63) + "x", strings.Repeat("a:>=2026-03-04T12:00:00Z OR ", 63) + "x",
		strings.Repeat("a.b.c.d.e.f.g:1 OR ", 63) + "x",
	} {
		for _, path := range []string{"/logs", "/logs/count", "/logs/histogram", "/logs/stats?by=a&calc=uniq(a),p50(a),max(a)", "/logs/patterns?field=a&vs=1d", "/logs/fields", "/logs/fields/a/values"} {
			separator := "?"
			if strings.Contains(path, "?") {
				separator = "&"
			}
			path = path + separator + url.Values{"q": {q}, "budget": {budget.String()}}.Encode()
			began := time.Now()
			r := f.get(path)
			took := time.Since(began)
			if r.status != 200 {
				t.Errorf("%s: got %d: %.200s", path, r.status, r.body)
			}
			if took > longest {
				longest, slowest = took, path
			}
			// What does not end at its timeout takes minutes; the rest may wait for a busy machine.
			if took > 10*time.Second+testenv.Patience {
				t.Errorf("%s: answered after %v", path, took)
			}
		}
	}
	t.Logf("the longest of budget %v took %v: %s", budget, longest, slowest)
	// Nor does one go on that was given up: a statement holds its table until it ends.
	testenv.Eventually(t, 10*time.Second, "no statement runs any more", func() bool {
		var running int
		if err := f.db.QueryRow(t.Context(), "SELECT count(*) FROM pg_locks WHERE relation = 'logs'::regclass AND pid <> pg_backend_pid()").Scan(&running); err != nil {
			t.Fatal(err)
		}
		return running == 0
	})
}
