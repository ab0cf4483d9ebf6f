package cli

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"text/tabwriter"

	"millrace/internal/config"
)

// printVersion runs millrace version.
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

// help runs millrace help: it prints the commands, or the usage and the settings of one.
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

// defaultText returns a default as help shows it.
func defaultText(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// HasCommand reports whether millrace has a command of that name.
func HasCommand(name string) bool {
	_, err := lookup(name)
	return err == nil
}

// Settings returns the settings of api, worker and query, each once and in the order of the structs. services holds, by a
// setting's name, the services that have it.
func Settings() (all []config.Setting, services map[string][]string) {
	services = make(map[string][]string)
	for _, name := range []string{"api", "worker", "query"} {
		c, err := lookup(name)
		if err != nil {
			panic(err)
		}
		for _, s := range config.Describe(c.configs[0]) {
			if services[s.Name] == nil {
				all = append(all, s)
			}
			services[s.Name] = append(services[s.Name], name)
		}
	}
	return all, services
}
