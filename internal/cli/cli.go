// Package cli is the command line of Millrace. The variable commands lists the commands.
//
// Main runs one command until it has ended, or until SIGINT or SIGTERM tells it to stop. Every goroutine belongs to the
// service or the private server that the command has started. All of them have ended when the command returns.
package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
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
	usage   string // the arguments, as help shows them
	summary string
	details string
	configs []any // the structs whose settings help lists
	run     func(ctx context.Context, args []string) error
}

// usageError is the error for a command line that is not understood. It ends the process with status 2.
type usageError struct{ error }

// usagef returns a usageError.
func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// commands are all commands, in the order in which help lists them. init sets the variable, because help itself reads it.
var commands []command

func init() {
	commands = []command{
		{"run", "[--dir D] [--brokers N]", "everything on this machine, with private servers", runHelp,
			[]any{api.Config{}, worker.Config{}, query.Config{}}, runAll},
		{"stack", "[--dir D] [--brokers N] [--missing] -- CMD…", "CMD beside private PostgreSQL, RabbitMQ and Redis", stackHelp, nil, runStack},
		{"api", "", "the HTTP intake: /log, OTLP, _bulk, Loki, HEC", "", []any{api.Config{}}, runAPI},
		{"worker", "", "moves frames from RabbitMQ into PostgreSQL", "", []any{worker.Config{}}, runWorker},
		{"query", "", "answers searches", "", []any{query.Config{}}, runQuery},
		{"logs", "[-f] [-n N] [--since T] [-C N] [-o text|json|csv] [Q]", "searches and follows the logs of a query service", logsHelp, []any{clientSettings{}}, searchLogs},
		{"stats", "[--by F,…] [--calc F,…] [--every T] [-o text|json|csv] [Q]", "figures of the logs of a query service", statsHelp, []any{clientSettings{}}, searchStats},
		{"searches", "check FILE [--now] | test FILE [NAME…] [--from T] [--to T]", "searches that alert: is the file in order, when would it have rung", searchesHelp, []any{clientSettings{}}, runSearches},
		{"send", "[-f] [--parse FORMAT] [--refused FILE] [FILE…]", "sends the lines of files, or of standard input, to an API, each once", sendHelp, []any{sendSettings{}}, sendLines},
		{"migrate", "up | down | status | roles", "the database schema", migrateHelp, []any{databaseSettings{}}, migrate},
		{"dead", "list | show ID | replay [ID…] | drop ID…|--all", "records and messages that could not be stored", deadHelp, []any{databaseSettings{}, replaySettings{}}, deadLetters},
		{"archive", "ls | verify | manifest [RANGE] | restore RANGE [--keep D]", "the archive of closed partitions", archiveHelp, []any{databaseSettings{}, archiveSettings{}}, runArchive},
		{"cells", "check FILE [--from OLD] [--notice D] [--keep D] | ls [FILE]", "a file of several databases: is it in order, may it take another's place", cellsHelp, []any{cellsSettings{}}, runCells},
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
	// After the first signal the next one ends the process at once, as it does by default.
	context.AfterFunc(ctx, stop)
	os.Exit(exitStatus(dispatch(ctx, os.Args[1:])))
}

// dispatch runs the command that args name.
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

// lookup returns the command of a name, or a usageError if there is none.
func lookup(name string) (command, error) {
	for _, c := range commands {
		if c.name == name {
			return c, nil
		}
	}
	return command{}, usagef("no command %s; millrace help lists them", config.Shown(name))
}

// commandEnded is the error for a command of millrace stack that ended with this status. Nothing is printed for it.
type commandEnded int

func (c commandEnded) Error() string { return fmt.Sprintf("the command ended with status %d", int(c)) }

// exitStatus prints err on standard error and returns the status to exit with: that of a command run by millrace stack, 2
// for a command line that is not understood and for a search or a send that failed, else 1.
func exitStatus(err error) int {
	var usage usageError
	var search searchError
	if status, ok := err.(commandEnded); ok || err == nil {
		return int(status)
	}
	fmt.Fprintln(os.Stderr, "millrace:", err)
	if errors.As(err, &usage) || errors.As(err, &search) {
		return 2
	}
	return 1
}

// newFlags returns an empty set of flags that prints nothing by itself.
func newFlags(name string) *flag.FlagSet {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard) // the error is enough
	return flags
}

// parseFlags parses args. It fails unless want arguments follow the flags; if want is negative, any number may.
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
