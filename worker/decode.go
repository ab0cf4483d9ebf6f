package worker

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/frame"
	"millrace/internal/pg"
	"millrace/internal/scan"
)

// Reasons of dead letters. Records of foreign messages that the scanner refuses have its reasons.
const (
	reasonData          = "data"           // PostgreSQL refused the record
	reasonUndecodable   = "undecodable"    // says it is a frame and is none
	reasonUnknownType   = "unknown_type"   // a frame of another version
	reasonKeyReused     = "key_reused"     // the ledger has other records under the segment's id
	reasonDeliveryLimit = "delivery_limit" // RabbitMQ gave up on it
	reasonExpired       = "expired"        // it waited for longer than a policy on RabbitMQ allows
	reasonMaxlen        = "maxlen"         // its queue was longer than a policy on RabbitMQ allows
	reasonRejected      = "rejected"       // a reader that is not ours rejected it
	reasonNoPartition   = "no_partition"   // the partition for the record's time can't be made
)

// brokerReasons are why RabbitMQ sets a message aside. It has the same names for them.
var brokerReasons = []string{reasonDeliveryLimit, reasonExpired, reasonMaxlen, reasonRejected}

const (
	// ownTypes begins the AMQP type of everything that Millrace publishes.
	ownTypes = "millrace."

	// A foreign message_id is taken as the key of its ids only near the present: the ledger does not remember
	// longer, and partitions are not made for any time that somebody writes down.
	foreignPast   = ledgerKeep
	foreignFuture = time.Hour
)

// segment is a run of records on its way into the database.
type segment struct {
	frame.Span
	sum  uint64 // XXH64 of Body
	from *origin
}

// origin is the message that something came in.
type origin struct {
	queue       string
	typ         string
	contentType string
	encoding    string // content encoding
	messageID   string
	headers     amqp.Table
}

func originOf(d *amqp.Delivery, queue string) *origin {
	frame.Mend(d.Headers)
	return &origin{queue: queue, typ: d.Type, contentType: d.ContentType, encoding: d.ContentEncoding, messageID: d.MessageId, headers: d.Headers}
}

// decode makes a delivery of queue into an item. The item's segments point into the delivery's body.
func decode(d *amqp.Delivery, queue string, now time.Time) item {
	from := originOf(d, queue)
	it := item{tag: d.DeliveryTag, redelivered: d.Redelivered}
	switch {
	case d.Type == frame.Type:
		spans, err := parseFrame(d)
		if err != nil {
			it.dead = []deadLetter{from.message(d.Body, reasonUndecodable, err.Error())}
			return it
		}
		it.segments = make([]segment, len(spans))
		for i, s := range spans {
			it.segments[i] = segment{Span: s, sum: xxhash.Sum64(s.Body), from: from}
		}
	case strings.HasPrefix(d.Type, ownTypes):
		it.dead = []deadLetter{from.message(d.Body, reasonUnknownType, fmt.Sprintf("this worker knows %s, not %s", frame.Type, d.Type))}
	default:
		it.segments, it.dead = decodeForeign(d, from, now)
	}
	return it
}

// parseFrame parses a frame, whose ids must be of times that a partition's name can hold.
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

// decodeDead makes a delivery of the dead queue into an item, without looking into it.
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
		dead:        []deadLetter{from.message(d.Body, reason, "set aside by RabbitMQ: "+cmp.Or(why, "no reason given"))},
	}
}

// decodeForeign takes a message of another program: JSON in any form that the API takes.
func decodeForeign(d *amqp.Delivery, from *origin, now time.Time) ([]segment, []deadLetter) {
	limits := scan.Limits{RecordBytes: scan.MaxRecordBytes, PieceBytes: frame.SegmentBytes}
	var body scan.Body
	if err := body.Batch(d.Body, limits); err != nil {
		return nil, []deadLetter{from.message(d.Body, err.Reason.String(), err.Error())}
	}
	key, err := uuid.Parse(d.MessageId)
	base := frame.BaseOfKey(key)
	if t := frame.Time(key); err != nil || !frame.IsV7(key) || t.Before(now.Add(-foreignPast)) || t.After(now.Add(foreignFuture)) {
		base = frame.NewBase()
	}
	segments := make([]segment, 0, len(body.Pieces))
	records := 0
	for _, p := range body.Pieces {
		span := frame.Span{
			Segment: frame.Segment{Base: frame.ID(base, records), Records: p.Records},
			Body:    body.NDJSON[p.Start:p.End],
		}
		segments = append(segments, segment{Span: span, sum: xxhash.Sum64(span.Body), from: from})
		records += p.Records
	}
	return segments, refusedRecords(d, from, &body, base)
}

// refusedRecords sets aside what the scanner refused: each record that can be cut out of the message, and the
// message once for those that can't.
func refusedRecords(d *amqp.Delivery, from *origin, body *scan.Body, base uuid.UUID) []deadLetter {
	if body.Rejected == 0 {
		return nil
	}
	var dead []deadLetter
	uncut := body.Rejected - len(body.Errors) // the scanner words only the first ones
	reason, detail := "", ""
	delimited := lineDelimited(d.Body, body.Errors)
	for _, e := range body.Errors {
		why := fmt.Sprintf("record %d: %s", e.Index, e.Err.Error())
		var record []byte
		if delimited {
			record = cutRecord(d.Body, &e.Err)
		}
		if record != nil {
			letter := from.message(record, e.Err.Reason.String(), why)
			// Its place in the message and its text tell a redelivery from any other record.
			letter.id = uuid.NewSHA1(base, fmt.Appendf(nil, "refused record %d %s", e.Index, record))
			letter.recordID = uuid.NullUUID{UUID: frame.NewBase(), Valid: true}
			dead = append(dead, letter)
			continue
		}
		uncut++
		reason, detail = cmp.Or(reason, e.Err.Reason.String()), cmp.Or(detail, why)
	}
	if uncut > 0 {
		if reason == "" {
			last := body.Errors[len(body.Errors)-1]
			reason, detail = last.Err.Reason.String(), fmt.Sprintf("after record %d", last.Index)
		}
		dead = append(dead, from.message(d.Body, reason, fmt.Sprintf("%d records refused, the others are stored; %s", uncut, detail)))
	}
	return dead
}

// cutRecord returns the line that a refusal points into, if that line is the refused record and nothing else.
// The body must be line-delimited.
func cutRecord(body []byte, e *scan.Error) []byte {
	start, end := lineAt(body, e.Offset)
	line := bytes.TrimSpace(body[start:end])
	if e.Reason == scan.Syntax {
		return line // broken JSON costs a line when it does not cost the message
	}
	var b scan.Body
	err := b.Batch(line, scan.Limits{RecordBytes: scan.MaxRecordBytes, PieceBytes: frame.SegmentBytes})
	if err != nil || b.Accepted != 0 || b.Rejected != 1 {
		return nil
	}
	return line
}

// lineDelimited says whether surely no record of the body goes over a line's end: each line starts with '{' and
// ends with '}', or was refused for its syntax, which costs a line. A record that went on would have to do so
// with one of ",]}".
func lineDelimited(body []byte, refused []scan.RecordError) bool {
	broken := make(map[int]bool)
	for _, e := range refused {
		if e.Err.Reason == scan.Syntax {
			start, _ := lineAt(body, e.Err.Offset)
			broken[start] = true
		}
	}
	for start := 0; start < len(body); {
		_, end := lineAt(body, start)
		line := bytes.TrimSpace(body[start:end])
		if len(line) > 0 && !broken[start] && (line[0] != '{' || line[len(line)-1] != '}') {
			return false
		}
		start = end + 1
	}
	return true
}

// lineAt returns the range of the line that an offset lies in, without its newline.
func lineAt(body []byte, offset int) (start, end int) {
	at := min(offset, len(body))
	start = bytes.LastIndexByte(body[:at], '\n') + 1
	end = len(body)
	if n := bytes.IndexByte(body[at:], '\n'); n >= 0 {
		end = at + n
	}
	return start, end
}

// message returns the dead letter of a whole message, or of a part of it that is a message in itself. Its id is
// the same at each delivery wherever the message can be told from others.
func (o *origin) message(body []byte, reason, why string) deadLetter {
	letter := deadLetter{reason: reason, err: printable(why), payload: body, from: o}
	switch {
	case o.messageID != "":
		letter.id = uuid.NewSHA1(uuid.NameSpaceOID, slices.Concat([]byte(o.messageID), []byte{0}, body))
	case strings.HasPrefix(o.typ, ownTypes):
		var key []byte // a frame's header has its ids
		for _, name := range slices.Sorted(maps.Keys(o.headers)) {
			if value, ok := o.headers[name].([]byte); ok {
				key = append(append(key, name...), value...)
			}
		}
		if key != nil {
			letter.id = uuid.NewSHA1(uuid.NameSpaceOID, append(key, body...))
		}
	}
	if letter.id == uuid.Nil { // two that are alike may be two
		letter.id = frame.NewBase()
	}
	return letter
}

// record returns the dead letter of a segment that holds one record.
func (s segment) record(err error) deadLetter {
	return deadLetter{
		id:       s.Base,
		recordID: uuid.NullUUID{UUID: s.Base, Valid: true},
		reason:   reasonData,
		err:      printable(pg.Message(err)),
		payload:  bytes.TrimSuffix(s.Body, []byte("\n")),
		from:     s.from,
	}
}

// recordLetters returns a dead letter for each of the segment's records.
func (s segment) recordLetters(reason string, err error) []deadLetter {
	letters := make([]deadLetter, 0, s.Records)
	for rest := []segment{s}; len(rest) > 0; {
		var one []segment
		one, rest = split(rest, 1)
		letter := one[0].record(err)
		letter.reason = reason
		letters = append(letters, letter)
	}
	return letters
}

// reused returns the dead letter of a segment whose id the ledger has with other records. It is a frame in
// itself.
func (s segment) reused(why string) deadLetter {
	from := *s.from
	from.typ, from.contentType, from.encoding = frame.Type, frame.ContentType, ""
	from.headers = frame.Headers([]frame.Segment{s.Segment})
	from.messageID = ""
	return from.message(s.Body, reasonKeyReused, why)
}

// properties returns the message's properties as the JSON that dead_letters keeps. Bytes become
// {"base64": "…"}.
func (o *origin) properties() ([]byte, error) {
	return json.Marshal(map[string]any{
		"type":             printable(o.typ),
		"content_type":     printable(o.contentType),
		"content_encoding": printable(o.encoding),
		"message_id":       printable(o.messageID),
		"headers":          plain(o.headers),
	})
}

// plain returns an AMQP value as something that both encoding/json and jsonb take.
func plain(v any) any {
	switch v := v.(type) {
	case nil, bool, int, int8, int16, int32, int64, uint8, uint16, uint32, uint64:
		return v
	case float32:
		return plain(float64(v))
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return fmt.Sprint(v)
		}
		return v
	case string:
		return printable(v)
	case []byte:
		return map[string]any{"base64": base64.StdEncoding.EncodeToString(v)}
	case time.Time:
		return v.UTC().Format(time.RFC3339)
	case amqp.Table:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[printable(k)] = plain(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = plain(e)
		}
		return out
	}
	return printable(fmt.Sprint(v))
}

// printable returns s as something that PostgreSQL's text takes: UTF-8 without NUL.
func printable(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\ufffd"), "\x00", "\ufffd")
}
