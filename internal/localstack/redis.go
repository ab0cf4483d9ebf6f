package localstack

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// redisConf makes Redis a cache: nothing is written to disk, and what was not used for
// longest goes when the memory is full.
const redisConf = `bind 127.0.0.1
protected-mode yes
requirepass %s
daemonize no
logfile ""
dir %q
save ""
appendonly no
maxmemory 256mb
maxmemory-policy allkeys-lru
`

// redisEngine is Redis.
type redisEngine struct {
	local *local
	path  string
}

// redisData returns Redis's folder.
func (l *local) redisData() string { return filepath.Join(l.dir, "redis") }

// findRedis returns the path of the server's program.
func findRedis() (string, error) {
	if path := "/usr/bin/redis-server"; isProgram(path) {
		return path, nil
	}
	return exec.LookPath("redis-server")
}

func (e *redisEngine) conf() string { return filepath.Join(e.local.redisData(), "redis.conf") }

func (e *redisEngine) prepare(context.Context) error {
	var err error
	if e.path, err = findRedis(); err != nil {
		return err
	}
	if err := os.MkdirAll(e.local.redisData(), 0o700); err != nil {
		return err
	}
	return replaceFile(e.conf(), fmt.Appendf(nil, redisConf, e.local.RedisPassword, e.local.redisData()), 0o600)
}

func (e *redisEngine) launch(port int) (*process, error) {
	return e.local.launcher.launch(e.local.command(redis, command{
		path:     e.path,
		args:     []string{e.conf(), "--port", strconv.Itoa(port)},
		dir:      e.local.redisData(),
		orphaned: syscall.SIGKILL,
	}), e.local.died)
}

func (e *redisEngine) address(port int) string { return redisURL(e.local.RedisPassword, port) }

func redisURL(password string, port int) string {
	return fmt.Sprintf("redis://:%s@127.0.0.1:%d/0", password, port)
}

func (e *redisEngine) ready(ctx context.Context, address string) error {
	return redisReady(ctx, address)
}

// redisReady logs in and pings, in Redis's inline form.
func redisReady(ctx context.Context, address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	password, _ := u.User.Password()
	if _, err := fmt.Fprintf(conn, "AUTH %s\r\nPING\r\n", password); err != nil {
		return err
	}
	r := bufio.NewReader(conn)
	for _, want := range []string{"+OK", "+PONG"} {
		got, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		if got = strings.TrimSpace(got); got != want {
			return errors.New("redis answers " + strconv.Quote(got))
		}
	}
	return nil
}

func (e *redisEngine) quit() os.Signal { return syscall.SIGTERM }

func (e *redisEngine) remains() remains {
	return remains{
		mark:  e.local.ID + "/" + redis,
		homes: map[string]string{e.local.redisData(): redis},
		pids:  []string{filepath.Join(e.local.dir, "pid", redis)},
	}
}
