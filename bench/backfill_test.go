package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"millrace/internal/testenv"
)

// BenchmarkSweepBackfill sends MILLRACE_BENCH_BACKFILL records whose times are spread over the year before, in a minute if the machine can,
// beside 500 live records a second. Meanwhile somebody asks for the latest live records and for the number of the last
// minute's. live-100 and live-count are how long these answers took before and meanwhile. In the end the records of each month are counted by
// their time: none may be missing, and none there twice. year-100 is a page of some old day.
func BenchmarkSweepBackfill(b *testing.B) {
	const batch, senders, days = 1000, 4, 365
	rows := number(b, "MILLRACE_BENCH_BACKFILL", 300_000) / batch * batch
	db := testenv.Schema(b)
	q := newQueues(b)
	api := startServer(b, "api", q.Name, "API_ADDR=127.0.0.1:0")
	worker := startWorker(b, db, q)
	query := startServer(b, "query", "", "QUERY_ADDR=127.0.0.1:0", "QUERY_TIMEOUT=10m", "REDIS_URL=", "POSTGRES_URL="+string(db))
	testenv.Eventually(b, time.Minute, "the API is ready", func() bool {
		resp, err := http.Get("http://" + api.addr + "/ready")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	post := func(body []byte) {
		for {
			resp, err := http.Post("http://"+api.addr+"/log/batch", "application/x-ndjson", bytes.NewReader(body))
			if err != nil {
				b.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body) // the status says all
			_ = resp.Body.Close()
			switch {
			case resp.StatusCode/100 == 2:
				return
			case resp.StatusCode != http.StatusServiceUnavailable:
				b.Errorf("/log/batch: %s", resp.Status)
				return
			}
			time.Sleep(100 * time.Millisecond) // refused, nothing of it is stored
		}
	}
	for b.Loop() {
		done := make(chan struct{})
		var background sync.WaitGroup
		var live atomic.Int64
		background.Go(func() {
			for tick := time.NewTicker(100 * time.Millisecond); ; {
				select {
				case <-done:
					tick.Stop()
					return
				case <-tick.C:
				}
				var body []byte
				for range 50 {
					body = fmt.Appendf(body, `{"time":%q,"kind":"live","message":"request served"}`+"\n", time.Now().UTC().Format(time.RFC3339Nano))
				}
				post(body)
				live.Add(50)
			}
		})
		type asked struct{ latest, count []float64 }
		var before, meanwhile asked
		into := &before
		var mu sync.Mutex
		background.Go(func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(100 * time.Millisecond):
				}
				latest := took(func() { get(b, "http://"+query.addr+"/logs?q=kind:live&from=now-1h") })
				count := took(func() { get(b, "http://"+query.addr+"/logs/count?q=kind:live&from=now-1m") })
				mu.Lock()
				into.latest, into.count = append(into.latest, latest), append(into.count, count)
				mu.Unlock()
			}
		})
		time.Sleep(10 * time.Second)
		mu.Lock()
		into = &meanwhile
		mu.Unlock()

		first := time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, -days)
		step := days * 24 * time.Hour / time.Duration(rows)
		began := time.Now()
		var next atomic.Int64
		var sending sync.WaitGroup
		for range senders {
			sending.Go(func() {
				for {
					at := next.Add(batch) - batch
					if at >= int64(rows) || b.Failed() {
						return
					}
					due := began.Add(time.Minute * time.Duration(at) / time.Duration(rows))
					time.Sleep(time.Until(due))
					var body []byte
					for i := at; i < at+batch; i++ {
						n := i * 7919 % int64(rows) // each batch is from all over the year
						body = fmt.Appendf(body, `{"time":%q,"kind":"backfill","n":%d,"level":"info","service":"checkout","message":"request served from the upstream pool after one retry with a warm cache"}`+"\n",
							first.Add(time.Duration(n)*step).Format(time.RFC3339Nano), n)
					}
					post(body)
				}
			})
		}
		sending.Wait()
		sent := time.Since(began)
		testenv.Eventually(b, 10*time.Minute, "all is stored", func() bool { return worker.stored(b) >= float64(rows)+float64(live.Load()) })
		stored := time.Since(began)
		close(done)
		background.Wait()
		testenv.Eventually(b, time.Minute, "the last live records are stored", func() bool { return worker.stored(b) >= float64(rows)+float64(live.Load()) })

		total := 0
		for from := first; from.Before(first.AddDate(0, 0, days)); from = from.AddDate(0, 1, 0) {
			to := from.AddDate(0, 1, 0)
			want := 0
			for n := range rows {
				if at := first.Add(time.Duration(n) * step); !at.Before(from) && at.Before(to) {
					want++
				}
			}
			got := count(b, query, fmt.Sprintf("q=kind:backfill&from=%d&to=%d", from.UnixMilli(), to.UnixMilli()))
			if got != want {
				b.Errorf("%s to %s: got %d records, want %d", from, to, got, want)
			}
			total += got
		}
		if total != rows {
			b.Errorf("got %d records of the backfill, want %d", total, rows)
		}
		if got := count(b, query, "q=kind:live&from=now-1h"); got != int(live.Load()) {
			b.Errorf("got %d live records, want %d", got, live.Load())
		}
		day := first.AddDate(0, 0, days/2)
		b.ReportMetric(median(5, func() {
			get(b, fmt.Sprintf("http://%s/logs?from=%d&to=%d", query.addr, day.UnixMilli(), day.Add(24*time.Hour).UnixMilli()))
		}), "year-100-ms")
		quantile := func(all []float64, q float64) float64 {
			slices.Sort(all)
			return all[int(q*float64(len(all)-1))]
		}
		for name, a := range map[string]asked{"before": before, "meanwhile": meanwhile} {
			b.ReportMetric(quantile(a.latest, .5), "live-100-"+name+"-p50-ms")
			b.ReportMetric(quantile(a.latest, .99), "live-100-"+name+"-p99-ms")
			b.ReportMetric(quantile(a.count, .5), "live-count-"+name+"-p50-ms")
			b.ReportMetric(quantile(a.count, .99), "live-count-"+name+"-p99-ms")
		}
		b.ReportMetric(sent.Seconds(), "sent-s")
		b.ReportMetric(stored.Seconds(), "stored-s")
		b.ReportMetric(0, "ns/op") // one turn's length says nothing
	}
}

// count returns what /logs/count answers.
func count(b *testing.B, query *server, params string) int {
	b.Helper()
	resp, err := http.Get("http://" + query.addr + "/logs/count?" + params)
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close() // only read
	var answer struct{ Count int }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		b.Fatal(err)
	}
	return answer.Count
}
