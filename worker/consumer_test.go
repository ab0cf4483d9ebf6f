package worker

import (
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace/internal/frame"
	"millrace/internal/testenv"
)

func TestTheWindowFollowsTheSizeOfFrames(t *testing.T) {
	const mib = 1 << 20
	w := newWindow(16*mib, 500)
	var sizes []string
	feed := func(frames, bytes int) {
		for range frames {
			if w.observe(bytes); w.want != w.size {
				w.size = w.want
				sizes = append(sizes, fmt.Sprint(bytes, ": ", w.size))
			}
		}
	}
	feed(3000, 300)
	feed(1, 100<<10)
	feed(1, mib)
	feed(40, mib)
	feed(1, 100*mib)
	feed(2000, 64<<10)
	want := []string{
		"300: 64", "300: 256", "300: 500",
		"102400: 163", "1048576: 16", "104857600: 2",
		"65536: 8", "65536: 32", "65536: 128", "65536: 256",
	}
	if diff := cmp.Diff(want, sizes); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestOneLargeFrameNowAndThenKeepsTheWindowSmall: the next may be the start of many.
func TestOneLargeFrameNowAndThenKeepsTheWindowSmall(t *testing.T) {
	w := newWindow(16<<20, 500)
	for range 100 {
		for range 15 {
			w.observe(300)
		}
		if w.observe(1 << 20); w.want != 16 {
			t.Fatalf("got %d, want 16", w.size)
		}
	}
}

func TestTheGateHoldsReadsBackWhileTooMuchIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer near.Close()
		g := newGate(100)
		conn := g.through(far)
		defer conn.Close()
		read := 0
		go func() {
			b := make([]byte, 1)
			for {
				if _, err := conn.Read(b); err != nil {
					return
				}
				read++
			}
		}()
		send := func() {
			go func() { _, _ = near.Write([]byte{1}) }()
			synctest.Wait()
		}
		send()
		g.take(101)
		send() // by the read that was under way
		send()
		if read != 2 {
			t.Errorf("read %d bytes, want 2: the gate is closed", read)
		}
		g.release(1)
		synctest.Wait()
		if read != 3 {
			t.Errorf("read %d bytes, want 3: the gate is open", read)
		}
		g.take(1)
		send()
		send()
		g.force()
		synctest.Wait()
		if read != 5 {
			t.Errorf("read %d bytes, want 5: the gate is forced", read)
		}
	})
}

// TestMemoryIsBoundedInBytes: small frames widen the window, then comes a whole queue of huge ones, and the database
// takes none of them. What is held is bounded, and nothing is lost or stored twice.
func TestMemoryIsBoundedInBytes(t *testing.T) {
	c := testConfig(t, 1)
	c.Streams = 1
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	const small, huge = 1500, 150
	for range small {
		p.send(0, aFrame(frame.NewBase(), 1))
	}
	w := start(t, c)
	want(t, db, small, allLogs)
	if got := w.metric("millrace_worker_redelivered_total"); got != 0 {
		t.Errorf("redelivered: got %v, want 0: a window that grows gives nothing back", got)
	}
	exec(t, db, "BEGIN; LOCK TABLE ledger IN SHARE MODE")
	before := heap()
	text := strings.Repeat("x", 1<<20-100)
	for range huge {
		p.send(0, frameOf(`{"text":"`+text+`"}`+"\n", frame.Segment{Base: frame.NewBase(), Records: 1}))
	}
	testenv.Eventually(t, 10*time.Second, "the batch waits", func() bool {
		return count(t, db, "SELECT count(*) FROM pg_locks WHERE relation = 'ledger'::regclass AND NOT granted") > 0
	})
	// Also what the test's publisher and the buffers of pgx need.
	if grown := heap() - before; grown > 64<<20 {
		t.Errorf("holds %d MiB more than before, want at most 64", grown>>20)
	}
	exec(t, db, "COMMIT")
	want(t, db, small+huge, allLogs)
	testenv.Eventually(t, 10*time.Second, "queue is empty", func() bool { return p.waiting() == 0 })
	if got := w.metric("millrace_worker_redelivered_total"); got > 10 {
		t.Errorf("redelivered: got %v, want only what was on its way when the window shrank", got)
	}
	distinct(t, db, small+huge)
}

// heap returns the bytes that are in use.
func heap() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}
