package cli

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"millrace/api"
	"millrace/internal/config"
	"millrace/internal/localstack"
	"millrace/internal/service"
	"millrace/migrations"
	"millrace/query"
	"millrace/worker"
)

const runHelp = `Starts private PostgreSQL, RabbitMQ and Redis from the servers installed here, brings the schema up,
runs api, worker and query, says where each is, and stops all of it in order on SIGINT or SIGTERM.
A server whose URL is set in the environment is used instead of a private one. The archive is the folder archive in D, unless
ARCHIVE_URL is set.

  --dir D       where the private servers keep their data (default .millrace); it is kept between runs
  --brokers N   RabbitMQ as a cluster of 3 or 5 nodes (default 1); a folder keeps its number

targets.json in D has the addresses of all metrics for Prometheus (file_sd_configs), env the servers' URLs for a shell.`

// runAll runs millrace run.
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
	need := localstack.Need{
		Postgres: needsPrivate(environ, "POSTGRES_URL", "postgres://to.be.started/"),
		RabbitMQ: needsPrivate(environ, "RABBITMQ_URL", "amqp://to.be.started/"),
		Redis:    needsPrivate(environ, "REDIS_URL", "redis://to.be.started/"),
	}
	var s settings
	if err := s.load(environ); err != nil { // before anything is started
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
	if environ["ARCHIVE_URL"] == "" {
		environ["ARCHIVE_URL"], err = archiveFolder(*dir)
		if err != nil {
			return errors.Join(err, stopStack(stack, s.api.ShutdownTimeout))
		}
	}
	if err = s.load(environ); err == nil {
		err = migrateUp(ctx, log, s.worker)
	}
	if err == nil {
		err = runServices(ctx, log, s, stack, *dir, environ)
	}
	return errors.Join(err, stopStack(stack, s.api.ShutdownTimeout))
}

// archiveFolder returns the URL of the archive's folder in a folder.
func archiveFolder(dir string) (string, error) {
	path, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return (&url.URL{Scheme: "file", Path: filepath.ToSlash(filepath.Join(path, "archive"))}).String(), nil
}

// settings are the settings of all three services.
type settings struct {
	api    api.Config
	worker worker.Config
	query  query.Config
}

// load reads and checks all settings.
func (s *settings) load(environ map[string]string) error {
	if err := refuseCells(environ); err != nil {
		return err
	}
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

// runServices runs the three services until ctx is done, a service fails or a private server dies. The services know
// nothing of each other: the frames go from api to worker through RabbitMQ, the rows from worker to query through
// PostgreSQL. main.go has the picture.
func runServices(ctx context.Context, log *slog.Logger, s settings, stack *localstack.Stack, dir string, environ map[string]string) error {
	addrs := &addresses{tls: s.api.TLSCertFile != "", listening: make(map[string]string)}
	s.api.Log, s.worker.Log, s.query.Log = log, log, log
	s.api.OnListen, s.worker.OnListen, s.query.OnListen = addrs.note("api"), addrs.note("worker"), addrs.note("query")
	s.api.Reload, s.query.Reload = hangups(), hangups()
	s.worker.Profiles, s.query.Profiles = "", "" // a process has one set of profiles; the API serves it

	var g service.Group // stops its members in the order in which they are added: from upstream to downstream
	g.Go("api", func(ctx context.Context) error { return api.Run(ctx, s.api) })
	g.Go("worker", func(ctx context.Context) error { return worker.Run(ctx, s.worker) })
	g.Go("query", func(ctx context.Context) error { return query.Run(ctx, s.query) })
	g.Go("greeting", func(ctx context.Context) error {
		if greetWhenReady(ctx, os.Stdout, addrs, stack, dir) {
			if err := writeAddresses(dir, addrs, stack, environ); err != nil {
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
	return g.Wait(ctx)
}

// needsPrivate reports whether the setting of a server's URL is empty, so that a private server must be started. It then
// sets the URL to placeholder, with which the settings can be checked before the start.
func needsPrivate(environ map[string]string, name, placeholder string) bool {
	if environ[name] != "" {
		return false
	}
	environ[name] = placeholder
	return true
}

// migrateUp brings the schema up to date before the services start. The worker would do it too, but the query service
// may look for a table first.
func migrateUp(ctx context.Context, log *slog.Logger, c worker.Config) error {
	if !c.AutoMigrate {
		return nil
	}
	conn, err := openDatabase(ctx, c.Owner, c.Postgres)
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

// stopStack stops the private servers, by force once timeout has passed.
func stopStack(stack *localstack.Stack, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return stack.Stop(ctx)
}
