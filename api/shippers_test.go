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
		{"GET", "/_bulk", key, "", 405, `{"error":{"type":"method_not_allowed_exception","reason":"GET /_bulk: takes POST, PUT"},"status":405}`},
		{"POST", "/_bulk", key, large, 413, `{"error":{"type":"content_too_long_exception",`},
		{"POST", "/es/nothing", key, "{}", 404, `{"error":{"type":"resource_not_found_exception",`},
		{"POST", "/x/_search", key, "{}", 400, `{"error":{"type":"illegal_argument_exception","reason":"searches`},

		{"POST", "/services/collector/event", splunk, `{"event":"a"}{"event":"b"}`, 200, `{"text":"Success","code":0}`},
		{"POST", "/services/collector/raw?host=x", splunk, "a\nb\n", 200, `{"text":"Success","code":0}`},
		{"POST", "/services/collector", splunk, ``, 400, `{"text":"No data","code":5}`},
		{"POST", "/services/collector", "", `{"event":"a"}`, 401, `{"text":"Token is required","code":2}`},
		{"POST", "/services/collector", "Authorization: Bearer x", `{"event":"a"}`, 401, `{"text":"Invalid authorization","code":3}`},
		{"POST", "/services/collector", "Authorization: Splunk x", `{"event":"a"}`, 403, `{"text":"Invalid token","code":4}`},
		{"GET", "/services/collector/health", "", "", 200, `{"text":"HEC is healthy","code":17}`},
		{"POST", "/services/collector/ack", splunk, `{"acks":[0]}`, 400, `{"text":"ACK is disabled","code":14}`},
		{"GET", "/services/collector", splunk, "", 405, `{"text":"GET /services/collector: takes POST","code":405}`},
		{"POST", "/services/collector", splunk, large, 413, `{"text":"the body is larger`},

		{"POST", "/nothing", key, "{}", 404, `{"error":"no such path: /nothing; there are POST /log, POST /log/batch, `},
		{"PUT", "/x", key, "{}", 404, `{"error":"no such path: /x;`},
	} {
		wire := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: logs.example:8080\r\n%s\r\nContent-Length: %d\r\n\r\n%s", tt.method, tt.path, tt.header, len(tt.body), tt.body)
		if tt.header == "" {
			wire = strings.Replace(wire, "8080\r\n\r\n", "8080\r\n", 1)
		}
		conn := &written{in: bytes.NewReader([]byte(wire))}
		_ = a.ServeConn(conn) // it says why the connection ended; the answer has been written
		resp, err := http.ReadResponse(bufio.NewReader(&conn.out), &http.Request{Method: tt.method})
		if err != nil {
			t.Fatalf("%s %s: %v", tt.method, tt.path, err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != tt.status || !strings.HasPrefix(string(body), tt.answer) {
			t.Errorf("%s %s: got %d %.200s, %v, want %d %s", tt.method, tt.path, resp.StatusCode, body, err, tt.status, tt.answer)
		}
		elastic := !strings.HasPrefix(tt.path, "/services") && !strings.Contains(tt.answer, "no such path")
		if got := resp.Header.Get("X-Elastic-Product"); (got == "Elasticsearch") != elastic {
			t.Errorf("%s %s: X-Elastic-Product is %q", tt.method, tt.path, got)
		}
		if (resp.Header.Get("WWW-Authenticate") != "") != (tt.status == 401) {
			t.Errorf("%s %s: status %d with WWW-Authenticate %q", tt.method, tt.path, tt.status, resp.Header.Get("WWW-Authenticate"))
		}
	}
}
