package query

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"

	"github.com/google/uuid"

	"millrace/internal/frame"
)

// A cursor is base64url of
//
//	version (1 byte), order (1), from (8), to (8), id of the last row (16), checksum (8)
//
// big endian, from and to in Unix milliseconds. The window is in it so that all pages have the first one's, also
// when the parameters count from now. The checksum is over what stands before it and over q, from and to as they
// were asked for: a cursor that was altered, or came with another search, is refused. It is no secret; whoever
// forges a cursor gets no more than the parameters would give.
const (
	cursorVersion = 1
	cursorBody    = 1 + 1 + 8 + 8 + 16
	cursorBytes   = cursorBody + 8
)

var (
	errCursor      = errors.New("not a cursor that this service gave out")
	errCursorOther = errors.New("not a cursor of this search: q, order, from and to must be as they were")

	base64url = base64.RawURLEncoding.Strict()
)

// cursor returns the text for a page that follows the row with this id.
func (s *search) cursor(last uuid.UUID) string {
	b := make([]byte, 0, cursorBytes)
	b = append(b, cursorVersion, orderByte(s.ascending))
	b = binary.BigEndian.AppendUint64(b, uint64(s.from))
	b = binary.BigEndian.AppendUint64(b, uint64(s.to))
	b = append(b, last[:]...)
	b = append(b, s.checksum(b)...)
	return base64url.EncodeToString(b)
}

// resume takes the window and the place from a cursor. The rest of s must be filled.
func (s *search) resume(cursor string) error {
	if len(cursor) != base64url.EncodedLen(cursorBytes) { // also keeps out the line breaks that base64 skips
		return errCursor
	}
	b, err := base64url.DecodeString(cursor)
	if err != nil || len(b) != cursorBytes || b[0] != cursorVersion || b[1] > 1 {
		return errCursor
	}
	from, to := int64(binary.BigEndian.Uint64(b[2:])), int64(binary.BigEndian.Uint64(b[10:]))
	last := uuid.UUID(b[18:cursorBody])
	ms := frame.Millis(last)
	if !frame.IsV7(last) || from < earliest || to > latest || ms < from || ms >= to {
		return errCursor
	}
	if b[1] != orderByte(s.ascending) || string(s.checksum(b[:cursorBody])) != string(b[cursorBody:]) {
		return errCursorOther
	}
	s.from, s.to, s.after = from, to, &last
	return nil
}

func (s *search) checksum(body []byte) []byte {
	h := sha256.New()
	h.Write(body)
	for _, text := range []string{s.filter.String(), s.fromText, s.toText} {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(text))))
		h.Write([]byte(text))
	}
	return h.Sum(nil)[:8]
}

func orderByte(ascending bool) byte {
	if ascending {
		return 1
	}
	return 0
}
