package worker

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/frame"
	"millrace/internal/pg"
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

// deadLetter is something that can't be stored.
type deadLetter struct {
	id       uuid.UUID
	recordID uuid.NullUUID // of a record; not valid for a message
	reason   string
	err      string
	payload  []byte
	from     *origin
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

const deadInsertSQL = `INSERT INTO dead_letters (id, reason, error, payload, record_id, queue, properties)
	VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (id) DO NOTHING`

func (t *transaction) insertDead(ctx context.Context) error {
	if len(t.letters) == 0 {
		return nil
	}
	t.dead = make(map[string]int)
	refused, err := t.insertLetters(ctx, t.letters)
	if err != nil {
		return err
	}
	// The ids of most letters are made of what is in them. Where it is the record's, the letter that has it may be of
	// another record.
	refused = slices.DeleteFunc(refused, func(d deadLetter) bool { return !d.recordID.Valid || d.recordID.UUID != d.id })
	if len(refused) == 0 {
		return nil
	}
	records := make([]segment, len(refused))
	for i, d := range refused {
		records[i] = segment{Span: frame.Span{Segment: frame.Segment{Base: d.recordID.UUID, Records: 1}, Body: d.payload}}
	}
	known, err := knownRecords(ctx, t.conn, records)
	if err != nil {
		return fmt.Errorf("dead letters: %w", err)
	}
	var others []deadLetter
	for i, d := range refused {
		if equal := known[i].inLetters; equal == nil || !*equal {
			d.id = uuid.NewSHA1(d.id, d.payload)
			others = append(others, d)
		}
	}
	_, err = t.insertLetters(ctx, others)
	return err
}

// insertLetters inserts dead letters, and returns those whose ids others have.
func (t *transaction) insertLetters(ctx context.Context, letters []deadLetter) (refused []deadLetter, err error) {
	var b pgx.Batch
	for _, d := range letters {
		properties, err := d.from.properties()
		if err != nil {
			return nil, fmt.Errorf("dead letter %s: %w", d.id, err)
		}
		b.Queue(deadInsertSQL, d.id, d.reason, d.err, d.payload, d.recordID, printable(d.from.queue), properties).
			Exec(func(tag pgconn.CommandTag) error {
				if tag.RowsAffected() > 0 {
					t.dead[d.reason]++
				} else {
					refused = append(refused, d)
				}
				return nil
			})
	}
	if err := t.conn.SendBatch(ctx, &b).Close(); err != nil {
		return nil, fmt.Errorf("dead letters: %w", err)
	}
	return refused, nil
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
