package keys

import (
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"
)

func limited(t testing.TB, limit string) *Key {
	t.Helper()
	return parse(t, "a "+strings.Repeat("0a", 32)+" write "+limit).keys[0]
}

func TestALimitIsABucketThatFillsAtTheRate(t *testing.T) {
	begin := time.Now()
	k := limited(t, "rate=10 burst=20")
	for _, step := range []struct {
		at   time.Duration
		n    int
		want time.Duration
	}{
		{0, 15, 0},
		{0, 6, 100 * time.Millisecond}, // what is refused is not charged
		{0, 5, 0},
		{0, 1, 100 * time.Millisecond},
		{0, 0, 0}, // nothing costs nothing
		{50 * time.Millisecond, 1, 50 * time.Millisecond},
		{100 * time.Millisecond, 1, 0},
		{100 * time.Millisecond, 10, time.Second},
		{time.Hour, 20, 0}, // no more than the burst is saved up
		{time.Hour, 20, 2 * time.Second},
		{time.Hour + time.Second, 100, time.Second}, // more than the burst waits for a full bucket
		{time.Hour + 2*time.Second, 100, 0},         // and leaves a debt
		{time.Hour + 3*time.Second, 1, 7100 * time.Millisecond},
		{time.Hour, 1, 7100 * time.Millisecond}, // a clock reading that comes late
		{time.Hour + 11*time.Second, 10, 0},
	} {
		now := begin.Add(step.at)
		got := k.Take(step.n, now)
		if d := got - step.want; d < -time.Microsecond || d > time.Microsecond || (got == 0) != (step.want == 0) {
			t.Errorf("at %v, %d records: got %v, want %v", step.at, step.n, got, step.want)
		}
	}
	if limited(t, "rate=1").Take(1<<40, begin) != 0 {
		t.Error("a batch that is larger than the burst is not taken by a full bucket")
	}
	deep := limited(t, "rate=1")
	deep.Take(1<<40, begin)
	if got := deep.Wait(begin); got != maxWait {
		t.Errorf("a debt of 35,000 years: got %v, want %v", got, maxWait)
	}
	if k := limited(t, ""); k.Wait(begin) != 0 || k.Take(1<<40, begin) != 0 {
		t.Error("a key without a limit is limited")
	}
}

func TestOverALongTimeTheRateHolds(t *testing.T) {
	k := limited(t, "rate=1000 burst=300")
	now := time.Now()
	begin, taken := now, 0
	for range 20_000 {
		now = now.Add(time.Duration(rand.IntN(10)) * time.Millisecond)
		if n := 1 + rand.IntN(600); k.Take(n, now) == 0 {
			taken += n
		}
	}
	// A debt is at most the size of a batch minus the burst.
	if most := 1000*now.Sub(begin).Seconds() + 300 + 300; float64(taken) > most || float64(taken) < most/2 {
		t.Errorf("%d records in %v, want at most %.0f and not much less", taken, now.Sub(begin), most)
	}
}

func TestManyAtOnceTakeNoMoreThanThereIs(t *testing.T) {
	k := limited(t, "rate=1 burst=1000")
	now := time.Now()
	var all sync.WaitGroup
	var mu sync.Mutex
	taken := 0
	for range 8 {
		all.Go(func() {
			for range 1000 {
				if k.Take(3, now) == 0 {
					mu.Lock()
					taken += 3
					mu.Unlock()
				}
			}
		})
	}
	all.Wait()
	if taken != 999 {
		t.Errorf("%d records were taken, want 999", taken)
	}
}
