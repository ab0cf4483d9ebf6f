package partition

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"millrace/internal/testenv"
)

func listed(t *testing.T, db *pgx.Conn, tab table) []string {
	t.Helper()
	exec(t, db, "SET TimeZone = 'UTC'")
	all, err := list(context.Background(), db, tab)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, p := range all {
		out = append(out, fmt.Sprint(p.name, " ", p.from.Format("02 15:04"), " - ", p.to.Format("02 15:04")))
	}
	return out
}

func TestTheIntervalMayChange(t *testing.T) {
	url := testenv.Schema(t)
	db := workerConn(t, url)
	ctx := context.Background()
	daily, hourly := New(24*time.Hour), New(time.Hour)
	ensure := func(p *Set, s string) {
		t.Helper()
		p.MarkStale()
		if r, err := p.ensure(ctx, db, p.logs, at(s)); err != nil || !r.contains(at(s)) {
			t.Fatalf("%s: got %v, %v", s, r, err)
		}
	}
	ensure(hourly, "2026-03-01 00:30")
	ensure(hourly, "2026-03-01 04:30")
	ensure(daily, "2026-03-01 02:00")
	ensure(daily, "2026-03-01 09:00")
	ensure(daily, "2026-03-02 09:00")
	ensure(hourly, "2026-03-02 09:00") // is there
	ensure(hourly, "2026-03-03 23:59")
	want := []string{
		"logs_20260301_0000 01 00:00 - 01 01:00",
		"logs_20260301_0100 01 01:00 - 01 04:00",
		"logs_20260301_0400 01 04:00 - 01 05:00",
		"logs_20260301_0500 01 05:00 - 02 00:00",
		"logs_20260302 02 00:00 - 03 00:00",
		"logs_20260303_2300 03 23:00 - 04 00:00",
	}
	if diff := cmp.Diff(want, listed(t, db, daily.logs)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestWorkersRaceForAPartitionHarmlessly(t *testing.T) {
	url := testenv.Schema(t)
	var wg sync.WaitGroup
	for range 6 {
		conn := workerConn(t, url)
		wg.Go(func() {
			p := New(24 * time.Hour)
			for day := range 5 {
				if _, err := p.ensure(context.Background(), conn, p.ledger, at("2026-03-01 12:00").AddDate(0, 0, day)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := len(listed(t, testenv.Connect(t, url), table{name: "ledger"})); got != 5 {
		t.Errorf("got %d partitions, want 5", got)
	}
}
