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
	reasonUndecodable   = "undecodable"    // the message says that it is a frame, and it is none
	reasonUnknownType   = "unknown_type"   // a frame of another version
	reasonKeyReused     = "key_reused"     // other records are stored under the segment's id
	reasonDeliveryLimit = "delivery_limit" // RabbitMQ gave up on it
	reasonExpired       = "expired"        // it waited longer than a policy on RabbitMQ allows
	reasonMaxlen        = "maxlen"         // its queue was longer than a policy on RabbitMQ allows
	reasonRejected      = "rejected"       // another program's reader rejected it
	reasonNoPartition   = "no_partition"   // the partition for the record's time can't be made
	reasonOtherCell     = "other_cell"     // another program sent it to the queue of a cell that does not have its ids
	reasonNoArchive     = "no_archive"     // the archive may have the records, and can't be read
)

// brokerReasons are the reasons for which RabbitMQ sets a message aside, by its own names.
var brokerReasons = []string{reasonDeliveryLimit, reasonExpired, reasonMaxlen, reasonRejected}

// DeadLetter is something that can't be stored: a row of dead_letters, or what becomes one.
type DeadLetter struct {
	ID       uuid.UUID
	RecordID uuid.NullUUID // the id that the record would have had; not valid when Payload is a message
	Reason   string
	Error    string
	Payload  []byte // a record or a message; nil in lists

	// Only the database has these: they are zero until the letter is stored.
	DeadAt     time.Time
	Queue      string
	Bytes      int             // length of the payload
	Properties json.RawMessage // the message's type, content type, id and headers

	from *origin // the message that it came in, until the letter is stored; then nil
}

// letter returns the dead letter of a message with that body: the whole message, or a part that is a message in itself. The letter has
// the same id at each delivery, if the message can be told from others.
func (o *origin) letter(body []byte, reason, why string) DeadLetter {
	letter := DeadLetter{Reason: reason, Error: printable(why), Payload: body, from: o}
	switch {
	case o.messageID != "":
		letter.ID = uuid.NewSHA1(uuid.NameSpaceOID, slices.Concat([]byte(o.messageID), []byte{0}, body))
	case strings.HasPrefix(o.typ, ownTypePrefix):
		var key []byte // a frame's header has its ids
		for _, name := range slices.Sorted(maps.Keys(o.headers)) {
			if value, ok := o.headers[name].([]byte); ok {
				key = append(append(key, name...), value...)
			}
		}
		if key != nil {
			letter.ID = uuid.NewSHA1(uuid.NameSpaceOID, append(key, body...))
		}
	}
	if letter.ID == uuid.Nil { // nothing tells it from others, and two equal messages may be two
		letter.ID = frame.NewBase()
	}
	return letter
}

// letter returns the dead letter of a segment that holds one record.
func (s segment) letter(reason string, err error) DeadLetter {
	return DeadLetter{
		ID:       s.Base,
		RecordID: uuid.NullUUID{UUID: s.Base, Valid: true},
		Reason:   reason,
		Error:    printable(pg.Message(err)),
		Payload:  bytes.TrimSuffix(s.Body, []byte("\n")),
		from:     s.from,
	}
}

// letters returns a dead letter for each of the segment's records.
func (s segment) letters(reason string, err error) []DeadLetter {
	letters := make([]DeadLetter, 0, s.Records)
	for rest := []segment{s}; len(rest) > 0; {
		var one []segment
		one, rest = split(rest, 1)
		letters = append(letters, one[0].letter(reason, err))
	}
	return letters
}

// reusedLetter returns the dead letter of a segment under whose id other records are stored.
func (s segment) reusedLetter(why string) DeadLetter { return s.frameLetter(reasonKeyReused, why) }

// frameLetter returns the dead letter of a segment. The letter's payload is a frame of its own.
func (s segment) frameLetter(reason, why string) DeadLetter {
	from := *s.from
	from.typ, from.contentType, from.encoding = frame.Type, frame.ContentType, ""
	from.headers = frame.Headers([]frame.Segment{s.Segment})
	from.messageID = ""
	return from.letter(s.Body, reason, why)
}

const deadInsertSQL = `INSERT INTO dead_letters (id, reason, error, payload, record_id, queue, properties)
	VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (id) DO NOTHING`

// insertDead inserts the transaction's dead letters, each once, and counts them in t.dead.
func (t *transaction) insertDead(ctx context.Context) error {
	if len(t.letters) == 0 {
		return nil
	}
	t.dead = make(map[string]int)
	refused, err := t.insertLetters(ctx, t.letters)
	if err != nil {
		return err
	}
	// Most ids are made of the letter's content, so the stored letter with that id is the same one. But if the id is the record's own,
	// the stored letter may be of another record.
	refused = slices.DeleteFunc(refused, func(d DeadLetter) bool { return !d.RecordID.Valid || d.RecordID.UUID != d.ID })
	if len(refused) == 0 {
		return nil
	}
	records := make([]segment, len(refused))
	for i, d := range refused {
		records[i] = segment{Span: frame.Span{Segment: frame.Segment{Base: d.RecordID.UUID, Records: 1}, Body: d.Payload}}
	}
	known, err := knownRecords(ctx, t.conn, records)
	if err != nil {
		return fmt.Errorf("dead letters: %w", err)
	}
	var others []DeadLetter
	for i, d := range refused {
		if equal := known[i].inLetters; equal == nil || !*equal {
			d.ID = uuid.NewSHA1(d.ID, d.Payload)
			others = append(others, d)
		}
	}
	_, err = t.insertLetters(ctx, others)
	return err
}

// insertLetters inserts dead letters. It returns those whose ids the table already has.
func (t *transaction) insertLetters(ctx context.Context, letters []DeadLetter) (refused []DeadLetter, err error) {
	var b pgx.Batch
	for _, d := range letters {
		properties, err := d.from.properties()
		if err != nil {
			return nil, fmt.Errorf("dead letter %s: %w", d.ID, err)
		}
		b.Queue(deadInsertSQL, d.ID, d.Reason, d.Error, d.Payload, d.RecordID, printable(d.from.queue), properties).
			Exec(func(tag pgconn.CommandTag) error {
				if tag.RowsAffected() > 0 {
					t.dead[d.Reason]++
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

// properties returns the message's properties as the JSON that dead_letters keeps. Bytes become {"base64": "…"}.
func (o *origin) properties() ([]byte, error) {
	return json.Marshal(map[string]any{
		"type":             printable(o.typ),
		"content_type":     printable(o.contentType),
		"content_encoding": printable(o.encoding),
		"message_id":       printable(o.messageID),
		"headers":          jsonValue(o.headers),
	})
}

// jsonValue returns an AMQP value as something that both encoding/json and jsonb take.
func jsonValue(v any) any {
	switch v := v.(type) {
	case nil, bool, int, int8, int16, int32, int64, uint8, uint16, uint32, uint64:
		return v
	case float32:
		return jsonValue(float64(v))
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
			out[printable(k)] = jsonValue(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = jsonValue(e)
		}
		return out
	}
	return printable(fmt.Sprint(v))
}

// printable returns s as PostgreSQL's text takes it: invalid UTF-8 and NUL become U+FFFD.
func printable(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\ufffd"), "\x00", "\ufffd")
}
