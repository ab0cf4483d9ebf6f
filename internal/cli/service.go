package cli

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"millrace/internal/config"
	"millrace/internal/service"
)

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

// ready tells the service manager, if there is one, that a service listens. It does not wait for RabbitMQ and
// PostgreSQL: the services start without them and find them when they come.
func ready(net.Addr) { notify("READY=1") }

func notify(state string) {
	if err := service.Notify(state); err != nil {
		fmt.Fprintln(os.Stderr, "millrace:", err)
	}
}
