package publish

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"millrace/internal/cells"
	"millrace/internal/record"
	"millrace/internal/retry"
	"millrace/internal/service"
)

// ErrCellDown is within the error for records under a key whose cell can't take them now. No other cell may take them: the first try may have
// stored them there.
var ErrCellDown = errors.New("the cell that has the records of this key takes none now")

// errDrained is why a cell can't be asked: it takes no ids that anybody may still send.
var errDrained = errors.New("the cell takes no ids any more")

// mapPeriod is how often Cells looks for a new map while no requests come.
const mapPeriod = 500 * time.Millisecond

// CellsOptions are what Cells needs.
type CellsOptions struct {
	// File has the map.
	File *cells.File
	// Open returns the publisher of a cell, which reports to ready, makes bases with base, and probes.
	Open func(cell string, ready Readiness, base func() uuid.UUID) *Publisher
	// Watch is run beside each publisher, until its context is done. It may be nil.
	Watch func(ctx context.Context, cell string)
	// Ready is told how the cells are, by the condition cells, and degraded by those that are down.
	Ready *service.Ready
}

// Cells hands records to the publishers of several cells: a publisher each, so that one whose queue is full, or whose leader hangs, holds up no
// other. Records under a key go to the cell of their ids, and to no other. Records without a key go to one of the cells that take new ids, by
// turns, and pass over those that are not likely to confirm. Any goroutine may call the exported methods.
type Cells struct {
	CellsOptions
	parts *service.Parts
	turn  int64 // which cell is first, so that APIs that were started together don't all go to the same
	route atomic.Pointer[route]

	mu         sync.Mutex // guards what follows
	publishers map[string]*Publisher
	begin      func(cell string, p *Publisher) // starts a publisher; nil before Run
	stopped    bool                            // Run's context is done
}

// route is a map, and the publishers of its cells by their indexes; nil for cells that take no ids that anybody may still send.
type route struct {
	m          *cells.Map
	publishers []*Publisher
}

// NewCells returns the publishers of the cells that a file has now. They do nothing until Run is called.
func NewCells(o CellsOptions) *Cells {
	c := &Cells{CellsOptions: o, parts: service.NewParts(o.Ready, "cells", "cell"), turn: time.Now().UnixNano() / 1e3 % 64, publishers: make(map[string]*Publisher)}
	c.current()
	return c
}

// current returns the route of the map as the file has it now. It opens publishers for cells that are new.
func (c *Cells) current() *route {
	m := c.File.Map()
	if r := c.route.Load(); r != nil && r.m == m {
		return r
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return c.route.Load()
	}
	r := &route{m, make([]*Publisher, len(m.Cells()))}
	for _, i := range m.Since(time.Now().Add(-cells.LeastKeep)) {
		name := m.Cells()[i].Name
		p := c.publishers[name]
		if p == nil {
			p = c.Open(name, c.parts.Part(name), func() uuid.UUID { return c.base(name) })
			c.publishers[name] = p
			if c.begin != nil {
				c.begin(name, p)
			}
		}
		r.publishers[i] = p
	}
	for name := range c.publishers {
		if m.Index(name) < 0 {
			c.parts.Forget(name)
		}
	}
	c.route.Store(r)
	c.count(m)
	return r
}

// base returns a base for a segment without a key that leads to a cell.
func (c *Cells) base(name string) uuid.UUID {
	m := c.route.Load().m
	i := m.Index(name)
	if i < 0 { // the cell has left the map since its publisher was chosen, so its ids may lead anywhere: see worker, which refuses them
		i = m.At(time.Now())[0]
	}
	return m.BaseIn(i)
}

// Usable returns nil if at least one cell can be expected to confirm, else why one of them can't.
func (c *Cells) Usable() (err error) {
	r := c.current()
	for _, i := range r.m.At(time.Now()) {
		if err = r.usable(i); err == nil {
			return nil
		}
	}
	return err
}

// usable returns nil if a cell can be expected to confirm, else why not.
func (r *route) usable(i int) error {
	if r.publishers[i] == nil {
		return errDrained
	}
	return r.publishers[i].Usable()
}

// Add does what Publisher.Add does, in the cell that the key leads to, or in one of those that take new ids.
func (c *Cells) Add(dst []Ticket, records *record.List, key *uuid.UUID) ([]Ticket, error) {
	r := c.current()
	if key != nil {
		i := r.m.Of(*key)
		if err := r.usable(i); err != nil {
			return dst, fmt.Errorf("%w (cell %s): %w", ErrCellDown, r.m.Cells()[i].Name, err)
		}
		return r.publishers[i].Add(dst, records, key)
	}
	now := time.Now()
	taking := r.m.At(now)
	// The turn lasts as long as requests may join a segment: then it is one frame that grows, as with one cell.
	first := int((now.UnixNano()/int64(sameBaseFor) + c.turn) % int64(len(taking)))
	var down error
	for _, usable := range []func(i int) error{r.likely, r.usable} {
		for k := range taking {
			i := taking[(first+k)%len(taking)]
			err := usable(i)
			if err == nil {
				if dst, err = r.publishers[i].Add(dst, records, nil); err == nil {
					return dst, nil
				}
			}
			down = err
		}
	}
	return dst, down
}

// likely returns nil if a cell can be expected to confirm, and has refused nothing since its last confirm.
func (r *route) likely(i int) error {
	if err := r.usable(i); err != nil {
		return err
	}
	if r.publishers[i].passOver.Load() {
		return ErrRefused
	}
	return nil
}

// Run runs the publishers, those of cells that come later too, as Publisher.Run does.
func (c *Cells) Run(ctx, flush context.Context) {
	var running sync.WaitGroup
	c.mu.Lock()
	c.begin = func(cell string, p *Publisher) {
		running.Go(func() { p.Run(ctx, flush) })
		if c.Watch != nil {
			running.Go(func() { c.Watch(ctx, cell) })
		}
	}
	for cell, p := range c.publishers {
		c.begin(cell, p)
	}
	c.mu.Unlock()
	for retry.Sleep(ctx, mapPeriod) == nil {
		c.count(c.current().m) // a period may have begun
	}
	c.mu.Lock()
	c.stopped = true
	c.mu.Unlock()
	running.Wait()
}

// count says which cells take new ids now: the service is ready if one of them is.
func (c *Cells) count(m *cells.Map) {
	var names []string
	for _, i := range m.At(time.Now()) {
		names = append(names, m.Cells()[i].Name)
	}
	c.parts.Count(names)
}
