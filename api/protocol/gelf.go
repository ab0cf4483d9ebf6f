package protocol

import (
	"bytes"
	"iter"
	"net/http"
	"net/netip"
	"strings"

	"millrace/api/protocol/mapping"
	"millrace/internal/record"
	"millrace/internal/scan"
	"millrace/internal/syslog"
)

// GELF is Graylog's Extended Log Format: over HTTP it is a Protocol, over sockets it is Messages.
type GELF struct{}

// Name implements Protocol and Messages.
func (GELF) Name() string { return "gelf" }

// Routes implements Protocol.
func (GELF) Routes() []Route {
	return []Route{{Path: "/gelf", Methods: []string{http.MethodPost}}}
}

// Open implements Protocol.
func (GELF) Open(r Request) (Exchange, *Refusal) {
	asked, bad := readAsk(r)
	if bad != nil {
		return nil, bad
	}
	return &gelfMessages{objectRecords: objectRecords{ask: asked, config: mapping.Config{Sources: gelfSources}}}, nil
}

// Take implements Messages. A message that begins as an object and can't be read, because it was cut or is broken, is kept whole, as text: its sender can't be told.
// One that does not begin as an object is refused.
func (GELF) Take(records *record.List, messages iter.Seq[Message]) {
	records.Limits.Repair = true
	records.Begin()
	defer records.End()
	g := &gelfMessages{objectRecords: objectRecords{config: mapping.Config{Sources: gelfSources}}}
	g.keep = g.takeText
	m := mapping.New(records, g.config, false)
	defer m.Free()
	for one := range messages {
		text := bytes.Trim(one.Text, " \t\r\n\x00")
		if len(text) == 0 {
			continue
		}
		if text[0] != '{' && text[0] != '[' {
			records.Refuse(scan.Syntax, 0)
			continue
		}
		g.setPeer(one.Peer)
		g.each(m, text, records, g.take)
	}
}

// Refuse implements Protocol.
func (GELF) Refuse(dst []byte, r Request, why *Refusal) Answer { return Native{}.Refuse(dst, r, why) }

// The sources of a record, besides its text.
const (
	gelfAdditional = mapping.First + iota // fields of the sender's own
	gelfEnvelope                          // what the format has names for
)

var gelfSources = []mapping.SourceConfig{{Name: "additional", Dotted: true}, {Name: "gelf", Dotted: true}}

// gelfMessages is the Exchange of messages: mostly one, but several are taken as well.
type gelfMessages struct {
	objectRecords
	peer     netip.Addr // who sent the message over a socket
	peerText string     // in the form of text; "" over HTTP
}

// setPeer notes who sent the message.
func (g *gelfMessages) setPeer(peer netip.Addr) {
	if peer != g.peer || g.peerText == "" {
		g.peer, g.peerText = peer, peer.String()
	}
}

// addPeer adds who sent the message, if that is known.
func (g *gelfMessages) addPeer(m *mapping.Mapper) {
	if g.peerText != "" {
		m.String(gelfEnvelope, "gelf.peer", g.peerText)
	}
}

// takeText makes the record of a text that is no message.
func (g *gelfMessages) takeText(m *mapping.Mapper, text []byte) {
	m.String(mapping.Own, mapping.MessageField, stringOf(text))
	g.addPeer(m)
}

// Decode implements Exchange.
func (g *gelfMessages) Decode(_ Request, body []byte, records *record.List) *Refusal {
	return g.decode(body, records, func(*mapping.Mapper) {}, g.take)
}

// take adds what a message says to the record.
func (g *gelfMessages) take(m *mapping.Mapper, members []member) {
	if short := find(members, "short_message"); short != nil {
		g.addMessage(m, short.value)
	}
	for _, one := range members {
		switch name := g.text(one.key); {
		case name == "_id": // the format forbids it, and some send it
			g.add(m, gelfAdditional, "gelf_id", one.value)
		case len(name) > 1 && name[0] == '_':
			g.add(m, gelfAdditional, name[1:], one.value)
		}
	}
	g.addTime(m, find(members, "timestamp"))
	for _, one := range members {
		name := g.text(one.key)
		switch {
		case name == "short_message", name == "timestamp", name == "version" && strings.HasPrefix(string(one.value), `"1.`), len(name) > 1 && name[0] == '_', string(one.value) == "null":
		case name == "host":
			g.add(m, gelfEnvelope, mapping.HostField, one.value)
		case name == mapping.LevelField && len(one.value) == 1 && syslog.Level(int(one.value[0]-'0')) != "":
			m.String(gelfEnvelope, mapping.LevelField, syslog.Level(int(one.value[0]-'0')))
		default:
			g.add(m, gelfEnvelope, name, one.value)
		}
	}
	g.addPeer(m)
}

// addTime adds the time of a message, in seconds. One that is no number stays what it is, for whoever can read it.
func (g *gelfMessages) addTime(m *mapping.Mapper, at *member) {
	if at == nil || string(at.value) == "null" {
		return
	}
	text := at.value
	if text[0] == '"' {
		text = text[1 : len(text)-1]
	}
	if nanos, ok := unixNanos(text); !ok {
		g.add(m, gelfEnvelope, mapping.TimeField, at.value)
	} else if nanos > 0 {
		m.Time(gelfEnvelope, nanos)
	}
}

// Answer implements Exchange.
func (*gelfMessages) Answer(dst []byte, r Request, o Outcome) Answer {
	if o.Records.Accepted == 0 && o.Records.Rejected > 0 {
		return GELF{}.Refuse(dst, r, Refuse(http.StatusBadRequest, "%v", &o.Records.Errors[0].Err))
	}
	return Answer{Status: http.StatusAccepted}
}
