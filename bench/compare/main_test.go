package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// repository makes a git repository with one commit, whose package x has the benchmarks that report so many rows a
// second, with noise that is the same every time and favours nobody. They log each run.
func repository(t *testing.T, log string, figures map[string]int) string {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, log, figures)
	for _, args := range [][]string{
		{"init", "--quiet"}, {"add", "."},
		{"-c", "user.name=x", "-c", "user.email=x@localhost", "commit", "--quiet", "--no-gpg-sign", "-m", "x"},
	} {
		if out, err := exec.Command("git", append([]string{"-C", dir}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	return dir
}

func write(t *testing.T, dir, log string, figures map[string]int) {
	t.Helper()
	var code strings.Builder
	code.WriteString("package x\n\nimport (\n\t\"bytes\"\n\t\"os\"\n\t\"testing\"\n)\n")
	for name, figure := range figures {
		fmt.Fprintf(&code, `
func Benchmark%s(b *testing.B) {
	for b.Loop() {
	}
	log, _ := os.ReadFile(%q)
	b.ReportMetric(%d*(1+float64(bytes.Count(log, []byte(" "))*5%%12)/100), "rows/s")
	b.ReportMetric(0, "ns/op")
	os.WriteFile(%q, append(log, "%d "...), 0o644)
}
`, name, log, figure, log, figure)
	}
	for file, text := range map[string]string{"go.mod": "module x\n", "x/x_test.go": code.String()} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, file)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWhatIsSlowerIsToldAndWhatIsNotIsNot(t *testing.T) {
	if testing.Short() {
		t.Skip("builds programs")
	}
	log := filepath.Join(t.TempDir(), "log")
	dir := repository(t, log, map[string]int{"Store": 1000, "Gone": 1})
	for what, tt := range map[string]struct {
		figure int
		want   string
	}{
		"as fast":      {1000, `(?m)^Store\S* .* ~ \(p=`},
		"half so fast": {500, `(?m)^Store\S* .* -(4[6-9]|5[0-3])\.\d+% \(p=0\.002 n=6\)`},
	} {
		write(t, dir, log, map[string]int{"Store": tt.figure, "New": 2, "SweepAll": 3})
		os.Remove(log) // it may not be there yet
		var table strings.Builder
		c := comparison{repo: dir, base: "HEAD", packages: []string{"./x", "./absent"}, bench: ".", count: 6, time: "1x", limit: limit, progress: io.Discard}
		if err := c.run(context.Background(), &table); err != nil {
			t.Fatal(err)
		}
		if !regexp.MustCompile(tt.want).MatchString(table.String()) {
			t.Errorf("%s: the table has nothing like %s:\n%s", what, tt.want, &table)
		}
		turns, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := string(turns), strings.Repeat(fmt.Sprintf("1000 %d ", tt.figure), 6); got != want {
			t.Errorf("%s: the turns were %s, want %s", what, got, want)
		}
	}
	if out, err := exec.Command("git", "-C", dir, "worktree", "list").Output(); err != nil || strings.Count(string(out), "\n") != 1 {
		t.Errorf("worktrees are left: %s, %v", out, err)
	}
}

func TestWhatCantBeComparedIsNamed(t *testing.T) {
	if testing.Short() {
		t.Skip("builds programs")
	}
	dir := repository(t, filepath.Join(t.TempDir(), "log"), map[string]int{"Store": 1000})
	for what, tt := range map[string]struct {
		base, bench string
		count       int
		want        string
	}{
		"no base":                       {"", ".", 1, "BASE=COMMIT"},
		"a base that is not there":      {"no-such-commit", ".", 1, "no-such-commit"},
		"benchmarks that are not there": {"HEAD", "Load|Sore", 1, `matches "Load|Sore"`},
		"no turns":                      {"HEAD", ".", 0, "COUNT: got 0"},
	} {
		c := comparison{repo: dir, base: tt.base, packages: []string{"./x"}, bench: tt.bench, count: tt.count, time: "1x", limit: limit, progress: io.Discard}
		if err := c.run(context.Background(), io.Discard); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got error %v, want %q", what, err, tt.want)
		}
	}
}

func TestATurnThatHangsEnds(t *testing.T) {
	if testing.Short() {
		t.Skip("builds programs")
	}
	dir := repository(t, filepath.Join(t.TempDir(), "log"), map[string]int{"Store": 1000})
	// An empty b.Loop would not do: it ends after a thousand million turns, a second on a fast machine, whatever
	// -benchtime says.
	hangs := "package x\n\nimport (\n\t\"testing\"\n\t\"time\"\n)\n\nfunc BenchmarkHangs(*testing.B) { time.Sleep(time.Hour) }\n"
	if err := os.WriteFile(filepath.Join(dir, "x", "hangs_test.go"), []byte(hangs), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"add", "."}, {"-c", "user.name=x", "-c", "user.email=x@localhost", "commit", "--quiet", "--no-gpg-sign", "-m", "hangs"}} {
		if out, err := exec.Command("git", append([]string{"-C", dir}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	c := comparison{repo: dir, base: "HEAD", packages: []string{"./x"}, bench: "Hangs", count: 1, time: "1x", limit: time.Second, progress: io.Discard}
	if err := c.run(context.Background(), io.Discard); err == nil || !strings.Contains(err.Error(), "not ended within 1s") {
		t.Errorf("got error %v, want one that says how long it was waited for", err)
	}
}
