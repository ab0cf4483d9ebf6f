package publish

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"millrace/internal/broker"
	"millrace/internal/config"
	"millrace/internal/frame"
	"millrace/internal/record"
	"millrace/internal/retry"
)

// Errors that say why a frame was not confirmed. The client is answered 503 with the text.
var (
	ErrConfirmTimeout = errors.New("RabbitMQ did not confirm in time; the records may or may not be stored")
	ErrRefused        = errors.New("RabbitMQ refused the records: the queue is full, or it has an error of its own")
	ErrStopping       = errors.New("the service is shutting down")
	ErrBlocked        = errors.New("RabbitMQ blocks publishers until it has memory and disk again")
	ErrNoBroker       = errors.New("no connection to RabbitMQ")
	ErrUnroutable     = errors.New("RabbitMQ has no queue for the records")

	// errUnproven is a reason for /ready alone: requests are taken meanwhile, and the first confirm ends it.
	errUnproven = errors.New("RabbitMQ has confirmed nothing since the service started, lost its connections, or waited for a confirm in vain")
)

const (
	// maxLag is how far a lane may lag behind the others. It is given up when another lane has the confirm of a frame that
	// was published this much later. A node of a cluster may hang, or be cut off from the others, while they go on. Then it
	// confirms nothing, or refuses everything, and keeps its connections open. On one node the lanes' confirms come within
	// milliseconds of each other, even when all wait seconds for its disk.
	maxLag = 2 * time.Second

	// electionTime is how long a refused frame is tried again. A quorum queue without a leader refuses what comes on a new
	// channel, just as a full queue does, and the election after a node's death takes one second or two. A queue with a
	// limit that refuses is more likely full.
	electionTime = 5 * time.Second

	// probePause is the pause between two probes, while nothing else asks RabbitMQ for a confirm.
	probePause = time.Second

	// watchPeriod is how often deadlines are checked. A request may outlive its deadline by this much.
	watchPeriod = 20 * time.Millisecond
)

// trust is how sure the publisher is that a confirm would come. A connection alone says little: RabbitMQ keeps connections
// and takes frames even while the queue has no majority (4.3 always, 3.x with the default of cluster_partition_handling).
type trust int

const (
	doubted       trust = iota // not ready until a confirm comes
	confirmWanted              // there is a reason to doubt: still ready, but a confirm is wanted
	proven                     // RabbitMQ has confirmed something since there was a reason to doubt
)

// Options are what a publisher needs. Most of them are settings of package api.
type Options struct {
	Broker      config.Broker
	Connections int
	Channels    int           // on each connection
	FrameBytes  int           // size at which a frame takes no more records
	Compression string        // of frames, as frame.NewCompressor takes it
	Timeout     time.Duration // longest wait for a frame's confirm
	Log         *slog.Logger
	Metrics     *Metrics
	Ready       Readiness

	// Base returns the base of a segment without a key; nil is frame.NewBase.
	Base func() uuid.UUID
	// Probe makes the publisher ask for a confirm, by a message without records, once RabbitMQ has refused a frame. Without it nothing would
	// show that a publisher that is passed over can be used again.
	Probe bool
	// Name is what RabbitMQ shows of the connections, with their numbers behind it; "" is millrace api.
	Name string
}

// Readiness is told why a condition does not hold, and what works less well than it should, "" for nothing; see service.Ready.
type Readiness interface {
	Set(condition, reason string)
	Degrade(part, reason string)
}

// Publisher gathers the records of concurrent requests into frames and has RabbitMQ confirm them. gather.go decides when a
// frame is published. Any goroutine may call the exported methods.
type Publisher struct {
	log       *slog.Logger
	topology  broker.Topology
	urls      config.BrokerURLs
	links     int
	channels  int // per link
	compress  string
	timeout   time.Duration
	metrics   *Metrics
	ready     Readiness
	probes    bool
	name      string
	passOver  atomic.Bool           // a publish is not likely to be confirmed, so that another cell is better
	down      atomic.Pointer[error] // why a publish would not be confirmed, nil when it can be expected to be
	declaring sync.Mutex            // held while queues are declared
	frames    framePool

	mu            sync.Mutex // guards what follows
	work          sync.Cond  // signalled when a frame may be taken
	gather        gather
	timer         *time.Timer // rings when the open frame has waited long enough
	lastConfirmed time.Time   // latest time at which a confirmed frame was published
	lanes         map[*lane]bool
	noLaneReason  error // why there is no lane, nil while there is one
	blocked       map[*link]string
	stopping      bool // Run's context is done: no more requests come
	ended         bool // no frame will be published any more
	lastShard     int  // the queue that the last frame went to

	trust          trust
	questionedAt   time.Time // when trust was lowered; only the confirm of a frame published later proves it again
	refusedSince   time.Time // when RabbitMQ began to refuse everything; zero once it has confirmed something
	probeAt        time.Time // earliest time of the next probe
	loggedNoAnswer bool      // it was logged that confirms don't come
}

// New returns a publisher that does nothing until Run is called.
func New(o Options) *Publisher {
	p := &Publisher{
		log:      o.Log,
		topology: broker.NewTopology(o.Broker),
		urls:     o.Broker.URLs,
		links:    o.Connections,
		channels: o.Channels,
		lanes:    make(map[*lane]bool),
		compress: o.Compression,
		timeout:  o.Timeout,
		metrics:  o.Metrics,
		ready:    o.Ready,
		blocked:  make(map[*link]string),
	}
	p.probes, p.name = o.Probe, cmp.Or(o.Name, "millrace api")
	p.gather = gather{frameBytes: o.FrameBytes, frames: &p.frames, base: o.Base}
	if o.Base == nil {
		p.gather.base = frame.NewBase
	}
	p.work.L = &p.mu
	p.timer = time.AfterFunc(time.Hour, p.wakeIfDue)
	p.timer.Stop() // until there is something to wait for
	p.reportLocked()
	return p
}

// Usable returns nil when a publish can be expected to be confirmed, else why not.
func (p *Publisher) Usable() error {
	if err := p.down.Load(); err != nil {
		return *err
	}
	return nil
}

// unusableLocked returns why a publish would not be confirmed, nil if a confirm can be expected.
func (p *Publisher) unusableLocked() error {
	switch {
	case p.stopping:
		return ErrStopping
	case len(p.blocked) > 0:
		return ErrBlocked
	case len(p.lanes) == 0 && p.noLaneReason != nil:
		return p.noLaneReason
	case len(p.lanes) == 0:
		return ErrNoBroker
	}
	return nil
}

// reportLocked updates Usable, /ready and the metrics with the broker's state.
func (p *Publisher) reportLocked() {
	reason := ""
	var down *error
	if err := p.unusableLocked(); err != nil {
		down, reason = &err, err.Error()
	} else if p.trust == doubted {
		reason = errUnproven.Error()
	}
	p.down.Store(down)
	p.passOver.Store(reason != "" || !p.refusedSince.IsZero())
	for _, why := range p.blocked {
		reason += ": " + why
		break
	}
	p.ready.Set("rabbitmq", reason)
	if p.probes {
		full := ""
		if !p.refusedSince.IsZero() {
			full = ErrRefused.Error()
		}
		p.ready.Degrade("queues", full)
	}
	p.metrics.connected.Set(gaugeValue(len(p.lanes) > 0))
	p.metrics.blocked.Set(gaugeValue(len(p.blocked) > 0))
}

// Add takes over a request's records, appends the request's tickets to dst and returns dst. key is the base of a keyed
// request's ids, or nil. Each piece of a keyed request becomes a segment of its own, so that the request has the same
// segments every time. Add keeps no reference to records. If it returns an error, it took none of them.
func (p *Publisher) Add(dst []Ticket, records *record.List, key *uuid.UUID) ([]Ticket, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.ended:
		return dst, ErrStopping
	case len(p.blocked) > 0:
		return dst, ErrBlocked
	}
	now := time.Now() // under the mutex, so that no frame begins before an older one
	index := 0
	for i, piece := range records.Pieces {
		dst = append(dst, p.gather.put(now, records.NDJSON[piece.Start:piece.End], piece.Records, key, index, i == 0))
		index += piece.Records
		if p.gather.due(now) {
			p.wakeLocked()
		}
	}
	return dst, nil
}

// wakeLocked wakes a lane that waits for work. While a link is blocked it wakes all lanes, because a single one might be of
// that link.
func (p *Publisher) wakeLocked() {
	if len(p.blocked) > 0 {
		p.work.Broadcast()
	} else {
		p.work.Signal()
	}
}

// wakeIfDue wakes a lane if a frame is due.
func (p *Publisher) wakeIfDue() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gather.due(time.Now()) {
		p.wakeLocked()
	}
}

// take waits for a frame that l may publish. It returns the frame and the queue to publish it to, by turns, or nil when l
// must end.
func (p *Publisher) take(l *lane) (f *Frame, queue string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if l.ended {
			p.wakeLocked() // what woke this lane was meant for one that can publish
			return nil, ""
		}
		if !p.isBlockedLocked(l.link) {
			if f := p.gather.take(time.Now()); f != nil {
				p.lastShard = (p.lastShard + 1) % p.topology.Shards()
				return f, p.topology.Queue(p.lastShard)
			}
		}
		p.work.Wait()
	}
}

// isBlockedLocked reports whether RabbitMQ blocks l.
func (p *Publisher) isBlockedLocked(l *link) bool {
	_, blocked := p.blocked[l]
	return blocked
}

// answered notes that frames are no longer outstanding, because RabbitMQ has answered or the lane has ended. took is how
// long the confirm of the last of them took, 0 if that is not known.
func (p *Publisher) answered(took time.Duration, frames ...*Frame) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	wait := p.gather.answered(now, took, frames...)
	if p.gather.due(now) {
		p.wakeLocked()
	} else {
		p.timer.Reset(wait)
	}
}

// giveBack puts frames whose outcome is unknown first in line, to be published again.
func (p *Publisher) giveBack(frames []*Frame) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gather.giveBack(frames)
	p.work.Broadcast()
}

// refused handles a frame that RabbitMQ refused: it settles it, or has it published again later.
func (p *Publisher) refused(f *Frame, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refusedSince.IsZero() {
		p.refusedSince = now
		p.reportLocked()
	}
	if p.probes {
		p.questionLocked(confirmWanted, now)
	}
	if p.topology.Limited() || now.Sub(f.begun) > electionTime {
		if !p.topology.Limited() || now.Sub(p.refusedSince) > electionTime { // if a queue is full for a moment, that is no reason to doubt
			p.unconfirmedLocked(f, now)
		}
		f.settle(ErrRefused)
		return
	}
	p.gather.retryLater(f, now)
}

// retry has those refused frames published again whose pause is over.
func (p *Publisher) retry(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gather.retry(now) {
		p.work.Broadcast()
	}
}

// confirmed notes that RabbitMQ has confirmed a frame that was published at publishedAt.
func (p *Publisher) confirmed(publishedAt time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if publishedAt.After(p.lastConfirmed) {
		p.lastConfirmed = publishedAt
	}
	if !p.refusedSince.IsZero() {
		p.refusedSince = time.Time{}
		p.reportLocked()
	}
	if p.trust != proven && !publishedAt.Before(p.questionedAt) {
		if p.loggedNoAnswer {
			p.loggedNoAnswer = false
			p.log.Info("RabbitMQ confirms again")
		}
		p.trust = proven
		p.reportLocked()
	}
}

// questionLocked lowers the trust to t, until RabbitMQ confirms something that is published from now on.
func (p *Publisher) questionLocked(t trust, now time.Time) {
	p.questionedAt = now
	if p.trust > t {
		p.trust = t
		p.reportLocked()
	}
}

// unconfirmedLocked lowers the trust because RabbitMQ has not confirmed f, unless it has confirmed a frame that was
// published after f was begun.
func (p *Publisher) unconfirmedLocked(f *Frame, now time.Time) {
	if f.attempts == 0 || p.lastConfirmed.After(f.begun) {
		return
	}
	if !p.loggedNoAnswer {
		p.loggedNoAnswer = true
		p.log.Warn("RabbitMQ does not confirm; not ready until it does")
	}
	p.questionLocked(doubted, now)
}

// probeLocked sends a probe, a message without records, if a confirm is wanted and no frame under way may bring one.
func (p *Publisher) probeLocked(now time.Time) {
	if p.trust == proven || p.stopping || p.unusableLocked() != nil || now.Before(p.probeAt) || !p.gather.allSettled() {
		return
	}
	p.probeAt = now.Add(probePause)
	p.gather.putProbe(now, ProbeBody)
	p.wakeLocked()
}

// Run keeps the links up until ctx is done. Then it waits until all frames are settled or flush is done. It returns when
// every goroutine it started has ended. Add refuses records after that.
func (p *Publisher) Run(ctx, flush context.Context) {
	var links, watch sync.WaitGroup
	up, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	for i := range p.links {
		l := &link{pub: p, number: i, reset: make(chan struct{}, 1)}
		links.Go(func() { l.run(up) })
	}
	watch.Go(func() { p.watch(up) })

	<-ctx.Done()
	p.mu.Lock()
	p.stopping = true
	p.reportLocked()
	for _, f := range p.gather.unsettled {
		if f.probe {
			f.settle(ErrStopping) // nobody waits for it
		}
	}
	p.mu.Unlock()
	for !p.allSettled() && retry.Sleep(flush, watchPeriod) == nil {
	}
	cut()
	links.Wait()
	watch.Wait()

	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	for _, f := range p.gather.takeExpired(time.Now()) { // all there are
		f.settle(ErrStopping)
	}
	p.gather.dropSettled()
}

// allSettled reports whether all frames are settled.
func (p *Publisher) allSettled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.gather.allSettled()
}

// watch settles frames that run out of time, and gives up the connections of lanes whose confirms do not come. It returns
// when ctx is done.
func (p *Publisher) watch(ctx context.Context) {
	tick := time.NewTicker(watchPeriod)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			p.expire(now)
			p.retry(now)
			p.wakeIfDue()
			p.mu.Lock()
			p.probeLocked(now)
			p.mu.Unlock()
			lanes, since := p.lanesToWatch(now)
			for _, l := range lanes {
				if l.isStuck(since) {
					l.link.giveUp()
				}
			}
		case <-ctx.Done():
			return
		}
	}
}

// lanesToWatch returns the lanes that RabbitMQ does not block, and the time since. What they published before since should
// be confirmed by now.
func (p *Publisher) lanesToWatch(now time.Time) (lanes []*lane, since time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	since = now.Add(-p.timeout)
	if s := p.lastConfirmed.Add(-maxLag); s.After(since) {
		since = s
	}
	for l := range p.lanes {
		if !p.isBlockedLocked(l.link) {
			lanes = append(lanes, l)
		}
	}
	return lanes, since
}

// expire settles all frames whose deadline has passed.
func (p *Publisher) expire(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	late := false
	for _, f := range p.gather.takeExpired(now.Add(-p.timeout)) {
		p.unconfirmedLocked(f, now) // before the client has its answer and can ask /ready
		late = f.settle(ErrConfirmTimeout) || late
	}
	if late {
		p.gather.dropSettled()
	}
}

// refuseUnsentLocked settles with err the frames that were never published. Nothing of them can be stored.
func (p *Publisher) refuseUnsentLocked(err error) {
	for _, f := range p.gather.unsent() {
		f.settle(err)
	}
	p.gather.dropSettled()
}
