package query

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pausedCache returns a cache that leaves Redis alone, so that answers are shared and never kept.
func pausedCache(working *sync.WaitGroup) *cache {
	c := &cache{flightTime: time.Minute, log: slog.New(slog.NewTextHandler(io.Discard, nil)), work: context.Background(), working: working}
	c.pausedUntil.Store(1<<63 - 1)
	return c
}

func TestTheFirstWhoLeavesLeavesTheOthersTheirAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var working sync.WaitGroup
		c := pausedCache(&working)
		proceed := make(chan struct{})
		computed := 0
		compute := func(ctx context.Context) ([]byte, error) {
			computed++
			select {
			case <-proceed:
				return []byte("answer"), nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		ctx, leave := context.WithCancel(t.Context())
		var asking sync.WaitGroup
		asking.Go(func() {
			if _, _, err := c.getOrCompute(ctx, "key", compute); !errors.Is(err, context.Canceled) {
				t.Errorf("the first: got %v, want its own end", err)
			}
		})
		synctest.Wait()
		for range 3 {
			asking.Go(func() {
				body, result, err := c.getOrCompute(t.Context(), "key", compute)
				if string(body) != "answer" || result != bypass || err != nil {
					t.Errorf("another: got %q, %s, %v", body, result, err)
				}
			})
		}
		synctest.Wait()
		leave()
		synctest.Wait()
		close(proceed)
		asking.Wait()
		working.Wait()
		if computed != 1 {
			t.Errorf("computed %d times, want once", computed)
		}
	})
}

func TestAFlightEndsAfterItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var working sync.WaitGroup
		_, _, err := pausedCache(&working).getOrCompute(t.Context(), "key", func(ctx context.Context) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		working.Wait()
	})
}

func TestAPanicInAFlightIsAnError(t *testing.T) {
	var working sync.WaitGroup
	_, _, err := pausedCache(&working).getOrCompute(t.Context(), "key", func(context.Context) ([]byte, error) { panic("at the disco") })
	if err == nil || !strings.Contains(err.Error(), "at the disco") {
		t.Errorf("got %v", err)
	}
	working.Wait()
}
