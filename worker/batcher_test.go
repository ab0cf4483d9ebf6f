package worker

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"millrace/internal/frame"
)

// bubble is a batcher in a synctest bubble, with both ends in the test's hands.
type bubble struct {
	g       *batcher
	items   chan item
	batches chan *batch
	stop    chan struct{}
	abandon chan struct{}
}

func newBubble(g *batcher) *bubble {
	b := &bubble{items: make(chan item), batches: make(chan *batch), stop: make(chan struct{}), abandon: make(chan struct{})}
	g.sources = max(g.sources, 1)
	g.items, g.batches, g.stop, g.abandon = b.items, b.batches, b.stop, b.abandon
	b.g = g
	go b.g.run()
	return b
}

func always(window int) func(int) int { return func(int) int { return window } }

// offer offers a frame of so many rows, and reports whether it was read at once.
func (b *bubble) offer(source int, tag uint64, rows int) bool {
	synctest.Wait()
	s := segment{Span: frame.Span{Segment: frame.Segment{Records: rows}, Body: []byte(strings.Repeat("x", rows))}}
	select {
	case b.items <- item{source: source, tag: tag, segments: []segment{s}}:
		return true
	default:
		return false
	}
}

// take returns the batch that is due, or nil.
func (b *bubble) take() *batch {
	synctest.Wait()
	select {
	case got := <-b.batches:
		return got
	default:
		return nil
	}
}

func TestABatchCloses(t *testing.T) {
	cases := map[string]struct {
		change func(*batcher)
		frames []int // rows of each
		wait   time.Duration
	}{
		"on rows":              {func(g *batcher) { g.rows = 5 }, []int{2, 3}, 0},
		"on bytes":             {func(g *batcher) { g.bytes = 6 }, []int{3, 3}, 0},
		"on age":               {func(*batcher) {}, []int{1, 1}, time.Second},
		"on a used up window":  {func(g *batcher) { g.window = always(3) }, []int{1, 1, 1}, 0},
		"at once with a large": {func(g *batcher) { g.rows = 5 }, []int{500}, 0},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := &batcher{rows: 1000, bytes: 1000, linger: time.Second, window: always(100)}
				c.change(g)
				b := newBubble(g)
				for i, rows := range c.frames {
					if early := b.take(); early != nil {
						t.Fatalf("closed before frame %d", i)
					}
					if !b.offer(0, uint64(i+1), rows) {
						t.Fatalf("frame %d was not read", i)
					}
				}
				if c.wait > 0 {
					time.Sleep(c.wait - time.Nanosecond)
					if b.take() != nil {
						t.Fatal("closed too early")
					}
					time.Sleep(time.Nanosecond)
				}
				got := b.take()
				if got == nil {
					t.Fatal("did not close")
				}
				if got.total() != len(c.frames) || got.tags[0] != uint64(len(c.frames)) {
					t.Errorf("got %d frames up to tag %d, want %d", got.total(), got.tags[0], len(c.frames))
				}
				close(b.abandon)
			})
		})
	}
}

func TestWhileABatchCommitsTheNextGathersUpToTheLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(&batcher{rows: 4, bytes: 1000, linger: time.Second, window: always(100)})
		b.offer(0, 1, 4)
		first := b.take() // and it commits
		for tag := range uint64(4) {
			if !b.offer(0, tag+2, 1) {
				t.Fatalf("frame %d was not read", tag+2)
			}
		}
		if b.offer(0, 6, 1) {
			t.Fatal("read more than the limit")
		}
		if first.rows != 4 || first.tags[0] != 1 {
			t.Errorf("the batch that commits was touched: %d rows, tag %d", first.rows, first.tags[0])
		}
		b.g.finished.Add(1)
		if second := b.take(); second == nil || second.rows != 4 || second.tags[0] != 5 {
			t.Errorf("got %+v", second)
		}
		if !b.offer(0, 6, 1) {
			t.Error("not read after the hand-over")
		}
		close(b.abandon)
	})
}

func TestTheWindowIsSharedWithTheBatchThatCommits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(&batcher{rows: 1000, bytes: 1000, linger: time.Second, window: always(4), sources: 2})
		b.offer(0, 1, 1)
		b.offer(0, 2, 1)
		b.offer(1, 1, 1)
		time.Sleep(time.Second)
		if b.take() == nil {
			t.Fatal("did not close on age")
		}
		b.offer(1, 2, 1) // two of source 1 are unacknowledged, three of source 0
		b.offer(0, 3, 1)
		if b.take() != nil {
			t.Fatal("closed though both sources may send one more")
		}
		b.offer(0, 4, 1)
		if b.take() == nil {
			t.Fatal("waits for frames that can't come")
		}
		b.g.finished.Add(2) // both are acknowledged: the window is open
		for tag := range uint64(3) {
			b.offer(0, tag+5, 1)
		}
		if b.take() != nil {
			t.Fatal("closed though the window is open")
		}
		close(b.abandon)
	})
}

func TestTheTimerStartsWithTheFirstFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(&batcher{rows: 3, bytes: 1000, linger: time.Second, window: always(100)})
		time.Sleep(10 * time.Second)
		b.offer(0, 1, 1)
		time.Sleep(900 * time.Millisecond)
		b.offer(0, 2, 2) // closes it
		if b.take() == nil {
			t.Fatal("did not close on rows")
		}
		b.offer(0, 3, 1)
		time.Sleep(900 * time.Millisecond)
		if b.take() != nil {
			t.Fatal("closed by the timer of the batch before")
		}
		time.Sleep(100 * time.Millisecond)
		if b.take() == nil {
			t.Fatal("did not close on age")
		}
		close(b.abandon)
	})
}

func TestAStopHandsOverWhatWasGathered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(&batcher{rows: 100, bytes: 1000, linger: time.Hour, window: always(100)})
		b.offer(0, 1, 3)
		synctest.Wait()
		close(b.stop)
		if got := b.take(); got == nil || got.rows != 3 {
			t.Fatalf("got %+v, want the three rows", got)
		}
		if _, open := <-b.batches; open {
			t.Error("batches was not closed")
		}
	})
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(&batcher{rows: 100, bytes: 1000, linger: time.Hour, window: always(100)})
		synctest.Wait()
		close(b.stop)
		if _, open := <-b.batches; open {
			t.Error("an empty batch was handed over")
		}
	})
}
