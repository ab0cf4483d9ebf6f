package bench

import (
	"bytes"
	"encoding/json"
	"runtime"
	"testing"
	"time"

	gojson "github.com/goccy/go-json"
	"github.com/klauspost/compress/s2"
	"github.com/valyala/fastjson"

	"millrace/bench/ceiling"
	"millrace/internal/frame"
	"millrace/internal/scan"
)

// spell is a turn of what takes microseconds.
const spell = 20 * time.Millisecond

// repeat runs f for a spell and returns how often a second, and how often f allocated each time.
func repeat(f func()) (rate, allocs float64) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start, n := time.Now(), 0
	for ; time.Since(start) < spell; n++ {
		f()
	}
	rate = float64(n) / time.Since(start).Seconds()
	runtime.ReadMemStats(&after)
	return rate, float64(after.Mallocs-before.Mallocs) / float64(n)
}

// BenchmarkScan reads bodies of 500 records, or one, as requests hold them. The ceiling is goccy/go-json's Valid, the
// fastest validator there is for Go: it neither splits nor compacts, and lets through what jsonb can't hold.
func BenchmarkScan(b *testing.B) {
	const n = 500
	ndjson := bodies(1, n)[0]
	records := bytes.Split(bytes.TrimSpace(ndjson), []byte("\n"))
	array := append(append([]byte("["), bytes.Join(records, []byte(","))...), ']')
	var pretty bytes.Buffer
	for _, record := range records {
		if err := json.Indent(&pretty, record, "", "  "); err != nil {
			b.Fatal(err)
		}
		pretty.WriteByte('\n')
	}
	var body scan.Body
	limits := scan.Limits{RecordBytes: 1 << 20, PieceBytes: frame.SegmentBytes}
	for _, form := range []struct {
		name   string
		src    []byte
		values [][]byte // what a validator takes one at a time
		n      int
	}{
		{"ndjson", ndjson, records, n},
		{"array", array, [][]byte{array}, n},
		{"pretty", pretty.Bytes(), bytes.SplitAfter(bytes.TrimSpace(pretty.Bytes()), []byte("\n}\n")), n},
		{"one", records[0], records[:1], 1},
	} {
		b.Run(form.name, func(b *testing.B) {
			product := func() {
				if err := body.Batch(form.src, limits); err != nil || body.Accepted != n {
					b.Fatal(err, body.Accepted)
				}
			}
			if form.n == 1 {
				product = func() {
					if err := body.Single(form.src, limits); err != nil {
						b.Fatal(err)
					}
				}
			}
			validator := func(valid func([]byte) bool) func() {
				return func() {
					for _, v := range form.values {
						if !valid(v) {
							b.Fatalf("not valid: %s", v)
						}
					}
				}
			}
			product() // its buffers grow
			megabytes := float64(len(form.src)) / 1e6
			t := ceiling.NewTurns("MB/s")
			for b.Loop() {
				rate, allocs := repeat(product)
				fastest, _ := repeat(validator(gojson.Valid))
				t.Add(rate*megabytes, fastest*megabytes)
				t.Also("ns/record", 1e9/rate/float64(form.n))
				t.Also("allocs/record", allocs/float64(form.n))
				fast, _ := repeat(validator(func(p []byte) bool { return fastjson.ValidateBytes(p) == nil }))
				t.Also("fastjson-MB/s", fast*megabytes)
				std, _ := repeat(validator(json.Valid))
				t.Also("encoding/json-MB/s", std*megabytes)
			}
			t.Report(b)
		})
	}
}

// BenchmarkFrame makes frames of 64 KiB out of what the scanner leaves and takes them apart again, plain and compressed.
// The ceilings are what can't be left out: copying the records, finding the lines' ends, s2 itself.
func BenchmarkFrame(b *testing.B) {
	src := bodies(1, frameRecords)[0]
	body := make([]byte, 0, 2*len(src))
	segments := make([]frame.Segment, 0, 1)
	append64k := func() {
		body, segments = append(body[:0], src...), append(segments[:0], frame.Segment{Base: frame.NewBase(), Records: frameRecords})
	}
	compressor, err := frame.NewCompressor("s2")
	if err != nil {
		b.Fatal(err)
	}
	compressed := s2.Encode(nil, src)
	headers := frame.Headers([]frame.Segment{{Base: frame.NewBase(), Records: frameRecords}})
	var spans []frame.Span
	parse := func(encoding string, from []byte) func() {
		return func() {
			plain, err := frame.Decompress(encoding, from)
			if err == nil {
				spans, err = frame.Parse(spans[:0], headers, plain)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	}
	dst := make([]byte, s2.MaxEncodedLen(len(src)))
	for _, step := range []struct {
		name             string
		product, without func()
	}{
		{"encode/plain", func() { append64k(); headers = frame.Headers(segments) }, func() { body = append(body[:0], src...) }},
		{"encode/s2", func() { append64k(); headers = frame.Headers(segments); compressor.Compress(body) }, func() { s2.Encode(dst, src) }},
		{"decode/plain", parse("", src), func() { bytes.Count(src, []byte("\n")) }},
		{"decode/s2", parse("s2", compressed), func() {
			if _, err := s2.Decode(dst, compressed); err != nil {
				b.Fatal(err)
			}
		}},
	} {
		b.Run(step.name, func(b *testing.B) {
			t := ceiling.NewTurns("records/s")
			for b.Loop() {
				rate, allocs := repeat(step.product)
				without, _ := repeat(step.without)
				t.Add(rate*frameRecords, without*frameRecords)
				t.Also("MB/s", rate*float64(len(src))/1e6)
				t.Also("ns/record", 1e9/rate/frameRecords)
				t.Also("allocs/record", allocs/frameRecords)
			}
			t.Report(b)
		})
	}
}
