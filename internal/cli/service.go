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

// hangups returns a channel of the SIGHUPs that come. From then on a SIGHUP no longer ends the process.
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
	var c C
	if err := config.Load(&c); err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { notifyManager("STOPPING=1") })
	return run(ctx, c)
}

// notifyReady tells the service manager, such as systemd, that a service listens. It does not wait for RabbitMQ and
// PostgreSQL: a service starts without them and finds them when they come.
func notifyReady(net.Addr) { notifyManager("READY=1") }

// notifyManager tells the service manager a state. Where there is no manager it does nothing.
func notifyManager(state string) {
	if err := service.Notify(state); err != nil {
		fmt.Fprintln(os.Stderr, "millrace:", err)
	}
}
