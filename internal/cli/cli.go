// Package cli is the command line of Millrace: a file a command, and the list of them in commands.
//
// Main runs one command until it has ended, or until SIGINT or SIGTERM tells it to stop. Every goroutine belongs to the
// service or the private server that the command has started; all have ended when it returns.
package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"syscall"

	"millrace/api"
	"millrace/internal/config"
	"millrace/query"
	"millrace/worker"
)

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

// version is what millrace version prints.
var version string

// Main runs the command of os.Args and ends the process with its status. It prints v where the version is asked for.
func Main(v string) {
	version = v
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
