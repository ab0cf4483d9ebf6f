package chaos

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/klauspost/compress/s2"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// A third of the clients are shippers: they send by another protocol than Millrace's own, with no Idempotency-Key, and send the same
// bytes again until they hear a success, as the shippers of these protocols do. That each record is stored once rests on the key
// that the API makes from the bytes.

// door is the protocol that a client sends by.
type door uint8

const (
	native door = iota
	otlpProtobuf
	otlpJSON
	lokiProtobuf
	lokiJSON
	bulk
	hec
	doors
)

// doorOf returns the protocol that a client sends by.
func doorOf(client int) door {
	if client >= poisoner || client%3 != 2 {
		return native
	}
	return otlpProtobuf + door(client/3%int(doors-otlpProtobuf))
}

// source is the field that shippers add to their records, as they do, and what it holds.
const source = "chaos"

// field returns the name of the field that holds the source.
func (d door) field() string {
	if d == bulk {
		return "_index"
	}
	return "source"
}

// refuses reports whether the protocol has records that are refused. In the others all are taken, and mended if need be.
func (d door) refuses() bool { return d == native || d == bulk || d == hec }

// want returns the status of the answer that acks a request.
func (d door) want() int {
	if d == lokiProtobuf || d == lokiJSON {
		return http.StatusNoContent
	}
	return http.StatusOK
}

// header sets what a shipper of the protocol sets.
func (d door) header(h http.Header) {
	switch d {
	case otlpProtobuf, lokiProtobuf:
		h.Set("Content-Type", "application/x-protobuf")
	case otlpJSON, lokiJSON:
		h.Set("Content-Type", "application/json")
	case bulk:
		h.Set("Content-Type", "application/x-ndjson")
		h.Set("X-Dedupe", "body")
	case hec:
		h.Set("X-Dedupe", "body")
	}
}

// doorTime returns the time that a shipper's record tells, and reports whether it tells one. The first record of a request tells one
// that a key may have: the API makes none from times that are all of another day.
func (m *maker) doorTime(client, number, record int) (at time.Time, has bool) {
	h := m.hash(client, number, record) * 0xff51afd7ed558ccd
	switch p := h & 127; {
	case record > 0 && p < 20:
		return at, false
	case record > 0 && p < 25:
		at = m.start.Add(-time.Duration(h>>8) % (365 * 24 * time.Hour))
	case m.doorsEvery > 0:
		at = m.start.Add(-2*time.Hour + time.Duration(number)*m.doorsEvery - time.Duration(h>>8)%(10*time.Second))
	default:
		at = m.start.Add(-time.Duration(h>>8) % (6 * time.Hour))
	}
	return at.Truncate(time.Millisecond), true
}

// newestTime returns the newest time that one of a shipper's records tells: the API dates the request by it.
func (m *maker) newestTime(client, number int, s shape) (newest time.Time) {
	for i := range s.records {
		if at, has := m.time(client, number, i); has && i != s.bad && at.After(newest) {
			newest = at
		}
	}
	return newest
}

// doorBody returns the path and the body of a shipper's request, without an encoding.
func (m *maker) doorBody(client, number int, s shape) (path string, body []byte, err error) {
	switch s.door {
	case otlpProtobuf:
		body, err = proto.Marshal(m.otlp(client, number, s))
		return "/v1/logs", body, err
	case otlpJSON:
		body, err = protojson.Marshal(m.otlp(client, number, s))
		return "/v1/logs", body, err
	case lokiProtobuf:
		return "/loki/api/v1/push", s2.EncodeSnappy(nil, m.lokiProtobuf(client, number, s)), nil
	case lokiJSON:
		body, err = json.Marshal(m.lokiJSON(client, number, s))
		return "/loki/api/v1/push", body, err
	case bulk:
		for i := range s.records {
			body = append(body, `{"create":{"_index":"`+source+`"}}`+"\n"...)
			if i == s.bad {
				body = append(body, "[no document]\n"...)
				continue
			}
			body = append(m.appendOwn(body, client, number, i), '\n')
		}
		return "/_bulk", body, nil
	case hec:
		for i := range s.records {
			if i == s.bad {
				body = append(body, `{"source":"chaos","no event":1}`...)
				continue
			}
			body = append(body, `{"source":"`+source+`","event":`...)
			body = append(m.appendOwn(body, client, number, i), '}', '\n')
		}
		return "/services/collector/event", body, nil
	}
	return "", nil, fmt.Errorf("no body for the protocol %d", s.door)
}

// appendOwn appends a record as the shipper has it: without what the protocol adds.
func (m *maker) appendOwn(b []byte, client, number, record int) []byte {
	b = m.appendFields(b, client, number, record, false)
	if at, has := m.time(client, number, record); has {
		b = fmt.Appendf(b, `, "time": %d`, at.UnixMilli())
	}
	return append(b, '}')
}

// otlp returns a request of OTLP: each record is a body with members, and the time beside it.
func (m *maker) otlp(client, number int, s shape) *logspb.LogsData {
	text := func(s string) *commonpb.AnyValue {
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: s}}
	}
	number64 := func(n int) *commonpb.AnyValue {
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: int64(n)}}
	}
	scope := &logspb.ScopeLogs{}
	for i := range s.records {
		record := &logspb.LogRecord{Body: &commonpb.AnyValue{Value: &commonpb.AnyValue_KvlistValue{KvlistValue: &commonpb.KeyValueList{Values: []*commonpb.KeyValue{
			{Key: "c", Value: number64(client)}, {Key: "i", Value: number64(i)}, {Key: "n", Value: number64(number)},
			{Key: "pad", Value: text(m.pad(client, number, i))},
		}}}}}
		if at, has := m.time(client, number, i); has {
			record.TimeUnixNano = uint64(at.UnixNano())
		}
		scope.LogRecords = append(scope.LogRecords, record)
	}
	return &logspb.LogsData{ResourceLogs: []*logspb.ResourceLogs{{
		Resource:  &resourcepb.Resource{Attributes: []*commonpb.KeyValue{{Key: "source", Value: text(source)}}},
		ScopeLogs: []*logspb.ScopeLogs{scope},
	}}}
}

// line returns a record as a line of Loki's, whose time stands beside it, and that time in nanoseconds, 0 for none.
func (m *maker) line(client, number, record int) (text string, ns int64) {
	if at, has := m.time(client, number, record); has {
		ns = at.UnixNano()
	}
	return string(append(m.appendFields(nil, client, number, record, false), '}')), ns
}

// lokiJSON returns a push of Loki in the form that JSON has.
func (m *maker) lokiJSON(client, number int, s shape) any {
	type stream struct {
		Stream map[string]string `json:"stream"`
		Values [][2]string       `json:"values"`
	}
	all := stream{Stream: map[string]string{"source": source}}
	for i := range s.records {
		text, ns := m.line(client, number, i)
		all.Values = append(all.Values, [2]string{strconv.FormatInt(ns, 10), text})
	}
	return map[string][]stream{"streams": {all}}
}

// lokiProtobuf returns a push of Loki in the form that protobuf has.
func (m *maker) lokiProtobuf(client, number int, s shape) []byte {
	stream := protowire.AppendTag(nil, 1, protowire.BytesType)
	stream = protowire.AppendString(stream, `{source="`+source+`"}`)
	for i := range s.records {
		text, ns := m.line(client, number, i)
		at := protowire.AppendTag(nil, 1, protowire.VarintType)
		at = protowire.AppendVarint(at, uint64(ns/1e9))
		at = protowire.AppendTag(at, 2, protowire.VarintType)
		at = protowire.AppendVarint(at, uint64(ns%1e9))
		entry := protowire.AppendTag(nil, 1, protowire.BytesType)
		entry = protowire.AppendBytes(entry, at)
		entry = protowire.AppendTag(entry, 2, protowire.BytesType)
		entry = protowire.AppendString(entry, text)
		stream = protowire.AppendTag(stream, 2, protowire.BytesType)
		stream = protowire.AppendBytes(stream, entry)
	}
	push := protowire.AppendTag(nil, 1, protowire.BytesType)
	return protowire.AppendBytes(push, stream)
}

// appendStoredTime appends the time of a shipper's record as it is stored: a number where it is the record's own, text where it stands
// beside the record.
func (d door) appendStoredTime(b []byte, at time.Time) []byte {
	b = append(b, `, "time": `...)
	if d == native || d == bulk || d == hec {
		return strconv.AppendInt(b, at.UnixMilli(), 10)
	}
	b = append(b, '"')
	b = at.UTC().AppendFormat(b, time.RFC3339Nano)
	return append(b, '"')
}

// settle checks an answer that acks a shipper's request. The ids are the API's own business.
func (d door) settle(s shape, a answer) (bad string) {
	switch d {
	case bulk:
		var got struct {
			Errors bool
			Items  []struct{ Create struct{ Status int } }
		}
		if err := json.Unmarshal(a.body, &got); err != nil {
			return err.Error()
		}
		if len(got.Items) != s.records || got.Errors != (s.bad >= 0) {
			return "other counts"
		}
		for i, item := range got.Items {
			want := http.StatusCreated
			if i == s.bad {
				want = http.StatusBadRequest
			}
			if item.Create.Status != want {
				return fmt.Sprintf("item %d has the status %d, want %d", i, item.Create.Status, want)
			}
		}
	case hec:
		if !bytes.Contains(a.body, []byte(`"code":0`)) {
			return "no success"
		}
	case otlpProtobuf:
		if len(a.body) > 0 {
			return "an answer that says more than success"
		}
	case otlpJSON:
		if string(a.body) != "{}" {
			return "an answer that says more than success"
		}
	}
	return ""
}
