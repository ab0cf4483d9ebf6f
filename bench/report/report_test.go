package main

import (
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// run returns the output of benchmarks that have all lines, but for those left out.
func run(without ...string) string {
	var b strings.Builder
	b.WriteString("goos: linux\ncpu: Some Processor\n")
	for i, l := range lines {
		fmt.Fprintf(&b, "Benchmark%s-2 \t 20", l.name)
		for _, unit := range l.units() {
			fmt.Fprintf(&b, "\t%d %s", i+1, unit)
		}
		if l.ceiling != "" {
			fmt.Fprintf(&b, "\t%d req/s\t2000 ceiling-req/s", 1000+i)
		}
		b.WriteString("\n")
	}
	text := b.String()
	for _, w := range without {
		text = strings.Replace(text, w, "", 1)
	}
	return text
}

func TestALineThatIsMissingIsNamedAndNothingIsWritten(t *testing.T) {
	for what, tt := range map[string]struct{ input, want string }{
		"nothing":      {"", "lines are missing: Scan/ndjson, "},
		"all":          {run(), ""},
		"a benchmark":  {strings.Replace(run(), "BenchmarkTail-2", "BenchmarkTale-2", 1), "lines are missing: Tail"},
		"a figure":     {strings.Replace(run(), " psql-rows/s", " x", 2), "psql-rows/s of Drain/streams=1, psql-rows/s of Drain/streams=2"},
		"a failed one": {run() + "--- FAIL: BenchmarkTail\n", "a benchmark failed"},
	} {
		out := filepath.Join(t.TempDir(), "x.txt")
		for _, file := range []string{out, pictureOf(out)} {
			if err := os.WriteFile(file, []byte("before"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		err := report(strings.NewReader(tt.input), io.Discard, io.Discard, out)
		if got := fmt.Sprint(err); tt.want == "" && err != nil || !strings.Contains(got, tt.want) && tt.want != "" {
			t.Errorf("%s: got error %v, want %q", what, err, tt.want)
		}
		for _, file := range []string{out, pictureOf(out)} {
			if text, err := os.ReadFile(file); err != nil || (string(text) == "before") != (tt.want != "") {
				t.Errorf("%s: %s is %.20q, error %v; it must be written when nothing is missing, and only then", what, filepath.Base(file), text, err)
			}
		}
	}
}

func TestTheTableHasFigureCeilingRatioSpreadAndTheLoadsShare(t *testing.T) {
	in := "BenchmarkAcceptOne/connections=64-4 \t 20 \t 40590.4 req/s \t 99101 ceiling-req/s \t 0.4096 ratio \t 0.12 spread \t 0.5 load-cores \t 2.861 p99-ms\n"
	var table, progress strings.Builder
	if err := report(strings.NewReader(in), &table, &progress, ""); err == nil {
		t.Error("the other lines are not missed")
	}
	got := strings.Fields(strings.Split(table.String(), "\n")[1])
	want := strings.Fields("AcceptOne/connections=64 40,600 req/s 99,100 req/s 0.41 ±6 % 12 % 2.86 p99-ms")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("row (-want +got):\n%s", diff)
	}
	if !strings.Contains(progress.String(), "1 of") || !strings.Contains(progress.String(), "0.41 of its ceiling") {
		t.Errorf("progress: %q", &progress)
	}
}

func TestNumbersHaveThreeDigitsThatCount(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 0.004032: "0.00403", 0.5074: "0.507", 9.27: "9.27", 57.19: "57.2", 290.5: "290", 999.7: "1,000", 1911: "1,910", 836417: "836,000", 1959030: "1,960,000",
	} {
		if got := number(v); got != want {
			t.Errorf("number(%v) = %s, want %s", v, got, want)
		}
	}
}

func TestDocumentsAreUpdatedAndHeldToTheirResults(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("README.md", "before\n<!-- bench: short -->\n<!-- /bench -->\nafter\n")
	write("bench/README.md", "<!-- bench: all -->\n<!-- /bench -->\n")
	write("bench/results/x.txt", run())
	if err := updateDocuments(dir, "bench/results/x.txt"); err != nil {
		t.Fatal(err)
	}
	for _, name := range documents {
		if err := check(dir, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	readme, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	if text := string(readme); !strings.HasPrefix(text, "before\n") || !strings.HasSuffix(text, "-->\nafter\n") || !strings.Contains(text, "1,010 req/s; p50 12.0 ms, p99 12.0 ms") {
		t.Errorf("README.md: %s", text)
	}
	write("README.md", strings.Replace(string(readme), "1,010 req/s", "1,110 req/s", 1))
	if err := check(dir, "README.md"); err == nil || !strings.Contains(err.Error(), "not those of bench/results/x.txt") {
		t.Errorf("a figure that is not in the results: got error %v", err)
	}
	write("bench/results/x.txt", run()+"BenchmarkMore 1 2 ns/op\n")
	write("README.md", string(readme))
	write("bench/results/x.svg", "<svg/>")
	if err := check(dir, "README.md"); err == nil || !strings.Contains(err.Error(), "not the picture") {
		t.Errorf("another picture: got error %v", err)
	}
}

func TestTheDocumentsHaveTheFiguresOfTheResultsTheyName(t *testing.T) {
	for _, name := range documents {
		if err := check("../..", name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheCurvesAreThoseOfTheSweepThatTheirPageNames(t *testing.T) {
	page, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`\((results/[^)]*-sweep\.txt)\)`).FindSubmatch(page)
	if named == nil {
		t.Fatal("bench/README.md names no results of a sweep")
	}
	dir := t.TempDir()
	if err := drawSweep(filepath.Join("..", string(named[1])), dir); err != nil {
		t.Fatal(err)
	}
	for _, p := range pictures {
		name := p.file + ".svg"
		if !strings.Contains(string(page), "("+name+")") {
			t.Errorf("bench/README.md does not show %s", name)
		}
		want, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Errorf("%s has no results for %s", named[1], name)
			continue
		}
		if got, err := os.ReadFile(filepath.Join("..", name)); err != nil || string(got) != string(want) {
			t.Errorf("%s is not the picture of %s (error %v); go run ./bench/report -curves bench/%s -to bench", name, named[1], err, named[1])
		}
	}
}

func TestASweepWithoutResultsIsAnError(t *testing.T) {
	for text, want := range map[string]string{
		"":       "no benchmark ran",
		"PASS\n": "no benchmark ran",
		"BenchmarkSweepFootprint-2 1 127.8 GIN-B/row\nPASS\n": "",
	} {
		file := filepath.Join(t.TempDir(), "sweep.txt")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := drawSweep(file, t.TempDir()); want == "" && err != nil || want != "" && !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%q: got error %v, want %q", text, err, want)
		}
	}
}

func TestPicturesAreWellFormed(t *testing.T) {
	results, err := read(strings.NewReader(run()), nil)
	if err != nil {
		t.Fatal(err)
	}
	var sweep strings.Builder
	for _, p := range pictures {
		for _, curve := range []string{"one", "two"} {
			for _, x := range []int{1, 10, 1000} {
				for round := range 3 {
					fmt.Fprintf(&sweep, "Benchmark%s/%s/x=%d-2 1", p.benchmark, curve, x)
					for _, panel := range p.panels {
						fmt.Fprintf(&sweep, " %d %s", x*(round+5), panel.unit)
					}
					sweep.WriteString("\n")
				}
			}
		}
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "sweep.txt")
	if err := os.WriteFile(file, []byte(sweep.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := drawSweep(file, dir); err != nil {
		t.Fatal(err)
	}
	all := [][]byte{bars(results)}
	for _, p := range pictures {
		text, err := os.ReadFile(filepath.Join(dir, p.file+".svg"))
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(text), "<polyline"); n != 2*len(p.panels) {
			t.Errorf("%s has %d curves in %d panels, want two in each", p.file, n, len(p.panels))
		}
		if inside := p.mark >= 1 && p.mark <= 1000; strings.Contains(string(text), ">default<") != inside {
			t.Errorf("%s shows where the default is: %v, want %v", p.file, !inside, inside)
		}
		all = append(all, text)
	}
	for _, text := range all {
		for d := xml.NewDecoder(strings.NewReader(string(text))); ; {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
		}
		if strings.Contains(string(text), "NaN") || strings.Contains(string(text), "Inf") {
			t.Errorf("a place that is no number:\n%s", text)
		}
	}
}
