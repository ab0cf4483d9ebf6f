package procs

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"millrace/internal/testenv"
)

func TestFollow(t *testing.T) {
	t.Setenv("GOMAXPROCS", "")
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	most := all()
	if most == 1 {
		t.Skip("there is one processor")
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	var tasks atomic.Uint64
	running.Go(func() { Follow(ctx, func() Tasks { return Tasks{All: tasks.Load()} }) })

	// work has a goroutine busy for a third of the time, with tasks of such a length, until all processors are used,
	// or fewer.
	work := func(task time.Duration, fewer bool) {
		t.Helper()
		done, stop := context.WithCancel(ctx)
		var worker sync.WaitGroup
		worker.Go(func() {
			for done.Err() == nil {
				for began := time.Now(); time.Since(began) < time.Millisecond/4; tasks.Add(1) {
					for at := time.Now(); time.Since(at) < task; {
					}
				}
				time.Sleep(time.Millisecond / 2)
			}
		})
		defer worker.Wait()
		defer stop()
		testenv.Eventually(t, time.Minute, fmt.Sprintf("tasks of %v have fewer processors: %v", task, fewer), func() bool { return runtime.GOMAXPROCS(0) < most == fewer })
	}
	work(long/4, true)
	work(4*long, false)
	work(long/4, true)
	cancel()
	running.Wait()
	if n := runtime.GOMAXPROCS(0); n != most {
		t.Errorf("%d processors when it has ended, %d before", n, most)
	}
}
