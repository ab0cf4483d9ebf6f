package localstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// rabbitConf holds only settings that every RabbitMQ from 3.10 to 4.x takes. What only newer ones know is added by their
// version: RabbitMQ does not start with a setting that it does not know.
const rabbitConf = `listeners.tcp.1 = 127.0.0.1:%d
default_user = %s
default_pass = %s

# RabbitMQ shares the machine with PostgreSQL and Millrace.
vm_memory_high_watermark.relative = %.2f
# Below this it takes no more messages; the log of a quorum queue grows by 512 MB at once.
disk_free_limit.absolute = 1GB

# To standard output, which goes to a log file.
log.console = true
log.console.level = info
log.console.use_colors = off
log.file = false
`

// memoryShare is the part of the machine's memory at which RabbitMQ, all its nodes together, blocks publishers.
const memoryShare = 0.4

// rabbitMetrics is added for the plugin that serves metrics. The management agent comes with it, and would keep
// statistics for a management plugin that is not there.
const rabbitMetrics = `
prometheus.tcp.ip = 127.0.0.1
prometheus.tcp.port = %d
management_agent.disable_metrics_collector = true
`

// rabbitManagement is added for the management API.
const rabbitManagement = `
management.tcp.ip = 127.0.0.1
management.tcp.port = %d
`

// clusterConf is what a node of a cluster gets beside rabbitConf.
//
// pause_minority: a node that sees less than half of the cluster stops serving until it sees more. Quorum queues do not
// need it, since Raft decides for them. But without it the node would still take connections and publishes that nobody
// confirms. Exchanges, bindings and users (Mnesia) would go different ways on the two sides. With the default, ignore, they
// would stay different until somebody restarts nodes. A paused node drops its clients at once, who go to the others, and
// comes back by itself. The setting is for Mnesia alone. RabbitMQ 4.3, and a new 4.2, have Khepri instead, for which Raft
// decides too. There the setting does nothing, and a node without a majority keeps its clients and confirms nothing.
//
// net_ticktime: a node that hangs (stopped by SIGSTOP, or cut off by a network that drops packets) is given up after so
// many seconds, a quarter more or less. Until then whatever writes to Mnesia waits for it, on all nodes: a declaration, a
// binding, and the note of which node leads a queue now, without which new channels find no leader. With the default, 60,
// there would be no confirm for that long. (Khepri waits for a majority alone.)
//
// The log of quorum queues is held in memory up to the size of its file, on each node.
const clusterConf = `
cluster_partition_handling = pause_minority
net_ticktime = 10
raft.wal_max_size_bytes = 67108864
`

// disconnectedConf is for clusters of RabbitMQ 4.3 or newer. If a node dies, the frames on their way through it to a worker go
// back to the queue after so many milliseconds, for other workers. Older versions give them back at once. With the default, a
// minute, those records could not be searched for a minute.
const disconnectedConf = `
consumer_disconnected_timeout = 1000
`

// withoutManagement is for RabbitMQ 4.0 or newer, with rabbitMetrics. Statistics for the management plugin are deprecated, and
// RabbitMQ 4.3 warns of them at each start, though nobody makes them here.
const withoutManagement = `
deprecated_features.permit.management_metrics_collection = false
`

// rabbitEngine is RabbitMQ, or one node of a cluster.
type rabbitEngine struct {
	local  *local
	name   string // of the server
	number int    // of the node, from 1; 0: there is no cluster
	script string

	last    int // port of the last launch
	metrics int // port of the metrics; it changes only together with last
	api     int // port of the management API
}

// node returns the node's name. It is constant, because the data folder belongs to it. Nodes of other folders have the
// same name and another epmd, so they do not meet.
func (e *rabbitEngine) node() string { return rabbitNode(e.number) }

// rabbitNode returns the name of the node with that number.
func rabbitNode(number int) string {
	if number == 0 {
		return "millrace@localhost"
	}
	return fmt.Sprintf("millrace-%d@localhost", number)
}

// brokerNames returns the names that the servers of so many RabbitMQ nodes have.
func brokerNames(brokers int) []string {
	if brokers <= 1 {
		return []string{rabbitmq}
	}
	names := make([]string, brokers)
	for i := range names {
		names[i] = fmt.Sprintf("%s-%d", rabbitmq, i+1)
	}
	return names
}

// checkBrokers returns an error if the folder has data of another number of nodes. A further node would have no part in the
// existing queues, and fewer nodes can't do without the missing ones.
func (l *local) checkBrokers(brokers int) error {
	have, _ := filepath.Glob(filepath.Join(l.dir, rabbitmq+"*"))
	want := brokerNames(brokers)
	for i, dir := range have {
		have[i] = filepath.Base(dir)
	}
	if len(have) > 0 && !slices.Equal(have, want) {
		return fmt.Errorf("the data folder %s is of a RabbitMQ with %d nodes, not %d: start as many, or use another folder", l.dir, len(have), brokers)
	}
	for _, name := range want {
		if err := os.MkdirAll(filepath.Join(l.dir, name), 0o700); err != nil {
			return err
		}
	}
	return nil
}

// findRabbitMQ returns the path of the server's start script. It takes no wrapper of
// Debian's: that insists on root or the rabbitmq user, and on the machine's settings.
func findRabbitMQ() (string, error) {
	found := []string{"/usr/lib/rabbitmq/bin/rabbitmq-server"}
	versions, _ := filepath.Glob("/usr/lib/rabbitmq/lib/*/sbin/rabbitmq-server")
	slices.Reverse(versions)
	found = append(found, versions...)
	if path, err := exec.LookPath("rabbitmq-server"); err == nil {
		found = append(found, path)
	}
	for _, path := range found {
		real, err := filepath.EvalSymlinks(path)
		if err == nil && isProgram(real) && filepath.Base(real) != "rabbitmq-script-wrapper" {
			if _, err := findEPMD(); err != nil {
				return "", err
			}
			return path, nil
		}
	}
	return "", exec.ErrNotFound
}

// findEPMD returns the path of Erlang's port mapper. It comes with Erlang, which
// RabbitMQ's package needs.
func findEPMD() (string, error) {
	if path, err := exec.LookPath("epmd"); err == nil {
		return path, nil
	}
	patterns := []string{"/usr/lib/erlang/bin/epmd", "/usr/lib/erlang/erts-*/bin/epmd"}
	if erl, err := exec.LookPath("erl"); err == nil {
		if real, err := filepath.EvalSymlinks(erl); err == nil {
			patterns = append(patterns, filepath.Join(filepath.Dir(real), "../erts-*/bin/epmd"))
		}
	}
	for _, pattern := range patterns {
		paths, _ := filepath.Glob(pattern)
		for _, path := range paths {
			if isProgram(path) {
				return path, nil
			}
		}
	}
	return "", exec.ErrNotFound
}

// rabbitMQVersion returns the version of the server with that start script, as its folder of plugins tells it, or 0, 0 if the
// folder does not.
func rabbitMQVersion(script string) (major, minor int) {
	real, err := filepath.EvalSymlinks(script)
	if err != nil {
		return 0, 0
	}
	found, _ := filepath.Glob(filepath.Join(filepath.Dir(real), "../plugins/rabbit-[0-9]*"))
	for _, path := range found {
		if n, _ := fmt.Sscanf(filepath.Base(path), "rabbit-%d.%d.", &major, &minor); n == 2 {
			return major, minor
		}
	}
	return 0, 0
}

// isAtLeast reports whether the server is of a version or newer. It reports false if the server's version is not known.
func (e *rabbitEngine) isAtLeast(major, minor int) bool {
	haveMajor, haveMinor := rabbitMQVersion(e.script)
	return haveMajor > major || haveMajor == major && haveMinor >= minor
}

// file returns the path of a file in the server's folder.
func (e *rabbitEngine) file(name string) string {
	return filepath.Join(e.local.dir, e.name, name)
}

// prepare also has a new node wait for the first one, which makes the cluster that it joins. Nodes that have been
// in the cluster start side by side: they wait for each other.
func (e *rabbitEngine) prepare(ctx context.Context) error {
	var err error
	if e.script, err = findRabbitMQ(); err != nil {
		return err
	}
	for _, dir := range []string{"", "home", "mnesia", "log", "conf.d"} {
		if err := os.MkdirAll(e.file(dir), 0o700); err != nil {
			return err
		}
	}
	var plugins []string
	if e.local.metrics {
		plugins = append(plugins, "rabbitmq_prometheus")
	}
	if e.local.management {
		plugins = append(plugins, "rabbitmq_management")
	}
	if err := errors.Join(
		replaceFile(e.file("enabled_plugins"), []byte("["+strings.Join(plugins, ",")+"].\n"), 0o600),
		replaceFile(e.file("advanced.config"), []byte("[].\n"), 0o600),
		replaceFile(e.file("home/.erlang.cookie"), []byte(e.local.ErlangCookie), 0o400),
	); err != nil {
		return err
	}
	if _, err := os.Stat(e.file("mnesia/" + e.node())); e.number > 1 && errors.Is(err, os.ErrNotExist) {
		select {
		case <-e.local.founded:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (e *rabbitEngine) launch(port int) (*process, error) {
	if err := e.local.epmd.start(e.local); err != nil {
		return nil, err
	}
	distribution, err := freePort()
	if err != nil {
		return nil, err
	}
	conf := fmt.Appendf(nil, rabbitConf, port, e.local.RabbitUser, e.local.RabbitPassword, memoryShare/float64(e.local.brokers))
	args := ""
	if e.number > 0 {
		conf = append(conf, clusterConf...)
		if e.isAtLeast(4, 3) {
			conf = append(conf, disconnectedConf...)
		}
		for i := range min(e.number, 2) { // the first, whom the others join, and this one
			conf = fmt.Appendf(conf, "cluster_formation.classic_config.nodes.%d = %s\n", i+1, rabbitNode([]int{1, e.number}[i]))
		}
		args = fmt.Sprintf("+S %d", max(1, runtime.NumCPU()/e.local.brokers))
	}
	if e.local.metrics {
		if port != e.last {
			if e.metrics, err = freePort(); err != nil {
				return nil, err
			}
			e.last = port
		}
		conf = fmt.Appendf(conf, rabbitMetrics, e.metrics)
		if e.isAtLeast(4, 0) {
			conf = append(conf, withoutManagement...)
		}
	}
	if e.local.management {
		if e.api == 0 {
			if e.api, err = freePort(); err != nil {
				return nil, err
			}
		}
		conf = fmt.Appendf(conf, rabbitManagement, e.api)
	}
	if err := replaceFile(e.file("rabbitmq.conf"), conf, 0o600); err != nil {
		return nil, err
	}
	return e.local.launcher.launch(e.local.command(e.name, command{
		path: e.script,
		dir:  e.file(""),
		env: append(e.erlangEnv(),
			// The script then becomes the Erlang VM instead of waiting for it: every
			// signal, the parent-death one above all, reaches the VM itself.
			"RUNNING_UNDER_SYSTEMD=true",
			"RABBITMQ_NODENAME="+e.node(),
			"RABBITMQ_DIST_PORT="+strconv.Itoa(distribution),
			"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+args,
			"RABBITMQ_CONFIG_FILE="+e.file("rabbitmq.conf"),
			// Without these, the settings in /etc/rabbitmq would be read as well.
			"RABBITMQ_CONFIG_FILES="+e.file("conf.d"),
			"RABBITMQ_ADVANCED_CONFIG_FILE="+e.file("advanced.config"),
			"RABBITMQ_CONF_ENV_FILE=/dev/null",
			"RABBITMQ_ENABLED_PLUGINS_FILE="+e.file("enabled_plugins"),
			"RABBITMQ_MNESIA_BASE="+e.file("mnesia"),
			"RABBITMQ_LOG_BASE="+e.file("log"),
			"ERL_CRASH_DUMP="+e.file("log/erl_crash.dump"),
		),
		// A confirmed message is on disk: nothing is lost by not asking the VM first,
		// which could be too busy to answer.
		orphaned: syscall.SIGKILL,
	}), e.local.died)
}

// erlangEnv returns the environment of every Erlang program. It names the epmd, keeps
// the program from starting another one (which would go into the background and
// stay), and puts the distribution port on loopback only: by default it is open to
// all addresses.
func (e *rabbitEngine) erlangEnv() []string { return e.local.epmd.env(e.file("home")) }

// epmd is Erlang's port mapper, by which the nodes and rabbitmqctl find each other. All nodes of a folder share it.
type epmd struct {
	mu     sync.Mutex
	daemon *process // nil before the first start
	port   int
}

// env returns what erlangEnv returns, for a program with that home.
func (m *epmd) env(home string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return []string{
		"HOME=" + home,
		"ERL_EPMD_PORT=" + strconv.Itoa(m.port),
		"ERL_EPMD_ADDRESS=127.0.0.1",
		"ERL_FLAGS=-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
	}
}

// start starts the port mapper if it does not run, in the foreground, as a child like the others. It must be called before a node
// starts, which would otherwise start its own.
func (m *epmd) start(l *local) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.daemon != nil && m.daemon.running() {
		return nil
	}
	path, err := findEPMD()
	if err != nil {
		return err
	}
	if m.port, err = freePort(); err != nil {
		return err
	}
	p, err := l.launcher.launch(l.command("epmd", command{
		path:     path,
		args:     []string{"-port", strconv.Itoa(m.port), "-address", "127.0.0.1"},
		dir:      l.dir,
		orphaned: syscall.SIGKILL,
	}), l.died)
	if err != nil {
		return err
	}
	m.daemon = p
	for range 100 {
		conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", m.port), time.Second)
		if err == nil {
			conn.Close()
			return p.guard()
		}
		if p.endsWithin(50 * time.Millisecond) {
			return p.failure()
		}
	}
	return fmt.Errorf("epmd does not answer%s", p.tail())
}

// stop ends the port mapper. All nodes must have stopped.
func (m *epmd) stop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.daemon == nil {
		return
	}
	m.daemon.expect()
	_ = m.daemon.signal(syscall.SIGTERM)
	if !m.daemon.endsWithin(linger) {
		_ = m.daemon.signal(syscall.SIGKILL)
		<-m.daemon.done
	}
}

func (e *rabbitEngine) address(port int) string {
	return rabbitURL(e.local.RabbitUser, e.local.RabbitPassword, port)
}

func rabbitURL(user, password string, port int) string {
	return fmt.Sprintf("amqp://%s:%s@127.0.0.1:%d/", user, password, port)
}

func (e *rabbitEngine) ready(ctx context.Context, url string) error { return rabbitReady(ctx, url) }

// rabbitReady logs in and opens a channel. The client's calls take no context: when
// ctx ends, the socket is closed under them.
func rabbitReady(ctx context.Context, url string) error {
	release := func() bool { return true }
	conn, err := amqp.DialConfig(url, amqp.Config{Dial: func(network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err == nil {
			release = context.AfterFunc(ctx, func() { conn.Close() })
		}
		return conn, err
	}})
	defer func() { release() }()
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Channel()
	return err
}

// control runs rabbitmqctl against the node and returns what it wrote.
func (e *rabbitEngine) control(ctx context.Context, args ...string) (string, error) {
	script := filepath.Join(filepath.Dir(e.script), "rabbitmqctl")
	return e.local.run(ctx, e.local.command(e.name+"ctl", command{
		path:     script,
		args:     append([]string{"--node", e.node()}, args...),
		dir:      e.file(""),
		env:      append(e.erlangEnv(), "RABBITMQ_CONF_ENV_FILE=/dev/null"),
		orphaned: syscall.SIGKILL,
	}))
}

// quit returns the signal at which RabbitMQ stops its applications in order.
func (e *rabbitEngine) quit() os.Signal { return syscall.SIGTERM }

func (e *rabbitEngine) remains() remains {
	return remains{
		mark: e.local.ID + "/" + e.name,
		pids: []string{filepath.Join(e.local.dir, "pid", e.name)},
	}
}
