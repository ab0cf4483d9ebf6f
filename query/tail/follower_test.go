package tail

import (
	"slices"
	"testing"

	"github.com/google/uuid"
)

func TestAFollowerHoldsNoMoreThanItsBounds(t *testing.T) {
	for _, tt := range []struct {
		name           string
		bytes, waiting int
	}{
		{"events", 1, followerEvents},
		{"bytes", 1 << 20, followerBytes >> 20},
	} {
		f := &Follower{ready: make(chan struct{}, 1)}
		e := &Event{Text: make([]byte, tt.bytes)}
		for i := range tt.waiting + 3 {
			if missed, want := f.push(e), i >= tt.waiting; missed != want {
				t.Fatalf("%s: event %d missed: %t, want %t", tt.name, i, missed, want)
			}
		}
		select {
		case <-f.Ready():
		default:
			t.Errorf("%s: not ready", tt.name)
		}
		if events, missed := f.Take(); len(events) != tt.waiting || missed != 3 {
			t.Errorf("%s: got %d events and %d missed, want %d and 3", tt.name, len(events), missed, tt.waiting)
		}
		if !f.IsIdle() {
			t.Errorf("%s: something waits after Take", tt.name)
		}
		if f.push(e) {
			t.Errorf("%s: no room after Take", tt.name)
		}
	}
}

func TestWhatCatchUpGaveIsNotGivenAgain(t *testing.T) {
	had, other := uuid.UUID{1}, uuid.UUID{2}
	f := &Follower{ready: make(chan struct{}, 1), caught: map[uuid.UUID]bool{had: true}, caughtUntil: 7}
	take := func() (ids []uuid.UUID) {
		events, _ := f.Take()
		for _, e := range events {
			ids = append(ids, e.id)
		}
		return ids
	}
	f.push(&Event{id: had, lastPoll: 6})
	f.push(&Event{id: other, lastPoll: 7})
	if got := take(); !slices.Equal(got, []uuid.UUID{other}) {
		t.Errorf("got %v, want %v alone", got, other)
	}
	f.push(&Event{id: had, lastPoll: 7})
	f.push(&Event{id: other, lastPoll: 8})
	if got := take(); !slices.Equal(got, []uuid.UUID{other}) {
		t.Errorf("of the last poll that may give it: got %v, want %v alone", got, other)
	}
	if f.caught != nil {
		t.Error("what was caught up with is still remembered after a poll that can't give it")
	}
}
