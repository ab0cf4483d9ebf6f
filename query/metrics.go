package query

import (
	"github.com/prometheus/client_golang/prometheus"

	"millrace/internal/archive"
	"millrace/internal/service"
)

// metrics are what /metrics shows of the query service.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	cache    *prometheus.CounterVec

	followers prometheus.Gauge
	missed    prometheus.Counter

	archiveFailures prometheus.Counter
	archiveAway     prometheus.Gauge
	matches         *prometheus.CounterVec
	shared          prometheus.Gauge
}

// newMetrics returns the metrics, registered. Each request under way holds one of places. ready knows whether the database can
// be used.
func newMetrics(places chan struct{}, ready *service.Ready) *metrics {
	m := &metrics{
		registry: service.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_query_requests_total",
			Help: "Requests answered, by route and HTTP status; 499 is a client that left before its answer.",
		}, []string{"route", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "millrace_query_seconds",
			Help: "Time from a request's header to the end of its answer.",
			// From an answer out of the cache to a query that is given up after QUERY_TIMEOUT.
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"route"}),
		cache: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_query_cache_total",
			Help: "Answers about a window by what the cache did for them.",
		}, []string{"result"}),
		followers: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_query_tail_followers",
			Help: "Clients that follow the tail.",
		}),
		missed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_query_tail_missed_total",
			Help: "Rows that followers of the tail were too slow for.",
		}),
	}
	for _, result := range []string{hit, miss, bypass} {
		m.cache.WithLabelValues(result) // a series from the start, so that a rate is right from the first hit
	}
	m.archiveFailures = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "millrace_query_archive_failures_total",
		Help: "Reads of the archive's files that failed: the file is away or damaged, or the store can't be reached.",
	})
	m.archiveAway = archive.NewAwayGauge()
	m.matches = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_search_matches_total",
		Help: "Records stored that a search of SEARCHES_FILE finds. Each query service counts all of them.",
	}, []string{"search"})
	m.shared = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "millrace_searches_shared",
		Help: "Searches of SEARCHES_FILE that share one reading of the new records; the others are evaluated one by one.",
	})
	inflight := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "millrace_query_inflight_requests",
		Help: "Queries under way, waiting ones included.",
	}, func() float64 { return float64(len(places)) })
	database := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "millrace_database_connected",
		Help: "1 while PostgreSQL answers and has the schema.",
	}, func() float64 { return ready.Holds(databaseCondition) })
	m.registry.MustRegister(m.requests, m.seconds, m.cache, inflight, m.followers, m.missed, m.archiveFailures, m.archiveAway, m.matches, m.shared, database)
	return m
}
