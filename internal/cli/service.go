package cli

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"millrace/api"
	"millrace/internal/config"
	"millrace/internal/service"
	"millrace/query"
	"millrace/worker"
)

// runAPI runs millrace api.
func runAPI(ctx context.Context, args []string) error {
	return runService(ctx, args, func(ctx context.Context, c api.Config) error {
		c.Reload, c.OnListen = hangups(), notifyReady
		if os.Getenv("GOMEMLIMIT") == "" {
			debug.SetMemoryLimit(c.MemoryLimit())
		}
		return api.Run(ctx, c)
	})
}

// runWorker runs millrace worker.
func runWorker(ctx context.Context, args []string) error {
	signal.Ignore(syscall.SIGHUP) // a worker has no keys to read again
	return runService(ctx, args, func(ctx context.Context, c worker.Config) error {
		c.OnListen = notifyReady
		return worker.Run(ctx, c)
	})
}

// runQuery runs millrace query.
func runQuery(ctx context.Context, args []string) error {
	return runService(ctx, args, func(ctx context.Context, c query.Config) error {
		c.Reload, c.OnListen = hangups(), notifyReady
		return query.Run(ctx, c)
	})
}

// hangups returns a channel that receives a value at each SIGHUP. From now on a SIGHUP no longer ends the process.
func hangups() <-chan os.Signal {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP)
	return c
}

// runService runs one service in this process, with its settings from the environment and .env.
func runService[C any](ctx context.Context, args []string, run func(context.Context, C) error) error {
	if len(args) > 0 {
		return usagef("unexpected argument %s; settings come from the environment", config.Shown(args[0]))
	}
	environ, err := config.Environ()
	if err == nil {
		err = refuseCells(environ)
	}
	var c C
	if err == nil {
		err = config.LoadFrom(environ, &c)
	}
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { notifyManager("STOPPING=1") })
	return run(ctx, c)
}

// notifyReady tells the service manager, such as systemd, that a service listens. It does not wait for RabbitMQ and
// PostgreSQL: a service starts without them and finds them when they come.
func notifyReady(net.Addr) { notifyManager("READY=1") }

// notifyManager tells the service manager a state. It does nothing if there is no manager.
func notifyManager(state string) {
	if err := service.Notify(state); err != nil {
		fmt.Fprintln(os.Stderr, "millrace:", err)
	}
}
