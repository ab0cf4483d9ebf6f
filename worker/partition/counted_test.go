package partition

import (
	"maps"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"millrace/internal/testenv"
)

// putUnnoted stores a row without any note, as nothing should.
func (a *archivedTest) putUnnoted(t *testing.T, conn *pgx.Conn, at time.Time) {
	t.Helper()
	a.parts.MarkStale()
	put(t, conn, a.parts, at)
	maps.Copy(a.rows, allIDs(t, conn))
}

// TestRowsThatNothingNotedAreNotDropped puts them into the range of a partition that the archive seems to have, at each point of its life: before
// retention comes to it, while it is released, when it has come back for late rows, and when it was restored. The keeper finds them by counting, and
// they are copied before they go.
func TestRowsThatNothingNotedAreNotDropped(t *testing.T) {
	first := -7*time.Hour + 5*time.Minute
	for name, prepare := range map[string]func(t *testing.T, a *archivedTest){
		"before its time is over": func(t *testing.T, a *archivedTest) { a.putUnnoted(t, a.db, a.open.Add(first)) },
		"while it is released": func(t *testing.T, a *archivedTest) {
			reader := workerConn(t, a.url)
			exec(t, reader, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM logs") // puts the keeper off
			a.round(t, a.keeper.Round)
			want(t, a.db, 2, "SELECT count(*) FROM archive_ranges WHERE files_only")
			a.putUnnoted(t, a.db, a.open.Add(first))
			exec(t, reader, "COMMIT")
		},
		"one for one": func(t *testing.T, a *archivedTest) { // as many rows of the partition are in files as it has again
			put(t, a.db, a.parts, a.open.Add(-8*time.Hour))
			maps.Copy(a.rows, allIDs(t, a.db))
			a.round(t, a.archiver.Round)
			a.drop(t)
			a.putUnnoted(t, a.db, a.open.Add(-8*time.Hour+time.Minute))
		},
		"when it has come back": func(t *testing.T, a *archivedTest) {
			a.drop(t)
			a.putUnnoted(t, a.db, a.open.Add(first))
		},
		"when it was restored": func(t *testing.T, a *archivedTest) {
			a.drop(t)
			ranges, err := ArchivedRanges(t.Context(), a.db, a.open.Add(-7*time.Hour), a.open.Add(-6*time.Hour))
			if err != nil || len(ranges) != 1 {
				t.Fatalf("got %v, %v", ranges, err)
			}
			if _, err := Restore(t.Context(), workerConn(t, a.url), a.store, ranges[0], time.Hour); err != nil {
				t.Fatal(err)
			}
			exec(t, a.db, "UPDATE archive_ranges SET kept_until = now()")
			a.putUnnoted(t, a.db, a.open.Add(first))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newArchivedTest(t)
			a.keeper.Incomplete = prometheus.NewCounter(prometheus.CounterOpts{Name: "incomplete"})
			metrics := prometheus.NewRegistry()
			metrics.MustRegister(a.keeper.Incomplete)
			incomplete := func() float64 {
				got, err := metrics.Gather()
				if err != nil {
					t.Fatal(err)
				}
				return got[0].Metric[0].Counter.GetValue()
			}
			a.round(t, a.archiver.Round)
			prepare(t, a)
			testenv.Eventually(t, time.Minute, "the keeper misses the row", func() bool {
				if err := a.keeper.Round(t.Context()); err != nil {
					t.Fatal(err)
				}
				return incomplete() > 0
			})
			wantAnswer(t, a.db, a.store, a.rows) // from now on it is in answers
			a.round(t, a.archiver.Round)
			a.drop(t)
			if got := incomplete(); got != 1 {
				t.Errorf("%v partitions lacked rows, want 1", got)
			}
		})
	}
}

// TestRowsThatSomebodyDeletedHoldNothingUp: files have more rows than the partition.
func TestRowsThatSomebodyDeletedHoldNothingUp(t *testing.T) {
	a := newArchivedTest(t)
	a.round(t, a.archiver.Round)
	exec(t, a.db, "DELETE FROM logs WHERE inserted_at < $1 AND extract(minute FROM inserted_at) < 10", a.open.Add(-6*time.Hour))
	a.drop(t)
}
