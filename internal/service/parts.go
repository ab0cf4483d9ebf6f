package service

import (
	"maps"
	"slices"
	"strings"
	"sync"
)

// Parts are parts of a service of which one is enough to be ready, such as cells. Each has conditions of its own. The service is not ready if none
// of the parts that count works, and degraded by each that does not. Many goroutines may use it at once.
type Parts struct {
	name  string // of the condition that one part works
	kind  string // what a part is
	ready *Ready

	mu      sync.Mutex
	states  map[string]*Ready // by the part
	counted []string
}

// NewParts returns parts of a kind, of which none counts yet, that report to ready by a condition.
func NewParts(ready *Ready, condition, kind string) *Parts {
	return &Parts{name: condition, kind: kind, ready: ready, states: make(map[string]*Ready)}
}

// Part is the state of a part.
type Part struct {
	parts *Parts
	state *Ready
}

// Part returns the state of a part. It has no conditions at first.
func (p *Parts) Part(name string) Part {
	p.mu.Lock()
	defer p.mu.Unlock()
	state := new(Ready)
	p.states[name] = state
	return Part{p, state}
}

// Set notes why a condition of the part does not hold, as Ready.Set does.
func (p Part) Set(condition, reason string) {
	p.state.Set(condition, reason)
	p.parts.report()
}

// Degrade notes what works less well than it should, without which the part works all the same.
func (p Part) Degrade(what, reason string) {
	p.state.Degrade(what, reason)
	p.parts.report()
}

// Count says which parts count.
func (p *Parts) Count(names []string) {
	p.mu.Lock()
	p.counted = slices.Clone(names)
	p.mu.Unlock()
	p.report()
}

// Forget forgets a part that is no more.
func (p *Parts) Forget(name string) {
	p.mu.Lock()
	delete(p.states, name)
	p.ready.Degrade(p.kind+" "+name, "")
	p.mu.Unlock()
	p.report()
}

// report tells ready how the parts are.
func (p *Parts) report() {
	p.mu.Lock()
	defer p.mu.Unlock()
	reasons := make(map[string]string)
	for name, state := range p.states {
		failing, degraded := state.both()
		reasons[name] = inOrder(failing)
		maps.Copy(degraded, failing)
		p.ready.Degrade(p.kind+" "+name, inOrder(degraded))
	}
	none := "no " + p.kind + " is there yet"
	for _, name := range p.counted {
		reason, known := reasons[name]
		if known && reason == "" {
			none = ""
			break
		}
		if known {
			none = "no " + p.kind + " works; " + name + ": " + reason
		}
	}
	p.ready.Set(p.name, none)
}

// inOrder returns reasons with their names, sorted by these.
func inOrder(reasons map[string]string) string {
	texts := make([]string, 0, len(reasons))
	for _, name := range slices.Sorted(maps.Keys(reasons)) {
		texts = append(texts, name+": "+reasons[name])
	}
	return strings.Join(texts, "; ")
}
