package bench

import (
	"fmt"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/bench/ceiling"
	"millrace/internal/broker"
	"millrace/internal/frame"
	"millrace/internal/testenv"
)

// BenchmarkSweepCompression shows what it brings to compress frames: it publishes and consumes them through one quorum
// queue, as fast as they are confirmed. FRAME_COMPRESSION is s2 by default because of its result.
func BenchmarkSweepCompression(b *testing.B) {
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		b.Fatal(err)
	}
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		b.Fatal(err)
	}
	defer decoder.Close()
	codecs := []struct {
		name           string
		encode, decode func(dst, src []byte) ([]byte, error)
	}{
		{"none", func(_, src []byte) ([]byte, error) { return src, nil }, func(_, src []byte) ([]byte, error) { return src, nil }},
		{"s2", func(dst, src []byte) ([]byte, error) { return s2.Encode(dst[:cap(dst)], src), nil },
			func(dst, src []byte) ([]byte, error) { return s2.Decode(dst[:cap(dst)], src) }},
		{"zstd", func(dst, src []byte) ([]byte, error) { return encoder.EncodeAll(src, dst[:0]), nil },
			func(dst, src []byte) ([]byte, error) { return decoder.DecodeAll(src, dst[:0]) }},
	}
	const each, frames, window = frameRecords, 1000, 16
	all := bodies(32, each)
	for _, codec := range codecs {
		b.Run(codec.name, func(b *testing.B) {
			q := newQueues(b)
			out, in := testenv.Channel(b, q.Broker), testenv.Channel(b, q.Broker)
			if err := out.Confirm(false); err != nil {
				b.Fatal(err)
			}
			confirms := out.NotifyPublish(make(chan amqp.Confirmation, window))
			if err := in.Qos(window, 0, false); err != nil {
				b.Fatal(err)
			}
			deliveries, err := in.Consume(q.topology.Queue(0), "", false, false, false, false, nil)
			if err != nil {
				b.Fatal(err)
			}
			t := ceiling.NewTurns("records/s")
			var bytes, records int
			var encoding, decoding time.Duration
			for b.Loop() {
				start := time.Now()
				consumed := make(chan error)
				go func() {
					var plain []byte
					for range frames {
						d := <-deliveries
						began := time.Now()
						var err error
						if plain, err = codec.decode(plain, d.Body); err != nil || len(plain) != len(all[0]) {
							consumed <- fmt.Errorf("%d bytes for %d: %w", len(plain), len(all[0]), err)
							return
						}
						decoding += time.Since(began)
						if err := d.Ack(false); err != nil {
							consumed <- err
							return
						}
					}
					consumed <- nil
				}()
				sent, confirmed := 0, 0
				for confirmed < frames {
					for sent < frames && sent-confirmed < window {
						began := time.Now()
						body, err := codec.encode(nil, all[sent%len(all)])
						if err != nil {
							b.Fatal(err)
						}
						encoding += time.Since(began)
						bytes += len(body)
						err = out.Publish(broker.DefaultExchange, q.topology.Queue(0), true, false, amqp.Publishing{
							Headers: frame.Headers([]frame.Segment{{Base: frame.NewBase(), Records: each}}), DeliveryMode: amqp.Persistent, Type: frame.Type, Body: body})
						if err != nil {
							b.Fatal(err)
						}
						sent++
					}
					if c := <-confirms; !c.Ack {
						b.Fatal("not confirmed")
					}
					confirmed++
				}
				if err := <-consumed; err != nil {
					b.Fatal(err)
				}
				t.Also("records/s", each*frames/time.Since(start).Seconds())
				records += each * frames
			}
			t.Report(b)
			b.ReportMetric(float64(bytes)/float64(records), "B/record")
			b.ReportMetric(float64(encoding.Nanoseconds())/float64(records), "encode-ns/record")
			b.ReportMetric(float64(decoding.Nanoseconds())/float64(records), "decode-ns/record")
		})
	}
}
