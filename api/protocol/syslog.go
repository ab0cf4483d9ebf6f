package protocol

import (
	"bytes"
	"encoding/hex"
	"iter"
	"net/netip"
	"strings"
	"sync"
	"time"

	"millrace/api/protocol/mapping"
	"millrace/internal/record"
	"millrace/internal/syslog"
)

// Syslog is the protocol of syslog's messages, of RFC 5424 and of those before it.
type Syslog struct {
	Zone *time.Location // of times that are written without a zone; nil means UTC
}

// Name implements Messages.
func (Syslog) Name() string { return "syslog" }

// Take implements Messages. Any text is a message.
func (s Syslog) Take(records *record.List, messages iter.Seq[Message]) {
	records.Limits.Repair = true
	records.Begin()
	defer records.End()
	d := syslogDecoders.Get().(*syslogDecoder)
	d.m = mapping.New(records, mapping.Config{Sources: syslogSources, Encoder: d}, false)
	defer d.free()
	for one := range messages {
		if text := bytes.TrimRight(one.Text, "\r\n\x00"); len(text) > 0 {
			d.message.Parse(stringOf(text), one.Came, s.Zone)
			d.setPeer(one.Peer)
			d.take()
		}
	}
}

// syslogHeader is the source of all that a message says beside its text.
const syslogHeader = mapping.First

var syslogSources = []mapping.SourceConfig{{Name: "header", Dotted: true}}

// syslogDecoder makes records of messages. It is the Encoder of what they have in the object syslog.
type syslogDecoder struct {
	m       *mapping.Mapper
	message syslog.Message

	peer     netip.Addr // of the message
	peerText string     // in the form of text
}

var syslogDecoders = sync.Pool{New: func() any { return new(syslogDecoder) }}

// free gives d back to the pool.
func (d *syslogDecoder) free() {
	d.m.Free()
	d.m = nil
	kept := d.message.Data[:cap(d.message.Data)]
	if len(kept) > maxKeptElements {
		kept = nil
	}
	for i := range kept { // they refer to messages
		params := kept[i].Params[:cap(kept[i].Params)]
		if len(params) > maxKeptElements {
			params = nil
		}
		clear(params)
		kept[i] = syslog.Element{Params: params[:0]}
	}
	d.message = syslog.Message{Data: kept[:0]}
	syslogDecoders.Put(d)
}

// maxKeptElements is how much structured data a decoder keeps room for.
const maxKeptElements = 64

// setPeer notes who sent the message.
func (d *syslogDecoder) setPeer(peer netip.Addr) {
	if peer != d.peer || d.peerText == "" {
		d.peer, d.peerText = peer, peer.String()
	}
}

// cookie is what stands before JSON in a text, by the "CEE Log Syntax".
const cookie = "@cee:"

// take makes the record of the message.
func (d *syslogDecoder) take() {
	m, message := d.m, &d.message
	m.Begin()
	if json, ok := strings.CutPrefix(message.Text, cookie); !ok {
		m.Message(message.Text)
	} else if !m.Fields(strings.TrimLeft(json, " ")) {
		m.String(mapping.Own, mapping.MessageField, message.Text)
	}
	if level := syslog.Level(message.Severity()); level != "" {
		m.String(syslogHeader, mapping.LevelField, level)
	}
	if message.Host != "" {
		m.String(syslogHeader, mapping.HostField, message.Host)
	}
	if message.App != "" {
		m.String(syslogHeader, mapping.ServiceField, message.App)
	}
	for _, e := range message.Data {
		if e.ID == traceElement {
			d.addTrace(e.Params)
		}
	}
	m.Encoded(syslogHeader, "syslog", "", 0)
	if isStamp(message.Time) {
		m.Time(syslogHeader, message.Time.UnixNano())
	}
	m.End(0)
}

// isStamp reports whether nanoseconds since 1970 can count a time, and it is after that year's beginning.
func isStamp(at time.Time) bool { return at.Year() >= 1970 && at.Year() < 2262 && at.UnixNano() > 0 }

// traceElement is the structured data in which OpenTelemetry's context comes.
const traceElement = "opentelemetry"

// addTrace adds the ids of OpenTelemetry's context to the record.
func (d *syslogDecoder) addTrace(params []syslog.Param) {
	for _, p := range params {
		n := 0
		switch p.Name {
		case mapping.TraceField:
			n = 32
		case mapping.SpanField:
			n = 16
		case "trace_flags":
			n = 2
		}
		if _, err := hex.DecodeString(p.Value); err == nil && n == len(p.Value) && n > 0 && (n == 2 || strings.Trim(p.Value, "0") != "") {
			d.m.String(syslogHeader, p.Name, strings.ToLower(p.Value))
		}
	}
}

// Encode implements mapping.Encoder: it writes the object syslog.
func (d *syslogDecoder) Encode(w *record.Writer, key, _ string, _ uint64) {
	w.Open(key)
	d.message.Write(w)
	w.String("peer", d.peerText)
	w.Close()
}
