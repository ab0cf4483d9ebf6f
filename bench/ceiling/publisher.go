package ceiling

import (
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/broker"
	"millrace/internal/config"
	"millrace/internal/frame"
	"millrace/internal/testenv"
)

// Width is how many connections a publisher has, and how many frames may be outstanding on each.
type Width struct{ Connections, Window int }

// Wide is the API's width by default. Lone has one frame on its way at a time, as the API has while frames are not full.
var Wide, Lone = Width{4, 2}, Width{1, 1}

// Publisher sends ready-made frames over and over and waits for their confirms.
type Publisher struct {
	topology broker.Topology
	width    Width
	channels []*amqp.Channel
	confirms []chan amqp.Confirmation
	frame    amqp.Publishing
	records  int
}

// NewPublisher returns a publisher of frames with this body of so many records. compression is a value of FRAME_COMPRESSION.
// The queues must be there.
func NewPublisher(b testing.TB, c config.Broker, body []byte, records int, compression string, w Width) *Publisher {
	b.Helper()
	compressor, err := frame.NewCompressor(compression)
	if err != nil {
		b.Fatal(err)
	}
	body, encoding := compressor.Compress(body)
	p := &Publisher{topology: broker.NewTopology(c), width: w, records: records, frame: amqp.Publishing{
		ContentType:     frame.ContentType,
		ContentEncoding: encoding,
		DeliveryMode:    amqp.Persistent,
		Type:            frame.Type,
		Body:            body,
	}}
	for range w.Connections {
		ch := testenv.Channel(b, c)
		if err := ch.Confirm(false); err != nil {
			b.Fatal(err)
		}
		p.channels = append(p.channels, ch)
		p.confirms = append(p.confirms, ch.NotifyPublish(make(chan amqp.Confirmation, w.Window)))
	}
	return p
}

// Run publishes for a while and returns how many records were confirmed a second.
func (p *Publisher) Run(b testing.TB, d time.Duration) float64 {
	b.Helper()
	start := time.Now()
	done := make(chan int)
	for i, ch := range p.channels {
		go func() {
			sent, confirmed := 0, 0
			for time.Since(start) < d || confirmed < sent {
				for time.Since(start) < d && sent-confirmed < p.width.Window {
					f := p.frame
					f.Headers = frame.Headers([]frame.Segment{{Base: frame.NewBase(), Records: p.records}})
					if err := ch.Publish(broker.DefaultExchange, p.topology.Queue(0), true, false, f); err != nil {
						b.Error(err)
						break
					}
					sent++
				}
				if c, ok := <-p.confirms[i]; !ok || !c.Ack {
					b.Error("not confirmed")
					break
				}
				confirmed++
			}
			done <- confirmed
		}()
	}
	frames := 0
	for range p.channels {
		frames += <-done
	}
	return float64(frames*p.records) / time.Since(start).Seconds()
}
