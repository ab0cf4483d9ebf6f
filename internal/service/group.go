package service

import (
	"context"
	"errors"
	"fmt"
)

// Group runs services side by side and stops them one after another, in the order they were added. Add them
// from upstream to downstream: what a service hands over while it stops then finds the next one running. The
// zero value is ready for use. Only one goroutine may use a Group.
type Group struct {
	members []member
	ended   chan string // holds the name of the first service that has returned
}

type member struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}
	err    *error
}

// Go starts run on a goroutine that Wait waits for. run must return soon after its context is done.
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

// Wait waits until ctx is done or a service ends by itself, then stops the others in order and returns when
// all have ended. It returns their errors. A service that ended by itself is an error, even if its run
// returned nil.
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
