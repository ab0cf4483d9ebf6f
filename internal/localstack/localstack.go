// Package localstack runs private PostgreSQL, RabbitMQ and Redis servers for one
// millrace process, so that trying it, working on it and testing it needs no
// set-up beyond the installed server packages.
//
// It promises:
//
//   - Servers that already run on the machine are never touched, nor are their
//     settings read: each private server has its own port, data, account and, for
//     RabbitMQ, its own epmd. Everything listens on 127.0.0.1 only.
//   - Durability is real: nothing that protects committed rows or confirmed
//     messages is switched off.
//   - No process is left behind: not after Stop, not after a failed or cancelled
//     Start, and not after this process is killed outright. A temporary folder
//     goes with Stop or, where nobody lived to call it, with a later Start.
//   - One owner at a time: a folder is locked while its servers run.
//
// Local servers need Linux, because the third promise rests on parent-death
// signals and /proc. Elsewhere, or if a server is not installed, containers are
// used, if the program is built with the tag containers (see containers.go).
//
// Goroutines: a Stack owns one goroutine that starts every process (Launcher), one
// for each running process that waits for its end (process), and with containers
// one that watches them. All have returned when Stop has.
package localstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"millrace/internal/config"
)

// The servers' names, as Kill, Restart and Signal take them. The nodes of a RabbitMQ cluster are rabbitmq-1,
// rabbitmq-2 and so on: see Stack.Brokers.
const (
	postgres = "postgres"
	rabbitmq = "rabbitmq"
	redis    = "redis"
)

const (
	// startTimeout bounds one server's start. RabbitMQ, the slowest, takes 5 s on
	// two free cores; the rest is for recovery after a crash and loaded machines.
	startTimeout = 4 * time.Minute
	// stopTimeout bounds Stop when its context has no deadline.
	stopTimeout = 30 * time.Second
)

// Need is which servers to start.
type Need struct{ Postgres, RabbitMQ, Redis bool }

// names returns the names of the servers, sorted.
func (n Need) names() []string {
	var names []string
	for name, wanted := range map[string]bool{postgres: n.Postgres, rabbitmq: n.RabbitMQ, redis: n.Redis} {
		if wanted {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Options are what Start is to start, and where.
type Options struct {
	// Dir is the folder of data, passwords and logs; it is made when missing and
	// kept. Empty: a temporary folder, removed by Stop. Containers do not use
	// it: their data lives as long as they do.
	Dir string
	// Need says which servers to start. None is allowed.
	Need Need
	// Brokers is how many nodes RabbitMQ has: 1 (0 means 1 too), 3 or 5. A folder keeps its number. More than one node needs
	// servers that are installed here, and takes twice the time to start for the first time.
	Brokers int
	// Metrics has RabbitMQ serve its metrics for Prometheus: see Stack.RabbitMQMetrics.
	Metrics bool
	// Management has RabbitMQ serve its management API, where it runs from local binaries: see Stack.RabbitMQManagement.
	// It does not go with Metrics, which switches the management's statistics off.
	Management bool
	// Log takes progress at level info and details at level debug; nil: nothing is logged.
	Log *slog.Logger
}

// Stack is a set of running private servers. Its methods may be called from any
// goroutine, except that Stop ends the Stack: nothing may be called with or after
// it but Stop again.
type Stack struct {
	// The servers' addresses, with user and password; empty for a server that was
	// not asked for. They stay the same until Stop, Restart included. That of a RabbitMQ
	// cluster is its nodes' addresses, separated by commas.
	PostgresURL, RabbitMQURL, RedisURL string
	// RabbitMQMetrics holds host:port of each node's metrics, when Options.Metrics asked for them and RabbitMQ runs
	// from local binaries.
	RabbitMQMetrics []string
	// RabbitMQManagement holds the URL of each node's management API, with user and password, when Options.Management
	// asked for them.
	RabbitMQManagement config.ManagementURLs

	provider provider
	servers  map[string]server
	brokers  []string // names of RabbitMQ's nodes
	died     chan error
	log      *slog.Logger

	stop    sync.Once
	stopErr error
}

// provider is a way to run servers: installed binaries, or containers.
type provider interface {
	// start starts the named server and returns when a client can work with it.
	// It leaves nothing running when it fails. Several may start at once.
	start(ctx context.Context, name string) (server, error)
	// close frees what the servers shared. All of them have been stopped.
	close() error
}

// server is one running server.
type server interface {
	url() string
	// stop ends the server in order, and by force once ctx ends.
	stop(ctx context.Context) error
	kill() error
	restart(ctx context.Context) error
	signal(sig os.Signal) error
	// control runs the server's own control program.
	control(ctx context.Context, args ...string) (output string, err error)
}

// Start starts the needed servers side by side and returns when a client can work
// with each: after about 5 s, most of it RabbitMQ's. It takes binaries installed on
// this machine if all the needed ones are there, else containers, if the program has
// the tag containers and a Docker engine answers. Else it fails, and the error is one
// line with the command that installs what is missing. MILLRACE_STACK=local or
// containers leaves no choice.
//
// ctx bounds the start alone: when it ends first, what was started is stopped and
// its error returned. Once Start has returned, only Stop ends the servers.
func Start(ctx context.Context, o Options) (*Stack, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Brokers = max(o.Brokers, 1); o.Brokers != 1 && o.Brokers != 3 && o.Brokers != 5 {
		return nil, fmt.Errorf("RabbitMQ with %d nodes: want 1, 3 or 5, so that a majority is left when one is gone", o.Brokers)
	}
	s := &Stack{servers: map[string]server{}, died: make(chan error, 1), log: o.Log}
	began := time.Now()
	var err error
	if s.provider, err = newProvider(ctx, o, s.report); err != nil {
		return nil, err
	}

	names := o.Need.names()
	if i := slices.Index(names, rabbitmq); i >= 0 {
		s.brokers = brokerNames(o.Brokers)
		names = slices.Replace(names, i, i+1, s.brokers...)
	}
	servers := make([]server, len(names))
	errs := make([]error, len(names))
	// One failure ends the other starts: the caller gets all or nothing.
	startCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() {
			servers[i], errs[i] = s.provider.start(startCtx, name)
			if errs[i] != nil {
				cancel()
			}
		})
	}
	wg.Wait()
	for i, name := range names {
		if servers[i] != nil {
			s.servers[name] = servers[i]
		}
	}
	if err := firstCause(ctx, errs); err != nil {
		// The stop has a context of its own: ctx may be what ended the start.
		stopErr := s.Stop(context.Background())
		return nil, errors.Join(err, stopErr)
	}
	if len(s.brokers) > 0 {
		if err := s.shield(ctx); err != nil {
			stopErr := s.Stop(context.Background())
			return nil, errors.Join(fmt.Errorf("shielding the queues from policies: %w", err), stopErr)
		}
	}
	s.PostgresURL = s.url(postgres)
	var nodes []string
	for _, name := range s.brokers {
		nodes = append(nodes, s.url(name))
	}
	s.RabbitMQURL = strings.Join(nodes, ",")
	s.RedisURL = s.url(redis)
	for _, name := range names {
		if srv, ok := s.servers[name].(*localServer); ok {
			if e, ok := srv.engine.(*rabbitEngine); ok && o.Metrics {
				s.RabbitMQMetrics = append(s.RabbitMQMetrics, fmt.Sprintf("127.0.0.1:%d", e.metrics))
			} else if ok && o.Management {
				s.RabbitMQManagement = append(s.RabbitMQManagement, config.ManagementURL(fmt.Sprintf("http://%s:%s@127.0.0.1:%d", e.local.RabbitUser, e.local.RabbitPassword, e.api)))
			}
		}
	}
	o.Log.Info("private servers are up", "servers", names, "took", time.Since(began).Round(time.Millisecond))
	return s, nil
}

// stackSetting is the environment variable that chooses how servers are run: local, containers, or empty. See Start.
const stackSetting = "MILLRACE_STACK"

// newProvider returns the way in which servers are run: see Start.
func newProvider(ctx context.Context, o Options, died func(error)) (provider, error) {
	missing := MissingPackages(o.Need)
	switch how := os.Getenv(stackSetting); how {
	case "containers":
		if errNoContainers != nil {
			return nil, fmt.Errorf("%s=containers: %w", stackSetting, errNoContainers)
		}
		if o.Brokers > 1 {
			return nil, fmt.Errorf("%s=containers: RabbitMQ has one node there, not %d", stackSetting, o.Brokers)
		}
		p, err := newContainers(ctx, o, died)
		if err != nil {
			return nil, fmt.Errorf("%s=containers: %w", stackSetting, err)
		}
		return p, nil
	case "", "local":
		if len(missing) == 0 {
			return newLocal(ctx, o, died)
		}
		if how == "local" {
			return nil, missingError(missing)
		}
	default:
		return nil, fmt.Errorf("%s: got %q, takes local, containers, or nothing", stackSetting, how)
	}
	if o.Brokers > 1 {
		return nil, missingError(missing)
	}
	p, err := newContainers(ctx, o, died)
	if err != nil {
		o.Log.Debug("servers in containers", "error", err)
		return nil, missingError(missing)
	}
	o.Log.Info("servers are not installed here, using containers", "missing", missing)
	return p, nil
}

// firstCause returns the error that explains a failed start, or nil if there is none.
// The other servers report their cancellation, which explains nothing.
func firstCause(ctx context.Context, errs []error) error {
	var cause error
	for _, err := range errs {
		if err == nil {
			continue
		}
		if ctx.Err() != nil || !errors.Is(err, context.Canceled) {
			return err
		}
		cause = err
	}
	return cause
}

// Stop ends the servers side by side, each in order: PostgreSQL by a fast shutdown,
// RabbitMQ and Redis by SIGTERM. What has not ended when ctx does is ended by force,
// and Stop returns within a few seconds after that. A temporary folder is removed. A
// ctx without a deadline gets one of 30 s. Calling Stop again returns the first result.
func (s *Stack) Stop(ctx context.Context) error {
	s.stop.Do(func() {
		if _, ok := ctx.Deadline(); !ok {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, stopTimeout)
			defer cancel()
		}
		began := time.Now()
		errs := make([]error, 0, len(s.servers)+1)
		var mu sync.Mutex
		var wg sync.WaitGroup
		for _, srv := range s.servers {
			wg.Go(func() {
				err := srv.stop(ctx)
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			})
		}
		wg.Wait()
		s.stopErr = errors.Join(append(errs, s.provider.close())...)
		s.log.Info("private servers are stopped", "took", time.Since(began).Round(time.Millisecond))
	})
	return s.stopErr
}

// Died receives one error if a server ends by itself while the stack is up: it
// names the server and holds the tail of its log. Ends brought about by Kill,
// Signal, Restart and Stop do not count. The channel is never closed.
func (s *Stack) Died() <-chan error { return s.died }

// report hands err to whoever reads Died; only the first one is kept.
func (s *Stack) report(err error) {
	select {
	case s.died <- err:
	default:
	}
}

// Env returns the addresses as environment settings, NAME=value, for the servers
// that were started.
func (s *Stack) Env() []string {
	var env []string
	for _, v := range [][2]string{{"RABBITMQ_URL", s.RabbitMQURL}, {"POSTGRES_URL", s.PostgresURL}, {"REDIS_URL", s.RedisURL}} {
		if v[1] != "" {
			env = append(env, v[0]+"="+v[1])
		}
	}
	return env
}

// Kill ends the named server ("postgres", "rabbitmq", "redis", or a node of a RabbitMQ cluster)
// with SIGKILL, as a fault would, and returns when it is gone. Restart brings it back.
func (s *Stack) Kill(name string) error {
	srv, err := s.server(name)
	if err != nil {
		return err
	}
	return srv.kill()
}

// Restart starts the named server again, on the same port and the same data, and
// returns when a client can work with it. If it still runs, it is stopped in order
// first. When Restart fails the server is down, and Restart may be tried again.
//
// A node of a RabbitMQ cluster that lost its majority starts only beside others: their
// Restarts must run at once.
func (s *Stack) Restart(ctx context.Context, name string) error {
	srv, err := s.server(name)
	if err != nil {
		return err
	}
	return srv.restart(ctx)
}

// Signal sends sig to the named server's main process; SIGSTOP and SIGCONT go to
// its child processes too, so that all of PostgreSQL freezes and not its listener
// alone. A signal that ends the server counts as meant: Died stays silent.
func (s *Stack) Signal(name string, sig os.Signal) error {
	srv, err := s.server(name)
	if err != nil {
		return err
	}
	return srv.signal(sig)
}

// server returns the server with that name, or an error if it was not started.
func (s *Stack) server(name string) (server, error) {
	if srv := s.servers[name]; srv != nil {
		return srv, nil
	}
	return nil, fmt.Errorf("no private server %q was started", name)
}

// url returns the address of the server with that name, or "" if it was not started.
func (s *Stack) url(name string) string {
	if srv := s.servers[name]; srv != nil {
		return srv.url()
	}
	return ""
}

// MissingPackages lists the Debian packages that would have to be installed before
// the needed servers can run from local binaries; empty when all are there, or when
// MILLRACE_STACK=containers asks for none.
func MissingPackages(need Need) []string {
	if os.Getenv(stackSetting) == "containers" {
		return nil
	}
	var missing []string
	for _, p := range []struct {
		name   string
		needed bool
		find   func() error
	}{
		{"postgresql", need.Postgres, func() error { _, err := findPostgres(""); return err }},
		{"rabbitmq-server", need.RabbitMQ, func() error { _, err := findRabbitMQ(); return err }},
		{"redis-server", need.Redis, func() error { _, err := findRedis(); return err }},
	} {
		if p.needed && (!localSupported || p.find() != nil) {
			missing = append(missing, p.name)
		}
	}
	return missing
}

// missingError returns an error of one line: what is not there, and what to type.
func missingError(packages []string) error {
	if !localSupported {
		wanted := strings.Join(packages, ", ")
		if errNoContainers != nil {
			return fmt.Errorf("private servers need Linux, or a Docker engine (wanted: %s): %w", wanted, errNoContainers)
		}
		return fmt.Errorf("private servers need Linux or a Docker engine, and none answers (wanted: %s)", wanted)
	}
	verb := "is"
	if len(packages) > 1 {
		verb = "are"
	}
	return fmt.Errorf("%s %s not installed: sudo apt-get install -y %s",
		strings.Join(packages, ", "), verb, strings.Join(packages, " "))
}
