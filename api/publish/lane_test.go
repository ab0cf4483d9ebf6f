package publish

import (
	"log/slog"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/broker"
	"millrace/internal/config"
	"millrace/internal/record"
	"millrace/internal/scan"
	"millrace/internal/service"
)

// testOptions returns the options that the settings' defaults give.
func testOptions(t testing.TB) Options {
	return Options{
		Connections: 4,
		Channels:    1,
		FrameBytes:  64 << 10,
		Compression: "s2",
		Timeout:     10 * time.Second,
		Log:         slog.New(slog.NewTextHandler(t.Output(), nil)),
		Metrics:     NewMetrics(service.NewRegistry()),
		Ready:       new(service.Ready),
	}
}

// oneRecord is a request's only record.
func oneRecord(t testing.TB) *record.List {
	t.Helper()
	records := &record.List{Limits: scan.Limits{RecordBytes: 1 << 10, PieceBytes: 64 << 10}}
	if err := records.Single([]byte(line)); err != nil {
		t.Fatal(err)
	}
	return records
}

// testLane returns a lane without a channel, for tests that need none.
func testLane(t *testing.T) *lane {
	t.Helper()
	p := New(testOptions(t))
	return &lane{
		link:     &link{pub: p, reset: make(chan struct{}, 1)},
		pub:      p,
		confirms: make(chan amqp.Confirmation, window),
		returns:  make(chan amqp.Return, window),
		slots:    make(chan struct{}, window),
	}
}

// send returns a frame that counts as published on l, under the id that a
// return would name.
func (l *lane) send(id string) *Frame {
	f := l.pub.frames.get(time.Now())
	f.attempts = 1
	l.outstanding = append(l.outstanding, sent{f, id, time.Now()})
	l.slots <- struct{}{}
	return f
}

func TestConfirmsThatComeWithTheEndOfTheChannelCount(t *testing.T) {
	l := testLane(t)
	confirmed, unknown := l.send("1"), l.send("2")
	l.confirms <- amqp.Confirmation{DeliveryTag: 1, Ack: true}
	close(l.returns) // the library closes it first
	close(l.confirms)
	l.receive()
	if !confirmed.settled.Load() || confirmed.err != nil {
		t.Errorf("the confirmed frame: settled %v, error %v", confirmed.settled.Load(), confirmed.err)
	}
	if unknown.settled.Load() || len(l.pub.gather.sealed) != 1 || l.pub.gather.sealed[0] != unknown {
		t.Error("the frame whose outcome is unknown was not given back")
	}
}

func TestAReturnMeansItsOwnFrameOnly(t *testing.T) {
	l := testLane(t)
	routed, returned := l.send("1"), l.send("2")
	l.returns <- amqp.Return{CorrelationId: "2"} // it comes before its ack, and may come before the first one's
	l.confirms <- amqp.Confirmation{DeliveryTag: 1, Ack: true}
	l.confirms <- amqp.Confirmation{DeliveryTag: 2, Ack: true}
	close(l.confirms)
	l.receive()
	if !routed.settled.Load() || returned.settled.Load() || !l.unroutable {
		t.Errorf("settled: routed %v, returned %v; unroutable %v", routed.settled.Load(), returned.settled.Load(), l.unroutable)
	}
	if len(l.pub.gather.sealed) != 1 || l.pub.gather.sealed[0] != returned {
		t.Error("the returned frame was not given back")
	}
}

func TestANackIsAnsweredWhenTheQueueMayBeFull(t *testing.T) {
	l := testLane(t)
	l.pub.topology = broker.NewTopology(config.Broker{MaxBytes: 1 << 20})
	f := l.send("1")
	l.confirms <- amqp.Confirmation{DeliveryTag: 1, Ack: false}
	close(l.confirms)
	l.receive()
	if !f.settled.Load() || f.err != ErrRefused || len(l.pub.gather.refused) > 0 {
		t.Errorf("settled %v, error %v, %d to be published again", f.settled.Load(), f.err, len(l.pub.gather.refused))
	}
}

func TestANackOfAQueueWithoutALimitIsOutlivedForTheTimeOfAnElection(t *testing.T) {
	l := testLane(t)
	f := l.send("1")
	l.confirms <- amqp.Confirmation{DeliveryTag: 1, Ack: false}
	close(l.confirms)
	l.receive()
	now := time.Now()
	if l.pub.retry(now); f.settled.Load() || len(l.pub.gather.sealed) > 0 {
		t.Fatalf("settled %v, %d published again at once", f.settled.Load(), len(l.pub.gather.sealed))
	}
	if l.pub.retry(now.Add(retryPause)); len(l.pub.gather.sealed) != 1 || l.pub.gather.sealed[0] != f || len(l.pub.gather.refused) > 0 {
		t.Fatalf("%d to be published after the pause, %d waiting", len(l.pub.gather.sealed), len(l.pub.gather.refused))
	}
	if l.pub.refused(f, f.begun.Add(electionTime+1)); !f.settled.Load() || f.err != ErrRefused {
		t.Errorf("after the time of an election: settled %v, error %v", f.settled.Load(), f.err)
	}
}

func TestALaneThatFallsBehindTheOthersIsGivenUp(t *testing.T) {
	l := testLane(t)
	l.pub.lanes[l] = true
	stuck := func() bool {
		lanes, since := l.pub.lanesToWatch(time.Now())
		return len(lanes) == 1 && lanes[0].isStuck(since)
	}
	l.send("1")
	at := l.outstanding[0].at
	if l.pub.confirmed(at.Add(maxLag)); stuck() {
		t.Error("given up though the other's frame is but a moment younger")
	}
	if l.pub.confirmed(at.Add(maxLag + 1)); !stuck() {
		t.Error("not given up though what was published much later is confirmed")
	}

	l.outstanding = nil
	l.noteOutcome(false, at)
	if stuck() {
		t.Error("given up for one refusal")
	}
	if l.noteOutcome(false, at.Add(2)); !stuck() {
		t.Error("not given up though it is refused what others have confirmed")
	}
	if l.noteOutcome(true, at.Add(3)); stuck() {
		t.Error("given up though it has a confirm")
	}
}

func TestFramesRunOutOfTimeInOrder(t *testing.T) {
	l := testLane(t)
	p := l.pub
	now := time.Now()
	for i := range 3 {
		p.gather.unsettled = append(p.gather.unsettled, p.frames.get(now.Add(time.Duration(i)*time.Second)))
	}
	frames := append([]*Frame(nil), p.gather.unsettled...)
	p.expire(now.Add(p.timeout + 1500*time.Millisecond))
	for i, want := range []bool{true, true, false} {
		if got := frames[i].settled.Load(); got != want {
			t.Errorf("frame %d: settled %v, want %v", i, got, want)
		}
	}
	if len(p.gather.unsettled) != 1 {
		t.Errorf("%d frames are still watched, want 1", len(p.gather.unsettled))
	}
}

func TestWhatWasNotSentIsRefusedWhenRabbitMQBlocks(t *testing.T) {
	l := testLane(t)
	p := l.pub
	outstanding := l.send("1")
	p.gather.unsettled = append(p.gather.unsettled, outstanding)
	add := func() *Frame {
		t.Helper()
		tickets, err := p.Add(nil, oneRecord(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		return tickets[0].Frame
	}
	sealed := add()
	p.gather.sealed, p.gather.open = []*Frame{sealed}, nil
	unknown := add()
	unknown.attempts = 1
	p.gather.sealed, p.gather.open = append(p.gather.sealed, unknown), nil
	open := add()
	l.link.setBlocked(amqp.Blocking{Active: true, Reason: "memory"})
	for name, f := range map[string]*Frame{"the sealed frame": sealed, "the open frame": open} {
		if !f.settled.Load() || f.err != ErrBlocked {
			t.Errorf("%s: settled %v, error %v, want it refused", name, f.settled.Load(), f.err)
		}
	}
	if outstanding.settled.Load() || unknown.settled.Load() {
		t.Error("a frame that was published was refused")
	}
	if len(p.gather.sealed) != 1 || p.gather.sealed[0] != unknown || p.gather.open != nil {
		t.Errorf("%d sealed frames and the open one %v are kept, want the one of unknown outcome alone", len(p.gather.sealed), p.gather.open)
	}
	if _, err := p.Add(nil, oneRecord(t), nil); err != ErrBlocked {
		t.Errorf("add: got %v, want %v", err, ErrBlocked)
	}
	l.link.setBlocked(amqp.Blocking{})
	add()
}

func TestFramesOutOfTimeAreLetGoOf(t *testing.T) {
	l := testLane(t)
	p := l.pub
	old := p.frames.get(time.Now().Add(-2 * p.timeout))
	p.gather.unsettled, p.gather.sealed = []*Frame{old}, []*Frame{old}
	p.expire(time.Now())
	if len(p.gather.unsettled) > 0 || len(p.gather.sealed) > 0 {
		t.Errorf("%d live and %d sealed frames are kept, want none: no lane may ever come to take them", len(p.gather.unsettled), len(p.gather.sealed))
	}
}
