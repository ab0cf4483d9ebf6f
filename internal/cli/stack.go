package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"millrace/internal/config"
	"millrace/internal/localstack"
	"millrace/internal/service"
)

const stackHelp = `Starts private PostgreSQL, RabbitMQ and Redis, runs CMD with POSTGRES_URL, RABBITMQ_URL and REDIS_URL set,
stops them and exits with CMD's status. The servers come from the binaries installed here, else from containers, if the
program is built with the tag containers and a Docker engine answers. MILLRACE_STACK=local or containers leaves no choice.
MILLRACE_POSTGRES_BIN is the folder of another PostgreSQL's programs to take instead.

  --dir D       where the servers keep their data (default a temporary folder that is removed)
  --brokers N   RabbitMQ as a cluster of 3 or 5 nodes (default 1): RABBITMQ_URL then has the URLs of all
  --missing     print the Debian packages of the servers that are not installed, and exit`

// runStack runs millrace stack.
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
