package worker

import (
	"bytes"
	"cmp"
	"fmt"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/frame"
	"millrace/internal/scan"
	"millrace/worker/partition"
)

const (
	// The records' ids are made of a foreign message_id only if its time is not further in the past or the future than this. The ledger
	// remembers no longer, and no program should get a partition made for whatever time it writes into an id.
	foreignPast   = partition.LedgerKeep
	foreignFuture = time.Hour
)

// decodeForeign returns the records of another program's message, which has JSON in any form that the API takes, and dead letters of
// those that the scanner refuses.
func (h *home) decodeForeign(d *amqp.Delivery, from *origin, now time.Time) ([]segment, []DeadLetter) {
	limits := scan.Limits{RecordBytes: scan.MaxRecordBytes, PieceBytes: frame.SegmentBytes}
	var body scan.Body
	if err := body.Batch(d.Body, limits); err != nil {
		return nil, []DeadLetter{from.letter(d.Body, err.Reason.String(), err.Error())}
	}
	base, ok := baseOfMessage(d, now)
	if !ok {
		base = h.newBase()
	} else if cell, mine := h.has(base); !mine {
		return nil, []DeadLetter{from.letter(d.Body, reasonOtherCell, "its message_id leads to cell "+cell+": other programs publish to the queues without a cell in their names")}
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
	return segments, h.refusedRecords(d, from, &body, base)
}

// baseOfMessage returns the base that the message_id of another program's message leads to, and reports whether it has one that can be used.
func baseOfMessage(d *amqp.Delivery, now time.Time) (base uuid.UUID, ok bool) {
	key, err := uuid.Parse(d.MessageId)
	if t := frame.Time(key); err != nil || !frame.IsV7(key) || t.Before(now.Add(-foreignPast)) || t.After(now.Add(foreignFuture)) {
		return base, false
	}
	return frame.BaseOfKey(key), true
}

// refusedRecords returns dead letters for the records that the scanner refused: one for each record that can be cut out of the message,
// and one with the whole message for all that can't.
func (h *home) refusedRecords(d *amqp.Delivery, from *origin, body *scan.Body, base uuid.UUID) []DeadLetter {
	if body.Rejected == 0 {
		return nil
	}
	var dead []DeadLetter
	uncut := body.Rejected - len(body.Errors) // the scanner returns only the first errors
	reason, detail := "", ""
	delimited := lineDelimited(d.Body, body.Errors)
	for _, e := range body.Errors {
		why := fmt.Sprintf("record %d: %s", e.Index, e.Err.Error())
		var record []byte
		if delimited {
			record = cutRecord(d.Body, &e.Err)
		}
		if record != nil {
			letter := from.letter(record, e.Err.Reason.String(), why)
			// The record has this id at each delivery, and no other record has it.
			letter.ID = uuid.NewSHA1(base, fmt.Appendf(nil, "refused record %d %s", e.Index, record))
			letter.RecordID = uuid.NullUUID{UUID: h.newBase(), Valid: true}
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
		dead = append(dead, from.letter(d.Body, reason, fmt.Sprintf("%d records refused, the others are stored; %s", uncut, detail)))
	}
	return dead
}

// cutRecord returns the line that a refusal points into, if that line is the refused record and nothing else. Otherwise it returns
// nil. The body must be line-delimited.
func cutRecord(body []byte, e *scan.Error) []byte {
	start, end := lineAt(body, e.Offset)
	line := bytes.TrimSpace(body[start:end])
	if e.Reason == scan.Syntax {
		return line // broken JSON costs either its line or the whole message
	}
	var b scan.Body
	err := b.Batch(line, scan.Limits{RecordBytes: scan.MaxRecordBytes, PieceBytes: frame.SegmentBytes})
	if err != nil || b.Accepted != 0 || b.Rejected != 1 {
		return nil
	}
	return line
}

// lineDelimited reports whether it is certain that each record of the body is on one line. That is so if each line starts with '{' and
// ends with '}', because the next line of a longer record would have to start with one of ",]}". A line that was refused for its
// syntax may look different.
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
