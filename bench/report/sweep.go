package main

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// picture is what is drawn of one benchmark of the sweep. Its results are named benchmark/curve/x=N.
type picture struct {
	benchmark, file, title, x string
	panels                    []panel // without curves
	mark                      float64 // the setting's default; 0: none is marked
}

var pictures = []picture{
	{"SweepRecord", "record-size", "Size of the records", "bytes a record", []panel{{unit: "records/s", log: true}, {unit: "MB/s", log: true}, {unit: "p99-ms", log: true}}, 0},
	{"SweepBatch", "batch-size", "Records in a request, 16 connections", "records a request", []panel{{unit: "records/s", log: true}, {unit: "p99-ms", log: true}}, 0},
	{"SweepConnections", "connections", "Connections", "connections", []panel{{unit: "req/s"}, {unit: "p50-ms", log: true}, {unit: "p99-ms", log: true}}, 0},
	{"SweepFrame", "frame-bytes", "FRAME_BYTES", "bytes a frame", []panel{{unit: "records/s"}, {unit: "p99-ms", log: true}}, 64 << 10},
	{"SweepStreams", "streams", "WORKER_STREAMS", "streams", []panel{{unit: "rows/s"}, {unit: "commit-p50-ms", log: true}, {unit: "resident-MiB"}}, 2},
	{"SweepBatchRows", "batch-rows", "BATCH_ROWS", "rows a transaction", []panel{{unit: "rows/s"}, {unit: "commit-p50-ms", log: true}, {unit: "resident-MiB"}}, 5000},
	{"SweepPrefetch", "prefetch", "PREFETCH", "frames", []panel{{unit: "rows/s"}, {unit: "resident-MiB"}}, 500},
	{"SweepLinger", "linger", "BATCH_LINGER", "ms", []panel{{unit: "lag-p50-ms"}, {unit: "lag-p99-ms"}, {unit: "commits/s"}}, 50},
	{"SweepLoad", "load", "Load, everything on one machine", "records/s sent", []panel{{unit: "lag-p50-ms", log: true}, {unit: "lag-p99-ms", log: true}}, 0},
}

// drawSweep draws the pictures that a file has results for. It fails if the file has no result at all.
func drawSweep(file, to string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	results, err := read(bytes.NewReader(text), nil)
	if err != nil {
		return err
	}
	if len(results) == 0 {
		return fmt.Errorf("%s has no results: no benchmark ran", file)
	}
	for _, p := range pictures {
		drawn := false
		panels := slices.Clone(p.panels)
		for i := range panels {
			panels[i].curves = curvesOf(results, p.benchmark, panels[i].unit)
			drawn = drawn || len(panels[i].curves) > 0
		}
		if !drawn {
			continue
		}
		if err := os.WriteFile(filepath.Join(to, p.file+".svg"), draw(p.title, p.x, panels, p.mark), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// curvesOf returns the curves that a benchmark's results have in a unit: at each x the median of its rounds.
func curvesOf(results []result, benchmark, unit string) (curves []curve) {
	type place struct {
		curve string
		x     float64
	}
	rounds := make(map[place][]float64)
	var names []string
	for _, r := range results {
		rest, ok := strings.CutPrefix(r.name, benchmark+"/")
		v, has := r.values[unit]
		if !ok || !has {
			continue
		}
		name, setting, _ := strings.Cut(rest, "/")
		_, value, _ := strings.Cut(setting, "=")
		x, err := strconv.ParseFloat(value, 64)
		if err != nil {
			continue
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
		rounds[place{name, x}] = append(rounds[place{name, x}], v)
	}
	for _, name := range names {
		c := curve{name: strings.ReplaceAll(name, "_", " ")}
		for p, values := range rounds {
			if p.curve == name {
				slices.Sort(values)
				n := len(values)
				c.points = append(c.points, point{p.x, (values[(n-1)/2] + values[n/2]) / 2, values[0], values[n-1]})
			}
		}
		slices.SortFunc(c.points, func(a, b point) int { return cmp.Compare(a.x, b.x) })
		curves = append(curves, c)
	}
	return curves
}
