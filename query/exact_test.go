package query

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"millrace/internal/eventtime"
)

// placedRow is a row that a test has put into the table.
type placedRow struct {
	id         uuid.UUID
	time, came time.Time // time is came if the row has none
	n          int
}

// at returns the row's time by a clock.
func (r placedRow) at(c clock) time.Time {
	if c == byArrival {
		return r.came
	}
	return r.time
}

// TestSearchesAreExactOverGapsAndRowsWithoutATime compares searches with an evaluation in memory. Rows lie in bursts with gaps of all lengths
// between them. Some are near their time, some far from it, on both sides of the bounds between those; some have no time; and some are in a
// partition as it was made before event times, or in a default one.
func TestSearchesAreExactOverGapsAndRowsWithoutATime(t *testing.T) {
	f := newFixture(t, nil)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	now := time.Now().UTC().Truncate(time.Millisecond)
	today := now.Truncate(24 * time.Hour)
	for ago := range 5 {
		day := today.AddDate(0, 0, -ago)
		if ago == 1 {
			partition(t, f.db, day) // without indexes
			continue
		}
		f.exec("SELECT millrace_add_partition('logs', $1, $2, $3)", "logs_"+day.Format("20060102"), day.Format(time.RFC3339), day.AddDate(0, 0, 1).Format(time.RFC3339))
	}
	f.exec("CREATE TABLE logs_default PARTITION OF logs DEFAULT")

	delays := []time.Duration{
		0, time.Microsecond, time.Second, 10*time.Second - time.Microsecond, 10 * time.Second, 10*time.Second + time.Microsecond, time.Minute,
		time.Hour - time.Microsecond, time.Hour, time.Hour + time.Microsecond, 3 * time.Hour, 50 * time.Hour, 3000 * time.Hour, 200_000 * time.Hour,
		-time.Microsecond, -10 * time.Second, -time.Hour, -time.Hour - time.Microsecond, -30 * time.Hour,
	}
	var all []placedRow
	for burst := range 25 {
		at := now.Add(-time.Duration(rng.Int64N(int64(4 * 24 * time.Hour))))
		switch {
		case burst == 0:
			at = now
		case burst%6 == 0:
			at = now.AddDate(-1-rng.IntN(20), 0, 0) // in the default partition
		}
		for range 1 + rng.IntN(30) {
			at = at.Add(time.Duration(rng.Int64N(int64(3 * time.Second)))).Truncate(time.Millisecond)
			r := placedRow{id: idAt(at, rng.IntN(1<<20)), came: at, time: at, n: len(all)}
			var stored any = time.Unix(0, 0)
			if rng.IntN(4) > 0 {
				r.time = at.Add(-delays[rng.IntN(len(delays))])
				stored = r.time
			}
			all = append(all, r)
			f.exec("INSERT INTO logs (id, inserted_at, time, data) VALUES ($1, $2, $3, $4)", [16]byte(r.id), r.came, stored, fmt.Sprintf(`{"n": %d, "third": %t}`, r.n, r.n%3 == 0))
			if r.came.Sub(r.time).Abs() > eventtime.Near {
				hour := r.came.Truncate(time.Hour)
				f.exec("INSERT INTO late_hours VALUES ($1, $2, $3) ON CONFLICT DO NOTHING", r.time.Truncate(time.Hour), hour, hour.Add(time.Hour))
			}
		}
	}
	f.exec("ANALYZE logs")

	for range 20 {
		clock := []clock{byTime, byArrival}[rng.IntN(2)]
		pivot := all[rng.IntN(len(all))].at(clock).Truncate(time.Millisecond)
		reach := []time.Duration{time.Millisecond, 5 * time.Second, time.Hour, 100 * time.Hour, 300_000 * time.Hour}[rng.IntN(5)]
		from, to := pivot.Add(-time.Duration(rng.Int64N(int64(reach)))), pivot.Add(time.Duration(rng.Int64N(int64(reach))))
		if rng.IntN(4) == 0 {
			from, to = time.Unix(0, 0), now.AddDate(5, 0, 0)
		}
		from, to = from.UTC().Truncate(time.Millisecond), to.UTC().Truncate(time.Millisecond)
		third, ascending := rng.IntN(3) == 0, rng.IntN(2) == 0
		params := []string{"from", from.Format(timeFormat), "to", to.Format(timeFormat), "clock", string(clock)}
		if third {
			params = append(params, "q", "third:true")
		}
		var want []string
		rows := slices.Clone(all)
		slices.SortFunc(rows, func(a, b placedRow) int {
			order := cmp.Or(a.at(clock).Compare(b.at(clock)), strings.Compare(a.id.String(), b.id.String()))
			if !ascending {
				order = -order
			}
			return order
		})
		for _, r := range rows {
			if at := r.at(clock); !at.Before(from) && at.Before(to) && (!third || r.n%3 == 0) {
				want = append(want, r.id.String()+" "+string(appendTime(nil, r.time)))
			}
		}
		var count struct{ Count int }
		if f.ok(with("/logs/count", params...), &count); count.Count != len(want) {
			t.Errorf("count of %v: got %d, want %d", params, count.Count, len(want))
		}
		params = append(params, "order", map[bool]string{true: "asc", false: "desc"}[ascending])
		type answer struct {
			ID   string
			Time string
		}
		var exported []string
		for line := range strings.Lines(f.get(with("/logs/export", params...)).body) {
			var a answer
			if err := json.Unmarshal([]byte(line), &a); err != nil {
				t.Fatal(err)
			}
			exported = append(exported, a.ID+" "+a.Time)
		}
		if !slices.Equal(exported, want) {
			t.Errorf("export of %v: got %d rows, want %d\n%v\n%v", params, len(exported), len(want), exported, want)
		}
		var paged []string
		params = append(params, "limit", strconv.Itoa(1+rng.IntN(60)))
		for cursor := ""; len(paged) <= len(want); {
			var page struct {
				Logs []answer
				Next *string
			}
			f.ok(with("/logs", append(params, "cursor", cursor)...), &page)
			for _, a := range page.Logs {
				paged = append(paged, a.ID+" "+a.Time)
			}
			if page.Next == nil {
				break
			}
			cursor = *page.Next
		}
		if !slices.Equal(paged, want) {
			t.Errorf("pages of %v: got %d rows, want %d\n%v\n%v", params, len(paged), len(want), paged, want)
		}
		if t.Failed() {
			t.FailNow()
		}
	}
}
