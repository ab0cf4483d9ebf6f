package api

import (
	"errors"
	"strconv"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/api/publish"
	"millrace/internal/keys"
	"millrace/internal/scan"
)

// metrics are the service's own, beside those of the runtime.
type metrics struct {
	other       *route // requests to paths that are not served, and those that can't be read
	accepted    prometheus.Counter
	rejected    [scan.NumReasons]prometheus.Counter
	unavailable *prometheus.CounterVec
}

// route counts the requests of one path. It keeps its series, so that requests need no look-up by labels.
type route struct {
	name     string
	requests *prometheus.CounterVec
	seconds  prometheus.Observer
	codes    [600]atomic.Pointer[prometheus.Counter] // by HTTP status
}

// newMetrics returns metrics that are registered with r, and sets those of each endpoint.
func newMetrics(r *prometheus.Registry, inflight *inflight, served *endpoints) *metrics {
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_api_requests_total",
		Help: "Requests answered.",
	}, []string{"route", "code"})
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "millrace_api_request_seconds",
		Help:    "Time from a request's header to its answer, confirms included.",
		Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15), // 0.5 ms to 8 s
	}, []string{"route"})
	m := &metrics{
		accepted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_api_records_accepted_total",
			Help: "Records confirmed by RabbitMQ and answered as accepted.",
		}),
		unavailable: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_api_unavailable_total",
			Help: "Requests answered 503, by reason.",
		}, []string{"reason"}),
	}
	rejected := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_api_records_rejected_total",
		Help: "Records refused; a body refused whole counts once.",
	}, []string{"reason"})
	for reason := range scan.NumReasons {
		m.rejected[reason] = rejected.WithLabelValues(reason.String())
	}
	for _, reason := range unavailableReasons { // at 0 from the start, so that the first one is seen as an increase
		m.unavailable.WithLabelValues(reason)
	}
	held := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "millrace_api_inflight_bytes",
		Help: "Bytes that requests under way hold.",
	}, func() float64 { return float64(inflight.used.Load()) })
	limit := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "millrace_api_inflight_limit_bytes",
		Help: "Most bytes that requests under way may hold (MAX_INFLIGHT_BYTES).",
	}, func() float64 { return float64(inflight.limit) })
	for _, e := range served.all() {
		e.metrics = &route{name: e.label, requests: requests, seconds: seconds.WithLabelValues(e.label)}
	}
	m.other = served.other.metrics
	r.MustRegister(requests, seconds, m.accepted, rejected, m.unavailable, held, limit)
	return m
}

// unavailableReasons are the reasons why requests are answered 503, as the metric names them.
var unavailableReasons = []string{"blocked", "no_broker", "confirm_timeout", "refused", "unroutable", "inflight", "connections", "stopping", "policy"}

// unavailableReason returns the one of unavailableReasons that err stands for.
func unavailableReason(err error) string {
	var harmful *policyError
	switch {
	case errors.As(err, &harmful):
		return "policy"
	case errors.Is(err, publish.ErrBlocked):
		return "blocked"
	case errors.Is(err, publish.ErrConfirmTimeout):
		return "confirm_timeout"
	case errors.Is(err, publish.ErrRefused):
		return "refused"
	case errors.Is(err, publish.ErrUnroutable):
		return "unroutable"
	case errors.Is(err, publish.ErrStopping):
		return "stopping"
	}
	return "no_broker" // there is no connection, or its queues can't be used
}

// count counts an answer with an HTTP status.
func (r *route) count(status int) {
	c := r.codes[status].Load()
	if c == nil {
		counter := r.requests.WithLabelValues(r.name, strconv.Itoa(status))
		c = &counter
		r.codes[status].Store(c)
	}
	(*c).Inc()
}

// keyUse collects the requests and records of each key that is in the file now.
type keyUse struct{ file *keys.File }

var (
	keyRequests = prometheus.NewDesc("millrace_api_key_requests_total", "Requests answered, by the name of their key.", []string{"key", "code"}, nil)
	keyRecords  = prometheus.NewDesc("millrace_api_key_records_total", "Records confirmed by RabbitMQ and answered as accepted, by the name of their key.", []string{"key"}, nil)
)

// Describe implements prometheus.Collector.
func (keyUse) Describe(to chan<- *prometheus.Desc) {
	to <- keyRequests
	to <- keyRecords
}

// Collect implements prometheus.Collector.
func (u keyUse) Collect(to chan<- prometheus.Metric) {
	for k := range u.file.Set().All() {
		requests, records := k.Use()
		for status, n := range requests {
			to <- prometheus.MustNewConstMetric(keyRequests, prometheus.CounterValue, float64(n), k.Name, strconv.Itoa(status))
		}
		to <- prometheus.MustNewConstMetric(keyRecords, prometheus.CounterValue, float64(records), k.Name)
	}
}
