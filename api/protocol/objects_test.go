package protocol

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace/internal/record"
	"millrace/internal/scan"
)

// made returns what a protocol makes of a body, each record's members in the order of their names.
func made(t *testing.T, p Protocol, path, query string, header headers, body string) (got string, a Answer, bad *Refusal) {
	t.Helper()
	records := newRecords()
	a, bad = exchange(p, Request{Method: []byte("POST"), Path: []byte(path), Query: []byte(query), Header: header}, []byte(body), records)
	return sortedLines(t, records.NDJSON), a, bad
}

func TestLogsOfDatadogBecomeRecords(t *testing.T) {
	text := headers{"Content-Type": "text/plain"}
	for _, tt := range []struct {
		name, query string
		header      headers
		in          string
		status      int
		want        string
	}{
		{"the agent's", "", headers{"Content-Type": "application/json"},
			`[{"message":"charged","status":"Warning","timestamp":1795860000123,"hostname":"web1","service":"shop","ddsource":"go","ddtags":"env:prod,dc:a,dc:b,canary,"}]`, 202,
			`{"host":{"name":"web1"},"level":"warning","message":"charged","service":{"name":"shop"},"source":"go","tags":{"canary":true,"dc":["a","b"],"env":"prod"},"time":"2026-11-28T10:00:00.123Z"}`},
		{"Fluent Bit's", "", headers{}, `[{"timestamp":1795860000123,"n":1,"level":"info","message":"line","time":"2026-11-27T20:00:01.123456789Z","http":{"status":200}}]`, 202,
			`{"@timestamp":"2026-11-28T10:00:00.123Z","http":{"status":200},"level":"info","message":"line","n":1,"time":"2026-11-27T20:00:01.123456789Z"}`},
		{"a message that is an object", "", headers{}, `{"message":{"a":1},"status":"info"}`, 202, `{"a":1,"level":"info"}`},
		{"a message that is the text of one", "", headers{}, `{"message":"{\"a\":1,\"level\":\"error\"}","status":"info"}`, 202, `{"a":1,"datadog":{"level":"info"},"level":"error"}`},
		{"members of other types", "", headers{}, `{"message":1,"status":3,"hostname":null,"ddtags":["a"],"timestamp":"then"}`, 202, `{"ddtags":["a"],"hostname":null,"message":1,"status":3,"time":"then"}`},
		{"a probe", "", headers{}, `{}`, 202, ""},
		{"nothing", "", headers{}, ``, 202, ""},
		{"several", "", headers{}, `{"message":"a"}{"message":"b"}` + "\n[{\"message\":\"c\"}]", 202, "{\"message\":\"a\"}\n{\"message\":\"b\"}\n{\"message\":\"c\"}"},
		{"one that is broken", "", headers{}, "{\"message\":\"a\"}\n{\"message\":\n{\"message\":\"b\"}", 202, "{\"message\":\"a\"}\n{\"message\":\"b\"}"},
		{"no JSON", "", headers{}, `x`, 400, ""},
		{"text", "ddtags=env:prod&ddsource=nginx&service=web&hostname=h", headers{"Content-Type": "text/plain", "Dd-Message-Timestamp": "1795860000000"}, "a\r\n\n{\"b\":1}\n", 202,
			`{"host":{"name":"h"},"message":"a","service":{"name":"web"},"source":"nginx","tags":{"env":"prod"},"time":"2026-11-28T10:00:00Z"}
{"b":1,"host":{"name":"h"},"service":{"name":"web"},"source":"nginx","tags":{"env":"prod"},"time":"2026-11-28T10:00:00Z"}`},
		{"JSON that is said to be text", "", text, `[{"message":"a"}]`, 202, `{"message":"a"}`},
		{"a NUL", "", headers{}, `{"message":"a\u0000"}`, 202, `{"_repaired":["message"],"message":"a` + "�" + `"}`},
	} {
		got, a, _ := made(t, Datadog{}, "/api/v2/logs", tt.query, tt.header, tt.in)
		if diff := cmp.Diff(tt.want, got); diff != "" || a.Status != tt.status {
			t.Errorf("%s: %d %s (-want +got)\n%s", tt.name, a.Status, a.Body, diff)
		}
		if !json.Valid(a.Body) {
			t.Errorf("%s: the answer is %s", tt.name, a.Body)
		}
	}
	if _, a, _ := made(t, Datadog{}, datadogValidate, "", headers{}, ""); string(a.Body) != `{"valid":true}` {
		t.Errorf("got %s", a.Body)
	}
	if a := (Datadog{}).Refuse(nil, Request{}, Refuse(401, "no key")); a.Status != 403 || !strings.Contains(string(a.Body), `"detail":"no key"`) {
		t.Errorf("got %d %s", a.Status, a.Body)
	}
}

func TestMessagesOfGELFBecomeRecords(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		status   int
		want     string
	}{
		{"the specification's", `{"version":"1.1","host":"example.org","short_message":"A short message","full_message":"Backtrace here\n\nmore","timestamp":1385053862.3072,"level":1,"_user_id":9001,"_some_info":"foo","_some_env_var":"bar"}`, 202,
			`{"full_message":"Backtrace here\n\nmore","host":{"name":"example.org"},"level":"alert","message":"A short message","some_env_var":"bar","some_info":"foo","time":"2013-11-21T17:11:02.3072Z","user_id":9001}`},
		{"lenient", `{"short_message":"{\"a\":1}","_id":"x","_service.name":"shop","_o":{"p":[1]},"level":9,"timestamp":"1795860000","facility":"f","_":1}`, 202,
			`{"_":1,"a":1,"facility":"f","gelf_id":"x","level":9,"o":{"p":[1]},"service":{"name":"shop"},"time":"2026-11-28T10:00:00Z"}`},
		{"several", `{"short_message":"a"}` + "\n" + `{"short_message":"b"}`, 202, "{\"message\":\"a\"}\n{\"message\":\"b\"}"},
		{"a field named as another", `{"short_message":"a","_message":"b","_level":"c","level":3}`, 202, `{"additional":{"message":"b"},"gelf":{"level":"error"},"level":"c","message":"a"}`},
		{"nothing", ``, 202, ""},
		{"no JSON", `x`, 400, ""},
	} {
		got, a, _ := made(t, GELF{}, "/gelf", "", headers{}, tt.in)
		if diff := cmp.Diff(tt.want, got); diff != "" || a.Status != tt.status {
			t.Errorf("%s: %d %s (-want +got)\n%s", tt.name, a.Status, a.Body, diff)
		}
	}
}

func TestMessagesOfGELFOverSocketsBecomeRecords(t *testing.T) {
	const peer = `"peer":"192.0.2.7"`
	for _, tt := range []struct {
		name, in, want string
		refused        int
	}{
		{"Docker's", `{"version":"1.1","host":"node1","short_message":"line","timestamp":1795860000.123,"level":6,"_container_name":"shop","_created":"2026-11-28T09:00:00Z"}` + "\x00",
			`{"container_name":"shop","created":"2026-11-28T09:00:00Z","gelf":{` + peer + `},"host":{"name":"node1"},"level":"info","message":"line","time":"2026-11-28T10:00:00.123Z"}`, 0},
		{"Log4j's", `{"version":"1.1","host":"h","timestamp":1795860000.1,"level":3,"_thread":"main","_logger":"a.B","short_message":"x","full_message":"x\n\tat a.B"}`,
			`{"full_message":"x\n\tat a.B","gelf":{` + peer + `},"host":{"name":"h"},"level":"error","logger":"a.B","message":"x","thread":"main","time":"2026-11-28T10:00:00.1Z"}`, 0},
		{"one that says who its peer is", `{"short_message":"x","gelf":{"peer":"198.51.100.1"},"_gelf":1}`, `{"_gelf":{"gelf":{"peer":"198.51.100.1"}},"gelf":1,"gelf.peer":"192.0.2.7","message":"x"}`, 0},
		{"a field that is lost to another", `{"short_message":"x","_level":"c","level":3}`, `{"gelf":{"level":"error"},"gelf.peer":"192.0.2.7","level":"c","message":"x"}`, 0},
		{"several", `{"short_message":"a"}{"short_message":"b"}`, `{"gelf":{` + peer + `},"message":"a"}` + "\n" + `{"gelf":{` + peer + `},"message":"b"}`, 0},
		{"one that was cut", `{"short_message":"a`, `{"gelf":{` + peer + `},"message":"{\"short_message\":\"a"}`, 0},
		{"no object", "GET / HTTP/1.1\r\n", "", 1},
		{"nothing", " \n\x00", "", 0},
	} {
		got := recordsOf(GELF{}, messagesOf(tt.in))
		if diff := cmp.Diff(tt.want, sortedLines(t, got.NDJSON)); diff != "" || got.Rejected != tt.refused {
			t.Errorf("%s: %d refused (-want +got)\n%s", tt.name, got.Rejected, diff)
		}
	}
}

// FuzzGELFMessages makes records of anything. Each text that begins as an object is one at least, unless it is empty, and jsonb takes them.
func FuzzGELFMessages(f *testing.F) {
	f.Add([]byte(`{"version":"1.1","host":"h","short_message":"{\"a\":1}","timestamp":1795860000.123,"level":6,"_gelf.peer":"x"}`), []byte(`[{"short_message":"a"},{"b":`))
	f.Add([]byte("{\"short_message\":\"\\ud800\\u0000\xff\"}{}{\x00"), []byte("x"))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		records := recordsOf(GELF{}, messagesOf(string(one), string(two)))
		var object map[string]any
		if json.Unmarshal(one, &object) == nil && len(object) > 0 && records.Accepted+records.Rejected < 1 {
			t.Errorf("%q is no record", one)
		}
		if records.Accepted == 0 {
			return
		}
		again := record.List{Limits: scan.Limits{RecordBytes: 1 << 20, PieceBytes: 64 << 10}}
		if err := again.Split(records.NDJSON); err != nil || again.Accepted != records.Accepted || string(again.NDJSON) != string(records.NDJSON) {
			t.Errorf("the scanner makes of %s %s, %v", records.NDJSON, again.NDJSON, err)
		}
	})
}

// FuzzObjects sends anything to Datadog and GELF. What they accept jsonb takes, and what is an object for encoding/json is a record.
func FuzzObjects(f *testing.F) {
	f.Add([]byte(`[{"message":"x","status":"info","timestamp":1795860000123,"hostname":"h","ddtags":"a:b,a:c,d,:,"}]`), "ddtags=a:b&service=x")
	f.Add([]byte(`{"short_message":"\ud800\u0000","_a.b":{"c":NaN},"level":3,"timestamp":1385053862.3072}{"_id":1}`), "")
	f.Add([]byte("{\"message\":{\"a\":[}}\n{\"message\":\"{}\",\"time\":1,\"timestamp\":2}\n"), "hostname=\x00")
	f.Fuzz(func(t *testing.T, body []byte, query string) {
		for p, path := range map[Protocol]string{Datadog{}: "/api/v2/logs", GELF{}: "/gelf"} {
			for _, header := range []headers{{}, {"Content-Type": "text/plain"}} {
				records := newRecords()
				_, bad := exchange(p, Request{Method: []byte("POST"), Path: []byte(path), Query: []byte(query), Header: header}, body, records)
				if bad != nil {
					continue
				}
				var one map[string]any
				if json.Unmarshal(body, &one) == nil && len(one) > 0 && len(header) == 0 && records.Accepted+records.Rejected != 1 {
					t.Errorf("%s: %d records of %s", path, records.Accepted, body)
				}
				again := record.List{Limits: scan.Limits{RecordBytes: 1 << 20, PieceBytes: 64 << 10}}
				if records.Accepted == 0 {
					continue
				}
				if err := again.Split(records.NDJSON); err != nil || again.Accepted != records.Accepted || string(again.NDJSON) != string(records.NDJSON) {
					t.Errorf("%s: the scanner makes of %s %s, %v", path, records.NDJSON, again.NDJSON, err)
				}
			}
		}
	})
}
