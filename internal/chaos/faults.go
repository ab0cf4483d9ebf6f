package chaos

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/broker"
	"millrace/internal/config"
)

// strike breaks something for as long as hold says, and heals it.
type strike func(ctx context.Context, s *system, target string, hold time.Duration, rng *rand.Rand) error

// fault is a way to break the system. strike breaks it, holds it broken, and heals it again; afterwards nothing of
// the fault is left. target is one of the fault's targets.
type fault struct {
	name    string
	targets []string
	least   time.Duration // of the hold
	most    time.Duration
	strike  strike
	touches func(target string) []string // the parts that it breaks; two faults at once touch different ones
	missing string                       // why it can't be had here; empty if it can
}

const (
	// fullDisk is the one fault that may end a server.
	fullDisk = "PostgreSQL: disk full"

	// unshielded is a fault that Millrace can't withstand.
	unshielded = "RabbitMQ: a policy that empties queues, without Millrace's own"
)

// healTimeout bounds the healing of one fault.
const healTimeout = 90 * time.Second

// faults returns all faults, those included that can't be had here.
func (s *system) faults(o Options, l *load) []fault {
	var all []fault
	add := func(f fault) {
		if f.touches == nil {
			f.touches = func(target string) []string { return []string{target} }
		}
		all = append(all, f)
	}
	const rabbitmq, postgres, redis = "rabbitmq", "postgresql", "redis" // parts, as faults' names begin
	nothing := func(string) []string { return nil }
	everything := func(string) []string {
		return []string{"api1", "api2", "worker1", "worker2", "query", rabbitmq, postgres, redis}
	}
	seconds := func(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }

	// Processes.
	for _, kind := range []string{"api", "worker"} {
		names := []string{kind + "1", kind + "2"}
		add(fault{name: kind + ": SIGKILL", targets: names, most: seconds(3), strike: strikeKill})
		add(fault{name: kind + ": frozen (SIGSTOP)", targets: names, least: seconds(1), most: seconds(16), strike: strikeFreeze})
		add(fault{name: kind + ": rolling restart (SIGTERM)", targets: []string{kind}, strike: strikeRolling,
			touches: func(string) []string { return names }})
		add(fault{name: kind + ": all of them SIGKILL", targets: []string{kind}, most: seconds(3), strike: strikeKillAll,
			touches: func(string) []string { return names }})
	}
	add(fault{name: "everything SIGKILL at once", targets: []string{"all"}, most: seconds(2), strike: strikePower, touches: everything})

	// RabbitMQ.
	server := func(name string, targets []string, least, most float64, do strike) {
		part, _, _ := strings.Cut(name, ":")
		add(fault{name: name, targets: targets, least: seconds(least), most: seconds(most), strike: do,
			touches: func(string) []string { return []string{strings.ToLower(part)} }})
	}
	server("RabbitMQ: SIGKILL", s.brokers, 0, 4, strikeServerKill)
	server("RabbitMQ: frozen (SIGSTOP)", s.brokers, 1, 14, strikeServerFreeze)
	server("RabbitMQ: restarted (SIGTERM)", s.brokers, 0, 1, strikeServerRestart)
	server("RabbitMQ: memory alarm", s.brokers, 1, 6, strikeCtl(
		[]string{"set_vm_memory_high_watermark", "0.000001"}, []string{"set_vm_memory_high_watermark", fmt.Sprintf("%.2f", 0.4/float64(len(s.brokers)))}))
	server("RabbitMQ: disk alarm", s.brokers, 1, 6, strikeCtl(
		[]string{"set_disk_free_limit", "1000000000000000"}, []string{"set_disk_free_limit", "1GB"}))
	server("RabbitMQ: connections closed", s.brokers[:1], 0, 0, strikeCtl([]string{"close_all_connections", "chaos"}, nil))
	// An operator's policy: it adds to the one of Millrace's own, which no other can displace.
	server("RabbitMQ: queue at its length limit", s.brokers[:1], 1, 6, strikeCtl(
		[]string{"set_operator_policy", "chaos", `^logs\.[0-9]+$`, `{"max-length-bytes":1}`, "--apply-to", "queues"}, []string{"clear_operator_policy", "chaos"}))
	server("RabbitMQ: queue unbound", []string{"all"}, 0, 3, strikeUnbind)
	server("RabbitMQ: exchange deleted", []string{"all"}, 0, 1, strikeExchange)
	server("RabbitMQ: somebody's tap in the place of the queue", []string{"all"}, 1, 4, strikeTap)
	add(fault{name: "RabbitMQ: a policy that empties queues", targets: s.brokers[:1], least: seconds(1), most: seconds(6), strike: strikePolicy,
		touches: func(string) []string { return []string{rabbitmq, "worker1", "worker2"} }})
	add(fault{name: unshielded, targets: s.brokers[:1], least: seconds(1), most: seconds(6), strike: strikeUnshielded,
		missing: "it loses records, as it must"})
	add(fault{name: "RabbitMQ: an empty queue deleted", targets: []string{"all"}, most: seconds(2), strike: strikeQueueDeleted, touches: everything})

	if len(s.brokers) > 1 {
		leader := []string{"leader"}
		server("RabbitMQ: leader SIGKILL", leader, 0, 6, ofLeader(strikeServerKill))
		server("RabbitMQ: leader frozen (SIGSTOP)", leader, 1, 25, ofLeader(strikeServerFreeze))
		server("RabbitMQ: leader cut off from the others", leader, 1, 12, ofLeader(strikeIsolate))
		server("RabbitMQ: a node cut off from the others", s.brokers, 1, 12, strikeIsolate)
		server("RabbitMQ: all nodes SIGKILL, one after another", []string{"all"}, 0, 2, strikeEachNode)
	}

	// PostgreSQL.
	one := []string{"postgres"}
	server("PostgreSQL: SIGKILL", one, 0, 4, strikeServerKill)
	server("PostgreSQL: immediate shutdown", one, 0, 4, strikeImmediate)
	server("PostgreSQL: restarted", one, 0, 1, strikeServerRestart)
	server("PostgreSQL: frozen (SIGSTOP)", one, 1, 14, strikeServerFreeze)
	server("PostgreSQL: sessions terminated", one, 1, 4, strikeTerminate)
	server("PostgreSQL: a session's process SIGKILL", one, 0, 0, strikeBackend)
	server("PostgreSQL: read only", one, 1, 6, strikeReadOnly)
	server("PostgreSQL: lock on the parent table", one, 1, 14, strikeLock)
	add(fault{name: "PostgreSQL: late records beside a slow export", targets: one, least: seconds(1), most: seconds(3), touches: everything,
		strike: func(ctx context.Context, s *system, _ string, hold time.Duration, _ *rand.Rand) error {
			return s.late.strike(ctx, s, l, hold)
		}})
	if s.archive != "" {
		all[len(all)-1].missing = "retention drops the partition that it needs"
	}
	server(fullDisk, one, 1, 5, strikeDisk)
	if s.disk == nil {
		all[len(all)-1].missing = s.noDisk.Error()
	}
	if s.archive != "" {
		for _, f := range s.archiveFaults(o) {
			add(f)
		}
	}

	// Redis, which no promise rests on.
	server("Redis: SIGKILL", []string{redis}, 0, 3, strikeServerKill)
	server("Redis: flushed", []string{redis}, 0, 0, strikeFlush)

	// The network.
	touched := func(target string) (parts []string) {
		for _, l := range s.linksOf(target) {
			parts = append(parts, "net "+l.name)
		}
		return parts
	}
	for _, class := range []string{clientAPI, apiBroker, workerBroker, workerPostgres} {
		var targets []string
		for _, l := range s.class(class) {
			targets = append(targets, l.name)
		}
		targets = append(targets, class)
		net := func(name string, least, most float64, w func(rng *rand.Rand) weather) {
			add(fault{name: class + ": " + name, targets: targets, least: seconds(least), most: seconds(most), touches: touched, strike: strikeWeather(w)})
		}
		net("delayed", 1, 5, func(rng *rand.Rand) weather {
			return weather{delay: time.Duration(20+rng.IntN(400)) * time.Millisecond}
		})
		net("throttled", 1, 5, func(rng *rand.Rand) weather { return weather{rate: 4<<10 + rng.IntN(60<<10)} })
		net("silent", 1, 25, func(*rand.Rand) weather { return weather{stall: true} })
		net("cut off", 0, 6, func(*rand.Rand) weather { return weather{refuse: true} })
	}
	wire := func(name, class string, way direction, pattern string, keep func(*rand.Rand) int) {
		add(fault{name: class + ": " + name, targets: []string{class}, least: seconds(8), most: seconds(8), touches: touched,
			strike: strikeTrap(way, pattern, keep)})
	}
	some := func(most int) func(*rand.Rand) int { return func(rng *rand.Rand) int { return rng.IntN(most) } }
	none := func(*rand.Rand) int { return 0 }
	wire("reset in the middle of a request", clientAPI, up, "POST /log", some(600))
	wire("reset in place of a 202", clientAPI, down, "HTTP/1.1 202", none)
	wire("reset in place of a shipper's 200", clientAPI, down, "HTTP/1.1 200", none)
	wire("reset in the middle of a frame published", apiBroker, up, amqpType, some(400))
	wire("reset in place of a confirm", apiBroker, down, amqpAck, none)
	wire("reset in the middle of a frame delivered", workerBroker, down, amqpType, some(400))
	wire("reset in place of an ack", workerBroker, up, amqpAck, none)
	begin, commit := prepared("BEGIN ISOLATION LEVEL READ COMMITTED"), prepared("COMMIT")
	wire("reset in the middle of the ledger's entries", workerPostgres, up, begin, func(rng *rand.Rand) int { return len(begin) + rng.IntN(300) })
	wire("reset in the middle of a COPY", workerPostgres, up, "PGCOPY\n\xff\r\n", some(2000))
	wire("reset in place of a COMMIT", workerPostgres, up, commit, none)
	wire("reset right after a COMMIT", workerPostgres, up, commit, func(*rand.Rand) int { return len(commit) + len(bindTail) })
	wire("reset in place of a COMMIT's answer", workerPostgres, down, "COMMIT\x00", none)

	// Clocks.
	for _, f := range []fault{
		{name: "clock of an API stepped", least: seconds(1), most: seconds(4), strike: strikeClock},
		{name: "clock of an API ahead for a second", least: seconds(1), most: seconds(1), strike: strikeGlitch},
	} {
		f.targets = []string{"api2"}
		if o.ClockBinary == "" {
			f.missing = "no binary with a clock that can be stepped"
		}
		add(f)
	}
	add(fault{name: "clock of the clients stepped", targets: []string{"clients"}, least: seconds(1), most: seconds(4), touches: nothing,
		strike: func(ctx context.Context, _ *system, _ string, hold time.Duration, rng *rand.Rand) error {
			// As far as an API takes keys: 24 h back, 5 min ahead.
			l.clock.Store(int64(time.Duration(rng.IntN(23*60)-23*60+4) * time.Minute))
			pause(ctx, hold)
			l.clock.Store(0)
			return nil
		}})
	return all
}

const (
	// amqpType is the type of a frame's message, as its header has it.
	amqpType = "millrace.frame.v1"
	// amqpAck is the method basic.ack, class 60, method 80.
	amqpAck = "\x00\x3c\x00\x50"
)

// bindTail is what follows a statement's name when it is executed without parameters: the rest of the message Bind (the
// name's end, three counts), Describe of the portal, Execute, Sync.
const bindTail = "\x00\x00\x00\x00\x00\x00\x00" + "D\x00\x00\x00\x06P\x00" + "E\x00\x00\x00\x09\x00\x00\x00\x00\x00" + "S\x00\x00\x00\x04"

// prepared returns the name under which pgx prepares a statement. Each time that the statement runs, its name travels.
func prepared(sql string) string {
	digest := sha256.Sum256([]byte(sql))
	return "stmtcache_" + hex.EncodeToString(digest[:24])
}

// strikeKill kills a process, and starts it again.
func strikeKill(ctx context.Context, s *system, target string, hold time.Duration, _ *rand.Rand) error {
	u := s.unit(target)
	err := u.kill()
	pause(ctx, hold)
	return errors.Join(err, u.start())
}

// strikeKillAll kills all processes of a kind, and starts them again.
func strikeKillAll(ctx context.Context, s *system, target string, hold time.Duration, _ *rand.Rand) error {
	var errs []error
	for _, u := range s.named(target) {
		errs = append(errs, u.kill())
	}
	pause(ctx, hold)
	for _, u := range s.named(target) {
		errs = append(errs, u.start())
	}
	return errors.Join(errs...)
}

// strikeFreeze stops a process in its tracks, and lets it go on.
func strikeFreeze(ctx context.Context, s *system, target string, hold time.Duration, _ *rand.Rand) error {
	u := s.unit(target)
	err := u.signal(syscall.SIGSTOP)
	pause(ctx, hold)
	return errors.Join(err, u.signal(syscall.SIGCONT))
}

// strikeRolling restarts the processes of a kind in order, one after another.
func strikeRolling(ctx context.Context, s *system, target string, _ time.Duration, _ *rand.Rand) error {
	for _, u := range s.named(target) {
		if err := u.stop(stopWithin); err != nil {
			s.surprise(err)
		}
		if err := u.start(); err != nil {
			return err
		}
		if err := u.ready(ctx); err != nil {
			return err
		}
	}
	return nil
}

// strikePower kills every process and server, as if the machine lost its power; what the file system was given stays.
func strikePower(ctx context.Context, s *system, _ string, hold time.Duration, _ *rand.Rand) error {
	servers := append([]string{"postgres", "redis"}, s.brokers...)
	var mu sync.Mutex
	var errs []error
	all := func(units func(*unit) error, server func(string) error) {
		var wg sync.WaitGroup
		do := func(f func() error) {
			wg.Go(func() {
				err := f()
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			})
		}
		for _, name := range servers {
			do(func() error { return server(name) })
		}
		for _, u := range s.units {
			do(func() error { return units(u) })
		}
		wg.Wait()
	}
	all((*unit).kill, s.kill)
	pause(ctx, hold)
	ctx, cancel := healing(ctx)
	defer cancel()
	all((*unit).start, func(name string) error { return s.restart(ctx, name) })
	return errors.Join(errs...)
}

// strikeServerKill kills a server, and starts it again.
func strikeServerKill(ctx context.Context, s *system, target string, hold time.Duration, _ *rand.Rand) error {
	err := s.kill(target)
	pause(ctx, hold)
	ctx, cancel := healing(ctx)
	defer cancel()
	return errors.Join(err, s.restart(ctx, target))
}

// strikeImmediate makes PostgreSQL shut down at once, without a checkpoint, and starts it again.
func strikeImmediate(ctx context.Context, s *system, target string, hold time.Duration, _ *rand.Rand) error {
	err := s.stack.Signal(target, syscall.SIGQUIT)
	pause(ctx, hold)
	ctx, cancel := healing(ctx)
	defer cancel()
	return errors.Join(err, s.restart(ctx, target))
}

// strikeServerRestart stops a server in order, and starts it again.
func strikeServerRestart(ctx context.Context, s *system, target string, hold time.Duration, _ *rand.Rand) error {
	if target != "postgres" { // its orderly stop is part of a restart
		if err := s.stack.Signal(target, syscall.SIGTERM); err != nil {
			return err
		}
	}
	pause(ctx, hold)
	ctx, cancel := healing(ctx)
	defer cancel()
	return s.restart(ctx, target)
}

// strikeServerFreeze stops a server in its tracks, and lets it go on.
func strikeServerFreeze(ctx context.Context, s *system, target string, hold time.Duration, _ *rand.Rand) error {
	err := s.stack.Signal(target, syscall.SIGSTOP)
	pause(ctx, hold)
	return errors.Join(err, s.stack.Signal(target, syscall.SIGCONT))
}

// restart starts a server again. It tries until that succeeds or ctx ends.
func (s *system) restart(ctx context.Context, name string) error {
	return again(ctx, func() error { return s.stack.Restart(ctx, name) })
}

// strikeCtl returns a strike that runs rabbitmqctl with the arguments breaks, and then with heals to undo that. heals may be nil.
func strikeCtl(breaks, heals []string) strike {
	return func(ctx context.Context, s *system, target string, hold time.Duration, _ *rand.Rand) error {
		_, err := s.stack.RabbitMQCtlOn(ctx, target, breaks...)
		if heals == nil {
			return err
		}
		if err != nil {
			_, _ = s.stack.RabbitMQCtlOn(ctx, target, heals...) // there is probably nothing to heal
			return err
		}
		pause(ctx, hold)
		ctx, cancel := healing(ctx)
		defer cancel()
		return errors.Join(err, again(ctx, func() error {
			_, err := s.stack.RabbitMQCtlOn(ctx, target, heals...)
			return err
		}))
	}
}

// ofLeader returns a strike on the node that leads the first queue.
func ofLeader(do strike) strike {
	return func(ctx context.Context, s *system, _ string, hold time.Duration, rng *rand.Rand) error {
		leader, err := s.leader(ctx)
		if err != nil {
			return err
		}
		return do(ctx, s, leader, hold, rng)
	}
}

// strikeIsolate cuts a node of the cluster off from the others.
func strikeIsolate(ctx context.Context, s *system, target string, hold time.Duration, _ *rand.Rand) error {
	err := s.stack.Isolate(ctx, target)
	pause(ctx, hold)
	ctx, cancel := healing(ctx)
	defer cancel()
	err = errors.Join(err, again(ctx, func() error { return s.stack.Rejoin(ctx, target) }))
	// A node in the minority had stopped its application, and starts it again.
	return errors.Join(err, again(ctx, func() error {
		conn, err := broker.Dial(ctx, config.Brokers(s.stack.BrokerURL(target)), "chaos fault")
		if err == nil {
			conn.End(time.Second)
		}
		return err
	}))
}

// strikeEachNode kills the nodes of the cluster by turns, each as soon as the one before is back.
func strikeEachNode(ctx context.Context, s *system, _ string, hold time.Duration, rng *rand.Rand) error {
	for _, name := range s.brokers {
		if err := strikeServerKill(ctx, s, name, hold, rng); err != nil {
			return err
		}
	}
	return nil
}

// ofWorkers is the rest of a statement about the workers' sessions.
const ofWorkers = ` FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'millrace worker'`

// strikeTerminate ends the workers' sessions, again and again.
func strikeTerminate(ctx context.Context, s *system, _ string, hold time.Duration, rng *rand.Rand) error {
	for end := time.Now().Add(hold); ; {
		if err := s.sql(ctx, "SELECT count(pg_terminate_backend(pid))"+ofWorkers); err != nil {
			return err
		}
		if time.Now().After(end) {
			return nil
		}
		pause(ctx, time.Duration(50+rng.IntN(400))*time.Millisecond)
	}
}

// strikeBackend kills the process of one of the workers' sessions; PostgreSQL then restarts all of them.
func strikeBackend(ctx context.Context, s *system, _ string, _ time.Duration, rng *rand.Rand) error {
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(ctx) // it is ended by the server
	rows, err := conn.Query(ctx, "SELECT pid"+ofWorkers+" ORDER BY state = 'active' DESC, pid")
	if err != nil {
		return err
	}
	pids, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil || len(pids) == 0 {
		return err
	}
	return syscall.Kill(pids[rng.IntN(len(pids))], syscall.SIGKILL)
}

// strikeReadOnly makes the database read only.
func strikeReadOnly(ctx context.Context, s *system, _ string, hold time.Duration, _ *rand.Rand) error {
	set := func(ctx context.Context, how string) error {
		return s.sql(ctx, "ALTER SYSTEM "+how, "SELECT pg_reload_conf()", "SELECT count(pg_terminate_backend(pid))"+ofWorkers)
	}
	err := set(ctx, "SET default_transaction_read_only = on")
	pause(ctx, hold)
	ctx, cancel := healing(ctx)
	defer cancel()
	return errors.Join(err, again(ctx, func() error { return set(ctx, "RESET default_transaction_read_only") }))
}

// strikeLock locks logs or the ledger against everybody.
func strikeLock(ctx context.Context, s *system, _ string, hold time.Duration, rng *rand.Rand) error {
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx)) // which ends the transaction
	table := []string{"logs", "ledger"}[rng.IntN(2)]
	if _, err := conn.Exec(ctx, "BEGIN; LOCK TABLE "+table+" IN ACCESS EXCLUSIVE MODE"); err != nil {
		return err
	}
	pause(ctx, hold)
	return nil
}

// strikeDisk fills the file system of PostgreSQL's data. It may end the server, when there is no room for its log.
func strikeDisk(ctx context.Context, s *system, target string, hold time.Duration, _ *rand.Rand) error {
	err := s.disk.fill()
	pause(ctx, hold)
	err = errors.Join(err, s.disk.free())
	ctx, cancel := healing(ctx)
	defer cancel()
	for range 20 {
		if s.sql(ctx, "SELECT 1") == nil {
			return err
		}
		pause(ctx, 500*time.Millisecond)
	}
	return errors.Join(err, s.restart(ctx, target))
}

// strikeFlush deletes all that Redis has.
func strikeFlush(ctx context.Context, s *system, _ string, _ time.Duration, _ *rand.Rand) error {
	return s.flushRedis(ctx)
}

// strikeWeather returns a strike that changes the weather of one link, or of a class of them.
func strikeWeather(of func(*rand.Rand) weather) strike {
	return func(ctx context.Context, s *system, target string, hold time.Duration, rng *rand.Rand) error {
		w := of(rng)
		links := s.linksOf(target)
		for _, l := range links {
			l.set(w)
			if w.refuse {
				l.cut()
			}
		}
		pause(ctx, hold)
		for _, l := range links {
			l.set(weather{})
		}
		return nil
	}
}

// strikeTrap returns a strike that resets a few connections of a class at the sight of some bytes. The hold is the longest wait for
// those bytes.
func strikeTrap(way direction, pattern string, keep func(*rand.Rand) int) strike {
	return func(ctx context.Context, s *system, target string, hold time.Duration, rng *rand.Rand) error {
		t := newTrap(way, pattern, keep(rng), 1+rng.IntN(4))
		links := s.linksOf(target)
		for _, l := range links {
			l.set(weather{trap: t})
		}
		select {
		case <-t.done:
		case <-time.After(hold):
		case <-ctx.Done():
		}
		for _, l := range links {
			l.set(weather{})
		}
		if t.count() == 0 {
			return errors.New("what it waits for did not come by")
		}
		return nil
	}
}

// linksOf returns the link with that name, or the links of that class.
func (s *system) linksOf(target string) (links []*link) {
	for _, l := range s.links {
		if l.name == target || l.class == target {
			links = append(links, l)
		}
	}
	return links
}

// clockSteps are how far api2's clock is stepped: within a partition and out of it, further back than the ledger remembers, ahead.
var clockSteps = []time.Duration{
	-9 * 24 * time.Hour, -25 * time.Hour, -time.Hour, -3 * time.Second, 90 * time.Second, 3 * time.Hour, 30 * time.Hour,
}

// strikeClock steps the clock that api2 makes ids by, there and back.
func strikeClock(ctx context.Context, s *system, _ string, hold time.Duration, rng *rand.Rand) error {
	err := s.setClock(clockSteps[rng.IntN(len(clockSteps))])
	pause(ctx, hold)
	return errors.Join(err, s.setClock(0))
}

// strikeGlitch makes the clock that api2 makes ids by jump far ahead, and back after a second, as some virtual machines' do.
// What is posted later must not be dated ahead: see load.checkTime.
func strikeGlitch(ctx context.Context, s *system, _ string, hold time.Duration, _ *rand.Rand) error {
	err := s.setClock(30 * time.Hour)
	pause(ctx, hold)
	return errors.Join(err, s.setClock(0))
}

// pause waits for d, or until ctx is done.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// healing returns a context for the healing of a fault. It does not end with ctx: a fault is healed even when the run must end.
func healing(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), healTimeout)
}

// again calls f until it succeeds or ctx ends.
func again(ctx context.Context, f func() error) error {
	for {
		err := f()
		if err == nil || ctx.Err() != nil {
			return err
		}
		pause(ctx, 500*time.Millisecond)
	}
}

// apart reports whether two faults touch different parts.
func (f fault) apart(target string, g fault, other string) bool {
	mine := f.touches(target)
	return !slices.ContainsFunc(g.touches(other), func(part string) bool { return slices.Contains(mine, part) })
}
