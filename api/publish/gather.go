package publish

import (
	"slices"
	"time"

	"github.com/google/uuid"

	"millrace/internal/frame"
)

const (
	// sameBaseFor is how long records without a key share a segment's base id: its time is theirs.
	sameBaseFor = 5 * time.Millisecond

	// maxOutstanding is how many frames may be outstanding, over all lanes, while one more is published before it is full:
	// less than one. What has arrived when the last confirm comes makes the next frame. More would only make the frames
	// smaller, and RabbitMQ's cost is by the frame; the measurements are in DESIGN.md. Full frames go out on every lane
	// there is.
	maxOutstanding = 1

	// maxFrameAge is how old a frame gets before it is published whatever is outstanding. It is far above a confirm's time:
	// one slow channel must not hold up the others.
	maxFrameAge = 20 * time.Millisecond

	// Clients that were just answered come again. To wait for them makes one frame of their next requests. To take the first
	// of them at once makes two, a tiny one and the others'. And RabbitMQ confirms sooner while it has the processor to
	// itself. The wait is at most waitPerConfirm times what the last confirm took, and at most maxWait, so that traffic that
	// doesn't depend on the answers is held up by no more than that. A client that is alone never waits: it is all there is
	// to wait for.
	waitPerConfirm = 6
	maxWait        = 10 * time.Millisecond

	// retryPause is how long a frame that RabbitMQ refused waits to be published again.
	retryPause = 100 * time.Millisecond
)

// gather is group commit: it puts the records of many requests into frames, and decides when a frame is published.
//
// At most one frame is under construction. It is taken as it is when no frame is outstanding, so that a lone request waits for
// nothing. While a frame travels to the disk the next one grows by itself.
//
// A gather starts no goroutine, has no lock and reads no clock. Its owner calls it from one goroutine at a time, and tells it
// the time. Times never go back from call to call.
type gather struct {
	frameBytes int        // size at which a frame takes no more records
	frames     *framePool // any goroutine may use it

	open      *Frame   // under construction, nil when empty
	sealed    []*Frame // full, or published before with unknown outcome; oldest first
	refused   []*Frame // refused by RabbitMQ, to be published again at their retryAt; in that order
	unsettled []*Frame // all that may be unsettled, and some that are settled; oldest first

	outstanding     int       // frames published and not confirmed
	waitingRequests int       // requests in them
	wantRequests    int       // requests that the open frame should hold before it is taken ...
	waitUntil       time.Time // ... but for this time
}

// put adds a piece of a request's records to the open frame, which it makes if there is none, and returns the ticket. key is
// the base of a keyed request's ids, or nil, and index the number of its records before the piece. The piece becomes a segment
// of a keyed request as it is, so that its segments are the same every time.
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
		base = frame.NewBase()
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

// putProbe adds a frame that holds body, which is no record, to be published before all others.
func (g *gather) putProbe(now time.Time, body string) {
	f := g.frames.get(now)
	f.probe = true
	f.body = append(f.body, body...)
	g.unsettled = append(g.unsettled, f)
	g.sealed = append(g.sealed, f)
}

// due reports whether there is a frame to publish.
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

// take returns the frame to publish now, which is outstanding from then on, or nil if none is due.
func (g *gather) take(now time.Time) *Frame {
	f := g.next(now)
	if f != nil {
		f.attempts++
		g.outstanding++
		g.waitingRequests += f.requests
	}
	return f
}

func (g *gather) next(now time.Time) *Frame {
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

// answered notes that frames are not outstanding any more. took is how long the confirm of the last of them took, 0 when that
// is not known. It returns how long the open frame may now wait for requests; at the end of it the owner asks whether a frame
// is due.
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

// giveBack takes frames whose outcome is unknown, to be published again before all others.
func (g *gather) giveBack(frames []*Frame) { g.sealed = append(frames, g.sealed...) }

// retryLater takes a frame that RabbitMQ has refused, to be published again after retryPause.
func (g *gather) retryLater(f *Frame, now time.Time) {
	f.retryAt = now.Add(retryPause)
	g.refused = append(g.refused, f)
}

// retry makes refused frames due whose pause is over. It reports whether there were any.
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

// takeExpired forgets the oldest frames that are settled, and returns those among them that are not, which were begun before
// their time.
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

// allSettled reports whether no frame is under way.
func (g *gather) allSettled() bool {
	return !slices.ContainsFunc(g.unsettled, func(f *Frame) bool { return !f.settled.Load() })
}

// unsent returns the frames that were never published, so that nothing of them can be stored.
func (g *gather) unsent() (frames []*Frame) {
	for _, f := range g.unsettled {
		if f.attempts == 0 && !f.settled.Load() {
			frames = append(frames, f)
		}
	}
	return frames
}

// dropSettled lets go of settled frames that wait to be published. While no lane takes frames, nothing else would free their
// memory.
func (g *gather) dropSettled() {
	g.sealed = slices.DeleteFunc(g.sealed, func(f *Frame) bool { return f.settled.Load() })
	g.refused = slices.DeleteFunc(g.refused, func(f *Frame) bool { return f.settled.Load() })
	if g.open != nil && g.open.settled.Load() {
		g.open = nil
	}
}
