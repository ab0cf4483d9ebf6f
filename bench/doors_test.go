package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"millrace/api/protocol"
	"millrace/bench/ceiling"
	"millrace/bench/load"
	"millrace/internal/record"
	"millrace/internal/scan"
)

// door is a way to send records by another protocol than Millrace's own.
type door struct {
	name, path, content string

	// body returns a body with the records of some lines of NDJSON.
	body func(b *testing.B, ndjson []byte) []byte
}

var doors = []door{
	{"otlp-protobuf", "/v1/logs", "application/x-protobuf", func(b *testing.B, ndjson []byte) []byte { return must(proto.Marshal(otlpOf(b, ndjson)))(b) }},
	{"otlp-json", "/v1/logs", "application/json", func(b *testing.B, ndjson []byte) []byte { return must(protojson.Marshal(otlpOf(b, ndjson)))(b) }},
	{"bulk", "/_bulk", "application/x-ndjson", bulkOf},
	{"loki-protobuf", "/loki/api/v1/push", "application/x-protobuf", lokiProtobufOf},
	{"loki-json", "/loki/api/v1/push", "application/json", lokiJSONOf},
	{"hec", "/services/collector/event", "application/json", hecOf},
}

// must returns a function that returns a value, or fails the benchmark if there is an error.
func must(v []byte, err error) func(*testing.B) []byte {
	return func(b *testing.B) []byte {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
		return v
	}
}

// sample is a record of ceiling.Bodies.
type sample struct {
	Time    time.Time `json:"time"`
	Level   string    `json:"level"`
	Service string    `json:"service"`
	TraceID string    `json:"trace_id"`
	HTTP    struct {
		Method string `json:"method"`
		Path   string `json:"path"`
		Status int    `json:"status"`
	} `json:"http"`
	DurationMS float64 `json:"duration_ms"`
	Message    string  `json:"message"`
}

// each calls f with each line of NDJSON, and with what it holds.
func each(b *testing.B, ndjson []byte, f func(line []byte, s sample)) {
	b.Helper()
	for line := range bytes.Lines(ndjson) {
		var s sample
		if err := json.Unmarshal(line, &s); err != nil {
			b.Fatal(err)
		}
		f(bytes.TrimSuffix(line, []byte("\n")), s)
	}
}

// otlpOf returns the records as OpenTelemetry's SDKs send them: a message with attributes, and the service as a resource.
func otlpOf(b *testing.B, ndjson []byte) *logspb.LogsData {
	text := func(key, value string) *commonpb.KeyValue {
		return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: value}}}
	}
	scope := &logspb.ScopeLogs{}
	each(b, ndjson, func(_ []byte, s sample) {
		trace := fmt.Appendf(nil, "%.16s", s.TraceID)
		scope.LogRecords = append(scope.LogRecords, &logspb.LogRecord{
			TimeUnixNano: uint64(s.Time.UnixNano()), SeverityText: s.Level, TraceId: trace,
			Body: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: s.Message}},
			Attributes: []*commonpb.KeyValue{
				text("service", s.Service), text("http.method", s.HTTP.Method), text("http.path", s.HTTP.Path),
				{Key: "http.status", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: int64(s.HTTP.Status)}}},
				{Key: "duration_ms", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_DoubleValue{DoubleValue: s.DurationMS}}},
			},
		})
	})
	return &logspb.LogsData{ResourceLogs: []*logspb.ResourceLogs{{Resource: &resourcepb.Resource{}, ScopeLogs: []*logspb.ScopeLogs{scope}}}}
}

func bulkOf(b *testing.B, ndjson []byte) (body []byte) {
	each(b, ndjson, func(line []byte, _ sample) {
		body = append(append(append(body, `{"create":{"_index":"app"}}`+"\n"...), line...), '\n')
	})
	return body
}

func hecOf(b *testing.B, ndjson []byte) (body []byte) {
	each(b, ndjson, func(line []byte, _ sample) {
		body = append(append(append(body, `{"source":"app","event":`...), line...), '}', '\n')
	})
	return body
}

// lokiProtobufOf returns the records as lines of JSON of one stream, as Alloy and Promtail send them.
func lokiProtobufOf(b *testing.B, ndjson []byte) []byte {
	stream := protowire.AppendTag(nil, 1, protowire.BytesType)
	stream = protowire.AppendString(stream, `{source="app"}`)
	each(b, ndjson, func(line []byte, s sample) {
		at := protowire.AppendTag(nil, 1, protowire.VarintType)
		at = protowire.AppendVarint(at, uint64(s.Time.Unix()))
		at = protowire.AppendTag(at, 2, protowire.VarintType)
		at = protowire.AppendVarint(at, uint64(s.Time.Nanosecond()))
		entry := protowire.AppendTag(nil, 1, protowire.BytesType)
		entry = protowire.AppendBytes(entry, at)
		entry = protowire.AppendTag(entry, 2, protowire.BytesType)
		entry = protowire.AppendBytes(entry, line)
		stream = protowire.AppendTag(stream, 2, protowire.BytesType)
		stream = protowire.AppendBytes(stream, entry)
	})
	push := protowire.AppendTag(nil, 1, protowire.BytesType)
	return s2.EncodeSnappy(nil, protowire.AppendBytes(push, stream))
}

func lokiJSONOf(b *testing.B, ndjson []byte) []byte {
	type stream struct {
		Stream map[string]string `json:"stream"`
		Values [][2]string       `json:"values"`
	}
	all := stream{Stream: map[string]string{"source": "app"}}
	each(b, ndjson, func(line []byte, s sample) {
		all.Values = append(all.Values, [2]string{fmt.Sprint(s.Time.UnixNano()), string(line)})
	})
	return must(json.Marshal(map[string][]stream{"streams": {all}}))(b)
}

// fields is the header of a request that has but a Content-Type.
type fields string

func (f fields) Peek(name string) []byte {
	if name == "Content-Type" {
		return []byte(f)
	}
	return nil
}

// allocations returns how many allocations a record it takes to decode a body of n records.
func (d door) allocations(b *testing.B, body []byte, n int) float64 {
	b.Helper()
	if d.name == "loki-protobuf" {
		body = must(s2.Decode(nil, body))(b)
	}
	r := protocol.Request{Method: []byte("POST"), Path: []byte(d.path), Header: fields(d.content)}
	list := &record.List{Limits: scan.Limits{RecordBytes: 1 << 20, PieceBytes: 64 << 10}}
	for _, p := range protocol.All(protocol.Settings{}) {
		for _, route := range p.Routes() {
			if route.Path != d.path {
				continue
			}
			return testing.AllocsPerRun(20, func() {
				list.Clear()
				exchange, bad := p.Open(r)
				if bad == nil {
					bad = exchange.Decode(r, body, list)
				}
				if bad != nil || list.Accepted != n {
					b.Fatalf("%s: %d records accepted of %d: %v", d.name, list.Accepted, n, bad)
				}
			}) / float64(n)
		}
	}
	b.Fatalf("no protocol has the path %s", d.path)
	return 0
}

// cost is the processor time that a server takes. It says more than records a second where others use the machine, too.
type cost struct{ seconds, records float64 }

// of runs a client of a server, and adds what that costs the server.
func (c *cost) of(b *testing.B, s *server, batch int, run func() load.Result) load.Result {
	b.Helper()
	before, ok := readStat(s.pid)
	r := run()
	after, ok2 := readStat(s.pid)
	if !ok || !ok2 {
		b.Fatal("the server has ended")
	}
	c.seconds += after.seconds - before.seconds
	c.records += float64(batch * r.Answers())
	return r
}

// each returns the nanoseconds of a record.
func (c *cost) each() float64 { return c.seconds / c.records * 1e9 }

// BenchmarkAcceptDoor posts batches of 500 records by other protocols. The ceiling is the same API that takes the same records by
// /log/batch.
func BenchmarkAcceptDoor(b *testing.B) {
	const batch, connections = 500, 16
	lines := bodies(16, batch)
	for _, d := range doors {
		b.Run(d.name, func(b *testing.B) {
			var requests, own [][]byte
			allocations := 0.0
			for _, ndjson := range lines {
				body := d.body(b, ndjson)
				allocations = d.allocations(b, body, batch)
				requests = append(requests, load.PostAs(d.path, d.content, body))
				own = append(own, load.Post("/log/batch", ndjson))
			}
			q := newQueues(b)
			api := startServer(b, "api", q.Name, "API_ADDR=127.0.0.1:0")
			product, native := api.dial(b, connections, requests...), api.dial(b, connections, own...)
			waitReady(b, product)
			t := ceiling.NewTurns("records/s")
			var cost, ownCost cost
			for b.Loop() {
				q.purge(b)
				p := cost.of(b, api, batch, func() load.Result { return run(b, product, ceiling.Round) })
				q.purge(b)
				o := ownCost.of(b, api, batch, func() load.Result { return run(b, native, ceiling.Round) })
				t.Add(batch*p.Rate(), batch*o.Rate())
				t.Also("p99-ms", ms(p.Quantile(.99)))
			}
			t.Also("api-ns/record", cost.each())
			t.Also("ceiling-api-ns/record", ownCost.each())
			t.Also("allocs/record", allocations)
			t.Report(b)
		})
	}
}
