package sockets

import (
	"github.com/prometheus/client_golang/prometheus"
)

// Reasons why what came is not taken.
const (
	Full        = "full"        // there was no room for a packet, or for the rest of a message
	Unconfirmed = "unconfirmed" // messages were not confirmed before the stop
	Address     = "address"     // the sender's address is not admitted
	Handshake   = "handshake"   // TLS failed, or took too long
	Connections = "connections" // there were too many connections
	Framing     = "framing"     // what came is no message of the protocol, or no chunk of one
	Slow        = "slow"        // a message did not come whole in time
	TooLong     = "too_long"    // a message was cut, or was passed over because its chunks were too many bytes
	Incomplete  = "incomplete"  // a message's chunks did not all come in time
)

// AllMetrics are the metrics of all sockets.
type AllMetrics struct {
	messages, dropped, refused, cut *prometheus.CounterVec
	connections                     *prometheus.GaugeVec
}

// NewMetrics returns metrics that are registered with r.
func NewMetrics(r prometheus.Registerer) *AllMetrics {
	m := &AllMetrics{
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_api_socket_messages_total",
			Help: "Messages that were read from sockets.",
		}, []string{"intake", "transport"}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_api_socket_dropped_total",
			Help: "Messages from sockets that came and are lost, by reason.",
		}, []string{"intake", "transport", "reason"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_api_socket_refused_total",
			Help: "Connections that were closed, and packets that were passed over, by reason.",
		}, []string{"intake", "transport", "reason"}),
		cut: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_api_socket_cut_total",
			Help: "Messages of which only the beginning was taken: they were longer than MAX_RECORD_BYTES, or their rest did not come.",
		}, []string{"intake", "transport", "reason"}),
		connections: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "millrace_api_socket_connections",
			Help: "Connections that are open.",
		}, []string{"intake", "transport"}),
	}
	r.MustRegister(m.messages, m.dropped, m.refused, m.cut, m.connections)
	return m
}

// Metrics are the metrics of one socket.
type Metrics struct {
	all               *AllMetrics
	intake, transport string

	Messages    prometheus.Counter
	connections prometheus.Gauge
}

// Of returns the metrics of a socket of an intake over a transport: tcp, tls or udp. Its series begin at 0.
func (a *AllMetrics) Of(intake, transport string) *Metrics {
	m := &Metrics{a, intake, transport, a.messages.WithLabelValues(intake, transport), a.connections.WithLabelValues(intake, transport)}
	m.Dropped(Unconfirmed)
	m.Refused(Address)
	m.Cut(TooLong)
	if transport == "udp" {
		m.Dropped(Full)
		return m
	}
	m.Refused(Connections)
	m.Cut(Slow)
	return m
}

// Dropped returns the counter of messages that came and are lost.
func (m *Metrics) Dropped(reason string) prometheus.Counter {
	return m.all.dropped.WithLabelValues(m.intake, m.transport, reason)
}

// Refused returns the counter of connections and packets that are not taken.
func (m *Metrics) Refused(reason string) prometheus.Counter {
	return m.all.refused.WithLabelValues(m.intake, m.transport, reason)
}

// Cut returns the counter of messages of which only the beginning is taken.
func (m *Metrics) Cut(reason string) prometheus.Counter {
	return m.all.cut.WithLabelValues(m.intake, m.transport, reason)
}
