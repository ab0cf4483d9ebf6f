package api

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// The answer to what people send by mistake says what it is and what to send
// instead.
func TestBodiesInOtherFormsAreToldWhatToSend(t *testing.T) {
	a := start(t, nil)
	form := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
	// Python's HTTPHandler.
	record := "name=root&msg=hello+world&args=%28%29&levelname=WARNING&levelno=30&pathname=%2Ftmp%2Fx.py&created=1795822841.182&exc_info=None"
	long := func(window int, dictionary bool) string {
		options := []zstd.EOption{zstd.WithWindowSize(window), zstd.WithSingleSegment(false)}
		if dictionary {
			options = append(options, zstd.WithEncoderDictRaw(7, []byte(`{"level":"info","message":"hello"}`)))
		}
		var b strings.Builder
		w, err := zstd.NewWriter(&b, options...)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := w.Write([]byte(strings.Repeat(`{"level":"info","message":"hello"}`+"\n", 10_000))); err != nil {
				t.Fatal(err)
			}
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	zstdHeader := http.Header{"Content-Encoding": {"zstd"}}
	for _, tt := range []struct {
		name, path, body string
		header           http.Header
		want             []string
	}{
		{"a form", "/log", record, form, []string{"logging.HTTPHandler", "takes JSON", "at byte 1"}},
		{"a form as a batch", "/log/batch", record, form, []string{"logging.HTTPHandler", "takes JSON", `"accepted":0,"rejected":1`}},
		{"percent-encoded", "/log", "%7B%22a%22%3A1%7D", form, []string{"percent-encoded"}},
		{"multipart", "/log/batch", "--x\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n{\"a\":1\r\n--x--\r\n", http.Header{"Content-Type": {"multipart/form-data; boundary=x"}}, []string{"multipart form", "--data-binary"}},
		{"HTML", "/log", "<!DOCTYPE html><p>no", nil, []string{"HTML or XML", "takes JSON"}},
		{"HTML as a batch", "/log/batch", "<!DOCTYPE html>\n<p>no", nil, []string{"HTML or XML", "takes JSON"}},
		{"encoded twice", "/log", `"{\"a\":1}"`, nil, []string{"encoded twice"}},
		{"encoded twice, as a batch", "/log/batch", `"{\"a\":1}"`, nil, []string{"encoded twice"}},
		{"an array for one record", "/log", `[{"a":1}]`, nil, []string{"/log/batch takes arrays", "at byte 0"}},
		{"two for one", "/log", "{\"a\":1}\n{\"a\":2}", nil, []string{"/log/batch takes several", "at byte 8"}},
		{"protobuf", "/log/batch", "\x0a\x05hello", http.Header{"Content-Type": {"application/x-protobuf"}}, []string{"application/x-protobuf", "takes JSON"}},
		{"text", "/log", "hello\nworld\n", http.Header{"Content-Type": {"text/plain; charset=utf-8"}}, []string{"is text", "an object a line"}},
		{"gzip that is not said to be", "/log/batch", string(encode(t, "gzip", []byte(`{"a":1}`))), nil, []string{"Content-Encoding: gzip"}},
		{"a zstd window of 16 MiB", "/log/batch", long(16<<20, false), zstdHeader, []string{"window is 16 MiB", "at most 8 MiB", "--long"}},
		{"a zstd dictionary", "/log/batch", long(1<<20, true), zstdHeader, []string{"dictionary, number 7"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := a.post(t, tt.path, []byte(tt.body), tt.header)
			if got.status != http.StatusBadRequest || !json.Valid([]byte(got.body)) {
				t.Fatalf("got %d %s, want 400 in JSON", got.status, got.body)
			}
			for _, want := range tt.want {
				if !strings.Contains(got.body, want) {
					t.Errorf("got %s, want it to say %s", got.body, want)
				}
			}
		})
	}
	if left := a.published(t); len(left) > 0 {
		t.Errorf("of the refused requests %d records were published", len(left))
	}
	// What curl -d says of itself is no form.
	if got := a.post(t, "/log", []byte(`{"a":1}`), form); got.status != http.StatusAccepted {
		t.Errorf("JSON that is said to be a form: got %d %s, want 202", got.status, got.body)
	}
	if got := a.post(t, "/log/batch", []byte(long(8<<20, false)), zstdHeader); got.status != http.StatusAccepted {
		t.Errorf("a zstd window of 8 MiB: got %d %s, want 202", got.status, got.body)
	}
}
