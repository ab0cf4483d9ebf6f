package procs

import (
	"testing"
	"time"
)

const (
	short = 10 * time.Microsecond
	half  = patience // looks, half a second
)

func TestGovernor(t *testing.T) {
	type looks struct {
		times int
		load
		want int // processors after them
	}
	tasks := func(busy float64) load { return load{busy: busy, waits: 50, task: short} }
	var (
		large    = load{busy: 0.5, waits: 50, task: 2 * long}
		nobodys  = load{busy: 0.5, waits: 50}
		one      = load{busy: 0.5, waits: 50, task: short, long: true}
		hindered = load{busy: 0.5, waits: 10, task: short}
	)
	for name, steps := range map[string][]looks{
		"one after another is given up while fewer are enough": {
			{half - 1, tasks(0.8), 8}, {1, tasks(0.8), 7}, {half, tasks(0.8), 6}, {5 * half, tasks(0.8), 1}, {100, tasks(0.8), 1},
		},
		"fewer must be enough without a break":    {{half - 1, tasks(1), 8}, {1, tasks(7.1), 8}, {half - 1, tasks(1), 8}, {1, tasks(1), 7}},
		"an idle process says nothing":            {{half - 1, tasks(1), 8}, {100, tasks(0.05), 8}, {1, tasks(1), 7}, {100, tasks(0.05), 7}},
		"long tasks want all":                     {{7 * half, tasks(0.5), 1}, {1, large, 8}, {100, large, 8}},
		"work that is no task wants all":          {{7 * half, tasks(0.5), 1}, {1, nobodys, 8}},
		"a single long task wants all":            {{7 * half, tasks(0.5), 1}, {1, one, 8}},
		"long tasks from time to time keep all":   {{1, one, 8}, {afterLong - 1, tasks(0.5), 8}, {1, one, 8}, {afterLong - 1, tasks(0.5), 8}, {1, tasks(0.5), 7}, {half, tasks(0.5), 6}},
		"a busy process takes twice as many":      {{7 * half, tasks(0.5), 1}, {1, tasks(0.98), 2}, {1, tasks(1.95), 4}, {1, tasks(3.9), 8}, {100, tasks(7.9), 8}},
		"as does one that has no time to wait":    {{7 * half, tasks(0.5), 1}, {1, hindered, 2}, {1, hindered, 4}, {1, hindered, 8}, {100, hindered, 8}},
		"what is not busy keeps what it has":      {{6 * half, tasks(1.9), 2}, {1000, tasks(1.8), 2}},
		"one given up in error stays longer":      {{7 * half, tasks(0.9), 1}, {1, hindered, 2}, {half, tasks(0.9), 2}, {half, tasks(0.9), 1}, {half, tasks(0.9), 1}, {1, hindered, 2}, {half, tasks(0.9), 1}},
		"what it wants back is judged once":       {{7 * half, tasks(0.9), 1}, {1, hindered, 2}, {1, hindered, 4}, {1, hindered, 8}, {2*half - 1, tasks(0.9), 8}, {1, tasks(0.9), 7}},
		"the wait for the next try has its bound": {{7 * half, tasks(0.9), 1}, {1, hindered, 2}, {2 * half, tasks(0.9), 1}, {1, hindered, 2}, {4 * half, tasks(0.9), 1}, {1, hindered, 2}, {8 * half, tasks(0.9), 1}, {1, hindered, 2}, {16 * half, tasks(0.9), 1}, {1, hindered, 2}, {32 * half, tasks(0.9), 1}, {1, hindered, 2}, {64 * half, tasks(0.9), 1}, {1, hindered, 2}, {maxPatience - 1, tasks(0.9), 2}, {1, tasks(0.9), 1}, {1, hindered, 2}, {maxPatience, tasks(0.9), 1}},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGovernor(8)
			for i, s := range steps {
				for range s.times {
					g.look(s.load)
				}
				if g.n != s.want {
					t.Fatalf("after step %d, %+v: %d processors, want %d", i+1, s, g.n, s.want)
				}
			}
		})
	}
}

func TestTheOnlyProcessorStays(t *testing.T) {
	g := newGovernor(1)
	for _, l := range []load{{busy: 0.5, waits: 50, task: short}, {busy: 1, task: short}, {busy: 1, task: 2 * long}} {
		for range 10 * maxPatience {
			if g.look(l); g.n != 1 {
				t.Fatalf("%+v: %d processors", l, g.n)
			}
		}
	}
}
