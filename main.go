// Millrace takes JSON logs and events over HTTP and puts every one of them, once, into PostgreSQL.
//
//	client ── POST /log, /log/batch ──▶ api ── confirmed publish ──▶ RabbitMQ ──▶ worker ── COPY ──▶ PostgreSQL
//	                                                                                                  │
//	person, dashboard ◀── GET /logs, /logs/count ── query (Redis cache) ◀─────────────────────────────┘
//
// This file parses the command line, wires the services and runs them.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	neturl "net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/api"
	"millrace/internal/config"
	"millrace/internal/keys"
	"millrace/internal/localstack"
	"millrace/internal/pg"
	"millrace/internal/retry"
	"millrace/internal/service"
	"millrace/migrations"
	"millrace/query"
	"millrace/worker"
)

// version is set by the linker: -X main.version=v1.2.3.
var version = "dev"

// command is a subcommand of millrace.
type command struct {
	name    string
	usage   string // what follows the name
	summary string
	details string
	configs []any // whose settings the help lists
	run     func(ctx context.Context, args []string) error
}

// usageError is a command line that is not understood; it ends the process with status 2.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

var commands []command

func init() {
	commands = []command{
		{"run", "[--dir D] [--brokers N]", "everything on this machine, with private servers", runHelp,
			[]any{api.Config{}, worker.Config{}, query.Config{}}, runAll},
		{"stack", "[--dir D] [--brokers N] [--missing] -- CMD…", "CMD beside private PostgreSQL, RabbitMQ and Redis", stackHelp, nil, runStack},
		{"api", "", "the HTTP intake", "", []any{api.Config{}}, func(ctx context.Context, args []string) error {
			return runService(ctx, args, func(ctx context.Context, c api.Config) error {
				c.Reload, c.OnListen = hangups(), ready
				if os.Getenv("GOMEMLIMIT") == "" {
					debug.SetMemoryLimit(c.MemoryLimit())
				}
				c.Alone = true
				return api.Run(ctx, c)
			})
		}},
		{"worker", "", "moves frames from RabbitMQ into PostgreSQL", "", []any{worker.Config{}}, func(ctx context.Context, args []string) error {
			signal.Ignore(syscall.SIGHUP) // there is nothing to read again
			return runService(ctx, args, func(ctx context.Context, c worker.Config) error {
				c.OnListen = ready
				return worker.Run(ctx, c)
			})
		}},
		{"query", "", "answers searches", "", []any{query.Config{}}, func(ctx context.Context, args []string) error {
			return runService(ctx, args, func(ctx context.Context, c query.Config) error {
				c.Reload, c.OnListen = hangups(), ready
				return query.Run(ctx, c)
			})
		}},
		{"migrate", "up | down | status | roles", "the database schema", migrateHelp, []any{database{}}, migrate},
		{"dead", "list | show ID | replay [ID…] | drop ID…|--all", "records and messages that could not be stored", deadHelp, []any{database{}, retention{}}, dead},
		{"keys", "new NAME --scope write,read [--rate N [--burst N]]", "API keys", keysHelp, nil, newKey},
		{"health", "[URL]", "whether the services of this machine are alive", healthHelp, nil, health},
		{"version", "", "the version of this program", "", nil, printVersion},
		{"help", "[COMMAND]", "this text, or a command's settings", "", nil, help},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	// A second signal ends the process at once, by the default disposition.
	context.AfterFunc(ctx, stop)
	os.Exit(exitStatus(dispatch(ctx, os.Args[1:])))
}

func dispatch(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return usagef("no command; millrace help lists them")
	}
	name := args[0]
	if name == "-h" || name == "--help" {
		name = "help"
	}
	c, err := lookup(name)
	if err != nil {
		return err
	}
	for _, a := range args[1:] {
		if a == "--" {
			break
		}
		if a == "-h" || a == "--help" {
			return help(ctx, []string{c.name})
		}
	}
	return c.run(ctx, args[1:])
}

func lookup(name string) (command, error) {
	for _, c := range commands {
		if c.name == name {
			return c, nil
		}
	}
	return command{}, usagef("no command %s; millrace help lists them", config.Shown(name))
}

// commandEnded is the status that a command of millrace stack ended with; it is passed on without a word.
type commandEnded int

func (c commandEnded) Error() string { return fmt.Sprintf("the command ended with status %d", int(c)) }

// exitStatus reports err on standard error: the status of a command run by millrace stack, 2 for a command
// line that is not understood, else 1.
func exitStatus(err error) int {
	var usage usageError
	if status, ok := err.(commandEnded); ok || err == nil {
		return int(status)
	}
	fmt.Fprintln(os.Stderr, "millrace:", err)
	if errors.As(err, &usage) {
		return 2
	}
	return 1
}

// hangups returns a channel that brings every SIGHUP, which ends the process no more.
func hangups() <-chan os.Signal {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP)
	return c
}

// runService runs one service with the settings of the environment.
func runService[C any](ctx context.Context, args []string, run func(context.Context, C) error) error {
	if len(args) > 0 {
		return usagef("unexpected argument %s; settings come from the environment", config.Shown(args[0]))
	}
	var c C
	if err := config.Load(&c); err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { notify("STOPPING=1") })
	return run(ctx, c)
}

// leaveWord writes into dir what programs beside millrace run want to know: targets.json has the addresses of all
// metrics for Prometheus' file_sd_configs, env the servers' URLs for a shell.
func leaveWord(dir string, where *directory, stack *localstack.Stack, environ map[string]string) error {
	type group struct {
		Targets []string          `json:"targets"`
		Labels  map[string]string `json:"labels"`
	}
	var groups []group
	add := func(job, scheme string, targets ...string) {
		groups = append(groups, group{targets, map[string]string{"job": job, "__scheme__": scheme}})
	}
	for _, name := range []string{"api", "worker", "query"} {
		scheme, address, _ := strings.Cut(where.url(name), "://")
		add(name, scheme, address)
	}
	if len(stack.RabbitMQMetrics) > 0 {
		add("rabbitmq", "http", stack.RabbitMQMetrics...)
	}
	targets, err := json.MarshalIndent(groups, "", "  ")
	if err != nil {
		return err
	}
	var env strings.Builder
	for _, name := range []string{"POSTGRES_URL", "RABBITMQ_URL", "REDIS_URL"} {
		fmt.Fprintf(&env, "%s='%s'\n", name, strings.ReplaceAll(environ[name], "'", `'\''`))
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "targets.json"), append(targets, '\n'), 0o644),
		os.WriteFile(filepath.Join(dir, "env"), []byte(env.String()), 0o600),
	)
}

// ready tells the service manager, if there is one, that a service listens. It does not wait for RabbitMQ and
// PostgreSQL: the services start without them and find them when they come.
func ready(net.Addr) { notify("READY=1") }

func notify(state string) {
	if err := service.Notify(state); err != nil {
		fmt.Fprintln(os.Stderr, "millrace:", err)
	}
}

const runHelp = `Starts private PostgreSQL, RabbitMQ and Redis from the servers installed here, brings the schema up,
runs api, worker and query, says where each is, and stops all of it in order on SIGINT or SIGTERM.
A server whose URL is set in the environment is used instead of a private one.

  --dir D       where the private servers keep their data (default .millrace); it is kept between runs
  --brokers N   RabbitMQ as a cluster of 3 or 5 nodes (default 1); a folder keeps its number

targets.json in D has the addresses of all metrics for Prometheus (file_sd_configs), env the servers' URLs for a shell.`

// runAll is millrace run.
func runAll(ctx context.Context, args []string) error {
	flags := newFlags("run")
	dir := flags.String("dir", ".millrace", "")
	brokers := flags.Int("brokers", 1, "")
	if err := parseFlags(flags, args, 0); err != nil {
		return err
	}
	environ, err := config.Environ()
	if err != nil {
		return err
	}
	var s struct {
		api    api.Config
		worker worker.Config
		query  query.Config
	}
	load := func() error {
		for _, c := range []interface{ Validate() error }{&s.api, &s.worker, &s.query} {
			if err := config.LoadFrom(environ, c); err != nil {
				return err
			}
			if err := c.Validate(); err != nil {
				return err
			}
		}
		return nil
	}
	need := localstack.Need{
		Postgres: standIn(environ, "POSTGRES_URL", "postgres://to.be.started/"),
		RabbitMQ: standIn(environ, "RABBITMQ_URL", "amqp://to.be.started/"),
		Redis:    standIn(environ, "REDIS_URL", "redis://to.be.started/"),
	}
	if err := load(); err != nil { // before anything is started
		return err
	}
	log := service.NewLogger(os.Stderr, s.api.Process)
	stack, err := localstack.Start(ctx, localstack.Options{Dir: *dir, Need: need, Brokers: *brokers, Metrics: true, Log: log})
	if err != nil {
		return err
	}
	for _, kv := range stack.Env() {
		name, value, _ := strings.Cut(kv, "=")
		environ[name] = value
	}
	if err = load(); err == nil {
		err = migrateUp(ctx, log, s.worker)
	}
	if err == nil {
		var g service.Group
		where := &directory{tls: s.api.TLSCertFile != "", addrs: make(map[string]string)}
		s.api.Log, s.api.OnListen = log, where.listener("api")
		s.api.Reload, s.query.Reload = hangups(), hangups()
		s.worker.Profiles, s.query.Profiles = "", "" // a process has one set of them, and the API's address
		s.worker.Log, s.worker.OnListen = log, where.listener("worker")
		s.query.Log, s.query.OnListen = log, where.listener("query")
		// The order is the order of stopping, from upstream to downstream.
		g.Go("api", func(ctx context.Context) error { return api.Run(ctx, s.api) })
		g.Go("worker", func(ctx context.Context) error { return worker.Run(ctx, s.worker) })
		g.Go("query", func(ctx context.Context) error { return query.Run(ctx, s.query) })
		g.Go("greeting", func(ctx context.Context) error {
			greet(ctx, os.Stdout, where, stack, *dir)
			if ctx.Err() == nil {
				if err := leaveWord(*dir, where, stack, environ); err != nil {
					log.Warn("Prometheus will not find the services", "error", err)
				}
			}
			<-ctx.Done()
			return nil
		})
		g.Go("private servers", func(ctx context.Context) error {
			select {
			case err := <-stack.Died():
				return err
			case <-ctx.Done():
				return nil
			}
		})
		err = g.Wait(ctx)
	}
	return errors.Join(err, stopStack(stack, s.api.ShutdownTimeout))
}

// standIn gives a server's URL a value that settings can be checked with, when a private one is to be started.
func standIn(environ map[string]string, name, url string) bool {
	if environ[name] != "" {
		return false
	}
	environ[name] = url
	return true
}

// migrateUp brings the schema up before any service looks for it. The worker would do so too, later.
func migrateUp(ctx context.Context, log *slog.Logger, c worker.Config) error {
	if !c.AutoMigrate {
		return nil
	}
	conn, err := open(ctx, c.Owner, c.Postgres)
	if err != nil {
		return err
	}
	defer conn.Close(ctx) // nothing is left to lose
	applied, err := migrations.Up(ctx, conn)
	for _, m := range applied {
		log.Info("migrated the schema", "version", m.Version, "name", m.Name)
	}
	return err
}

func stopStack(stack *localstack.Stack, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return stack.Stop(ctx)
}

// directory learns where the services listen.
type directory struct {
	tls   bool // of api and query
	mu    sync.Mutex
	addrs map[string]string
}

func (d *directory) listener(name string) func(net.Addr) {
	return func(a net.Addr) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.addrs[name] = a.String()
	}
}

// url is where a service is, "" while it does not listen.
func (d *directory) url(name string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch addr := d.addrs[name]; {
	case addr == "":
		return ""
	case d.tls && name != "worker":
		return "https://" + addr
	default:
		return "http://" + addr
	}
}

// greet waits until all services are ready and says where they are.
func greet(ctx context.Context, w io.Writer, where *directory, stack *localstack.Stack, dir string) {
	for _, name := range []string{"api", "worker", "query"} {
		for !isReady(ctx, where.url(name)) {
			if retry.Sleep(ctx, 50*time.Millisecond) != nil {
				return
			}
		}
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\nMillrace is running. Search and follow the logs at %s/\n", where.url("query"))
	fmt.Fprintf(t, "  api\t%s\tPOST /log, POST /log/batch\n", where.url("api"))
	fmt.Fprintf(t, "  query\t%s\tGET /logs, GET /logs/{id}, GET /logs/count\n", where.url("query"))
	fmt.Fprintf(t, "  worker\t%s\tGET /metrics, GET /ready\n", where.url("worker"))
	for _, kv := range stack.Env() {
		name, value, _ := strings.Cut(kv, "=")
		server, _, _ := strings.Cut(name, "_")
		fmt.Fprintf(t, "  %s\t%s\n", strings.ToLower(server), shownServers(name, value))
	}
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	fmt.Fprintf(t, "  data\t%s\tits file env has the servers' URLs with their passwords\n", dir)
	fmt.Fprintf(t, "\nSend a log:  curl -X POST -d '{\"level\":\"info\",\"message\":\"hello\"}' %s/log\n", where.url("api"))
	fmt.Fprintf(t, "See it:      curl %s/logs\n", where.url("query"))
	fmt.Fprintln(t, "Ctrl-C stops everything.")
	_ = t.Flush() // standard output may be closed; the services run all the same
}

// shownServers returns what may be shown of the URLs of private servers: where they lead, without the passwords.
func shownServers(setting, urls string) string {
	switch setting {
	case "POSTGRES_URL":
		return config.PostgresURL(urls).String()
	case "REDIS_URL":
		return config.RedisURL(urls).String()
	}
	return strings.Trim(fmt.Sprint(config.Brokers(urls)), "[]")
}

// isReady asks a service on this machine. One that speaks TLS is ready when it listens: what its certificate says
// and whom it lets in is between it and its clients.
func isReady(ctx context.Context, url string) bool {
	if strings.HasPrefix(url, "https://") {
		return true
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/ready", nil)
	if err != nil || url == "" {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

const stackHelp = `Starts private PostgreSQL, RabbitMQ and Redis, runs CMD with POSTGRES_URL, RABBITMQ_URL and REDIS_URL set,
stops them and exits with CMD's status. The servers come from the binaries installed here, else from containers
when a Docker engine answers; MILLRACE_STACK=local or containers leaves no choice. MILLRACE_POSTGRES_BIN is the folder of
another PostgreSQL's programs to take instead.

  --dir D       where the servers keep their data (default a temporary folder that is removed)
  --brokers N   RabbitMQ as a cluster of 3 or 5 nodes (default 1): RABBITMQ_URL then has the URLs of all
  --missing     print the Debian packages of the servers that are not installed, and exit`

// runStack is millrace stack.
func runStack(ctx context.Context, args []string) error {
	flags := newFlags("stack")
	dir := flags.String("dir", "", "")
	brokers := flags.Int("brokers", 1, "")
	missing := flags.Bool("missing", false, "")
	if err := parseFlags(flags, args, -1); err != nil {
		return err
	}
	need := localstack.Need{Postgres: true, RabbitMQ: true, Redis: true}
	if *missing {
		fmt.Println(strings.Join(localstack.MissingPackages(need), " "))
		return nil
	}
	if flags.NArg() == 0 {
		return usagef("stack: no command to run: millrace stack -- CMD…")
	}
	var p config.Process
	if err := config.Load(&p); err != nil {
		return err
	}
	log := slog.New(slog.DiscardHandler)
	if p.LogLevel == "debug" {
		log = service.NewLogger(os.Stderr, p)
	}
	stack, err := localstack.Start(ctx, localstack.Options{Dir: *dir, Need: need, Brokers: *brokers, Log: log})
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, flags.Arg(0), flags.Args()[1:]...)
	cmd.Env = append(os.Environ(), stack.Env()...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = p.ShutdownTimeout
	runErr := cmd.Run()
	if err := stopStack(stack, p.ShutdownTimeout); err != nil {
		return errors.Join(runErr, err)
	}
	var exit *exec.ExitError
	if errors.As(runErr, &exit) {
		status := exit.ExitCode()
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			status = 128 + int(ws.Signal()) // as a shell would
		}
		return commandEnded(status)
	}
	return runErr
}

// database is what the commands that work on the database alone are set by.
type database struct {
	URL   config.PostgresURL `env:"POSTGRES_URL" help:"PostgreSQL."`
	Owner config.PostgresURL `env:"POSTGRES_OWNER_URL" help:"The same as the user that owns the tables; empty: POSTGRES_URL."`
}

func connect(ctx context.Context) (*pgx.Conn, error) {
	var d database
	if err := config.Load(&d); err != nil {
		return nil, err
	}
	return open(ctx, d.Owner, d.URL)
}

// open connects to the database as the user that owns the tables, if there is a URL of that user's.
func open(ctx context.Context, owner, url config.PostgresURL) (*pgx.Conn, error) {
	name := "POSTGRES_URL"
	if owner != "" {
		name, url = "POSTGRES_OWNER_URL", owner
	}
	if url == "" {
		return nil, config.Missing(name)
	}
	c, err := pg.ParseURL(url, "millrace")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := pg.CheckPooler(ctx, &c.Config); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return pgx.ConnectConfig(ctx, c)
}

const migrateHelp = `  up       apply all steps that are missing; worker and run do so by themselves
  down     take the latest step back, with all the rows it made room for
  status   list the steps
  roles    make the database users millrace_owner, millrace_writer (for the worker) and millrace_reader (for the query
           service), without passwords, and give them their rights; as a superuser, or as the database's owner with CREATEROLE`

// migrate is millrace migrate.
func migrate(ctx context.Context, args []string) error {
	if len(args) != 1 || !slices.Contains([]string{"up", "down", "status", "roles"}, args[0]) {
		return usagef("migrate: want one of up, down, status, roles")
	}
	conn, err := connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(ctx) // nothing is left to lose
	switch args[0] {
	case "up":
		applied, err := migrations.Up(ctx, conn)
		for _, m := range applied {
			fmt.Printf("applied %d %s\n", m.Version, m.Name)
		}
		if err == nil && len(applied) == 0 {
			fmt.Println("nothing to apply")
		}
		return err
	case "down":
		undone, err := migrations.Down(ctx, conn)
		switch {
		case err != nil:
			return err
		case undone == nil:
			fmt.Println("nothing to take back")
		default:
			fmt.Printf("took back %d %s\n", undone.Version, undone.Name)
		}
		return nil
	case "roles":
		err := migrations.Roles(ctx, conn)
		if err == nil {
			fmt.Println("millrace_owner, millrace_writer and millrace_reader have their rights; ALTER ROLE … PASSWORD lets them log in")
		}
		return err
	}
	all, err := migrations.Status(ctx, conn)
	for _, m := range all {
		at := "not applied"
		if !m.AppliedAt.IsZero() {
			at = "applied " + m.AppliedAt.UTC().Format(time.RFC3339)
		}
		fmt.Printf("%d %s: %s\n", m.Version, m.Name, at)
	}
	return err
}

const deadHelp = `  list            the youngest hundred, with the reason
  show ID         one whole: its properties, then its payload on standard output
  replay [ID…]    store what can be stored now, and remove it here; without IDs, all. What is older than RETENTION stays:
                  here or as the worker has noted it, whichever is shorter
  drop ID…|--all  delete for good`

// retention is what a replay must know of the worker's settings.
type retention struct {
	Keep time.Duration `env:"RETENTION" min:"0s" help:"Age at which the worker drops records; empty: what the worker has noted."`
}

// dead is millrace dead.
func dead(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return usagef("dead: want one of list, show, replay, drop")
	}
	action, args := args[0], args[1:]
	all := len(args) == 1 && args[0] == "--all"
	var ids []uuid.UUID
	if !all {
		for _, a := range args {
			id, err := uuid.Parse(a)
			if err != nil {
				return usagef("dead: got %s, takes the id of a dead letter", config.Shown(a))
			}
			ids = append(ids, id)
		}
	}
	switch {
	case action == "list" && len(args) == 0, action == "show" && len(ids) == 1, action == "replay",
		action == "drop" && (all || len(ids) > 0):
	default:
		return usagef("dead: want list, show ID, replay [ID…] or drop ID…|--all")
	}
	conn, err := connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(ctx) // nothing is left to lose
	switch action {
	case "list":
		letters, err := worker.ListDead(ctx, conn, 100)
		t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
		for _, d := range letters {
			fmt.Fprintf(t, "%s\t%s\t%s\t%d bytes\t%s\n", d.ID, d.DeadAt.UTC().Format(time.RFC3339), d.Reason, d.Bytes, d.Error)
		}
		return errors.Join(err, t.Flush())
	case "show":
		d, err := worker.ShowDead(ctx, conn, ids[0])
		if err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "id          %s\ndead at     %s\nreason      %s\nerror       %s\nqueue       %s\nproperties  %s\n\n",
			d.ID, d.DeadAt.UTC().Format(time.RFC3339), d.Reason, d.Error, d.Queue, d.Properties)
		_, err = os.Stdout.Write(append(d.Payload, '\n'))
		return err
	case "replay":
		var r retention
		if err := config.Load(&r); err != nil {
			return err
		}
		replayed, err := worker.ReplayDeadWithin(ctx, conn, ids, r.Keep)
		left := 0
		for _, r := range replayed {
			if r.Err != nil {
				left++
				fmt.Printf("%s stays: %v\n", r.ID, r.Err)
			} else {
				fmt.Printf("%s stored, %d rows\n", r.ID, r.Rows)
			}
		}
		if err == nil && left > 0 {
			err = fmt.Errorf("dead: %d of %d could not be stored", left, len(replayed))
		}
		return err
	}
	n, err := worker.DropDead(ctx, conn, ids)
	if err == nil {
		fmt.Printf("dropped %d\n", n)
	}
	return err
}

const keysHelp = `Prints a new key, once, and the line for the file that KEYS_FILE names; the file holds only the key's SHA-256.

  --scope S   write (POST /log, /log/batch), read (the query service), or both: write,read
  --rate N    most records a second that the key may store; without it there is no limit
  --burst N   most records at once after a pause (default N of the rate); a larger batch waits until the burst is whole

A line of the file is: NAME SHA256 SCOPES [rate=N [burst=N]]. Blank lines and lines that start with # are passed over.
The services read the file again within a second of a change, and at once on SIGHUP. Where it has a mistake they log
the line and keep the keys they have.`

// newKey is millrace keys new.
func newKey(_ context.Context, args []string) error {
	if len(args) < 2 || args[0] != "new" {
		return usagef("keys: want new NAME --scope write,read")
	}
	flags := newFlags("keys new")
	scope := flags.String("scope", "", "")
	rate := flags.Int("rate", 0, "")
	burst := flags.Int("burst", 0, "")
	if err := parseFlags(flags, args[2:], 0); err != nil {
		return err
	}
	key, secret, err := keys.New(args[1], strings.FieldsFunc(*scope, func(r rune) bool { return r == ',' }))
	if err == nil {
		if key.Rate, key.Burst = *rate, *burst; key.Burst == 0 {
			key.Burst = key.Rate
		}
		err = key.Validate()
	}
	if err != nil {
		return usageError{err}
	}
	fmt.Printf("key, shown once:  %s\nfor KEYS_FILE:    %s\n", secret, key)
	return nil
}

const healthHelp = `Asks URL, or /health of whatever listens at API_ADDR, QUERY_ADDR and WORKER_ADDR, and ends with status 0 when the
answer is 200, else 1. It is made for health checks of containers, which have neither a shell nor curl.`

// healthTimeout is what a service that is alive needs at the very most.
const healthTimeout = 3 * time.Second

// health is millrace health.
func health(ctx context.Context, args []string) error {
	if len(args) > 1 {
		return usagef("health: unexpected argument %s", config.Shown(args[1]))
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	if len(args) == 1 {
		return ask(ctx, args[0])
	}
	var a struct {
		API    config.Address `env:"API_ADDR" envDefault:"127.0.0.1:8080"`
		Query  config.Address `env:"QUERY_ADDR" envDefault:"127.0.0.1:8081"`
		Worker config.Address `env:"WORKER_ADDR" envDefault:"127.0.0.1:8082"`
		config.Access
	}
	if err := config.Load(&a); err != nil {
		return err
	}
	listening := 0
	for _, addr := range []config.Address{a.API, a.Query, a.Worker} {
		scheme := "http://"
		if a.TLSCertFile != "" && addr != a.Worker {
			scheme = "https://"
		}
		switch err := ask(ctx, scheme+reachable(string(addr))+"/health"); {
		case errors.Is(err, syscall.ECONNREFUSED):
			continue // another service's address
		case err != nil:
			return err
		}
		listening++
	}
	if listening == 0 {
		return fmt.Errorf("health: nothing listens at %s, %s or %s", a.API, a.Query, a.Worker)
	}
	return nil
}

// reachable is an address at which this machine reaches what listens at addr, which may be all of its addresses.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err != nil || host != "" && (ip == nil || !ip.IsUnspecified()) {
		return addr
	}
	return net.JoinHostPort("localhost", port)
}

// ask returns nil when url answers 200.
func ask(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return usagef("health: %s is no URL", config.Shown(url))
	}
	// Whether a service is alive does not hang on the name in its certificate, which is hardly localhost.
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	var op *net.OpError
	switch {
	case errors.As(err, &op) && op.Op == "remote error": // TLS's own answer: it wants a client certificate
		return nil
	case err != nil:
		var inner *neturl.Error // its text has the user's name
		if errors.As(err, &inner) {
			err = inner.Err
		}
		return fmt.Errorf("health: %s: %w", withoutUser(req.URL), err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // what there is of it says why
	return fmt.Errorf("health: %s: %s %s", withoutUser(req.URL), resp.Status, bytes.TrimSpace(body))
}

// withoutUser returns what may be shown of a URL.
func withoutUser(u *neturl.URL) string { return u.Scheme + "://" + u.Host + u.Path }

func printVersion(context.Context, []string) error {
	revision := ""
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				revision = " " + s.Value
			}
		}
	}
	fmt.Printf("millrace %s%s %s\n", version, revision, runtime.Version())
	return nil
}

// help prints the commands, or one command's usage and settings.
func help(_ context.Context, args []string) error {
	if len(args) == 0 {
		fmt.Print("Millrace takes JSON logs over HTTP and puts every one of them, once, into PostgreSQL.\n\nUsage: millrace COMMAND\n\n")
		t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
		for _, c := range commands {
			fmt.Fprintf(t, "  %s\t%s\n", strings.TrimSpace(c.name+" "+c.usage), c.summary)
		}
		fmt.Fprint(t, "\nSettings come from the environment, or from .env in the working directory: millrace help COMMAND lists them.\n")
		return t.Flush()
	}
	c, err := lookup(args[0])
	if err != nil {
		return err
	}
	fmt.Printf("Usage: millrace %s\n\n%s%s.\n", strings.TrimSpace(c.name+" "+c.usage), strings.ToUpper(c.summary[:1]), c.summary[1:])
	if c.details != "" {
		fmt.Printf("\n%s\n", c.details)
	}
	if len(c.configs) == 0 {
		return nil
	}
	fmt.Print("\nSettings:\n")
	seen := make(map[string]bool)
	for _, cfg := range c.configs {
		for _, s := range config.Describe(cfg) {
			if seen[s.Name] {
				continue
			}
			seen[s.Name] = true
			fmt.Printf("  %s\n      %s\n      Takes %s. Default: %s\n", s.Name, s.Help, s.Takes, defaultText(s.Default))
		}
	}
	return nil
}

func defaultText(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func newFlags(name string) *flag.FlagSet {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard) // the error says it all
	return flags
}

// parseFlags parses args and checks the number of those that are no flags, when that is not negative.
func parseFlags(flags *flag.FlagSet, args []string, want int) error {
	if err := flags.Parse(args); err != nil {
		if slices.ContainsFunc(args, config.MayHoldSecret) { // the error may repeat one
			return usagef("%s: the flags are not understood; millrace help lists them", flags.Name())
		}
		return usagef("%s: %w", flags.Name(), err)
	}
	if want >= 0 && flags.NArg() != want {
		return usagef("%s: unexpected argument %s", flags.Name(), config.Shown(flags.Arg(want)))
	}
	return nil
}
