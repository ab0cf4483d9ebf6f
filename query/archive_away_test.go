package query

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"millrace/internal/archive"
	"millrace/internal/testenv"
)

// TestAStoreThatIsAwayCostsTheRowsThatNothingElseHasAlone has an archive in a bucket of S3. While it is away, the table answers for what it has,
// and requests that need more name the range. Then the store comes back.
func TestAStoreThatIsAwayCostsTheRowsThatNothingElseHasAlone(t *testing.T) {
	s3 := testenv.StartS3(t)
	proxy := testenv.StartFaultyProxy(t, s3.Addr)
	f := newArchiveFixture(t)
	var err error
	if f.store, err = archive.OpenStore(s3.Archive(s3.Addr), 1<<20); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { archive.CloseIdle(f.store) })
	for ago := 2; ago <= 5; ago++ {
		f.put(ago, 100, false)
	}
	f.archive()
	f.drop(5)
	settings := map[string]string{"POSTGRES_URL": string(f.url)}
	for _, pair := range s3.Env(proxy.Addr) {
		name, value, _ := strings.Cut(pair, "=")
		settings[name] = value
	}
	names := "the range " + rangeText(f.hour(5), f.hour(4))
	for _, fault := range []testenv.Fault{testenv.Cuts, testenv.SlowDown, testenv.Hangs} {
		t.Run(fault.String(), func(t *testing.T) {
			s := start(t, settings)
			var count struct{ Count int }
			proxy.SpoilAll(fault)
			s.get(f.hours("/logs/count", 5, 5)) // the one that finds it away
			began := time.Now()
			for _, path := range []string{f.hours("/logs/count", 5, 5), f.hours("/logs", 5, 4), f.hours("/logs/histogram", 5, 2), f.hours("/logs/export", 5, 5), f.hours("/logs/patterns", 5, 5)} {
				if r := s.get(path); r.status != http.StatusServiceUnavailable || !strings.Contains(r.body, names) || strings.Contains(r.body, s3.Secret) || r.header.Get("Retry-After") == "" {
					t.Errorf("GET %s: got %d, %s, want 503 with %q", path, r.status, r.body, names)
				}
			}
			for _, path := range []string{f.hours("/logs/count", 4, 2), f.hours("/logs/count", 4, 2, "budget", "5s")} {
				if s.ok(path, &count); count.Count != 300 {
					t.Errorf("GET %s: got %d rows, want the 300 that the table has", path, count.Count)
				}
			}
			var page struct {
				logsPage
				Complete *bool
			}
			if s.ok(f.hours("/logs", 5, 2, "budget", "20s", "limit", "1000"), &page); len(page.Logs) != 300 || page.Complete == nil || *page.Complete {
				t.Errorf("a page within a budget: got %d rows, complete %v, want the 300 that the table has, and that they are not all", len(page.Logs), page.Complete)
			}
			if r := s.get("/ready"); r.status != http.StatusOK {
				t.Errorf("/ready: got %d, %s", r.status, r.body)
			}
			if took := time.Since(began); took > 30*time.Second+testenv.Patience {
				t.Errorf("the answers took %v", took)
			}
			if fault == testenv.SlowDown { // the watch looks every five seconds
				testenv.Eventually(t, 10*time.Second, "the metric tells that the store is away", func() bool { return strings.Contains(s.get("/metrics").body, "millrace_archive_away 1\n") })
			}
			proxy.SpoilAll(testenv.NoFault)
			testenv.Eventually(t, 10*time.Second, "the store is back", func() bool {
				r := s.get(f.hours("/logs/count", 5, 2))
				return r.status == http.StatusOK && strings.Contains(r.body, `"count":400`)
			})
			if fault == testenv.SlowDown {
				testenv.Eventually(t, 10*time.Second, "the metric tells that the store is back", func() bool { return strings.Contains(s.get("/metrics").body, "millrace_archive_away 0\n") })
			}
		})
	}
}
