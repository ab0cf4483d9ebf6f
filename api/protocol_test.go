package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"millrace/api/protocol"
	"millrace/internal/keys"
	"millrace/internal/record"
)

// sample is a protocol unlike Millrace's own. Its bodies are lines of text, and an empty line is a record that can't be taken.
// Every record gets a verdict, one path holds a name, and clients ask for the server's name before they send.
type sample struct{}

func (sample) Name() string { return "sample" }

func (sample) Routes() []protocol.Route {
	return []protocol.Route{
		{Path: "/sample", Methods: []string{http.MethodGet}},
		{Path: "/sample/*/lines", Methods: []string{http.MethodPut}},
	}
}

func (sample) Open(r protocol.Request) (protocol.Exchange, *protocol.Refusal) {
	if string(r.Path) == "/sample" {
		return new(who), nil
	}
	if string(r.Header.Peek("X-Sample")) == "" {
		return nil, protocol.Refuse(http.StatusUnsupportedMediaType, "no X-Sample")
	}
	return new(lines), nil
}

func (sample) Refuse(dst []byte, _ protocol.Request, why *protocol.Refusal) protocol.Answer {
	return text(why.Status, fmt.Appendf(dst, "refused: %s", why.Msg))
}

func text(status int, body []byte) protocol.Answer {
	return protocol.Answer{Status: status, ContentType: "text/plain", Header: [][2]string{{"X-Product", "sample"}}, Body: body}
}

type who struct{ lines }

func (*who) Shim() {}
func (*who) Answer(dst []byte, _ protocol.Request, _ protocol.Outcome) protocol.Answer {
	return text(http.StatusOK, append(dst, "a sample"...))
}

type lines struct{ index string }

func (l *lines) Decode(r protocol.Request, body []byte, records *record.List) *protocol.Refusal {
	if l.index = strings.Split(string(r.Path), "/")[2]; l.index == "bug" {
		panic("a bug of the protocol")
	}
	records.KeepVerdicts = true
	records.Begin()
	at := 0
	for line := range bytes.Lines(body) {
		text := bytes.TrimSuffix(line, []byte("\n"))
		if len(text) > 0 && text[0] == '{' {
			records.Add(text, at)
		} else {
			records.Build(at, func(w *record.Writer) {
				w.String("index", l.index)
				w.Text("message", text)
			})
		}
		at += len(line)
	}
	records.End()
	return nil
}

func (l *lines) Answer(dst []byte, _ protocol.Request, o protocol.Outcome) protocol.Answer {
	dst = append(dst, l.index...)
	for _, v := range o.Records.Verdicts {
		dst = fmt.Append(dst, " ", v.Accepted())
	}
	return text(http.StatusOK, dst)
}

func TestAProtocolNeedsNothingButItself(t *testing.T) {
	line, header := newKey(t, "a", keys.Write, "")
	file := newKeyFile(t, line)
	a := start(t, func(c *Config) {
		file.use(c)
		c.IntakeBodyBytes = 20 << 20
		c.protocols = append(protocol.All(protocol.Settings{}), sample{})
	})
	header.Set("X-Sample", "yes")
	want := func(what, method, path, body string, header http.Header, status int, answer string) {
		t.Helper()
		got := a.do(t, method, path, strings.NewReader(body), header)
		if got.status != status || got.body != answer || got.header.Get("Content-Type") != "text/plain" || got.header.Get("X-Product") != "sample" {
			t.Errorf("%s: got %d %v %q, want %d %q in the protocol's own form", what, got.status, got.header, got.body, status, answer)
		}
	}
	want("records", "PUT", "/sample/x/lines", "one\x00\n{\"two\":}\n{\"three\" : 3}\n", header, 200, "x true false true")
	want("a shim", "GET", "/sample", "", header, 200, "a sample")
	want("none at all", "PUT", "/sample/x/lines", "", header, 200, "x")
	want("without a key", "PUT", "/sample/x/lines", "one", nil, 401, "refused: no known API key in Authorization (Bearer, Basic, ApiKey or Splunk) or X-API-Key")
	want("a shim without a key", "GET", "/sample", "", nil, 401, "refused: no known API key in Authorization (Bearer, Basic, ApiKey or Splunk) or X-API-Key")
	want("another method", "POST", "/sample/x/lines", "", header, 405, "refused: POST /sample/x/lines: takes PUT")
	want("a large body", "PUT", "/sample/x/lines", strings.Repeat("x", 21<<20), header, 413, "refused: the body is larger than 20971520 bytes (INTAKE_BODY_BYTES, decoded)")
	if got := a.do(t, "PUT", "/sample/bug/lines", strings.NewReader("one"), header); got.status != 500 || got.body != `{"error":"internal error"}` {
		t.Errorf("a panic: got %d %s, want 500", got.status, got.body)
	}
	header.Del("X-Sample")
	want("what the protocol refuses", "PUT", "/sample/x/lines", "one", header, 415, "refused: no X-Sample")
	if got := a.post(t, "/sample//lines", nil, header); got.status != http.StatusNotFound || !strings.Contains(got.body, "GET /sample, PUT /sample/*/lines, GET /health") {
		t.Errorf("a path that nobody has: got %d %s", got.status, got.body)
	}
	var stored []string
	for _, record := range a.published(t) {
		stored = append(stored, record)
	}
	slices.Sort(stored)
	if got := strings.Join(stored, " "); got != `{"index":"x","message":"one�"} {"three":3}` {
		t.Errorf("stored: %s", got)
	}
	metrics := a.get(t, "/metrics").body
	for _, want := range []string{
		`millrace_api_requests_total{code="200",intake="sample",route="/sample/*/lines"} 2`,
		`millrace_api_requests_total{code="200",intake="sample",route="/sample"} 1`,
		`millrace_api_records_rejected_total{intake="sample",reason="syntax"} 1`,
		`millrace_api_records_accepted_total{intake="sample"} 2`,
		`millrace_api_records_accepted_total{intake="native"} 0`,
		`millrace_api_body_bytes_total{intake="sample"} 28`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
	if got := a.post(t, "/log", []byte(`{}`), header); got.status != http.StatusAccepted || !json.Valid([]byte(got.body)) {
		t.Errorf("the native protocol beside: got %d %s", got.status, got.body)
	}
}

func TestPathsMatch(t *testing.T) {
	for _, tt := range []struct {
		pattern, path string
		want          bool
	}{
		{"/*/_bulk", "/logs/_bulk", true},
		{"/*/_bulk", "//_bulk", false},
		{"/*/_bulk", "/_bulk", false},
		{"/*/_bulk", "/a/b/_bulk", false},
		{"/*/_bulk", "/a/_bulk/", false},
		{"/*/_bulk", "/a/_bulkx", false},
		{"/a/*/*", "/a/b/c", true},
		{"/a/*/*", "/a/b/", false},
		{"/a", "", false},
		{"/a/**", "/a/b/c", true},
		{"/a/**", "/a/", true},
		{"/a/**", "/a", false},
		{"/a/**", "/b/c", false},
	} {
		if got := matches(tt.pattern, []byte(tt.path)); got != tt.want {
			t.Errorf("%s matches %s: %v", tt.pattern, tt.path, got)
		}
	}
}

func TestAPathOfNothingButWildcardsTakesItsMethodsOnly(t *testing.T) {
	served := newEndpoints([]protocol.Protocol{protocol.Native{}, named{}})
	for _, tt := range []struct{ method, path, want string }{
		{"HEAD", "/x", "/*"},
		{"GET", "/x", "other"},
		{"HEAD", "/x/y", "other"},
		{"HEAD", "/log", "/log"},
		{"GET", "/named", "/named"},
		{"GET", "/x/named", "/named"},
		{"POST", "/x/named", "/named"},
	} {
		if got := served.find([]byte(tt.method), []byte(tt.path)).label; got != tt.want {
			t.Errorf("%s %s: got the endpoint %s, want %s", tt.method, tt.path, got, tt.want)
		}
	}
	if !strings.Contains(served.paths, "GET /named, HEAD /*, GET /health") {
		t.Errorf("the paths are %s", served.paths)
	}
}

// named is a protocol with two paths of one name.
type named struct{ sample }

func (named) Routes() []protocol.Route {
	return []protocol.Route{
		{Path: "/named", Methods: []string{http.MethodGet}},
		{Path: "/*/named", Methods: []string{http.MethodGet}, Label: "/named"},
		{Path: "/*", Methods: []string{http.MethodHead}},
	}
}
