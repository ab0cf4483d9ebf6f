package api

import (
	"net/http"
	"strings"
	"testing"

	"github.com/klauspost/compress/s2"
)

// TestOTLPAndLokiAreAnsweredAsTheirClientsExpect sends what real clients do, with their encodings, to the paths that they know.
func TestOTLPAndLokiAreAnsweredAsTheirClientsExpect(t *testing.T) {
	a := newFuzzedAPI(t)
	const (
		protobuf = "application/x-protobuf"
		inJSON   = "application/json"
	)
	// {resource_logs: {scope_logs: {log_records: {body: {string_value: "hi"}}}}}, and a PushRequest with the stream {a="b"}.
	const logs = "\x0a\x0c\x12\x0a\x12\x08\x2a\x06\x0a\x04\x70\x62\x75\x66"
	const push = "\x0a\x11\x0a\x07{a=\"b\"}\x12\x06\x12\x04line"
	for _, tt := range []struct {
		name, method, path, content, encoding, body string
		status                                      int
		answerType, answer                          string
	}{
		{"protobuf", "POST", "/v1/logs", protobuf, "", logs, 200, protobuf, ""},
		{"gzip", "POST", "/otlp/v1/logs", protobuf, "gzip", string(encode(t, "gzip", []byte(logs))), 200, protobuf, ""},
		{"nothing", "POST", "/v1/logs", protobuf, "", "", 200, protobuf, ""},
		{"JSON", "POST", "/v1/logs", inJSON, "", `{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"stringValue":"json"}}]}]}]}`, 200, inJSON, "{}"},
		{"malformed", "POST", "/v1/logs", inJSON, "", `{`, 400, inJSON, `{"code":3,"message":"`},
		{"another method", "GET", "/v1/logs", protobuf, "", "", 405, protobuf, "\x08\x0c\x12"},
		{"traces", "POST", "/v1/traces", protobuf, "", logs, 404, protobuf, "\x08\x0c\x12"},
		{"another type", "POST", "/v1/logs", "text/plain", "", logs, 415, inJSON, `{"code":3,"message":"Content-Type: got`},

		{"a push", "POST", "/loki/api/v1/push", protobuf, "", string(s2.EncodeSnappy(nil, []byte(push))), 204, "", ""},
		{"a push whose encoding is told", "POST", "/api/prom/push", "", "snappy", string(s2.EncodeSnappy(nil, []byte(push))), 204, "", ""},
		{"a push in gzip", "POST", "/loki/api/v1/push", protobuf, "gzip", string(encode(t, "gzip", []byte(push))), 204, "", ""},
		{"a push in JSON", "POST", "/loki/api/v1/push", inJSON, "", `{"streams":[{"stream":{"a":"b"},"values":[["0","json"]]}]}`, 204, "", ""},
		{"a push of nothing", "POST", "/loki/api/v1/push", protobuf, "", "", 204, "", ""},
		{"a push of nothing in snappy", "POST", "/loki/api/v1/push", protobuf, "", string(s2.EncodeSnappy(nil, nil)), 204, "", ""},
		{"a push that says it is larger", "POST", "/loki/api/v1/push", protobuf, "", "\xff\xff\xff\xff\x0f", 400, "text/plain; charset=utf-8", "the body is not snappy"},
		{"a push that is too large", "POST", "/loki/api/v1/push", protobuf, "", string(s2.EncodeSnappy(nil, make([]byte, 1<<20))), 400, "text/plain; charset=utf-8", "the body is larger than"},
		{"logs that are too large", "POST", "/v1/logs", protobuf, "gzip", string(encode(t, "gzip", make([]byte, 1<<20))), 413, protobuf, "\x08\x03\x12"},
		{"a push that can't be read", "POST", "/loki/api/v1/push", inJSON, "", `{`, 400, "text/plain; charset=utf-8", "unexpected end of body"},
		{"the version", "GET", "/loki/api/v1/status/buildinfo", "", "", "", 200, inJSON, `{"version":"3.0.0"`},
	} {
		resp, got := a.sendAs(t, tt.method, tt.path, tt.content, tt.encoding, tt.body)
		if resp.StatusCode != tt.status || resp.Header.Get("Content-Type") != tt.answerType && tt.answerType != "" || !strings.HasPrefix(got, tt.answer) || tt.answer == "" && got != "" {
			t.Errorf("%s: answered %d %s %q, want %d %s %q", tt.name, resp.StatusCode, resp.Header.Get("Content-Type"), got, tt.status, tt.answerType, tt.answer)
		}
	}
	known := a.secret
	for _, tt := range []struct {
		secret, path, content string
		status                int
		answer                string
	}{
		{"mr_x", "/v1/logs", protobuf, 401, "\x08\x10\x12"},
		{"mr_x", "/v1/logs", inJSON, 401, `{"code":16,"message":"no known API key`},
		{"mr_x", "/loki/api/v1/push", inJSON, 401, "no known API key"},
		{known + "slow", "/v1/logs", inJSON, 200, "{}"}, // five records, as many as the key may send at once
		{known + "slow", "/v1/logs", inJSON, 429, `{"code":8,"message":"the API key slow is limited`},
		{known + "slow", "/loki/api/v1/push", inJSON, 429, "the API key slow is limited"},
	} {
		a.secret = tt.secret
		body := `{"resourceLogs":[{"scopeLogs":[{"logRecords":[{},{},{},{},{}]}]}]}`
		resp, got := a.sendAs(t, "POST", tt.path, tt.content, "", body)
		if resp.StatusCode != tt.status || !strings.HasPrefix(got, tt.answer) {
			t.Errorf("%s with the key %s: answered %d %q, want %d %q", tt.path, tt.secret, resp.StatusCode, got, tt.status, tt.answer)
		}
		if hasRetryAfter := resp.Header.Get("Retry-After") != ""; hasRetryAfter != (tt.status == 429) {
			t.Errorf("%s: status %d with Retry-After %q", tt.path, tt.status, resp.Header.Get("Retry-After"))
		}
	}
	a.secret = known
	a.api.lossyPolicy.Store(&policyError{"a test"})
	if resp, got := a.sendAs(t, "POST", "/v1/logs", protobuf, "", logs); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || !strings.HasPrefix(got, "\x08\x0e\x12") {
		t.Errorf("while nothing is taken: answered %d %q", resp.StatusCode, got)
	}
	if resp, got := a.sendAs(t, "POST", "/loki/api/v1/push", inJSON, "", "{}"); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || !strings.HasPrefix(got, "RabbitMQ may lose") {
		t.Errorf("while nothing is taken: answered %d %q", resp.StatusCode, got)
	}
}

// sendAs sends a body of a type and an encoding, each of which may be empty. It returns the answer and its body.
func (a *fuzzedAPI) sendAs(t *testing.T, method, path, content, encoding, body string) (*http.Response, string) {
	t.Helper()
	fields := "X-API-Key: " + a.secret
	if content != "" {
		fields += "\r\nContent-Type: " + content
	}
	if encoding != "" {
		fields += "\r\nContent-Encoding: " + encoding
	}
	return a.ask(t, method, path, fields, body)
}
