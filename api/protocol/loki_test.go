package protocol

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace/internal/record"
	"millrace/internal/scan"
)

// lokiStream is a stream of a push.
type lokiStream struct {
	labels  [][2]string
	entries []lokiEntry
}

type lokiEntry struct {
	nanos    int64
	line     string
	metadata [][2]string
}

// pushInProtobuf returns streams as a PushRequest.
func pushInProtobuf(streams ...lokiStream) (body []byte) {
	for _, s := range streams {
		var labels []string
		for _, l := range s.labels {
			labels = append(labels, l[0]+"="+strconv.Quote(l[1]))
		}
		stream := appendWireText(nil, 1, "{"+strings.Join(labels, ", ")+"}")
		for _, e := range s.entries {
			entry := appendWireText(nil, 1, appendWireInt(appendWireInt(nil, 1, uint64(e.nanos/1e9)), 2, uint64(e.nanos%1e9)))
			entry = appendWireText(entry, 2, e.line)
			for _, m := range e.metadata {
				entry = appendWireText(entry, 3, appendWireText(appendWireText(nil, 1, m[0]), 2, m[1]))
			}
			stream = appendWireText(stream, 2, entry)
		}
		body = appendWireText(body, 1, appendWireInt(stream, 3, 12345))
	}
	return appendWireText(body, 2, "x")
}

// pushInJSON returns streams as JSON.
func pushInJSON(t testing.TB, streams ...lokiStream) []byte {
	t.Helper()
	object := func(pairs [][2]string) map[string]string {
		o := map[string]string{}
		for _, p := range pairs {
			o[p[0]] = p[1]
		}
		return o
	}
	all := []any{}
	for _, s := range streams {
		values := [][]any{}
		for _, e := range s.entries {
			value := []any{strconv.FormatInt(e.nanos, 10), e.line}
			if e.metadata != nil {
				value = append(value, object(e.metadata))
			}
			values = append(values, value)
		}
		all = append(all, map[string]any{"stream": object(s.labels), "values": values})
	}
	b, err := json.Marshal(map[string]any{"streams": all})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// lokiRecords returns what becomes of a push.
func lokiRecords(t testing.TB, content, query string, body []byte) (got string, a Answer, bad *Refusal) {
	t.Helper()
	records := &record.List{Limits: scan.Limits{RecordBytes: 1 << 20, PieceBytes: 64 << 10}}
	a, bad = exchange(Loki{}, Request{Path: []byte("/loki/api/v1/push"), Query: []byte(query), Header: otlpHeader(content)}, body, records)
	return sortedLines(t, records.NDJSON), a, bad
}

func TestEntriesOfLokiBecomeRecords(t *testing.T) {
	labels := [][2]string{{"app", "shop"}, {"level", "info"}}
	for _, tt := range []struct {
		name string
		in   []lokiStream
		want string
	}{
		{"nothing", nil, ""},
		{"lines", []lokiStream{{labels, []lokiEntry{{1795822841000000001, "a", nil}, {1795822841500000000, "b\n\"é", nil}}}, {nil, []lokiEntry{{0, "c", nil}}}},
			`{"app":"shop","level":"info","message":"a","time":"2026-11-27T23:40:41.000000001Z"}
{"app":"shop","level":"info","message":"b\n\"é","time":"2026-11-27T23:40:41.5Z"}
{"message":"c"}`},
		{"lines of JSON", []lokiStream{{labels, []lokiEntry{
			{1e18, `{"level":30,"time":1795822828224,"msg":"x","http":{"status":200}}`, [][2]string{{"trace_id", "abc"}, {"msg", "y"}}},
			{1e18, `{"level":"info","app":"shop"}`, [][2]string{{"a.b", "c"}}},
		}}}, `{"@timestamp":"2001-09-09T01:46:40Z","app":"shop","http":{"status":200},"labels":{"level":"info"},"level":30,"metadata":{"msg":"y"},"msg":"x","time":1795822828224,"trace_id":"abc"}
{"a.b":"c","app":"shop","level":"info","time":"2001-09-09T01:46:40Z"}`},
		{"labels of odd names", []lokiStream{{[][2]string{{"__path__", "/var/log/*"}, {"time", "x"}, {"message", "y"}}, []lokiEntry{{1e18, "a", nil}}}},
			`{"__path__":"/var/log/*","labels":{"message":"y","time":"x"},"message":"a","time":"2001-09-09T01:46:40Z"}`},
		{"lines that can't be stored", []lokiStream{{[][2]string{{"a", "b\x00"}}, []lokiEntry{{1e18, "\x00", nil}, {1e18, "ok", nil}}}},
			`{"_repaired":["message","a"],"a":"b�","message":"�","time":"2001-09-09T01:46:40Z"}
{"_repaired":["a"],"a":"b�","message":"ok","time":"2001-09-09T01:46:40Z"}`},
	} {
		for content, body := range map[string][]byte{"": pushInProtobuf(tt.in...), "application/json; charset=utf-8": pushInJSON(t, tt.in...)} {
			got, a, bad := lokiRecords(t, content, "", body)
			if diff := cmp.Diff(tt.want, got); diff != "" || bad != nil || a.Status != 204 || len(a.Body) > 0 {
				t.Errorf("%s, %q: answered %d %q %v (-want +got)\n%s", tt.name, content, a.Status, a.Body, bad, diff)
			}
		}
	}
}

func TestWhatClientsWriteInTheJSONOfLokiIsTaken(t *testing.T) {
	value := func(value string) string { return `{"streams":[{"stream":{"a":"b"},"values":[` + value + `]}]}` }
	for _, tt := range []struct{ body, want string }{
		{"", ""}, {"{}", ""}, {" [] ", ""}, {`{"streams":null}`, ""}, {`{"streams":[]}`, ""}, {"\xef\xbb\xbf{\"x\":[{}]}", ""},
		{`{"streams":[{"values":[["1000000000","x"]],"stream":{"a":"b"}},{"values":[["0","y"]]}]}`, "{\"a\":\"b\",\"message\":\"x\",\"time\":\"1970-01-01T00:00:01Z\"}\n{\"message\":\"y\"}"},
		{value(`[1795822841000000001,"x"]`), `{"a":"b","message":"x","time":"2026-11-27T23:40:41.000000001Z"}`},
		{value(`["","x"],[null,"y"],["0","z"]`), "{\"a\":\"b\",\"message\":\"x\"}\n{\"a\":\"b\",\"message\":\"y\"}\n{\"a\":\"b\",\"message\":\"z\"}"},
		{value(`["-1","x"]`), `{"a":"b","message":"x","time":"1969-12-31T23:59:59.999999999Z"}`},
		{value(`["2026-11-28T10:00:00Z","x"]`), `{"a":"b","message":"x","time":"2026-11-28T10:00:00Z"}`},
		{value(`["5","x",{"n":1,"f":1.50,"e":1e2,"t":true,"z":null,"o":{"p":[1]},"s":"\u00e9"},"more"]`),
			`{"a":"b","e":1e2,"f":1.50,"message":"x","n":1,"o":{"p":[1]},"s":"é","t":true,"time":"1970-01-01T00:00:00.000000005Z","z":null}`},
		{value(`["5","{\"message\":\"a\\nb\",\"n\":1}"]`), `{"a":"b","message":"a\nb","n":1,"time":"1970-01-01T00:00:00.000000005Z"}`},
		{value(`["0",{"c":1}],["0",5],["0",null],["0"]`), "{\"a\":\"b\",\"c\":1}\n{\"a\":\"b\",\"message\":5}\n{\"a\":\"b\",\"message\":null}\n{\"a\":\"b\"}"},
		{`{"streams":[{"labels":"{a=\"b\"}","entries":[{"ts":"2026-11-28T10:00:00Z","line":"x"},{"line":"y"}]}]}`, "{\"a\":\"b\",\"message\":\"x\",\"time\":\"2026-11-28T10:00:00Z\"}\n{\"a\":\"b\",\"message\":\"y\"}"},
		{`{"streams":[{"stream":{"n":1,"o":[true],"\u0061":"\ud800"},"values":[["0","x"]]}]}`, `{"_repaired":["a"],"a":"�","message":"x","n":1,"o":[true]}`},
	} {
		got, a, bad := lokiRecords(t, jsonType, "", []byte(tt.body))
		if got != tt.want || bad != nil || a.Status != 204 {
			t.Errorf("%s: got %s %v, want %s", tt.body, got, bad, tt.want)
		}
	}
}

func TestLabelsOfAStreamAreRead(t *testing.T) {
	for text, want := range map[string]string{
		``:                             `{}`,
		`{}`:                           `{}`,
		` { } `:                        `{}`,
		`{a="b"}`:                      `{"a":"b"}`,
		`{a="b", c="d",}`:              `{"a":"b","c":"d"}`,
		`{ a = "b" ,"c.d" = "e"}`:      `{"a":"b","c.d":"e"}`,
		"{a=`b\\n\"`}":                 `{"a":"b\\n\""}`,
		`{a="\"\\\n\t\x41\u00e9\101"}`: `{"a":"\"\\\n\tAéA"}`,
		`{a="\q{},=\""}`:               `{"a":"\\q{},=\""}`,
		`{__path__="/var/log/*.log"}`:  `{"__path__":"/var/log/*.log"}`,
		`{a="b"`:                       `{"labels":"{a=\"b\""}`,
		`{a=b}`:                        `{"labels":"{a=b}"}`,
		`{a="b"} x`:                    `{"labels":"{a=\"b\"} x"}`,
		`{,}`:                          `{"labels":"{,}"}`,
		`{a="b" c="d"}`:                `{"labels":"{a=\"b\" c=\"d\"}"}`,
		`a="b"`:                        `{"labels":"a=\"b\""}`,
		`{="b"}`:                       `{"labels":"{=\"b\"}"}`,
		`{a`:                           `{"labels":"{a"}`,
		`{a="`:                         `{"labels":"{a=\""}`,
		`{"a`:                          `{"labels":"{\"a"}`,
		`{a="b",`:                      `{"labels":"{a=\"b\","}`,
	} {
		body := appendWireText(nil, 1, appendWireText(appendWireText(nil, 1, text), 2, []byte{}))
		got, _, bad := lokiRecords(t, "", "", body)
		if want = strings.TrimSuffix(want, "}") + map[bool]string{true: `"message":""}`, false: `,"message":""}`}[want == "{}"]; got != sortedLines(t, []byte(want)) || bad != nil {
			t.Errorf("%s: got %s %v, want %s", text, got, bad, want)
		}
	}
}

func TestProtobufAndJSONOfOnePushMakeTheSameRecords(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	words := []string{"a", "b_c", "level", "time", "message", "labels", "metadata", "é\"\\\n\t", "", `{"a":1,"labels":{},"b.c":"x"}`, `{"time":5,"log":"{\"a\":[1]}"}`, "plain text", "{", "\x7f\x01"}
	pairs := func() (all [][2]string) {
		seen := map[string]bool{}
		for range random.IntN(4) {
			if key := words[random.IntN(7)]; !seen[key] {
				seen[key] = true
				all = append(all, [2]string{key, words[random.IntN(len(words))]})
			}
		}
		// encoding/json sorts keys. The order decides whether what loses is in labels or, because that name is taken, in _labels.
		slices.SortFunc(all, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
		return all
	}
	for range 2000 {
		var streams []lokiStream
		n := 0
		for range random.IntN(4) {
			s := lokiStream{labels: pairs()}
			for range random.IntN(4) {
				s.entries = append(s.entries, lokiEntry{random.Int64N(2e18) * random.Int64N(2), words[random.IntN(len(words))], pairs()})
				n++
			}
			streams = append(streams, s)
		}
		want, _, bad := lokiRecords(t, "application/x-protobuf", "", pushInProtobuf(streams...))
		body := pushInJSON(t, streams...)
		got, _, badJSON := lokiRecords(t, jsonType, "", body)
		if bad != nil || badJSON != nil || got != want || n > 0 && strings.Count(got, "\n") != n-1 {
			t.Fatalf("%v %v (-protobuf +JSON)\n%s\n%s", bad, badJSON, cmp.Diff(want, got), body)
		}
	}
}

func TestAMalformedPushIsRefusedWhole(t *testing.T) {
	good := pushInProtobuf(lokiStream{[][2]string{{"a", "b"}}, []lokiEntry{{1, "line", [][2]string{{"c", "d"}}}}})
	good = good[:len(good)-3] // without the last field
	for i := 1; i < len(good); i++ {
		if _, a, bad := lokiRecords(t, "", "", good[:i]); bad == nil || a.Status != 400 {
			t.Errorf("cut after %d bytes: %v", i, bad)
		}
	}
	for _, body := range []string{"{", `{"streams":[{]}`, `{"streams":5}`, "[1]", "{} x", `{"streams":[{"stream":"a"}]}`, `{"streams":[{"values":{}}]}`, `{"streams":[{"values":[["0","x]]}]}`,
		`{"streams":[{"values":[["0","x",5]]}]}`, `{"streams":[{"stream":{"a":tru},"values":[]}]}`, `{"streams":[{"values":[["0","x"]`} {
		got, a, bad := lokiRecords(t, jsonType, "", []byte(body))
		if bad == nil || a.Status != 400 || got != "" || !strings.HasPrefix(a.ContentType, "text/plain") || len(a.Body) < 10 {
			t.Errorf("%s: got %s, answered %d %s", body, got, a.Status, a.Body)
		}
	}
	if _, a, _ := lokiRecords(t, "", "", []byte(`{"streams":[]}`)); a.Status != 400 || !strings.Contains(string(a.Body), "looks like JSON") {
		t.Errorf("got %d %q", a.Status, a.Body)
	}
	if a := (Loki{}).Refuse(nil, Request{}, Refuse(http.StatusRequestEntityTooLarge, "too large")); a.Status != 400 || string(a.Body) != "too large\n" {
		t.Errorf("got %d %q", a.Status, a.Body)
	}
}

func TestABadEntryOfLokiHarmsNoOther(t *testing.T) {
	got, a, bad := lokiRecords(t, jsonType, "", []byte(`{"streams":[{"values":[["0","x"],["0","y",{"k":["\q"]}],["0","z"]]}]}`))
	if want := "{\"message\":\"x\"}\n{\"message\":\"z\"}"; got != want || a.Status != 204 || bad != nil {
		t.Errorf("got %s %d %v", got, a.Status, bad)
	}
}

func TestLabelsInEachRecordAreBounded(t *testing.T) {
	s := lokiStream{[][2]string{{"a", strings.Repeat("x", 1<<20)}}, make([]lokiEntry, 100_000)}
	for content, body := range map[string][]byte{"": pushInProtobuf(s), jsonType: pushInJSON(t, s)} {
		list := &record.List{Limits: scan.Limits{RecordBytes: 2 << 20, PieceBytes: 64 << 10}}
		a, bad := exchange(Loki{}, Request{Path: []byte("/loki/api/v1/push"), Header: otlpHeader(content)}, body, list)
		if bad != nil || a.Status != 204 || list.RejectedBy[scan.TooLarge] == 0 || list.Accepted == 0 || len(list.NDJSON) > 4*len(body)+64<<20 {
			t.Errorf("%q: %d bytes became %d: %v %d", content, len(body), len(list.NDJSON), bad, a.Status)
		}
	}
}

func TestLokiTellsItsVersionAndItsEncoding(t *testing.T) {
	e, bad := Loki{}.Open(Request{Path: []byte(lokiBuildInfoPath), Header: headers{}})
	if bad != nil {
		t.Fatal(bad)
	}
	_, isShim := e.(Shim)
	if a := e.Answer(nil, Request{}, Outcome{}); !isShim || a.Status != 200 || !strings.HasPrefix(string(a.Body), `{"version":"3.0.0"`) || !json.Valid(a.Body) {
		t.Errorf("got %d %s", a.Status, a.Body)
	}
	for content, want := range map[string]string{"": "snappy", "application/x-protobuf": "snappy", "application/json": ""} {
		e, _ := Loki{}.Open(Request{Path: []byte("/api/prom/push"), Header: otlpHeader(content)})
		got := ""
		if encoded, ok := e.(Encoded); ok {
			got = encoded.Encoding()
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", content, got, want)
		}
	}
}

func FuzzLoki(f *testing.F) {
	f.Add(false, pushInProtobuf(lokiStream{[][2]string{{"a", "b\n"}}, []lokiEntry{{1, `{"a":1}`, [][2]string{{"c", "d"}}}, {0, "x", nil}}}))
	f.Add(true, []byte(`{"streams":[{"values":[["0","x"]],"stream":{"a":"b\u0000","n":1}},{"labels":"{a=\"b\\n\"}","entries":[{"ts":"1","line":"{}"}]}]}`))
	f.Add(true, []byte(`{"streams":[{"stream":{"a":[1,{"b":1e5}]},"values":[[5,{"c":"\ud83d\ude00"},{"d":null}],["","{\"log\":\"{}\"}"]]}]}`))
	f.Fuzz(func(t *testing.T, isJSON bool, body []byte) {
		content := ""
		if isJSON {
			content = jsonType
		}
		var before string
		for range 2 {
			list := newRecords()
			a, bad := exchange(Loki{}, Request{Path: []byte("/loki/api/v1/push"), Header: otlpHeader(content)}, body, list)
			if bad == nil && a.Status != 204 || bad != nil && a.Status != 400 {
				t.Fatalf("answered %d %v", a.Status, bad)
			}
			sortedLines(t, list.NDJSON)
			if before != "" && before != string(list.NDJSON) {
				t.Fatalf("the same body made\n%s\nand\n%s", before, list.NDJSON)
			}
			before = string(list.NDJSON)
			if again := newRecords(); len(list.NDJSON) > 0 {
				if err := again.Split([]byte(before)); err != nil || again.Rejected > 0 || string(again.NDJSON) != before {
					t.Fatalf("%v: what was made is not as it would be stored\n%s", err, before)
				}
			}
		}
	})
}

// benchPush returns a push of common lines in both forms.
func benchPush(t testing.TB, n int, line func(i int) string, perStream int) (protobuf, asJSON []byte) {
	var streams []lokiStream
	for i := range n {
		if i%perStream == 0 {
			streams = append(streams, lokiStream{labels: [][2]string{{"app", "checkout"}, {"host", "web-1"}, {"level", "info"}}})
		}
		s := &streams[len(streams)-1]
		s.entries = append(s.entries, lokiEntry{nanos: 1795822841000000000 + int64(i), line: line(i)})
	}
	return pushInProtobuf(streams...), pushInJSON(t, streams...)
}

func benchText(i int) string {
	return fmt.Sprintf("%s order=%d", strings.Repeat("order placed and paid, thank you; ", 5), i)
}

func benchJSON(i int) string {
	return fmt.Sprintf(`{"run":"bench","n":%d,"message":"%s","http":{"status":200,"path":"/a"},"user":"someone"}`, i, strings.Repeat("order placed; ", 8))
}

func TestCommonRecordsOfLokiCostNoAllocation(t *testing.T) {
	const n = 500
	for _, line := range []func(int) string{benchText, benchJSON} {
		for _, perStream := range []int{1, n} {
			protobuf, asJSON := benchPush(t, n, line, perStream)
			list := &record.List{Limits: scan.Limits{RecordBytes: 1 << 20, PieceBytes: 64 << 10}}
			for name, decode := range map[string]func(){
				"protobuf": func() { lokiProtobuf{}.Decode(Request{}, protobuf, list) },
				"JSON":     func() { lokiJSON{}.Decode(Request{}, asJSON, list) },
			} {
				allocs := testing.AllocsPerRun(20, func() {
					list.Clear()
					decode()
				})
				if allocs > 10 || list.Accepted != n {
					t.Errorf("%s, %d a stream: %v allocations for %d records", name, perStream, allocs, list.Accepted)
				}
			}
		}
	}
}

// BenchmarkLokiRecord decodes records of Loki.
func BenchmarkLokiRecord(b *testing.B) {
	const n = 500
	list := &record.List{Limits: scan.Limits{RecordBytes: 1 << 20, PieceBytes: 64 << 10}}
	for _, line := range []struct {
		name string
		make func(int) string
	}{{"text", benchText}, {"lines of JSON", benchJSON}} {
		protobuf, asJSON := benchPush(b, n, line.make, n)
		_, single := benchPush(b, n, line.make, 1)
		lokiProtobuf{}.Decode(Request{}, protobuf, list)
		ndjson := append([]byte(nil), list.NDJSON...)
		for _, c := range []struct {
			name   string
			decode func()
		}{
			{"protobuf", func() { lokiProtobuf{}.Decode(Request{}, protobuf, list) }},
			{"JSON", func() { lokiJSON{}.Decode(Request{}, asJSON, list) }},
			{"JSON, a stream a record", func() { lokiJSON{}.Decode(Request{}, single, list) }},
			{"the records as NDJSON", func() { _ = list.Split(ndjson) }},
		} {
			b.Run(line.name+"/"+c.name, func(b *testing.B) {
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
}
