// Package frame is Millrace's wire form between the API and the workers.
//
// RabbitMQ's cost is per message, so one AMQP message carries many records. Its body is NDJSON, one compacted record a line and
// nothing else. A header lists the frame's segments, each with a base UUIDv7 and a count. Record k of a segment has the
// segment's base id plus k. So the ids are fixed before anything is published, and a frame that is published or delivered twice
// makes the same rows.
//
// The segment, not the frame, is the unit of exactly-once: the worker's ledger holds one row for each segment it has stored. So
// a keyed request makes the same segments every time it is sent; see SegmentBytes.
package frame

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/google/uuid"
)

const (
	// Type is the AMQP type property of a frame. A message without it is a foreign one.
	Type = "millrace.frame.v1"

	// ContentType is the AMQP content type of a frame's body.
	ContentType = "application/x-ndjson"

	// SegmentBytes is the size at which a segment of a request's records is closed: at least this many bytes of compacted
	// records, newlines included. It belongs to version 1 of the frame and is not a setting: a request that is sent again under
	// its Idempotency-Key, to an API with other settings, must be cut at the same records.
	SegmentBytes = 64 << 10

	// MaxSegments bounds the segments of one frame. AMQP properties travel in one protocol frame of at most
	// 128 KiB (RabbitMQ's default frame_max); 4096 segments take 80 KiB of it.
	MaxSegments = 4096

	// header is the AMQP header that holds the segments.
	header = "millrace-segments"

	// segmentSize is the size of a segment in the header: 16 bytes of base id, 4 of count, big endian.
	segmentSize = 20
)

// Segment is a run of consecutive records of a frame whose ids count up from Base.
type Segment struct {
	Base    uuid.UUID
	Records int
}

// ID returns the id of record k of the segment that starts at base: k is added to the low 62 bits, so that
// the time, the version and the variant stay.
func ID(base uuid.UUID, k int) uuid.UUID {
	const low62 = 1<<62 - 1
	low := binary.BigEndian.Uint64(base[8:])
	low = low&^low62 | (low+uint64(k))&low62
	binary.BigEndian.PutUint64(base[8:], low)
	return base
}

// Time returns the millisecond that a UUIDv7 was made in, in UTC.
func Time(id uuid.UUID) time.Time {
	return time.UnixMilli(Millis(id)).UTC()
}

// Millis returns the Unix time in milliseconds that a UUIDv7 begins with.
func Millis(id uuid.UUID) int64 {
	return int64(binary.BigEndian.Uint64(id[:8]) >> 16)
}

// IsV7 reports whether id is a UUIDv7 of RFC 9562.
func IsV7(id uuid.UUID) bool {
	return id.Version() == 7 && id.Variant() == uuid.RFC4122
}

// Headers returns the AMQP headers of a frame with these segments.
func Headers(segments []Segment) map[string]any {
	b := make([]byte, 0, len(segments)*segmentSize)
	for _, s := range segments {
		b = append(b, s.Base[:]...)
		b = binary.BigEndian.AppendUint32(b, uint32(s.Records))
	}
	return map[string]any{header: b}
}

// Mend turns the header with the segments back into bytes, in place: RabbitMQ 4 delivers it as a string from a stream. A string
// whose length does not fit segments stays as it is.
func Mend(headers map[string]any) {
	if text, ok := headers[header].(string); ok && text != "" && len(text)%segmentSize == 0 {
		headers[header] = []byte(text)
	}
}

// Span is a segment with the bytes of its records: NDJSON, each record ended by a newline.
type Span struct {
	Segment
	Body []byte
}

// Parse appends the spans of a frame to dst and returns dst. The spans point into body. The error says how the header and the
// body disagree. No API of this version makes such a frame.
func Parse(dst []Span, headers map[string]any, body []byte) ([]Span, error) {
	segments, ok := headers[header].([]byte)
	if !ok {
		return dst, fmt.Errorf("the header %s is missing or not a byte array", header)
	}
	if len(segments) == 0 || len(segments)%segmentSize != 0 {
		return dst, fmt.Errorf("the header %s has %d bytes, not a positive multiple of %d", header, len(segments), segmentSize)
	}
	rest := body
	for ; len(segments) > 0; segments = segments[segmentSize:] {
		s := Segment{Base: uuid.UUID(segments[:16]), Records: int(binary.BigEndian.Uint32(segments[16:segmentSize]))}
		if !IsV7(s.Base) {
			return dst, fmt.Errorf("segment base %s is not a UUIDv7", s.Base)
		}
		if s.Records == 0 {
			return dst, fmt.Errorf("segment %s has no records", s.Base)
		}
		end := 0
		for k := range s.Records {
			n := bytes.IndexByte(rest[end:], '\n')
			if n < 0 {
				return dst, fmt.Errorf("segment %s should have %d records, the body ends after %d", s.Base, s.Records, k)
			}
			end += n + 1
		}
		dst = append(dst, Span{Segment: s, Body: rest[:end:end]})
		rest = rest[end:]
	}
	if len(rest) > 0 {
		return dst, fmt.Errorf("%d bytes follow the last segment's records", len(rest))
	}
	return dst, nil
}
