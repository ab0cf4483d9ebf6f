package api

import (
	"errors"
	"strconv"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/api/publish"
	"millrace/internal/keys"
	"millrace/internal/record"
	"millrace/internal/scan"
)

// metrics are the service's own, beside those of the runtime.
type metrics struct {
	other       *route // requests to paths that are not served, and those that can't be read
	unavailable *prometheus.CounterVec
	intakeOf    func(name string) *intake // the counters of an intake; may be called until the service serves
}

// route counts the requests of one path. It keeps its series, so that requests need no look-up by labels.
type route struct {
	name     string
	intake   *intake // nil for a path to which no records come
	requests *prometheus.CounterVec
	seconds  prometheus.Observer
	codes    [600]atomic.Pointer[prometheus.Counter] // by HTTP status
}

// intake counts what comes in one protocol. It keeps its series, as route does.
type intake struct {
	name     string
	bytes    prometheus.Counter
	accepted prometheus.Counter
	rejected [scan.NumReasons]prometheus.Counter
	repaired [scan.NumReasons]prometheus.Counter
}

// countRefused counts a body that was refused whole, if what it holds was the reason.
func (i *intake) countRefused(bad *refusal) {
	if bad.Body != nil {
		i.rejected[bad.Body.Reason].Inc()
	}
}

// countRecords counts the refused records of a body that was taken, and the repaired ones.
func (i *intake) countRecords(records *record.List) {
	if records.Rejected > 0 {
		for reason, n := range records.RejectedBy {
			if n > 0 {
				i.rejected[reason].Add(float64(n))
			}
		}
	}
	if records.Repaired > 0 {
		for reason := range scan.NumReasons {
			if n := records.RepairedBy(reason); n > 0 {
				i.repaired[reason].Add(float64(n))
			}
		}
	}
}

// newMetrics returns metrics that are registered with r, and sets those of each endpoint.
func newMetrics(r *prometheus.Registry, inflight *inflight, served *endpoints) *metrics {
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_api_requests_total",
		Help: "Requests answered.",
	}, []string{"route", "code", "intake"})
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "millrace_api_request_seconds",
		Help:    "Time from a request's header to its answer, confirms included.",
		Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15), // 0.5 ms to 8 s
	}, []string{"route"})
	m := &metrics{
		unavailable: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_api_unavailable_total",
			Help: "Requests answered 503, and tries to publish what came without a request, by reason.",
		}, []string{"reason"}),
	}
	bodies := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_api_body_bytes_total",
		Help: "Bytes of the bodies whose records were taken, decoded.",
	}, []string{"intake"})
	accepted := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_api_records_accepted_total",
		Help: "Records confirmed by RabbitMQ and answered as accepted.",
	}, []string{"intake"})
	rejected := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_api_records_rejected_total",
		Help: "Records refused; a body refused whole counts once.",
	}, []string{"reason", "intake"})
	repaired := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_api_records_repaired_total",
		Help: "Records that could not be stored as they came, and were changed; the member _repaired says where.",
	}, []string{"reason", "intake"})
	intakes := make(map[string]*intake)
	intakeOf := func(name string) *intake {
		i := intakes[name]
		if i == nil {
			i = &intake{name: name, bytes: bodies.WithLabelValues(name), accepted: accepted.WithLabelValues(name)}
			for reason := range scan.NumReasons {
				i.rejected[reason] = rejected.WithLabelValues(reason.String(), name)
				if reason.Repairable() {
					i.repaired[reason] = repaired.WithLabelValues(reason.String(), name)
				}
			}
			intakes[name] = i
		}
		return i
	}
	m.intakeOf = intakeOf
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
		if e.records {
			e.metrics.intake = intakeOf(e.protocol.Name())
		}
	}
	m.other = served.other.metrics
	r.MustRegister(requests, seconds, bodies, accepted, rejected, repaired, m.unavailable, held, limit)
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
	case errors.Is(err, publish.ErrCellDown):
		return "cell"
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
		name := ""
		if r.intake != nil {
			name = r.intake.name
		}
		counter := r.requests.WithLabelValues(r.name, strconv.Itoa(status), name)
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
