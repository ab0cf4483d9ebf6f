package query

import (
	"encoding/json"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
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
