package protocol

import (
	"net/http"
	"strings"

	"millrace/api/protocol/mapping"
	"millrace/internal/record"
	"millrace/internal/syslog"
)

// GELF is Graylog's Extended Log Format over HTTP.
type GELF struct{}

// Name implements Protocol.
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
	return &gelfMessages{objectRecords{ask: asked, config: mapping.Config{Sources: gelfSources}}}, nil
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
type gelfMessages struct{ objectRecords }

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
