package publish

import (
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/broker"
	"millrace/internal/config"
	"millrace/internal/service"
)

func TestWhatMakesTheAPIDoubtRabbitMQ(t *testing.T) {
	proved := func(t *testing.T) (l *lane, at time.Time) {
		l = testLane(t)
		l.pub.lanes[l] = true
		at = time.Now()
		l.pub.confirmed(at)
		return l, at
	}
	published := func(l *lane, begun time.Time) *Frame {
		f := l.pub.frames.get(begun)
		f.attempts = 1
		l.pub.gather.unsettled = append(l.pub.gather.unsettled, f)
		return f
	}
	wants := func(t *testing.T, l *lane, when string, want bool) {
		t.Helper()
		if got := l.pub.ready.(*service.Ready).Holds("rabbitmq") == 1; got != want {
			t.Errorf("%s: ready %v, want %v", when, got, want)
		}
	}
	t.Run("the start", func(t *testing.T) {
		l := testLane(t)
		l.open()
		wants(t, l, "before the first confirm", false)
		if len(l.pub.gather.sealed) != 1 || !l.pub.gather.sealed[0].probe {
			t.Fatalf("%d frames are to be published, want the probe", len(l.pub.gather.sealed))
		}
		l.pub.confirmed(time.Now())
		wants(t, l, "after it", true)
	})
	t.Run("a frame that runs out of time", func(t *testing.T) {
		l, at := proved(t)
		wants(t, l, "at first", true)
		published(l, at)
		late := at.Add(l.pub.timeout)
		l.pub.expire(late)
		wants(t, l, "after the time-out", false)
		l.pub.confirmed(late.Add(-1))
		wants(t, l, "after a confirm of what was published before it", false)
		l.pub.confirmed(late)
		wants(t, l, "after a confirm", true)
	})
	t.Run("a frame that was never published", func(t *testing.T) {
		l, at := proved(t)
		published(l, at).attempts = 0
		l.pub.expire(at.Add(l.pub.timeout))
		wants(t, l, "RabbitMQ was not asked", true)
	})
	t.Run("a frame alone, while younger ones are confirmed", func(t *testing.T) {
		l, at := proved(t)
		published(l, at)
		l.pub.confirmed(at.Add(time.Second))
		l.pub.expire(at.Add(l.pub.timeout))
		wants(t, l, "the others have confirms", true)
	})
	t.Run("refusals of a queue without a limit", func(t *testing.T) {
		l, at := proved(t)
		f := published(l, at)
		l.pub.refused(f, at.Add(electionTime))
		wants(t, l, "within the time of an election", true)
		l.pub.refused(f, at.Add(electionTime+1))
		wants(t, l, "after it", false)
	})
	t.Run("refusals of a queue with a limit", func(t *testing.T) {
		l, at := proved(t)
		l.pub.topology = broker.NewTopology(config.Broker{MaxBytes: 1})
		l.pub.refused(published(l, at.Add(1)), at)
		l.pub.refused(published(l, at.Add(1)), at.Add(electionTime))
		wants(t, l, "it may be full for a moment", true)
		l.pub.refused(published(l, at.Add(1)), at.Add(electionTime+1))
		wants(t, l, "nothing but refusals for longer than an election", false)
		l.pub.confirmed(at.Add(electionTime + 2))
		wants(t, l, "it has room again", true)
	})
	t.Run("a lost connection", func(t *testing.T) {
		l, _ := proved(t)
		another := &lane{link: l.link, pub: l.pub}
		another.open()
		another.end()
		wants(t, l, "while there is another", true)
		l.pub.probeLocked(time.Now())
		if len(l.pub.gather.sealed) != 1 || !l.pub.gather.sealed[0].probe {
			t.Errorf("%d frames are to be published, want a probe of the other", len(l.pub.gather.sealed))
		}
		l.pub.gather.sealed[0].settle(nil)
		l.end()
		l.open()
		wants(t, l, "after all had gone", false)
		l.pub.confirmed(time.Now())
		wants(t, l, "after a confirm", true)
	})
	t.Run("memory", func(t *testing.T) {
		l, _ := proved(t)
		l.link.setBlocked(amqp.Blocking{Active: true, Reason: "memory"})
		l.pub.questionLocked(doubted, time.Now())
		if l.pub.probeLocked(time.Now()); len(l.pub.gather.sealed) > 0 {
			t.Error("a probe is to be published though RabbitMQ blocks")
		}
	})
}
