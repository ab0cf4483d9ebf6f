// Report reads the output of Go benchmarks on standard input and prints one table of it: each figure beside its
// ceiling, their ratio, and how far the ratio's quartiles lie apart. With -out it also writes what it read to a
// file, for benchstat. While benchmarks run it says on standard error which one has come.
//
//	go test -run NONE -bench . ./bench | go run ./bench/report
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"golang.org/x/perf/benchfmt"
)

func main() {
	out := flag.String("out", "", "file to write the benchmarks' own output to")
	flag.Parse()
	if err := report(os.Stdin, os.Stdout, os.Stderr, *out); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

// report reads benchmarks from in to its end and prints their table to table. An input without a benchmark, or
// with one that failed, is an error.
func report(in io.Reader, table, progress io.Writer, out string) error {
	var raw bytes.Buffer
	results := benchfmt.NewReader(io.TeeReader(in, &raw), "standard input")
	w := tabwriter.NewWriter(table, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "benchmark\tfigure\tceiling\tratio\tspread\talso\t")
	n := 0
	for results.Scan() {
		switch r := results.Result().(type) {
		case *benchfmt.Result:
			n++
			fmt.Fprintf(progress, "%s\n", r.Name)
			fmt.Fprintln(w, line(r))
		case *benchfmt.SyntaxError:
			return r
		}
	}
	if err := results.Err(); err != nil {
		return err
	}
	if out != "" {
		if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(out, raw.Bytes(), 0o644); err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if n == 0 || bytes.Contains(raw.Bytes(), []byte("FAIL")) {
		fmt.Fprintf(progress, "%s", raw.Bytes())
		return errors.New("a benchmark failed, or there was none")
	}
	return nil
}

// line is a benchmark's row: the figure whose unit has a ceiling, then whatever else it reports.
func line(r *benchfmt.Result) string {
	figure, ceiling, ratio, spread, also := "", "", "", "", []string(nil)
	for _, v := range r.Values {
		if unit, ok := strings.CutPrefix(v.Unit, "ceiling-"); ok {
			ceiling = number(v.Value) + " " + unit
			if f, ok := r.Value(unit); ok {
				figure = number(f) + " " + unit
			}
		}
	}
	for _, v := range r.Values {
		switch _, isFigure := r.Value("ceiling-" + v.Unit); {
		case isFigure, strings.HasPrefix(v.Unit, "ceiling-"):
		case v.Unit == "ratio":
			ratio = fmt.Sprintf("%.2f", v.Value)
		case v.Unit == "spread":
			spread = fmt.Sprintf("±%.0f %%", 50*v.Value)
		default:
			also = append(also, small(v))
		}
	}
	return strings.Join([]string{r.Name.String(), figure, ceiling, ratio, spread, strings.Join(also, ", ")}, "\t") + "\t"
}

// small prints a figure in the unit that benchmarks use: benchfmt makes seconds of nanoseconds and bytes of megabytes.
func small(v benchfmt.Value) string {
	if unit, ok := strings.CutSuffix(v.Unit, "sec/op"); ok {
		return number(1e9*v.Value) + " " + unit + "ns/op"
	}
	if unit, ok := strings.CutSuffix(v.Unit, "sec/record"); ok {
		return number(1e9*v.Value) + " " + unit + "ns/record"
	}
	if v.Unit == "B/s" {
		return number(v.Value/1e6) + " MB/s"
	}
	return number(v.Value) + " " + v.Unit
}

// number prints three digits that count, and all before the point.
func number(v float64) string {
	if v == 0 {
		return "0"
	}
	return fmt.Sprintf("%.*f", max(0, 2-int(math.Floor(math.Log10(math.Abs(v))))), v)
}
