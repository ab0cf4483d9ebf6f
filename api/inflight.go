package api

import (
	"cmp"
	"sync/atomic"

	"github.com/valyala/fasthttp"
)

var errBusy = refuse(fasthttp.StatusServiceUnavailable, "too many bytes are under way (MAX_INFLIGHT_BYTES)")

// inflight bounds the memory of requests under way: a body's buffer while it is read, its decoder, then its records in
// frames until they are confirmed. Bodies that have not come whole share three quarters of it, so that slow uploads
// leave room for bodies that have.
type inflight struct {
	limit     int64
	used      atomic.Int64
	awaited   atomic.Int64 // the part of used that is held by bodies of which more is to come
	mostAwait int64        // bound of awaited; 0 means limit
}

// newInflight returns a bound of limit bytes. A single body of up to largest bytes always fits.
func newInflight(limit, largest int64) *inflight {
	return &inflight{limit: limit, mostAwait: max(limit/4*3, min(largest, limit))}
}

// await does what reserve does, for a body that has not come whole. The caller calls arrived when it has.
func (b *inflight) await(n int64) bool {
	if b.awaited.Add(n) > cmp.Or(b.mostAwait, b.limit) || !b.reserve(n) {
		b.awaited.Add(-n)
		return false
	}
	return true
}

// arrived notes that n bytes are no longer awaited. They stay in use.
func (b *inflight) arrived(n int64) { b.awaited.Add(-n) }

// reserve takes n bytes. It reports false, and takes none, if limit would be exceeded.
func (b *inflight) reserve(n int64) bool {
	if b.used.Add(n) > b.limit {
		b.used.Add(-n)
		return false
	}
	return true
}

// Release gives n bytes back.
func (b *inflight) Release(n int64) { b.used.Add(-n) }

// reservation is the bytes that a request holds.
type reservation struct {
	of    *inflight
	bytes int64
}

func (r reservation) release() { r.of.Release(r.bytes) }
