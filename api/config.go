package api

import (
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	"millrace/api/protocol"
	"millrace/internal/config"
	"millrace/internal/keys"
	"millrace/internal/service"
)

// Config is what the API needs to run; see internal/config for the tags.
type Config struct {
	config.Broker
	config.Access
	config.Process
	config.EventTime

	Addr               config.Address `env:"API_ADDR" envDefault:"127.0.0.1:8080" help:"Where the API listens."`
	MetricsAddr        config.Address `env:"API_METRICS_ADDR" help:"Where /health, /ready and /metrics of the API are answered as well, without TLS, for probes and scrapes that have no certificate; empty: at API_ADDR alone."`
	MaxBodyBytes       config.Bytes   `env:"MAX_BODY_BYTES" envDefault:"16MiB" min:"1KiB" max:"1GiB" help:"Largest body of a request, after decoding. NDJSON that is taken while it comes may be longer; for it this is the longest line."`
	IntakeBodyBytes    config.Bytes   `env:"INTAKE_BODY_BYTES" envDefault:"64MiB" min:"1KiB" max:"1GiB" help:"Largest body of a request in another protocol than Millrace's own, after decoding; it is never more than three quarters of MAX_INFLIGHT_BYTES."`
	MaxRecordBytes     config.Bytes   `env:"MAX_RECORD_BYTES" envDefault:"1MiB" min:"64B" max:"12MiB" help:"Largest record, without white space between its tokens and with its numbers written out; a frame must stay under the 16 MiB that RabbitMQ 4 takes."`
	MaxInflightBytes   config.Bytes   `env:"MAX_INFLIGHT_BYTES" envDefault:"128MiB" min:"1MiB" help:"Most bytes that requests under way hold at once, over all of them; beyond it they are answered 503. The whole process stays near twice as much, and 16 KiB for each of MAX_CONNECTIONS, unless GOMEMLIMIT says otherwise."`
	MaxConnections     int            `env:"MAX_CONNECTIONS" envDefault:"10000" min:"1" max:"1000000" help:"Most connections at once, of some 16 KiB each; one more takes the place of an idle one, first of those without a key, or is answered 503."`
	ShutdownDelay      time.Duration  `env:"SHUTDOWN_DELAY" envDefault:"500ms" min:"0s" max:"5m" help:"How long requests are still taken after /ready has begun to fail, for load balancers to notice; not part of SHUTDOWN_TIMEOUT."`
	ConfirmTimeout     time.Duration  `env:"CONFIRM_TIMEOUT" envDefault:"10s" min:"10ms" help:"Longest wait for RabbitMQ's confirms before a request is answered 503."`
	PublishConnections int            `env:"PUBLISH_CONNECTIONS" envDefault:"4" min:"1" max:"64" help:"Connections to publish on."`
	PublishChannels    int            `env:"PUBLISH_CHANNELS" envDefault:"1" min:"1" max:"64" help:"Channels on each of them."`
	FrameBytes         config.Bytes   `env:"FRAME_BYTES" envDefault:"64KiB" min:"1KiB" max:"2MiB" help:"Size at which a frame takes no more records."`
	DeriveKeys         config.Intakes `env:"DERIVE_KEYS" envDefault:"otlp,loki" help:"Protocols whose requests get a key made from the newest time and the hash of their body if they bring none, so that what a shipper sends again is stored once; others get one for dedupe=body or X-Dedupe: body. A body without times of its own gets none."`
	FrameCompression   string         `env:"FRAME_COMPRESSION" envDefault:"s2" oneof:"none s2 zstd" help:"How frames of 1 KiB and more are compressed on their way through RabbitMQ. Workers read all three."`
	ESVersion          config.Version `env:"ES_VERSION" envDefault:"8.19.0" help:"The version that clients of Elasticsearch are told; some send only to one that is as new as they are."`

	SyslogTCPAddr     config.Address  `env:"SYSLOG_TCP_ADDR" help:"Where syslog is taken over TCP; empty: nowhere."`
	SyslogTLSAddr     config.Address  `env:"SYSLOG_TLS_ADDR" help:"Where syslog is taken over TLS, with the certificate of TLS_CERT_FILE; empty: nowhere."`
	SyslogUDPAddr     config.Address  `env:"SYSLOG_UDP_ADDR" help:"Where syslog is taken over UDP; empty: nowhere."`
	SyslogAllow       config.Networks `env:"SYSLOG_ALLOW" help:"Networks from which syslog is taken; empty: from this machine alone, unless ALLOW_ANONYMOUS or, over TLS, TLS_CLIENT_CA_FILE lets others in."`
	SyslogZone        config.TimeZone `env:"SYSLOG_TZ" help:"Time zone of syslog's times that are written without one; empty: UTC."`
	GELFTCPAddr       config.Address  `env:"GELF_TCP_ADDR" help:"Where GELF is taken over TCP; empty: nowhere. Over HTTP it is taken at API_ADDR, in any case."`
	GELFTLSAddr       config.Address  `env:"GELF_TLS_ADDR" help:"Where GELF is taken over TLS, with the certificate of TLS_CERT_FILE; empty: nowhere."`
	GELFUDPAddr       config.Address  `env:"GELF_UDP_ADDR" help:"Where GELF is taken over UDP, in chunks or whole; empty: nowhere."`
	GELFAllow         config.Networks `env:"GELF_ALLOW" help:"Networks from which GELF is taken over sockets; empty: from this machine alone, unless ALLOW_ANONYMOUS or, over TLS, TLS_CLIENT_CA_FILE lets others in."`
	SocketConnections int             `env:"SOCKET_CONNECTIONS" envDefault:"10000" min:"1" max:"1000000" help:"Most connections at once of syslog and GELF, of some 16 KiB each; one more takes the place of one that has sent nothing yet, or is closed."`
	SocketBytes       config.Bytes    `env:"SOCKET_BYTES" envDefault:"32MiB" min:"1MiB" max:"64GiB" help:"Most bytes that connections and packets of syslog and GELF hold at once; beyond it connections are not read, and packets are dropped."`

	// CellsFile is the name of a file of several databases, the cells; empty: there is one. See package cells.
	CellsFile string

	// Log is where the service logs to; nil is standard error, as the settings say.
	Log *slog.Logger
	// OnListen, when set, is called once with the address that the API listens on.
	OnListen func(net.Addr)

	// PlainAnswers turns off early answers: fasthttp writes all answers, through package net. A benchmark compares both ways.
	PlainAnswers bool

	policyInterval time.Duration // how often the queues' policies are checked; zero is the default

	protocols []protocol.Protocol // nil means all; tests add some

	timeouts *timeouts // nil means the defaults; tests set shorter ones
}

// protocolsOrAll returns c.protocols, or all protocols if that is nil.
func (c *Config) protocolsOrAll() []protocol.Protocol {
	if c.protocols == nil {
		return protocol.All(protocol.Settings{ESVersion: string(c.ESVersion)})
	}
	return c.protocols
}

// checkDeriveKeys returns an error if DERIVE_KEYS names a protocol that the API does not speak, unless that is its default.
func (c *Config) checkDeriveKeys() error {
	known := []string{"otlp", "loki"}
	for _, p := range c.protocolsOrAll() {
		if !slices.Contains(known, p.Name()) {
			known = append(known, p.Name())
		}
	}
	for _, name := range c.DeriveKeys.Names() {
		if !slices.Contains(known, name) {
			return fmt.Errorf("DERIVE_KEYS: got %q, takes some of %s, or none", name, strings.Join(known, ", "))
		}
	}
	return nil
}

// bodyLimits returns the limits of bodies.
func (c *Config) bodyLimits() (limits [protocol.Limits]bodyLimit) {
	limits[protocol.MaxBodyBytes] = bodyLimit{int64(c.MaxBodyBytes), "MAX_BODY_BYTES"}
	limits[protocol.IntakeBodyBytes] = bodyLimit{int64(min(c.IntakeBodyBytes, c.MaxInflightBytes/4*3)), "INTAKE_BODY_BYTES"}
	return limits
}

// connectionBytes is the memory of an idle connection: its goroutine, and the buffers of its header and of its answers.
const connectionBytes = 16 << 10

// MemoryLimit returns the limit in bytes for debug.SetMemoryLimit, for a process that runs the API alone: twice
// MAX_INFLIGHT_BYTES, and what the connections hold; the same for SOCKET_BYTES where there are sockets. Without a limit the garbage collector lets garbage grow to as much as is
// in use, on top of the buffers that wait in pools. With 1,000 connections that send batches of 1 MiB, at the default
// settings, the process took 596 MiB without the limit and at most 427 MiB with it, at the same speed.
func (c *Config) MemoryLimit() int64 {
	limit := 2*int64(c.MaxInflightBytes) + int64(c.MaxConnections)*connectionBytes
	if len(c.sockets()) > 0 {
		limit += 2*int64(c.SocketBytes) + int64(c.SocketConnections)*connectionBytes
	}
	return limit
}

// Validate returns an error for the first setting that Run would refuse. Besides the bounds of each field it checks the files
// that the settings name. Run calls it before anything else.
func (c *Config) Validate() error {
	if err := config.Check(c); err != nil {
		return err
	}
	if len(c.URLs) == 0 {
		return config.Missing("RABBITMQ_URL")
	}
	if c.MaxInflightBytes < c.MaxBodyBytes {
		return fmt.Errorf("MAX_INFLIGHT_BYTES: got %s, takes at least MAX_BODY_BYTES (%s)", c.MaxInflightBytes, c.MaxBodyBytes)
	}
	if err := c.checkDeriveKeys(); err != nil {
		return err
	}
	if _, err := keys.Open(c.KeysFile); err != nil {
		return err
	}
	if err := c.checkCells(); err != nil {
		return err
	}
	if err := c.checkSockets(); err != nil {
		return err
	}
	if err := service.CheckMetricsAddress("API_METRICS_ADDR", c.MetricsAddr, c.Access); err != nil {
		return err
	}
	return service.CheckAddress("API_ADDR", c.Addr, c.Access)
}
