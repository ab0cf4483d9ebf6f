package publish

import (
	"slices"
	"time"

	"github.com/google/uuid"

	"millrace/internal/frame"
)

const (
	// sameBaseFor is how long records without a key may join a segment. They get the time of its base.
	sameBaseFor = 5 * time.Millisecond

	// maxOutstanding limits partial frames: one is published only while fewer frames than this are outstanding, over all
	// lanes. So the records that have arrived by the last confirm make the next frame. A larger limit would only make frames
	// smaller, and RabbitMQ's cost is per frame: see bench/README.md. Full frames go out on every lane there is.
	maxOutstanding = 1

	// maxFrameAge is the age at which a frame is published even if others are outstanding, because one slow channel must not
	// hold up the others. It is far above a confirm's time.
	maxFrameAge = 20 * time.Millisecond

	// Clients that were just answered come again. Waiting for them makes one frame of their next requests. Taking the first of
	// them at once makes two: a tiny one, and one of the others. Also, RabbitMQ confirms sooner while it has the processor to
	// itself. The wait is at most waitPerConfirm times what the last confirm took, and at most maxWait, so that traffic that
	// doesn't depend on the answers is held up by no more than that. A client that is alone never waits, because there is
	// nobody else to wait for.
	waitPerConfirm = 6
	maxWait        = 10 * time.Millisecond

	// retryPause is how long a frame that RabbitMQ refused waits to be published again.
	retryPause = 100 * time.Millisecond
)

// gather is group commit: it puts the records of many requests into frames, and decides when a frame is published.
//
// At most one frame is under construction. While no frame is outstanding it is taken as it is, so that a lone request waits
// for nothing. While a frame travels to the disk, the next one grows.
//
// A gather starts no goroutine, has no lock and reads no clock. Its owner calls it from one goroutine at a time, and passes
// the time, which never goes back from call to call.
type gather struct {
	frameBytes int              // size at which a frame takes no more records
	frames     *framePool       // any goroutine may use it
	base       func() uuid.UUID // returns the base of a segment without a key

	open      *Frame   // under construction, nil when empty
	sealed    []*Frame // full, or published with unknown outcome; to be published in this order
	refused   []*Frame // refused by RabbitMQ, to be published again at their retryAt; sorted by it
	unsettled []*Frame // all unsettled frames, and some that are settled by now; oldest first

	outstanding     int       // frames published and not confirmed
	waitingRequests int       // requests in them
	wantRequests    int       // requests that the open frame should hold before it is taken ...
	waitUntil       time.Time // ... unless this time has come
}

// put adds a piece of a request's records to the open frame and returns the ticket. If there is no open frame, put makes one.
// key is the base of a keyed request's ids, or nil. index is the number of the request's records before the piece. Each piece
// of a keyed request becomes a segment of its own, so that the request has the same segments every time.
func (g *gather) put(now time.Time, lines []byte, records int, key *uuid.UUID, index int, newRequest bool) Ticket {
	f := g.open
	if f == nil {
		f = g.frames.get(now)
		g.open = f
		g.unsettled = append(g.unsettled, f)
	}
	var base uuid.UUID
	last := len(f.segments) - 1
	switch {
	case key != nil:
		base = frame.ID(*key, index)
		f.segments = append(f.segments, frame.Segment{Base: base, Records: records})
		f.keyed = true
	case last >= 0 && !f.keyed && now.Sub(f.since) < sameBaseFor:
		s := &f.segments[last]
		base = frame.ID(s.Base, s.Records)
		s.Records += records
	default:
		base = g.base()
		f.segments = append(f.segments, frame.Segment{Base: base, Records: records})
		f.keyed, f.since = false, now
	}
	f.body = append(f.body, lines...)
	if newRequest {
		f.requests++
	}
	f.records += records
	if len(f.body) >= g.frameBytes || len(f.segments) == frame.MaxSegments {
		g.sealed = append(g.sealed, f)
		g.open = nil
	}
	return Ticket{f, base, records}
}

// putProbe adds a probe, a frame that holds body and no records. It is published after the frames that are sealed already,
// before the open one.
func (g *gather) putProbe(now time.Time, body string) {
	f := g.frames.get(now)
	f.probe = true
	f.body = append(f.body, body...)
	g.unsettled = append(g.unsettled, f)
	g.sealed = append(g.sealed, f)
}

// due reports whether there is a frame to publish now.
func (g *gather) due(now time.Time) bool {
	f := g.open
	switch {
	case len(g.sealed) > 0:
		return true
	case f == nil:
		return false
	case now.Sub(f.begun) >= maxFrameAge:
		return true
	}
	return g.outstanding < maxOutstanding && (f.requests >= g.wantRequests || !now.Before(g.waitUntil))
}

// take returns the frame to publish now, or nil if none is due. The frame counts as outstanding from then on.
func (g *gather) take(now time.Time) *Frame {
	f := g.nextDue(now)
	if f != nil {
		f.attempts++
		g.outstanding++
		g.waitingRequests += f.requests
	}
	return f
}

// nextDue returns the frame to publish now, or nil if none is due. It passes over settled frames.
func (g *gather) nextDue(now time.Time) *Frame {
	for len(g.sealed) > 0 {
		f := g.sealed[0]
		g.sealed[0] = nil
		g.sealed = g.sealed[1:]
		if !f.settled.Load() {
			return f
		}
	}
	if !g.due(now) {
		return nil
	}
	f := g.open
	g.open = nil
	if f.settled.Load() {
		return nil
	}
	return f
}

// answered notes that frames are no longer outstanding. took is how long the confirm of the last of them took, 0 if that is
// not known. answered returns how long the open frame may now wait for requests; after that time the owner calls due again.
func (g *gather) answered(now time.Time, took time.Duration, frames ...*Frame) (wait time.Duration) {
	g.wantRequests = g.waitingRequests
	if g.open != nil {
		g.wantRequests += g.open.requests
	}
	g.outstanding -= len(frames)
	for _, f := range frames {
		g.waitingRequests -= f.requests
	}
	wait = min(waitPerConfirm*took, maxWait)
	g.waitUntil = now.Add(wait)
	return wait
}

// giveBack puts frames whose outcome is unknown first in line, to be published again.
func (g *gather) giveBack(frames []*Frame) { g.sealed = append(frames, g.sealed...) }

// retryLater keeps a frame that RabbitMQ has refused, and publishes it again after retryPause.
func (g *gather) retryLater(f *Frame, now time.Time) {
	f.retryAt = now.Add(retryPause)
	g.refused = append(g.refused, f)
}

// retry makes those refused frames due whose pause is over. It reports whether there were any.
func (g *gather) retry(now time.Time) bool {
	n := 0
	for n < len(g.refused) && !now.Before(g.refused[n].retryAt) {
		n++
	}
	if n == 0 {
		return false
	}
	g.giveBack(slices.Clone(g.refused[:n]))
	g.refused = slices.Delete(g.refused, 0, n)
	return true
}

// takeExpired returns the unsettled frames that were begun at before or earlier, and forgets them. It also forgets the settled
// frames up to the first younger unsettled one.
func (g *gather) takeExpired(before time.Time) (expired []*Frame) {
	n := 0
	for _, f := range g.unsettled {
		if !f.settled.Load() {
			if f.begun.After(before) {
				break // the others are younger
			}
			expired = append(expired, f)
		}
		n++
	}
	clear(g.unsettled[:n])
	g.unsettled = g.unsettled[n:]
	return expired
}

// allSettled reports whether all frames are settled, the open one included.
func (g *gather) allSettled() bool {
	return !slices.ContainsFunc(g.unsettled, func(f *Frame) bool { return !f.settled.Load() })
}

// unsent returns the unsettled frames that were never published. Nothing of them can be stored.
func (g *gather) unsent() (frames []*Frame) {
	for _, f := range g.unsettled {
		if f.attempts == 0 && !f.settled.Load() {
			frames = append(frames, f)
		}
	}
	return frames
}

// dropSettled forgets settled frames that wait to be published. While no lane takes frames, nothing else would free their
// memory.
func (g *gather) dropSettled() {
	g.sealed = slices.DeleteFunc(g.sealed, func(f *Frame) bool { return f.settled.Load() })
	g.refused = slices.DeleteFunc(g.refused, func(f *Frame) bool { return f.settled.Load() })
	if g.open != nil && g.open.settled.Load() {
		g.open = nil
	}
}
