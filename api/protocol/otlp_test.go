package protocol

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/proto"

	"millrace/internal/record"
	"millrace/internal/scan"
)

// otlpHeader returns the header of a request with a Content-Type.
func otlpHeader(content string) headers { return headers{"Content-Type": content} }

// otlpRequestOf returns a request for logs.
func otlpRequestOf(content, query string) Request {
	return Request{Path: []byte("/v1/logs"), Query: []byte(query), Header: otlpHeader(content)}
}

// otlpRecords returns what becomes of a body, as JSON with sorted keys, one record a line.
func otlpRecords(t testing.TB, content, query string, body []byte) (got string, a Answer, bad *Refusal) {
	t.Helper()
	records := &record.List{Limits: scan.Limits{RecordBytes: 1 << 20, PieceBytes: 64 << 10}}
	a, bad = exchange(OTLP{}, otlpRequestOf(content, query), body, records)
	return sortedLines(t, records.NDJSON), a, bad
}

// sortedLines returns lines of JSON with sorted keys.
func sortedLines(t testing.TB, ndjson []byte) string {
	t.Helper()
	var all []string
	for _, line := range strings.Split(strings.TrimSuffix(string(ndjson), "\n"), "\n") {
		if line == "" {
			continue
		}
		d := json.NewDecoder(strings.NewReader(line))
		d.UseNumber()
		var v any
		if err := d.Decode(&v); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, string(b))
	}
	return strings.Join(all, "\n")
}

// These make values of OTLP.

func anyOf(v any) *commonpb.AnyValue {
	switch v := v.(type) {
	case string:
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: v}}
	case bool:
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_BoolValue{BoolValue: v}}
	case int:
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: int64(v)}}
	case float64:
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_DoubleValue{DoubleValue: v}}
	case []byte:
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_BytesValue{BytesValue: v}}
	case []any:
		list := &commonpb.ArrayValue{}
		for _, e := range v {
			list.Values = append(list.Values, anyOf(e))
		}
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_ArrayValue{ArrayValue: list}}
	case []*commonpb.KeyValue:
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_KvlistValue{KvlistValue: &commonpb.KeyValueList{Values: v}}}
	}
	return &commonpb.AnyValue{}
}

// membersOf returns the members with keys and values in turn.
func membersOf(pairs ...any) (members []*commonpb.KeyValue) {
	for i := 0; i < len(pairs); i += 2 {
		members = append(members, &commonpb.KeyValue{Key: pairs[i].(string), Value: anyOf(pairs[i+1])})
	}
	return members
}

// requestOf returns a request with records of one scope of one resource.
func requestOf(resource []*commonpb.KeyValue, records ...*logspb.LogRecord) *logspb.LogsData {
	return &logspb.LogsData{ResourceLogs: []*logspb.ResourceLogs{{
		Resource:  &resourcepb.Resource{Attributes: resource},
		ScopeLogs: []*logspb.ScopeLogs{{LogRecords: records}},
	}}}
}

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// nested returns an array in arrays, so that there are depth of them.
func nested(depth int) any {
	var v any = []any{}
	for range depth - 1 {
		v = []any{v}
	}
	return v
}

func TestLogRecordsOfOTLPBecomeRecords(t *testing.T) {
	const second = 1_000_000_000
	traceID, spanID := []byte("0123456789abcdef"), []byte("\xab1234567")
	for _, tt := range []struct {
		name string
		in   *logspb.LogsData
		want string
	}{
		{"nothing", &logspb.LogsData{}, ``},
		{"an empty record", requestOf(nil, &logspb.LogRecord{}), `{}`},
		{"all fields", &logspb.LogsData{ResourceLogs: []*logspb.ResourceLogs{{
			SchemaUrl: "https://example.com",
			Resource: &resourcepb.Resource{Attributes: membersOf("service.name", "shop", "service.version", "1.2", "host.name", "web-1"), DroppedAttributesCount: 2,
				EntityRefs: []*commonpb.EntityRef{{Type: "x"}}},
			ScopeLogs: []*logspb.ScopeLogs{{
				SchemaUrl: "https://example.com",
				Scope:     &commonpb.InstrumentationScope{Name: "app", Version: "2", Attributes: membersOf("a.b", 1), DroppedAttributesCount: 3},
				LogRecords: []*logspb.LogRecord{{
					TimeUnixNano: 5, ObservedTimeUnixNano: 7 * second, SeverityNumber: 9, SeverityText: "Information", Body: anyOf("hi"),
					Attributes: membersOf("http.response.status_code", 200, "url.path", "/a", "s", "x", "b", true, "d", 0.5, "n", nil,
						"l", []any{1, "a", nil, []byte{1}}, "m", membersOf("a.b", membersOf("c", 1), "e", []byte{1, 2}), "y", []byte{255}),
					DroppedAttributesCount: 4, Flags: 0x1ff, TraceId: traceID, SpanId: spanID, EventName: "e",
				}},
			}},
		}}}, `{"b":true,"d":0.5,"dropped_attributes_count":4,"event_name":"e","host":{"name":"web-1"},"http":{"response":{"status_code":200}},` +
			`"l":[1,"a",null,"AQ=="],"level":"information","m":{"a.b":{"c":1},"e":"AQI="},"message":"hi","n":null,"observed_time":"1970-01-01T00:00:07Z",` +
			`"resource":{"dropped_attributes_count":2},"s":"x","scope":{"attributes":{"a.b":1},"dropped_attributes_count":3,"name":"app","version":"2"},` +
			`"service":{"name":"shop","version":"1.2"},"severity_number":9,"span_id":"ab31323334353637","time":"1970-01-01T00:00:00.000000005Z",` +
			`"trace_flags":"ff","trace_id":"30313233343536373839616263646566","url":{"path":"/a"},"y":"/w=="}`},
		{"several records", &logspb.LogsData{ResourceLogs: []*logspb.ResourceLogs{
			{Resource: &resourcepb.Resource{Attributes: membersOf("r", 1)}, ScopeLogs: []*logspb.ScopeLogs{
				{Scope: &commonpb.InstrumentationScope{Name: "a"}, LogRecords: []*logspb.LogRecord{{Body: anyOf("1")}, {Body: anyOf("2")}}},
				{Scope: &commonpb.InstrumentationScope{Name: "empty"}},
				{Scope: &commonpb.InstrumentationScope{Name: "b"}, LogRecords: []*logspb.LogRecord{{Body: anyOf("3")}}}}},
			{ScopeLogs: []*logspb.ScopeLogs{{LogRecords: []*logspb.LogRecord{{Body: anyOf("4")}}}}},
		}}, `{"message":"1","r":1,"scope":{"name":"a"}}
{"message":"2","r":1,"scope":{"name":"a"}}
{"message":"3","r":1,"scope":{"name":"b"}}
{"message":"4"}`},
		{"no time but that of reading", requestOf(nil, &logspb.LogRecord{ObservedTimeUnixNano: second}), `{"time":"1970-01-01T00:00:01Z"}`},
		{"read soon after", requestOf(nil, &logspb.LogRecord{TimeUnixNano: 1, ObservedTimeUnixNano: second}), `{"time":"1970-01-01T00:00:00.000000001Z"}`},
		{"a time beyond all times", requestOf(nil, &logspb.LogRecord{TimeUnixNano: math.MaxUint64}), `{"time":18446744073709551615}`},
		{"a record with a time of its own", requestOf(nil, &logspb.LogRecord{TimeUnixNano: 1, Body: anyOf(`{"time":"mine","a":1}`)}),
			`{"@timestamp":"1970-01-01T00:00:00.000000001Z","a":1,"time":"mine"}`},
		{"a severity without a word", requestOf(nil, &logspb.LogRecord{SeverityNumber: 24}, &logspb.LogRecord{SeverityNumber: 25}, &logspb.LogRecord{SeverityNumber: -1}),
			"{\"level\":\"fatal\",\"severity_number\":24}\n{\"severity_number\":25}\n{\"severity_number\":-1}"},
		{"ids that are none", requestOf(nil, &logspb.LogRecord{TraceId: make([]byte, 16), SpanId: make([]byte, 8)}, &logspb.LogRecord{TraceId: []byte("a"), SpanId: traceID}), "{}\n{}"},
		{"a trace that is not sampled", requestOf(nil, &logspb.LogRecord{TraceId: traceID}), `{"trace_flags":"00","trace_id":"30313233343536373839616263646566"}`},
		{"bodies", requestOf(nil,
			&logspb.LogRecord{Body: anyOf(membersOf("a.b", 1, "m", membersOf("c", "d")))}, &logspb.LogRecord{Body: anyOf(5)}, &logspb.LogRecord{Body: anyOf([]any{"x", 1})},
			&logspb.LogRecord{Body: anyOf(nil)}, &logspb.LogRecord{Body: anyOf(` {"msg":"x","n":[1]}`)}, &logspb.LogRecord{Body: anyOf("")},
			&logspb.LogRecord{Body: anyOf(membersOf("log", "{\"a\":1,\"stream\":\"own\"}\n", "stream", "stdout"))}, &logspb.LogRecord{Body: anyOf(membersOf("log", "text"))}),
			`{"a.b":1,"m":{"c":"d"}}
{"body":5}
{"body":["x",1]}
{}
{"msg":"x","n":[1]}
{"message":""}
{"a":1,"outer":{"stream":"stdout"},"stream":"own"}
{"log":"text"}`},
		{"the same names in several places", requestOf(membersOf("a", "resource", "b", "resource", "level", "resource", "c.d", 1),
			&logspb.LogRecord{Body: anyOf(`{"a":"own","level":"own"}`), SeverityText: "INFO", Attributes: membersOf("a", "attribute", "b", "attribute", "c", "x", "e.f", 1, "e.f", 2)}),
			`{"a":"own","attributes":{"a":"attribute"},"b":"attribute","c":"x","c.d":1,"e":{"f":2},"level":"own","otlp":{"level":"info"},"resource":{"a":"resource","b":"resource","level":"resource"}}`},
		{"numbers that JSON has not", requestOf(nil, &logspb.LogRecord{Attributes: membersOf("a", math.NaN(), "b", math.Inf(-1), "c", 1e300)}),
			`{"_repaired":["a","b"],"a":"NaN","b":"-Infinity","c":1` + strings.Repeat("0", 300) + `}`},
		{"text that jsonb has not", requestOf(nil, &logspb.LogRecord{Body: anyOf("a\x00"), Attributes: membersOf("k\x00", "v")}), `{"_repaired":["message","k�"],"k�":"v","message":"a�"}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			body := marshal(t, tt.in)
			got, a, bad := otlpRecords(t, "application/x-protobuf", "", body)
			if diff := cmp.Diff(tt.want, got); diff != "" || bad != nil || a.Status != 200 || len(a.Body) > 0 || a.ContentType != protobufType {
				t.Errorf("answered %d %q %v (-want +got)\n%s", a.Status, a.Body, bad, diff)
			}
			got, a, bad = otlpRecords(t, "application/json; charset=utf-8", "", asJSON(t, tt.in, nil))
			if diff := cmp.Diff(tt.want, got); diff != "" || bad != nil || a.Status != 200 || string(a.Body) != "{}" || a.ContentType != jsonType {
				t.Errorf("as JSON: answered %d %q %v (-want +got)\n%s", a.Status, a.Body, bad, diff)
			}
		})
	}
}

// asJSON returns a request in the JSON of OTLP. random chooses among the forms that clients use; it may be nil.
func asJSON(t testing.TB, in *logspb.LogsData, random *rand.Rand) []byte {
	t.Helper()
	coin := func() bool { return random != nil && random.IntN(2) == 0 }
	number := func(n int64) any {
		if coin() {
			return strconv.FormatInt(n, 10)
		}
		return n
	}
	var value func(v *commonpb.AnyValue) any
	members := func(list []*commonpb.KeyValue) []any {
		all := []any{}
		for _, m := range list {
			o := map[string]any{"key": m.Key}
			if v := value(m.Value); len(v.(map[string]any)) > 0 || coin() {
				o["value"] = v
			}
			all = append(all, o)
		}
		return all
	}
	value = func(v *commonpb.AnyValue) any {
		o := map[string]any{}
		switch v := v.GetValue().(type) {
		case *commonpb.AnyValue_StringValue:
			o["stringValue"] = v.StringValue
		case *commonpb.AnyValue_BoolValue:
			o["boolValue"] = v.BoolValue
		case *commonpb.AnyValue_IntValue:
			o["intValue"] = number(v.IntValue)
		case *commonpb.AnyValue_DoubleValue:
			switch d := v.DoubleValue; {
			case math.IsNaN(d):
				o["doubleValue"] = "NaN"
			case math.IsInf(d, 1):
				o["doubleValue"] = "Infinity"
			case math.IsInf(d, -1):
				o["doubleValue"] = "-Infinity"
			default:
				o["doubleValue"] = d
			}
		case *commonpb.AnyValue_BytesValue:
			o["bytesValue"] = base64.StdEncoding.EncodeToString(v.BytesValue)
			if coin() {
				o["bytesValue"] = base64.RawURLEncoding.EncodeToString(v.BytesValue)
			}
		case *commonpb.AnyValue_ArrayValue:
			all := []any{}
			for _, e := range v.ArrayValue.Values {
				all = append(all, value(e))
			}
			o["arrayValue"] = map[string]any{"values": all}
		case *commonpb.AnyValue_KvlistValue:
			o["kvlistValue"] = map[string]any{"values": members(v.KvlistValue.Values)}
		}
		return o
	}
	all := []any{}
	for _, r := range in.ResourceLogs {
		scopes := []any{}
		for _, s := range r.ScopeLogs {
			records := []any{}
			for _, l := range s.LogRecords {
				o := map[string]any{"timeUnixNano": strconv.FormatUint(l.TimeUnixNano, 10), "severityNumber": int(l.SeverityNumber), "severityText": l.SeverityText,
					"attributes": members(l.Attributes), "traceId": hex.EncodeToString(l.TraceId), "spanId": strings.ToUpper(hex.EncodeToString(l.SpanId)),
					"flags": l.Flags, "eventName": l.EventName, "unknown": []any{map[string]any{"a": "]"}, nil, true}}
				if l.Body != nil {
					o["body"] = value(l.Body)
				}
				if l.ObservedTimeUnixNano != 0 || coin() {
					o["observedTimeUnixNano"] = number(int64(l.ObservedTimeUnixNano))
				}
				if l.DroppedAttributesCount != 0 {
					o["droppedAttributesCount"] = l.DroppedAttributesCount
				}
				records = append(records, o)
			}
			o := map[string]any{"logRecords": records, "schemaUrl": s.SchemaUrl}
			if s.Scope != nil {
				o["scope"] = map[string]any{"name": s.Scope.Name, "version": s.Scope.Version, "attributes": members(s.Scope.Attributes), "droppedAttributesCount": s.Scope.DroppedAttributesCount}
			}
			scopes = append(scopes, o)
		}
		o := map[string]any{"scopeLogs": scopes}
		if r.Resource != nil {
			o["resource"] = map[string]any{"attributes": members(r.Resource.Attributes), "droppedAttributesCount": r.Resource.DroppedAttributesCount}
		}
		all = append(all, o)
	}
	b, err := json.Marshal(map[string]any{"resourceLogs": all})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// randomRequest returns a request of random records.
func randomRequest(random *rand.Rand) *logspb.LogsData {
	words := []string{"a", "b.c", "b", "service.name", "level", "time", "message", "é\"\\\n", "resource", "x.y.z", ""}
	word := func() string { return words[random.IntN(len(words))] }
	var value func(depth int) any
	members := func(depth int) []*commonpb.KeyValue {
		var pairs []any
		for range random.IntN(5) {
			pairs = append(pairs, word(), value(depth+1))
		}
		return membersOf(pairs...)
	}
	value = func(depth int) any {
		switch n := random.IntN(10); {
		case n == 0:
			return random.IntN(2) == 0
		case n == 1:
			return int(random.Int64()) * (2*random.IntN(2) - 1)
		case n == 2:
			return math.Float64frombits(random.Uint64())
		case n == 3:
			return []byte(word())
		case n == 4 && depth < 4:
			return members(depth)
		case n == 5 && depth < 4:
			var all []any
			for range random.IntN(4) {
				all = append(all, value(depth+1))
			}
			return append([]any{}, all...)
		case n == 6:
			return nil
		case n == 7:
			return `{"a":1,"time":"t"}`
		}
		return word()
	}
	in := &logspb.LogsData{}
	for range random.IntN(4) {
		r := &logspb.ResourceLogs{}
		if random.IntN(4) > 0 {
			r.Resource = &resourcepb.Resource{Attributes: members(0), DroppedAttributesCount: uint32(random.IntN(2))}
		}
		for range random.IntN(3) {
			s := &logspb.ScopeLogs{}
			if random.IntN(2) == 0 {
				s.Scope = &commonpb.InstrumentationScope{Name: word(), Version: word(), Attributes: members(0)}
			}
			for range random.IntN(4) {
				l := &logspb.LogRecord{SeverityNumber: logspb.SeverityNumber(random.IntN(30)), SeverityText: word(), Attributes: members(0), Flags: uint32(random.IntN(3)), EventName: word()}
				if random.IntN(5) > 0 {
					l.Body = anyOf(value(0))
				}
				if random.IntN(2) == 0 {
					l.TimeUnixNano, l.ObservedTimeUnixNano = uint64(random.Int64N(1<<62)), uint64(random.Int64N(1<<62))
					l.TraceId, l.SpanId = []byte("0123456789abcdef"), []byte("01234567")[:random.IntN(9)]
				}
				s.LogRecords = append(s.LogRecords, l)
			}
			r.ScopeLogs = append(r.ScopeLogs, s)
		}
		in.ResourceLogs = append(in.ResourceLogs, r)
	}
	return in
}

func TestProtobufAndJSONOfOneRequestMakeTheSameRecords(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		in := randomRequest(random)
		want, _, bad := otlpRecords(t, protobufType, "", marshal(t, in))
		if bad != nil {
			t.Fatal(bad)
		}
		n := 0
		for _, r := range in.ResourceLogs {
			for _, s := range r.ScopeLogs {
				n += len(s.LogRecords)
			}
		}
		if lines := strings.Count(want+"\n", "\n"); lines != n && n > 0 {
			t.Fatalf("%d records, want %d", lines, n)
		}
		body := asJSON(t, in, random)
		got, _, bad := otlpRecords(t, jsonType, "", body)
		if bad != nil || got != want {
			t.Fatalf("%v %s\n%s", bad, cmp.Diff(want, got), body)
		}
	}
}

func TestWhatClientsWriteInTheJSONOfOTLPIsTaken(t *testing.T) {
	record := func(members string) string {
		return `{"resourceLogs":[{"scopeLogs":[{"logRecords":[{` + members + `}]}]}]}`
	}
	value := func(value string) string { return record(`"attributes":[{"key":"a","value":` + value + `}]`) }
	for _, tt := range []struct{ body, want string }{
		{"", ""}, {" [ ] ", ""}, {"{}", ""}, {`{"resourceLogs":null}`, ""}, {"\xef\xbb\xbf{}", ""},
		{record(""), "{}"},
		{record(`"timeUnixNano":null,"body":null,"attributes":null,"severityText":null`), "{}"},
		{record(`"time_unix_nano":"5","Body":{"stringValue":"x"}`), "{}"},
		{record(`"timeUnixNano":1795822800660000001`), `{"time":"2026-11-27T23:40:00.660000001Z"}`},
		{record(`"timeUnixNano":"1.5e9"`), `{"time":"1970-01-01T00:00:01.5Z"}`},
		{record(`"timeUnixNano":"soon"`), `{}`},
		{record(`"severityNumber":"SEVERITY_NUMBER_WARN2"`), `{"level":"warn","severity_number":14}`},
		{record(`"severityNumber":"17"`), `{"level":"error","severity_number":17}`},
		{record(`"traceId":"ABCDEF0123456789abcdef0123456789","spanId":"no","flags":1`), `{"trace_flags":"01","trace_id":"abcdef0123456789abcdef0123456789"}`},
		{record(`"body":{"stringValue":"a\u00e9\ud83d\ude00\/\b"}`), `{"message":"aé😀/\b"}`},
		{record(`"body":{"stringValue":"\ud800x\u0000"}`), `{"_repaired":["message"],"message":"�x�"}`},
		{record("\"body\":{\"stringValue\":\"a\xff\nb\"}"), `{"_repaired":["message"],"message":"a�\nb"}`},
		{record(`"b\u006fdy":{"str\u0069ngValue":"x"}`), `{"message":"x"}`},
		{value(`{}`), `{"a":null}`}, {value(`null`), `{"a":null}`}, {value(`{"stringValue":null}`), `{"a":null}`},
		{value(`{"intValue":"9223372036854775807"}`), `{"a":9223372036854775807}`},
		{value(`{"intValue":-9223372036854775808}`), `{"a":-9223372036854775808}`},
		{value(`{"intValue":"9223372036854775808"}`), `{"a":"9223372036854775808"}`},
		{value(`{"intValue":"many"}`), `{"a":"many"}`},
		{value(`{"doubleValue":"0.5"}`), `{"a":0.5}`}, {value(`{"doubleValue":1E2}`), `{"a":100}`}, {value(`{"doubleValue":1e999}`), `{"a":"1e999"}`},
		{value(`{"boolValue":false}`), `{"a":false}`}, {value(`{"boolValue":"maybe"}`), `{"a":"maybe"}`},
		{value(`{"bytesValue":"-_8"}`), `{"a":"+/8="}`}, {value(`{"bytesValue":"!"}`), `{"a":"!"}`}, {value(`{"bytesValue":""}`), `{"a":""}`},
		{value(`{"arrayValue":{}}`), `{"a":[]}`}, {value(`{"arrayValue":{"values":[{},null,{"intValue":1}]}}`), `{"a":[null,null,1]}`},
		{value(`{"kvlistValue":{"values":[{"key":"b"},{"value":{"intValue":1}}]}}`), `{"a":{"":1,"b":null}}`},
		{value(`{"stringValue":"a","intValue":1}`), `{"a":1}`},
	} {
		got, a, bad := otlpRecords(t, jsonType, "", []byte(tt.body))
		if got != tt.want || bad != nil || string(a.Body) != "{}" {
			t.Errorf("%s: got %s %v, want %s", tt.body, got, bad, tt.want)
		}
	}
}

func TestAMalformedRequestOfOTLPIsRefusedWhole(t *testing.T) {
	good := marshal(t, requestOf(membersOf("a", []any{"b", membersOf("c", 1)}), &logspb.LogRecord{Body: anyOf("hello"), Attributes: membersOf("k", "v")}))
	for i := 1; i < len(good); i++ {
		if _, _, bad := otlpRecords(t, protobufType, "", good[:i]); bad == nil || bad.Status != 400 {
			t.Errorf("cut after %d bytes: %v", i, bad)
		}
	}
	for _, body := range []string{"{", `{"resourceLogs":[{]}`, `{"resourceLogs":5}`, `[1]`, `{} {}`, `{"a":tru}`, `{"a":01}`, `{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":"text"}]}]}]}`,
		`{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"severityText":5}]}]}]}`, "x", `{"a":"`, `{"a"}`, `{"a":[1,]}`, `{"a":{"b":1,}}`, `{"a":[}`} {
		got, a, bad := otlpRecords(t, jsonType, "", []byte(body))
		if bad == nil || bad.Status != 400 || got != "" || !strings.HasPrefix(string(a.Body), `{"code":3,"message":"`) || a.ContentType != jsonType {
			t.Errorf("%s: got %s %d %s", body, got, a.Status, a.Body)
		}
	}
	if _, a, _ := otlpRecords(t, protobufType, "", []byte(`{"resourceLogs":[]}`)); a.Status != 400 || !strings.Contains(string(a.Body), "looks like JSON") || a.Body[0] != 0x08 || a.Body[1] != 3 {
		t.Errorf("got %d %q", a.Status, a.Body)
	}
}

func TestRecordsOfOTLPThatCantBeTakenHarmNoOther(t *testing.T) {
	in := requestOf(nil, &logspb.LogRecord{Body: anyOf("a")}, &logspb.LogRecord{Attributes: membersOf("k", nested(mostOTLPNested+1))}, &logspb.LogRecord{Body: anyOf(nested(mostOTLPNested + 1))},
		&logspb.LogRecord{Body: anyOf("b"), Attributes: membersOf("k", nested(mostOTLPNested))})
	for _, content := range []string{protobufType, jsonType} {
		body := marshal(t, in)
		if content == jsonType {
			body = asJSON(t, in, nil)
		}
		got, a, bad := otlpRecords(t, content, "", body)
		if bad != nil || strings.Count(got, "\n") != 1 || !strings.HasPrefix(got, `{"message":"a"}`) || !strings.Contains(got, `"_repaired":["k"]`) {
			t.Errorf("%s: got %s %v", content, got, bad)
		}
		const message = "2 of 4 refused: record 1: nested deeper than 128; record 2: nested deeper than 128"
		want := `{"partialSuccess":{"rejectedLogRecords":"2","errorMessage":"` + message + `"}}`
		if content == protobufType {
			want = fmt.Sprintf("\x0a%c\x08\x02\x12%c%s", 2+2+len(message), len(message), message)
		}
		if a.Status != 200 || string(a.Body) != want || a.ContentType != content {
			t.Errorf("%s: answered %d %s %q, want %q", content, a.Status, a.ContentType, a.Body, want)
		}
	}
}

func TestWhatRecordsShareIsBounded(t *testing.T) {
	var records []*logspb.LogRecord
	for range 100_000 {
		records = append(records, &logspb.LogRecord{})
	}
	for _, scopes := range []int{1, 50_000} {
		in := requestOf(membersOf("a", strings.Repeat("x", 1<<20)), records...)
		if scopes > 1 {
			in.ResourceLogs[0].ScopeLogs = nil
			for range scopes {
				in.ResourceLogs[0].ScopeLogs = append(in.ResourceLogs[0].ScopeLogs, &logspb.ScopeLogs{LogRecords: records[:1]})
			}
		}
		body := marshal(t, in)
		list := &record.List{Limits: scan.Limits{RecordBytes: 2 << 20, PieceBytes: 64 << 10}}
		a, bad := exchange(OTLP{}, otlpRequestOf(protobufType, ""), body, list)
		if bad != nil || a.Status != 200 || !strings.Contains(string(a.Body), "too large") || list.Accepted == 0 || len(list.NDJSON) > 4*len(body)+64<<20 {
			t.Errorf("%d scopes: %d bytes became %d: %v %d", scopes, len(body), len(list.NDJSON), bad, a.Status)
		}
	}
}

func TestOTLPRefusesInTheFormOfTheRequest(t *testing.T) {
	for _, tt := range []struct {
		path, content string
		status        int
		code          int
	}{
		{"/v1/logs", "text/plain", 415, 3}, {"/v1/logs", "", 415, 3}, {"/v1/logs", "application/jsonx", 415, 3},
		{"/v1/traces", protobufType, 404, 12}, {"/v1/metrics", "Application/JSON", 404, 12}, {"/otlp/v1/traces", protobufType, 404, 12},
	} {
		r := Request{Path: []byte(tt.path), Header: otlpHeader(tt.content)}
		_, bad := OTLP{}.Open(r)
		if bad == nil || bad.Status != tt.status {
			t.Errorf("%s %s: got %v", tt.path, tt.content, bad)
			continue
		}
		a := OTLP{}.Refuse(nil, r, bad)
		want := fmt.Sprintf(`{"code":%d,"message":%s}`, tt.code, quote(bad.Msg))
		content := jsonType
		if tt.content == protobufType {
			content = protobufType
			want = "\x08" + string(rune(tt.code)) + string(appendWireText(nil, 2, bad.Msg))
		}
		if a.Status != tt.status || string(a.Body) != want || a.ContentType != content {
			t.Errorf("%s %s: got %d %s %q, want %q", tt.path, tt.content, a.Status, a.ContentType, a.Body, want)
		}
	}
	for status, code := range map[int]uint64{400: 3, 401: 16, 403: 7, 405: 12, 408: 4, 413: 3, 429: 8, 500: 13, 503: 14} {
		if got := rpcCode(status); got != code {
			t.Errorf("%d: got %d, want %d", status, got, code)
		}
	}
}

func TestOTLPClientsCanAskForMore(t *testing.T) {
	body := marshal(t, requestOf(nil, &logspb.LogRecord{Body: anyOf(`{"at":"2026-01-01T00:00:00Z"}`)}))
	for query, want := range map[string]string{
		"":                              `{"at":"2026-01-01T00:00:00Z"}`,
		"parse=false&unknown=1":         `{"message":"{\"at\":\"2026-01-01T00:00:00Z\"}"}`,
		"time_field=at&fields=env=prod": `{"at":"2026-01-01T00:00:00Z","env":"prod","time":"2026-01-01T00:00:00Z"}`,
	} {
		if got, a, bad := otlpRecords(t, protobufType, query, body); got != want || bad != nil || a.Status != 200 {
			t.Errorf("%s: got %s %v, want %s", query, got, bad, want)
		}
	}
	if _, a, bad := otlpRecords(t, protobufType, "parse=perhaps", body); bad == nil || a.Status != 400 {
		t.Errorf("got %v", bad)
	}
	r := otlpRequestOf(protobufType, "")
	r.Header.(headers)["X-Parse"] = "false"
	list := newRecords()
	if exchange(OTLP{}, r, body, list); !strings.HasPrefix(string(list.NDJSON), `{"message":`) {
		t.Errorf("got %s", list.NDJSON)
	}
}

func TestFieldsOfOTLPMayComeInAnyOrder(t *testing.T) {
	member := func(key, value string) []byte {
		return appendWireText(appendWireText(nil, 2, appendWireText(nil, 1, value)), 1, key)
	}
	group := "\x9b\x01\x08\x01\xa3\x01\x10\x05\xa4\x01\x1a\x01x\x9c\x01" // field 19, with a field 20 that is a group, too
	log := appendWireText([]byte(group), 6, member("a", "attribute"))
	log = appendWireText(log, 5, appendWireText(nil, 1, "first body"))
	log = appendWireText(log, 5, appendWireText([]byte("\x10\x01"), 1, `{"a":"own"}`))
	log = appendWireText(log, 6, member("b", "attribute"))
	log = append(log, "\x28\x05\xf8\x7f\x01"...) // the body as a varint, and field 2047
	scope := appendWireText(nil, 2, log)
	scope = appendWireText(scope, 1, appendWireText(nil, 1, "scope"))
	resource := appendWireText(nil, 2, scope)
	resource = appendWireText(resource, 1, appendWireText(nil, 1, member("a", "resource")))
	resource = appendWireText(resource, 1, appendWireText(nil, 1, member("c", "resource")))
	body := appendWireText([]byte("\x12\x00"), 1, resource)
	got, _, bad := otlpRecords(t, protobufType, "", body)
	want := `{"a":"own","attributes":{"a":"attribute"},"b":"attribute","c":"resource","resource":{"a":"resource"},"scope":{"name":"scope"}}`
	if got != want || bad != nil {
		t.Errorf("got %s %v, want %s", got, bad, want)
	}
}

// FuzzOTLP compares the decoder with the official one: it takes what that takes, and a body that the official one has written again
// makes the same records.
func FuzzOTLP(f *testing.F) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 20 {
		b, err := proto.Marshal(randomRequest(random))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("\x0a\x04\x12\x02\x12\x00"))
	f.Add([]byte("\x9b\x01\x08\x01\xa3\x01\x10\x05\xa4\x01\x1a\x01x\x9c\x01"))
	f.Fuzz(func(t *testing.T, body []byte) {
		got, a, bad := otlpRecords(t, protobufType, "", body)
		if bad != nil && (bad.Status != 400 || len(a.Body) == 0) || bad == nil && a.Status != 200 {
			t.Fatalf("answered %d %q", a.Status, a.Body)
		}
		var official logspb.LogsData
		err := proto.Unmarshal(body, &official)
		if err != nil {
			return // it also looks at what is skipped here, and refuses text that is repaired here
		}
		if bad != nil {
			t.Fatalf("got %v, and the official decoder takes it", bad)
		}
		again, err := proto.Marshal(&official)
		if err != nil || len(again) != len(body) {
			return // fields that were there twice are merged
		}
		if same, _, bad := otlpRecords(t, protobufType, "", again); bad != nil || same != got {
			t.Fatalf("written again %v\n%s\nwant\n%s", bad, same, got)
		}
	})
}

// FuzzOTLPJSON takes whatever bytes as JSON.
func FuzzOTLPJSON(f *testing.F) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 10 {
		f.Add(asJSON(f, randomRequest(random), random))
	}
	f.Add([]byte(`{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"stringValue":"\ud800\u0000\n"},"attributes":[{"key":"\\","value":{"bytesValue":"-_8="}}],"x":[[{}]]}]}]}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		records := newRecords()
		a, bad := exchange(OTLP{}, otlpRequestOf(jsonType, ""), body, records)
		if bad != nil && a.Status != 400 || bad == nil && a.Status != 200 || !json.Valid(a.Body) {
			t.Fatalf("answered %d %q", a.Status, a.Body)
		}
		if bad == nil && len(body) > 0 && !json.Valid([]byte(strings.ToValidUTF8(string(SkipBOM(body)), "?"))) && !strings.ContainsAny(string(body), "\\\"") && len(strings.TrimSpace(string(body))) > 0 {
			t.Fatalf("took %q", body)
		}
		sortedLines(t, records.NDJSON)
		again := newRecords()
		exchange(OTLP{}, otlpRequestOf(jsonType, ""), body, again)
		if string(again.NDJSON) != string(records.NDJSON) {
			t.Fatalf("the same body made\n%s\nand\n%s", records.NDJSON, again.NDJSON)
		}
	})
}

// benchRequest returns a request of common records, and the same records as NDJSON.
func benchRequest(b testing.TB, n int) (body, ndjson []byte) {
	var all []*logspb.LogRecord
	for i := range n {
		all = append(all, &logspb.LogRecord{TimeUnixNano: 1795822800660000000 + uint64(i)*1000, ObservedTimeUnixNano: 1795822800660000000, SeverityNumber: 9, SeverityText: "INFO",
			Body: anyOf("order placed and paid, thank you"), Attributes: membersOf("http.request.method", "GET", "http.response.status_code", 200, "user.id", i, "duration", 0.25),
			TraceId: []byte("0123456789abcdef"), SpanId: []byte("01234567")})
	}
	body = marshal(b, requestOf(membersOf("service.name", "checkout"), all...))
	list := &record.List{Limits: scan.Limits{RecordBytes: 1 << 20, PieceBytes: 64 << 10}}
	if _, bad := exchange(OTLP{}, otlpRequestOf(protobufType, ""), body, list); bad != nil || list.Accepted != n {
		b.Fatal(bad)
	}
	return body, append([]byte(nil), list.NDJSON...)
}

func TestCommonRecordsOfOTLPCostNoAllocation(t *testing.T) {
	body, _ := benchRequest(t, 500)
	list := &record.List{Limits: scan.Limits{RecordBytes: 1 << 20, PieceBytes: 64 << 10}}
	allocs := testing.AllocsPerRun(20, func() {
		list.Clear()
		otlpProtobuf.Decode(Request{}, body, list)
	})
	if allocs > 50 { // a request has some, and more if the race detector empties pools
		t.Errorf("%v allocations for 500 records", allocs)
	}
}

// BenchmarkOTLPRecord decodes records of OTLP. Its last line takes the same records as NDJSON.
func BenchmarkOTLPRecord(b *testing.B) {
	const n = 500
	body, ndjson := benchRequest(b, n)
	var in logspb.LogsData
	if err := proto.Unmarshal(body, &in); err != nil {
		b.Fatal(err)
	}
	asJSON := asJSON(b, &in, nil)
	list := &record.List{Limits: scan.Limits{RecordBytes: 1 << 20, PieceBytes: 64 << 10}}
	for _, c := range []struct {
		name   string
		decode func()
	}{
		{"protobuf", func() { otlpProtobuf.Decode(Request{}, body, list) }},
		{"JSON", func() { otlpJSON.Decode(Request{}, asJSON, list) }},
		{"NDJSON", func() { _ = list.Split(ndjson) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; i < b.N; i += n {
				list.Clear()
				c.decode()
				if list.Accepted != n {
					b.Fatal(list.Errors)
				}
			}
		})
	}
}

// A resource was once looked for anew for each of its scopes: 160 KB of them took a minute.
func TestOTLPTakesManyScopesOfAResource(t *testing.T) {
	const scopes = 400_000
	logs := strings.Repeat("\x12\x02\x12\x00", scopes) + "\x0a\x00"
	body := appendWireText(nil, 1, logs)
	records := &record.List{Limits: scan.Limits{RecordBytes: 1 << 20, PieceBytes: 64 << 10}}
	if _, bad := exchange(OTLP{}, otlpRequestOf(protobufType, ""), body, records); bad != nil || records.Accepted != scopes {
		t.Errorf("got %d records, %v, want %d", records.Accepted, bad, scopes)
	}
}

// An attribute takes two bytes in a body.
func TestOTLPTakesLittleMemoryForManyAttributes(t *testing.T) {
	for name, body := range map[string][]byte{
		"of a record":   appendWireText(nil, 1, appendWireText(nil, 2, appendWireText(nil, 2, strings.Repeat("\x32\x00", 4<<20)))),
		"of a resource": appendWireText(nil, 1, string(appendWireText(nil, 1, strings.Repeat("\x0a\x00", 4<<20)))+"\x12\x02\x12\x00"),
	} {
		records := &record.List{Limits: scan.Limits{RecordBytes: 1 << 20, PieceBytes: 64 << 10}}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, bad := exchange(OTLP{}, otlpRequestOf(protobufType, ""), body, records)
		runtime.ReadMemStats(&after)
		if bad != nil || records.RejectedBy[scan.TooLarge] != 1 {
			t.Errorf("%s: %d refused as too large, %v", name, records.RejectedBy[scan.TooLarge], bad)
		}
		if took := after.TotalAlloc - before.TotalAlloc; took > uint64(16*len(body)) {
			t.Errorf("%s: %d bytes were allocated for a body of %d", name, took, len(body))
		}
	}
}
