package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"

	"millrace/api/protocol"
	"millrace/api/publish"
	"millrace/api/sockets"
	"millrace/internal/config"
	"millrace/internal/record"
	"millrace/internal/retry"
	"millrace/internal/scan"
	"millrace/internal/service"
)

// socketSink hands the records of an intake without requests to the publisher. It is a sockets.Sink.
type socketSink struct {
	*server
	intake *intake
}

// NewRecords implements sockets.Sink.
func (k *socketSink) NewRecords() *record.List { return k.newRecords() }

// FreeRecords implements sockets.Sink.
func (k *socketSink) FreeRecords(records *record.List) { k.freeRecords(records) }

// Publish implements sockets.Sink. Pieces of which RabbitMQ does not say that it has them are published again, so that none is lost. If it had one of them after all, its records
// are stored twice.
func (k *socketSink) Publish(ctx context.Context, records *record.List, bytes int) error {
	k.intake.countRecords(records)
	k.intake.bytes.Add(float64(bytes))
	left := record.List{Body: scan.Body{NDJSON: records.NDJSON, Pieces: records.Pieces}}
	var tickets []publish.Ticket
	for {
		err := k.usable()
		if err == nil {
			tickets, err = k.publisher.Add(tickets[:0], &left, nil)
		}
		if err == nil {
			left.Pieces, err = k.settle(ctx, tickets, left.Pieces)
		}
		if err == nil {
			return nil
		}
		k.metrics.unavailable.WithLabelValues(unavailableReason(err)).Inc()
		if retry.Sleep(ctx, retryUpload) != nil {
			return err
		}
	}
}

// settle waits for the frames of tickets, which are those of pieces. It returns the pieces that are not confirmed, and why one of them is not. It does not wait longer than ctx lasts.
func (k *socketSink) settle(ctx context.Context, tickets []publish.Ticket, pieces []scan.Piece) (left []scan.Piece, err error) {
	for i, t := range tickets {
		failure := publish.ErrStopping
		select {
		case <-t.Frame.Done():
			failure = t.Frame.Err()
		case <-ctx.Done():
		}
		if failure != nil {
			left, err = append(left, pieces[i]), failure
		} else {
			k.intake.accepted.Add(float64(t.Records))
		}
	}
	return left, err
}

// socket is an address at which messages are taken, as the settings have it.
type socket struct {
	setting   string // the name of the address's setting
	addr      config.Address
	transport string // tcp, tls or udp
	protocol  protocol.Messages
	networks  config.Networks
	allow     string // the name of the setting of networks
	framer    func(most int) sockets.Framer
	unpacker  func() sockets.Unpacker
	chunked   bool // messages may come in several packets, of GELF
	workers   int
}

// sockets returns the sockets that are asked for.
func (c *Config) sockets() (asked []socket) {
	syslog := protocol.Syslog{Zone: c.SyslogZone.Location()}
	for _, s := range []socket{
		{setting: "SYSLOG_TCP_ADDR", addr: c.SyslogTCPAddr, transport: "tcp", protocol: syslog, networks: c.SyslogAllow, allow: "SYSLOG_ALLOW", framer: sockets.NewSyslogFramer},
		{setting: "SYSLOG_TLS_ADDR", addr: c.SyslogTLSAddr, transport: "tls", protocol: syslog, networks: c.SyslogAllow, allow: "SYSLOG_ALLOW", framer: sockets.NewSyslogFramer},
		{setting: "SYSLOG_UDP_ADDR", addr: c.SyslogUDPAddr, transport: "udp", protocol: syslog, networks: c.SyslogAllow, allow: "SYSLOG_ALLOW", unpacker: sockets.NewSyslogUnpacker, workers: 2},
		{setting: "GELF_TCP_ADDR", addr: c.GELFTCPAddr, transport: "tcp", protocol: protocol.GELF{}, networks: c.GELFAllow, allow: "GELF_ALLOW", framer: sockets.NewGELFFramer},
		{setting: "GELF_TLS_ADDR", addr: c.GELFTLSAddr, transport: "tls", protocol: protocol.GELF{}, networks: c.GELFAllow, allow: "GELF_ALLOW", framer: sockets.NewGELFFramer},
		{setting: "GELF_UDP_ADDR", addr: c.GELFUDPAddr, transport: "udp", protocol: protocol.GELF{}, networks: c.GELFAllow, allow: "GELF_ALLOW", chunked: true, workers: 2},
	} {
		if s.addr != "" {
			asked = append(asked, s)
		}
	}
	return asked
}

// checkSockets returns an error for the first socket that could not be opened, as far as that shows without opening it.
func (c *Config) checkSockets() error {
	for _, s := range c.sockets() {
		hasCertificates := s.transport == "tls" && c.TLSClientCA != ""
		switch {
		case s.transport == "tls" && c.TLSCertFile == "":
			return fmt.Errorf("%s needs TLS_CERT_FILE and TLS_KEY_FILE", s.setting)
		case !s.addr.Loopback() && s.networks == "" && !c.AllowAnonymous && !hasCertificates:
			others := ""
			if s.transport == "tls" {
				others = ", TLS_CLIENT_CA_FILE"
			}
			return fmt.Errorf("%s: %s is not a loopback address, and all who reach it could send: set %s%s, or ALLOW_ANONYMOUS=true", s.setting, s.addr, s.allow, others)
		}
	}
	return nil
}

// openSockets are the sockets while they are open.
type openSockets struct {
	runs []func(ctx, flush context.Context) error
	stop []func() error // closes those that do not run yet
}

// openSockets opens the sockets that c asks for. They take messages once run is called.
func (s *server) openSockets(c Config, m *sockets.AllMetrics, log *slog.Logger) (open *openSockets, err error) {
	open = new(openSockets)
	asked := c.sockets()
	if len(asked) == 0 {
		return open, nil
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, open.close())
		}
	}()
	var tlsConfig *tls.Config
	if tlsConfig, err = service.TLSConfig(c.Access); err != nil {
		return open, err
	}
	packetSockets := 0
	for _, one := range asked {
		if one.transport == "udp" {
			packetSockets++
		}
	}
	budget := sockets.NewBudget(int64(c.SocketBytes))
	places := service.NewConnections(service.WithinDescriptors("SOCKET_CONNECTIONS", c.SocketConnections, log))
	for _, one := range asked {
		o := sockets.Options{
			Protocol:     one.protocol,
			Admission:    sockets.Admission{Networks: one.networks.Prefixes(), Others: c.AllowAnonymous},
			Sink:         &socketSink{s, s.metrics.intakeOf(one.protocol.Name())},
			Budget:       budget,
			Metrics:      m.Of(one.protocol.Name(), one.transport),
			Log:          log.With("intake", one.protocol.Name(), "transport", one.transport),
			MessageBytes: int(min(c.MaxRecordBytes, c.SocketBytes/8)),
			Times:        sockets.DefaultTimes,
			Framer:       one.framer,
			Places:       places,
			QueueBytes:   int(c.SocketBytes) / 4 / max(1, packetSockets),
			Unpacker:     one.unpacker,
			Workers:      one.workers,
		}
		if one.chunked {
			o.Chunks = sockets.NewChunks(o.MessageBytes, int(c.SocketBytes/8), o.Metrics)
			o.Unpacker = o.Chunks.NewUnpacker
		}
		switch one.transport {
		case "udp":
			conn, err := net.ListenPacket("udp", string(one.addr))
			if err != nil {
				return open, fmt.Errorf("%s: %w", one.setting, err)
			}
			open.runs = append(open.runs, sockets.NewDatagrams(conn.(*net.UDPConn), o).Run)
			open.stop = append(open.stop, conn.Close)
		default:
			ln, err := net.Listen("tcp", string(one.addr))
			if err != nil {
				return open, fmt.Errorf("%s: %w", one.setting, err)
			}
			if one.transport == "tls" {
				o.TLS = tlsConfig
				o.Admission.Others = o.Admission.Others || c.TLSClientCA != ""
			}
			open.runs = append(open.runs, sockets.NewStream(ln, o).Run)
			open.stop = append(open.stop, ln.Close)
		}
		log.Info("listening", "intake", one.protocol.Name(), "transport", one.transport, "address", string(one.addr))
	}
	return open, nil
}

// close closes sockets that do not run.
func (o *openSockets) close() (err error) {
	for _, stop := range o.stop {
		err = errors.Join(err, stop())
	}
	return err
}

// run takes messages until ctx is done, and returns when what was read is published, or flush has ended. If one of the sockets fails, fail is called.
func (o *openSockets) run(ctx, flush context.Context, fail func(error)) {
	var running sync.WaitGroup
	for _, run := range o.runs {
		running.Go(func() {
			if err := run(ctx, flush); err != nil {
				fail(err)
			}
		})
	}
	running.Wait()
}
