package hotfile

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// Reloads are the metrics of a file that is read again: how often it could not be taken, and whether it was taken the last time. Any number of
// goroutines may use them at once.
type Reloads struct {
	errors  prometheus.Counter
	success prometheus.Gauge
}

// NewReloads returns the metrics by their names and helps.
func NewReloads(errors prometheus.CounterOpts, success prometheus.GaugeOpts) *Reloads {
	return &Reloads{prometheus.NewCounter(errors), prometheus.NewGauge(success)}
}

// Note counts a file that was taken, or, with an error, one that was not.
func (r *Reloads) Note(err error) {
	if err != nil {
		r.errors.Inc()
		r.success.Set(0)
		return
	}
	r.success.Set(1)
}

// Register adds the metrics to a service's.
func (r *Reloads) Register(to prometheus.Registerer) error {
	return errors.Join(to.Register(r.errors), to.Register(r.success))
}
