package chaos

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// sampleEvery is how often the processes are asked what they use.
const sampleEvery = 2 * time.Second

// sample is what one process used at some time.
type sample struct {
	at         time.Duration
	start      int // which start of the process it was
	memory     float64
	goroutines float64
	files      float64
}

// watch follows what the processes use.
type watch struct {
	run     *run
	samples map[string][]sample
	links   []sample // files: connections through all links
}

// resources are what is watched of each process.
var resources = []struct {
	name, metric string
	unit         float64
	of           func(sample) float64
}{
	{"resident memory, MiB", "process_resident_memory_bytes", 1 << 20, func(s sample) float64 { return s.memory }},
	{"goroutines", "go_goroutines", 1, func(s sample) float64 { return s.goroutines }},
	{"file descriptors", "process_open_fds", 1, func(s sample) float64 { return s.files }},
}

// follow takes samples until ctx is done.
func (w *watch) follow(ctx context.Context) {
	w.samples = make(map[string][]sample)
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		for _, u := range w.run.units {
			u.mu.Lock()
			start := u.starts
			u.mu.Unlock()
			if s, err := scrape(ctx, client, u.addr); err == nil {
				s.at, s.start = time.Since(w.run.load.began), start
				w.samples[u.name] = append(w.samples[u.name], s)
			}
		}
		open := 0
		for _, l := range w.run.system.links {
			if l.class != clientAPI {
				open += l.open()
			}
		}
		w.links = append(w.links, sample{at: time.Since(w.run.load.began), files: float64(open)})
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// scrape returns what a process uses, by its metrics.
func scrape(ctx context.Context, client *http.Client, addr string) (s sample, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/metrics", nil)
	if err != nil {
		return s, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close() // read to its end
	lines := bufio.NewScanner(io.LimitReader(resp.Body, 1<<20))
	found := 0
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		for i, r := range resources {
			if name != r.metric {
				continue
			}
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				return s, err
			}
			*[]*float64{&s.memory, &s.goroutines, &s.files}[i] = v / r.unit
			found++
		}
	}
	if found != len(resources) {
		return s, fmt.Errorf("%d of the metrics are missing", len(resources)-found)
	}
	return s, lines.Err()
}

// level returns the median of a resource over samples.
func level(samples []sample, of func(sample) float64) float64 {
	if len(samples) == 0 {
		return 0
	}
	values := make([]float64, len(samples))
	for i, s := range samples {
		values[i] = of(s)
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// fifths returns the samples of the second and of the last fifth of the run. In the first fifth the processes warm up.
func fifths(samples []sample) (early, late []sample) {
	n := len(samples) / 5
	return samples[n : 2*n], samples[len(samples)-n:]
}

// check notes a mismatch for each resource of which a process uses ever more. Memory is judged by eye, from the picture: what a Go
// process keeps depends on what it once needed.
func (w *watch) check() {
	// With fewer samples or faults, the one fault that a fifth of the run has would be measured.
	const enough, manyFaults = 100, 50
	if len(w.run.events) < manyFaults {
		return
	}
	judge := func(name, what string, samples []sample, of func(sample) float64, slack float64) {
		if len(samples) < enough {
			return
		}
		early, late := fifths(samples)
		if a, b := level(early, of), level(late, of); b > 1.5*a+slack {
			w.run.mismatch(leaked, "%s of %s: %.0f in the second fifth of the run, %.0f in the last", what, name, a, b)
		}
	}
	for name, samples := range w.samples {
		slack := 20.0
		if strings.HasPrefix(name, "api") {
			slack += float64(w.run.Clients) // a client holds a connection to one API or to the other
		}
		for _, r := range resources[1:] {
			judge(name, r.name, samples, r.of, slack)
		}
	}
	judge("the links", "connections", w.links, func(s sample) float64 { return s.files }, 10)
}
