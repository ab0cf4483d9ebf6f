package query

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"math"
	"time"

	"github.com/google/uuid"

	"millrace/internal/frame"
	"millrace/internal/rfc3339"
)

// A cursor is base64url of
//
//	1 (1 byte), order (1), from (8), to (8), id of the last row (16), checksum (8)
//	2 (1 byte), order (1), from (8), to (8), time of the last row (8), its id (16), given (4), checksum (8)
//
// big endian, from and to in Unix milliseconds, a row's time in microseconds. It holds the window so that all pages have the
// window of the first, even if the parameters count from now.
//
// The checksum is over what stands before it, and over q, from and to as they were asked for. So a cursor that was altered,
// or came with another search, is refused. The checksum is no secret: a forged cursor gives no more than the parameters could.
//
// The second form is for rows whose time is not their id's. Of rows that Millrace does not write, several may have one time and id.
const (
	cursorPlain     = 1
	cursorPlainBody = 1 + 1 + 8 + 8 + 16
	cursorExact     = 2
	cursorExactBody = 1 + 1 + 8 + 8 + 8 + 16 + 4
	checksumBytes   = 8
)

// position is a place in a search's order, directly behind a row.
type position struct {
	at time.Time
	id uuid.UUID
	// given is how many rows with this time and id stand before the place. More such rows may follow. If none follows, it is 0.
	given int
}

var (
	errCursor      = errors.New("not a cursor that this service gave out")
	errCursorOther = errors.New("not a cursor of this search: q, order, clock, from and to must be as they were")

	base64url = base64.RawURLEncoding.Strict()
)

// cursor returns the cursor of the page that follows a position.
func (s *search) cursor(p position) string {
	b := make([]byte, 0, cursorExactBody+checksumBytes)
	plain := p.given == 0 && frame.IsV7(p.id) && frame.Time(p.id).Equal(p.at)
	if plain {
		b = append(b, cursorPlain)
	} else {
		b = append(b, cursorExact)
	}
	b = append(b, s.orderByte())
	b = binary.BigEndian.AppendUint64(b, uint64(s.from))
	b = binary.BigEndian.AppendUint64(b, uint64(s.to))
	if !plain {
		b = binary.BigEndian.AppendUint64(b, uint64(p.at.UnixMicro()))
	}
	b = append(b, p.id[:]...)
	if !plain {
		b = binary.BigEndian.AppendUint32(b, uint32(p.given))
	}
	b = append(b, s.checksum(b)...)
	return base64url.EncodeToString(b)
}

// resumeFrom sets the window and the position to those of a cursor. All else in s must be set before. It fails if the cursor was
// altered, or is of another search. Unless the clock was given, it is the cursor's: cursors of before go by arrival.
func (s *search) resumeFrom(cursor string, clockGiven bool) error {
	b, err := base64url.DecodeString(cursor)
	// The length is checked, because base64 skips line breaks.
	if err != nil || len(b) < cursorPlainBody || len(cursor) != base64url.EncodedLen(len(b)) || b[1] > 3 {
		return errCursor
	}
	body := b[:len(b)-checksumBytes]
	from, to := int64(binary.BigEndian.Uint64(b[2:])), int64(binary.BigEndian.Uint64(b[10:]))
	var p position
	switch {
	case b[0] == cursorPlain && len(body) == cursorPlainBody:
		p.id = uuid.UUID(b[18:])
		p.at = frame.Time(p.id)
		if !frame.IsV7(p.id) {
			return errCursor
		}
	case b[0] == cursorExact && len(body) == cursorExactBody:
		p.at = time.UnixMicro(int64(binary.BigEndian.Uint64(b[18:])))
		p.id = uuid.UUID(b[26:])
		given := binary.BigEndian.Uint32(b[42:])
		if p.given = int(given); given > math.MaxInt32 {
			return errCursor
		}
	default:
		return errCursor
	}
	// A search with a budget may have come no further than the window's beginning.
	if from < rfc3339.Earliest || to > rfc3339.Latest || p.at.Before(time.UnixMilli(from).Add(-time.Microsecond)) || p.at.After(time.UnixMilli(to)) {
		return errCursor
	}
	if !clockGiven {
		s.clock = byArrival
		if b[1]&2 != 0 {
			s.clock = byTime
		}
	}
	if b[1] != s.orderByte() || string(s.checksum(body)) != string(b[len(body):]) {
		return errCursorOther
	}
	s.from, s.to, s.after = from, to, &p
	return nil
}

// checksum returns the checksum of a cursor of this search, of which body is all before the checksum.
func (s *search) checksum(body []byte) []byte {
	h := sha256.New()
	h.Write(body)
	for _, text := range []string{s.filter.Text(), s.fromText, s.toText} {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(text))))
		h.Write([]byte(text))
	}
	return h.Sum(nil)[:checksumBytes]
}

// orderByte returns how a cursor writes the order: bit 0 is set if it is ascending, bit 1 if it goes by time.
func (s *search) orderByte() (b byte) {
	if s.ascending {
		b |= 1
	}
	if s.clock == byTime {
		b |= 2
	}
	return b
}
