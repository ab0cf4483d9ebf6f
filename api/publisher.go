package api

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"millrace/internal/broker"
	"millrace/internal/config"
	"millrace/internal/frame"
	"millrace/internal/procs"
	"millrace/internal/retry"
	"millrace/internal/scan"
	"millrace/internal/service"
)

// Why a frame was not confirmed. The client is answered 503 with the text.
var (
	errConfirmTimeout = errors.New("RabbitMQ did not confirm in time; the records may or may not be stored")
	errRefused        = errors.New("RabbitMQ refused the records: the queue is full, or it has an error of its own")
	errStopping       = errors.New("the service is shutting down")
	errBlocked        = errors.New("RabbitMQ blocks publishers until it has memory and disk again")
	errNoBroker       = errors.New("no connection to RabbitMQ")
	errUnroutable     = errors.New("RabbitMQ has no queue for the records")

	// errUnproven is for /ready alone: requests are taken all the same, and the first confirm ends it.
	errUnproven = errors.New("RabbitMQ has confirmed nothing since the service started, lost its connections, or waited for a confirm in vain")
)

const (
	// sameBase is how long records without a key share a segment's base id: its time is theirs.
	sameBase = 5 * time.Millisecond

	// eager is how many frames may be outstanding, over all lanes, while one is published before it is full: none.
	// What has arrived when the last confirm came makes the next frame. More would only make the frames smaller,
	// and RabbitMQ's cost is by the frame; the measurements are in DESIGN.md. Full frames go out on every lane there is.
	eager = 1

	// patience is how old a frame may get that way. It is far above a confirm's time: one slow channel must not
	// hold up the others.
	patience = 20 * time.Millisecond

	// Clients that were just answered come again. Waiting for them makes one frame of their next requests, where
	// taking the first at once makes two, a tiny one and the others'; and while RabbitMQ has the processor to
	// itself, it confirms sooner. The wait is at most regather times what the last confirm took, and maxRegather,
	// so that traffic that doesn't depend on the answers is held up by no more than that. A client that is alone
	// never waits: it is all there is to wait for.
	regather    = 6
	maxRegather = 10 * time.Millisecond

	// A node of a cluster may hang, or be cut off from the others, while they go on. It then does not confirm, or refuses
	// everything, and does not close its connections. straggle is how much later a frame may have been published that was
	// confirmed elsewhere before a lane is given up. On one node the lanes' confirms come within milliseconds of each
	// other, also while all wait seconds for its disk.
	straggle = 2 * time.Second

	// A quorum queue without a leader refuses what comes on a new channel, as one that is full does. The election after
	// a node's death takes one second or two: so long a refused frame is published again, after a moment each time. A
	// queue that has a limit is full rather.
	election   = 5 * time.Second
	retryPause = 100 * time.Millisecond

	// probePause is the pause between two probes, while nothing else asks RabbitMQ for a confirm.
	probePause = time.Second

	// watchPeriod is how often deadlines are looked at; a request may outlive its deadline by so much.
	watchPeriod = 20 * time.Millisecond
)

// trust is whether a confirm can be expected. A connection alone says little: RabbitMQ keeps connections, and takes
// frames, also where the queue has no majority (4.3 always, 3.x with the default of cluster_partition_handling).
type trust int

const (
	doubted trust = iota // not ready until a confirm comes
	asked                // there is a reason to doubt: ready, but a confirm is wanted
	proven
)

// pending is a frame on its way to a confirm. The fields down to not belong to the publisher's mutex until a lane has taken
// the frame, then to that lane; err may be read once done is closed.
type pending struct {
	body     []byte
	segments []frame.Segment
	keyed    bool      // the last segment belongs to one keyed request
	since    time.Time // when the last segment was begun
	begun    time.Time // when the frame was; its deadline counts from here
	records  int
	requests int
	attempts int
	probe    bool      // a message that holds nothing, sent for its confirm alone
	not      time.Time // to be published before; of those that were refused

	settled atomic.Bool
	done    chan struct{}
	err     error

	postMu sync.Mutex
	posts  []*post // nil once settled
}

// settle ends the wait of all requests that have records in the frame. It says whether this call did.
func (f *pending) settle(err error) bool {
	if !f.settled.CompareAndSwap(false, true) {
		return false
	}
	f.err = err
	close(f.done)
	f.postMu.Lock()
	posts := f.posts
	f.posts = nil
	f.postMu.Unlock()
	for i, p := range posts {
		if err == nil && i < len(posts)-1 {
			go p.end(true)
		} else {
			p.end(err == nil)
		}
	}
	return true
}

// ticket is a request's share of a frame: records with the ids that count up from base.
type ticket struct {
	frame   *pending
	base    uuid.UUID
	records int
}

// publisher gathers the records of concurrent requests into frames and has them published. There is no timer in
// its path: a lane takes the frame under construction as it is when no frame is outstanding, so that a lone request
// waits for nothing, and while one travels to the disk the next grows by itself (group commit).
type publisher struct {
	log        *slog.Logger
	topology   broker.Topology
	urls       config.BrokerURLs
	links      int
	channels   int // a link
	frameBytes int
	compress   string
	timeout    time.Duration
	metrics    *metrics
	ready      *service.Ready

	down      atomic.Pointer[error] // why a publish would not be confirmed, nil when it can be expected to be
	bodies    sync.Pool             // of *[]byte: frame bodies
	large     atomic.Uint64         // bodies so far that took a while to be scanned
	declaring sync.Mutex            // held while queues are declared

	mu       sync.Mutex
	work     sync.Cond   // signalled when a frame may be taken
	open     *pending    // under construction, nil when empty
	sealed   []*pending  // full, or published before with unknown outcome; oldest first
	later    []*pending  // refused, to be published again
	live     []*pending  // all that may be unsettled, oldest first
	latest   time.Time   // when the frame was published that was published last of those confirmed
	out      int         // frames published and not confirmed
	waiting  int         // requests in them
	herd     int         // requests that the open frame should hold before it is taken ...
	until    time.Time   // ... but for this time
	timer    *time.Timer // rings then
	lanes    map[*lane]bool
	trouble  error // why there is no lane, nil while there is one
	blocked  map[*link]string
	stopping bool // no requests are to come
	ended    bool // nobody publishes any more
	shard    int  // next queue

	trust        trust
	questionedAt time.Time // since then trust is not proven: a confirm proves it for what was published later
	refusedSince time.Time // since then RabbitMQ has refused everything; zero once it has confirmed something
	probeAt      time.Time // earliest time of the next probe
	vain         bool      // it was logged that confirms don't come

	added uint64 // requests so far
}

func newPublisher(c Config, log *slog.Logger, m *metrics, ready *service.Ready) *publisher {
	p := &publisher{
		log:        log,
		topology:   broker.NewTopology(c.Broker),
		urls:       c.URLs,
		links:      c.PublishConnections,
		channels:   c.PublishChannels,
		lanes:      make(map[*lane]bool),
		frameBytes: int(c.FrameBytes),
		compress:   c.FrameCompression,
		timeout:    c.ConfirmTimeout,
		metrics:    m,
		ready:      ready,
		blocked:    make(map[*link]string),
	}
	p.work.L = &p.mu
	p.timer = time.AfterFunc(time.Hour, p.look)
	p.timer.Stop() // until there is something to wait for
	p.report()
	return p
}

// usable returns nil when a publish can be expected to be confirmed.
func (p *publisher) usable() error {
	if err := p.down.Load(); err != nil {
		return *err
	}
	return nil
}

func (p *publisher) fault() error {
	switch {
	case p.stopping:
		return errStopping
	case len(p.blocked) > 0:
		return errBlocked
	case len(p.lanes) == 0 && p.trouble != nil:
		return p.trouble
	case len(p.lanes) == 0:
		return errNoBroker
	}
	return nil
}

// report tells requests, /ready and the metrics how the broker is. The caller holds the mutex, or is the only one yet.
func (p *publisher) report() {
	reason := ""
	var down *error
	if err := p.fault(); err != nil {
		down, reason = &err, err.Error()
	} else if p.trust == doubted {
		reason = errUnproven.Error()
	}
	p.down.Store(down)
	for _, why := range p.blocked {
		reason += ": " + why
		break
	}
	p.ready.Set("rabbitmq", reason)
	p.metrics.connected.Set(boolean(len(p.lanes) > 0))
	p.metrics.blocked.Set(boolean(len(p.blocked) > 0))
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// add hands a request's records over and appends its tickets to dst. key is the base of a keyed request's ids, or nil. The
// pieces become the segments of a keyed request as they are, so that they are the same every time. The error says why
// none was taken.
func (p *publisher) add(dst []ticket, ndjson []byte, pieces []scan.Piece, key *uuid.UUID) ([]ticket, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.ended:
		return dst, errStopping
	case len(p.blocked) > 0:
		return dst, errBlocked
	}
	p.added++
	now := time.Now() // under the mutex, so that no frame begins before an older one
	index := 0
	for i, piece := range pieces {
		f := p.open
		if f == nil {
			f = p.newFrame(now)
			p.open = f
			p.live = append(p.live, f)
		}
		var base uuid.UUID
		last := len(f.segments) - 1
		switch {
		case key != nil:
			base = frame.ID(*key, index)
			f.segments = append(f.segments, frame.Segment{Base: base, Records: piece.Records})
			f.keyed = true
		case last >= 0 && !f.keyed && now.Sub(f.since) < sameBase:
			s := &f.segments[last]
			base = frame.ID(s.Base, s.Records)
			s.Records += piece.Records
		default:
			base = frame.NewBase()
			f.segments = append(f.segments, frame.Segment{Base: base, Records: piece.Records})
			f.keyed, f.since = false, now
		}
		f.body = append(f.body, ndjson[piece.Start:piece.End]...)
		if i == 0 {
			f.requests++
		}
		f.records += piece.Records
		dst = append(dst, ticket{f, base, piece.Records})
		index += piece.Records
		if len(f.body) >= p.frameBytes || len(f.segments) == frame.MaxSegments {
			p.sealed = append(p.sealed, f)
			p.open = nil
		}
		if p.ripe(now) {
			p.wake()
		}
	}
	return dst, nil
}

// requests is how many have handed records over, and how many are known to take long.
func (p *publisher) requests() procs.Tasks {
	p.mu.Lock()
	defer p.mu.Unlock()
	return procs.Tasks{All: p.added, Long: p.large.Load()}
}

// wake tells a lane that there is work. While a link is blocked any of the waiting lanes may be the one that
// can't do it, so all are told.
func (p *publisher) wake() {
	if len(p.blocked) > 0 {
		p.work.Broadcast()
	} else {
		p.work.Signal()
	}
}

func (p *publisher) newFrame(now time.Time) *pending {
	f := &pending{done: make(chan struct{}), begun: now}
	if b, ok := p.bodies.Get().(*[]byte); ok {
		f.body = (*b)[:0]
	}
	return f
}

// recycle takes a confirmed frame's memory back. A frame that was published twice may still be in the hands of
// a connection that is going down, so its memory is left to the garbage collector.
func (p *publisher) recycle(f *pending) {
	if body := f.body; f.attempts == 1 && cap(body) <= maxPooled {
		f.body = nil
		p.bodies.Put(&body)
	}
}

// take waits for a frame that l may publish, and for the next queue's turn. It returns nil when l must end.
func (p *publisher) take(l *lane) (f *pending, queue string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if l.ended {
			p.wake() // what woke this lane was meant for one that can publish
			return nil, ""
		}
		if !p.isBlocked(l.link) {
			if f := p.next(); f != nil {
				f.attempts++
				p.out++
				p.waiting += f.requests
				p.shard = (p.shard + 1) % p.topology.Shards()
				return f, p.topology.Queue(p.shard)
			}
		}
		p.work.Wait()
	}
}

func (p *publisher) isBlocked(l *link) bool {
	_, blocked := p.blocked[l]
	return blocked
}

func (p *publisher) next() *pending {
	for len(p.sealed) > 0 {
		f := p.sealed[0]
		p.sealed[0] = nil
		p.sealed = p.sealed[1:]
		if !f.settled.Load() {
			return f
		}
	}
	if !p.ripe(time.Now()) {
		return nil
	}
	f := p.open
	p.open = nil
	if f.settled.Load() {
		return nil
	}
	return f
}

// ripe says whether there is a frame to take.
func (p *publisher) ripe(now time.Time) bool {
	f := p.open
	switch {
	case len(p.sealed) > 0:
		return true
	case f == nil:
		return false
	case now.Sub(f.begun) >= patience:
		return true
	}
	return p.out < eager && (f.requests >= p.herd || !now.Before(p.until))
}

// came says that frames are not outstanding any more. took is how long the last of them was, 0 when not known.
func (p *publisher) came(took time.Duration, frames ...*pending) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.herd = p.waiting
	if p.open != nil {
		p.herd += p.open.requests
	}
	p.out -= len(frames)
	for _, f := range frames {
		p.waiting -= f.requests
	}
	now := time.Now()
	wait := min(regather*took, maxRegather)
	p.until = now.Add(wait)
	if p.ripe(now) {
		p.wake()
	} else {
		p.timer.Reset(wait)
	}
}

// look has the open frame taken when it has waited long enough.
func (p *publisher) look() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ripe(time.Now()) {
		p.wake()
	}
}

// giveBack returns frames whose outcome is unknown, to be published again before all others.
func (p *publisher) giveBack(frames []*pending) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sealed = append(frames, p.sealed...)
	p.work.Broadcast()
}

// refused takes care of a frame that RabbitMQ did not take.
func (p *publisher) refused(f *pending, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refusedSince.IsZero() {
		p.refusedSince = now
	}
	if p.topology.Limited() || now.Sub(f.begun) > election {
		if !p.topology.Limited() || now.Sub(p.refusedSince) > election { // a queue that is full for a moment is no reason to doubt
			p.inVain(f, now)
		}
		f.settle(errRefused)
		return
	}
	f.not = now.Add(retryPause)
	p.later = append(p.later, f)
}

// retry has the refused frames published again whose pause is over.
func (p *publisher) retry(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for n < len(p.later) && !now.Before(p.later[n].not) {
		n++
	}
	if n > 0 {
		p.sealed = append(slices.Clone(p.later[:n]), p.sealed...)
		p.later = slices.Delete(p.later, 0, n)
		p.work.Broadcast()
	}
}

// confirmedAfter takes note of a confirm by when its frame was published.
func (p *publisher) confirmedAfter(at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if at.After(p.latest) {
		p.latest = at
	}
	p.refusedSince = time.Time{}
	if p.trust != proven && !at.Before(p.questionedAt) {
		if p.vain {
			p.vain = false
			p.log.Info("RabbitMQ confirms again")
		}
		p.trust = proven
		p.report()
	}
}

// question lowers the trust to t, until something that is published from now on is confirmed. The caller holds the mutex.
func (p *publisher) question(t trust, now time.Time) {
	p.questionedAt = now
	if p.trust > t {
		p.trust = t
		p.report()
	}
}

// inVain doubts RabbitMQ because it has not confirmed f, unless it has confirmed what was published later. The caller
// holds the mutex.
func (p *publisher) inVain(f *pending, now time.Time) {
	if f.attempts == 0 || p.latest.After(f.begun) {
		return
	}
	if !p.vain {
		p.vain = true
		p.log.Warn("RabbitMQ does not confirm; not ready until it does")
	}
	p.question(doubted, now)
}

// probe sends a message that holds nothing when a confirm is wanted and nothing that is under way may bring one. The
// caller holds the mutex.
func (p *publisher) probe(now time.Time) {
	if p.trust == proven || p.stopping || p.fault() != nil || now.Before(p.probeAt) ||
		slices.ContainsFunc(p.live, func(f *pending) bool { return !f.settled.Load() }) {
		return
	}
	p.probeAt = now.Add(probePause)
	f := p.newFrame(now)
	f.probe = true
	f.body = append(f.body, probeBody...)
	p.live = append(p.live, f)
	p.sealed = append(p.sealed, f)
	p.wake()
}

// run keeps the links up until ctx is done and all frames are settled, or flush is done, and returns when every
// goroutine it started has ended. Records that are added later are refused.
func (p *publisher) run(ctx, flush context.Context) {
	var links, watch sync.WaitGroup
	up, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	for i := range p.links {
		l := &link{publisher: p, number: i, reset: make(chan struct{}, 1)}
		links.Go(func() { l.run(up) })
	}
	watch.Go(func() { p.watch(up) })

	<-ctx.Done()
	p.mu.Lock()
	p.stopping = true
	p.report()
	for _, f := range p.live {
		if f.probe {
			f.settle(errStopping) // nobody waits for it
		}
	}
	p.mu.Unlock()
	for p.unsettled() && retry.Sleep(flush, watchPeriod) == nil {
	}
	cut()
	links.Wait()
	watch.Wait()

	p.mu.Lock()
	p.ended = true
	p.mu.Unlock()
	p.expire(time.Time{}, errStopping)
}

func (p *publisher) unsettled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.live, func(f *pending) bool { return !f.settled.Load() })
}

// watch settles frames that run out of time, and has the connections of lanes whose confirms do not come given up.
func (p *publisher) watch(ctx context.Context) {
	tick := time.NewTicker(watchPeriod)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			p.expire(now, errConfirmTimeout)
			p.retry(now)
			p.look()
			p.mu.Lock()
			p.probe(now)
			p.mu.Unlock()
			lanes, since := p.publishing(now)
			for _, l := range lanes {
				if l.stuck(since) {
					l.giveUp()
				}
			}
		case <-ctx.Done():
			return
		}
	}
}

// publishing returns the lanes that RabbitMQ does not block, and since when their frames should be confirmed by now.
func (p *publisher) publishing(now time.Time) (lanes []*lane, since time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	since = now.Add(-p.timeout)
	if s := p.latest.Add(-straggle); s.After(since) {
		since = s
	}
	for l := range p.lanes {
		if !p.isBlocked(l.link) {
			lanes = append(lanes, l)
		}
	}
	return lanes, since
}

// expire settles all frames whose deadline is before now, or all there are when now is zero.
func (p *publisher) expire(now time.Time, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, late := 0, false
	for _, f := range p.live {
		if !f.settled.Load() {
			if !now.IsZero() && now.Sub(f.begun) < p.timeout {
				break // the others are younger
			}
			if !now.IsZero() {
				p.inVain(f, now) // before the client can ask
			}
			late = f.settle(err) || late
		}
		n++
	}
	clear(p.live[:n])
	p.live = p.live[n:]
	if late {
		p.drop()
	}
}

// refuseUnsent settles the frames that were never published, so that nothing of them can be stored. The caller holds
// the mutex.
func (p *publisher) refuseUnsent(err error) {
	for _, f := range p.live {
		if f.attempts == 0 {
			f.settle(err)
		}
	}
	p.drop()
}

// drop lets go of settled frames that no lane has taken: while none does, nothing else would free their memory.
func (p *publisher) drop() {
	p.sealed = slices.DeleteFunc(p.sealed, func(f *pending) bool { return f.settled.Load() })
	p.later = slices.DeleteFunc(p.later, func(f *pending) bool { return f.settled.Load() })
	if p.open != nil && p.open.settled.Load() {
		p.open = nil
	}
}
