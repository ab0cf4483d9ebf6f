package localstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// rabbitConf holds only settings that every RabbitMQ from 3.10 to 4.x takes.
const rabbitConf = `listeners.tcp.1 = 127.0.0.1:%d
default_user = %s
default_pass = %s

# RabbitMQ shares the machine with PostgreSQL and Millrace.
vm_memory_high_watermark.relative = 0.4
# Below this it takes no more messages; the log of a quorum queue grows by 512 MB at once.
disk_free_limit.absolute = 1GB

# To standard output, which goes to a log file.
log.console = true
log.console.level = info
log.console.use_colors = off
log.file = false
`

// rabbitMetrics is added for the plugin that serves metrics. The management agent comes with it, and would keep
// statistics for a management plugin that is not there.
const rabbitMetrics = `
prometheus.tcp.ip = 127.0.0.1
prometheus.tcp.port = %d
management_agent.disable_metrics_collector = true
`

// rabbitNode is constant: the data folder belongs to the node's name. Nodes of other
// folders have the same name and another epmd, so they do not meet.
const rabbitNode = "millrace@localhost"

type rabbitEngine struct {
	local  *local
	script string
	epmd   string   // path of the program
	daemon *process // the running epmd; nil before the first launch
	port   int      // epmd's

	last    int // port of the last launch
	metrics int // port of the metrics; it changes only together with last
}

// findRabbitMQ finds the server's start script. Debian's wrapper around it does not
// do: it insists on root or the rabbitmq user, and on the machine's own settings.
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

// findEPMD finds Erlang's port mapper, which belongs to Erlang and with it to
// RabbitMQ's package.
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

func (e *rabbitEngine) file(name string) string {
	return filepath.Join(e.local.dir, "rabbitmq", name)
}

func (e *rabbitEngine) prepare(context.Context) error {
	var err error
	if e.script, err = findRabbitMQ(); err != nil {
		return err
	}
	if e.epmd, err = findEPMD(); err != nil {
		return err
	}
	for _, dir := range []string{"", "home", "mnesia", "log", "conf.d"} {
		if err := os.MkdirAll(e.file(dir), 0o700); err != nil {
			return err
		}
	}
	plugins := "[].\n"
	if e.local.metrics {
		plugins = "[rabbitmq_prometheus].\n"
	}
	return errors.Join(
		replaceFile(e.file("enabled_plugins"), []byte(plugins), 0o600),
		replaceFile(e.file("advanced.config"), []byte("[].\n"), 0o600),
		replaceFile(e.file("home/.erlang.cookie"), []byte(e.local.ErlangCookie), 0o400),
	)
}

func (e *rabbitEngine) launch(port int) (*process, error) {
	if err := e.startEPMD(); err != nil {
		return nil, err
	}
	distribution, err := freePort()
	if err != nil {
		return nil, err
	}
	conf := fmt.Appendf(nil, rabbitConf, port, e.local.RabbitUser, e.local.RabbitPassword)
	if e.local.metrics {
		if port != e.last {
			if e.metrics, err = freePort(); err != nil {
				return nil, err
			}
			e.last = port
		}
		conf = fmt.Appendf(conf, rabbitMetrics, e.metrics)
	}
	if err := replaceFile(e.file("rabbitmq.conf"), conf, 0o600); err != nil {
		return nil, err
	}
	return e.local.launcher.launch(e.local.command(rabbitmq, command{
		path: e.script,
		dir:  e.file(""),
		env: append(e.erlangEnv(),
			// The script then becomes the Erlang VM instead of waiting for it: every
			// signal, the parent-death one above all, reaches the VM itself.
			"RUNNING_UNDER_SYSTEMD=true",
			"RABBITMQ_NODENAME="+rabbitNode,
			"RABBITMQ_DIST_PORT="+strconv.Itoa(distribution),
			// RabbitMQ has its schedulers sleep as soon as they are idle. A short wait for the next message confirms
			// small frames a quarter sooner (0.65 ms for 0.90, measured at 64 connections), for a few percent of a core.
			"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=+sbwt short +sbwtdio short",
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

// erlangEnv holds for every Erlang program: who its epmd is, that nobody starts
// another one (which would go into the background and stay), and that the
// distribution port, open to all addresses by default, is on loopback only.
func (e *rabbitEngine) erlangEnv() []string {
	return []string{
		"HOME=" + e.file("home"),
		"ERL_EPMD_PORT=" + strconv.Itoa(e.port),
		"ERL_EPMD_ADDRESS=127.0.0.1",
		"ERL_FLAGS=-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
	}
}

// startEPMD starts the port mapper in the foreground, as a child like the others,
// and before the node, which would otherwise start its own.
func (e *rabbitEngine) startEPMD() error {
	if e.daemon != nil && e.daemon.running() {
		return nil
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	e.port = port
	p, err := e.local.launcher.launch(e.local.command("epmd", command{
		path:     e.epmd,
		args:     []string{"-port", strconv.Itoa(port), "-address", "127.0.0.1"},
		dir:      e.file(""),
		env:      e.erlangEnv(),
		orphaned: syscall.SIGKILL,
	}), e.local.died)
	if err != nil {
		return err
	}
	e.daemon = p
	for range 100 {
		conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second)
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

// release ends epmd, once the node has left it.
func (e *rabbitEngine) release() {
	if e.daemon == nil {
		return
	}
	e.daemon.expect()
	_ = e.daemon.signal(syscall.SIGTERM)
	if !e.daemon.endsWithin(linger) {
		_ = e.daemon.signal(syscall.SIGKILL)
		<-e.daemon.done
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

// control runs rabbitmqctl against the node.
func (e *rabbitEngine) control(ctx context.Context, args ...string) error {
	script := filepath.Join(filepath.Dir(e.script), "rabbitmqctl")
	return e.local.run(ctx, e.local.command("rabbitmqctl", command{
		path:     script,
		args:     append([]string{"--node", rabbitNode}, args...),
		dir:      e.file(""),
		env:      append(e.erlangEnv(), "RABBITMQ_CONF_ENV_FILE=/dev/null"),
		orphaned: syscall.SIGKILL,
	}))
}

// quit makes RabbitMQ stop its applications in order.
func (e *rabbitEngine) quit() os.Signal { return syscall.SIGTERM }

func (e *rabbitEngine) remains() remains {
	return remains{
		mark: e.local.ID + "/" + rabbitmq,
		pids: []string{filepath.Join(e.local.dir, "pid", rabbitmq)},
	}
}
