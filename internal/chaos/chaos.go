package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"millrace/internal/config"
	"millrace/internal/frame"
	"millrace/internal/localstack"
)

// Options are what Run is to do.
type Options struct {
	Binary      string // of millrace
	ClockBinary string // the same with a clock that can be stepped (see BuildClock), for api2; empty: Binary
	Seed        uint64
	// Duration is how long faults strike; the start, and the wait for the queues to be empty, come on top. Rounds is
	// how often each fault strikes at least, however long that takes.
	Duration time.Duration
	Rounds   int
	Rate     int           // records a second
	Clients  int           // that post at once
	Every    time.Duration // from one fault's beginning to the next's, at least
	Brokers  int           // RabbitMQ nodes
	// Faults are beginnings of the names of the faults that strike. With a minus before it, a beginning names faults that
	// don't. Empty: all strike.
	Faults []string
	// Alone has one fault strike at a time.
	Alone bool
	// Archive has partitions of two minutes copied to an archive, which is a folder, and dropped soon. The binaries must have been built with
	// ArchiveEdits. Records are counted through the query service all along.
	Archive bool
	// Short has faults last a quarter of their time.
	Short bool
	// Plan replaces the schedule.
	Plan []Step
	// Patience is how long the system may take to recover from a fault; 0 is 90 s.
	Patience time.Duration
	// Stack, when set, are the servers to use; else Run starts its own, with a small disk for PostgreSQL.
	Stack     *localstack.Stack
	KeepFiles bool      // the folder with logs and data stays, as it does after a mismatch
	Out       io.Writer // progress
}

// Step is a fault of the schedule.
type Step struct {
	Fault, Target string
	Hold          time.Duration
	After         time.Duration // of a second fault: from the first one's beginning
	With          *Step         // a second fault
	seed          uint64
}

func (s Step) String() string {
	text := s.Fault
	if s.Target != "" {
		text += " [" + s.Target + "]"
	}
	text += fmt.Sprintf(" for %v", s.Hold.Round(10*time.Millisecond))
	if s.After > 0 {
		text += fmt.Sprintf(" after %v", s.After.Round(10*time.Millisecond))
	}
	if s.With != nil {
		text += " and " + s.With.String()
	}
	return text
}

// event is a fault that struck.
type event struct {
	step     Step
	from, to time.Duration // to: healed
	err      error         // why it did not strike as meant ...
	second   error         // ... and the second fault
	full     time.Duration // from the healing until the clients were served at full speed again; -1: never
	stored   time.Duration // until all was stored that had been acked by the healing; -1: never
	longest  time.Duration // the longest wait of a client for a 2xx, of those waits that were mostly under this fault
}

// run is a run under way.
type run struct {
	Options
	*system
	load   *load
	poison *poison
	watch  *watch
	reader *reader
	known  []fault

	replayed int // dead letters that were no poison

	mu         sync.Mutex // also of Out
	events     []*event
	mismatches []Mismatch
	counts     map[mismatch]int // of all mismatches, also those not kept
}

const (
	// startTimeout is how long a system without faults may take to reach the rate.
	startTimeout = 30 * time.Second

	// newQueueTime is how long queues are left alone after they were declared. RabbitMQ 3.10 writes a queue's registration
	// down about a second late, and loses the queue when it is killed before: it has no leader then, and confirms nothing until it is
	// deleted (rabbitmq/ra#443; internal/broker/README.md).
	newQueueTime = 3 * time.Second

	// mostStuck is after how many faults in a row without a recovery no more faults strike: what follows would tell nothing, and
	// take the patience each time.
	mostStuck = 3

	// strikeTimeout is how long a fault may take beside its hold. It is for the harness's own connections: a fault heals itself sooner.
	strikeTimeout = 3 * healTimeout
)

// Run makes a run, and returns its report, which has the mismatches. An error says why there could be no run.
func Run(ctx context.Context, o Options) (report *Report, err error) {
	if o.Out == nil {
		o.Out = io.Discard
	}
	if o.Patience == 0 {
		o.Patience = 90 * time.Second
	}
	if o.Rate < 1 || o.Clients < 1 || o.Rounds < 0 || o.Duration < 0 {
		return nil, fmt.Errorf("%d records/s of %d clients, %d rounds, %v: takes 1 or more of the first two, and nothing below 0",
			o.Rate, o.Clients, o.Rounds, o.Duration)
	}
	r := &run{Options: o, counts: make(map[mismatch]int)}
	began := time.Now()
	r.system, err = newSystem(ctx, o, func(err error) { r.mismatch(died, "%v", err) })
	defer func() {
		failed := err != nil && r.load != nil && ctx.Err() == nil
		if failed || report != nil && !report.OK() {
			r.system.keep = r.system.keep || o.Stack == nil
		}
		if r.system.keep {
			r.say("logs and data stay in %s", r.system.dir)
		}
		if closeErr := r.system.close(); closeErr != nil {
			err = errors.Join(err, fmt.Errorf("stop: %w", closeErr))
		}
	}()
	if err != nil {
		return nil, err
	}
	requests := min(float64(o.Rate)/8, 250) // a second
	m := newMaker(o.Seed, float64(o.Rate)/requests, time.Now())
	if o.Archive {
		m.doorsEvery = time.Duration(float64(o.Clients) / requests * float64(time.Second))
	}
	r.load = newLoad(m, o.Clients, requests, r.doors(), r.mismatch)
	r.onClock = func(offset time.Duration) {
		if offset == 0 {
			r.load.clocksRightAt.Store(time.Now().UnixNano())
		} else {
			r.load.clocksRightAt.Store(math.MaxInt64 / 2)
		}
	}
	r.poison = &poison{maker: m, urls: config.Brokers(r.stack.RabbitMQURL), topology: r.topology, exchange: &r.exchange, every: 700 * time.Millisecond, report: r.mismatch}
	r.late = &late{maker: m, binary: o.Binary}
	r.reader = newReader(r)
	r.asker = r.reader
	r.known = r.faults(o, r.load)
	if err := r.checkFaults(); err != nil {
		return nil, err
	}
	for _, u := range r.units {
		if err := u.ready(ctx); err != nil {
			return nil, err
		}
	}
	r.say("servers and processes are up after %v; seed %d", time.Since(began).Round(time.Second), o.Seed)

	r.load.began = time.Now()
	r.watch = &watch{run: r}
	watching, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	posting, stopPosting := context.WithCancel(ctx)
	defer stopPosting()
	giveUp, giveUpNow := context.WithCancel(ctx)
	defer giveUpNow()
	var all, clients sync.WaitGroup
	all.Go(func() { r.watch.follow(watching) })
	all.Go(func() { r.noteDeaths(watching) })
	clients.Go(func() { r.load.run(posting, giveUp) })
	clients.Go(func() { r.poison.run(posting, giveUp) })
	clients.Go(func() { r.reader.follow(posting) })
	if o.Archive {
		clients.Go(func() { r.reader.followClients(posting) })
	}
	conductErr := r.conduct(ctx)
	stopPosting()
	late := time.AfterFunc(o.Patience, giveUpNow)
	clients.Wait()
	late.Stop()
	r.say("all clients have ended")
	if err := errors.Join(conductErr, ctx.Err()); err != nil {
		stopWatching()
		all.Wait()
		return nil, err
	}
	drained := r.drain(ctx)
	if o.Archive && drained == nil {
		if r.replayed, drained = r.replayAll(ctx); r.replayed > 0 {
			r.say("%d dead letters were replayed", r.replayed)
		}
	}
	stopWatching()
	all.Wait()
	if drained != nil {
		r.mismatch(stuck, "%v", drained)
	}
	return r.reconcile(ctx)
}

// say writes a line about the progress to Out.
func (r *run) say(format string, args ...any) {
	at := ""
	if r.load != nil && !r.load.began.IsZero() {
		at = stamp(time.Since(r.load.began)) + " "
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.Out, at+format+"\n", args...)
}

// noteDeaths notes a mismatch for each server that ends by itself, until ctx is done. PostgreSQL may do so while there is no room
// for its log.
func (r *run) noteDeaths(ctx context.Context) {
	for {
		select {
		case err := <-r.stack.Died():
			now := time.Since(r.load.began)
			inForce := r.inForce(now-10*time.Second, now)
			if !strings.HasPrefix(err.Error(), "postgres ") || !strings.Contains(inForce, fullDisk) {
				r.mismatch(died, "%v%s", err, inForce)
			}
		case <-ctx.Done():
			return
		}
	}
}

// ready waits until the process answers that it is ready. It fails after healTimeout.
func (u *unit) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, healTimeout)
	defer cancel()
	for {
		if status, _ := readiness(ctx, http.DefaultClient, u.addr); status == http.StatusOK {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s is not ready; the end of its log:\n%s", u.name, u.tail())
		}
		pause(ctx, 50*time.Millisecond)
	}
}

// conduct makes the steps of the schedule strike one after another, and waits after each until the system has settled. It fails if
// the system does not reach the rate without faults.
func (r *run) conduct(ctx context.Context) error {
	steps := r.schedule()
	if full, _ := r.settle(ctx, max(startTimeout, r.Patience)); full < 0 && ctx.Err() == nil {
		return fmt.Errorf("%d records/s are not reached without faults; take a lower rate", r.Rate)
	}
	pause(ctx, time.Until(r.load.began.Add(newQueueTime)))
	inARow := 0 // faults without a recovery
	for {
		began := time.Now()
		step, ok := steps()
		if !ok || ctx.Err() != nil {
			return ctx.Err()
		}
		e := &event{step: step, from: time.Since(r.load.began)}
		r.mu.Lock()
		r.events = append(r.events, e)
		r.mu.Unlock()
		r.say("%s", step)
		err, second := r.strike(ctx, step)
		r.mu.Lock()
		e.to, e.err, e.second = time.Since(r.load.began), err, second
		r.mu.Unlock()
		e.full, e.stored = r.settle(ctx, r.Patience)
		if err := errors.Join(err, second); err != nil {
			r.say("    could not be done as meant: %v", err)
		}
		if (e.full < 0 || e.stored < 0) && ctx.Err() == nil {
			r.mismatch(stuck, "no full speed, or not all stored, within %v of the end of: %s", r.Patience, step)
			r.say("%s", r.state(ctx))
			if inARow++; inARow == mostStuck {
				r.say("no recovery %d times in a row: the rest of the faults does not strike", mostStuck)
				return nil
			}
		} else {
			inARow = 0
		}
		pause(ctx, time.Until(began.Add(r.Every)))
	}
}

// strike makes a step's faults strike, and returns for each why it did not strike as meant.
func (r *run) strike(ctx context.Context, step Step) (first, second error) {
	f := r.fault(step.Fault)
	longest := step.Hold
	if w := step.With; w != nil {
		longest = max(longest, w.After+w.Hold)
	}
	ctx, cancel := context.WithTimeout(ctx, longest+strikeTimeout)
	defer cancel()
	var wg sync.WaitGroup
	if w := step.With; w != nil {
		g := r.fault(w.Fault)
		wg.Go(func() {
			pause(ctx, w.After)
			second = g.strike(ctx, r.system, w.Target, w.Hold, rand.New(rand.NewPCG(w.seed, 2)))
		})
	}
	first = f.strike(ctx, r.system, step.Target, step.Hold, rand.New(rand.NewPCG(step.seed, 2)))
	wg.Wait()
	return first, second
}

// fault returns the fault with that name.
func (r *run) fault(name string) fault {
	for _, f := range r.known {
		if f.name == name {
			return f
		}
	}
	panic("no fault is called " + name)
}

// checkFaults returns an error if one of Faults is the beginning of no fault's name, or if they leave no fault to strike.
func (r *run) checkFaults() error {
	for _, name := range r.Faults {
		name = strings.TrimPrefix(name, "-")
		if name == "" || !slices.ContainsFunc(r.known, func(f fault) bool { return strings.HasPrefix(f.name, name) }) {
			return fmt.Errorf("no fault's name begins with %q", name)
		}
	}
	if r.Plan == nil && len(r.chosen()) == 0 {
		return errors.New("no fault is left to strike")
	}
	return nil
}

// chosen returns the faults that may strike.
func (r *run) chosen() (faults []fault) {
	begins := func(name string, with string) bool { return strings.HasPrefix(name, with) }
	for _, f := range r.known {
		some, take := false, false
		for _, w := range r.Faults {
			if not, ok := strings.CutPrefix(w, "-"); ok {
				if begins(f.name, not) {
					some, take = true, false
					break
				}
				continue
			}
			some = true
			take = take || begins(f.name, w)
		}
		if (take || !some) && f.missing == "" {
			faults = append(faults, f)
		}
	}
	return faults
}

// schedule returns a function that returns the next step, or false after the last. In a round each fault strikes once. Each round
// has an order of its own.
func (r *run) schedule() func() (Step, bool) {
	if r.Plan != nil {
		left := r.Plan
		return func() (Step, bool) {
			if len(left) == 0 {
				return Step{}, false
			}
			s := left[0]
			left = left[1:]
			return s, true
		}
	}
	faults := r.chosen()
	rng := rand.New(rand.NewPCG(r.Seed, 3))
	end := time.Now().Add(r.Duration)
	var deck []fault
	rounds := 0
	step := func(f fault) Step {
		s := Step{Fault: f.name, Target: f.targets[rng.IntN(len(f.targets))], seed: rng.Uint64(), Hold: f.least}
		if d := f.most - f.least; d > 0 {
			s.Hold += time.Duration(rng.Int64N(int64(d)))
		}
		if r.Short {
			s.Hold /= 4
		}
		return s
	}
	return func() (Step, bool) {
		if len(deck) == 0 {
			if rounds >= r.Rounds && !time.Now().Before(end) || len(faults) == 0 {
				return Step{}, false
			}
			deck = slices.Clone(faults)
			rng.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
			rounds++
		}
		if rounds > r.Rounds && !time.Now().Before(end) {
			return Step{}, false
		}
		f := deck[0]
		deck = deck[1:]
		s := step(f)
		second := faults[rng.IntN(len(faults))]
		with := step(second)
		if twice := rng.IntN(4) == 0; twice && !r.Alone && f.apart(s.Target, second, with.Target) {
			with.After = time.Duration(rng.Int64N(int64(s.Hold + time.Second)))
			s.With = &with
		}
		return s, true
	}
}

// settle waits until the clients are served at full speed, and until all is stored that they were acked before. It returns how
// long each took, or -1 if it took longer than patience.
func (r *run) settle(ctx context.Context, patience time.Duration) (full, stored time.Duration) {
	const (
		tick   = 50 * time.Millisecond
		enough = 0.8 // of the rate: full speed
	)
	window := time.Second
	if r.Short {
		window /= 2
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	began := time.Now()
	full, stored = -1, -1
	var storing sync.WaitGroup
	storing.Go(func() {
		if r.allStored(ctx, r.load.newest()) {
			stored = time.Since(began)
		}
	})
	type count struct {
		at time.Time
		n  int64
	}
	counts := []count{{began, r.load.acked.Load()}}
	for full < 0 && ctx.Err() == nil {
		pause(ctx, tick)
		now := time.Now()
		counts = append(counts, count{now, r.load.acked.Load()})
		for now.Sub(counts[0].at) > window+tick {
			counts = counts[1:]
		}
		span := now.Sub(counts[0].at)
		if n := counts[len(counts)-1].n - counts[0].n; span >= window && float64(n) >= enough*r.load.rate*span.Seconds() {
			full = max(now.Sub(began)-span, 0) // full speed began when the window did
		}
	}
	storing.Wait()
	return full, stored
}

// allStored waits until the records with these ids, which are the first of their requests, are in logs. It reports false if ctx ends before.
func (s *system) allStored(ctx context.Context, ids []uuid.UUID) bool {
	times := make([]time.Time, len(ids))
	for i, id := range ids {
		times[i] = frame.Time(id)
	}
	for ; ctx.Err() == nil; pause(ctx, 50*time.Millisecond) {
		conn, err := s.connect(ctx)
		if err != nil {
			continue
		}
		n := -1
		for err == nil && n < len(ids) && ctx.Err() == nil {
			if n >= 0 {
				pause(ctx, 50*time.Millisecond)
			}
			if s.archive != "" { // the rows may have left the table; their transaction entered them into the ledger
				err = conn.QueryRow(ctx, "SELECT count(*) FROM ledger WHERE id = ANY ($1)", ids).Scan(&n)
			} else {
				err = conn.QueryRow(ctx, "SELECT count(*) FROM logs WHERE inserted_at = ANY ($1) AND id = ANY ($2)", times, ids).Scan(&n)
			}
		}
		_ = conn.Close(ctx)
		if n >= len(ids) {
			return true
		}
	}
	return false
}

// drain stops the APIs, and waits until every queue is empty and no worker holds anything. In the end all of them have stopped.
func (r *run) drain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*r.Patience)
	defer cancel()
	var errs []error
	for _, u := range r.named("api") {
		if err := u.stop(stopWithin); err != nil {
			errs = append(errs, err)
		}
	}
	for {
		left := -1
		for left != 0 {
			waiting, err := r.waiting(ctx)
			if err == nil {
				if left = 0; waiting[r.topology.ParkedQueue()] > 0 {
					return fmt.Errorf("%d messages are parked", waiting[r.topology.ParkedQueue()])
				}
				for _, n := range waiting {
					left += n
				}
			}
			if ctx.Err() != nil {
				return fmt.Errorf("the queues do not get empty: %v, %v", waiting, err)
			}
			if left != 0 {
				pause(ctx, 100*time.Millisecond)
			}
		}
		// An orderly stop gives back what is not stored.
		for _, u := range r.named("worker") {
			if err := u.stop(stopWithin); err != nil {
				errs = append(errs, err)
			}
		}
		waiting, err := r.waiting(ctx)
		n := 0
		for _, w := range waiting {
			n += w
		}
		if err == nil && n == 0 {
			return errors.Join(errs...)
		}
		for _, u := range r.named("worker") {
			if err := u.start(); err != nil {
				return err
			}
		}
	}
}

// inForce returns a text with a line for each fault that was in force at some time between from and to.
func (r *run) inForce(from, to time.Duration) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for _, e := range r.events {
		if e.from <= to && (e.to >= from || e.to == 0) {
			names = append(names, fmt.Sprintf("\n      %s–%s %s", stamp(e.from), stamp(e.to), e.step))
		}
	}
	return strings.Join(names, "")
}

// inForceNow returns what inForce does of the last seconds.
func (r *run) inForceNow() string {
	now := time.Since(r.load.began)
	return r.inForce(now-20*time.Second, now)
}

// flushRedis deletes all that Redis has.
func (s *system) flushRedis(ctx context.Context) error {
	o, err := redis.ParseURL(s.stack.RedisURL)
	if err != nil {
		return err
	}
	c := redis.NewClient(o)
	return errors.Join(c.FlushAll(ctx).Err(), c.Close())
}

// Write writes the report and its picture into a folder.
func (r *Report) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "report.md"), []byte(r.Markdown()), 0o644),
		os.WriteFile(filepath.Join(dir, "resources.svg"), r.Picture(), 0o644),
	)
}
