package api

import (
	"bytes"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/valyala/fasthttp"
)

// readBody reads a body as a request's is read. It returns the bytes that are still reserved at the end.
func readBody(t *testing.T, header http.Header, wire []byte, limit bodyLimit, implied string) (text string, bad *refusal, reserved int64) {
	t.Helper()
	conn, other := net.Pipe() // only its deadline is touched
	defer func() { _ = conn.Close(); _ = other.Close() }()
	inflight := &inflight{limit: 1 << 20}
	r := &bodyReader{inflight: inflight}
	var ctx fasthttp.RequestCtx
	ctx.Init2(conn, nil, false)
	for name, values := range header {
		for _, v := range values {
			ctx.Request.Header.Add(name, v)
		}
	}
	ctx.Request.SetBodyStream(bytes.NewReader(wire), len(wire))
	body, bad := r.read(&ctx, limit, implied)
	if bad == nil {
		text = string(body.bytes())
		body.close()
	}
	return text, bad, inflight.used.Load()
}

func TestABodyIsDecodedWithinItsLimit(t *testing.T) {
	text := strings.Repeat(`{"a":1}`, 1000)
	limit := bodyLimit{10_000, "INTAKE_BODY_BYTES"}
	for _, encoding := range []string{"identity", "gzip", "x-gzip", "zstd", "deflate", "raw deflate", "snappy", "SNAPPY"} {
		name := strings.TrimPrefix(encoding, "raw ")
		format := strings.ToLower(strings.TrimPrefix(encoding, "x-"))
		header := http.Header{"Content-Encoding": {name}}
		got, bad, reserved := readBody(t, header, encode(t, format, []byte(text)), limit, "")
		if bad != nil || got != text || reserved != 0 {
			t.Errorf("%s: got %d bytes, %v, %d still reserved", encoding, len(got), bad, reserved)
		}
		_, bad, reserved = readBody(t, header, encode(t, format, []byte(text+text)), limit, "")
		if bad == nil || bad.Status != http.StatusRequestEntityTooLarge || !strings.Contains(bad.Msg, "10000 bytes (INTAKE_BODY_BYTES") || reserved != 0 {
			t.Errorf("%s, larger than the limit: got %v, %d still reserved", encoding, bad, reserved)
		}
	}
}

func TestABlockOfSnappyCantClaimMoreThanItHolds(t *testing.T) {
	snappy := http.Header{"Content-Encoding": {"snappy"}}
	for name, tt := range map[string]struct {
		wire string
		want string
	}{
		"claims 512 KiB": {"\x80\x80\x20" + strings.Repeat("x", 100), "says that they hold 524288"},
		"a frame":        {"\xff\x06\x00\x00sNaPpY", "framing format"},
		"no length":      {"\xff", "corrupt"},
		"cut short":      {string(s2.EncodeSnappy(nil, []byte("hello, hello, hello")))[:5], "corrupt"},
	} {
		_, bad, reserved := readBody(t, snappy, []byte(tt.wire), bodyLimit{1 << 20, "MAX_BODY_BYTES"}, "")
		if bad == nil || bad.Status != http.StatusBadRequest || !strings.Contains(bad.Msg, tt.want) || reserved != 0 {
			t.Errorf("%s: got %v, want %q; %d still reserved", name, bad, tt.want, reserved)
		}
	}
	if got, bad, _ := readBody(t, snappy, s2.EncodeSnappy(nil, bytes.Repeat([]byte{'x'}, 1<<18)), bodyLimit{1 << 20, ""}, ""); bad != nil || len(got) != 1<<18 {
		t.Errorf("what compresses best: got %d bytes, %v", len(got), bad)
	}
	if _, bad, _ := readBody(t, snappy, s2.EncodeSnappy(nil, make([]byte, 1<<20)), bodyLimit{1 << 21, ""}, ""); bad == nil || bad.Status != http.StatusServiceUnavailable && bad.Status != http.StatusRequestEntityTooLarge {
		t.Errorf("more than all requests may hold: got %v", bad)
	}
}

func TestAProtocolsBodiesMayHaveAnEncodingThatIsLeftOut(t *testing.T) {
	block := s2.EncodeSnappy(nil, []byte("hello"))
	limit := bodyLimit{1 << 10, ""}
	if got, bad, _ := readBody(t, nil, block, limit, "snappy"); bad != nil || got != "hello" {
		t.Errorf("left out: got %q, %v", got, bad)
	}
	if got, bad, _ := readBody(t, nil, nil, limit, "snappy"); bad != nil || got != "" {
		t.Errorf("left out with the body: got %q, %v", got, bad)
	}
	if got, bad, _ := readBody(t, http.Header{"Content-Encoding": {"identity"}}, []byte("hello"), limit, "snappy"); bad != nil || got != "hello" {
		t.Errorf("none: got %q, %v", got, bad)
	}
	if got, bad, _ := readBody(t, http.Header{"Content-Encoding": {"gzip"}}, encode(t, "gzip", []byte("hello")), limit, "snappy"); bad != nil || got != "hello" {
		t.Errorf("another: got %q, %v", got, bad)
	}
}
