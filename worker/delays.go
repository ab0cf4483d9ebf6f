package worker

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// delayBounds are the upper bounds of the buckets of millrace_event_delay_seconds. A delay below zero is that of a clock that is ahead.
var delayBounds = [...]float64{0, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 6 * 3600, 24 * 3600, 7 * 24 * 3600, 30 * 24 * 3600}

// delayCounts counts delays by bucket; the last one is for those above all bounds. prometheus.Histogram would take one observation at a
// time, which costs as much for each record as all else that is done about its time.
type delayCounts struct {
	buckets [len(delayBounds) + 1]uint64
	seconds float64 // the sum of the delays
}

// observe counts a delay in microseconds.
func (c *delayCounts) observe(micros int64) {
	seconds := float64(micros) / 1e6
	c.seconds += seconds
	i := 0
	for i < len(delayBounds) && seconds > delayBounds[i] {
		i++
	}
	c.buckets[i]++
}

// add adds other to c.
func (c *delayCounts) add(other *delayCounts) {
	for i, n := range other.buckets {
		c.buckets[i] += n
	}
	c.seconds += other.seconds
}

// delayHistogram is the metric of the delays. It implements prometheus.Collector.
type delayHistogram struct {
	desc *prometheus.Desc

	mu     sync.Mutex
	counts delayCounts
}

// add counts delays.
func (h *delayHistogram) add(c *delayCounts) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.counts.add(c)
}

// Describe implements prometheus.Collector.
func (h *delayHistogram) Describe(descs chan<- *prometheus.Desc) { descs <- h.desc }

// Collect implements prometheus.Collector.
func (h *delayHistogram) Collect(metrics chan<- prometheus.Metric) {
	h.mu.Lock()
	c := h.counts
	h.mu.Unlock()
	cumulative := make(map[float64]uint64, len(delayBounds))
	var count uint64
	for i, bound := range delayBounds {
		count += c.buckets[i]
		cumulative[bound] = count
	}
	metrics <- prometheus.MustNewConstHistogram(h.desc, count+c.buckets[len(delayBounds)], c.seconds, cumulative)
}
