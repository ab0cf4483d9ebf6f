package send

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"time"

	"github.com/google/uuid"

	"millrace/internal/frame"
	"millrace/internal/record"
	"millrace/internal/scan"
)

const (
	// blockBytes is about how much of a file is in one request. A few hundred records are as cheap as it gets, and the proxies' usual
	// limit of a body is 1 MiB.
	blockBytes = 512 << 10
	// maxLine is the longest line that is sent, in bytes; MAX_RECORD_BYTES may not be larger.
	maxLine = 12 << 20
	// pieceBytes is of no account here: only the API publishes pieces.
	pieceBytes = 1 << 30
)

// block is a part of a stream: whole lines, or one that is too long.
type block struct {
	start, end int64  // its offsets in the stream, in bytes; of the decompressed stream if it is compressed
	line       int64  // how many lines are before it
	raw        []byte // its bytes; of a line that is too long only the first
	tooLong    bool
	consumed   int64 // how many bytes of the file were read for it, for the progress
}

// refusal is a line that is not stored.
type refusal struct {
	at     int // where the line begins in raw
	reason string
}

// batch is a block with its records. It is used again and again.
type batch struct {
	block
	records  record.List
	lines    []uint32 // where the line of each record in the body begins in raw
	refused  []refusal
	lineEnds int64 // how many line ends raw has
	unparsed int64 // lines that are not what the format says, and are kept as text
	key      uuid.UUID
	unsent   bool // no request with it can have reached an API
}

// newBatch returns an empty batch.
func newBatch() *batch {
	return &batch{records: record.List{Limits: scan.Limits{RecordBytes: maxLine, PieceBytes: pieceBytes}}}
}

// build makes the records of the block's lines, and the key. at is when the block was first about to be sent: it is the key's time, and the time by
// which dates without a year are understood. The same block, format, identity and time make the same body and key.
func (b *batch) build(f *format, identity string, at time.Time) {
	at = at.UTC().Truncate(time.Millisecond)
	b.lines, b.refused, b.unparsed = b.lines[:0], b.refused[:0], 0
	b.records.Begin()
	if b.tooLong {
		b.lineEnds = 1
		b.refused = append(b.refused, refusal{0, "the line is too long: it has more than 12 MiB"})
	} else {
		b.lineEnds = int64(bytes.Count(b.raw, newline))
		b.addLines(f, at)
	}
	b.records.End()
	b.key = b.makeKey(identity, at)
}

var (
	newline = []byte("\n")
	bom     = []byte("\ufeff")
)

// addLines adds the records of all lines of raw.
func (b *batch) addLines(f *format, at time.Time) {
	for from := 0; from < len(b.raw); {
		line := b.raw[from:]
		next := len(b.raw)
		if end := bytes.IndexByte(line, '\n'); end >= 0 {
			line, next = line[:end], from+end+1
		}
		line = bytes.TrimSuffix(line, []byte("\r"))
		if b.start == 0 && from == 0 {
			line = bytes.TrimPrefix(line, bom)
		}
		if len(bytes.TrimSpace(line)) > 0 {
			errors, rejected := len(b.records.Errors), b.records.RejectedBy
			parsed, ok := f.add(&b.records, line, at)
			switch {
			case ok:
				b.lines = append(b.lines, uint32(from))
				if !parsed {
					b.unparsed++
				}
			case len(b.records.Errors) > errors:
				b.refused = append(b.refused, refusal{from, b.records.Errors[errors].Err.Error()})
			default: // the list keeps the words of the first hundred alone
				reason := "refused"
				for i, n := range b.records.RejectedBy {
					if n > rejected[i] {
						reason = scan.Reason(i).Words()
					}
				}
				b.refused = append(b.refused, refusal{from, reason})
			}
		}
		from = next
	}
}

// makeKey returns the batch's key.
func (b *batch) makeKey(identity string, at time.Time) uuid.UUID {
	hash := sha256.New()
	hash.Write([]byte(identity))
	var place [16]byte
	binary.BigEndian.PutUint64(place[:8], uint64(b.start))
	binary.BigEndian.PutUint64(place[8:], uint64(b.end))
	hash.Write(place[:])
	hash.Write(b.records.NDJSON)
	return frame.KeyOfContent(at.UnixMilli(), [sha256.Size]byte(hash.Sum(nil)))
}

// pending returns what the position file has of the batch while it is under way.
func (b *batch) pending() pending {
	return pending{b.start, b.end, b.line, int64(len(b.lines)), b.key}
}

// textAt returns the line that begins at an offset of raw, without its end, and its number in the file, from 1 on.
func (b *batch) textAt(at int) (text []byte, number int64) {
	text = b.raw[at:]
	if end := bytes.IndexByte(text, '\n'); end >= 0 {
		text = text[:end]
	}
	return bytes.TrimSuffix(text, []byte("\r")), b.line + int64(bytes.Count(b.raw[:at], newline)) + 1
}

// half returns the place behind the line in the middle of the block, or 0 if the block has only one line.
func (b *batch) half() int {
	if i := bytes.LastIndexByte(b.raw[:len(b.raw)/2], '\n'); i >= 0 {
		return i + 1
	}
	if i := bytes.IndexByte(b.raw[len(b.raw)/2:], '\n'); i >= 0 && len(b.raw)/2+i+1 < len(b.raw) {
		return len(b.raw)/2 + i + 1
	}
	return 0
}
