package worker

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/internal/archive"
	"millrace/internal/eventtime"
	"millrace/internal/scan"
	"millrace/worker/partition"
)

// metrics are the worker's own. Rows are counted when the answer to a commit arrives. If a commit's answer is lost, its rows count as
// duplicates when it is tried again.
type metrics struct {
	rowsStored    prometheus.Counter
	rowsDuplicate prometheus.Counter
	deadLetters   *prometheus.CounterVec
	batchRows     prometheus.Histogram
	commitSeconds prometheus.Histogram
	lagSeconds    prometheus.Histogram
	redelivered   prometheus.Counter
	retries       *prometheus.CounterVec
	connected     prometheus.Gauge
	blocked       prometheus.Gauge
	database      prometheus.Gauge
	parked        prometheus.Gauge
	due           *prometheus.GaugeVec
	eventTimes    *prometheus.CounterVec
	eventDelays   *delayHistogram
}

// newMetrics registers the worker's metrics. At each scrape, ahead returns how far the partitions reach. interval is their length.
func newMetrics(r prometheus.Registerer, ahead func() time.Duration, interval time.Duration) *metrics {
	const namespace = "millrace"
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help})
		r.MustRegister(c)
		return c
	}
	counters := func(name, help, label string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, []string{label})
		r.MustRegister(c)
		return c
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: namespace, Name: name, Help: help, Buckets: buckets})
		r.MustRegister(h)
		return h
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help})
		r.MustRegister(g)
		return g
	}
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: namespace, Name: "partition_ahead_seconds",
		Help: "How far from now the partitions of logs reach without a gap.",
	}, func() float64 { return ahead().Seconds() }))
	gauge("partition_interval_seconds", "Length of a partition of logs (PARTITION_INTERVAL).").Set(interval.Seconds())
	m := &metrics{
		rowsStored:    counter("worker_rows_stored_total", "Rows committed to logs."),
		rowsDuplicate: counter("worker_rows_duplicate_total", "Rows not stored because the ledger had their segment."),
		deadLetters:   counters("worker_dead_letters_total", "Dead letters written, by reason.", "reason"),
		batchRows:     histogram("worker_batch_rows", "Rows of a batch as gathered, duplicates included.", prometheus.ExponentialBuckets(1, 4, 9)),
		commitSeconds: histogram("worker_commit_seconds", "Time from the start of a batch's transaction to its commit.", prometheus.ExponentialBuckets(0.001, 2, 15)),
		lagSeconds:    histogram("worker_lag_seconds", "Time from taking a record to its commit, one observation a segment.", prometheus.ExponentialBuckets(0.005, 2, 18)),
		redelivered:   counter("worker_redelivered_total", "Deliveries that RabbitMQ had made before."),
		retries:       counters("worker_retries_total", "Transactions tried again, by class of SQLSTATE, or connection when there was none.", "class"),
		connected:     gauge("broker_connected", "1 while every stream is connected to RabbitMQ."),
		blocked:       gauge("broker_blocked", "Connections that RabbitMQ has blocked."),
		database:      gauge("database_connected", "1 while no stream waits for PostgreSQL to answer or to take its rows."),
		parked:        gauge("worker_parked_messages", "Messages in the parked queue: no reader survives them."),
	}
	m.due = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: namespace, Name: "worker_partitions_due",
		Help: "Partitions that are old enough to be dropped and left to later rounds, because one drops at most two of a table; of the worker that leads.",
	}, []string{"table"})
	r.MustRegister(m.due)
	m.eventTimes = counters("event_time_total", "Rows committed to logs, by where their time comes from: the record's own, or that of its arrival because the record has none, "+
		"none that can be read, none with a zone, or one that is further ahead than TIME_AHEAD.", "result")
	for result := range eventtime.Results {
		m.eventTimes.WithLabelValues(result.String())
	}
	m.eventDelays = &delayHistogram{desc: prometheus.NewDesc(namespace+"_event_delay_seconds",
		"Time from a record's event, as the record tells it, to the record's arrival.", nil, nil)}
	r.MustRegister(m.eventDelays)
	for _, table := range []string{"logs", "ledger"} {
		m.due.WithLabelValues(table)
	}
	// From the start, so that the first dead letter is seen as an increase.
	for _, reason := range append([]string{reasonData, reasonUndecodable, reasonUnknownType, reasonKeyReused, reasonNoPartition, reasonNoArchive}, brokerReasons...) {
		m.deadLetters.WithLabelValues(reason)
	}
	for reason := range scan.NumReasons {
		m.deadLetters.WithLabelValues(reason.String())
	}
	m.retries.WithLabelValues(connectionLabel)
	return m
}

// newArchiveMetrics registers the metrics of copying to the archive.
func newArchiveMetrics(r prometheus.Registerer) *partition.ArchiveMetrics {
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "millrace", Name: name, Help: help + "; of the worker that leads."})
		r.MustRegister(g)
		return g
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "millrace", Name: name, Help: help})
		r.MustRegister(c)
		return c
	}
	away := archive.NewAwayGauge()
	r.MustRegister(away)
	return &partition.ArchiveMetrics{
		Away:          away,
		BehindSeconds: gauge("archive_behind_seconds", "Time since the oldest rows that are not in the archive should have been there"),
		BehindRows:    gauge("archive_behind_rows", "Rows of closed partitions that are due to be copied, as PostgreSQL estimates"),
		Files:         gauge("archive_files", "Files of the archive that searches read"),
		FileBytes:     gauge("archive_file_bytes", "Size of the files of the archive that searches read"),
		Failures:      counter("archive_failures_total", "Partitions that could not be copied to the archive; each is tried again a minute later."),
		Incomplete:    counter("archive_incomplete_total", "Partitions that were kept because files of the archive lacked rows that nothing had noted; each is copied again."),
		Rows:          counter("archive_rows_total", "Rows copied to the archive."),
		Bytes:         counter("archive_bytes_total", "Bytes of files written to the archive and verified."),
	}
}
