package policy

import (
	"context"
	"time"

	"millrace/internal/broker"
	"millrace/internal/config"
)

// Exports for the tests. The tests are a package of their own because the local stack, which they need, imports
// this one.

// Judge returns the harm that a definition does to a queue, as if the policy p had set it.
func Judge(t broker.Topology, name string, arguments, definition map[string]any) []Harm {
	return harms(t, queue{Name: name, Arguments: arguments, Definition: definition}, func(string) string { return "the policy p" })
}

// Canary is a canary for the tests. Close must be called at the end.
type Canary struct{ c *canary }

// NewCanary returns a canary whose leastTrust is trust and whose canaryStay is stay.
func NewCanary(c config.Broker, trust, stay time.Duration) Canary {
	bird := newCanary(c)
	bird.trust, bird.stay = trust, stay
	return Canary{bird}
}

// Look is canary.look.
func (c Canary) Look(ctx context.Context) ([]Harm, error) { return c.c.look(ctx) }

// Close is canary.close.
func (c Canary) Close() { c.c.close() }
