// Package e2e tests Millrace as a whole: it kills and restarts processes, takes RabbitMQ away, and then counts the rows. What
// it exports runs a service within a test's process; the tests of deploy/ use that too.
//
// Each service that it runs has one goroutine here. The goroutine has ended when the service's stop returns, or the test ends.
package e2e

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"testing"

	"millrace/api"
	"millrace/internal/config"
	"millrace/internal/testenv"
	"millrace/query"
	"millrace/worker"
)

// runHere runs a service in this process until the test ends or stop is called, and returns where it listens.
func runHere(t *testing.T, name string, run func(context.Context, func(net.Addr)) error) (addr string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	listening, ended := make(chan net.Addr, 1), make(chan error, 1)
	go func() { ended <- run(ctx, func(a net.Addr) { listening <- a }) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("%s: %v", name, err)
		}
	})
	t.Cleanup(stop)
	select {
	case a := <-listening:
		return a.String(), stop
	case err := <-ended:
		ended <- nil
		t.Fatalf("%s did not start: %v", name, err)
		return "", stop
	}
}

// RunWorker runs a worker on a broker, with settings by their names, until the test ends or stop is called.
func RunWorker(t *testing.T, b config.Broker, log *slog.Logger, settings map[string]string) (addr string, stop func()) {
	t.Helper()
	settings["RABBITMQ_URL"], settings["WORKER_ADDR"] = string(b.URLs[0]), "127.0.0.1:0"
	var c worker.Config
	if err := config.LoadFrom(settings, &c); err != nil {
		t.Fatal(err)
	}
	c.Broker, c.Log = b, log
	return runHere(t, "worker", func(ctx context.Context, onListen func(net.Addr)) error {
		c.OnListen = onListen
		return worker.Run(ctx, c)
	})
}

// RunAPI runs an API on a broker, with settings by their names, until the test ends. It returns when the API is ready.
func RunAPI(t *testing.T, b config.Broker, settings map[string]string) (addr string) {
	t.Helper()
	addr, _ = StartAPI(t, b, "127.0.0.1:0", settings)
	return addr
}

// StartAPI does what RunAPI does, at an address of the caller's choice, and returns a function that ends the API before the test does.
func StartAPI(t *testing.T, b config.Broker, at string, settings map[string]string) (addr string, stop func()) {
	t.Helper()
	settings["RABBITMQ_URL"], settings["API_ADDR"] = string(b.URLs[0]), at
	var c api.Config
	if err := config.LoadFrom(settings, &c); err != nil {
		t.Fatal(err)
	}
	c.Broker, c.Log = b, slog.New(slog.DiscardHandler)
	addr, stop = runHere(t, "api", func(ctx context.Context, onListen func(net.Addr)) error {
		c.OnListen = onListen
		return api.Run(ctx, c)
	})
	testenv.AwaitReady(t, addr)
	return addr, stop
}

// RunQuery runs a query service on a database until the test ends.
func RunQuery(t *testing.T, db config.PostgresURL) (addr string) {
	t.Helper()
	var c query.Config
	if err := config.LoadFrom(map[string]string{"POSTGRES_URL": string(db), "QUERY_ADDR": "127.0.0.1:0", "REDIS_URL": string(testenv.Redis(t))}, &c); err != nil {
		t.Fatal(err)
	}
	c.Log = slog.New(slog.DiscardHandler)
	addr, _ = runHere(t, "query", func(ctx context.Context, onListen func(net.Addr)) error {
		c.OnListen = onListen
		return query.Run(ctx, c)
	})
	return addr
}
