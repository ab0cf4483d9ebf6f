package protocol

import (
	"bytes"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"millrace/api/protocol/mapping"
	"millrace/internal/record"
	"millrace/internal/scan"
)

// Datadog is the protocol in which Datadog's agent, and others that speak it, send logs over HTTP.
type Datadog struct{}

const datadogValidate = "/api/v1/validate"

// Name implements Protocol.
func (Datadog) Name() string { return "datadog" }

// Routes implements Protocol.
func (Datadog) Routes() []Route {
	return []Route{
		{Path: "/api/v2/logs", Methods: []string{http.MethodPost}},
		{Path: "/v1/input", Methods: []string{http.MethodPost}}, // its name before version 2
		{Path: datadogValidate, Methods: []string{http.MethodGet, http.MethodHead}},
	}
}

// Open implements Protocol.
func (Datadog) Open(r Request) (Exchange, *Refusal) {
	if string(r.Path) == datadogValidate {
		return datadogKey{}, nil
	}
	asked, bad := readAsk(r)
	if bad != nil {
		return nil, bad
	}
	return &datadogLogs{objectRecords: objectRecords{ask: asked, config: mapping.Config{Sources: datadogSources, Encoder: datadogTags{}}}}, nil
}

// Refuse implements Protocol. Datadog's status for a key that it does not know is 403.
func (Datadog) Refuse(dst []byte, _ Request, why *Refusal) Answer {
	status := why.Status
	if status == http.StatusUnauthorized {
		status = http.StatusForbidden
	}
	dst = append(dst, `{"errors":[{"status":"`...)
	dst = strconv.AppendInt(dst, int64(status), 10)
	dst = append(dst, `","title":`...)
	dst = append(dst, quote(http.StatusText(status))...)
	dst = append(dst, `,"detail":`...)
	dst = append(dst, quote(why.Msg)...)
	return inJSON(status, append(dst, `}]}`...))
}

// datadogKey answers the question whether a key is valid. Who has none does not get here.
type datadogKey struct{}

// Shim implements Shim.
func (datadogKey) Shim() {}

// Decode implements Exchange.
func (datadogKey) Decode(Request, []byte, *record.List) *Refusal { return nil }

// Answer implements Exchange.
func (datadogKey) Answer(dst []byte, _ Request, _ Outcome) Answer {
	return inJSON(http.StatusOK, append(dst, `{"valid":true}`...))
}

// The sources of a record, besides its own fields.
const (
	datadogAttributes = mapping.First + iota // members that Datadog does not know
	datadogEnvelope                          // those that it does
)

var datadogSources = []mapping.SourceConfig{{Name: "attributes"}, {Name: "datadog", Dotted: true}}

// datadogLogs is the Exchange of logs.
type datadogLogs struct {
	objectRecords
	header []byte // dd-message-timestamp
}

// Decode implements Exchange.
func (d *datadogLogs) Decode(r Request, body []byte, records *record.List) *Refusal {
	d.header = r.Header.Peek("Dd-Message-Timestamp")
	if isText(r.Header) && !beginsJSON(body) {
		return d.decodeLines(r, body, records)
	}
	return d.decode(body, records, func(m *mapping.Mapper) { d.share(m, r.Query) }, d.take)
}

// decodeLines takes a body of text, of which each line is a record.
func (d *datadogLogs) decodeLines(r Request, body []byte, records *record.List) *Refusal {
	return d.ask.decode(records, func(records *record.List) *scan.Error {
		records.Begin()
		defer records.End()
		m := mapping.New(records, d.config, d.ask.keepText)
		defer m.Free()
		d.share(m, r.Query)
		for lines := (lineReader{rest: body}); !records.Overflow; {
			line, at := lines.next()
			if line == nil {
				return nil
			}
			m.Begin()
			m.Message(stringOf(bytes.TrimRight(line, "\r")))
			d.addTime(m, nil)
			m.End(at)
		}
		return nil
	})
}

// share has all records share what a query string says of them.
func (d *datadogLogs) share(m *mapping.Mapper, query []byte) {
	shareQuery(m, query, []string{"hostname", "service", "ddsource", "ddtags"}, func(name, value string) { d.addKnown(m, name, value) })
}

// addKnown adds the text of a member that Datadog knows.
func (d *datadogLogs) addKnown(m *mapping.Mapper, name, value string) {
	switch name {
	case "status":
		m.String(datadogEnvelope, mapping.LevelField, strings.ToLower(value))
	case "hostname":
		m.String(datadogEnvelope, mapping.HostField, value)
	case "service":
		m.String(datadogEnvelope, mapping.ServiceField, value)
	case "ddsource":
		m.String(datadogEnvelope, "source", value)
	case "ddtags":
		m.Encoded(datadogEnvelope, "tags", value, 0)
	}
}

// datadogKnown are the members that are strings.
var datadogKnown = []string{"status", "hostname", "service", "ddsource", "ddtags"}

// take adds what an object says to the record.
func (d *datadogLogs) take(m *mapping.Mapper, members []member) {
	if message := find(members, mapping.MessageField); message != nil {
		d.addMessage(m, message.value)
	}
	for i, one := range members {
		name := d.text(one.key)
		switch {
		case name == mapping.MessageField, name == "timestamp":
		case slices.Contains(datadogKnown, name) && one.value[0] == '"':
		default:
			d.add(m, datadogAttributes, name, members[i].value)
		}
	}
	var stamp []byte
	if at := find(members, "timestamp"); at != nil {
		stamp = at.value
	}
	d.addTime(m, stamp)
	for _, name := range datadogKnown {
		if one := find(members, name); one != nil && one.value[0] == '"' {
			d.addKnown(m, name, d.text(one.value))
		}
	}
}

// addTime adds the time that a value says, which is JSON. Without one it is that of the request's header.
func (d *datadogLogs) addTime(m *mapping.Mapper, value []byte) {
	text := value
	if len(text) >= 2 && text[0] == '"' {
		text = text[1 : len(text)-1]
	}
	if len(value) == 0 || string(value) == "null" {
		text = d.header
	}
	nanos, ok := unixNanos(text)
	switch {
	case ok && nanos > 0:
		m.Time(datadogEnvelope, nanos)
	case !ok && len(value) > 0 && string(value) != "null":
		d.add(m, datadogEnvelope, mapping.TimeField, value)
	}
}

// Answer implements Exchange.
func (d *datadogLogs) Answer(dst []byte, r Request, o Outcome) Answer {
	if o.Records.Accepted == 0 && o.Records.Rejected > 0 {
		return Datadog{}.Refuse(dst, r, Refuse(http.StatusBadRequest, "%v", &o.Records.Errors[0].Err))
	}
	return inJSON(http.StatusAccepted, append(dst, `{}`...))
}

// datadogTags writes tags as an object: of env:prod,env:test,canary it makes {"env":["prod","test"],"canary":true}.
type datadogTags struct{}

// Encode implements mapping.Encoder.
func (datadogTags) Encode(w *record.Writer, key, value string, _ uint64) {
	values := make(map[string][]string)
	var names []string
	for _, tag := range strings.Split(value, ",") {
		tag = strings.TrimSpace(tag)
		name, text, hasText := strings.Cut(tag, ":")
		if name == "" {
			name, hasText = tag, false
		}
		if name == "" {
			continue
		}
		if _, there := values[name]; !there {
			names = append(names, name)
			values[name] = nil
		}
		if hasText {
			values[name] = append(values[name], text)
		}
	}
	w.Open(key)
	for _, name := range names {
		switch all := values[name]; len(all) {
		case 0:
			w.Bool(name, true)
		case 1:
			w.String(name, all[0])
		default:
			w.Array(name, func(a record.Elements) {
				for _, one := range all {
					a.String(one)
				}
			})
		}
	}
	w.Close()
}
