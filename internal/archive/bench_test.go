package archive_test

import (
	"bytes"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"millrace/internal/archive"
)

// BenchmarkCopy writes and verifies files, and says how many bytes a record takes beside zstd of NDJSON.
func BenchmarkCopy(b *testing.B) {
	for name, rows := range sets(b, records(b)) {
		b.Run(name, func(b *testing.B) {
			encoder, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
			if err != nil {
				b.Fatal(err)
			}
			var text []byte
			for i := range rows {
				text = append(append(text, rows[i].Data...), '\n')
			}
			ndjson := len(encoder.EncodeAll(text, nil))
			var out bytes.Buffer
			var summary archive.Summary
			var file *archive.File
			// The processor's time says more than the clock's where other programs run.
			perSecond := func(b *testing.B, before time.Duration) {
				b.ReportMetric(float64(len(rows))*float64(b.N)/b.Elapsed().Seconds(), "records/s")
				b.ReportMetric(float64(len(rows))*float64(b.N)/(processorTime()-before).Seconds(), "records/cpu-s")
			}
			b.Run("write", func(b *testing.B) {
				before := processorTime()
				for b.Loop() {
					out.Reset()
					w := archive.NewWriter(&out, archive.NewRegistry(nil))
					for i := range rows {
						if err := w.Add(&rows[i]); err != nil {
							b.Fatal(err)
						}
					}
					if summary, err = w.Close(); err != nil {
						b.Fatal(err)
					}
				}
				perSecond(b, before)
				b.ReportMetric(float64(summary.Bytes)/float64(len(rows)), "B/record")
				b.ReportMetric(float64(len(text))/float64(len(rows)), "NDJSON-B/record")
				b.ReportMetric(float64(ndjson)/float64(len(rows)), "zstd-B/record")
			})
			b.Run("verify", func(b *testing.B) {
				before := processorTime()
				for b.Loop() {
					if file, err = archive.Open(bytes.NewReader(out.Bytes()), summary.Bytes, summary.TailBytes); err != nil {
						b.Fatal(err)
					}
					if _, err := file.Verify(b.Context()); err != nil {
						b.Fatal(err)
					}
				}
				perSecond(b, before)
			})
			rests := 0
			for _, g := range file.Groups {
				rests += g.RestRows
			}
			b.Logf("%d records, %d with a rest; columns:", len(rows), rests)
			for _, c := range file.Columns {
				b.Logf("%-20s %s, form %d", c.Name, c.Kind, c.Form)
			}
		})
	}
}

// processorTime returns how long this program has computed.
func processorTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
