package chaos

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Report is what a run found.
type Report struct {
	run *run

	Requests, Records int // acked, and found
	Unknown           int // requests without a key that were not acked: they may be stored or not
	Stored            int // records in logs
	Dead, Poisoned    int // dead letters, and how many were poisoned
	Lost              int // records
	Took              time.Duration
	Mismatches        []Mismatch
	kinds             []kind
}

// kind is what the strikes of one fault have in common.
type kind struct {
	name                        string
	strikes, failed             int
	longest, full, stored, hold time.Duration // the longest each
	medianFull                  time.Duration
	fulls                       []time.Duration
}

// OK says that nothing is amiss.
func (r *Report) OK() bool { return len(r.Mismatches) == 0 }

// Has says whether a mismatch of that kind was found.
func (r *Report) Has(kind string) bool {
	return slices.ContainsFunc(r.Mismatches, func(m Mismatch) bool { return m.Kind == kind })
}

// finish sums up.
func (r *Report) finish() {
	r.Mismatches = r.run.mismatches
	r.Took = time.Since(r.run.load.began)
	kinds := make(map[string]*kind)
	get := func(name string) *kind {
		if kinds[name] == nil {
			kinds[name] = &kind{name: name}
		}
		return kinds[name]
	}
	for _, e := range r.run.events {
		alone := e.step.With == nil
		k := get(e.step.Fault)
		k.strikes++
		if !alone {
			get(e.step.With.Fault).strikes++
			k = get("(two at once)")
			k.strikes++
		}
		if e.err != nil {
			k.failed++
		}
		k.longest, k.hold = max(k.longest, e.longest), max(k.hold, e.to-e.from)
		if e.full >= 0 {
			k.full, k.stored = max(k.full, e.full), max(k.stored, e.stored)
			k.fulls = append(k.fulls, e.full)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(kinds)) {
		k := kinds[name]
		if slices.Sort(k.fulls); len(k.fulls) > 0 {
			k.medianFull = k.fulls[len(k.fulls)/2]
		}
		r.kinds = append(r.kinds, *k)
	}
}

// Summary is the report in a few lines.
func (r *Report) Summary() string {
	l := r.run.load
	strikes, least := 0, 0
	for _, e := range r.run.events {
		strikes++
		if e.step.With != nil {
			strikes++
		}
	}
	struck := make(map[string]int)
	for _, k := range r.kinds {
		struck[k.name] = k.strikes
	}
	for i, f := range r.run.chosen() {
		if n := struck[f.name]; i == 0 || n < least {
			least = n
		}
	}
	longest := time.Duration(0)
	for _, e := range r.run.events {
		longest = max(longest, e.longest)
	}
	var b strings.Builder
	count := make(map[string]int)
	for _, m := range r.Mismatches {
		count[m.Kind]++
	}
	fmt.Fprintf(&b, "seed %d: %d faults of %d kinds (each at least %d times) in %v\n", r.run.Seed, strikes, len(r.run.chosen()), least, r.Took.Round(time.Second))
	fmt.Fprintf(&b, "%d requests with %d records acked; %d records lost, %d doubled, %d foreign\n",
		r.Requests, r.Records, r.Lost, count[string(doubled)], count[string(foreign)])
	fmt.Fprintf(&b, "%d records stored, those of %d requests without a key among them that got no 2xx\n", r.Stored, r.Unknown)
	fmt.Fprintf(&b, "%d dead letters, %d poisoned\n", r.Dead, r.Poisoned)
	fmt.Fprintf(&b, "%d tries again; answers:", l.retries)
	for _, code := range slices.Sorted(maps.Keys(l.codes)) {
		fmt.Fprintf(&b, " %s: %d;", code, l.codes[code])
	}
	b.WriteString("\nSIGKILLs of servers:")
	for _, name := range slices.Sorted(maps.Keys(r.run.kills)) {
		fmt.Fprintf(&b, " %s: %d;", name, r.run.kills[name])
	}
	fmt.Fprintf(&b, "\nlongest wait for a 2xx: %v\n", longest.Round(time.Millisecond))
	if r.OK() {
		b.WriteString("no mismatch\n")
	} else {
		fmt.Fprintf(&b, "%d MISMATCHES:", len(r.Mismatches))
		for _, kind := range slices.Sorted(maps.Keys(count)) {
			fmt.Fprintf(&b, " %s: %d;", kind, count[kind])
		}
		b.WriteString("\n")
	}
	return b.String()
}

// Markdown is the whole report.
func (r *Report) Markdown() string {
	var b strings.Builder
	o := r.run.Options
	fmt.Fprintf(&b, "# Fault proof\n\nseed %d, duration %v, %d records/s wanted, %d clients, %d RabbitMQ node(s)\n\n", o.Seed, o.Duration, o.Rate, o.Clients, len(r.run.brokers))
	for line := range strings.Lines(r.Summary()) {
		fmt.Fprintf(&b, "- %s", line)
	}
	b.WriteString("\n## After each kind of fault\n\nHealed is when the server or process runs again. Two at once count under the first one's name, and their times in a line of their own.\n\n")
	b.WriteString("| fault | strikes | longest | longest wait for a 2xx | full speed after, median | at most | all stored after, at most |\n| --- | --- | --- | --- | --- | --- | --- |\n")
	ms := func(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
	for _, k := range r.kinds {
		wait := "< 1 s"
		if k.longest > 0 {
			wait = ms(k.longest)
		}
		fmt.Fprintf(&b, "| %s | %d | %s | %s | %s | %s | %s |\n", k.name, k.strikes, ms(k.hold), wait, ms(k.medianFull), ms(k.full), ms(k.stored))
	}
	for _, f := range r.run.known {
		if f.missing != "" {
			fmt.Fprintf(&b, "| %s | skipped: %s | | | | | |\n", f.name, f.missing)
		}
	}
	b.WriteString("\n## Resources\n\nMedians of the second fifth of the run and of the last.\n\n| process | starts | memory, MiB | goroutines | file descriptors |\n| --- | --- | --- | --- | --- |\n")
	for _, name := range slices.Sorted(maps.Keys(r.run.watch.samples)) {
		samples := r.run.watch.samples[name]
		fmt.Fprintf(&b, "| %s | %d |", name, r.run.unit(name).starts)
		early, late := fifths(samples)
		for _, res := range resources {
			fmt.Fprintf(&b, " %.0f → %.0f |", level(early, res.of), level(late, res.of))
		}
		b.WriteString("\n")
	}
	early, late := fifths(r.run.watch.links)
	open := func(s sample) float64 { return s.files }
	fmt.Fprintf(&b, "\nConnections to RabbitMQ and PostgreSQL, of all processes: %.0f → %.0f.\n\n![resources](resources.svg)\n", level(early, open), level(late, open))
	if !r.OK() {
		b.WriteString("\n## Mismatches\n\n")
		printed := make(map[string]int)
		for _, m := range r.Mismatches {
			if printed[m.Kind]++; printed[m.Kind] <= mostMismatches {
				fmt.Fprintf(&b, "- %s: %s\n", m.Kind, m.Text)
			}
		}
	}
	b.WriteString("\n## Faults\n\n")
	for _, e := range r.run.events {
		fmt.Fprintf(&b, "- %s–%s %s", stamp(e.from), stamp(e.to), e.step)
		if e.err != nil {
			fmt.Fprintf(&b, " (not as meant: %s)", strings.ReplaceAll(e.err.Error(), "\n", " "))
		}
		b.WriteString("\n")
	}
	return b.String()
}
