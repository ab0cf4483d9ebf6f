package protocol

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"millrace/internal/eventtime"
	"millrace/internal/record"
	"millrace/internal/scan"
)

// hec sends a body to HEC, and returns the answer, and the records with their keys sorted.
func hec(t *testing.T, path, query, body string) (a Answer, stored []string) {
	t.Helper()
	records := newRecords()
	a, bad := exchange(HEC{}, Request{Method: []byte("POST"), Path: []byte(path), Query: []byte(query), Header: headers{}}, []byte(body), records)
	if a.ContentType != "application/json" || !json.Valid(a.Body) {
		t.Errorf("%s: got %s %s", body, a.ContentType, a.Body)
	}
	if bad != nil {
		return a, nil
	}
	for line := range bytes.Lines(records.NDJSON) {
		stored = append(stored, sortedKeys(t, line))
	}
	return a, stored
}

// sortedKeys returns JSON with its keys in order. Of two members with one key it keeps the last, as jsonb does.
func sortedKeys(t testing.TB, text []byte) string {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	sorted, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(sorted)
}

func TestEventsBecomeRecords(t *testing.T) {
	for _, tt := range []struct{ name, body, stored string }{
		{"Fluent Bit's form", `{"time":1795809601.123457,"event":{"n":1,"time":"2026-11-27T20:00:01.123456789Z"}}{"time":1795809602.5,"event":{"n":2}}`,
			`{"@timestamp":"2026-11-27T20:00:01.123457Z","n":1,"time":"2026-11-27T20:00:01.123456789Z"} {"n":2,"time":"2026-11-27T20:00:02.5Z"}`},
		{"splunk-logging's form", `{"host":"web-1","source":"app","sourcetype":"httpevent","index":"main","time":"1795822841.182","event":{"message":{"n":0},"severity":"info"}}`,
			`{"host":"web-1","index":"main","message":{"n":0},"severity":"info","source":"app","sourcetype":"httpevent","time":"2026-11-27T23:40:41.182Z"}`},
		{"Bento's form", "{\"event\":\"{\\\"n\\\":1,\\\"http\\\":{\\\"status\\\":200}}\"}\n{\"event\":\"plain \\u00e9\\ud83d\\ude00\\n\"}\n", `{"http":{"status":200},"n":1} {"message":"plain é😀\n"}`},
		{"an array", `[{"event":"a"}, {"event":"b"}] [ {"event":"c"} ]`, `{"message":"a"} {"message":"b"} {"message":"c"}`},
		{"pretty-printed", "{\n  \"event\": {\n    \"a\": 1\n  }\n}\n\n{\n  \"event\": \"b\"\n}\n", `{"a":1} {"message":"b"}`},
		{"other events", `{"event":5}{"event":true}{"event":[1,"a"]}{"event":-0.5}{"event":{}}`, `{"message":5} {"message":true} {"message":[1,"a"]} {"message":-0.5} {}`},
		{"fields", `{"event":{"a":1,"host":"own"},"host":"web","fields":{"a":2,"b":"x","k8s.pod.name":"p","k8s.pod.uid":[1],"n":1.5,"t":true,"z":null}}`,
			`{"_splunk":{"host":"web"},"a":1,"b":"x","host":"own","k8s":{"pod":{"name":"p","uid":[1]}},"n":1.5,"splunk":{"a":2},"t":true,"z":null}`},
		{"fields that are none", `{"event":"a","fields":"x"}{"event":"b","fields":null}`, `{"fields":"x","message":"a"} {"message":"b"}`},
		{"nothing carries over", `{"event":"a","host":"h","time":1}{"event":"b"}`, `{"host":"h","message":"a","time":"1970-01-01T00:00:01Z"} {"message":"b"}`},
		{"no value", `{"event":"a","host":null,"time":null}{"event":"b","time":0}{"event":"c","time":"0"}{"event":"d","time":""}`,
			`{"message":"a"} {"message":"b"} {"message":"c"} {"message":"d","time":""}`},
		{"a time that is no number", `{"event":"a","time":"2026-11-27T20:00:01Z"}{"event":{"time":1},"time":"x"}`,
			`{"message":"a","time":"2026-11-27T20:00:01Z"} {"splunk":{"time":"x"},"time":1}`},
		{"times by their size", `{"event":"","time":1}{"event":"s","time":1795809601}{"event":"ms","time":1795809601123.5}{"event":"us","time":"1795809601123457"}{"event":"ns","time":1795809601123456789}`,
			`{"message":"s","time":"2026-11-27T20:00:01Z"} {"message":"ms","time":"2026-11-27T20:00:01.1235Z"} {"message":"us","time":"2026-11-27T20:00:01.123457Z"} {"message":"ns","time":"2026-11-27T20:00:01.123456789Z"}`},
		{"what is not known", `{"event":"a","entity":{"b":1},"c":1e2}`, `{"c":1e2,"entity":{"b":1},"message":"a"}`},
		{"what can be repaired", `{"event":{"a":NaN,"b":{"c":"\u0000"}},"host":"\ud800"}{"event":"x` + "\xff" + `","fields":{"n":Infinity}}`,
			`{"_repaired":["a","b","host"],"a":"NaN","b":{"c":"` + "\ufffd" + `"},"host":"` + "\ufffd" + `"} {"_repaired":["message"],"message":"x` + "\ufffd" + `","n":"Infinity"}`},
		{"a bad event costs its line", "{\"event\":\"a\"}{\"event\" \"b\"}{\"event\":\"c\"}\n{\"event\":\"d\"}\n{\"event\":{\"a\" 1}}\nno\n{\"event\":\"e\"}\n", `{"message":"a"} {"message":"d"} {"message":"e"}`},
		{"an event that has no end", "{\"event\":\"a\"}\n{\"event\":{\n{\"event\":\"b\"}\n{\"event\":\n\"c\"}\n", `{"message":"a"} {"message":"b"}`},
		{"no event among others", `{"event":"a"}{"time":1}{"event":null}{"event":""}`, `{"message":"a"}`},
	} {
		a, stored := hec(t, "/services/collector/event", "", tt.body)
		if got := strings.Join(stored, " "); a.Status != 200 || string(a.Body) != `{"text":"Success","code":0}` || got != tt.stored {
			t.Errorf("%s: got %d %s and\n%s, want\n%s", tt.name, a.Status, a.Body, got, tt.stored)
		}
	}
}

func TestLinesBecomeRecords(t *testing.T) {
	a, stored := hec(t, "/services/collector/raw/1.0", "channel=x&host=web%2D1&source=/var/log/app&index=main", "one\r\n\n{\"a\":1,\"host\":\"own\"}\ntwo \x00")
	want := `{"host":"web-1","index":"main","message":"one","source":"/var/log/app"} {"a":1,"host":"own","index":"main","source":"/var/log/app","splunk":{"host":"web-1"}}` +
		` {"_repaired":["message"],"host":"web-1","index":"main","message":"two ` + "\ufffd" + `","source":"/var/log/app"}`
	if got := strings.Join(stored, " "); a.Status != 200 || got != want {
		t.Errorf("got %d %s and\n%s, want\n%s", a.Status, a.Body, got, want)
	}
	for _, header := range []headers{nil, {"X-Parse": "false"}} {
		records := newRecords()
		r := Request{Path: []byte("/services/collector/raw"), Header: header}
		if header == nil {
			r.Query = []byte("parse=false")
		}
		if _, bad := exchange(HEC{}, r, []byte(`{"a":1}`), records); bad != nil || string(records.NDJSON) != `{"message":"{\"a\":1}"}`+"\n" {
			t.Errorf("without a look at texts: %v, %s", bad, records.NDJSON)
		}
	}
	_, stored = hec(t, "/services/collector", "parse=0&x=y", `{"event":"{\"a\":1}"}{"event":{"a":1,"b":"x"}}`)
	if got := strings.Join(stored, " "); got != `{"message":"{\"a\":1}"} {"a":1,"b":"x"}` {
		t.Errorf("events without a look at texts: %s", got)
	}
}

func TestEventsAreChangedAsTheClientAsks(t *testing.T) {
	_, stored := hec(t, "/services/collector", "fields=env=prod,a=b&time_field=ts", "{\"event\":{\"a\":1,\"ts\":1795809601},\"time\":1}\nno\n{\"event\":\"x\"}")
	want := `{"a":1,"env":"prod","original":{"time":"1970-01-01T00:00:01Z"},"time":1795809601,"ts":1795809601} {"a":"b","env":"prod","message":"x"}`
	if got := strings.Join(stored, " "); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for _, path := range []string{hecEvent, hecRaw} {
		if a, _ := hec(t, path, "fields=x", `{"event":1}`); a.Status != 400 || !strings.HasPrefix(string(a.Body), `{"text":"fields: got`) {
			t.Errorf("%s: got %d %s", path, a.Status, a.Body)
		}
	}
}

func TestWhatHoldsNoEventIsRefused(t *testing.T) {
	for _, tt := range []struct{ path, body, answer string }{
		{"/services/collector", "", `{"text":"No data","code":5}`},
		{"/services/collector/event", " \n", `{"text":"No data","code":5}`},
		{"/services/collector/event", "[]", `{"text":"No data","code":5}`},
		{"/services/collector/raw", "\r\n\n", `{"text":"No data","code":5}`},
		{"/services/collector", "no\n", `{"text":"Invalid data format","code":6,"invalid-event-number":0}`},
		{"/services/collector", `5`, `{"text":"Invalid data format","code":6,"invalid-event-number":0}`},
		{"/services/collector", `{"event":"a"`, `{"text":"Invalid data format","code":6,"invalid-event-number":0}`},
		{"/services/collector", `{"event":{"a" 1}}`, `{"text":"Invalid data format","code":6,"invalid-event-number":0}`},
		{"/services/collector", `{}`, `{"text":"Event field is required","code":12,"invalid-event-number":0}`},
		{"/services/collector", `{"time":1}{"event":null}`, `{"text":"Event field is required","code":12,"invalid-event-number":0}`},
		{"/services/collector", `{"event":""} {}`, `{"text":"Event field cannot be blank","code":13,"invalid-event-number":0}`},
		{"/services/collector", `{"event":{"` + strings.Repeat("x", 1<<12) + `":1}}`, `{"text":"Invalid data format","code":6,"invalid-event-number":0}`},
	} {
		a, stored := hec(t, tt.path, "", tt.body)
		if a.Status != 400 || string(a.Body) != tt.answer || len(stored) > 0 {
			t.Errorf("%.100s: got %d %s and %v, want %s", tt.body, a.Status, a.Body, stored, tt.answer)
		}
	}
}

func TestHECShims(t *testing.T) {
	for _, tt := range []struct {
		path   string
		down   error
		status int
		answer string
	}{
		{"/services/collector/health", nil, 200, `{"text":"HEC is healthy","code":17}`},
		{"/services/collector/health/1.0", errors.New("down"), 503, `{"text":"HEC is unhealthy, queues are full","code":18}`},
		{"/services/collector/ack", nil, 400, `{"text":"ACK is disabled","code":14}`},
	} {
		e, bad := HEC{}.Open(Request{Path: []byte(tt.path)})
		if _, ok := e.(Shim); !ok || bad != nil {
			t.Fatalf("%s wants records", tt.path)
		}
		if a := e.Answer(nil, Request{}, Outcome{Down: tt.down}); a.Status != tt.status || string(a.Body) != tt.answer {
			t.Errorf("%s: got %d %s, want %d %s", tt.path, a.Status, a.Body, tt.status, tt.answer)
		}
	}
	for _, route := range (HEC{}).Routes() {
		for _, method := range route.Keyless {
			e, _ := HEC{}.Open(Request{Method: []byte(method), Path: []byte(route.Path), Header: headers{}})
			if _, isShim := e.(Shim); !isShim {
				t.Errorf("%s %s takes records without a key", method, route.Path)
			}
		}
	}
}

func TestHECRefusesAsSplunkDoes(t *testing.T) {
	for _, tt := range []struct {
		status int
		header headers
		want   int
		answer string
	}{
		{401, headers{}, 401, `{"text":"Token is required","code":2}`},
		{401, headers{"Authorization": "Bearer x"}, 401, `{"text":"Invalid authorization","code":3}`},
		{401, headers{"Authorization": "splunk x"}, 403, `{"text":"Invalid token","code":4}`},
		{401, headers{"Authorization": "Basic x"}, 403, `{"text":"Invalid token","code":4}`},
		{401, headers{"X-API-Key": "x"}, 403, `{"text":"Invalid token","code":4}`},
		{403, headers{}, 403, `{"text":"why","code":4}`},
		{400, headers{}, 400, `{"text":"why","code":6}`},
		{404, headers{}, 404, `{"text":"why","code":404}`},
		{405, headers{}, 405, `{"text":"why","code":405}`},
		{413, headers{}, 413, `{"text":"why","code":27}`},
		{429, headers{}, 429, `{"text":"Server is busy","code":9}`},
		{503, headers{}, 503, `{"text":"Server is busy","code":9}`},
		{500, headers{}, 500, `{"text":"Internal server error","code":8}`},
	} {
		a := HEC{}.Refuse(nil, Request{Header: tt.header}, Refuse(tt.status, "why"))
		if a.Status != tt.want || string(a.Body) != tt.answer || a.ContentType != "application/json" {
			t.Errorf("%d with %v: got %d %s, want %d %s", tt.status, tt.header, a.Status, a.Body, tt.want, tt.answer)
		}
	}
}

func TestTheTimeOfAnEnvelopeIsTheRecords(t *testing.T) {
	rule, err := eventtime.New(eventtime.DefaultFields, nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	records := newRecords()
	_, bad := exchange(HEC{}, Request{Path: []byte(hecPath), Header: headers{}}, []byte(`{"event":{"timestamp":5e8,"ts":1},"time":1795809601.25}`), records)
	want := time.Date(2026, 11, 27, 20, 0, 1, 250e6, time.UTC).UnixMicro()
	if got, is := rule.Find(records.NDJSON); bad != nil || got != want || is != eventtime.Own {
		t.Errorf("%s: its time is %v, %v", records.NDJSON, got, is)
	}
}

func TestUnixNanos(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1": 1e9, "1.5": 15e8, "1.0000000019": 1000000001, "99999999999": -1, "9223372036": -1, "9223372035": 9223372035e9, "100000000000": 1e17,
		"99999999999999": -1, "100000000000000": 1e17, "100000000000000000": 1e17, "999999999999999999": 999999999999999999, "1795809601123456789": 1795809601123456789, "9223372036854775807": -1, "9999999999999999999": -1, "10000000000000000000": -1,
		"": -1, ".5": -1, "5.": -1, "-1": -1, "1e9": -1, "1.x": -1, "x": -1, "1.5.5": -1,
	} {
		got, ok := unixNanos([]byte(text))
		if ok != (want >= 0) || ok && got != want {
			t.Errorf("%s: got %d %v, want %d", text, got, ok, want)
		}
	}
}

// FuzzHEC checks that a body of any bytes has an answer, and that each envelope that encoding/json reads is a record.
func FuzzHEC(f *testing.F) {
	f.Add([]byte(`{"event":{"a":1},"time":1.5,"fields":{"b.c":"d"}}{"event":"{\"a\":NaN}"}`))
	f.Add([]byte("[{\"event\":\"\\ud800\\u0000\"},\n{\"event\":5,\"host\":[{}]}]"))
	f.Add([]byte("{\"event\":{\n{\"event\":\"x\"}\n"))
	f.Add([]byte(`{"event":"a","x":{"a":},"fields":{"x.a.b":1}}`))
	f.Add([]byte(`{"event":{"a":{"b":]},"fields":{"a.b.c":1}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, path := range []string{hecEvent, hecRaw} {
			records := newRecords()
			records.KeepVerdicts = true
			a, bad := exchange(HEC{}, Request{Method: []byte("POST"), Path: []byte(path), Header: headers{}}, body, records)
			if !json.Valid(a.Body) {
				t.Fatalf("got %s", a.Body)
			}
			if bad != nil || path == hecRaw {
				continue
			}
			if (a.Status == 200) != (records.Accepted > 0) {
				t.Errorf("got %d for %d records", a.Status, records.Accepted)
			}
			// What encoding/json can read from the beginning on.
			d := json.NewDecoder(bytes.NewReader(body))
			d.UseNumber()
			stored := bytes.Split(records.NDJSON, []byte("\n"))
			for i := 0; ; i++ {
				var envelope map[string]any
				if d.Decode(&envelope) != nil || envelope == nil {
					break
				}
				event := envelope["event"]
				if i >= len(records.Verdicts) {
					t.Fatalf("%d verdicts for %s", len(records.Verdicts), body)
				}
				if event == nil || event == "" || !records.Verdicts[i].Accepted() {
					if bytes.IndexByte(body, '\\') < 0 && event != nil && event != "" && len(body) < 1000 {
						t.Errorf("event %d of %q was refused: %v", i, body, records.Errors)
					}
					continue
				}
				line := stored[0]
				stored = stored[1:]
				if _, ok := event.(json.Number); ok {
					if want := fmt.Sprintf(`"message":%v`, event); !bytes.Contains(line, []byte(want)) {
						t.Errorf("event %d of %q was stored as %s", i, body, line)
					}
				}
			}
		}
	})
}

func BenchmarkHEC(b *testing.B) {
	_, lines := bulkOf(500, "")
	var body []byte
	for line := range bytes.Lines(lines) {
		body = append(append(append(body, `{"time":1795809601.123457,"host":"web-1","sourcetype":"app","event":`...), bytes.TrimSpace(line)...), '}')
	}
	records := &record.List{Limits: scan.Limits{RecordBytes: 1 << 20, PieceBytes: 64 << 10}}
	b.SetBytes(int64(len(lines)))
	b.ReportAllocs()
	for b.Loop() {
		records.Clear()
		e, _ := HEC{}.Open(Request{Path: []byte(hecPath), Header: headers{}})
		if bad := e.Decode(Request{Header: headers{}}, body, records); bad != nil || records.Accepted != 500 {
			b.Fatal(bad, records.Errors)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/500, "ns/record")
}
