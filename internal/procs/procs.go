// Package procs has a process use as many processors as its load asks for.
//
// Go's scheduler spreads what there is to do over all processors that it may use. Where tasks take some microseconds and one
// processor could do them all, the others only add to the work: their threads are woken for one task, look for more and
// go to sleep again, what a task needs lies in another processor's cache, and the programs beside wait meanwhile.
package procs

import (
	"context"
	"os"
	"runtime"
	"time"
)

// The figures below are those of an API on two cores with RabbitMQ and a load generator. One that has a processor for 64
// to 256 clients, each of which waits for its answer, uses 0.55 to 0.85 of it, and its threads wait 25 times in a period or more.
const (
	// period is how often the load is looked at.
	period = 100 * time.Millisecond

	// idle is a load, in processors, that says nothing.
	idle = 0.1

	// full is the part of its processors that a process uses when it could use more ...
	full = 0.97

	// ... and waits how many times its threads have to wait in a period for something to do while there is any. A process
	// that could use more waits less also where it gets little of its processors, since others want them, or where
	// the kernel does not count interrupts as its time. The runtime's own watch over the others wakes every 10 ms.
	waits = 16

	// long is how much processor time tasks may take, on average, while not all processors are used: it is what one waits
	// for another while a processor is free.
	long = 50 * time.Microsecond

	// patience is how many times in a row fewer processors must be enough before one is given up. It grows by doubling, up
	// to maxPatience, when that was wrong: to set their number stops the process for a moment, after the end of a
	// garbage collection that is under way. None is given up while the last long tasks are not longer ago than afterLong.
	patience    = int(500 * time.Millisecond / period)
	maxPatience = int(time.Minute / period)
	afterLong   = int(time.Second / period)
)

// Tasks counts what a process has done so far.
type Tasks struct {
	All  uint64
	Long uint64 // of these, or beside them, what is known to take long
}

// load is what a process did in a period.
type load struct {
	busy  float64       // processors
	waits int           // of its threads, for something to do
	task  time.Duration // processor time for each; 0 where no task is known of
	long  bool          // there was a long one
}

// governor decides on a number of processors.
type governor struct {
	n, most  int
	patience int
	enough   int  // times in a row that fewer were
	since    int  // times since one was given up
	hold     int  // times for which none is
	judged   bool // whether that was right
}

func newGovernor(most int) *governor {
	return &governor{n: most, most: most, patience: patience, judged: true}
}

func (g *governor) look(l load) {
	g.since++
	g.hold = max(0, g.hold-1)
	switch {
	case l.busy < idle:
	case l.long, l.task == 0, l.task > long:
		g.n = g.most
		g.enough, g.hold = 0, afterLong
	case l.busy > full*float64(g.n), l.waits < waits:
		g.judge()
		g.n = min(2*g.n, g.most)
		g.enough = 0
	case l.busy > float64(g.n-1):
		g.enough = 0
	default:
		if g.enough++; g.enough >= g.patience && g.hold == 0 && g.n > 1 {
			g.n--
			g.enough, g.since, g.judged = 0, 0, false
		}
	}
}

// judge sets the patience by how soon the processor that was given up is wanted back.
func (g *governor) judge() {
	switch {
	case g.judged:
	case g.since <= patience:
		g.patience = min(2*g.patience, maxPatience)
	default:
		g.patience = patience
	}
	g.judged = true
}

// Follow keeps GOMAXPROCS between one and what it is by default, by what the process does, until ctx is done; then it is
// as by default. While it is less, a container's new limit is not taken note of. Where GOMAXPROCS is set in the environment, it
// stays. At most one Follow may run in a process.
func Follow(ctx context.Context, tasks func() Tasks) {
	if os.Getenv("GOMAXPROCS") != "" {
		return
	}
	defer runtime.SetDefaultGOMAXPROCS()
	tick := time.NewTicker(period)
	defer tick.Stop()
	g := newGovernor(runtime.GOMAXPROCS(0))
	at, was, did := time.Now(), used(), tasks()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if g.n == g.most {
			g.most = all()
			g.n = g.most
		}
		now, is, done := time.Now(), used(), tasks()
		l := load{
			busy:  float64(is.time-was.time) / float64(now.Sub(at)),
			waits: is.waits - was.waits,
			long:  done.Long > did.Long,
		}
		if n := done.All - did.All; n > 0 {
			l.task = (is.time - was.time) / time.Duration(n)
		}
		at, was, did = now, is, done
		n := g.n
		switch g.look(l); {
		case g.n == n:
		case g.n == g.most:
			all()
		default:
			runtime.GOMAXPROCS(g.n)
		}
	}
}

// all has Go use all processors there are, which may have become more or fewer in a container, and returns how many.
func all() int {
	runtime.SetDefaultGOMAXPROCS()
	return runtime.GOMAXPROCS(0)
}

// usage is what a process has taken so far.
type usage struct {
	time  time.Duration // of processors
	waits int           // times that one of its threads waited for something
}
