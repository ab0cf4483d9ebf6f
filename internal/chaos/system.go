package chaos

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/broker"
	"millrace/internal/config"
	"millrace/internal/localstack"
)

const (
	apis    = 2
	workers = 2

	// confirmTimeout is the APIs' CONFIRM_TIMEOUT: half the default, so that frozen brokers cost less time.
	confirmTimeout = 5 * time.Second

	// stopWithin is how long a process may take to stop: SHUTDOWN_TIMEOUT, and a moment.
	stopWithin = 30 * time.Second

	// The small disk has room for minDisk, and for each record to come twice what its row and its part of the WAL take.
	minDisk    = 4 << 30
	recordDisk = 2 << 10
)

// The classes of links, and with them of the faults of the network.
const (
	clientAPI      = "client-api"
	apiBroker      = "api-broker"
	workerBroker   = "worker-broker"
	workerPostgres = "worker-postgres"
)

// system is a whole Millrace with a proxy on every connection.
type system struct {
	dir           string
	keep          bool // the folder, when all is over
	stack         *localstack.Stack
	brokers       []string // their names in the stack
	urls          []string // and addresses
	db            config.PostgresURL
	topology      broker.Topology
	disk          *disk  // nil if it can't be had
	noDisk        error  // why it can't
	archive       string // the archive's folder; empty if there is none
	archiveDisk   *disk  // that the archive is on; nil if it can't be had
	noArchiveDisk error  // why it can't
	asker         *reader
	launcher      *localstack.Launcher
	links         []*link
	units         []*unit
	clock         string                     // path of the file with the offset of api2's clock
	onClock       func(offset time.Duration) // is told before it changes; may be nil
	late          *late
	surprise      func(error)
	closing       []func() error

	exchange sync.RWMutex // locked for reading while somebody publishes to the exchange, for writing while nobody may

	mu    sync.Mutex
	kills map[string]int // SIGKILLs of servers, by name
}

const (
	// Folder begins the names of runs' folders; the process's id and another minus follow.
	Folder   = "millrace-chaos-"
	keptName = "kept" // marks one that is to stay
)

// removeAbandoned removes what killed runs have left, file systems and binaries included.
func removeAbandoned() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), Folder+"*-*"))
	for _, dir := range dirs {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), Folder), "-")
		n, err := strconv.Atoi(pid)
		if err != nil || !errors.Is(syscall.Kill(n, 0), syscall.ESRCH) {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, keptName)); err == nil {
			continue
		}
		for _, mounted := range []string{filepath.Join(dir, "servers", "postgres"), filepath.Join(dir, "archive")} {
			_ = exec.Command("umount", mounted).Run() // where there is one
		}
		_ = os.RemoveAll(dir)
	}
}

// newSystem starts the servers and all processes. What it has started must be stopped by close, even after an error.
func newSystem(ctx context.Context, o Options, surprise func(error)) (*system, error) {
	s := &system{surprise: surprise, topology: broker.NewTopology(config.Broker{}), launcher: localstack.NewLauncher(), kills: make(map[string]int)}
	s.closing = append(s.closing, func() error { s.launcher.Close(); return nil })
	var err error
	removeAbandoned()
	if s.dir, err = os.MkdirTemp("", fmt.Sprintf("%s%d-", Folder, os.Getpid())); err != nil {
		return s, err
	}
	// PostgreSQL may run as another user, who must get through.
	if err := os.Chmod(s.dir, 0o711); err != nil {
		return s, err
	}
	s.keep = o.KeepFiles
	s.closing = append(s.closing, func() error {
		if s.keep {
			return os.WriteFile(filepath.Join(s.dir, keptName), nil, 0o600)
		}
		return os.RemoveAll(s.dir)
	})
	if o.Stack != nil {
		s.stack, s.noDisk = o.Stack, errors.New("the servers are somebody else's")
		s.closing = append(s.closing, s.deleteQueues)
	} else if err := s.startServers(ctx, o); err != nil {
		return s, err
	}
	s.brokers, s.urls = s.stack.Brokers(), strings.Split(s.stack.RabbitMQURL, ",")
	if s.db, err = s.database(ctx); err != nil {
		return s, err
	}
	s.clock = filepath.Join(s.dir, "clock")
	if err := s.setClock(0); err != nil {
		return s, err
	}
	if o.Archive {
		if err := s.makeArchive(o); err != nil {
			return s, err
		}
	}
	return s, s.startUnits(o)
}

// startServers starts servers of the run's own, PostgreSQL on a small disk if it can be had.
func (s *system) startServers(ctx context.Context, o Options) error {
	data := filepath.Join(s.dir, "servers", "postgres")
	if err := os.MkdirAll(data, 0o711); err != nil {
		return err
	}
	if s.disk, s.noDisk = newDisk(data, minDisk+recordDisk*int64(o.Rate)*int64(o.Duration.Seconds())); s.noDisk == nil {
		s.closing = append(s.closing, func() error { return s.disk.close(s.keep) })
		if err := os.RemoveAll(filepath.Join(data, "lost+found")); err != nil {
			return err
		}
	}
	stack, err := localstack.Start(ctx, localstack.Options{
		Dir: filepath.Dir(data), Need: localstack.Need{Postgres: true, RabbitMQ: true, Redis: true}, Brokers: o.Brokers,
	})
	if err != nil {
		return err
	}
	s.stack = stack
	s.closing = append(s.closing, func() error { return stack.Stop(context.Background()) })
	return nil
}

// database makes a database for the run, and returns its URL.
func (s *system) database(ctx context.Context) (config.PostgresURL, error) {
	conn, err := pgx.Connect(ctx, s.stack.PostgresURL)
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx) // nothing to lose
	name := fmt.Sprintf("chaos_%d", time.Now().UnixNano())
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+name); err != nil {
		return "", err
	}
	u, err := url.Parse(s.stack.PostgresURL)
	if err != nil {
		return "", err
	}
	u.Path = "/" + name
	return config.PostgresURL(u.String()), nil
}

// deleteQueues leaves the servers as they were, for another run. The databases stay.
func (s *system) deleteQueues() error {
	return s.onChannel(context.Background(), func(ch *amqp.Channel) error {
		for _, q := range append(s.topology.WorkQueues(), s.topology.LastStream(), s.topology.Canary()) {
			if _, err := ch.QueueDelete(q, false, false, false); err != nil {
				return err
			}
		}
		return ch.ExchangeDelete(s.topology.Exchange(), false, false)
	})
}

// through makes a link to the host of rawURL, and returns the URL that leads through it.
func (s *system) through(name, class, rawURL string) (string, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return "", err
	}
	l, err := newLink(name, class, u.Host)
	if err != nil {
		return "", err
	}
	s.links = append(s.links, l)
	s.closing = append(s.closing, func() error { l.close(); return nil })
	u.Host = l.addr()
	return u.String(), nil
}

// startUnits makes the links, and starts Millrace's processes.
func (s *system) startUnits(o Options) error {
	add := func(name, exe string, env ...string) *unit {
		u := &unit{
			name: name, exe: exe, dir: s.dir, launcher: s.launcher, surprise: s.surprise,
			args: []string{strings.TrimRight(name, "0123456789")},
			env: append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "SHUTDOWN_TIMEOUT=10s",
				"CONFIRM_TIMEOUT=" + confirmTimeout.String()}, env...),
		}
		s.units = append(s.units, u)
		s.closing = append(s.closing, func() error {
			if u.pid() == 0 {
				return nil
			}
			return u.kill()
		})
		return u
	}
	brokers := func(name, class string) (string, error) {
		var through []string
		for i, u := range s.urls {
			part := name + "-broker"
			if len(s.urls) > 1 {
				part = fmt.Sprintf("%s%d", part, i+1)
			}
			u, err := s.through(part, class, u)
			if err != nil {
				return "", err
			}
			through = append(through, u)
		}
		return strings.Join(through, ","), nil
	}
	for i := range apis {
		name := fmt.Sprintf("api%d", i+1)
		urls, err := brokers(name, apiBroker)
		if err != nil {
			return err
		}
		addr, err := localstack.FreeAddress()
		if err != nil {
			return err
		}
		exe := o.Binary
		if i == 1 && o.ClockBinary != "" {
			exe = o.ClockBinary
		}
		u := add(name, exe, "RABBITMQ_URL="+urls, "API_ADDR="+addr, clockVariable+"="+s.clock)
		u.addr = addr
		if _, err := s.through("client-"+name, clientAPI, "http://"+addr); err != nil {
			return err
		}
	}
	for i := range workers {
		name := fmt.Sprintf("worker%d", i+1)
		urls, err := brokers(name, workerBroker)
		if err != nil {
			return err
		}
		db, err := s.through(name+"-postgres", workerPostgres, string(s.db))
		if err != nil {
			return err
		}
		addr, err := localstack.FreeAddress()
		if err != nil {
			return err
		}
		u := add(name, o.Binary, append(s.archiveEnv(), "RABBITMQ_URL="+urls, "POSTGRES_URL="+db, "WORKER_ADDR="+addr)...)
		u.addr = addr
	}
	addr, err := localstack.FreeAddress()
	if err != nil {
		return err
	}
	env := []string{"POSTGRES_URL=" + string(s.db), "REDIS_URL=" + s.stack.RedisURL, "QUERY_ADDR=" + addr}
	if s.archive != "" {
		env = append(env, "ARCHIVE_URL=file://"+s.archive)
	}
	add("query", o.Binary, env...).addr = addr
	for _, u := range s.units {
		if err := u.start(); err != nil {
			return err
		}
	}
	return nil
}

// close stops everything, the last started first.
func (s *system) close() error {
	var errs []error
	for i := len(s.closing) - 1; i >= 0; i-- {
		errs = append(errs, s.closing[i]())
	}
	return errors.Join(errs...)
}

// kill ends a server with SIGKILL.
func (s *system) kill(name string) error {
	s.mu.Lock()
	s.kills[name]++
	s.mu.Unlock()
	return s.stack.Kill(name)
}

// leader returns the node that leads the first queue, as told by the first node that answers.
func (s *system) leader(ctx context.Context) (string, error) {
	var errs []error
	for _, name := range s.brokers {
		leader, _, err := s.stack.Queue(ctx, name, s.topology.Queue(0))
		if err == nil {
			return leader, nil
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

// unit returns the process with that name.
func (s *system) unit(name string) *unit {
	for _, u := range s.units {
		if u.name == name {
			return u
		}
	}
	panic("no process is called " + name)
}

// named returns the processes whose names begin so.
func (s *system) named(prefix string) (units []*unit) {
	for _, u := range s.units {
		if strings.HasPrefix(u.name, prefix) {
			units = append(units, u)
		}
	}
	return units
}

// class returns the links of a class.
func (s *system) class(class string) (links []*link) {
	for _, l := range s.links {
		if l.class == class {
			links = append(links, l)
		}
	}
	return links
}

// doors returns the addresses at which clients reach the APIs.
func (s *system) doors() (addrs []string) {
	for _, l := range s.class(clientAPI) {
		addrs = append(addrs, l.addr())
	}
	return addrs
}

// setClock sets how far the clock is off that api2 makes ids by.
func (s *system) setClock(offset time.Duration) error {
	if s.onClock != nil {
		s.onClock(offset)
	}
	part := s.clock + ".part"
	if err := os.WriteFile(part, []byte(offset.String()), 0o600); err != nil {
		return err
	}
	return os.Rename(part, s.clock)
}

// sql runs statements on a connection of its own.
func (s *system) sql(ctx context.Context, statements ...string) error {
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(ctx) // nothing to lose
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return nil
}

// connect opens a connection that may write whatever the database's default is.
func (s *system) connect(ctx context.Context) (*pgx.Conn, error) {
	c, err := pgx.ParseConfig(string(s.db))
	if err != nil {
		return nil, err
	}
	c.ConnectTimeout = 5 * time.Second
	c.RuntimeParams["default_transaction_read_only"] = "off"
	c.RuntimeParams["application_name"] = "chaos"
	c.AfterConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		_, err := conn.Exec(ctx, "SET TimeZone = 'UTC'").ReadAll()
		return err
	}
	return pgx.ConnectConfig(ctx, c)
}

// waiting returns how many messages wait in each queue.
func (s *system) waiting(ctx context.Context) (map[string]int, error) {
	waiting := make(map[string]int)
	err := s.onChannel(ctx, func(ch *amqp.Channel) error {
		for _, name := range s.topology.WorkQueues() {
			q, err := ch.QueueDeclarePassive(name, true, false, false, false, nil)
			if err != nil {
				return err
			}
			waiting[name] = q.Messages
		}
		return nil
	})
	return waiting, err
}

// onChannel calls f with a channel on a connection of its own, and returns f's error. When ctx ends the connection does too: a call
// of amqp waits for its answer as long as the connection lives.
func (s *system) onChannel(ctx context.Context, f func(*amqp.Channel) error) error {
	conn, err := broker.Dial(ctx, config.Brokers(s.stack.RabbitMQURL), "chaos")
	if err != nil {
		return err
	}
	defer conn.End(time.Second)
	defer context.AfterFunc(ctx, func() { conn.End(0) })()
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	return f(ch)
}
