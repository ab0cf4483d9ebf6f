package api

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"millrace/api/publish"
	"millrace/internal/broker"
	"millrace/internal/cells"
	"millrace/internal/policy"
	"millrace/internal/record"
	"millrace/internal/service"
)

// publisher is what the server hands records to: a publish.Publisher, or the publish.Cells of several databases.
type publisher interface {
	Usable() error
	Add(dst []publish.Ticket, records *record.List, key *uuid.UUID) ([]publish.Ticket, error)
	Run(ctx, flush context.Context)
}

// checkCells returns an error if CELLS_FILE can't be used, or if the queues have no limit.
func (c *Config) checkCells() error {
	if c.CellsFile == "" {
		return nil
	}
	if c.MaxBytes == 0 {
		return errors.New("QUEUE_MAX_BYTES: is not set, and must be with CELLS_FILE: what waits for one cell's database would fill RabbitMQ until it takes nothing for the others")
	}
	_, err := cells.ReadFile(c.CellsFile)
	return err
}

// harms is what was found to harm the queues, by cell. Any goroutine may use it.
type harms struct {
	mu     sync.Mutex
	byCell map[string][]policy.Harm
	report func([]policy.Harm)
}

// note notes what was found to harm the queues of a cell, and reports what harms those of all.
func (h *harms) note(cell string, found []policy.Harm) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.byCell == nil {
		h.byCell = make(map[string][]policy.Harm)
	}
	h.byCell[cell] = found
	var all []policy.Harm
	for _, cell := range slices.Sorted(maps.Keys(h.byCell)) {
		all = append(all, h.byCell[cell]...)
	}
	h.report(all)
}

// newCells returns the publishers of the cells that a file has. Metrics have a cell's name as the label cell.
func newCells(c Config, file *cells.File, log *slog.Logger, registry prometheus.Registerer, ready *service.Ready, found *harms) *publish.Cells {
	of := func(cell string) (Config, *slog.Logger, prometheus.Registerer) {
		cellConfig := c
		cellConfig.Broker = broker.OfCell(c.Broker, cell)
		return cellConfig, log.With("cell", cell), prometheus.WrapRegistererWith(prometheus.Labels{"cell": cell}, registry)
	}
	return publish.NewCells(publish.CellsOptions{
		File:  file,
		Ready: ready,
		Open: func(cell string, ready publish.Readiness, base func() uuid.UUID) *publish.Publisher {
			c, log, registry := of(cell)
			o := publisherOptions(c, log, publish.NewMetrics(registry), ready)
			n := len(file.Map().Cells())
			o.Connections = min(c.PublishConnections, max(2, (c.PublishConnections+n-1)/n)) // each cell has two, so that one may hang
			o.Name, o.Base, o.Probe = "millrace api "+cell, base, true
			return publish.New(o)
		},
		Watch: func(ctx context.Context, cell string) {
			c, log, registry := of(cell)
			policies := policy.New(policy.Options{Broker: c.Broker, Log: log, Registry: registry, Canary: true, Interval: c.policyInterval, Report: func(harm []policy.Harm) {
				found.note(cell, harm)
			}})
			policies.Run(ctx)
		},
	})
}
