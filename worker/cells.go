package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"millrace/internal/broker"
	"millrace/internal/cells"
	"millrace/internal/config"
	"millrace/internal/frame"
	"millrace/internal/retry"
	"millrace/internal/service"
)

const (
	// cellsPeriod is how often a worker looks for a new map.
	cellsPeriod = 500 * time.Millisecond

	// cellPause is how long a cell rests whose database can't be worked with, such as one with a newer schema.
	cellPause = 30 * time.Second
)

// checkCells returns an error if CELLS_FILE can't be used, or can't be used with the other settings.
func (c *Config) checkCells() error {
	if c.CellsFile == "" {
		return nil
	}
	switch {
	case c.Postgres != "":
		return errors.New("POSTGRES_URL: is set, and so is CELLS_FILE, which has the URLs of several databases: takes one of them")
	case c.Owner != "":
		return errors.New("POSTGRES_OWNER_URL: is set, and so is CELLS_FILE, whose users own the tables")
	case c.MaxBytes == 0:
		return errors.New("QUEUE_MAX_BYTES: is not set, and must be with CELLS_FILE: what waits for one cell's database would fill RabbitMQ until it takes nothing for the others")
	}
	m, err := cells.ReadFile(c.CellsFile)
	if err == nil {
		err = requireURLs(m)
	}
	return err
}

// requireURLs returns an error unless the cells of a file have URLs.
func requireURLs(m *cells.Map) error {
	if err := m.RequireURLs(); err != nil {
		return fmt.Errorf("CELLS_FILE: %w", err)
	}
	return nil
}

// manyCells runs a unit for each cell of a file, and others as the file changes.
type manyCells struct {
	config  Config
	file    *cells.File
	options unitOptions
	log     *slog.Logger
	parts   *service.Parts
	units   map[string]*unit
}

// newCells returns the cells of a file. Metrics have a cell's name as the label cell.
func newCells(c Config, file *cells.File, o unitOptions, ready *service.Ready) *manyCells {
	many := &manyCells{config: c, file: file, options: o, log: o.log, parts: service.NewParts(ready, "cells", "cell"), units: make(map[string]*unit)}
	many.parts.Count(nil) // not ready
	return many
}

// unitOf returns the unit of a cell, which it makes only once, because its metrics can be registered only once.
func (many *manyCells) unitOf(cell cells.Cell) *unit {
	u := many.units[cell.Name]
	if u == nil {
		c, o := many.config, many.options
		c.Broker = broker.OfCell(c.Broker, cell.Name)
		o.log, o.home, o.ready = o.log.With("cell", cell.Name), &home{many.file.Map, cell.Name}, many.parts.Part(cell.Name)
		o.registry = prometheus.WrapRegistererWith(prometheus.Labels{"cell": cell.Name}, o.registry)
		u = newUnit(c, o)
		many.units[cell.Name] = u
	}
	u.config.Postgres = cell.URL
	return u
}

// runningCell is a unit that runs.
type runningCell struct {
	url  config.PostgresURL
	stop context.CancelFunc
	done chan struct{}
}

// run runs the cells until ctx is done. It returns how many frames had to be left in RabbitMQ.
func (many *manyCells) run(ctx, hard context.Context) (int, error) {
	running := make(map[string]*runningCell)
	var watching sync.WaitGroup
	watching.Go(func() { many.file.Watch(ctx, nil, many.log) })
	sorts := &sorter{urls: many.config.URLs, broker: many.config.Broker, file: many.file, log: many.log}
	watching.Go(func() { sorts.run(ctx) })
	defer watching.Wait()
	var left atomic.Int64
	var seen *cells.Map
	for {
		m := many.file.Map()
		if m != seen && requireURLs(m) != nil {
			many.log.Error("cells without URLs are not stored into", "error", requireURLs(m))
			seen = m
		}
		if m != seen {
			seen = m
			names := make([]string, 0, len(m.Cells()))
			for _, cell := range m.Cells() {
				names = append(names, cell.Name)
				old := running[cell.Name]
				if old != nil && old.url == cell.URL {
					continue
				}
				if old != nil { // another password, or another server
					old.stop()
					<-old.done
				}
				u := many.unitOf(cell)
				one, stop := context.WithCancel(ctx)
				r := &runningCell{cell.URL, stop, make(chan struct{})}
				running[cell.Name] = r
				go func() {
					defer close(r.done)
					left.Add(int64(u.serve(one, hard)))
				}()
			}
			for name, r := range running {
				if !slices.Contains(names, name) {
					r.stop()
					<-r.done
					delete(running, name)
					many.parts.Forget(name)
				}
			}
			many.parts.Count(names)
		}
		if retry.Sleep(ctx, cellsPeriod) != nil {
			break
		}
	}
	for r := range maps.Values(running) {
		r.stop()
		<-r.done
	}
	return int(left.Load()), nil
}

// serve runs a unit until ctx is done. A database that can't be worked with does not end the other cells: it is tried again.
func (u *unit) serve(ctx, hard context.Context) (left int) {
	for {
		n, err := u.run(ctx, hard)
		left += n
		if ctx.Err() != nil {
			return left
		}
		if err != nil {
			u.options.log.Error("the cell can't be stored into; trying again later", "error", err)
			u.postgres.fail("worker", err)
		}
		if retry.Sleep(ctx, cellPause) != nil {
			return left
		}
	}
}

// otherCell says that a segment came through the queue of a cell that it does not belong to.
type otherCell struct{ text string }

func (e otherCell) Error() string { return e.text }

// home is the cell whose queues and database a stream has. A nil home has all ids: there is one database.
type home struct {
	current func() *cells.Map
	cell    string
}

// newBase returns a fresh base that leads to the cell.
func (h *home) newBase() uuid.UUID {
	if h != nil {
		if m := h.current(); m.Index(h.cell) >= 0 {
			return m.BaseIn(m.Index(h.cell))
		}
	}
	return frame.NewBase()
}

// has reports whether the cell has an id, and returns the name of the cell that has it.
func (h *home) has(id uuid.UUID) (cell string, mine bool) {
	if h == nil {
		return "", true
	}
	m := h.current()
	cell = m.Cells()[m.Of(id)].Name
	return cell, cell == h.cell
}

// check returns an error if one of the segments belongs to another cell by the map as it is now. Then either the API that sent it or this worker has
// a map that is not the current one. To store it here could store it twice: a retry through another API would go to the other cell.
func (h *home) check(segments []segment) error {
	if h == nil {
		return nil
	}
	for i := range segments {
		if cell, mine := h.has(segments[i].Base); !mine {
			return otherCell{fmt.Sprintf("segment %s came through the queues of cell %s and belongs to cell %s by this worker's map %s: it waits until the worker's CELLS_FILE agrees with that of the API that sent it",
				segments[i].Base, h.cell, cell, h.current().Fingerprint())}
		}
	}
	return nil
}
