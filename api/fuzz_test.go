package api

import (
	"bytes"
	"net"
	"strings"
	"testing"

	"github.com/valyala/fasthttp"

	"millrace/internal/frame"
	"millrace/internal/scan"
)

// FuzzRequest passes bodies in all encodings to the decoder and the splitter, as a request does.
func FuzzRequest(f *testing.F) {
	for _, encoding := range []string{"", "gzip", "zstd", "deflate", "raw deflate", "snappy"} {
		name := strings.TrimPrefix(encoding, "raw ")
		for _, text := range []string{"", `{"a":1}`, "{\"a\":1}\n{\"b\":\n5\n", `[{"a":[1,2]},3]`, strings.Repeat(`{"a":"b"}`, 500)} {
			body := encode(f, encoding, []byte(text))
			f.Add(name, body, len(body))
			f.Add(name, body[:len(body)/2], -1)
		}
	}
	f.Add("br", []byte("{}"), 2)
	const maxBody = 1 << 16
	conn, other := net.Pipe() // only its deadline is touched
	f.Cleanup(func() {
		_ = conn.Close()
		_ = other.Close()
	})
	f.Fuzz(func(t *testing.T, encoding string, wire []byte, length int) {
		inflight := &inflight{limit: 4 * maxBody}
		r := &bodyReader{inflight: inflight}
		var ctx fasthttp.RequestCtx
		ctx.Init2(conn, nil, false)
		ctx.Request.Header.Set(fasthttp.HeaderContentEncoding, encoding)
		if length < 0 {
			length = -1
		} else {
			length = len(wire)
		}
		ctx.Request.SetBodyStream(bytes.NewReader(wire), length)

		body, bad := r.read(&ctx, bodyLimit{maxBody, "MAX_BODY_BYTES"}, "")
		if bad != nil {
			if bad.Status < 400 || bad.Msg == "" {
				t.Errorf("refused with status %d, %q", bad.Status, bad.Msg)
			}
		} else {
			if n := len(body.bytes()); n > maxBody {
				t.Errorf("a body of %d bytes came through a limit of %d", n, maxBody)
			}
			var records scan.Body
			err := records.Batch(body.bytes(), scan.Limits{RecordBytes: 1 << 12, PieceBytes: frame.SegmentBytes})
			if lines := bytes.Count(records.NDJSON, []byte("\n")); lines != records.Accepted || err != nil && lines > 0 {
				t.Errorf("%d lines, %d accepted, error %v", lines, records.Accepted, err)
			}
			body.close()
		}
		if used := inflight.used.Load(); used != 0 {
			t.Errorf("%d bytes are still reserved", used)
		}
	})
}
