package chaos

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// twoAtOnce is the name under which the times of two faults at once count.
const twoAtOnce = "(two at once)"

// Report is what a run found.
type Report struct {
	run *run

	Requests, Records int // acked, and found
	Unknown           int // requests without a key that were not acked: they may be stored or not
	Stored            int // records in logs
	Dead, Poisoned    int // dead letters, and how many were poisoned
	Lost              int // records
	Archived          archivedTotals
	Took              time.Duration
	Mismatches        []Mismatch // at most mostMismatches of each kind
	kinds             []kind
}

// kind sums up the strikes of one fault.
type kind struct {
	name                        string
	strikes, failed             int
	longest, full, stored, hold time.Duration // the longest each
	medianFull                  time.Duration
	fulls                       []time.Duration
}

// OK reports whether no mismatch was found.
func (r *Report) OK() bool { return len(r.Mismatches) == 0 }

// Has reports whether a mismatch of that kind was found.
func (r *Report) Has(kind string) bool {
	return slices.ContainsFunc(r.Mismatches, func(m Mismatch) bool { return m.Kind == kind })
}

// finish sums up the events, and takes over the run's mismatches.
func (r *Report) finish() {
	r.Took = time.Since(r.run.load.began)
	kinds := make(map[string]*kind)
	get := func(name string) *kind {
		if kinds[name] == nil {
			kinds[name] = &kind{name: name}
		}
		return kinds[name]
	}
	r.run.blame()
	for _, e := range r.run.events {
		k := get(e.step.Fault)
		k.struck(e.err)
		if with := e.step.With; with != nil {
			get(with.Fault).struck(e.second)
			k = get(twoAtOnce)
			k.struck(errors.Join(e.err, e.second))
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
		if k.strikes == 0 && k.failed > 1 {
			r.run.mismatch(broken, "%s: none of %d struck as meant", name, k.failed)
		}
		r.kinds = append(r.kinds, *k)
	}
	r.Mismatches = r.run.mismatches
}

// struck counts a strike. If err is not nil, the fault did not strike as meant, and it counts as failed.
func (k *kind) struck(err error) {
	if err != nil {
		k.failed++
	} else {
		k.strikes++
	}
}

// blame notes the longest wait under each fault. A wait counts for the fault under which most of it was.
func (r *run) blame() {
	for _, w := range r.load.waits {
		var worst *event
		var most time.Duration
		for i, e := range r.events {
			end := w.to
			if i+1 < len(r.events) {
				end = min(end, r.events[i+1].from)
			}
			if under := end - max(w.from, e.from); under > most {
				worst, most = e, under
			}
		}
		if worst != nil {
			worst.longest = max(worst.longest, w.to-w.from)
		}
	}
}

// Summary returns the report in a few lines.
func (r *Report) Summary() string {
	l := r.run.load
	strikes, least := 0, 0
	struck := make(map[string]int)
	for _, k := range r.kinds {
		struck[k.name] = k.strikes
		if k.name != twoAtOnce {
			strikes += k.strikes
		}
	}
	for i, f := range r.run.chosen() {
		if n := struck[f.name]; i == 0 || n < least {
			least = n
		}
	}
	longest := time.Duration(0)
	for _, w := range l.waits {
		longest = max(longest, w.to-w.from)
	}
	var b strings.Builder
	if len(r.run.known) > 0 {
		fmt.Fprintf(&b, "seed %d: %d faults of %d kinds (each at least %d times) in %v\n", r.run.Seed, strikes, len(r.run.chosen()), least, r.Took.Round(time.Second))
	}
	fmt.Fprintf(&b, "%d requests with %d records acked; %d records lost, %d doubled, %d foreign\n",
		r.Requests, r.Records, r.Lost, r.run.counts[doubled], r.run.counts[foreign])
	fmt.Fprintf(&b, "%d records stored, those of %d requests without a key among them that got no 2xx\n", r.Stored, r.Unknown)
	fmt.Fprintf(&b, "%d dead letters, %d poisoned\n", r.Dead, r.Poisoned)
	if r.run.Archive {
		a := r.Archived
		fmt.Fprintf(&b, "archive: %d ranges, %d of them in files alone; %d files; the highest generation is %d; %d dead letters were replayed; clients' records were counted %d times\n",
			a.Ranges, a.FilesOnly, a.Files, a.Generation, r.run.replayed, r.run.reader.answers)
	}
	fmt.Fprintf(&b, "%d tries again; answers:", l.retries)
	for _, code := range slices.Sorted(maps.Keys(l.codes)) {
		fmt.Fprintf(&b, " %s: %d;", code, l.codes[code])
	}
	if len(r.run.kills) > 0 {
		b.WriteString("\nSIGKILLs of servers:")
	}
	for _, name := range slices.Sorted(maps.Keys(r.run.kills)) {
		fmt.Fprintf(&b, " %s: %d;", name, r.run.kills[name])
	}
	fmt.Fprintf(&b, "\nlongest wait for a 2xx: %v\n", longest.Round(time.Millisecond))
	if r.OK() {
		b.WriteString("no mismatch\n")
	} else {
		b.WriteString("MISMATCHES:")
		for _, kind := range slices.Sorted(maps.Keys(r.run.counts)) {
			fmt.Fprintf(&b, " %s: %d;", kind, r.run.counts[kind])
		}
		b.WriteString("\n")
	}
	return b.String()
}

// Markdown returns the whole report.
func (r *Report) Markdown() string {
	var b strings.Builder
	o := r.run.Options
	fmt.Fprintf(&b, "# Fault proof\n\nseed %d, duration %v, %d records/s wanted, %d clients, %d RabbitMQ node(s)\n\n", o.Seed, o.Duration, o.Rate, o.Clients, len(r.run.brokers))
	for line := range strings.Lines(r.Summary()) {
		fmt.Fprintf(&b, "- %s", line)
	}
	b.WriteString("\n## After each kind of fault\n\nHealed is when the server or process runs again. Two at once count under the first one's name, and their times in a line of their own.\n\n")
	b.WriteString("| fault | strikes | not as meant | longest | longest wait for a 2xx | full speed after, median | at most | all stored after, at most |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n")
	ms := func(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
	for _, k := range r.kinds {
		wait := "< 1 s"
		if k.longest > 0 {
			wait = ms(k.longest)
		}
		fmt.Fprintf(&b, "| %s | %d | %d | %s | %s | %s | %s | %s |\n", k.name, k.strikes, k.failed, ms(k.hold), wait, ms(k.medianFull), ms(k.full), ms(k.stored))
	}
	for _, f := range r.run.known {
		if f.missing != "" {
			fmt.Fprintf(&b, "| %s | skipped: %s | | | | | | |\n", f.name, f.missing)
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
		for _, m := range r.Mismatches {
			fmt.Fprintf(&b, "- %s: %s\n", m.Kind, m.Text)
		}
	}
	b.WriteString("\n## Faults\n\n")
	for _, e := range r.run.events {
		fmt.Fprintf(&b, "- %s–%s %s", stamp(e.from), stamp(e.to), e.step)
		if err := errors.Join(e.err, e.second); err != nil {
			fmt.Fprintf(&b, " (not as meant: %s)", strings.ReplaceAll(err.Error(), "\n", " "))
		}
		b.WriteString("\n")
	}
	return b.String()
}
