package retry

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestPausesGrowFromATenthOfASecondToFive(t *testing.T) {
	b := NewBackoff()
	first := b.NextBackOff()
	if first < 50*time.Millisecond || first > 150*time.Millisecond {
		t.Errorf("first: got %v, want 0.1 s within half of it", first)
	}
	for range 20 {
		b.NextBackOff()
	}
	if late := b.NextBackOff(); late < 2500*time.Millisecond || late > 7500*time.Millisecond {
		t.Errorf("late: got %v, want 5 s within half of it", late)
	}
}

func TestSleepEndsAtItsTimeOrWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if err := Sleep(t.Context(), time.Minute); err != nil || time.Since(began) != time.Minute {
			t.Errorf("got %v after %v, want no error after a minute", err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began = time.Now()
		if err := Sleep(ctx, time.Minute); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Second {
			t.Errorf("got %v after %v, want the context's error after a second", err, time.Since(began))
		}
	})
}
