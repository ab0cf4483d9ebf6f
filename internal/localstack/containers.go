//go:build containers

package localstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/exec"
)

// The images and their settings are those of docker-compose.yml. A test compares them.
const (
	postgresImage = "postgres:18.6"
	rabbitmqImage = "rabbitmq:4.2.9-management"
	redisImage    = "redis:8.8.0"

	// rabbitContainerConf is deploy/rabbitmq/millrace.conf without its comments.
	rabbitContainerConf = `vm_memory_high_watermark.absolute = 1200MB
disk_free_limit.absolute = 1GB
log.console = true
log.console.level = info
log.console.use_colors = off
log.file = false
`
)

// errNoContainers is nil: this program has the provider.
var errNoContainers error

const (
	// engineTimeout bounds the question whether a Docker engine answers.
	engineTimeout = 5 * time.Second
	// pullTimeout bounds a first start, which may have to pull the image.
	pullTimeout = 10 * time.Minute
	// watchInterval is how often the containers are looked at for Died.
	watchInterval = 2 * time.Second
)

// containers runs servers in containers of a Docker engine on this machine, through
// Testcontainers, whose reaper removes them should this process be killed. Their
// data lives as long as they do: over Kill and Restart, not over Stop. Ports are
// chosen here rather than by the engine, which would choose others at a restart.
type containers struct {
	engine *testcontainers.DockerClient
	credentials
	died func(error)
	log  *slog.Logger

	stopWatch context.CancelFunc
	watched   chan struct{}

	mu      sync.Mutex
	servers []*containerServer
}

// containerServer is one container.
type containerServer struct {
	name      string
	port      int
	address   string
	ready     func(ctx context.Context, url string) error
	container *testcontainers.DockerContainer
	engine    *testcontainers.DockerClient

	mu   sync.Mutex
	down bool // on purpose
}

// newContainers returns the provider of containers. It fails if no Docker engine answers.
func newContainers(ctx context.Context, o Options, died func(error)) (provider, error) {
	askCtx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	engine, err := testcontainers.NewDockerClientWithOpts(askCtx)
	if err == nil {
		_, err = engine.Ping(askCtx, client.PingOptions{})
	}
	if err != nil {
		reasons := strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' }), "; ")
		return nil, errors.New("no Docker engine answers: " + reasons)
	}
	if o.Dir != "" {
		o.Log.Warn("servers in containers do not keep their data after the stop", "dir", o.Dir)
	}
	watchCtx, stopWatch := context.WithCancel(context.Background())
	c := &containers{
		engine: engine,
		credentials: credentials{
			PostgresPassword: secret(), RabbitUser: "millrace", RabbitPassword: secret(), RedisPassword: secret(),
		},
		died:      died,
		log:       o.Log,
		stopWatch: stopWatch,
		watched:   make(chan struct{}),
	}
	go c.watch(watchCtx)
	return c, nil
}

// image is how a server runs in a container.
type image struct {
	name    string
	port    string // inside
	env     map[string]string
	command []string
	files   map[string]string // content by path
	memory  int64             // bytes, as limits
	shared  int64             // of them in /dev/shm; 0 is the engine's own
	url     func(port int) string
	ready   func(ctx context.Context, url string) error
}

// image returns how the server with that name runs in a container.
func (c *containers) image(name string) (image, error) {
	switch name {
	case postgres:
		return image{
			name: postgresImage,
			port: "5432/tcp",
			env: map[string]string{
				"POSTGRES_USER": "millrace", "POSTGRES_PASSWORD": c.PostgresPassword, "POSTGRES_DB": "millrace",
				"POSTGRES_INITDB_ARGS": "--encoding=UTF8 --locale=C.UTF-8",
			},
			command: []string{"postgres", "-cmax_connections=200", "-cshared_buffers=256MB", "-cmaintenance_work_mem=256MB",
				"-cmax_wal_size=4GB", "-ccheckpoint_timeout=15min", "-ccheckpoint_completion_target=0.9", "-cwal_compression=lz4",
				"-ctimezone=UTC", "-clog_timezone=UTC", "-ccluster_name=millrace"},
			memory: 3 << 30,
			shared: 1 << 30,
			url:    func(port int) string { return postgresURL(c.PostgresPassword, port) },
			ready:  postgresReady,
		}, nil
	case rabbitmq:
		return image{
			name: rabbitmqImage,
			port: "5672/tcp",
			env: map[string]string{
				"RABBITMQ_DEFAULT_USER": c.RabbitUser, "RABBITMQ_DEFAULT_PASS": c.RabbitPassword,
			},
			files:  map[string]string{"/etc/rabbitmq/conf.d/50-millrace.conf": rabbitContainerConf},
			memory: 2 << 30,
			url:    func(port int) string { return rabbitURL(c.RabbitUser, c.RabbitPassword, port) },
			ready:  rabbitReady,
		}, nil
	case redis:
		return image{
			name: redisImage,
			port: "6379/tcp",
			command: []string{"redis-server", "--requirepass", c.RedisPassword, "--save", "", "--appendonly", "no",
				"--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru"},
			env:    map[string]string{"REDISCLI_AUTH": c.RedisPassword},
			memory: 512 << 20,
			url:    func(port int) string { return redisURL(c.RedisPassword, port) },
			ready:  redisReady,
		}, nil
	}
	return image{}, fmt.Errorf("no server is called %q", name)
}

func (c *containers) start(ctx context.Context, name string) (server, error) {
	img, err := c.image(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	for try := 1; ; try++ {
		s, err := c.attempt(ctx, name, img)
		if err == nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.servers = append(c.servers, s)
			return s, nil
		}
		// The engine's words for a lost port.
		lost := strings.Contains(err.Error(), "port is already allocated") || portLost.MatchString(err.Error())
		if try == portTries || ctx.Err() != nil || !lost {
			return nil, err
		}
	}
}

// attempt tries once to start a server in a container, on a free port.
func (c *containers) attempt(ctx context.Context, name string, img image) (*containerServer, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	inside, err := network.ParsePort(img.port)
	if err != nil {
		return nil, err
	}
	options := []testcontainers.ContainerCustomizer{
		testcontainers.WithEnv(img.env),
		testcontainers.WithExposedPorts(img.port),
		testcontainers.WithHostConfigModifier(func(h *container.HostConfig) {
			h.PortBindings = network.PortMap{inside: {{
				HostIP:   netip.AddrFrom4([4]byte{127, 0, 0, 1}),
				HostPort: strconv.Itoa(port),
			}}}
			h.Memory, h.ShmSize = img.memory, img.shared
		}),
		testcontainers.WithLogger(debugPrinter{c.log}),
	}
	if len(img.command) > 0 {
		options = append(options, testcontainers.WithCmd(img.command...))
	}
	for path, content := range img.files {
		options = append(options, testcontainers.WithFiles(testcontainers.ContainerFile{
			Reader: strings.NewReader(content), ContainerFilePath: path, FileMode: 0o644,
		}))
	}
	s := &containerServer{name: name, port: port, address: img.url(port), ready: img.ready, engine: c.engine}
	s.container, err = testcontainers.Run(ctx, img.name, options...)
	if err == nil {
		err = s.await(ctx)
	}
	if err != nil {
		err = fmt.Errorf("starting %s in a container: %w%s", name, err, s.tail())
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		return nil, errors.Join(err, testcontainers.TerminateContainer(s.container, testcontainers.StopContext(stopCtx)))
	}
	return s, nil
}

// await waits until the server works. It fails if the container or ctx ends before.
func (s *containerServer) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		err := s.ready(ctx, s.address)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("not ready: %w (last: %v)", ctx.Err(), err)
		}
		if state, stateErr := s.container.State(ctx); stateErr == nil && !state.Running {
			return fmt.Errorf("it ended with status %d", state.ExitCode)
		}
		pause(ctx, 100*time.Millisecond)
	}
}

// watch reports a container that has stopped, until ctx ends.
func (c *containers) watch(ctx context.Context) {
	defer close(c.watched)
	for ctx.Err() == nil {
		c.mu.Lock()
		servers := c.servers
		c.mu.Unlock()
		for _, s := range servers {
			if err := s.fault(ctx); err != nil && ctx.Err() == nil {
				c.died(err)
				return
			}
		}
		pause(ctx, watchInterval)
	}
}

// fault returns an error if the container has stopped and nobody meant it to.
func (s *containerServer) fault(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return nil
	}
	state, err := s.container.State(ctx)
	if err != nil || state.Running {
		return nil // an engine that does not answer says nothing about the server
	}
	return fmt.Errorf("%s ended by itself (exit status %d)%s", s.name, state.ExitCode, s.tail())
}

// tail returns the end of the container's log, ready to be appended to an error.
func (s *containerServer) tail() string {
	if s.container == nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(context.Background(), engineTimeout)
	defer cancel()
	log, err := s.container.Logs(ctx)
	if err != nil {
		return ""
	}
	defer log.Close()
	return lastLines(log, "the container's log")
}

func (c *containers) close() error {
	c.stopWatch()
	<-c.watched
	return c.engine.Close()
}

func (s *containerServer) url() string { return s.address }

func (s *containerServer) stop(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = true
	patience := stopTimeout
	if deadline, ok := ctx.Deadline(); ok {
		patience = max(0, time.Until(deadline))
	}
	// The engine ends by force what has not stopped by then; removing it takes longer.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience+stopTimeout)
	defer cancel()
	return testcontainers.TerminateContainer(s.container,
		testcontainers.StopContext(ctx), testcontainers.StopTimeout(patience))
}

func (s *containerServer) kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = true
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if _, err := s.engine.ContainerKill(ctx, s.container.GetContainerID(), client.ContainerKillOptions{Signal: "SIGKILL"}); err != nil {
		return err
	}
	for {
		state, err := s.container.State(ctx)
		if err != nil || !state.Running {
			return err
		}
		pause(ctx, 20*time.Millisecond)
	}
}

func (s *containerServer) restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = true
	state, err := s.container.State(ctx)
	if err != nil {
		return err
	}
	if state.Running {
		if err := s.container.Stop(ctx, nil); err != nil {
			return err
		}
	}
	if err := s.container.Start(ctx); err != nil {
		return err
	}
	if err := s.await(ctx); err != nil {
		return fmt.Errorf("restarting %s: %w%s", s.name, err, s.tail())
	}
	s.down = false
	return nil
}

func (s *containerServer) signal(sig os.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	id := s.container.GetContainerID()
	var err error
	switch {
	case wakes(sig):
		_, err = s.engine.ContainerUnpause(ctx, id, client.ContainerUnpauseOptions{})
	case freezes(sig):
		_, err = s.engine.ContainerPause(ctx, id, client.ContainerPauseOptions{})
	default:
		// By name: the numbers may be another system's.
		name := map[os.Signal]string{
			syscall.SIGTERM: "SIGTERM", syscall.SIGINT: "SIGINT", syscall.SIGQUIT: "SIGQUIT",
			syscall.SIGKILL: "SIGKILL", syscall.SIGHUP: "SIGHUP", syscall.SIGABRT: "SIGABRT",
		}[sig]
		if name == "" {
			return fmt.Errorf("a container takes no signal %v", sig)
		}
		s.down = s.down || ends(sig)
		_, err = s.engine.ContainerKill(ctx, id, client.ContainerKillOptions{Signal: name})
	}
	return err
}

func (s *containerServer) control(ctx context.Context, args ...string) (string, error) {
	status, output, err := s.container.Exec(ctx, append([]string{"rabbitmqctl"}, args...), exec.Multiplexed())
	if err != nil {
		return "", err
	}
	if status != 0 {
		return "", fmt.Errorf("rabbitmqctl in %s: exit status %d%s", s.name, status, lastLines(output, "its output"))
	}
	text, err := io.ReadAll(output)
	return string(text), err
}

// debugPrinter writes what Testcontainers prints to the debug log.
type debugPrinter struct{ log *slog.Logger }

func (q debugPrinter) Printf(format string, v ...any) {
	q.log.Debug(strings.TrimSpace(fmt.Sprintf(format, v...)))
}
