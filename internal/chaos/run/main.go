// Command run breaks a whole Millrace for as long as it is told, and exits with status 1 when a record was lost,
// stored twice or never sent: see package chaos.
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"millrace/internal/chaos"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	ok, err := run(ctx)
	if err != nil {
		fmt.Fprintf(os.Stderr, "chaos: %v\n", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

// run does what the flags say. It reports whether no mismatch was found.
func run(ctx context.Context) (ok bool, err error) {
	o := chaos.Options{Out: os.Stdout}
	flag.Uint64Var(&o.Seed, "seed", 0, "of the schedule and the records; 0 takes one by chance")
	flag.DurationVar(&o.Duration, "duration", time.Hour, "how long faults strike")
	flag.IntVar(&o.Rounds, "rounds", 5, "how often each fault strikes at least, whatever the duration")
	flag.IntVar(&o.Rate, "rate", 1000, "records a second")
	flag.IntVar(&o.Clients, "clients", 64, "that post at once")
	flag.DurationVar(&o.Every, "every", 0, "from one fault's beginning to the next's, at least")
	flag.IntVar(&o.Brokers, "brokers", 1, "RabbitMQ nodes: 1 or 3")
	flag.BoolVar(&o.Alone, "alone", false, "one fault at a time")
	flag.BoolVar(&o.Archive, "archive", false, "partitions of two minutes, copied to an archive and dropped; clients' records are counted all along")
	flag.BoolVar(&o.KeepFiles, "keep", false, "keep the folder with the processes' logs")
	faults := flag.String("faults", "", "beginnings of the names of the faults that strike, comma-separated; -NAME leaves out")
	out := flag.String("out", "bin/chaos", "folder for report.md and resources.svg")
	build := flag.String("build", "", "only build the binaries that a run needs, into this folder")
	binaries := flag.String("binaries", "", "folder with such binaries, built with -archive or without as the run is; empty: they are built")
	flag.Parse()
	if *build != "" {
		return true, buildInto(ctx, *build, &o)
	}
	if *faults != "" {
		for name := range strings.SplitSeq(*faults, ",") {
			o.Faults = append(o.Faults, strings.TrimSpace(name))
		}
	}
	if o.Seed == 0 {
		o.Seed = rand.Uint64() >> 32
	}
	if *binaries == "" {
		dir, err := os.MkdirTemp("", fmt.Sprintf("%s%d-bin-", chaos.Folder, os.Getpid()))
		if err != nil {
			return false, err
		}
		defer os.RemoveAll(dir)
		if err := buildInto(ctx, dir, &o); err != nil {
			return false, err
		}
	} else if *binaries, err = filepath.Abs(*binaries); err != nil {
		return false, err
	} else {
		nameBinaries(*binaries, &o)
	}
	report, err := chaos.Run(ctx, o)
	if err != nil {
		return false, err
	}
	fmt.Printf("\n%s\n", report.Summary())
	if err := report.Write(*out); err != nil {
		return false, err
	}
	fmt.Printf("%s has the whole report\n", filepath.Join(*out, "report.md"))
	return report.OK(), nil
}

// nameBinaries sets the paths of a run's binaries, which are in dir.
func nameBinaries(dir string, o *chaos.Options) {
	o.Binary, o.ClockBinary = filepath.Join(dir, "millrace"), filepath.Join(dir, "millrace-clock")
}

// buildInto builds the binaries of a run in dir, and sets their paths.
func buildInto(ctx context.Context, dir string, o *chaos.Options) error {
	nameBinaries(dir, o)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var edits []chaos.Edit
	if o.Archive {
		edits = chaos.ArchiveEdits
	}
	if err := chaos.Build(ctx, ".", o.Binary, edits...); err != nil {
		return err
	}
	return chaos.BuildClock(ctx, ".", o.ClockBinary, edits...)
}
