package publish

import (
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/broker"
	"millrace/internal/config"
)

func TestWhatMakesTheAPIDoubtRabbitMQ(t *testing.T) {
	proved := func(t *testing.T) (l *lane, at time.Time) {
		l = testLane(t)
		l.lanes[l] = true
		at = time.Now()
		l.confirmedAfter(at)
		return l, at
	}
	published := func(l *lane, begun time.Time) *Frame {
		f := l.newFrame(begun)
		f.attempts = 1
		l.live = append(l.live, f)
		return f
	}
	wants := func(t *testing.T, l *lane, when string, want bool) {
		t.Helper()
		if got := l.ready.Holds("rabbitmq") == 1; got != want {
			t.Errorf("%s: ready %v, want %v", when, got, want)
		}
	}
	t.Run("the start", func(t *testing.T) {
		l := testLane(t)
		l.open()
		wants(t, l, "before the first confirm", false)
		if len(l.sealed) != 1 || !l.sealed[0].probe {
			t.Fatalf("%d frames are to be published, want the probe", len(l.sealed))
		}
		l.confirmedAfter(time.Now())
		wants(t, l, "after it", true)
	})
	t.Run("a frame that runs out of time", func(t *testing.T) {
		l, at := proved(t)
		wants(t, l, "at first", true)
		published(l, at)
		late := at.Add(l.timeout)
		l.expire(late, ErrConfirmTimeout)
		wants(t, l, "after the time-out", false)
		l.confirmedAfter(late.Add(-1))
		wants(t, l, "after a confirm of what was published before it", false)
		l.confirmedAfter(late)
		wants(t, l, "after a confirm", true)
	})
	t.Run("a frame that was never published", func(t *testing.T) {
		l, at := proved(t)
		published(l, at).attempts = 0
		l.expire(at.Add(l.timeout), ErrConfirmTimeout)
		wants(t, l, "RabbitMQ was not asked", true)
	})
	t.Run("a frame alone, while younger ones are confirmed", func(t *testing.T) {
		l, at := proved(t)
		published(l, at)
		l.confirmedAfter(at.Add(time.Second))
		l.expire(at.Add(l.timeout), ErrConfirmTimeout)
		wants(t, l, "the others have confirms", true)
	})
	t.Run("refusals of a queue without a limit", func(t *testing.T) {
		l, at := proved(t)
		f := published(l, at)
		l.refused(f, at.Add(election))
		wants(t, l, "within the time of an election", true)
		l.refused(f, at.Add(election+1))
		wants(t, l, "after it", false)
	})
	t.Run("refusals of a queue with a limit", func(t *testing.T) {
		l, at := proved(t)
		l.topology = broker.NewTopology(config.Broker{MaxBytes: 1})
		l.refused(published(l, at.Add(1)), at)
		l.refused(published(l, at.Add(1)), at.Add(election))
		wants(t, l, "it may be full for a moment", true)
		l.refused(published(l, at.Add(1)), at.Add(election+1))
		wants(t, l, "nothing but refusals for longer than an election", false)
		l.confirmedAfter(at.Add(election + 2))
		wants(t, l, "it has room again", true)
	})
	t.Run("a lost connection", func(t *testing.T) {
		l, _ := proved(t)
		another := &lane{link: l.link}
		another.open()
		another.end()
		wants(t, l, "while there is another", true)
		l.probe(time.Now())
		if len(l.sealed) != 1 || !l.sealed[0].probe {
			t.Errorf("%d frames are to be published, want a probe of the other", len(l.sealed))
		}
		l.sealed[0].settle(nil)
		l.end()
		l.open()
		wants(t, l, "after all had gone", false)
		l.confirmedAfter(time.Now())
		wants(t, l, "after a confirm", true)
	})
	t.Run("memory", func(t *testing.T) {
		l, _ := proved(t)
		l.setBlocked(amqp.Blocking{Active: true, Reason: "memory"})
		l.question(doubted, time.Now())
		if l.probe(time.Now()); len(l.sealed) > 0 {
			t.Error("a probe is to be published though RabbitMQ blocks")
		}
	})
}
