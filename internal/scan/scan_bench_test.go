package scan

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"

	gojson "github.com/goccy/go-json"
	"github.com/valyala/fastjson"
)

// logRecords returns n log records as services write them, about 264 bytes each
// when compact. special adds escapes and text that is not ASCII.
func logRecords(n int, special bool) [][]byte {
	rng := rand.New(rand.NewPCG(1, 2))
	pick := func(of ...string) string { return of[rng.IntN(len(of))] }
	messages := []string{
		"request completed", "connection reset by peer", "cache miss, reading through",
		"payment authorised for the order", "retrying after a timeout of the upstream",
	}
	if special {
		messages = append(messages,
			`panic: runtime error\n\tgoroutine 17 [running]\n\tmain.main()`,
			`can't parse \"limit\" of C:\\temp\\in.json`,
			"Zahlung für Größe Ä abgelehnt", "заказ не найден в базе данных", "注文が見つかりません", "done 🎉 caf\\u00e9")
	}
	records := make([][]byte, n)
	for i := range records {
		records[i] = fmt.Appendf(nil, `{"time":"2025-06-%02dT%02d:%02d:%02d.%06dZ","level":%q,"service":%q,"msg":"%s",`+
			`"trace_id":"%016x%016x","http":{"method":%q,"path":"/api/v1/%s/%d","status":%d,"bytes":%d},"duration_ms":%.3f,"cached":%t,"tags":["%s","%s"]}`,
			1+rng.IntN(30), rng.IntN(24), rng.IntN(60), rng.IntN(60), rng.IntN(1e6),
			pick("info", "info", "info", "warn", "error", "debug"), pick("checkout", "cart", "search", "auth", "gateway"),
			messages[rng.IntN(len(messages))], rng.Uint64(), rng.Uint64(),
			pick("GET", "GET", "POST", "PUT"), pick("orders", "users", "items"), rng.IntN(1e6),
			200+rng.IntN(5)*100, rng.IntN(1e5), rng.ExpFloat64()*40, rng.IntN(2) == 0,
			pick("prod", "canary"), pick("eu-1", "us-2", "ap-3"))
	}
	return records
}

// bodies returns the same records in each form that a body can have.
func bodies(records [][]byte) map[string][]byte {
	forms := map[string][]byte{
		"ndjson": append(bytes.Join(records, []byte("\n")), '\n'),
		"array":  fmt.Appendf(nil, "[%s]", bytes.Join(records, []byte(","))),
	}
	var pretty, spaced bytes.Buffer
	for _, record := range records {
		json.Indent(&pretty, record, "", "  ")
		pretty.WriteByte('\n')
		// This is the form of Python's json.dumps. The records' strings hold no
		// such pairs.
		spaced.Write(bytes.ReplaceAll(bytes.ReplaceAll(record, []byte(`":`), []byte(`": `)), []byte(`,"`), []byte(`, "`)))
		spaced.WriteByte('\n')
	}
	forms["pretty"] = pretty.Bytes()
	forms["spaced"] = spaced.Bytes()
	return forms
}

// The others only validate or only compact, one record or one array at a time.
// Body also splits, compacts, and checks what jsonb can't hold.
func BenchmarkBody(b *testing.B) {
	const n = 500
	lim := Limits{RecordBytes: 1 << 20, PieceBytes: 64 << 10}
	for _, text := range []string{"ascii", "escapes"} {
		records := logRecords(n, text == "escapes")
		forms := bodies(records)
		for _, form := range []string{"ndjson", "array", "pretty", "spaced"} {
			src := forms[form]
			lines := [][]byte{src}
			if form == "ndjson" || form == "spaced" {
				lines = bytes.Split(bytes.TrimSpace(src), []byte("\n"))
			} else if form == "pretty" {
				lines = bytes.SplitAfter(bytes.TrimSpace(src), []byte("\n}\n"))
			}
			run := func(name string, one func()) {
				b.Run(text+"/"+form+"/"+name, func(b *testing.B) {
					b.SetBytes(int64(len(src)))
					b.ReportAllocs()
					for b.Loop() {
						one()
					}
				})
			}
			valid := func(f func([]byte) bool) func() {
				return func() {
					for _, line := range lines {
						if !f(line) {
							b.Fatalf("not valid: %s", line)
						}
					}
				}
			}
			var body Body
			run("scan", func() {
				if err := body.Batch(src, lim); err != nil || body.Accepted != n {
					b.Fatal(err, body.Accepted)
				}
			})
			run("goccy", valid(gojson.Valid))
			run("fastjson", valid(func(p []byte) bool { return fastjson.ValidateBytes(p) == nil }))
			run("stdlib", valid(json.Valid))
			var compact bytes.Buffer
			run("goccy-compact", func() {
				compact.Reset()
				for _, line := range lines {
					if err := gojson.Compact(&compact, line); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkSingle(b *testing.B) {
	record := logRecords(1, false)[0]
	lim := Limits{RecordBytes: 1 << 20, PieceBytes: 64 << 10}
	var body Body
	b.SetBytes(int64(len(record)))
	b.ReportAllocs()
	for b.Loop() {
		if err := body.Single(record, lim); err != nil {
			b.Fatal(err)
		}
	}
}
