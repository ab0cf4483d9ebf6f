package protocol

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/klauspost/compress/gzip"

	"millrace/api/protocol/mapping"
	"millrace/internal/record"
	"millrace/internal/scan"
)

// Firehose is the protocol in which Amazon Data Firehose sends to an HTTP endpoint, by "Understand HTTP endpoint delivery request and response specifications" of its documentation.
// What CloudWatch Logs sends through it is taken apart.
type Firehose struct{}

// Name implements Protocol.
func (Firehose) Name() string { return "firehose" }

// Routes implements Protocol.
func (Firehose) Routes() []Route {
	return []Route{{Path: "/firehose", Methods: []string{http.MethodPost}}}
}

const (
	firehoseID         = "X-Amz-Firehose-Request-Id"
	firehoseAttributes = "X-Amz-Firehose-Common-Attributes"
)

// Open implements Protocol.
func (Firehose) Open(r Request) (Exchange, *Refusal) {
	asked, bad := readAsk(r)
	if bad != nil {
		return nil, bad
	}
	return &firehoseRequest{ask: asked}, nil
}

// Refuse implements Protocol. Firehose takes an answer of another form for a failure as well, but shows its users errorMessage.
func (Firehose) Refuse(dst []byte, r Request, why *Refusal) Answer {
	return refuseFirehose(dst, string(r.Header.Peek(firehoseID)), why)
}

// refuseFirehose returns the answer to the request with an id.
func refuseFirehose(dst []byte, id string, why *Refusal) Answer {
	dst = appendFirehose(dst, id)
	dst = append(dst, `,"errorMessage":`...)
	dst = append(dst, quote(why.Msg)...)
	return inJSON(why.Status, append(dst, '}'))
}

// appendFirehose appends an answer without its closing brace.
func appendFirehose(dst []byte, id string) []byte {
	dst = append(dst, `{"requestId":`...)
	dst = append(dst, quote(id)...)
	dst = append(dst, `,"timestamp":`...)
	return strconv.AppendInt(dst, time.Now().UnixMilli(), 10)
}

// The sources of a record, besides its own fields.
const (
	cloudwatchEvent  = mapping.First + iota // what CloudWatch Logs says of one event
	cloudwatchStream                        // what it says of those that come together
	firehoseCommon                          // what the stream's owner has all of its records say
)

var firehoseMapping = mapping.Config{Sources: []mapping.SourceConfig{{Name: "event"}, {Name: "cloudwatch"}, {Name: "attributes"}}}

// firehoseRequest is the Exchange of a request.
type firehoseRequest struct {
	ask ask
	id  string
	at  int64 // when the request was made, in Unix milliseconds; 0 if it does not say

	jsonAdder
	members, event []member
	decoded        []byte // the data of the current record
	source         bytes.Reader
	gzip           *gzip.Reader
	inflated       bytes.Buffer
	total          int // bytes of all data so far, when their compression is undone
}

// Expands implements Expander: data may be compressed.
func (*firehoseRequest) Expands() {}

// Key implements Keyed.
func (f *firehoseRequest) Key() (id string, at int64) { return f.id, f.at }

// Decode implements Exchange.
func (f *firehoseRequest) Decode(r Request, body []byte, records *record.List) *Refusal {
	f.id = string(r.Header.Peek(firehoseID))
	p := jsonParser{src: body}
	var all []byte
	ok := p.object(func(key, value []byte) bool {
		switch string(key) {
		case `"requestId"`:
			if value[0] == '"' && f.id == "" {
				f.id = string(f.text(value))
			}
		case `"timestamp"`:
			f.at, _ = strconv.ParseInt(string(value), 10, 64) // 0 for what is no number
		case `"records"`:
			all = value
		}
		return true
	})
	if !ok || !p.ended() || len(all) > 0 && all[0] != '[' {
		return UnreadableBody(&scan.Error{Reason: scan.Syntax, Offset: p.at, Msg: `the body is no object with an array records, as Firehose sends it`})
	}
	return f.ask.decode(records, func(records *record.List) *scan.Error {
		records.Begin()
		defer records.End()
		m := mapping.New(records, firehoseMapping, f.ask.keepText)
		defer m.Free()
		m.BeginShared()
		f.addCommon(m, r.Header.Peek(firehoseAttributes))
		m.EndShared()
		if len(all) > 0 {
			f.records(m, records, all, cap(body)-cap(all))
		}
		return nil
	})
}

// addCommon adds the attributes that a header says: {"commonAttributes":{"name":"value"}}.
func (f *firehoseRequest) addCommon(m *mapping.Mapper, header []byte) {
	outer, ok := appendMembers(nil, bytes.TrimSpace(header))
	attributes := find(outer, "commonAttributes")
	if !ok || attributes == nil {
		return
	}
	p := jsonParser{src: attributes.value}
	p.object(func(key, value []byte) bool {
		adder := jsonAdder{} // its strings must last for all records
		adder.add(m, firehoseCommon, adder.text(key), value)
		return true
	})
}

// records takes the elements of an array, which begins at an offset of the body.
func (f *firehoseRequest) records(m *mapping.Mapper, records *record.List, array []byte, offset int) {
	p := jsonParser{src: array, at: 1}
	if p.take(']') {
		return
	}
	for !records.Overflow {
		p.skipSpace()
		at := offset + p.at
		element, ok := p.value()
		if !ok {
			records.Refuse(scan.Syntax, at)
			return
		}
		f.record(m, records, element, at)
		if !p.take(',') {
			return
		}
	}
}

// record takes one record of Firehose's, which may hold several of ours, or none.
func (f *firehoseRequest) record(m *mapping.Mapper, records *record.List, element []byte, at int) {
	f.buf = f.buf[:0]
	members, ok := appendMembers(f.members[:0], element)
	f.members = members
	data := find(members, "data")
	if !ok || data == nil || data.value[0] != '"' {
		records.Refuse(scan.NotObject, at)
		return
	}
	text, err := f.decode(f.text(data.value))
	if err != nil {
		records.Refuse(scan.Syntax, at)
		return
	}
	if f.inflated.Cap() > mostInflated/2 {
		defer func() { f.inflated = bytes.Buffer{} }()
	}
	if len(text) > mostInflated {
		records.Refuse(scan.TooLarge, at)
		return
	}
	if f.total += len(text); records.Limits.TotalBytes > 0 && f.total > records.Limits.TotalBytes/2 {
		records.Overflow = true
		return
	}
	m.Limit(f.total)
	f.take(m, records, text, at)
}

// mostInflated is the most bytes of a record's data when its compression is undone. Firehose takes records of 1,000 KiB.
const mostInflated = 32 << 20

// decode returns what data says: base64, perhaps of gzip. It returns more than mostInflated bytes if there are more.
func (f *firehoseRequest) decode(data string) (text []byte, err error) {
	if f.decoded, err = base64.StdEncoding.AppendDecode(f.decoded[:0], bytesOf(data)); err != nil {
		return nil, err
	}
	if len(f.decoded) < 2 || f.decoded[0] != 0x1f || f.decoded[1] != 0x8b {
		return f.decoded, nil
	}
	f.source.Reset(f.decoded)
	if f.gzip == nil {
		f.gzip = new(gzip.Reader)
	}
	if err := f.gzip.Reset(&f.source); err != nil {
		return nil, err
	}
	f.inflated.Reset()
	if _, err := f.inflated.ReadFrom(io.LimitReader(f.gzip, mostInflated+1)); err != nil && !errors.Is(err, gzip.ErrHeader) { // padding behind the last member
		return nil, err
	}
	return f.inflated.Bytes(), nil
}

// take makes records of a text: of objects that follow one another, with or without white space between them, or of lines.
func (f *firehoseRequest) take(m *mapping.Mapper, records *record.List, text []byte, at int) {
	p := jsonParser{src: text}
	visit := func(key, value []byte) bool {
		f.members = append(f.members, member{key, value})
		return len(f.members) <= mapping.MostMembers
	}
	end := len(text) // objects end by then. Once one can't be read, they have a line each: a search for the end of each would go to the end of the text
	for !records.Overflow {
		p.src = text
		p.skipSpace()
		if p.at == len(text) {
			return
		}
		f.members, f.buf = f.members[:0], f.buf[:0]
		from := p.at
		if from >= end {
			end = lineEnd(text, from)
		}
		p.src = text[:end]
		if text[from] == '{' && p.object(visit) {
			f.object(m, records, text[from:p.at], at)
			continue
		}
		p.at = lineEnd(text, from)
		if text[from] == '{' {
			end = p.at
		}
		m.Begin()
		m.Message(stringOf(bytes.TrimRight(text[from:p.at], "\r")))
		m.End(at)
	}
}

// mostStreamMembers is more than a message of CloudWatch Logs has beside its events. What has more is an object like any other.
const mostStreamMembers = 32

// object takes an object, whose members are f.members.
func (f *firehoseRequest) object(m *mapping.Mapper, records *record.List, object []byte, at int) {
	if kind, events := find(f.members, "messageType"), find(f.members, "logEvents"); len(f.members) <= mostStreamMembers && kind != nil && events != nil && events.value[0] == '[' {
		switch string(kind.value) {
		case `"CONTROL_MESSAGE"`: // CloudWatch Logs asks whether the destination is there
			return
		case `"DATA_MESSAGE"`:
			f.events(m, records, events.value, at)
			return
		}
	}
	m.Begin()
	if !m.Fields(stringOf(object)) { // it holds something like NaN, or no text may be looked through
		for _, one := range f.members {
			f.add(m, mapping.Own, f.text(one.key), one.value)
		}
	}
	m.End(at)
}

// cloudwatchNames are the names that records have for what CloudWatch Logs says.
var cloudwatchNames = map[string]string{"logGroup": "log_group", "logStream": "log_stream", "owner": "owner", "subscriptionFilters": "subscription_filters", "id": "event_id"}

// events makes a record of each event of a message of CloudWatch Logs, whose members are f.members.
func (f *firehoseRequest) events(m *mapping.Mapper, records *record.List, array []byte, at int) {
	p := jsonParser{src: array, at: 1}
	if p.take(']') {
		return
	}
	kept := len(f.buf)
	for !records.Overflow {
		element, ok := p.value()
		if !ok {
			records.Refuse(scan.Syntax, at)
			return
		}
		f.buf = f.buf[:kept]
		f.event, ok = appendMembers(f.event[:0], element)
		switch {
		case m.Full(): // what the events share would be added to each for nothing
			records.Refuse(scan.TooLarge, at)
		case !ok:
			records.Refuse(scan.NotObject, at)
		default:
			m.Begin()
			f.addEvent(m)
			m.End(at)
		}
		if !p.take(',') {
			return
		}
	}
}

// addEvent adds what an event says, and what its message says of all events.
func (f *firehoseRequest) addEvent(m *mapping.Mapper) {
	if message := find(f.event, "message"); message != nil && message.value[0] == '"' {
		m.Message(f.text(message.value))
	} else if message != nil {
		f.add(m, mapping.Own, mapping.MessageField, message.value)
	}
	var nanos int64
	for _, one := range f.event {
		switch name := f.text(one.key); name {
		case "message":
		case "timestamp":
			if n, ok := unixNanos(one.value); ok && n > 0 {
				nanos = n
			} else {
				f.add(m, cloudwatchEvent, name, one.value)
			}
		case "id":
			f.add(m, cloudwatchEvent, cloudwatchNames[name], one.value)
		default:
			f.add(m, cloudwatchEvent, name, one.value)
		}
	}
	if nanos > 0 {
		m.Time(cloudwatchEvent, nanos)
	}
	for _, one := range f.members {
		name := f.text(one.key)
		if name != "messageType" && name != "logEvents" {
			if ours := cloudwatchNames[name]; ours != "" {
				name = ours
			}
			f.add(m, cloudwatchStream, name, one.value)
		}
	}
}

// Answer implements Exchange. Firehose takes nothing but 200 for success.
func (f *firehoseRequest) Answer(dst []byte, r Request, o Outcome) Answer {
	if o.Records.Accepted == 0 && o.Records.Rejected > 0 {
		return refuseFirehose(dst, f.id, Refuse(http.StatusBadRequest, "%v", &o.Records.Errors[0].Err))
	}
	return inJSON(http.StatusOK, append(appendFirehose(dst, f.id), '}'))
}
