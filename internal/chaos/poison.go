package chaos

import (
	"context"
	"fmt"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/broker"
	"millrace/internal/config"
	"millrace/internal/frame"
)

// poison publishes what no API would let through straight to the exchange, so that dead letters have to be written,
// and notes what they must be.
type poison struct {
	*maker
	urls     config.BrokerURLs
	topology broker.Topology
	exchange *sync.RWMutex // see system
	every    time.Duration
	report   func(mismatch, string, ...any)

	sent []*sent        // by number; each was confirmed
	dead map[string]int // payloads of the letters to come, with the form
}

// run publishes until ctx is done. A message that was begun is published until it is confirmed, or giveUp is done.
func (p *poison) run(ctx, giveUp context.Context) {
	p.dead = make(map[string]int)
	tick := time.NewTicker(p.every)
	defer tick.Stop()
	var conn *broker.Connection
	var ch *amqp.Channel
	var confirms chan amqp.Confirmation
	var returns chan amqp.Return
	drop := func() {
		if conn != nil {
			conn.End(time.Second)
		}
		conn = nil
	}
	defer drop()
	publish := func(m amqp.Publishing) error {
		p.exchange.RLock()
		defer p.exchange.RUnlock()
		if conn == nil {
			c, err := broker.Dial(giveUp, p.urls, "chaos poison")
			if err != nil {
				return err
			}
			conn = c
			if ch, err = conn.Channel(); err != nil {
				return err
			}
			if err := ch.Confirm(false); err != nil {
				return err
			}
			confirms = ch.NotifyPublish(make(chan amqp.Confirmation, 1))
			returns = ch.NotifyReturn(make(chan amqp.Return, 1))
		}
		if err := ch.Publish(p.topology.Exchange(), p.topology.Queue(0), true, false, m); err != nil {
			return err
		}
		select {
		case c, ok := <-confirms:
			if !ok || !c.Ack {
				return fmt.Errorf("not confirmed")
			}
		case <-time.After(10 * time.Second):
			return fmt.Errorf("not confirmed in time")
		}
		select {
		case <-returns:
			return fmt.Errorf("returned")
		default:
			return nil
		}
	}
	for number := 0; ; number++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		m, r := p.message(number)
		for {
			err := publish(m)
			if err == nil {
				break
			}
			drop()
			select {
			case <-time.After(200 * time.Millisecond):
			case <-giveUp.Done():
				p.report(neverAcked, "poisoned message %d: %v", number, err)
				return
			}
		}
		r.acked = true
		p.sent = append(p.sent, r)
	}
}

// message returns a message and what is known about it, and notes what it will leave among the dead letters.
func (p *poison) message(number int) (amqp.Publishing, *sent) {
	s := p.shape(poisoner, number)
	r := &sent{key: frame.NewBase(), keyed: true}
	r.base = frame.BaseOfKey(r.key)
	m := amqp.Publishing{DeliveryMode: amqp.Persistent, MessageId: r.key.String()}
	for i := range s.records {
		record := p.appendRecord(nil, poisoner, number, i, i == s.bad)
		if i == s.bad {
			p.dead[string(record)]++
		}
		m.Body = append(append(m.Body, record...), '\n')
	}
	switch s.form {
	case typedFrame:
		m.Type, m.ContentType = frame.Type, frame.ContentType
		m.Headers = frame.Headers([]frame.Segment{{Base: r.base, Records: s.records}})
	case garbage:
		m.Body = fmt.Appendf(nil, "garbage %d", number)
	case brokenFrame:
		m.Type = frame.Type
		m.Headers = frame.Headers([]frame.Segment{{Base: r.base, Records: 7}})
		m.Body = fmt.Appendf(nil, "{\"broken\": %d}\n", number)
	case unknownType:
		m.Type = "millrace.frame.v9"
		m.Body = fmt.Appendf(nil, "{\"unknown\": %d}\n", number)
	}
	if s.records == 0 {
		p.dead[string(m.Body)]++
	}
	return m, r
}

// find returns a poisoned message, or nil.
func (p *poison) find(number int) *sent {
	if number < 0 || number >= len(p.sent) {
		return nil
	}
	return p.sent[number]
}
