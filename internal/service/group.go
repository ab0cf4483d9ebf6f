package service

import (
	"context"
	"errors"
	"fmt"
)

// Group runs services side by side and stops them one after another, in the order they were added: from
// upstream to downstream, so that what the first hands over still finds the next one running. The zero value
// is ready for use; it must be used by one goroutine.
type Group struct {
	members []member
	ended   chan string // the name of a service that has returned; its buffer never blocks one
}

type member struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}
	err    *error
}

// Go starts run. run must return soon after its context is done.
func (g *Group) Go(name string, run func(context.Context) error) {
	if g.ended == nil {
		g.ended = make(chan string, 1)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m := member{name: name, cancel: cancel, done: make(chan struct{}), err: new(error)}
	g.members = append(g.members, m)
	go func() {
		*m.err = run(ctx)
		close(m.done)
		select {
		case g.ended <- name:
		default: // one is enough to end the group
		}
	}()
}

// Wait returns when all services have: it waits until ctx is done or a service ends by itself, then stops the
// others in order. A service that ended by itself is an error, also when its run returned nil.
func (g *Group) Wait(ctx context.Context) error {
	var errs []error
	ended := ""
	select {
	case <-ctx.Done():
	case ended = <-g.ended:
	}
	for _, m := range g.members {
		m.cancel()
		<-m.done
		switch {
		case *m.err != nil:
			errs = append(errs, fmt.Errorf("%s: %w", m.name, *m.err))
		case m.name == ended:
			errs = append(errs, fmt.Errorf("%s ended", m.name))
		}
	}
	return errors.Join(errs...)
}
