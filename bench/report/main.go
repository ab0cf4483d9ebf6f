// Report turns the output of Go benchmarks into what people read: a table of figures beside their ceilings, with the ratio
// of the two and how far its quartiles lie apart; a picture; curves; the tables of the documents.
//
//	bin/bench.test -test.bench . | report -out F    prints each benchmark as it comes, then the table, and writes F (what
//	                                                was read, for benchstat) and F's picture. It fails, and writes no
//	                                                file, if a benchmark is missing or has failed
//	report -update F                                puts F's figures into README.md and bench/README.md
//	report -curves F -to DIR                        draws the curves of a sweep
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

func main() {
	out := flag.String("out", "", "file to write the benchmarks' own output to, and beside it the picture")
	update := flag.String("update", "", "results that README.md and bench/README.md are to show")
	curves := flag.String("curves", "", "results of a sweep to draw")
	to := flag.String("to", ".", "folder for the curves")
	flag.Parse()
	var err error
	switch {
	case *update != "":
		err = updateDocuments(".", filepath.ToSlash(*update))
	case *curves != "":
		err = drawSweep(*curves, *to)
	default:
		err = report(os.Stdin, os.Stdout, os.Stderr, *out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

// report reads benchmarks from in to its end, prints their table, and writes out. It fails if a benchmark failed or a line is
// missing, and leaves out as it is then, because documents may show it.
func report(in io.Reader, table, progress io.Writer, out string) error {
	var raw bytes.Buffer
	start, n := time.Now(), 0
	results, err := read(io.TeeReader(in, &raw), func(r result) {
		n++
		took := time.Since(start).Round(time.Second)
		fmt.Fprintf(progress, "%2d:%02d  %2d of %d  %s\n", int(took.Minutes()), int(took.Seconds())%60, n, len(lines), r.summary())
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, raw.Bytes())
	}
	w := tabwriter.NewWriter(table, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "benchmark\tfigure\tceiling\tratio\tspread\tload\talso\t")
	for _, r := range results {
		fmt.Fprintln(w, row(r))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if bytes.Contains(raw.Bytes(), []byte("FAIL")) {
		fmt.Fprintf(progress, "%s", raw.Bytes())
		return errors.New("a benchmark failed")
	}
	if missing := missing(results); len(missing) > 0 {
		return fmt.Errorf("lines are missing: %s", strings.Join(missing, ", "))
	}
	if out == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(out, raw.Bytes(), 0o644); err != nil {
		return err
	}
	return os.WriteFile(pictureOf(out), bars(results), 0o644)
}

// pictureOf returns the path of a results file's picture.
func pictureOf(results string) string {
	return strings.TrimSuffix(results, filepath.Ext(results)) + ".svg"
}

// missing returns the names of the lines that results lack.
func missing(results []result) (names []string) {
	for _, l := range lines {
		i := slices.IndexFunc(results, func(r result) bool { return r.name == l.name })
		if i < 0 {
			names = append(names, l.name)
			continue
		}
		for _, unit := range l.units() {
			if _, ok := results[i].values[unit]; !ok {
				names = append(names, unit+" of "+l.name)
			}
		}
	}
	return names
}

// row returns a benchmark's row of the table: its figure and ceiling, then whatever else it reports.
func row(r result) string {
	cells := []string{r.name, "", "", "", "", "", ""}
	var also []string
	figure := r.figure()
	for _, unit := range r.units {
		v := r.values[unit]
		switch {
		case unit == figure:
			cells[1] = number(v) + " " + unit
		case strings.HasPrefix(unit, "ceiling-"):
			cells[2] = number(v) + " " + strings.TrimPrefix(unit, "ceiling-")
		case unit == "ratio":
			cells[3] = fmt.Sprintf("%.2f", v)
		case unit == "spread":
			cells[4] = fmt.Sprintf("±%.0f %%", 50*v)
		case unit == "load-cores":
			cells[5] = fmt.Sprintf("%.0f %%", 100*v/float64(r.cores))
		default:
			also = append(also, number(v)+" "+unit)
		}
	}
	cells[6] = strings.Join(also, ", ")
	return strings.Join(cells, "\t") + "\t"
}
