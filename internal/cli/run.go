package cli

import (
	"context"
	"errors"
	"log/slog"
	"os"
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
