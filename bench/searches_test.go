package bench

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace/internal/testenv"
)

var (
	searchesCount = flag.Int("searches", 0, "how many searches with conditions TestSearches has evaluated each minute; 0: it is skipped")
	searchesTurn  = flag.Duration("searches-turn", time.Minute, "how long TestSearches measures each case")
)

// searchesRate is how many records TestSearches publishes a second.
const searchesRate = 20_000

// TestSearches stores 20,000 records a second: with no query service, with one that evaluates searches every minute, and with one that counts the records of
// each search as well. It prints the processor time that each took, and how late the evaluations were. It is no test of speed: another machine has
// other figures.
func TestSearches(t *testing.T) {
	if *searchesCount == 0 {
		t.Skip("make searches measures them")
	}
	for _, c := range []struct {
		name      string
		evaluates bool
		counts    bool
	}{{"no query service", false, false}, {"evaluated", true, false}, {"evaluated and counted", true, true}} {
		t.Run(c.name, func(t *testing.T) {
			db, q := testenv.Schema(t), newQueues(t)
			worker := startWorker(t, db, q)
			query := worker
			if c.evaluates {
				file := filepath.Join(t.TempDir(), "searches.yaml")
				if err := os.WriteFile(file, []byte(manySearches(*searchesCount, c.counts)), 0o600); err != nil {
					t.Fatal(err)
				}
				query = startServer(t, "query", "", "QUERY_ADDR=127.0.0.1:0", "REDIS_URL=", "POSTGRES_URL="+string(db), "SEARCHES_FILE="+file)
			}
			all := bodies(64, 500)
			publish := func(d time.Duration) (behind time.Duration) {
				begin := time.Now()
				for n := 1; time.Since(begin) < d; n++ { // half a second's records at once
					q.fill(t, searchesRate/2, all, 500)
					next := begin.Add(time.Duration(n) * 500 * time.Millisecond)
					behind = max(behind, -time.Until(next))
					time.Sleep(time.Until(next))
				}
				return behind
			}
			publish(*searchesTurn / 2) // so that windows have something in them
			before, rows, began := processorTimes(t, query, worker), worker.stored(t), time.Now()
			metricsBefore := query.metrics(t)
			behind := publish(*searchesTurn)
			after, seconds := processorTimes(t, query, worker), time.Since(began).Seconds()
			metrics, stored := query.metrics(t), worker.stored(t)-rows
			line := fmt.Sprintf("%.0f records/s stored (published at most %v late); processor time of a second: PostgreSQL %.3f s, worker %.3f s", stored/seconds, behind.Round(time.Millisecond),
				(after["PostgreSQL"]-before["PostgreSQL"])/seconds, (after["worker"]-before["worker"])/seconds)
			if c.evaluates {
				since := func(name string) float64 { return metrics[name] - metricsBefore[name] }
				n := since("millrace_search_lag_seconds_count")
				line += fmt.Sprintf(", query %.3f s; %.0f searches share their reading, %.0f evaluations (%.0f failed), which took %.1f ms and ended %.0f ms after they were due, on average",
					(after["api"]-before["api"])/seconds, metrics["millrace_searches_shared"], n, since(`millrace_search_evaluations_total{result="failed"}`),
					since("millrace_search_evaluation_seconds_sum")/n*1000, since("millrace_search_lag_seconds_sum")/n*1000)
				for _, bound := range []string{"0.25", "0.5", "1", "2.5", "5", "10"} {
					if in := since(`millrace_search_lag_seconds_bucket{le="` + bound + `"}`); in >= 0.99*n {
						line += ", 99 of 100 within " + bound + " s"
						break
					}
				}
			}
			if c.counts {
				total := 0.0
				for name, value := range metrics {
					if strings.HasPrefix(name, "millrace_search_matches_total") {
						total += value - metricsBefore[name]
					}
				}
				line += fmt.Sprintf("; %.0f matches/s counted", total/seconds)
			}
			t.Log(line)
		})
	}
}

// manySearches returns a file of searches as people have them: a value of one service, a share by groups, a percentile by groups, a word. None of them fires.
func manySearches(n int, counts bool) string {
	var b strings.Builder
	b.WriteString("searches:\n")
	for i := range n {
		s := []string{
			fmt.Sprintf(`q: "level:error service:service-%d", when: count > 100000000 in 5m`, i),
			`q: "level:(error, fatal)", when: count > 100000000 in 1m, by: service`,
			fmt.Sprintf(`q: "service:service-%d", when: p95(duration_ms) > 100000000 in 1m, by: [service, level]`, i),
			fmt.Sprintf(`q: "\"needle-%d\"", when: count > 0 in 1m`, i),
		}[i%4]
		fmt.Fprintf(&b, "  - {name: s%d, count: %v, %s}\n", i, counts, s)
	}
	return b.String()
}
