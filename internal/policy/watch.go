package policy

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/internal/config"
	"millrace/internal/retry"
)

const (
	// interval is the time between two looks at the queues. RabbitMQ's management shows a change within five
	// seconds.
	interval = 10 * time.Second

	// reminder is the time after which harm that stays is logged again.
	reminder = 5 * time.Minute
)

// Watch looks for harm to the queues while Run runs.
type Watch struct {
	broker   config.Broker
	log      *slog.Logger
	report   func([]Harm)
	gauge    *prometheus.GaugeVec
	canary   bool
	interval time.Duration

	found     string    // what was found last, as a sentence
	loggedAt  time.Time // when found was logged last
	mayShield bool      // false once the management API has refused to set the shields
	failing   bool      // the last look failed
}

// Options are what a Watch needs.
type Options struct {
	Broker   config.Broker
	Log      *slog.Logger
	Registry prometheus.Registerer

	// Report is called after each look that succeeded, with what harms the queues. It may be nil.
	Report func([]Harm)
	// Canary turns on the canary, for installations without RABBITMQ_MANAGEMENT_URL.
	Canary bool
	// Interval is the time between two looks at the queues; zero means ten seconds.
	Interval time.Duration
}

// New returns a watch over the queues of a broker and registers its metric.
func New(o Options) *Watch {
	w := &Watch{broker: o.Broker, log: o.Log, report: o.Report, canary: o.Canary, interval: o.Interval, mayShield: true}
	if w.interval == 0 {
		w.interval = interval
	}
	w.gauge = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "millrace_queue_policies_harmful",
		Help: "Queues that a policy on RabbitMQ harms, by what it does to them; unchecked is 1 while that can't be looked at.",
	}, []string{"reason"})
	for _, reason := range reasons {
		w.gauge.WithLabelValues(reason)
	}
	o.Registry.MustRegister(w.gauge)
	return w
}

// Run looks at the queues until ctx is done.
func (w *Watch) Run(ctx context.Context) {
	look := w.lookByManagement
	if len(w.broker.Management) == 0 {
		if !w.canary {
			return
		}
		c := newCanary(w.broker)
		defer c.close()
		look = c.look
	}
	for {
		found, err := look(ctx)
		if ctx.Err() != nil {
			return
		}
		w.tell(found, err)
		if retry.Sleep(ctx, w.interval) != nil {
			return
		}
	}
}

// lookByManagement returns what harms the queues. If they are not shielded, it shields them, unless the user
// may not set policies.
func (w *Watch) lookByManagement(ctx context.Context) ([]Harm, error) {
	m, err := newManagement(w.broker)
	if err != nil {
		return nil, err
	}
	found, shielded, err := m.look(ctx)
	if err != nil || shielded || !w.mayShield {
		return found, err
	}
	switch err := m.shield(ctx); {
	case hasStatus(err, http.StatusUnauthorized, http.StatusForbidden):
		w.mayShield = false
		w.log.Info("the queues are not shielded from policies: the user of RABBITMQ_MANAGEMENT_URL may not set one")
	case err != nil:
		w.log.Warn("the queues could not be shielded from policies", "error", err)
	}
	return found, nil
}

// tell passes on what a look has found. If the look failed, what was found before still counts.
func (w *Watch) tell(found []Harm, err error) {
	if err != nil {
		w.gauge.WithLabelValues(unchecked).Set(1)
		if !w.failing {
			w.log.Warn("the policies of the queues can't be looked at", "error", err)
		}
		w.failing = true
		return
	}
	w.failing = false
	counts := make(map[string]int)
	for _, h := range found {
		counts[h.Reason]++
	}
	for _, reason := range reasons {
		w.gauge.WithLabelValues(reason).Set(float64(counts[reason]))
	}
	sentence := Sentence(found)
	switch {
	case sentence != "" && (sentence != w.found || time.Since(w.loggedAt) >= reminder):
		w.loggedAt = time.Now()
		w.log.Error("RabbitMQ harms the queues", "how", sentence)
	case sentence == "" && w.found != "":
		w.log.Info("nothing on RabbitMQ harms the queues any more")
	}
	w.found = sentence
	if w.report != nil {
		w.report(found)
	}
}
