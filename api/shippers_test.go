package api

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// The shell answers for a protocol, too: to a request without a key, with another method, or with too large a body. Those answers
// have the protocol's form, and what else its clients need.
func TestShippersGetTheAnswersOfTheirProtocol(t *testing.T) {
	a := newFuzzedAPI(t)
	key := "Authorization: ApiKey " + a.secret
	splunk := "Authorization: Splunk " + a.secret
	large := strings.Repeat("x", 1<<20+1) // the API's limit on all that is under way
	for _, tt := range []struct {
		method, path, header, body string
		status                     int
		answer                     string
	}{
		{"POST", "/_bulk", key, "{\"create\":{\"_index\":\"x\"}}\n{}\n", 200, `{"took":0,"errors":false,"items":[{"create":{"_index":"x","status":201}}]}`},
		{"PUT", "/es/x/_bulk?refresh=false", key, "{\"create\":{}}\nno\n", 200, `{"took":0,"errors":true,"items":[{"create":{"_index":"x","status":400,`},
		{"POST", "/elasticsearch/_bulk", key, "", 200, `{"took":0,"errors":false,"items":[]}`},
		{"POST", "/_bulk", key, "no\n", 400, `{"error":{"type":"illegal_argument_exception","reason":"Malformed action/metadata line [1]`},
		{"POST", "/a%2Fb/_doc", key, "{}", 404, `{"error":"no such path: /a/b/_doc;`},
		{"POST", "/a%20b/_doc", key, "{}", 201, `{"_index":"a b","_id":"`},
		{"POST", "/_bulk", "", "{}", 401, `{"error":{"type":"security_exception",`},
		{"GET", "/", "", "", 401, `{"error":{"type":"security_exception",`},
		{"GET", "/", key, "", 200, `{"name":"millrace",`},
		{"HEAD", "/", key, "", 200, ``},
		{"HEAD", "/x", key, "", 200, ``},
		{"GET", "/_nodes/http", key, "", 200, `{"_nodes":{"total":1,"successful":1,"failed":0},"cluster_name":"millrace","nodes":{"bWlsbHJhY2UtZWxhc3RpYw":{"name":"millrace","transport_address":"logs.example:8080"`},
		{"PUT", "/_template/x", key, strings.Repeat("x", 100<<10), 200, `{"acknowledged":true}`},
		{"GET", "/_bulk", key, "", 405, `{"error":{"type":"method_not_allowed_exception","reason":"GET /_bulk: takes POST, PUT"`},
		{"POST", "/_bulk", key, large, 413, `{"error":{"type":"content_too_long_exception",`},
		{"POST", "/es/nothing", key, "{}", 404, `{"error":{"type":"resource_not_found_exception",`},
		{"POST", "/x/_search", key, "{}", 400, `{"error":{"type":"illegal_argument_exception","reason":"searches`},

		{"POST", "/services/collector/event", splunk, `{"event":"a"}{"event":"b"}`, 200, `{"text":"Success","code":0}`},
		{"POST", "/services/collector/raw?host=x", splunk, "a\nb\n", 200, `{"text":"Success","code":0}`},
		{"POST", "/services/collector", splunk, ``, 400, `{"text":"No data","code":5}`},
		{"POST", "/services/collector", "", `{"event":"a"}`, 401, `{"text":"Token is required","code":2}`},
		{"POST", "/services/collector", "Authorization: Bearer x", `{"event":"a"}`, 401, `{"text":"Invalid authorization","code":3}`},
		{"POST", "/services/collector", "Authorization: Splunk x", `{"event":"a"}`, 403, `{"text":"Invalid token","code":4}`},
		{"OPTIONS", "/services/collector/event/1.0", "", "", 200, ``}, // Docker's log driver
		{"OPTIONS", "/services/collector/ack", "", "", 405, ``},
		{"GET", "/services/collector/health", "", "", 200, `{"text":"HEC is healthy","code":17}`},
		{"POST", "/api/v2/logs", "DD-API-KEY: " + a.secret, `[{"message":"a"},{"message":"b"}]`, 202, `{}`},
		{"POST", "/api/v2/logs", "DD-API-KEY: x", `[{"message":"a"}]`, 403, `{"errors":[{"status":"403","title":"Forbidden","detail":"no known API key`},
		{"GET", "/api/v1/validate", "DD-API-KEY: " + a.secret, ``, 200, `{"valid":true}`},
		{"POST", "/gelf", key, `{"short_message":"a"}`, 202, ``},
		{"POST", "/gelf", key, `a`, 400, `{"error":`},
		{"POST", "/firehose", "X-Amz-Firehose-Request-Id: 1\r\nX-Amz-Firehose-Access-Key: " + a.secret, `{"requestId":"1","timestamp":1,"records":[{"data":"e30="}]}`, 200, `{"requestId":"1","timestamp":`},
		{"POST", "/firehose", "X-Amz-Firehose-Request-Id: 1\r\nX-Amz-Firehose-Access-Key: x", `{}`, 401, `{"requestId":"1","timestamp":`},
		{"POST", "/upload", key, "MESSAGE=x\n\n", 200, "OK.\n"},
		{"POST", "/upload", "", "MESSAGE=x\n\n", 401, "no known API key"},
		{"POST", "/services/collector/ack", splunk, `{"acks":[0]}`, 400, `{"text":"ACK is disabled","code":14}`},
		{"GET", "/services/collector", splunk, "", 405, `{"text":"GET /services/collector: takes POST","code":405}`},
		{"POST", "/services/collector", splunk, large, 413, `{"text":"the body is larger`},

		{"POST", "/nothing", key, "{}", 404, `{"error":"no such path: /nothing; there are POST /log, POST /log/batch, `},
		{"PUT", "/x", key, "{}", 404, `{"error":"no such path: /x;`},
	} {
		resp, body := a.ask(t, tt.method, tt.path, tt.header, tt.body)
		if resp.StatusCode != tt.status || !strings.HasPrefix(body, tt.answer) {
			t.Errorf("%s %s: got %d %.200s, want %d %s", tt.method, tt.path, resp.StatusCode, body, tt.status, tt.answer)
		}
		elastic := !strings.HasPrefix(tt.path, "/services") && !strings.HasPrefix(tt.path, "/api") && tt.path != "/gelf" && tt.path != "/firehose" && tt.path != "/upload" && !strings.Contains(tt.answer, "no such path")
		if got := resp.Header.Get("X-Elastic-Product"); (got == "Elasticsearch") != elastic {
			t.Errorf("%s %s: X-Elastic-Product is %q", tt.method, tt.path, got)
		}
		if (resp.Header.Get("WWW-Authenticate") != "") != (tt.status == 401) {
			t.Errorf("%s %s: status %d with WWW-Authenticate %q", tt.method, tt.path, tt.status, resp.Header.Get("WWW-Authenticate"))
		}
	}
}

// ask sends a request with more fields of its header, or "", and returns the answer and its body.
func (a *fuzzedAPI) ask(t *testing.T, method, path, fields, body string) (*http.Response, string) {
	t.Helper()
	if fields != "" {
		fields += "\r\n"
	}
	wire := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: logs.example:8080\r\n%sContent-Length: %d\r\n\r\n%s", method, path, fields, len(body), body)
	conn := &written{in: bytes.NewReader([]byte(wire))}
	_ = a.ServeConn(conn) // it says why the connection ended; the answer has been written
	resp, err := http.ReadResponse(bufio.NewReader(&conn.out), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp, string(answer)
}

// One record that can't be taken costs no other, and clients are not made to send the others again. A body that unpacks to far more
// than it has bytes is refused before it takes memory.
func TestABadRecordCostsNoOther(t *testing.T) {
	a := newFuzzedAPI(t)
	among := func(good, bad string) string { return strings.Repeat(good, 50) + bad + strings.Repeat(good, 49) }
	const deepLog = 600 // deeper than what becomes text
	deep := strings.Repeat(`{"arrayValue":{"values":[`, deepLog) + strings.Repeat(`]}}`, deepLog)
	const document = "{\"create\":{}}\n{\"a\":1}\n"
	bomb := string(encode(t, "gzip", make([]byte, 1<<20)))
	for _, tt := range []struct {
		name, path, content, encoding, body string
		status                              int
		answer                              string
		accepted                            int
	}{
		{"one of 100", "/_bulk", "", "", among(document, "{\"create\":{}}\n{\"a\":\n"), 200, `"errors":true`, 99},
		{"all", "/_bulk", "", "", strings.Repeat("{\"create\":{}}\n[]\n", 3), 200, `"errors":true`, 0},
		{"a line that is no action", "/_bulk", "", "", among(document, "{\"a\":1}\n"), 400, `Malformed action/metadata line [101]`, 0},
		{"a bomb", "/_bulk", "", "gzip", bomb, 413, `content_too_long_exception`, 0},
		{"one of 100", "/services/collector", "", "", among("{\"event\":\"a\"}\n", "{\"event\":\n"), 200, `{"text":"Success","code":0}`, 99},
		{"all", "/services/collector", "", "", strings.Repeat(`{"event":""}`, 3), 400, `"code":13,"invalid-event-number":0}`, 0},
		{"malformed", "/services/collector", "", "", "x", 400, `"code":6,"invalid-event-number":0}`, 0},
		{"a bomb", "/services/collector", "", "gzip", bomb, 413, `"code":27`, 0},
		{"one of 100", "/v1/logs", "application/json", "", `{"resourceLogs":[{"scopeLogs":[{"logRecords":[` + among(`{},`, `{"body":`+deep+`},`) + `{}]}]}]}`, 200, `{"partialSuccess":{"rejectedLogRecords":"1",`, 100},
		{"all", "/v1/logs", "application/json", "", `{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":` + deep + `}]}]}]}`, 200, `{"partialSuccess":{"rejectedLogRecords":"1",`, 0},
		{"malformed", "/v1/logs", "application/json", "", `{"resourceLogs":[{}`, 400, `{"code":3,"message":`, 0},
		{"a bomb", "/v1/logs", "application/json", "gzip", bomb, 413, `{"code":3,"message":`, 0},
		{"one of 100", "/loki/api/v1/push", "application/json", "", `{"streams":[{"stream":{},"values":[` + among(`["1","a"],`, `["1","\u0000\ud800"],`) + `["1","a"]]}]}`, 204, ``, 101},
		{"malformed", "/loki/api/v1/push", "application/json", "", `{"streams":[{}`, 400, `unexpected end of body`, 0},
		{"a bomb", "/loki/api/v1/push", "application/json", "gzip", bomb, 400, `the body is larger than`, 0},
	} {
		intake := a.api.endpoints.find([]byte("POST"), []byte(tt.path)).protocol.Name()
		before := a.accepted(t, intake)
		resp, got := a.sendAs(t, "POST", tt.path, tt.content, tt.encoding, tt.body)
		if accepted := a.accepted(t, intake) - before; resp.StatusCode != tt.status || !strings.Contains(got, tt.answer) || accepted != tt.accepted {
			t.Errorf("%s, %s: got %d %.200s and %d records, want %d %s and %d", tt.path, tt.name, resp.StatusCode, got, accepted, tt.status, tt.answer, tt.accepted)
		}
	}
	if n := a.api.bodies.inflight.used.Load(); n != 0 {
		t.Errorf("%d bytes are reserved after all answers", n)
	}
}

// accepted returns how many records an intake has accepted, as /metrics tells.
func (a *fuzzedAPI) accepted(t *testing.T, intake string) (n int) {
	t.Helper()
	_, metrics := a.ask(t, "GET", "/metrics", "", "")
	_, value, found := strings.Cut(metrics, fmt.Sprintf("\nmillrace_api_records_accepted_total{intake=%q} ", intake))
	if _, err := fmt.Sscan(value, &n); !found || err != nil {
		t.Fatalf("no count of %s: %v", intake, err)
	}
	return n
}

// watchedConn notes the largest reservation that there is while an answer is written.
type watchedConn struct {
	written
	inflight *inflight
	most     int64
}

func (c *watchedConn) Write(b []byte) (int, error) {
	c.most = max(c.most, c.inflight.used.Load())
	return c.written.Write(b)
}

// A client that sends many actions and does not read the answer holds what the answer is made from. That counts as the body did.
func TestALongBulkAnswerIsReservedUntilItIsSent(t *testing.T) {
	a := newFuzzedAPI(t)
	body := strings.Repeat("{\"delete\":{\"_id\":1}}\n{\"delete\":{\"_id\":2}}\n", 1000)
	wire := fmt.Sprintf("POST /_bulk HTTP/1.1\r\nHost: x\r\nX-API-Key: %s\r\nContent-Length: %d\r\n\r\n%s", a.secret, len(body), body)
	conn := &watchedConn{written: written{in: bytes.NewReader([]byte(wire))}, inflight: a.api.bodies.inflight}
	_ = a.ServeConn(conn) // it says why the connection ended; the answer has been written
	resp, err := http.ReadResponse(bufio.NewReader(&conn.out), nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(answer, []byte(`"status":404`)); resp.StatusCode != 200 || n != 2000 {
		t.Fatalf("got %d with %d items, want 200 with 2000", resp.StatusCode, n)
	}
	if conn.most < 2000*20 {
		t.Errorf("%d bytes were reserved while the answer to 2000 actions was sent", conn.most)
	}
	if n := a.api.bodies.inflight.used.Load(); n != 0 {
		t.Errorf("%d bytes are reserved after it", n)
	}
	a.api.limits.TotalBytes = len(body) / 2
	if resp, got := a.ask(t, "POST", "/_bulk", "X-API-Key: "+a.secret, body); resp.StatusCode != 413 {
		t.Errorf("actions that take more than all requests may hold: got %d %.100s, want 413", resp.StatusCode, got)
	}
}

// All clients send again what was answered with 429 or 503.
func TestShippersAreToldToComeBackLater(t *testing.T) {
	a := newFuzzedAPI(t)
	check := func(method, path, field, body string, status int, answer string) {
		t.Helper()
		resp, got := a.ask(t, method, path, field, body)
		if resp.StatusCode != status || !strings.HasPrefix(got, answer) || resp.Header.Get("Retry-After") == "" {
			t.Errorf("%s %s: got %d %s and Retry-After %q, want %d %s", method, path, resp.StatusCode, got, resp.Header.Get("Retry-After"), status, answer)
		}
	}
	slow := "X-API-Key: " + a.secret + "slow"
	if resp, got := a.ask(t, "POST", "/_bulk", slow, strings.Repeat("{\"create\":{}}\n{}\n", 5)); resp.StatusCode != 200 {
		t.Errorf("within the limit: got %d %s", resp.StatusCode, got)
	}
	check("POST", "/_bulk", slow, "{\"create\":{}}\n{}\n", 429, `{"error":{"type":"es_rejected_execution_exception","reason":"the API key slow`)
	check("POST", "/services/collector", slow, `{"event":1}`, 429, `{"text":"Server is busy","code":9}`)

	a.api.lossyPolicy.Store(&policyError{"a test"})
	key := "X-API-Key: " + a.secret
	check("POST", "/_bulk", key, "{\"create\":{}}\n{}\n", 503, `{"error":{"type":"process_cluster_event_timeout_exception","reason":"RabbitMQ may lose`)
	check("POST", "/x/_doc", key, "{}", 503, `{"error":{"type":"process_cluster_event_timeout_exception"`)
	check("POST", "/services/collector/raw", key, "x", 503, `{"text":"Server is busy","code":9}`)
	check("GET", "/services/collector/health/1.0", "", "", 503, `{"text":"HEC is unhealthy, queues are full","code":18}`)
	if resp, got := a.ask(t, "GET", "/_cluster/health", key, ""); resp.StatusCode != 200 || !strings.Contains(got, `"status":"red"`) {
		t.Errorf("the cluster's health: got %d %s", resp.StatusCode, got)
	}
}
