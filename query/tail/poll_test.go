package tail

import (
	"testing"
	"time"
)

func TestASweepReachesBackToTheLastPoll(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct{ sinceLast, reach, want time.Duration }{
		{0, sweepMin, sweepMin},
		{100 * time.Millisecond, time.Minute, time.Minute},
		{5 * time.Second, sweepMin, 5*time.Second + sweepMin},
		{time.Hour, sweepMin, sweepMax},
		{-time.Second, sweepMin, sweepMin}, // the database's clock was set back
	} {
		if got := now.Sub(sweepFrom(now, now.Add(-tt.sinceLast), tt.reach)); got != tt.want {
			t.Errorf("%v after the last poll, reach %v: looks back %v, want %v", tt.sinceLast, tt.reach, got, tt.want)
		}
	}
}
