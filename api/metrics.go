package api

import (
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/internal/scan"
)

// metrics are the service's own, beside those of the runtime.
type metrics struct {
	requests       *prometheus.CounterVec
	seconds        *prometheus.HistogramVec
	accepted       prometheus.Counter
	rejected       [scan.NumReasons]prometheus.Counter
	inflight       prometheus.GaugeFunc
	confirmSeconds prometheus.Histogram
	frameRecords   prometheus.Histogram
	connected      prometheus.Gauge
	blocked        prometheus.Gauge

	codes sync.Map // of route and code to prometheus.Counter: saves the label look-up on every request
}

type routeCode struct {
	route string
	code  int
}

func newMetrics(r *prometheus.Registry, inflight func() int64) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_api_requests_total",
			Help: "Requests answered.",
		}, []string{"route", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "millrace_api_request_seconds",
			Help:    "Time from a request's header to its answer, confirms included.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15), // 0.5 ms to 8 s
		}, []string{"route"}),
		accepted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_api_records_accepted_total",
			Help: "Records confirmed by RabbitMQ and answered 2xx.",
		}),
		inflight: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "millrace_api_inflight_bytes",
			Help: "Bytes of bodies under way.",
		}, func() float64 { return float64(inflight()) }),
		confirmSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "millrace_api_publish_confirm_seconds",
			Help:    "Time from a frame's publish to its confirm.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15),
		}),
		frameRecords: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "millrace_api_frame_records",
			Help:    "Records in a confirmed frame.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 13), // 1 to 4096
		}),
		connected: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_broker_connected",
			Help: "1 while there is a channel to publish on.",
		}),
		blocked: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_broker_blocked",
			Help: "1 while RabbitMQ blocks publishers.",
		}),
	}
	rejected := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_api_records_rejected_total",
		Help: "Records refused; a body refused whole counts once.",
	}, []string{"reason"})
	for reason := range scan.NumReasons {
		m.rejected[reason] = rejected.WithLabelValues(reason.String())
	}
	r.MustRegister(m.requests, m.seconds, m.accepted, rejected, m.inflight, m.confirmSeconds, m.frameRecords, m.connected, m.blocked)
	return m
}

func (m *metrics) count(route string, code int) {
	key := routeCode{route, code}
	c, ok := m.codes.Load(key)
	if !ok {
		c, _ = m.codes.LoadOrStore(key, m.requests.WithLabelValues(route, strconv.Itoa(code)))
	}
	c.(prometheus.Counter).Inc()
}
