package api

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/s2"
)

// TestOTLPAndLokiAreAnsweredAsTheirClientsExpect sends what real clients do, with their encodings, to the paths that they know.
func TestOTLPAndLokiAreAnsweredAsTheirClientsExpect(t *testing.T) {
	a := start(t, nil)
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
		{"a push that can't be read", "POST", "/loki/api/v1/push", inJSON, "", `{`, 400, "text/plain; charset=utf-8", "unexpected end of body"},
		{"the version", "GET", "/loki/api/v1/status/buildinfo", "", "", "", 200, inJSON, `{"version":"3.0.0"`},
	} {
		header := http.Header{}
		for name, value := range map[string]string{"Content-Type": tt.content, "Content-Encoding": tt.encoding} {
			if value != "" {
				header.Set(name, value)
			}
		}
		got := a.do(t, tt.method, tt.path, strings.NewReader(tt.body), header)
		if got.status != tt.status || got.header.Get("Content-Type") != tt.answerType && tt.answerType != "" || !strings.HasPrefix(got.body, tt.answer) || tt.answer == "" && got.body != "" {
			t.Errorf("%s: answered %d %s %q, want %d %s %q", tt.name, got.status, got.header.Get("Content-Type"), got.body, tt.status, tt.answerType, tt.answer)
		}
	}
	var stored []string
	for _, record := range a.published(t) {
		stored = append(stored, record)
	}
	slices.Sort(stored)
	want := `{"message":"json","a":"b"} {"message":"json"} {"message":"line","a":"b"} {"message":"line","a":"b"} {"message":"line","a":"b"} {"message":"pbuf"} {"message":"pbuf"}`
	if got := strings.Join(stored, " "); got != want {
		t.Errorf("stored %s, want %s", got, want)
	}
}
