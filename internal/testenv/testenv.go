// Package testenv gives integration tests the servers that millrace stack started, isolated from each other: a
// database, a queue prefix and a cache prefix each. If the servers are absent, a test skips with a pointer to the
// command that starts them, or fails if CI is set. The package also starts Millrace itself, in processes of its own:
// see Main and StartMillrace.
//
// A Process has one goroutine, which ends with it. A test that starts one ends it before its own end.
package testenv

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/broker"
	"millrace/internal/config"
	"millrace/internal/localstack"
	"millrace/migrations"
)

// server returns the URL of a server: the environment variable name, which millrace stack sets. If it is not set, the test is
// skipped, or fails if CI is set.
func server(t testing.TB, name string) string {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is not set", name)
		}
		t.Skipf("%s is not set: run make test, or millrace stack -- go test ./...", name)
	}
	return v
}

// Name returns a name that no other test uses.
func Name() string { return "test_" + strings.ToLower(rand.Text()[:12]) }

// Database returns the URL of a fresh, empty database that is dropped after the test.
func Database(t testing.TB) config.PostgresURL {
	t.Helper()
	admin := server(t, "POSTGRES_URL")
	name := Name()
	run(t, admin, "CREATE DATABASE "+name)
	t.Cleanup(func() { run(t, admin, "DROP DATABASE "+name+" WITH (FORCE)") })
	u, err := url.Parse(admin)
	if err != nil {
		t.Fatalf("POSTGRES_URL: %v", err)
	}
	u.Path = "/" + name
	return config.PostgresURL(u.String())
}

// Schema returns the URL of a fresh database with the whole schema.
func Schema(t testing.TB) config.PostgresURL {
	t.Helper()
	db := Database(t)
	if _, err := migrations.Up(context.Background(), Connect(t, db)); err != nil {
		t.Fatal(err)
	}
	return db
}

// Connect returns a connection that is closed after the test.
func Connect(t testing.TB, db config.PostgresURL) *pgx.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, string(db))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(context.Background()); err != nil {
			t.Logf("close: %v", err)
		}
	})
	return conn
}

// run runs a statement on a connection of its own.
func run(t testing.TB, db, sql string) {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, db)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(ctx, sql); err != nil {
		t.Errorf("%s: %v", sql, err)
	}
	if err := conn.Close(ctx); err != nil {
		t.Errorf("close: %v", err)
	}
}

// Broker returns broker settings with a queue prefix of the test's own and so many queues; they are deleted
// after the test.
func Broker(t testing.TB, shards int) config.Broker {
	t.Helper()
	c := config.Broker{URLs: config.Brokers(server(t, "RABBITMQ_URL")), Shards: shards, Name: Name()}
	t.Cleanup(func() {
		topology := broker.NewTopology(c)
		ch := Channel(t, c)
		queues := append(topology.WorkQueues(), topology.LastStream(), topology.Canary())
		for _, q := range queues {
			if _, err := ch.QueueDelete(q, false, false, false); err != nil {
				t.Errorf("delete queue %s: %v", q, err)
			}
		}
		if err := ch.ExchangeDelete(topology.Exchange(), false, false); err != nil {
			t.Errorf("delete exchange: %v", err)
		}
	})
	return c
}

// Channel returns a channel on a connection of its own; both are closed after the test.
func Channel(t testing.TB, c config.Broker) *amqp.Channel {
	t.Helper()
	conn, err := broker.Dial(context.Background(), c.URLs, t.Name())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !conn.IsClosed() {
			if err := conn.Close(); err != nil {
				t.Logf("close: %v", err)
			}
		}
	})
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

// Private returns servers of the test's own, for it to break. They are stopped after the test. Private skips the test in
// short mode. If the servers are not installed, it skips the test, or fails it if CI is set.
func Private(t testing.TB, need localstack.Need) *localstack.Stack {
	t.Helper()
	return private(t, localstack.Options{Need: need})
}

// Cluster returns three RabbitMQ nodes, and nothing else, as Private does.
func Cluster(t testing.TB) *localstack.Stack {
	t.Helper()
	return private(t, localstack.Options{Need: localstack.Need{RabbitMQ: true}, Brokers: 3})
}

// Managed returns a RabbitMQ with its management API, as Private does. It skips the test where the servers run in
// containers, which do not publish that API.
func Managed(t testing.TB) *localstack.Stack {
	t.Helper()
	stack := private(t, localstack.Options{Need: localstack.Need{RabbitMQ: true}, Management: true})
	if len(stack.RabbitMQManagement) == 0 {
		t.Skip("RabbitMQ in a container does not publish its management API")
	}
	return stack
}

// private starts the servers that Private, Cluster and Managed return.
func private(t testing.TB, o localstack.Options) *localstack.Stack {
	t.Helper()
	if testing.Short() {
		t.Skip("starts private servers")
	}
	if missing := localstack.MissingPackages(o.Need); len(missing) > 0 && os.Getenv("CI") == "" {
		t.Skipf("not installed: %v; make test installs them", missing)
	}
	stack, err := localstack.Start(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stack.Stop(context.Background()); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return stack
}

// Redis returns the URL of the cache. Tests keep apart by the prefix of their keys.
func Redis(t testing.TB) config.RedisURL {
	t.Helper()
	return config.RedisURL(server(t, "REDIS_URL"))
}

// FreeAddress returns a loopback address for a process that is to be found there, as localstack.FreeAddress does.
func FreeAddress(t testing.TB) string {
	t.Helper()
	addr, err := localstack.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// Patience is how much longer anything may take on a machine that is busy with other work. A test that bounds how long
// something takes adds it. A fault that such a test is to find hangs for longer, or shows without a clock.
const Patience = 30 * time.Second

// LeastWait is the shortest time after which Eventually gives up. Beside eight processes that use all the processor time they get,
// millrace run needed more than a minute to start its servers. It costs time only where a test fails.
const LeastWait = 4 * time.Minute

// Eventually waits until ok, which it calls often, returns true. within is the longest that this takes on an idle machine. After
// that, or after LeastWait if that is longer, it fails the test. what describes what is waited for.
func Eventually(t testing.TB, within time.Duration, what string, ok func() bool) {
	t.Helper()
	within = max(within, LeastWait)
	for deadline := time.Now().Add(within); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, within)
		}
		time.Sleep(5 * time.Millisecond) // polls a condition of another process; nothing can signal it
	}
}

// AwaitCount waits until the count that sql returns is want.
func AwaitCount(t testing.TB, conn *pgx.Conn, want int, sql string) {
	t.Helper()
	Eventually(t, 20*time.Second, fmt.Sprintf("%s is %d", sql, want), func() bool { return Count(t, conn, sql) == want })
}

// FindProgram returns the path of the first of the names that is a program, or "" if none is. A name may be a path, for a folder
// that not everybody's PATH has.
func FindProgram(names ...string) string {
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// RunProgram runs a program that is not Millrace until the test ends, and shows the beginning of what it wrote if the test has failed. env is
// its environment, nil the test's own.
func RunProgram(t testing.TB, env []string, program string, args ...string) {
	t.Helper()
	var log bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // nothing to stop in order, and it may have ended
		_ = cmd.Wait()         // so that nothing writes the log any more
		if t.Failed() {
			t.Logf("%s wrote:\n%.5000s", filepath.Base(program), log.String())
		}
	})
}

// WhileLeaderIsSlow calls f while the leader of a quorum queue is stopped, for a second or until f returns. Meanwhile RabbitMQ counts
// no messages.
func WhileLeaderIsSlow(t testing.TB, stack *localstack.Stack, queue string, f func()) {
	t.Helper()
	leader := func(do string) {
		t.Helper()
		if err := stack.RabbitMQCtl(context.Background(), "eval", "ok = sys:"+do+"('%2F_"+queue+"')."); err != nil {
			t.Fatal(err)
		}
	}
	leader("suspend")
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		f()
	}()
	select {
	case <-returned:
	case <-time.After(time.Second):
	}
	leader("resume")
	<-returned
}

// Pooler starts PgBouncer in front of a database, with that pool_mode, until the test ends, and returns the URL that leads
// through it. Where PgBouncer is not installed the test is skipped.
func Pooler(t testing.TB, db config.PostgresURL, mode string) config.PostgresURL {
	t.Helper()
	program := FindProgram("pgbouncer", "/usr/sbin/pgbouncer")
	if program == "" {
		t.Skip("pgbouncer is not installed: make test installs it where it can")
	}
	u, err := url.Parse(string(db))
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	name, addr := strings.TrimPrefix(u.Path, "/"), FreeAddress(t)
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "pgbouncer.ini")
	text := fmt.Sprintf(`[databases]
%s = host=%s port=%s user=%s password='%s'
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %s
unix_socket_dir =
auth_type = any
pool_mode = %s
default_pool_size = 20
ignore_startup_parameters = extra_float_digits,options,search_path
`, name, u.Hostname(), u.Port(), u.User.Username(), strings.ReplaceAll(password, "'", "''"), port, mode)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-q", file}
	if os.Geteuid() == 0 { // which it refuses to run as; it reads its file before it becomes somebody else
		args = append([]string{"-u", "nobody"}, args...)
	}
	RunProgram(t, nil, program, args...)
	Eventually(t, Patience, "pgbouncer listens", func() bool {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	u.Host = addr
	return config.PostgresURL(u.String())
}
