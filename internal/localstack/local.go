package localstack

import (
	"context"
	crand "crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
)

const (
	lockName = "lock"
	// markName is the environment variable that every server's process carries; its
	// value is the folder's own random name and the server's.
	markName = "MILLRACE_SERVER"
	// tempPattern names temporary folders, so that abandoned ones are known.
	tempPattern = "millrace-stack-"
	// portTries is how many ports a server may try. Somebody else may take a port after
	// we have found it free and before the server takes it.
	portTries = 5
	// linger is how long children of an ended server get to follow it.
	linger = time.Second
)

// credentials are made once for a folder and kept in it.
type credentials struct {
	// ID marks the folder's processes. It is not the folder's path, which may name
	// another folder to a container's processes, visible from the host.
	ID                                           string
	PostgresPassword, RabbitPassword, RabbitUser string
	RedisPassword, ErlangCookie                  string
}

// local runs servers from binaries installed on this machine.
type local struct {
	dir       string
	temporary bool
	lock      *os.File
	credentials
	metrics bool // RabbitMQ's

	management bool // RabbitMQ's
	launcher   *Launcher
	died       func(error)
	log        *slog.Logger

	brokers int           // RabbitMQ's nodes
	founded chan struct{} // closed when the first of several is up
	epmd    epmd
}

// engine is how one of PostgreSQL, RabbitMQ and Redis is run.
type engine interface {
	// prepare makes what the server needs before it first starts; called once.
	prepare(ctx context.Context) error
	// launch starts the server, to listen on port.
	launch(port int) (*process, error)
	// ready makes a real client connection. It fails unless the server works.
	ready(ctx context.Context, url string) error
	// address returns the URL of the server on a port.
	address(port int) string
	// quit returns the signal for an orderly stop.
	quit() os.Signal
	// remains returns how to find what may be left of the server.
	remains() remains
}

// localServer runs one engine.
type localServer struct {
	engine
	name  string
	local *local

	mu     sync.Mutex // held while the server is started or stopped
	port   int        // 0 until the server has been up once
	p      *process   // nil before the first start
	frozen time.Time  // since when, by SIGSTOP; zero while it is not
}

func newLocal(ctx context.Context, o Options, died func(error)) (*local, error) {
	l := &local{dir: o.Dir, metrics: o.Metrics, management: o.Management, died: died, log: o.Log, brokers: max(o.Brokers, 1), founded: make(chan struct{})}
	err := l.open(ctx)
	if err == nil && o.Need.RabbitMQ {
		err = l.checkBrokers(l.brokers)
	}
	if err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

// open makes the folder this process's own. It locks it, and ends what an owner that
// was killed has left running.
func (l *local) open(ctx context.Context) error {
	if err := l.makeFolder(); err != nil {
		return err
	}
	lock, err := lockFolder(l.dir)
	if err != nil {
		// Somebody else's, or unusable: in either case not ours to remove.
		l.temporary = false
		return err
	}
	l.lock = lock
	if l.credentials, err = loadCredentials(filepath.Join(l.dir, "credentials.json")); err != nil {
		return err
	}
	for _, sub := range []string{"log", "pid"} {
		if err := os.MkdirAll(filepath.Join(l.dir, sub), 0o711); err != nil {
			return err
		}
	}
	// The dead owner's servers have the kernel's signal by now, and most are gone.
	if err := l.remains().sweep(3 * time.Second); err != nil {
		return fmt.Errorf("the last run's servers in %s are still there: %w", l.dir, err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	l.launcher = NewLauncher()
	return nil
}

// makeFolder makes the folder, a temporary one if none is named.
func (l *local) makeFolder() error {
	// Mode 0711: PostgreSQL may run as another user, who must get through to its
	// own folder. What is secret has mode 0600 or 0700 itself.
	const mode = 0o711
	if l.dir != "" {
		dir, err := filepath.Abs(l.dir)
		if err != nil {
			return err
		}
		l.dir = dir
		return os.MkdirAll(dir, mode)
	}
	removeAbandoned()
	dir, err := os.MkdirTemp("", tempPattern)
	if err != nil {
		return err
	}
	l.dir, l.temporary = dir, true
	return os.Chmod(dir, mode)
}

// removeAbandoned removes temporary folders whose owner was killed before it could do so.
func removeAbandoned() {
	// A folder without a lock may be one that is being made right now.
	const settled = time.Minute
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), tempPattern+"*"))
	for _, dir := range dirs {
		info, err := os.Lstat(filepath.Join(dir, lockName))
		if err != nil || time.Since(info.ModTime()) < settled || !ownedByUs(dir) {
			continue
		}
		if lock, err := lockFolder(dir); err == nil {
			_ = os.RemoveAll(dir)
			lock.Close()
		}
	}
}

// loadCredentials returns the credentials in a file, which it makes if it is missing.
func loadCredentials(path string) (credentials, error) {
	var c credentials
	text, err := os.ReadFile(path)
	if err == nil {
		if err := json.Unmarshal(text, &c); err != nil {
			return c, fmt.Errorf("%s: %w", path, err)
		}
		return c, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return c, err
	}
	c = credentials{ID: secret(), PostgresPassword: secret(), RabbitPassword: secret(), RabbitUser: "millrace", RedisPassword: secret(), ErlangCookie: secret()}
	if text, err = json.MarshalIndent(c, "", "  "); err != nil {
		return c, err
	}
	return c, replaceFile(path, append(text, '\n'), 0o600)
}

// secret returns 128 random bits in letters that need no quoting anywhere.
func secret() string {
	b := make([]byte, 16)
	crand.Read(b)
	return hex.EncodeToString(b)
}

// replaceFile writes a file so that it is there whole or not at all.
func replaceFile(path string, text []byte, mode fs.FileMode) error {
	part := path + ".part"
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	if err := os.WriteFile(part, text, mode); err != nil {
		return err
	}
	return os.Rename(part, path)
}

// remains returns how to find what is left of any of the folder's servers.
func (l *local) remains() remains {
	pids, _ := filepath.Glob(filepath.Join(l.dir, "pid", "*"))
	return remains{
		mark: l.ID + "/",
		homes: map[string]string{
			l.postgresData():           postgres,
			l.postgresData() + ".part": postgres,
			l.redisData():              redis,
		},
		pids: pids,
	}
}

// run runs c to its end and returns what it wrote.
func (l *local) run(ctx context.Context, c command) (output string, err error) {
	p, err := l.launcher.launch(c, nil)
	if err != nil {
		return "", err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		_ = p.signal(syscall.SIGKILL)
		<-p.done
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if p.err != nil {
		return "", p.failure()
	}
	text, err := os.ReadFile(c.log)
	return string(text), err
}

// command completes c for the process called name. The environment is made from
// scratch: ours may hold settings of other servers on the machine.
func (l *local) command(name string, c command) command {
	c.name = name
	c.mark = l.ID + "/" + name
	c.log = filepath.Join(l.dir, "log", name+".log")
	c.pid = filepath.Join(l.dir, "pid", name)
	c.env = append([]string{"PATH=" + searchPath(), "LC_ALL=C.UTF-8", "TZ=UTC"}, c.env...)
	return c
}

// searchPath returns PATH with the usual folders added, which a bare environment may lack.
func searchPath() string {
	const usual = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	if path := os.Getenv("PATH"); path != "" {
		return path + ":" + usual
	}
	return usual
}

func (l *local) start(ctx context.Context, name string) (server, error) {
	s := &localServer{name: name, local: l}
	switch name {
	case postgres:
		s.engine = &postgresEngine{local: l}
	case redis:
		s.engine = &redisEngine{local: l}
	default:
		number := slices.Index(brokerNames(l.brokers), name)
		if number < 0 {
			return nil, fmt.Errorf("no server is called %q", name)
		}
		if l.brokers > 1 {
			number++
		}
		s.engine = &rabbitEngine{local: l, name: name, number: number}
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	began := time.Now()
	if err := s.prepare(ctx); err != nil {
		return nil, fmt.Errorf("preparing %s: %w", name, err)
	}
	if err := s.up(ctx); err != nil {
		return nil, err
	}
	if e, ok := s.engine.(*rabbitEngine); ok && e.number == 1 {
		close(l.founded)
	} else if ok && e.number == l.brokers {
		// This must be checked: a node that can't reach the first one makes a cluster of its own.
		if _, err := s.control(ctx, "await_online_nodes", strconv.Itoa(l.brokers)); err != nil {
			return s, fmt.Errorf("the cluster of %d RabbitMQ nodes: %w", l.brokers, err)
		}
	}
	l.log.Debug("private server is up", "server", name, "port", s.port, "took", time.Since(began).Round(time.Millisecond))
	return s, nil
}

func (l *local) close() error {
	var errs []error
	l.epmd.stop()
	if l.launcher != nil {
		l.launcher.Close()
	}
	if l.temporary {
		errs = append(errs, os.RemoveAll(l.dir))
	}
	if l.lock != nil {
		errs = append(errs, l.lock.Close())
	}
	return errors.Join(errs...)
}

// portLost matches what the servers write when their port, or PostgreSQL's shared
// memory (a killed predecessor's last process holds it for a moment), is taken.
var portLost = regexp.MustCompile(`(?i)address already in use|eaddrinuse|could_not_start_listener|epmd running|is still in use`)

// up starts the server and waits until it works. On an error nothing of it is left.
func (s *localServer) up(ctx context.Context) error {
	for try := 1; ; try++ {
		port := s.port
		if port == 0 {
			var err error
			if port, err = freePort(); err != nil {
				return err
			}
		}
		err := s.attempt(ctx, port)
		if err == nil {
			s.port = port
			return nil
		}
		if try == portTries || ctx.Err() != nil || !portLost.MatchString(err.Error()) {
			return err
		}
		s.local.log.Debug("port is taken, trying again", "server", s.name, "port", port)
		// With its port fixed by an earlier start, only time helps.
		if s.port != 0 {
			pause(ctx, time.Second)
		}
	}
}

// attempt tries once to start the server on a port.
func (s *localServer) attempt(ctx context.Context, port int) error {
	if err := s.engine.remains().sweep(linger); err != nil {
		return fmt.Errorf("starting %s: %w", s.name, err)
	}
	p, err := s.launch(port)
	if err != nil {
		return err
	}
	s.p = p
	if err := s.await(ctx, port); err != nil {
		return errors.Join(err, s.force())
	}
	if err := p.guard(); err != nil {
		return errors.Join(err, s.force())
	}
	return nil
}

// await waits until the server works. It fails if the server or ctx ends before.
func (s *localServer) await(ctx context.Context, port int) error {
	const (
		interval = 50 * time.Millisecond
		// A stranger on a port that the server failed to get may never answer.
		patience = 5 * time.Second
	)
	var last error
	for {
		if !s.p.running() {
			return s.p.failure()
		}
		tryCtx, cancel := context.WithTimeout(ctx, patience)
		last = s.ready(tryCtx, s.address(port))
		cancel()
		if last == nil {
			return nil
		}
		if ctx.Err() != nil {
			if errors.Is(ctx.Err(), context.Canceled) {
				return fmt.Errorf("starting %s: %w", s.name, ctx.Err())
			}
			return fmt.Errorf("%s is not ready in time (%w; last: %v)%s", s.name, ctx.Err(), last, s.p.tail())
		}
		pause(ctx, interval)
	}
}

// end stops the process and all that it started: in order until ctx ends, then by
// force.
func (s *localServer) end(ctx context.Context) error {
	s.p.expect()
	s.frozen = time.Time{}
	if s.p.running() {
		_ = s.p.signal(s.quit())
		wake(s.p)
		select {
		case <-s.p.done:
		case <-ctx.Done():
			s.local.log.Warn("private server does not stop in time, ending it by force", "server", s.name)
		}
	}
	return s.force()
}

// force ends the process, if it is there, and all that it started.
func (s *localServer) force() error {
	s.p.expect()
	if s.p.running() && s.p.command.orphaned != syscall.SIGKILL {
		_ = s.p.signal(s.p.command.orphaned)
		wake(s.p)
		s.p.endsWithin(2 * time.Second)
	}
	if s.p.running() {
		_ = s.p.signal(syscall.SIGKILL)
		if !s.p.endsWithin(10 * time.Second) {
			return fmt.Errorf("%s does not end", s.name)
		}
	}
	return s.engine.remains().sweep(linger)
}

func (s *localServer) stop(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.end(ctx)
}

func (s *localServer) restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := s.end(ctx); err != nil {
		return err
	}
	return s.up(ctx)
}

func (s *localServer) kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.p.expect()
	if err := s.p.signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-s.p.done
	return nil
}

func (s *localServer) signal(sig os.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if freezes(sig) || wakes(sig) {
		if s.frozen = (time.Time{}); freezes(sig) {
			s.frozen = time.Now()
		}
		return signalFamily(s.p, sig)
	}
	if ends(sig) {
		s.p.expect()
	}
	return s.p.signal(sig)
}

func (s *localServer) control(ctx context.Context, args ...string) (string, error) {
	e, ok := s.engine.(*rabbitEngine)
	if !ok {
		return "", fmt.Errorf("%s has no control program", s.name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.frozen.IsZero() || !s.p.running() {
		return "", fmt.Errorf("%s: %w", s.name, errDown)
	}
	return e.control(ctx, args...)
}

// thaw lets a server go on that was stopped by SIGSTOP, and returns for how long it was stopped.
func (s *localServer) thaw() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.frozen.IsZero() {
		return 0
	}
	since := s.frozen
	s.frozen = time.Time{}
	wake(s.p)
	return time.Since(since)
}

// errDown is the error of control if the server does not run, or is stopped by SIGSTOP.
var errDown = errors.New("the server does not run")

func (s *localServer) url() string { return s.address(s.port) }

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
