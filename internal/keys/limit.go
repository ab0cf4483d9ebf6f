package keys

import (
	"maps"
	"sync"
	"time"
)

// limit is a token bucket: it holds at most burst records and gains rate records a second. A batch larger than the
// burst is taken when the bucket is full, and leaves a debt. So no batch is impossible, and the rate holds in the
// long run.
type limit struct {
	rate, burst float64

	mu   sync.Mutex
	left float64 // may be negative: a debt
	at   time.Time
}

// newLimit returns a limit whose bucket is full.
func newLimit(rate, burst int) *limit {
	return &limit{rate: float64(rate), burst: float64(burst), left: float64(burst)}
}

// wait returns how long it takes until the bucket holds n records, or is full; 0 if it is so now. The caller holds
// l.mu.
func (l *limit) wait(n int, now time.Time) time.Duration {
	if !l.at.IsZero() {
		l.left = min(l.burst, l.left+l.rate*max(0, now.Sub(l.at).Seconds()))
	}
	if now.After(l.at) {
		l.at = now
	}
	if lack := min(float64(n), l.burst) - l.left; lack > 0 {
		return max(1, time.Duration(min(lack/l.rate, maxWait.Seconds())*float64(time.Second)))
	}
	return 0
}

// maxWait is the longest time that wait returns: paying a large debt may take longer than a Duration holds.
const maxWait = 24 * time.Hour

// Wait returns how long it takes until the key may store a record, 0 if it may now.
func (k *Key) Wait(now time.Time) time.Duration {
	if k == nil || k.limit == nil {
		return 0
	}
	k.limit.mu.Lock()
	defer k.limit.mu.Unlock()
	return k.limit.wait(1, now)
}

// Take charges the key for n records and returns 0. If the limit has no room for them, it charges nothing and returns
// how long it takes until there is room.
func (k *Key) Take(n int, now time.Time) time.Duration {
	if k == nil || k.limit == nil || n == 0 {
		return 0
	}
	k.limit.mu.Lock()
	defer k.limit.mu.Unlock()
	wait := k.limit.wait(n, now)
	if wait == 0 {
		k.limit.left -= float64(n)
	}
	return wait
}

// use counts what a key was used for.
type use struct {
	mu      sync.Mutex
	records uint64
	answers map[int]uint64 // by HTTP status
}

// Answered counts a request of the key, with its HTTP status and the number of records that it stored.
func (k *Key) Answered(status, records int) {
	if k == nil {
		return
	}
	k.use.mu.Lock()
	defer k.use.mu.Unlock()
	if k.use.answers == nil {
		k.use.answers = make(map[int]uint64)
	}
	k.use.answers[status]++
	k.use.records += uint64(records)
}

// Use returns the number of the key's requests by HTTP status, and how many records they stored.
func (k *Key) Use() (requests map[int]uint64, records uint64) {
	k.use.mu.Lock()
	defer k.use.mu.Unlock()
	return maps.Clone(k.use.answers), k.use.records
}
