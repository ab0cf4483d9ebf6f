package publish

import (
	"sync/atomic"
	"testing"
)

func TestWhoWaitsForAFrameIsToldOnce(t *testing.T) {
	const callers = 2*callsPerGroup + 8
	for _, outcome := range []error{nil, ErrConfirmTimeout} {
		f := &Frame{done: make(chan struct{})}
		var told, wrong atomic.Int64
		var ends []<-chan struct{}
		for range callers {
			called, ok := f.OnSettled(func(confirmed bool) {
				told.Add(1)
				if confirmed != (outcome == nil) {
					wrong.Add(1)
				}
			})
			if !ok {
				t.Fatal("a frame that is under way is said to be settled")
			}
			ends = append(ends, called)
		}
		if !f.settle(outcome) || f.settle(nil) {
			t.Error("a frame is not settled once")
		}
		for _, called := range ends {
			<-called
		}
		if told.Load() != callers || wrong.Load() > 0 || f.Err() != outcome {
			t.Errorf("%d of %d were told, %d of them wrongly; the frame's error is %v, want %v", told.Load(), callers, wrong.Load(), f.Err(), outcome)
		}
		if _, ok := f.OnSettled(func(bool) { t.Error("told of a frame that was settled before") }); ok {
			t.Error("a settled frame is said to be under way")
		}
		<-f.Done()
	}
}
