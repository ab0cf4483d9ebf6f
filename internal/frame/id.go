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
	// low61 masks the random bits of a base made here: the lowest 62 bits without the first of them. That one is 0, so
	// that ids that count up from a base never wrap around, and the last id of a range is always greater than the
	// first.
	low61 = 1<<61 - 1

	// maxDrift is how far ids may be ahead of the clock. Within it they go on counting up when the clock goes back, as
	// after a small correction. But if a clock was a day ahead for a second, records must not be dated ahead for a day.
	maxDrift = time.Second

	// ticks is the number of steps within a millisecond: 12 bits of an id follow the millisecond.
	ticks = 1 << 12
)

// source makes UUIDv7s (RFC 9562, 6.2, method 3) that count up. It may be used by many goroutines at once.
type source struct {
	now func() time.Time

	mu   sync.Mutex
	last int64 // time of the id made last: Unix milliseconds, times ticks
}

// clock returns the time of new ids. The fault proof replaces it.
var clock = time.Now

var bases = source{now: func() time.Time { return clock() }}

// next returns a fresh UUIDv7 of the clock's time. It is greater than the one before, unless the clock has gone back by
// more than maxDrift. Then ids go back too, and 61 random bits keep them apart from others of the same time.
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

// build returns id with the time, the version and the variant set. Its last 8 bytes must be random; twelve holds the 12
// bits after the millisecond.
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

// KeyOfContent returns the key of a body: a UUIDv7 of the time at, in Unix milliseconds, whose other bits are the first 74 of a hash
// of the body. So the same body has the same key, whoever makes it.
func KeyOfContent(at int64, hash [sha256.Size]byte) uuid.UUID {
	var key uuid.UUID
	first := binary.BigEndian.Uint64(hash[:8])
	binary.BigEndian.PutUint64(key[:8], uint64(at)<<16|7<<12|first>>52)
	binary.BigEndian.PutUint64(key[8:], 1<<63|(first<<12|uint64(hash[8])<<4|uint64(hash[9])>>4)>>2)
	return key
}

// BaseOfKey returns the base of the ids of records that came under a key. The key is a UUIDv7: an Idempotency-Key, the key of a
// body, or the message_id of another program's message. The base is the same every time, and has the key's millisecond. All its
// other bits come from the key's SHA-256: two keys of one millisecond may differ by one, so ids that counted up from
// the keys themselves would collide.
func BaseOfKey(key uuid.UUID) uuid.UUID {
	sum := sha256.Sum256(key[:])
	var base uuid.UUID
	copy(base[8:], sum[2:])
	return build(base, uint64(Millis(key)), uint64(binary.BigEndian.Uint16(sum[:])>>4))
}
