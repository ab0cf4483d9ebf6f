package worker

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/frame"
)

// ownTypePrefix begins the AMQP type of every message that Millrace publishes.
const ownTypePrefix = "millrace."

// segment is a run of records on its way into the database.
type segment struct {
	frame.Span
	sum  uint64 // XXH64 of Body
	from *origin
}

// origin is the message that segments and dead letters came in.
type origin struct {
	queue       string
	typ         string
	contentType string
	encoding    string // content encoding
	messageID   string
	headers     amqp.Table
}

// originOf returns the origin of what comes in a delivery of queue.
func originOf(d *amqp.Delivery, queue string) *origin {
	frame.Mend(d.Headers)
	return &origin{queue: queue, typ: d.Type, contentType: d.ContentType, encoding: d.ContentEncoding, messageID: d.MessageId, headers: d.Headers}
}

// decode makes an item of a delivery of queue, where there is one database. The item's segments point into the delivery's body.
func decode(d *amqp.Delivery, queue string, now time.Time) item {
	return (*home)(nil).decode(d, queue, now)
}

// decode does what the function does, for the queues of a cell.
func (h *home) decode(d *amqp.Delivery, queue string, now time.Time) item {
	from := originOf(d, queue)
	it := item{tag: d.DeliveryTag, redelivered: d.Redelivered}
	switch {
	case d.Type == frame.Type:
		spans, err := parseFrame(d)
		if err != nil {
			it.dead = []DeadLetter{from.letter(d.Body, reasonUndecodable, err.Error())}
			return it
		}
		it.segments = make([]segment, len(spans))
		for i, s := range spans {
			it.segments[i] = segment{Span: s, sum: xxhash.Sum64(s.Body), from: from}
		}
	case strings.HasPrefix(d.Type, ownTypePrefix):
		it.dead = []DeadLetter{from.letter(d.Body, reasonUnknownType, fmt.Sprintf("this worker knows %s, not %s", frame.Type, d.Type))}
	default:
		it.segments, it.dead = h.decodeForeign(d, from, now)
	}
	return it
}

// parseFrame returns the segments of a frame. It fails if their ids have times that a partition's name can't hold.
func parseFrame(d *amqp.Delivery) ([]frame.Span, error) {
	body, err := frame.Decompress(d.ContentEncoding, d.Body)
	if err != nil {
		return nil, err
	}
	spans, err := frame.Parse(nil, d.Headers, body)
	if err != nil {
		return nil, err
	}
	for _, s := range spans {
		if year := frame.Time(s.Base).Year(); year < 2000 || year > 9998 {
			return nil, fmt.Errorf("segment %s is of the year %d", s.Base, year)
		}
	}
	return spans, nil
}

// decodeDead makes an item of a delivery of the dead queue: a dead letter, whatever the message holds.
func decodeDead(d *amqp.Delivery, queue string, _ time.Time) item {
	if first, ok := d.Headers["x-first-death-queue"].(string); ok {
		queue = first
	}
	from := originOf(d, queue)
	why, _ := d.Headers["x-first-death-reason"].(string)
	reason := reasonDeliveryLimit
	if slices.Contains(brokerReasons, why) {
		reason = why
	}
	return item{
		tag:         d.DeliveryTag,
		redelivered: d.Redelivered,
		dead:        []DeadLetter{from.letter(d.Body, reason, "set aside by RabbitMQ: "+cmp.Or(why, "no reason given"))},
	}
}
