package publish

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"millrace/internal/frame"
)

const line = "{}\n"

// gathering is a gather whose clock is the test's: within synctest it moves only while everything sleeps.
type gathering struct {
	*gather
	t *testing.T
}

func newGathering(t *testing.T) gathering {
	return gathering{&gather{frameBytes: 64 << 10, frames: new(framePool), base: frame.NewBase}, t}
}

// request puts one record now, as a request of its own.
func (g gathering) request() *Frame {
	return g.put(time.Now(), []byte(line), 1, nil, 0, true).Frame
}

// wantTaken takes a frame now and returns it. It fails the test unless the frame has that many requests; 0 means
// that no frame is due.
func (g gathering) wantTaken(when string, requests int) *Frame {
	g.t.Helper()
	f := g.take(time.Now())
	switch {
	case f == nil && requests > 0:
		g.t.Fatalf("%s: no frame is due, want one of %d requests", when, requests)
	case f != nil && f.requests != requests:
		g.t.Fatalf("%s: a frame of %d requests is due, want %d", when, f.requests, requests)
	}
	return f
}

func TestALoneRequestWaitsForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGathering(t)
		for range 3 {
			g.request()
			f := g.wantTaken("a lone request", 1)
			time.Sleep(time.Millisecond)
			g.answered(time.Now(), time.Millisecond, f)
		}
		g.wantTaken("nothing has come", 0)
	})
}

func TestWhatComesWhileAFrameIsOutstandingMakesTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGathering(t)
		g.request()
		first := g.wantTaken("the first", 1)
		for range 5 {
			g.request()
			g.wantTaken("while the first is outstanding", 0)
		}
		g.answered(time.Now(), time.Millisecond, first)
		// The first one's client may come again: six requests are worth waiting for.
		g.wantTaken("at the confirm", 0)
		g.request()
		g.wantTaken("once all have come", 6)
	})
}

func TestClientsThatWereJustAnsweredAreWaitedForALittle(t *testing.T) {
	for _, tt := range []struct{ took, wait time.Duration }{
		{time.Millisecond, waitPerConfirm * time.Millisecond},
		{time.Second, maxWait},
		{0, 0}, // the frame's outcome is not known
	} {
		synctest.Test(t, func(t *testing.T) {
			g := newGathering(t)
			for range 3 {
				g.request()
			}
			f := g.wantTaken("three requests", 3)
			if got := g.answered(time.Now(), tt.took, f); got != tt.wait {
				t.Errorf("a confirm took %v: the wait is %v, want %v", tt.took, got, tt.wait)
			}
			g.request()
			if tt.wait > 0 {
				time.Sleep(tt.wait - 1)
				g.request()
				g.wantTaken("just before the end of the wait", 0)
				time.Sleep(time.Nanosecond)
				g.wantTaken("at its end", 2)
			} else {
				g.wantTaken("without a wait", 1)
			}
		})
	}
}

func TestNoFrameGetsOlderThanMaxFrameAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGathering(t)
		g.request()
		g.wantTaken("the one that is never confirmed", 1)
		g.request()
		time.Sleep(maxFrameAge - 1)
		g.request()
		g.wantTaken("just before", 0)
		time.Sleep(time.Nanosecond)
		g.wantTaken("at maxFrameAge", 2)
	})
}

func TestAFullFrameIsDueWhateverIsOutstanding(t *testing.T) {
	key := frame.NewBase()
	for name, fill := range map[string]func(g gathering){
		"bytes": func(g gathering) {
			g.put(time.Now(), make([]byte, g.frameBytes-1), 1, nil, 0, true)
			g.wantTaken("one byte less than full", 0)
			g.put(time.Now(), []byte("\n"), 1, nil, 0, true)
		},
		"segments": func(g gathering) {
			for i := range frame.MaxSegments {
				g.wantTaken("before the last segment", 0)
				g.put(time.Now(), []byte("\n"), 1, &key, i, i < 2)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGathering(t)
				g.request()
				g.wantTaken("the first", 1)
				fill(g)
				g.wantTaken("full", 2)
			})
		})
	}
}

func TestRecordsWithoutAKeyShareABaseForALittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGathering(t)
		put := func(key *uuid.UUID, index, records int) uuid.UUID {
			return g.put(time.Now(), []byte(line), records, key, index, true).Base
		}
		first := put(nil, 0, 3)
		if got := put(nil, 0, 2); got != frame.ID(first, 3) {
			t.Errorf("the next records begin at %s, want %s", got, frame.ID(first, 3))
		}
		key := frame.NewBase()
		if got := put(&key, 0, 1); got != key {
			t.Errorf("a keyed request begins at %s, want its key's base %s", got, key)
		}
		if got := put(&key, 7, 1); got != frame.ID(key, 7) {
			t.Errorf("its record 7 is %s, want %s", got, frame.ID(key, 7))
		}
		second := put(nil, 0, 1) // never in a keyed segment
		if second == frame.ID(first, 5) || second == frame.ID(key, 8) {
			t.Errorf("after a keyed request a record without a key is %s, want a base of its own", second)
		}
		time.Sleep(sameBaseFor)
		if got := put(nil, 0, 1); got == frame.ID(second, 1) {
			t.Error("a record has a base of some time ago")
		}
		var records []int
		for _, s := range g.open.segments {
			records = append(records, s.Records)
		}
		if len(records) != 5 || records[0] != 5 || g.open.records != 9 || g.open.requests != 6 {
			t.Errorf("segments of %v records, %d in all, of %d requests", records, g.open.records, g.open.requests)
		}
	})
}

func TestFramesOfUnknownOutcomeGoFirstAndRefusedOnesLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGathering(t)
		g.request()
		unknown := g.wantTaken("the first", 1)
		g.request()
		g.request()
		time.Sleep(maxFrameAge)
		refused := g.wantTaken("the second", 2)
		g.answered(time.Now(), 0, unknown, refused)
		g.retryLater(refused, time.Now())
		g.request()
		g.request()
		g.request()
		g.giveBack([]*Frame{unknown})
		if f := g.wantTaken("what was given back", 1); f != unknown || f.attempts != 2 {
			t.Errorf("a frame that was published %d times is taken, want the one that was given back, for the second time", f.attempts)
		}
		g.answered(time.Now(), 0, unknown)
		g.wantTaken("the open one", 3)
		time.Sleep(retryPause - 1)
		if g.retry(time.Now()) {
			t.Error("a refused frame is due before its pause is over")
		}
		time.Sleep(time.Nanosecond)
		if !g.retry(time.Now()) || g.wantTaken("after the pause", 2) != refused || g.retry(time.Now()) {
			t.Error("a refused frame is not due once after its pause")
		}
	})
}

func TestFramesExpireOldestFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGathering(t)
		var frames []*Frame
		for range 4 {
			frames = append(frames, g.request())
			g.sealed, g.open = append(g.sealed, g.open), nil
			time.Sleep(time.Second)
		}
		frames[1].settle(nil)
		expired := g.takeExpired(frames[2].begun)
		if len(expired) != 2 || expired[0] != frames[0] || expired[1] != frames[2] {
			t.Errorf("%d frames expire, want the first and the third", len(expired))
		}
		for _, f := range expired {
			f.settle(ErrConfirmTimeout)
		}
		if g.allSettled() || len(g.unsettled) != 1 {
			t.Errorf("%d frames are still watched, want the last", len(g.unsettled))
		}
		g.dropSettled()
		if len(g.sealed) != 1 || g.sealed[0] != frames[3] {
			t.Errorf("%d frames are kept, want the last", len(g.sealed))
		}
	})
}

// TestALaneIsWokenWhenAFrameIsDue has clients that come again, one lane, and a RabbitMQ that takes a millisecond.
func TestALaneIsWokenWhenAFrameIsDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(testOptions(t))
		l := &lane{link: &link{pub: p}, pub: p}
		taken := make(chan *Frame)
		var running sync.WaitGroup
		running.Go(func() {
			defer close(taken)
			for {
				f, _ := p.take(l)
				if f == nil {
					return
				}
				taken <- f
			}
		})
		add := func(n int) {
			for range n {
				if _, err := p.Add(nil, oneRecord(t), nil); err != nil {
					t.Error(err)
				}
			}
		}
		wantFrame := func(when string, requests int, after time.Duration) *Frame {
			t.Helper()
			begin := time.Now()
			f := <-taken
			if took := time.Since(begin); f.requests != requests || took != after {
				t.Errorf("%s: a frame of %d requests after %v, want %d after %v", when, f.requests, took, requests, after)
			}
			return f
		}
		add(1)
		f := wantFrame("a lone request", 1, 0)
		add(4)
		time.Sleep(time.Millisecond)
		p.answered(time.Millisecond, f)
		f = wantFrame("the next, whose first client does not come again", 4, waitPerConfirm*time.Millisecond)
		time.Sleep(time.Millisecond)
		p.answered(time.Millisecond, f)
		add(4)
		f = wantFrame("once all four have come again", 4, 0)
		p.answered(time.Millisecond, f)

		p.mu.Lock()
		l.ended = true
		p.work.Broadcast()
		p.mu.Unlock()
		running.Wait()
	})
}
