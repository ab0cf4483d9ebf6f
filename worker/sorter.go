package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/broker"
	"millrace/internal/cells"
	"millrace/internal/config"
	"millrace/internal/frame"
	"millrace/internal/retry"
)

const (
	// sorterPrefetch is how many messages of a queue the sorter holds. It sends them on one after the other.
	sorterPrefetch = 50

	// sorterPause is the pause before a message is sent again that the queue of its cell has refused: it is full.
	sorterPause = 500 * time.Millisecond
)

// sorter sends the messages of the queues without a cell in their names on to the queues of the cells that have their ids: other programs' messages,
// for which those queues are, and what is left of a time before there were cells. It acknowledges a message once RabbitMQ has confirmed it in its
// new place. A message that is sent on twice is stored once, as one that is delivered twice.
type sorter struct {
	urls   config.BrokerURLs
	broker config.Broker
	file   *cells.File
	log    *slog.Logger

	mu   sync.Mutex
	turn int // the cell, and its queue, that a message goes to that may go to any
}

// run sorts until ctx is done.
func (s *sorter) run(ctx context.Context) {
	for wait := retry.NewBackoff(); ctx.Err() == nil; {
		began := time.Now()
		err := s.session(ctx)
		if ctx.Err() != nil {
			return
		}
		s.log.Warn("messages without a cell are not sorted, trying again", "error", err)
		if time.Since(began) > time.Minute {
			wait.Reset()
		}
		if retry.Sleep(ctx, wait.NextBackOff()) != nil {
			return
		}
	}
}

// session opens one connection to RabbitMQ and sorts until that ends. It returns why it ended.
func (s *sorter) session(ctx context.Context) error {
	conn, err := broker.Dial(ctx, s.urls, "millrace worker sorter")
	if err != nil {
		return err
	}
	defer conn.End(brokerCloseTimeout)
	stop := context.AfterFunc(ctx, func() { conn.End(brokerCloseTimeout) })
	defer stop()
	topology := broker.NewTopology(s.broker)
	if err := topology.Ensure(conn.Connection); err != nil {
		return err
	}
	ended := make(chan error, topology.Shards()+1)
	var sorting sync.WaitGroup
	for i := range topology.Shards() {
		sorting.Go(func() {
			ended <- s.sort(ctx, conn, topology.Queue(i), func(t broker.Topology, turn int) string { return t.Queue(turn % t.Shards()) })
		})
	}
	sorting.Go(func() {
		ended <- s.sort(ctx, conn, topology.DeadQueue(), func(t broker.Topology, _ int) string { return t.DeadQueue() })
	})
	err = <-ended
	conn.End(brokerCloseTimeout) // which ends the others
	sorting.Wait()
	return err
}

// sort sends the messages of a queue on until its channel ends, and returns why that ended. target returns the queue of a cell's that a message goes to.
func (s *sorter) sort(ctx context.Context, conn *broker.Connection, queue string, target func(t broker.Topology, turn int) string) error {
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	closed := ch.NotifyClose(make(chan *amqp.Error, 1))
	if err := errors.Join(ch.Confirm(false), ch.Qos(sorterPrefetch, 0, false)); err != nil {
		return err
	}
	confirms := ch.NotifyPublish(make(chan amqp.Confirmation, 1))
	returns := ch.NotifyReturn(make(chan amqp.Return, 1))
	deliveries, err := ch.Consume(queue, "", false, false, false, false, nil)
	if err != nil {
		return err
	}
	for d := range deliveries {
		for _, part := range s.parts(&d, time.Now()) {
			s.mu.Lock()
			s.turn++
			to := target(broker.NewTopology(broker.OfCell(s.broker, part.cell)), s.turn)
			s.mu.Unlock()
			for {
				if err := ch.Publish(broker.DefaultExchange, to, true, false, part.message); err != nil {
					return err
				}
				confirm, ok := <-confirms
				if !ok {
					return fmt.Errorf("the channel of %s ended: %w", queue, reasonOf(closed))
				}
				returned := false
				select {
				case _, returned = <-returns: // it comes before the confirm
				default:
				}
				if confirm.Ack && !returned {
					break
				}
				s.log.Warn("a message waits for the queue of its cell, which is full or not there yet", "cell", part.cell, "queue", to)
				if retry.Sleep(ctx, sorterPause) != nil {
					return ctx.Err()
				}
			}
		}
		if err := d.Ack(false); err != nil {
			return err
		}
	}
	return fmt.Errorf("RabbitMQ ended the consumer of %s: %w", queue, reasonOf(closed))
}

// reasonOf returns why a channel was closed.
func reasonOf(closed <-chan *amqp.Error) error {
	select {
	case err := <-closed:
		if err != nil {
			return err
		}
	case <-time.After(time.Second): // the consumer alone has ended
	}
	return errors.New("no reason given")
}

// part is what goes to one cell.
type part struct {
	cell    string
	message amqp.Publishing
}

// parts returns what goes to which cell of a message: all of it to one, unless it is a frame with ids of several.
func (s *sorter) parts(d *amqp.Delivery, now time.Time) []part {
	m := s.file.Map()
	whole := amqp.Publishing{
		Headers: d.Headers, ContentType: d.ContentType, ContentEncoding: d.ContentEncoding, DeliveryMode: amqp.Persistent, Priority: d.Priority, CorrelationId: d.CorrelationId,
		ReplyTo: d.ReplyTo, MessageId: d.MessageId, Timestamp: d.Timestamp, Type: d.Type, AppId: d.AppId, Body: d.Body,
	}
	frame.Mend(whole.Headers)
	s.mu.Lock()
	taking := m.At(now)
	any := m.Cells()[taking[s.turn%len(taking)]].Name
	s.mu.Unlock()
	if d.Type != frame.Type {
		if base, ok := baseOfMessage(d, now); ok {
			any = m.Cells()[m.Of(base)].Name
		}
		return []part{{any, whole}}
	}
	spans, err := parseFrame(d)
	if err != nil {
		return []part{{any, whole}} // it becomes a dead letter there
	}
	byCell := make(map[int][]frame.Span)
	for _, span := range spans {
		byCell[m.Of(span.Base)] = append(byCell[m.Of(span.Base)], span)
	}
	var all []part
	for _, cell := range slices.Sorted(maps.Keys(byCell)) {
		p := part{m.Cells()[cell].Name, whole}
		if len(byCell) > 1 {
			var segments []frame.Segment
			p.message.Body, p.message.ContentEncoding = nil, ""
			for _, span := range byCell[cell] {
				segments = append(segments, span.Segment)
				p.message.Body = append(p.message.Body, span.Body...)
			}
			p.message.Headers, p.message.MessageId = frame.Headers(segments), segments[0].Base.String()
		}
		all = append(all, p)
	}
	return all
}
