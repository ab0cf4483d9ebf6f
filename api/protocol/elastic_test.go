package protocol

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
)

// elastic sends a request to Elastic, and returns the answer as a client gets it, and what was stored.
func elastic(t *testing.T, method, path, body string) (a Answer, answer, stored string) {
	t.Helper()
	records := newRecords()
	a, bad := exchange(Elastic{}, Request{Method: []byte(method), Path: []byte(path), Header: header("")}, []byte(body), records)
	if len(a.Header) != 1 || a.Header[0] != [2]string{"X-Elastic-Product", "Elasticsearch"} || a.ContentType != "application/json" {
		t.Errorf("%s %s: got the header %v, and %s", method, path, a.Header, a.ContentType)
	}
	if bad == nil {
		stored = string(records.NDJSON)
	}
	return a, string(a.sent(t)), stored
}

func TestADocumentIsARecord(t *testing.T) {
	for _, tt := range []struct {
		method, path, body string
		status             int
		begins, stored     string
	}{
		{"POST", "/x/_doc", "{\n \"a\": 1\n}\n", 201, `{"_index":"x","_id":"0`, `{"_index":"x","a":1}` + "\n"},
		{"PUT", "/x/_doc/7", `{"a":1}`, 201, `{"_index":"x","_id":"7","_version":1,"result":"created",`, `{"_index":"x","_id":"7","a":1}` + "\n"},
		{"POST", "/es/x/_create/7", `{}`, 201, `{"_index":"x","_id":"7",`, `{"_index":"x","_id":"7"}` + "\n"},
		{"POST", "/elasticsearch/x/_doc", `{}`, 201, `{"_index":"x",`, `{"_index":"x"}` + "\n"},
		{"POST", "/a\"\xff\x00/_doc", `{}`, 201, "{\"_index\":\"a\\\"\ufffd\ufffd\",", "{\"_index\":\"a\\\"\ufffd\ufffd\"}\n"},
		{"POST", "/x/_doc", `{"time":"2025-01-01T00:00:00Z","@timestamp":"2026-01-01T00:00:00Z"}`, 201, `{"_index":"x",`,
			`{"_index":"x","time":"2026-01-01T00:00:00Z","time":"2025-01-01T00:00:00Z","@timestamp":"2026-01-01T00:00:00Z"}` + "\n"},
		{"POST", "/x/_doc", `{"a":"\u0000"}`, 201, `{"_index":"x",`, `{"_index":"x","a":"` + "\ufffd" + `","_repaired":["a"]}` + "\n"},
		{"POST", "/x/_doc", `[{}]`, 400, `{"error":{"type":"illegal_argument_exception","reason":"not an object at byte 0","root_cause":[{"type":"illegal_argument_exception","reason":"not an object at byte 0"}]},"status":400}`, ""},
		{"POST", "/x/_doc", ``, 400, `{"error":{"type":"illegal_argument_exception","reason":"unexpected end`, ""},
		{"POST", "/x/_doc", `{"` + strings.Repeat("x", 1<<12) + `":1}`, 413, `{"error":{"type":"content_too_long_exception",`, ""},
		{"POST", "/" + strings.Repeat("x", 256) + "/_doc", `{}`, 400, `{"error":{"type":"illegal_argument_exception","reason":"the name of the index has 256 bytes`, ""},
	} {
		a, answer, stored := elastic(t, tt.method, tt.path, tt.body)
		if a.Status != tt.status || !strings.HasPrefix(answer, tt.begins) || stored != tt.stored || !json.Valid([]byte(answer)) {
			t.Errorf("%s %s %.100s: got %d %s and %q, want %d %s and %q", tt.method, tt.path, tt.body, a.Status, answer, stored, tt.status, tt.begins, tt.stored)
		}
	}
}

func TestWhatClientsAskFirstIsAnswered(t *testing.T) {
	for _, tt := range []struct {
		method, path string
		status       int
		has          string
	}{
		{"GET", "/", 200, `"version":{"number":"8.19.0","build_flavor":"default",`},
		{"GET", "/", 200, `"minimum_wire_compatibility_version":"7.17.0","minimum_index_compatibility_version":"7.0.0"},"tagline":"You Know, for Search"}`},
		{"GET", "/es", 200, `"cluster_name":"millrace"`},
		{"GET", "/es/", 200, `"cluster_name":"millrace"`},
		{"GET", "/elasticsearch", 200, `"cluster_name":"millrace"`},
		{"GET", "/_license", 200, `{"license":{"uid":"bWlsbHJhY2UtZWxhc3RpYw","type":"basic","mode":"basic","status":"active"}}`},
		{"GET", "/_xpack", 200, `"features":{"ilm":{"available":false,"enabled":false}}}`},
		{"GET", "/_nodes/http", 200, `"http":{"bound_address":["logs.example:8080"],"publish_address":"logs.example:8080"`},
		{"GET", "/_nodes/_all/http", 200, `"publish_address":"logs.example:8080"`},
		{"GET", "/_cluster/health", 200, `{"cluster_name":"millrace","status":"green","timed_out":false,"number_of_nodes":1,"number_of_data_nodes":1}`},
		{"GET", "/es/_cluster/health", 200, `"status":"green"`},
		{"GET", "/_cat/indices", 200, `{}`},
		{"GET", "/_alias/x", 200, `{}`},
		{"GET", "/_ilm/policy/x", 200, `{}`},
		{"PUT", "/_ilm/policy/x", 200, `{"acknowledged":true}`},
		{"PUT", "/_index_template/x", 200, `{"acknowledged":true}`},
		{"POST", "/_template/x", 200, `{"acknowledged":true}`},
		{"PUT", "/elasticsearch/_data_stream/x", 200, `{"acknowledged":true}`},
		{"PUT", "/_ingest/pipeline/x", 200, `{"acknowledged":true}`},
		{"HEAD", "/", 200, ``},
		{"HEAD", "/_index_template/x", 200, ``},
		{"HEAD", "/x", 200, ``},
		{"HEAD", "/es/x/y/z", 200, ``},
		{"POST", "/x/_search", 400, `"reason":"searches are not answered here;`},
		{"GET", "/_count", 400, `"reason":"searches are not answered here;`},
		{"GET", "/es/_cluster/settings", 404, `{"error":{"type":"resource_not_found_exception","reason":"no such path: /es/_cluster/settings;`},
		{"DELETE", "/es/x", 404, `"status":404}`},
	} {
		r := Request{Method: []byte(tt.method), Path: []byte(tt.path), Header: hostHeader("logs.example:8080")}
		e, bad := Elastic{}.Open(r)
		var a Answer
		if bad != nil {
			a = Elastic{}.Refuse(nil, r, bad)
		} else {
			if _, ok := e.(Shim); !ok {
				t.Errorf("%s %s wants records", tt.method, tt.path)
			}
			a = e.Answer(nil, r, Outcome{})
		}
		if a.Status != tt.status || !strings.Contains(string(a.Body), tt.has) || (tt.has == "") != (len(a.Body) == 0) || tt.has != "" && !json.Valid(a.Body) || len(a.Header) != 1 {
			t.Errorf("%s %s: got %d %s, want %d %s", tt.method, tt.path, a.Status, a.Body, tt.status, tt.has)
		}
	}
	e, bad := Elastic{}.Open(Request{Method: []byte("GET"), Path: []byte("/_cluster/health")})
	if bad != nil || !strings.Contains(string(e.Answer(nil, Request{}, Outcome{Down: io.EOF}).Body), `"status":"red"`) {
		t.Errorf("while no records can be taken: %v", bad)
	}
	for version, want := range map[string]string{"7.17.9": `"number":"7.17.9"`, "9.1.0": `"minimum_wire_compatibility_version":"8.17.0"`} {
		e, _ := Elastic{Version: version}.Open(Request{Method: []byte("GET"), Path: []byte("/")})
		if a := e.Answer(nil, Request{}, Outcome{}); !strings.Contains(string(a.Body), want) {
			t.Errorf("version %s: got %s", version, a.Body)
		}
	}
}

// hostHeader is a request's header with a host.
type hostHeader string

func (h hostHeader) Peek(name string) []byte {
	if name == "Host" {
		return []byte(h)
	}
	return nil
}

func TestElasticRefusesAsElasticsearchDoes(t *testing.T) {
	for status, want := range map[int]string{
		400: "illegal_argument_exception",
		401: "security_exception",
		403: "security_exception",
		404: "resource_not_found_exception",
		405: "method_not_allowed_exception",
		413: "content_too_long_exception",
		429: "es_rejected_execution_exception",
		503: "process_cluster_event_timeout_exception",
	} {
		a := Elastic{}.Refuse(nil, Request{}, Refuse(status, `a "reason"`))
		var got struct {
			Error struct {
				Type, Reason string
				RootCause    []struct{ Type, Reason string } `json:"root_cause"`
			}
			Status int
		}
		if err := json.Unmarshal(a.Body, &got); err != nil || a.Status != status || got.Status != status || got.Error.Type != want || got.Error.Reason != `a "reason"` || len(got.Error.RootCause) != 1 || got.Error.RootCause[0].Reason != `a "reason"` || len(a.Header) != 1 {
			t.Errorf("%d: got %d %s, %v", status, a.Status, a.Body, err)
		}
	}
}

// Every route leads to an exchange or a refusal of its own, whatever its method.
func TestElasticOpensItsRoutes(t *testing.T) {
	seen := make(map[string]bool)
	for _, route := range (Elastic{}).Routes() {
		if seen[route.Path] || route.Label == "" {
			t.Errorf("the route %+v", route)
		}
		seen[route.Path] = true
		path := strings.NewReplacer("**", "x/y", "*", "x").Replace(route.Path)
		for _, method := range route.Methods {
			e, bad := Elastic{}.Open(Request{Method: []byte(method), Path: []byte(path), Header: header("")})
			_, isShim := e.(Shim)
			switch {
			case method == http.MethodHead && !isShim:
				t.Errorf("%s %s: %v", method, path, bad)
			case bad != nil && bad.Status == http.StatusNotFound && !strings.Contains(route.Path, "**"):
				t.Errorf("%s %s: %v", method, path, bad)
			case bad == nil && isShim != (route.Label == shimLabel):
				t.Errorf("%s %s: a shim %v, labelled %s", method, path, isShim, route.Label)
			}
		}
	}
}
