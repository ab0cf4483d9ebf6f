package policy

import (
	"context"
	"time"

	"millrace/internal/broker"
	"millrace/internal/config"
)

// What tests reach. They are a package of their own because the local stack, which they need, imports this one.

// Judge judges a policy's definition on a queue, as if the policy p set it.
func Judge(t broker.Topology, name string, arguments, definition map[string]any) []Harm {
	return harms(t, queue{Name: name, Arguments: arguments, Definition: definition}, func(string) string { return "the policy p" })
}

// Canary looks at the canary; Close is to be called in the end.
type Canary struct{ c *canary }

func NewCanary(c config.Broker, trust, stay time.Duration) Canary {
	bird := newCanary(c)
	bird.trust, bird.stay = trust, stay
	return Canary{bird}
}

func (c Canary) Look(ctx context.Context) ([]Harm, error) { return c.c.look(ctx) }
func (c Canary) Close()                                   { c.c.close() }
