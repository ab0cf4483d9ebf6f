package frame

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"time"

	"github.com/google/uuid"
)

const (
	// low61 are the bits that a base of ours leaves free: the lowest 62 without the first of them. That one is 0, so
	// that ids that count up from a base never wrap around, and a range of ids is one from the first to the last.
	low61 = 1<<61 - 1

	// maxDrift is how far ahead of the clock ids may be, so that they go on counting up when it goes back. A clock that
	// is corrected gets away with it; one that was a day ahead, be it for a second, must not date records for a day.
	maxDrift = time.Second

	// ticks is how many steps a millisecond has in the 12 bits that follow it in an id.
	ticks = 1 << 12
)

// source makes UUIDv7s (RFC 9562, 6.2, method 3) that count up. It may be used by many goroutines at once.
type source struct {
	now func() time.Time

	mu   sync.Mutex
	last int64 // Unix time in milliseconds, times ticks: of the youngest id
}

// clock is what ids are made by. The fault proof puts another one in its place.
var clock = time.Now

var bases = source{now: func() time.Time { return clock() }}

// next returns a fresh UUIDv7 of the clock's time. Within maxDrift each is greater than the one before. When the clock
// goes back by more than that, ids go back too; 61 random bits keep them from meeting others of the same time.
func (s *source) next() uuid.UUID {
	var id uuid.UUID
	_, _ = rand.Read(id[8:]) // never fails: crypto/rand ends the process first
	s.mu.Lock()
	ns := s.now().UnixNano()
	const millisecond = int64(time.Millisecond)
	at := ns/millisecond*ticks + ns%millisecond*ticks/millisecond
	if at <= s.last && s.last-at < int64(maxDrift/time.Millisecond)*ticks {
		at = s.last + 1
	}
	s.last = at
	s.mu.Unlock()
	return build(id, uint64(at/ticks), uint64(at%ticks))
}

// build completes an id whose last 8 bytes are random.
func build(id uuid.UUID, millis, twelve uint64) uuid.UUID {
	binary.BigEndian.PutUint64(id[:8], millis<<16|7<<12|twelve)
	binary.BigEndian.PutUint64(id[8:], 1<<63|binary.BigEndian.Uint64(id[8:])&low61)
	return id
}

// NewBase returns a fresh UUIDv7 of the current time, from which ids may count up.
func NewBase() uuid.UUID { return bases.next() }

// BaseAt returns a fresh UUIDv7 of the time at, from which ids may count up.
func BaseAt(at time.Time) uuid.UUID {
	base := NewBase()
	return build(base, uint64(at.UnixMilli()), uint64(binary.BigEndian.Uint16(base[6:])&(ticks-1)))
}

// BaseOfKey returns the base of the ids of what came under a key, a UUIDv7: an Idempotency-Key or the message_id of
// another program's message. It is the same every time, and has the key's millisecond. All its other bits come from the
// key's SHA-256, because UUIDv7s may count up by one within a millisecond: ids that counted up from the keys themselves
// would meet.
func BaseOfKey(key uuid.UUID) uuid.UUID {
	sum := sha256.Sum256(key[:])
	var base uuid.UUID
	copy(base[8:], sum[2:])
	return build(base, uint64(Millis(key)), uint64(binary.BigEndian.Uint16(sum[:])>>4))
}
