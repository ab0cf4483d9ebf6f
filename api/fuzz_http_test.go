package api

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/valyala/fasthttp"

	"millrace/api/front"
	"millrace/api/protocol"
	"millrace/api/publish"
	"millrace/internal/frame"
	"millrace/internal/keys"
	"millrace/internal/service"
)

// fuzzedAPI is an API whose frames are confirmed at once. Its connections hold all their bytes from the start.
type fuzzedAPI struct {
	*fasthttp.Server
	api     *server
	secret  string // of a key that may write; another, limited, is secret + "slow"
	answers []answered
}

// answered is an answer as the handler has left it.
type answered struct {
	method, path string // empty for a request that could not be read
	status       int
}

func newFuzzedAPI(f testing.TB) *fuzzedAPI {
	f.Helper()
	c := defaults(f)
	c.Log = slog.New(slog.DiscardHandler)
	ready, registry := new(service.Ready), service.NewRegistry()
	served := newEndpoints(protocol.All(protocol.Settings{}))
	m := newMetrics(registry, new(inflight), served)
	p := newPublisher(c, c.Log, publish.NewMetrics(registry), ready)
	f.Cleanup(p.ConfirmAll(func(segments []frame.Segment, body []byte) {
		if _, err := frame.Parse(nil, frame.Headers(segments), body); err != nil {
			panic(err) // a fuzz target's own failures can't be told from here
		}
	}))

	a := &fuzzedAPI{secret: "mr_SECRET"}
	keyFile, err := keys.Open(newKeyFile(f,
		keys.Key{Name: "fast", Hash: sha256.Sum256([]byte(a.secret)), Scopes: []string{keys.Write}}.String(),
		keys.Key{Name: "slow", Hash: sha256.Sum256([]byte(a.secret + "slow")), Scopes: []string{keys.Write}, Rate: 1, Burst: 5}.String(),
	).name)
	if err != nil {
		f.Fatal(err)
	}
	c.MaxBodyBytes, c.IntakeBodyBytes, c.MaxRecordBytes = 1<<16, 1<<16, 1<<12
	s := newServer(c, c.Log, p, keyFile, served, m, &inflight{limit: 1 << 20}, ready, registry)
	a.Server, a.api = s.http(), s
	record := func(ctx *fasthttp.RequestCtx, method, path string) {
		a.answers = append(a.answers, answered{method, path, ctx.Response.StatusCode()})
	}
	a.Handler = func(ctx *fasthttp.RequestCtx) {
		method, path := string(ctx.Method()), string(ctx.Path())
		s.handle(ctx)
		record(ctx, method, path)
	}
	a.ErrorHandler = func(ctx *fasthttp.RequestCtx, err error) {
		s.answerUnreadable(ctx, err)
		record(ctx, "", "")
	}
	a.ExpectHandler = func(ctx *fasthttp.RequestCtx) int {
		method, path := string(ctx.Method()), string(ctx.Path())
		status := s.expectContinue(ctx)
		if status != fasthttp.StatusContinue {
			record(ctx, method, path)
		}
		return status
	}
	return a
}

// written is a connection whose client has sent everything and waits for answers.
type written struct {
	in  *bytes.Reader
	out bytes.Buffer
}

func (c *written) Read(b []byte) (int, error)       { return c.in.Read(b) }
func (c *written) Write(b []byte) (int, error)      { return c.out.Write(b) }
func (c *written) Close() error                     { return nil }
func (c *written) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *written) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *written) SetDeadline(time.Time) error      { return nil }
func (c *written) SetReadDeadline(time.Time) error  { return nil }
func (c *written) SetWriteDeadline(time.Time) error { return nil }

// exchange sends wire and returns the answers. It checks that README.md describes each of them.
func (a *fuzzedAPI) exchange(t *testing.T, wire []byte) []answered {
	t.Helper()
	a.answers = a.answers[:0]
	conn := &written{in: bytes.NewReader(wire)}
	_ = a.ServeConn(conn) // it says why the connection ended; the answers have been written
	out := bufio.NewReader(&conn.out)
	for _, want := range a.answers {
		resp, err := http.ReadResponse(out, &http.Request{Method: want.method})
		for err == nil && resp.StatusCode == http.StatusContinue {
			resp, err = http.ReadResponse(out, &http.Request{Method: want.method})
		}
		if err != nil {
			t.Fatalf("an answer can't be read: %v; want %+v", err, want)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != want.status {
			t.Fatalf("got %d %s, %v, want %+v", resp.StatusCode, body, err, want)
		}
		checkAnswer(t, want, resp)
		if _, native := a.api.endpoints.find([]byte(want.method), []byte(want.path)).protocol.(protocol.Native); native {
			checkNativeAnswer(t, want, resp, body)
		}
	}
	if rest, _ := io.ReadAll(out); len(rest) > 0 && !bytes.HasPrefix(rest, []byte("HTTP/1.1 100 ")) {
		t.Errorf("after the answers there is %q", rest)
	}
	return a.answers
}

// checkAnswer checks what holds for answers of all protocols.
func checkAnswer(t *testing.T, a answered, resp *http.Response) {
	t.Helper()
	switch a.status {
	case 200, 201, 202, 204, 207, 400, 401, 403, 404, 405, 411, 413, 415, 429, 431, 503:
	default:
		t.Errorf("%s %s: status %d", a.method, a.path, a.status)
	}
	if seconds := resp.Header.Get("Retry-After"); (seconds != "") != (a.status == 429 || a.status == 503) || seconds == "0" {
		t.Errorf("status %d with Retry-After %q", a.status, seconds)
	}
	if (resp.Header.Get("WWW-Authenticate") != "") != (a.status == 401) {
		t.Errorf("status %d with WWW-Authenticate %q", a.status, resp.Header.Get("WWW-Authenticate"))
	}
}

// checkNativeAnswer checks an answer of Millrace's own protocol, and of the reports.
func checkNativeAnswer(t *testing.T, a answered, resp *http.Response, body []byte) {
	t.Helper()
	if a.method == http.MethodHead || a.status == 200 && a.path == "/metrics" {
		return
	}
	var answer map[string]any
	if err := json.Unmarshal(body, &answer); err != nil || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("status %d, %s: %q, %v", a.status, resp.Header.Get("Content-Type"), body, err)
	}
	if _, batch := answer["accepted"]; a.status >= 400 && a.status != 503 && !batch {
		if text, ok := answer["error"].(string); !ok || text == "" || len(answer) != 1 {
			t.Errorf("status %d: %q, want an error", a.status, body)
		}
	}
}

// FuzzConnection sends arbitrary bytes over a connection.
func FuzzConnection(f *testing.F) {
	a := newFuzzedAPI(f)
	head := " HTTP/1.1\r\nHost: x\r\nX-API-Key: " + a.secret + "\r\n"
	for _, wire := range []string{
		"",
		"\r\n\r\n",
		"POST /log" + head + "Content-Length: 7\r\n\r\n{\"a\":1}",
		"POST /log" + head + "Content-Length: 7\r\n\r\n{\"a\":1}POST /log/batch?ids=true" + head + "Content-Length: 9\r\n\r\n[{},{},3]",
		"POST /log/batch" + head + "Transfer-Encoding: chunked\r\n\r\n5\r\n{\"a\":\r\n2\r\n1}\r\n0\r\n\r\n",
		"POST /log/batch" + head + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5\r\n{\"a\":\r\n",
		"POST /log" + head + "Content-Length: 7\r\nContent-Length: 8\r\n\r\n{\"a\":1}",
		"POST /log" + head + "Content-Length: -1\r\n\r\n",
		"POST /log" + head + "Content-Length: 99999999999999999999\r\n\r\n",
		"POST /log" + head + "Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
		"POST /log HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
		"POST /log" + head + "Expect: 100-continue\r\nContent-Length: 200000\r\n\r\n{}",
		"POST /log" + head + "Content-Encoding: gzip\r\nContent-Length: 20\r\n\r\n\x1f\x8b\x08",
		"POST /log" + head + "\r\n",
		"GET /health" + head + "\r\nHEAD /ready" + head + "\r\nGET /metrics HTTP/1.0\r\n\r\n",
		"HEAD /log" + head + "\r\n",
		"POST /_bulk" + head + "Content-Length: 17\r\n\r\n{\"create\":{}}\n{}\n",
		"PUT /x/_doc/1" + head + "Content-Length: 2\r\n\r\n{}",
		"GET /" + head + "\r\nHEAD /x" + head + "\r\nPUT /_template/x" + head + "Content-Length: 2\r\n\r\n{}GET / HTTP/1.1\r\n\r\n",
		"GET http://x/log" + head + "\r\n",
		"OPTIONS *" + head + "\r\n",
		"CONNECT x:1" + head + "\r\n",
		"GET /%zz?%zz=%" + head + "\r\n",
		"GET /\xff\x00" + head + "\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"\x16\x03\x01\x02\x00\x01",
		"GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", front.HeaderBytes) + "\r\n\r\n",
		"GET / HTTP/1.1\r\n folded: x\r\nno colon\r\n: no name\r\n\r\n",
	} {
		f.Add([]byte(wire))
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		for _, answer := range a.exchange(t, wire) {
			if answer.status/100 == 2 && strings.HasPrefix(answer.path, "/log") && !bytes.Contains(wire, []byte(a.secret)) {
				t.Errorf("%+v without a key", answer)
			}
		}
	})
}

// FuzzHeaders sends one well-formed request with arbitrary headers and an arbitrary query string.
func FuzzHeaders(f *testing.F) {
	a := newFuzzedAPI(f)
	key := frame.NewBase().String()
	f.Add("/log", "", "Bearer "+a.secret, "", key, "", "", "", []byte(`{"a":1}`))
	f.Add("/log/batch", "ids=true", "bearer\t"+a.secret, a.secret+"slow", key, "gzip", "Idempotency-Key", key, encode(f, "gzip", []byte(`[{"a":1},5]`)))
	f.Add("/log/batch", "ids=1&ids=%66", "", a.secret+"slow", "", "zstd", "Content-Encoding", "zstd", encode(f, "zstd", []byte(`{}{}{}{}{}{}`)))
	f.Add("/log", "id", "Basic x", "\xff\x00", "{"+key+"}", "deflate", "Authorization", "Bearer "+a.secret, encode(f, "deflate", []byte(`{}`)))
	f.Add("/log", "", "", a.secret, "", "br", "Content-Type", "multipart/form-data; boundary=x", []byte("--x--"))
	f.Add("/log", "", "", a.secret, "", "", "Transfer-Encoding", "chunked", []byte("2\r\n{}\r\n0\r\nTrailer: x\r\n\r\n"))
	f.Add("/log", "", "", a.secret, "", "", "Connection", "close", []byte(`{}`))
	f.Add("/log", "", "", a.secret, "", "", "Expect", "200-maybe", []byte(`{}`))
	f.Add("/log/batch", "ok=200&repair=1&unwrap=true&fields=a=b&time_field=t&dedupe=body", "Splunk "+a.secret, "", "", "snappy", "Prefer", "status=200", encode(f, "snappy", []byte(`{"logs":[{"t":1795822841,"a":NaN},5]}`)))
	f.Add("/log/batch", "parse=false", "", a.secret, "", "", "Content-Type", "text/plain", []byte("one\n{\"two\":2}\n"))
	f.Add("/metrics", "", "", "", "", "", "Range", "bytes=1-", []byte(``))
	oneLine := strings.NewReplacer("\r", "", "\n", "")
	f.Fuzz(func(t *testing.T, path, query, authorization, apiKey, idempotency, encoding, name, value string, body []byte) {
		var wire bytes.Buffer
		wire.WriteString("POST " + strings.ReplaceAll(oneLine.Replace(path+"?"+query), " ", "+") + " HTTP/1.1\r\nHost: x\r\n")
		for _, header := range [][2]string{{"Authorization", authorization}, {"X-API-Key", apiKey}, {"Idempotency-Key", idempotency},
			{"Content-Encoding", encoding}, {name, value}} {
			if header[1] != "" {
				wire.WriteString(oneLine.Replace(header[0]) + ": " + oneLine.Replace(header[1]) + "\r\n")
			}
		}
		fmt.Fprintf(&wire, "Content-Length: %d\r\n\r\n%s", len(body), body)
		for i, answer := range a.exchange(t, wire.Bytes()) {
			if i > 0 || answer.status/100 != 2 || !strings.HasPrefix(answer.path, "/log") {
				continue // what follows the first comes out of the body
			}
			if sent := authorization + apiKey + name + value; !strings.Contains(oneLine.Replace(sent), a.secret) {
				t.Errorf("%+v for the keys %q and %q", answer, authorization, apiKey)
			}
			if sent := strings.Trim(oneLine.Replace(idempotency), " \t"); sent != "" {
				if id, err := uuid.Parse(sent); err != nil || !frame.IsV7(id) {
					t.Errorf("%+v for the Idempotency-Key %q", answer, idempotency)
				}
			}
		}
	})
}
