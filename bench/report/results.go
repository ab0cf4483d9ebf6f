package main

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"golang.org/x/perf/benchfmt"
)

// result is what one benchmark reported.
type result struct {
	name   string // without "Benchmark" and the number of cores
	cores  int
	cpu    string
	units  []string // as they came
	values map[string]float64
}

// read reads in to its end and returns the benchmarks in it. It calls came with each as it comes, unless came is nil.
func read(in io.Reader, came func(result)) ([]result, error) {
	var all []result
	lines := benchfmt.NewReader(in, "the benchmarks' output")
	for lines.Scan() {
		switch r := lines.Result().(type) {
		case *benchfmt.Result:
			next := result{cores: 1, cpu: r.GetConfig("cpu"), values: make(map[string]float64)}
			base, parts := r.Name.Parts()
			next.name = string(base)
			for _, part := range parts {
				if n, err := strconv.Atoi(strings.TrimPrefix(string(part), "-")); err == nil && part[0] == '-' {
					next.cores = n
				} else {
					next.name += string(part)
				}
			}
			for _, v := range r.Values {
				unit, value := v.OrigUnit, v.OrigValue
				if unit == "" {
					unit, value = v.Unit, v.Value
				}
				next.units = append(next.units, unit)
				next.values[unit] = value
			}
			all = append(all, next)
			if came != nil {
				came(next)
			}
		case *benchfmt.SyntaxError:
			return all, r
		}
	}
	return all, lines.Err()
}

// figure returns the unit that has a ceiling, or "" if none has.
func (r result) figure() string {
	for _, unit := range r.units {
		if _, ok := r.values["ceiling-"+unit]; ok {
			return unit
		}
	}
	return ""
}

// summary returns a result in a few words.
func (r result) summary() string {
	figure := r.figure()
	if figure == "" {
		return r.name
	}
	return fmt.Sprintf("%s  %s %s, %.2f of its ceiling", r.name, number(r.values[figure]), figure, r.values["ratio"])
}

// number returns v with three significant digits, and with all digits before the point, in groups of three.
func number(v float64) string {
	if v == 0 {
		return "0"
	}
	digits := 2 - int(math.Floor(math.Log10(math.Abs(v))))
	if digits < 0 {
		scale := math.Pow10(-digits)
		v = math.Round(v/scale) * scale
	}
	text := strconv.FormatFloat(v, 'f', max(0, digits), 64)
	whole, rest, _ := strings.Cut(text, ".")
	for i := len(whole) - 3; i > 0 && whole[i-1] != '-'; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if rest != "" {
		whole += "." + rest
	}
	return whole
}
