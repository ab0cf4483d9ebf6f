package localstack

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/goleak"
)

// ownerDir, when set, makes the test binary the owner of a stack in that folder,
// for tests that kill the owner.
const ownerDir = "MILLRACE_TEST_OWNER_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(ownerDir); dir != "" {
		fmt.Println("starting")
		s, err := Start(context.Background(), Options{Dir: dir, Need: all})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("ready", s.PostgresURL)
		select {}
	}
	goleak.VerifyTestMain(m)
}

// require skips a test whose servers are not here, and fails it in CI.
func require(t testing.TB, need Need) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts real servers")
	}
	missing := MissingPackages(need)
	switch {
	case os.Getenv(stackSetting) == "containers":
		t.Skip("is about servers that run from binaries")
	case len(missing) == 0:
	case os.Getenv("CI") == "true":
		t.Fatal(missingError(missing))
	default:
		t.Skip(missingError(missing))
	}
}

// start starts a stack that is stopped at the test's end, and checks then that
// nothing of it is left.
func start(t testing.TB, dir string, need Need) *Stack {
	t.Helper()
	s, err := Start(t.Context(), Options{Dir: dir, Need: need})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, s) })
	return s
}

func stop(t testing.TB, s *Stack) {
	t.Helper()
	if err := s.Stop(context.Background()); err != nil {
		t.Errorf("Stop: %v", err)
	}
	if l, ok := s.provider.(*local); ok { // containers have no folder
		if left := processesOf(l.dir); len(left) > 0 {
			t.Errorf("processes left after Stop: %v", left)
		}
	}
	select {
	case err := <-s.Died():
		t.Errorf("Died reports: %v", err)
	default:
	}
}

func folder(s *Stack) string { return s.provider.(*local).dir }

// processesOf returns the processes that name the folder in their environment or
// command line, or work in it, in the form "PID command".
func processesOf(dir string) []string {
	var found []string
	paths, _ := filepath.Glob("/proc/[0-9]*")
	for _, path := range paths {
		pid, _ := strconv.Atoi(filepath.Base(path))
		if pid == os.Getpid() {
			continue
		}
		cmdline, _ := os.ReadFile(path + "/cmdline")
		if len(cmdline) == 0 {
			continue // a kernel thread, or a process that is ending: its memory is gone already
		}
		environ, _ := os.ReadFile(path + "/environ")
		cwd, _ := os.Readlink(path + "/cwd")
		names := func(b []byte) bool { return bytes.Contains(b, []byte(dir)) }
		if names(environ) || names(cmdline) || strings.HasPrefix(cwd+"/", dir+"/") {
			found = append(found, fmt.Sprintf("%d %s", pid, bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
		}
	}
	return found
}

// patience is how much longer anything may take on a busy machine. It is testenv.Patience, which this package
// can't import.
const patience = 30 * time.Second

// leastWait is how long the tests wait at least for what must come, as testenv.LeastWait.
const leastWait = 4 * time.Minute

// vanish waits until no process of the folder is left.
func vanish(t testing.TB, dir string, within time.Duration) {
	t.Helper()
	began := time.Now()
	within = max(within, leastWait)
	for {
		left := processesOf(dir)
		if len(left) == 0 {
			t.Logf("all processes were gone after %v", time.Since(began).Round(10*time.Millisecond))
			return
		}
		if time.Since(began) > within {
			t.Fatalf("still there after %v: %s", within, strings.Join(left, "\n"))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func execSQL(t testing.TB, url, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func selectInt(t testing.TB, url, sql string) int {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var n int
	if err := conn.QueryRow(t.Context(), sql).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

// withChannel runs f on a channel whose queue "kept", durable and of type quorum, is
// declared.
func withChannel(t testing.TB, url string, f func(*amqp.Channel)) {
	t.Helper()
	conn, err := amqp.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ch.QueueDeclare("kept", true, false, false, false, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum}); err != nil {
		t.Fatal(err)
	}
	f(ch)
}

// publish returns once the broker has confirmed the message.
func publish(t testing.TB, url, body string) {
	t.Helper()
	if !published(t, url, body) {
		t.Fatal("not confirmed")
	}
}

// published reports whether the broker confirms the message. It refuses it while the queue has no leader.
func published(t testing.TB, url, body string) (acked bool) {
	t.Helper()
	withChannel(t, url, func(ch *amqp.Channel) {
		if err := ch.Confirm(false); err != nil {
			t.Fatal(err)
		}
		confirm, err := ch.PublishWithDeferredConfirmWithContext(t.Context(), "", "kept", true, false,
			amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte(body)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), leastWait)
		defer cancel()
		if acked, err = confirm.WaitContext(ctx); err != nil {
			t.Fatal(err)
		}
	})
	return acked
}

// messages reads the bodies in the queue and puts them back.
func messages(t testing.TB, url string) []string {
	t.Helper()
	var bodies []string
	withChannel(t, url, func(ch *amqp.Channel) {
		for {
			m, ok, err := ch.Get("kept", false)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				return
			}
			bodies = append(bodies, string(m.Body))
		}
	})
	return bodies
}

func TestTemporaryStackLeavesNothing(t *testing.T) {
	require(t, all)
	began := time.Now()
	s, err := Start(t.Context(), Options{Need: all})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("started in %v", time.Since(began).Round(time.Millisecond))
	dir := folder(s)
	want := []string{"RABBITMQ_URL=" + s.RabbitMQURL, "POSTGRES_URL=" + s.PostgresURL, "REDIS_URL=" + s.RedisURL}
	if diff := cmp.Diff(want, s.Env()); diff != "" {
		t.Errorf("Env (-want +got):\n%s", diff)
	}
	if running := processesOf(dir); len(running) < 4 {
		t.Errorf("found %d processes, want PostgreSQL, RabbitMQ, epmd and Redis at least: %v", len(running), running)
	}
	for name, want := range map[string]string{
		"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "password_encryption": "scram-sha-256",
		"server_encoding": "UTF8", "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": "200",
	} {
		if got := setting(t, s.PostgresURL, name); got != want {
			t.Errorf("PostgreSQL has %s = %q, want %q", name, got, want)
		}
	}
	// Only this machine gets in, and only with the password.
	for _, address := range []string{s.PostgresURL, s.RabbitMQURL, s.RedisURL} {
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		if u.Hostname() != "127.0.0.1" {
			t.Errorf("%s is not on loopback", address)
		}
	}
	wrong := strings.Replace(s.PostgresURL, password(t, s.PostgresURL), "wrong", 1)
	if err := postgresReady(t.Context(), wrong); err == nil {
		t.Error("PostgreSQL takes a wrong password")
	}
	for address := range listeners(t, dir) {
		if host, _, _ := net.SplitHostPort(address); !net.ParseIP(host).IsLoopback() {
			t.Errorf("a server listens on %s", address)
		}
	}

	began = time.Now()
	stop(t, s)
	t.Logf("stopped in %v", time.Since(began).Round(time.Millisecond))
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the temporary folder is still there: %v", err)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Errorf("second Stop: %v", err)
	}
}

func setting(t testing.TB, url, name string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var value string
	if err := conn.QueryRow(t.Context(), "SELECT current_setting($1)", name).Scan(&value); err != nil {
		t.Fatal(err)
	}
	return value
}

func password(t testing.TB, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	p, _ := u.User.Password()
	return p
}

// listeners returns the set of addresses that the folder's processes listen on.
func listeners(t testing.TB, dir string) map[string]bool {
	t.Helper()
	sockets := map[string]bool{}
	for _, p := range processesOf(dir) {
		pid, _, _ := strings.Cut(p, " ")
		fds, _ := filepath.Glob("/proc/" + pid + "/fd/*")
		for _, fd := range fds {
			if target, err := os.Readlink(fd); err == nil {
				sockets[target] = true
			}
		}
	}
	found := map[string]bool{}
	for _, table := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile("/proc/net/" + table)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			const listening = "0A"
			if len(f) < 10 || f[3] != listening || !sockets["socket:["+f[9]+"]"] {
				continue
			}
			found[decodeAddress(t, f[1])] = true
		}
	}
	if len(found) < 4 {
		t.Errorf("found only the listeners %v", found)
	}
	return found
}

// decodeAddress reads an address as /proc/net/tcp writes it: words of four bytes, each
// in the machine's (here little-endian) order.
func decodeAddress(t testing.TB, s string) string {
	t.Helper()
	text, port, _ := strings.Cut(s, ":")
	var ip net.IP
	for i := 0; i+8 <= len(text); i += 8 {
		word, err := strconv.ParseUint(text[i:i+8], 16, 32)
		if err != nil {
			t.Fatal(err)
		}
		ip = append(ip, byte(word), byte(word>>8), byte(word>>16), byte(word>>24))
	}
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort(ip.String(), strconv.FormatUint(n, 10))
}

func TestDataOutlivesRunsKillsAndForce(t *testing.T) {
	require(t, all)
	// A folder's name may need quoting in scripts and settings.
	dir := filepath.Join(t.TempDir(), "a 'b' $c")
	check := func(s *Stack, rows int, bodies ...string) {
		t.Helper()
		if got := selectInt(t, s.PostgresURL, "SELECT count(*) FROM kept"); got != rows {
			t.Errorf("got %d rows, want %d", got, rows)
		}
		if diff := cmp.Diff(bodies, messages(t, s.RabbitMQURL)); diff != "" {
			t.Errorf("messages (-want +got):\n%s", diff)
		}
	}

	// The queue is made in a run of its own: a RabbitMQ before 4.0 that is killed in
	// a queue's first half second forgets the queue (rabbitmq/ra#443).
	s := start(t, dir, all)
	execSQL(t, s.PostgresURL, "CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)")
	publish(t, s.RabbitMQURL, "first")
	_, err := Start(t.Context(), Options{Dir: dir, Need: all})
	if want := fmt.Sprintf("the data folder %s is in use by process %d", dir, os.Getpid()); err == nil || err.Error() != want {
		t.Errorf("second Start on the folder: got %v, want %s", err, want)
	}
	stop(t, s)
	info, err := os.Stat(filepath.Join(dir, "credentials.json"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("credentials have mode %v", info.Mode())
	}

	began := time.Now()
	s = start(t, dir, all)
	t.Logf("started on existing data in %v", time.Since(began).Round(time.Millisecond))
	check(s, 1, "first")
	execSQL(t, s.PostgresURL, "INSERT INTO kept VALUES (2)")
	publish(t, s.RabbitMQURL, "second")
	var wg sync.WaitGroup
	for _, name := range []string{postgres, rabbitmq, redis} {
		wg.Go(func() {
			if err := s.Kill(name); err != nil {
				t.Errorf("Kill %s: %v", name, err)
			}
			if err := s.Restart(t.Context(), name); err != nil {
				t.Errorf("Restart %s: %v", name, err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	check(s, 2, "first", "second")

	// A Stop that has no time left uses force, and loses nothing either.
	execSQL(t, s.PostgresURL, "INSERT INTO kept VALUES (3)")
	publish(t, s.RabbitMQURL, "third")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	began = time.Now()
	if err := s.Stop(ctx); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > patience {
		t.Errorf("Stop by force took %v", took)
	}
	if left := processesOf(dir); len(left) > 0 {
		t.Errorf("processes left: %v", left)
	}
	check(start(t, dir, all), 3, "first", "second", "third")
}

func TestTwoStacksRunSideBySide(t *testing.T) {
	require(t, all)
	stacks := make([]*Stack, 2)
	errs := make([]error, len(stacks))
	var wg sync.WaitGroup
	for i := range stacks {
		wg.Go(func() { stacks[i], errs[i] = Start(t.Context(), Options{Dir: t.TempDir(), Need: all}) })
	}
	wg.Wait()
	for i, s := range stacks {
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
		defer stop(t, s)
	}
	for i, s := range stacks {
		execSQL(t, s.PostgresURL, fmt.Sprintf("CREATE TABLE only_in_%d ()", i))
		publish(t, s.RabbitMQURL, strconv.Itoa(i))
	}
	for i, s := range stacks {
		if got := selectInt(t, s.PostgresURL, "SELECT count(*) FROM pg_tables WHERE tablename LIKE 'only_in_%'"); got != 1 {
			t.Errorf("stack %d: got %d tables, want its own alone", i, got)
		}
		if diff := cmp.Diff([]string{strconv.Itoa(i)}, messages(t, s.RabbitMQURL)); diff != "" {
			t.Errorf("stack %d (-want +got):\n%s", i, diff)
		}
	}
}

func TestCancelledStartLeavesNothing(t *testing.T) {
	require(t, all)
	// From "nothing started" over "initdb at work" to "RabbitMQ booting".
	for _, after := range []time.Duration{0, 30 * time.Millisecond, 300 * time.Millisecond, time.Second, 2500 * time.Millisecond} {
		t.Run(after.String(), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			ctx, cancel := context.WithTimeout(t.Context(), after)
			defer cancel()
			began := time.Now()
			s, err := Start(ctx, Options{Dir: dir, Need: all})
			if err == nil {
				stop(t, s)
				t.Skip("the start was faster")
			}
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want the context's error", err)
			}
			if took := time.Since(began) - after; took > patience {
				t.Errorf("Start returned %v after its context", took)
			}
			if left := processesOf(dir); len(left) > 0 {
				t.Errorf("processes left: %v", left)
			}
		})
	}
	t.Run("temporary folder", func(t *testing.T) {
		tmp := t.TempDir()
		t.Setenv("TMPDIR", tmp)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if _, err := Start(ctx, Options{Need: all}); err == nil {
			t.Fatal("Start is impossibly fast")
		}
		if left, _ := os.ReadDir(tmp); len(left) > 0 {
			t.Errorf("left in the temporary folder: %v", left)
		}
	})
}

// owner runs the test binary as the owner of a stack in dir. It returns the line that
// begins with until.
func owner(t testing.TB, dir, until string) (*exec.Cmd, string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), ownerDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), until) {
			return cmd, lines.Text()
		}
	}
	rest, _ := io.ReadAll(out)
	t.Fatalf("the owner ended: %s%s", lines.Text(), rest)
	return nil, ""
}

func killOwner(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
}

func TestServersDieWithTheirOwner(t *testing.T) {
	require(t, all)
	dir := filepath.Join(t.TempDir(), "data")
	cmd, line := owner(t, dir, "ready")
	execSQL(t, strings.TrimPrefix(line, "ready "), "CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)")
	killOwner(t, cmd)
	vanish(t, dir, 5*time.Second)

	// The owner dies again, and the next one does not wait for its servers to be gone.
	cmd, line = owner(t, dir, "ready")
	execSQL(t, strings.TrimPrefix(line, "ready "), "INSERT INTO kept VALUES (2)")
	killOwner(t, cmd)
	s := start(t, dir, all)
	if got := selectInt(t, s.PostgresURL, "SELECT count(*) FROM kept"); got != 2 {
		t.Errorf("got %d rows, want 2", got)
	}
}

func TestServersDieWithAStartingOwner(t *testing.T) {
	require(t, all)
	dir := filepath.Join(t.TempDir(), "data")
	for _, after := range []time.Duration{50 * time.Millisecond, 700 * time.Millisecond, 2 * time.Second} {
		cmd, _ := owner(t, dir, "starting")
		time.Sleep(after) // where in its start the owner is does not matter
		killOwner(t, cmd)
		vanish(t, dir, 5*time.Second)
	}
	start(t, dir, Need{Postgres: true})
}

func TestForeignProcessesAreNotEnded(t *testing.T) {
	t.Parallel()
	need := Need{Postgres: true, Redis: true}
	require(t, need)
	dir := t.TempDir()
	s := start(t, dir, need)
	stop(t, s)

	// Pids in stale files that by now are somebody else's: here, of a process that
	// even works in the data folder.
	bystander := exec.Command("sleep", "60")
	bystander.Dir = filepath.Join(dir, "redis")
	if err := bystander.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = bystander.Process.Kill()
		_ = bystander.Wait()
	})
	id, err := identity(bystander.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(id)
	f[1] += "0" // began at another time
	postmaster := fmt.Sprintf("%d\n%s\n1\n1\n\n127.0.0.1\n  1  1\n", bystander.Process.Pid, filepath.Join(dir, "postgres/data"))
	for path, text := range map[string]string{
		"pid/postgres":                 strings.Join(f, " ") + "\n",
		"pid/redis":                    "not a pid",
		"postgres/data/postmaster.pid": postmaster,
	} {
		if err := os.WriteFile(filepath.Join(dir, path), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err = Start(t.Context(), Options{Dir: dir, Need: need})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if state, err := statFields(bystander.Process.Pid); err != nil || state[0] == "Z" {
		t.Errorf("the bystander is gone: %v, %v", state, err)
	}
}

func TestServersOfALostOwnerAreEnded(t *testing.T) {
	t.Parallel()
	need := Need{Postgres: true, Redis: true}
	require(t, need)
	dir := t.TempDir()
	stop(t, start(t, dir, need))

	// A server that nobody told to end, and one that shows neither mark nor folder
	// but is on record.
	path, err := findRedis()
	if err != nil {
		t.Fatal(err)
	}
	var lost []*exec.Cmd
	for i := range 2 {
		c := exec.Command(path, "--port", "0", "--save", "")
		c.Dir = []string{filepath.Join(dir, "redis"), "/"}[i]
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		lost = append(lost, c)
	}
	if err := recordPID(filepath.Join(dir, "pid", "redis"), lost[1].Process.Pid); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for _, c := range lost {
			_ = c.Wait()
		}
	}()
	start(t, dir, need)
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("the lost servers still run")
		for _, c := range lost {
			_ = c.Process.Kill()
		}
		<-ended
	}
}

func TestFolderBelowAClosedOne(t *testing.T) {
	t.Parallel()
	need := Need{Postgres: true}
	require(t, need)
	if os.Geteuid() != 0 {
		t.Skip("only root's servers run as somebody else")
	}
	closed := filepath.Join(t.TempDir(), "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	s := start(t, filepath.Join(closed, "data"), need)
	execSQL(t, s.PostgresURL, "CREATE TABLE kept (n int); INSERT INTO kept VALUES (1); CHECKPOINT")
	if err := s.Kill(postgres); err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(t.Context(), postgres); err != nil {
		t.Fatal(err)
	}
	if got := selectInt(t, s.PostgresURL, "SELECT count(*) FROM kept"); got != 1 {
		t.Errorf("got %d rows, want 1", got)
	}
	if info, err := os.Stat(closed); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the closed folder was changed: %v, %v", info.Mode(), err)
	}
}

func TestDiedNamesTheServer(t *testing.T) {
	t.Parallel()
	for name, need := range map[string]Need{postgres: {Postgres: true}, redis: {Redis: true}} {
		t.Run(name, func(t *testing.T) {
			require(t, need)
			s := start(t, t.TempDir(), need)
			p := s.servers[name].(*localServer).p
			// As the kernel's out-of-memory killer would, past Kill.
			if err := p.signal(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-s.Died():
				if !strings.HasPrefix(err.Error(), name+" ended by itself (signal: killed); the end of its log") {
					t.Errorf("got %v", err)
				}
			case <-time.After(5 * time.Second):
				t.Error("Died says nothing")
			}
		})
	}
}

func TestFreezeAndThaw(t *testing.T) {
	t.Parallel()
	need := Need{Postgres: true, Redis: true}
	require(t, need)
	s := start(t, t.TempDir(), need)
	conn, err := pgx.Connect(t.Context(), s.PostgresURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := s.Signal(postgres, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	answer := make(chan error, 1)
	go func() { answer <- conn.Ping(context.Background()) }()
	select {
	case err := <-answer:
		t.Errorf("a session of the frozen server answers: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	if err := s.Signal(postgres, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-answer; err != nil {
		t.Errorf("after the thaw: %v", err)
	}
	// Stop, by the cleanup, has to cope with frozen servers.
	for _, name := range []string{postgres, redis} {
		if err := s.Signal(name, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Signal("mongodb", syscall.SIGSTOP); err == nil {
		t.Error("Signal takes an unknown server")
	}
}

func TestRestartWaitsForItsPort(t *testing.T) {
	t.Parallel()
	need := Need{Redis: true}
	require(t, need)
	s := start(t, t.TempDir(), need)
	u, err := url.Parse(s.RedisURL)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Kill(redis); err != nil {
		t.Fatal(err)
	}
	thief, err := net.Listen("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	restarted := make(chan error, 1)
	go func() { restarted <- s.Restart(t.Context(), redis) }()
	select {
	case err := <-restarted:
		t.Fatalf("Restart returned %v while its port was taken", err)
	case <-time.After(500 * time.Millisecond):
	}
	if err := thief.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-restarted; err != nil {
		t.Fatal(err)
	}
	if err := redisReady(t.Context(), s.RedisURL); err != nil {
		t.Error(err)
	}
}

func TestFailedStartQuotesTheLog(t *testing.T) {
	t.Parallel()
	need := Need{Postgres: true}
	require(t, need)
	dir := t.TempDir()
	stop(t, start(t, dir, need))
	conf, err := os.OpenFile(filepath.Join(dir, "postgres/data/postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintln(conf, "nonsense = 1"); err != nil {
		t.Fatal(err)
	}
	if err := conf.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = Start(t.Context(), Options{Dir: dir, Need: need})
	if err == nil || !strings.HasPrefix(err.Error(), "postgres ended (exit status 1)") || !strings.Contains(err.Error(), `"nonsense"`) {
		t.Errorf("got %v", err)
	}
	if left := processesOf(dir); len(left) > 0 {
		t.Errorf("processes left: %v", left)
	}
}

func TestAbandonedTemporaryFoldersAreRemoved(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	long := time.Now().Add(-time.Hour)
	for _, name := range []string{"abandoned", "held", "new"} {
		dir := filepath.Join(tmp, tempPattern+name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		lock, err := lockFolder(dir)
		if err != nil {
			t.Fatal(err)
		}
		if name != "held" {
			lock.Close()
		} else {
			defer lock.Close()
		}
		if name != "new" {
			if err := os.Chtimes(filepath.Join(dir, lockName), long, long); err != nil {
				t.Fatal(err)
			}
		}
	}
	removeAbandoned()
	got, err := filepath.Glob(filepath.Join(tmp, "*"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{filepath.Join(tmp, tempPattern+"held"), filepath.Join(tmp, tempPattern+"new")}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("folders (-want +got):\n%s", diff)
	}
}

func TestMissingServersAreOneLine(t *testing.T) {
	for _, c := range []struct {
		packages []string
		want     string
	}{
		{[]string{"rabbitmq-server"}, "rabbitmq-server is not installed: sudo apt-get install -y rabbitmq-server"},
		{[]string{"postgresql", "redis-server"}, "postgresql, redis-server are not installed: sudo apt-get install -y postgresql redis-server"},
	} {
		if got := missingError(c.packages).Error(); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
}

func TestRabbitMQsVersionIsThatOfItsFolder(t *testing.T) {
	for _, c := range []struct {
		files        []string
		major, minor int
	}{
		{[]string{"rabbit-4.3.6/ebin", "rabbit_common-9.9.9/ebin"}, 4, 3},
		{[]string{"rabbit-3.10.8.ez"}, 3, 10},
		{[]string{"rabbit-4.3.0-rc.2"}, 4, 3},
		{[]string{"rabbitmq_prometheus-4.3.6"}, 0, 0},
		{nil, 0, 0},
	} {
		home := t.TempDir()
		script := filepath.Join(home, "sbin/rabbitmq-server")
		for _, dir := range append([]string{"../sbin"}, c.files...) {
			if err := os.MkdirAll(filepath.Join(home, "plugins", dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(script, nil, 0o755); err != nil {
			t.Fatal(err)
		}
		link := filepath.Join(t.TempDir(), "rabbitmq-server")
		if err := os.Symlink(script, link); err != nil {
			t.Fatal(err)
		}
		if major, minor := rabbitMQVersion(link); major != c.major || minor != c.minor {
			t.Errorf("with %q: got %d.%d, want %d.%d", c.files, major, minor, c.major, c.minor)
		}
		e := &rabbitEngine{script: link}
		if got, want := e.isAtLeast(4, 3), c.major == 4; got != want {
			t.Errorf("with %q: 4.3 or newer %v, want %v", c.files, got, want)
		}
	}
	if path, err := findRabbitMQ(); err == nil {
		if major, _ := rabbitMQVersion(path); major < 3 {
			t.Errorf("the version of the RabbitMQ at %s can't be told", path)
		}
	}
}

func TestNothingNeededIsAStack(t *testing.T) {
	s := start(t, "", Need{})
	if env := s.Env(); !slices.Equal(env, nil) {
		t.Errorf("got %v, want nothing", env)
	}
}

func TestAPortThatSomebodyTookIsToldFromOtherFailures(t *testing.T) {
	for text, want := range map[string]bool{
		`{"init terminating in do_boot",{error,{could_not_start_listener,"127.0.0.1",43047,{{shutdown,{failed_to_start_child,{ran`: true, // cut off before its eaddrinuse
		`could not bind IPv4 address "127.0.0.1": Address already in use`:                                                          true,
		`FATAL:  data directory "/x" has wrong ownership`:                                                                          false,
	} {
		if got := portLost.MatchString(text); got != want {
			t.Errorf("portLost(%q) = %v, want %v", text, got, want)
		}
	}
}

func TestPortsAreNotThoseOfConnections(t *testing.T) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		t.Fatal(err)
	}
	var first, last int
	if _, err := fmt.Sscan(string(text), &first, &last); err != nil {
		t.Fatal(err)
	}
	if first < 21000 {
		t.Skipf("connections have the ports %d to %d, and leave too few", first, last)
	}
	for range 20 {
		port, err := freePort()
		if err != nil {
			t.Fatal(err)
		}
		if port >= first && port <= last {
			t.Errorf("got %d, which a connection may have: they are given %d to %d", port, first, last)
		}
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		_ = ln.Close()
	}
}

func TestAPortIsGivenOnce(t *testing.T) {
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	if reserve(port) {
		t.Errorf("port %d was given and can be reserved again: two processes could get it", port)
	}
}
