package publish

import "github.com/prometheus/client_golang/prometheus"

// Metrics tell how frames fare.
type Metrics struct {
	confirmSeconds prometheus.Histogram
	frameRecords   prometheus.Histogram
	connected      prometheus.Gauge
	blocked        prometheus.Gauge
}

// NewMetrics returns metrics that are registered with r.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
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
	r.MustRegister(m.confirmSeconds, m.frameRecords, m.connected, m.blocked)
	return m
}

// gaugeValue returns 1 for true and 0 for false.
func gaugeValue(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
