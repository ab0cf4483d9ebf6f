package bench

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"millrace/internal/config"
	"millrace/internal/testenv"
)

var answersRows = flag.Int("answers", 0, "how many rows TestAnswers asks its questions of; 0: it is skipped")

// questions are what TestAnswers asks. TRACE stands for the trace of a row of the oldest hour.
var questions = []struct{ what, q string }{
	{"a word in one row of a thousand", "reset"},
	{"a word in one of a hundred thousand", "zebra"},
	{"a word in nearly all", "request"},
	{"a phrase in one of a thousand", `"connection reset by peer"`},
	{"a phrase in nearly all", `"warm cache"`},
	{"a phrase with a wildcard", "conn*peer"},
	{"a wildcard in a field", "http.path:/api/v1/orders/99*"},
	{"a regular expression in a field", "message:/reset by (peer|client)$/"},
	{"a word in a field", "message~reset"},
	{"a value of a field, a fifth", "level:error"},
	{"all but a value", "level!=info"},
	{"values of two fields", "service:(cart, auth) level:error"},
	{"a number at least so large, half", "http.status>=400"},
	{"a range of numbers, a twelfth", "duration_ms:[100 TO 110]"},
	{"the largest numbers, one in five hundred", "duration_ms>121.8"},
	{"one trace, by its field", "trace_id:TRACE"},
	{"one trace, as a word", "TRACE"},
	{"a network, one in 256", "client.ip:10.7.0.0/16"},
	{"a mix with a rare phrase", `-level:info "connection reset" http.status:500`},
	{"a mix of either", "zebra OR level:error duration_ms>121"},
}

// TestAnswers fills 24 hours, half of the rows in the last one, and asks twenty questions: with a budget of a second, going on until all is
// searched, and without a budget. It prints a table. It is no test of speed: another machine has other figures.
func TestAnswers(t *testing.T) {
	if *answersRows == 0 {
		t.Skip("make answers asks them")
	}
	db := testenv.Schema(t)
	now := time.Now().UTC().Truncate(time.Millisecond)
	trace := fillDay(t, db, now, *answersRows)
	s := startServer(t, "query", "", "QUERY_ADDR=127.0.0.1:0", "REDIS_URL=", "QUERY_TIMEOUT=10m", "POSTGRES_URL="+string(db))
	ask := func(path string, pairs ...string) (a answer, took time.Duration) {
		t.Helper()
		v := url.Values{"from": {now.Add(-24 * time.Hour).Format(time.RFC3339Nano)}, "to": {now.Format(time.RFC3339Nano)}}
		for i := 0; i < len(pairs); i += 2 {
			if v.Set(pairs[i], pairs[i+1]); pairs[i+1] == "" {
				v.Del(pairs[i])
			}
		}
		began := time.Now()
		resp, err := http.Get("http://" + s.addr + path + "?" + v.Encode())
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(&a); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s?%s: %s, %v", path, v.Encode(), resp.Status, err)
		}
		return a, time.Since(began)
	}
	ask("/logs/count", "q", "level:error") // fills PostgreSQL's cache as far as it goes

	fmt.Printf("\n%d rows in 24 hours, half in the last.\n\n", *answersRows)
	fmt.Print("| question | first 100, budget 1 s | first count, budget 1 s | count complete | 100 without budget | count without budget |\n| --- | --- | --- | --- | --- | --- |\n")
	var longest time.Duration
	for _, question := range questions {
		q := strings.ReplaceAll(question.q, "TRACE", trace)
		page, pageTook := ask("/logs", "q", q, "budget", "1s")
		first, firstTook := ask("/logs/count", "q", q, "budget", "1s")
		total, took, part := first.Count, firstTook, first
		for !part.Complete {
			var more time.Duration
			part, more = ask("/logs/count", "q", q, "budget", "3s", "to", part.SearchedTo)
			total, took = total+part.Count, took+more
		}
		whole, wholeTook := ask("/logs/count", "q", q)
		_, wholePageTook := ask("/logs", "q", q)
		if total != whole.Count {
			t.Errorf("%s: the counts within budgets make %d, want %d", q, total, whole.Count)
		}
		longest = max(longest, pageTook, firstTook)
		searched := func(a answer) string {
			if a.Complete || len(a.Logs) == 100 {
				return "all"
			}
			at, err := time.Parse(time.RFC3339, a.SearchedTo)
			if err != nil {
				t.Fatal(err)
			}
			return now.Sub(at).Round(time.Second).String()
		}
		fmt.Printf("| %s: `%s` | %.0f ms, %d rows, %s | %.0f ms, %d, %s | %.1f s, %d | %.2f s | %.2f s |\n", question.what, strings.ReplaceAll(question.q, "|", `\|`),
			ms(pageTook), len(page.Logs), searched(page), ms(firstTook), first.Count, searched(first), took.Seconds(), total, wholePageTook.Seconds(), wholeTook.Seconds())
	}
	fmt.Printf("\nThe longest first answer took %.2f s.\n", longest.Seconds())
}

// answer is what TestAnswers reads of an answer.
type answer struct {
	Logs       []json.RawMessage
	Count      int64
	SearchedTo string `json:"searched_to"`
	Complete   bool
}

// fillDay stores rows in the 24 hours before now, half of them in the last one, and returns a trace of the oldest hour.
func fillDay(t testing.TB, db config.PostgresURL, now time.Time, rows int) (trace string) {
	t.Helper()
	conn := testenv.Connect(t, db)
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := conn.Exec(context.Background(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	for day := now.Add(-24 * time.Hour).Truncate(24 * time.Hour); day.Before(now); day = day.Add(24 * time.Hour) {
		exec("SELECT millrace_add_partition('logs', $1, $2, $3)", "logs_"+day.Format("20060102"), day.Format(time.RFC3339), day.Add(24*time.Hour).Format(time.RFC3339))
	}
	exec(insertDay, now.Add(-24*time.Hour), now.Add(-time.Hour), 0, rows/2)
	exec(insertDay, now.Add(-time.Hour), now, rows/2, rows-rows/2)
	exec("VACUUM ANALYZE logs")
	if err := conn.QueryRow(context.Background(), "SELECT md5($1::text)", fmt.Sprint(cmp.Or(rows/100, 1))).Scan(&trace); err != nil {
		t.Fatal(err)
	}
	return trace
}

// insertDay stores $4 rows from $1 to $2, whose numbers begin with $3.
const insertDay = `INSERT INTO logs (id, inserted_at, time, data) SELECT
			(lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(md5(n::text), 1, 3) || '8' || substr(md5(n::text), 4, 15))::uuid,
			at, at - n % 3000 * interval '1 ms', jsonb_build_object('level', (ARRAY['info','info','info','warn','error'])[1 + n % 5], 'service', (ARRAY['checkout','cart','search','auth'])[1 + n % 4],
			'trace_id', md5(n::text), 'http', jsonb_build_object('method', 'GET', 'path', '/api/v1/orders/' || n, 'status', 200 + n % 4 * 100), 'duration_ms', n % 977 * 0.125,
			'client', jsonb_build_object('ip', '10.' || n % 256 || '.' || n / 256 % 256 || '.1'),
			'message', CASE WHEN n % 100000 = 77 THEN 'zebra in the pool' WHEN n % 1000 = 7 THEN 'Connection reset by peer' ELSE 'request served from the upstream pool after one retry with a warm cache' END)
		FROM (SELECT n, date_trunc('milliseconds', $1::timestamptz + (n - $3::bigint) * ($2::timestamptz - $1) / $4::bigint) AS at FROM generate_series($3::bigint, $3::bigint + $4::bigint - 1) AS n) AS rows`
