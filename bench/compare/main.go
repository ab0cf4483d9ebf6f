// Compare shows whether the working tree is faster or slower than a commit. It builds the benchmarks of both, each with its
// own code and its own benchmarks. Those that both have take turns on the same servers. Then it prints benchstat's table: ~
// if no difference is certain, else the difference and how likely chance alone would make one as large.
//
//	bin/millrace stack -- bin/compare -base main -bench Drain -count 10
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// packages are those whose benchmarks are compared.
var packages = []string{"./bench", "./api"}

const (
	// alpha is how often chance alone may make a difference that the table shows as one. A default run has some twenty
	// figures, so benchstat's 0.05 would show a difference where nothing has changed.
	alpha = "0.01"

	// limit is how long a turn may take. It takes one minute by default, some ten with the sweeps. go test's timeout does
	// not hold for benchmarks.
	limit = 30 * time.Minute

	// shown is benchstat's filter, which leaves out what is no speed.
	shown = "-.unit:spread -.unit:load-cores"
)

// comparison is what to compare, and how.
type comparison struct {
	repo     string
	base     string        // the commit
	packages []string      // below the repository
	bench    string        // which benchmarks, as go test -bench takes it
	count    int           // turns of each side
	time     string        // how long a benchmark runs in a turn, as go test -benchtime takes it
	limit    time.Duration // of a turn, which has failed when it lasts longer
	progress io.Writer
}

func main() {
	c := comparison{repo: ".", packages: packages, limit: limit, progress: os.Stderr}
	flag.StringVar(&c.base, "base", "", "commit to compare with")
	flag.StringVar(&c.bench, "bench", ".", "benchmarks to run, a regular expression")
	flag.IntVar(&c.count, "count", 10, "how often each side runs; with less than 5 nothing is certain")
	flag.StringVar(&c.time, "benchtime", "2s", "how long each benchmark runs in a turn")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := c.run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

// side is one of the two that take turns.
type side struct {
	name, root string
	binaries   map[string]string // by package
	results    string            // file
}

// run builds both sides, has them take turns, and prints the table.
func (c comparison) run(ctx context.Context, table io.Writer) (err error) {
	if c.base == "" {
		return errors.New("compared with what? BASE=COMMIT names it")
	}
	if c.count < 1 {
		return fmt.Errorf("COUNT: got %d, takes a number above 0", c.count)
	}
	commit, err := output(ctx, c.repo, "git", "rev-parse", "--short", "--verify", "--end-of-options", c.base+"^{commit}")
	if err != nil {
		return err
	}
	temp, err := os.MkdirTemp("", "millrace-compare-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	tree := filepath.Join(temp, "tree")
	if _, err := output(ctx, c.repo, "git", "worktree", "add", "--quiet", "--detach", tree, commit); err != nil {
		return err
	}
	defer func() {
		_, removeErr := output(context.WithoutCancel(ctx), c.repo, "git", "worktree", "remove", "--force", tree)
		err = errors.Join(err, removeErr)
	}()

	base := &side{name: commit, root: tree}
	now := &side{name: "now", root: c.repo}
	for _, s := range []*side{base, now} {
		fmt.Fprintf(c.progress, "building %s\n", s.name)
		if err := s.build(ctx, c.packages, temp); err != nil {
			return err
		}
	}
	skip, err := c.skip(ctx, base, now)
	if err != nil {
		return err
	}
	start := time.Now()
	for i := range c.count {
		for _, s := range []*side{base, now} {
			took := time.Since(start).Round(time.Second)
			fmt.Fprintf(c.progress, "%2d:%02d  turn %d of %d: %s\n", int(took.Minutes()), int(took.Seconds())%60, i+1, c.count, s.name)
			if err := c.turn(ctx, s, skip); err != nil {
				return err
			}
		}
	}
	cmd := exec.CommandContext(ctx, "go", "tool", "benchstat", "-alpha", alpha, "-filter", shown, base.name+"="+base.results, now.name+"="+now.results)
	cmd.Stdout, cmd.Stderr = table, c.progress
	return cmd.Run()
}

// build builds the test binaries of those of the packages that the side has.
func (s *side) build(ctx context.Context, packages []string, temp string) error {
	s.binaries = make(map[string]string)
	s.results = filepath.Join(temp, s.name+".txt")
	for _, p := range packages {
		binary := filepath.Join(temp, s.name+"-"+filepath.Base(p)+".test")
		if _, err := os.Stat(filepath.Join(s.root, p)); err != nil {
			continue
		}
		if _, err := output(ctx, s.root, "go", "test", "-c", "-o", binary, p); err != nil {
			return err
		}
		s.binaries[p] = binary
	}
	return nil
}

// skip returns, by package, the pattern for go test -skip that leaves out the benchmarks which one of the sides lacks. It
// leaves out the sweeps too, which take long, unless they are asked for.
func (c comparison) skip(ctx context.Context, base, now *side) (map[string]string, error) {
	skips := make(map[string]string)
	common := 0
	for p := range now.binaries {
		if base.binaries[p] == "" {
			continue
		}
		of := make(map[*side][]string)
		for _, s := range []*side{base, now} {
			list, err := output(ctx, filepath.Join(s.root, p), s.binaries[p], "-test.list", "^Benchmark")
			if err != nil {
				return nil, err
			}
			of[s] = strings.Fields(list)
		}
		var left []string
		for _, name := range slices.Concat(of[base], of[now]) {
			sweep := strings.HasPrefix(name, "BenchmarkSweep") && !strings.Contains(c.bench, "Sweep")
			if sweep || !slices.Contains(of[base], name) || !slices.Contains(of[now], name) {
				left = append(left, name)
			} else {
				common++
			}
		}
		skips[p] = "^(" + strings.Join(left, "|") + ")$"
	}
	if common == 0 {
		return nil, fmt.Errorf("%s and %s have no benchmark in common", base.name, now.name)
	}
	return skips, nil
}

// turn runs a side's benchmarks once and appends what they print to its results. It fails if no benchmark ran.
func (c comparison) turn(ctx context.Context, s *side, skips map[string]string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.limit, fmt.Errorf("they have not ended within %v", c.limit))
	defer cancel()
	out, err := os.OpenFile(s.results, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close() // a write that fails ends the benchmark
	none := true
	for _, p := range c.packages {
		skip, ok := skips[p]
		if !ok {
			continue
		}
		var text strings.Builder
		cmd := exec.CommandContext(ctx, s.binaries[p], "-test.run", "NONE", "-test.bench", c.bench, "-test.skip", skip, "-test.benchtime", c.time)
		cmd.Dir = filepath.Join(s.root, p)
		cmd.Stdout, cmd.Stderr = io.MultiWriter(out, &text), c.progress
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.WaitDelay = 10 * time.Second
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("the benchmarks of %s in %s: %w\n%s", s.name, p, cmp.Or(context.Cause(ctx), err), &text)
		}
		none = none && !strings.Contains("\n"+text.String(), "\nBenchmark")
	}
	if none {
		return fmt.Errorf("no benchmark of %s matches %q", s.name, c.bench)
	}
	return nil
}

// output runs a command in a folder and returns what it prints, without the end of the line.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(append([]string{filepath.Base(name)}, args...), " "), err, &stderr)
	}
	return strings.TrimSuffix(string(out), "\n"), nil
}
