package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/broker"
	"millrace/internal/eventtime"
	"millrace/internal/frame"
	"millrace/internal/pg"
	"millrace/internal/retry"
	"millrace/worker/partition"
)

const (
	// maxHold is how long a stream holds frames while the database doesn't answer. It is far below RabbitMQ's consumer timeout of
	// 30 minutes, which would close the channel at any moment.
	maxHold = 10 * time.Minute

	// triesAfterStop is how often storing the last batch is tried again after a stop. The tries take about a second: enough for a
	// deadlock or a new connection, and not for an outage.
	triesAfterStop = 4

	// slowAfter is how long a transaction may take before the database counts as failing. It is a hundred times what a batch takes.
	slowAfter = 5 * time.Second

	// lastBatches is how long a stop waits for the batches under way. It is a hundred times what a batch takes. Batches that take
	// longer are safe in RabbitMQ.
	lastBatches = 10 * time.Second

	// deadPrefetch is the window of the dead queue: rare messages of any size.
	deadPrefetch = 10

	// brokerCloseTimeout is how long the closing of a connection to RabbitMQ may take.
	brokerCloseTimeout = 3 * time.Second

	// cautionBatches is how many batches a cautious session stores before its stream takes full windows again.
	cautionBatches = 20

	// quickDeaths is how many sessions in a row may end with nothing stored before the pauses between them grow. Until then a pause is
	// quickPause: RabbitMQ delivers a message that no reader survives a hundred times, and this gets that over within seconds.
	quickDeaths = 120
	quickPause  = 10 * time.Millisecond
)

var errCautionOver = errors.New("enough was stored one frame at a time")

var errHeldTooLong = errors.New("the database has not answered for too long")

// stream moves frames from some queues into the database, by a channel for each queue and one database connection.
type stream struct {
	name   string
	config Config
	decode func(d *amqp.Delivery, queue string, now time.Time) item
	queues []string

	maxWindow int // most frames of a queue that it holds

	topology broker.Topology
	link     pg.Link
	parts    *partition.Set
	rule     *eventtime.Rule
	metrics  *metrics
	load     *load
	postgres *condition
	rabbitmq *condition
	log      *slog.Logger

	home *home // the cell whose queues and database these are; nil where there is one database

	// stuck is a batch that was held for too long. Its frames went back to RabbitMQ. When it can be stored, the database works again;
	// when its frames come back, the ledger knows them.
	stuck *batch

	// cautious is set when a session ended soon after it began to consume, because there may be a message that no reader survives. The
	// next session takes one frame at a time, so that such a message costs no other one a delivery.
	cautious bool
	deaths   int  // sessions in a row that consumed and stored nothing
	stored   int  // batches of the session
	consumed bool // the session got as far as consuming
}

// streamQueues returns the numbers of the queues that stream i of n reads. Each queue has a stream, and each stream has a queue.
func streamQueues(i, n, shards int) []int {
	if n > shards {
		return []int{i % shards}
	}
	var queues []int
	for q := i; q < shards; q += n {
		queues = append(queues, q)
	}
	return queues
}

// run moves frames until ctx is done. Then it stores what it has gathered, unless hard ends before. It returns how many frames it had
// to leave in RabbitMQ. It owns the link.
func (s *stream) run(ctx, hard context.Context) (left int) {
	defer s.link.Drop()
	pause := retry.NewBackoff()
	for ctx.Err() == nil {
		// The consumer opens only when the database answers: frames that can't be stored stay in the queue.
		if err := s.awaitPostgres(ctx); err != nil {
			return 0
		}
		began := time.Now()
		s.stored, s.consumed = 0, false
		var err error
		left, err = s.session(ctx, hard)
		if ctx.Err() != nil {
			return left
		}
		if errors.Is(err, errCautionOver) {
			s.cautious = false
			continue
		}
		if s.stored > 0 {
			s.deaths = 0
		}
		if s.consumed && s.stored < cautionBatches {
			s.cautious = true
			pause.Reset() // RabbitMQ is there, and one of its messages may be the trouble
			s.deaths++
		}
		if errors.Is(err, errHeldTooLong) {
			s.log.Warn("frames went back to RabbitMQ until the database takes them", "stream", s.name, "frames", left)
			continue
		}
		s.rabbitmq.fail(s.name, err)
		if time.Since(began) > time.Minute {
			pause.Reset()
		}
		wait := pause.NextBackOff()
		if s.consumed && s.deaths <= quickDeaths {
			wait = quickPause
		}
		if retry.Sleep(ctx, wait) != nil {
			return 0
		}
	}
	return left
}

// awaitPostgres waits until the database answers. If there is a stuck batch, it waits until that is stored. The error is ctx's.
func (s *stream) awaitPostgres(ctx context.Context) error {
	for wait := retry.NewBackoff(); ; {
		err := s.ping(ctx)
		if err == nil && s.stuck != nil {
			began := time.Now()
			var out outcome
			if out, err = s.try(ctx, s.stuck); err == nil {
				s.count(s.stuck, out, time.Since(began))
				s.stuck = nil
			} else {
				s.link.Rollback(ctx)
				s.parts.MarkStale()
			}
		}
		if err == nil {
			s.postgres.hold(s.name)
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.postgres.fail(s.name, err)
		if err := retry.Sleep(ctx, wait.NextBackOff()); err != nil {
			return err
		}
	}
}

// ping returns an error unless the schema is there and may be written to.
func (s *stream) ping(ctx context.Context) error {
	conn, err := s.link.Open(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, pg.ConnectTimeout)
	defer cancel()
	var readOnly string
	err = conn.QueryRow(ctx, "SELECT current_setting('transaction_read_only') FROM (SELECT count(*) FROM (SELECT FROM ledger LIMIT 0) AS l) AS c").Scan(&readOnly)
	if err == nil && readOnly == "on" {
		err = errors.New("the database is read only")
	}
	if err != nil {
		s.link.Drop() // the next connection may lead to another server
	}
	return err
}

// session opens one connection to RabbitMQ and stores frames until that ends. It returns why it ended, and how many frames of the last
// batch went back to RabbitMQ unstored.
func (s *stream) session(ctx, hard context.Context) (left int, err error) {
	gate := newGate(2 * s.budget())
	conn, err := broker.DialThrough(ctx, s.config.URLs, "millrace worker "+s.name, gate.through)
	if err != nil {
		return 0, err
	}
	closed := conn.NotifyClose(make(chan *amqp.Error, 1))
	var watching sync.WaitGroup
	watching.Go(func() { s.watchBlocked(conn.NotifyBlocked(make(chan amqp.Blocking, 1))) })
	defer func() {
		// Unacknowledged frames go back, even if the connection can't be closed properly.
		gate.force()
		conn.End(brokerCloseTimeout)
		watching.Wait()
		if reason := <-closed; reason != nil {
			err = reason
		}
	}()
	if err := s.topology.Ensure(conn.Connection); err != nil {
		return 0, err
	}
	// lost ends when frames can no longer be acknowledged.
	lost, lose := context.WithCancelCause(hard)
	var receivers sync.WaitGroup
	defer receivers.Wait()
	defer lose(nil)
	items := make(chan item)
	consumers := make([]*consumer, len(s.queues))
	for i, queue := range s.queues {
		c := &consumer{queue: queue, source: i, decode: s.decode, open: conn.Channel, gate: gate, idleAfter: s.config.idleAfter, window: s.window()}
		deliveries, err := c.start()
		if err != nil {
			return 0, err
		}
		consumers[i] = c
		receivers.Go(func() {
			c.receive(lost, deliveries, items, watching.Go)
			if ctx.Err() == nil { // after a stop we have ended the consumer ourselves, and the last batch must still be stored
				lose(fmt.Errorf("RabbitMQ ended the consumer of %s", queue))
			}
		})
	}
	s.consumed = true
	s.rabbitmq.hold(s.name)
	// A stop leaves the frames that are still in the queues to other workers.
	watching.Go(func() {
		select {
		case <-ctx.Done():
			gate.force()
			for _, c := range consumers {
				c.stop()
			}
		case <-lost.Done():
		}
	})

	batches := make(chan *batch)
	g := batcher{
		rows: s.config.BatchRows, bytes: int(s.config.BatchBytes), linger: s.config.BatchLinger,
		window:  func(source int) int { return int(consumers[source].size.Load()) },
		sources: len(s.queues), items: items, batches: batches, stop: ctx.Done(), abandon: lost.Done(),
	}
	var gathering sync.WaitGroup
	gathering.Go(g.run)
	defer gathering.Wait()
	defer lose(nil)
	for b := range batches {
		if err := s.save(ctx, hard, lost, b); err != nil {
			return b.total(), err
		}
		g.finished.Add(1) // see batcher.finished
		for i, c := range consumers {
			if b.frames[i] == 0 {
				continue
			}
			if err := c.ack(b.frames[i], b.tags[i]); err != nil {
				return 0, fmt.Errorf("acknowledge: %w", err)
			}
		}
		b.release()
		gate.release(b.deliveryBytes)
		if s.stored++; s.cautious && s.stored >= cautionBatches {
			return 0, errCautionOver
		}
	}
	return 0, context.Cause(lost)
}

// window returns the window of each of the stream's queues at the start of a session.
func (s *stream) window() window {
	if s.cautious {
		return window{budget: 1, maxSize: 1, size: 1}
	}
	return newWindow(s.budget()/len(s.queues), s.maxWindow)
}

// budget returns how many bytes of frames the stream should hold: those of a batch that commits and of one that is gathered. It may
// hold twice that, and one frame more.
func (s *stream) budget() int { return 2 * int(s.config.BatchBytes) }

// watchBlocked counts this connection among the blocked ones while RabbitMQ blocks it.
func (s *stream) watchBlocked(blockings <-chan amqp.Blocking) {
	var blocked bool
	for b := range blockings {
		if b.Active != blocked {
			blocked = b.Active
			s.metrics.blocked.Add(map[bool]float64{true: 1, false: -1}[blocked])
		}
	}
	if blocked {
		s.metrics.blocked.Dec()
	}
}

// save tries to store a batch until that succeeds. It gives up if the batch can no longer be acknowledged, if the database has not
// taken it for maxHold, or after a few tries if it is told to stop. The frames are safe in RabbitMQ then.
func (s *stream) save(ctx, hard, lost context.Context, b *batch) error {
	received := time.Now()
	wait := retry.NewBackoff()
	partitionTries, lastTries := 0, 0
	for {
		began := time.Now()
		out, err := s.try(hard, b)
		if err == nil {
			s.postgres.hold(s.name)
			s.count(b, out, time.Since(began))
			return nil
		}
		s.link.Rollback(hard)
		s.parts.MarkStale()
		s.metrics.retries.WithLabelValues(retryLabel(err)).Inc()
		if classify(err) == noPartition && partitionTries < 3 {
			partitionTries++
			continue
		}
		s.postgres.fail(s.name, err)
		switch {
		case hard.Err() != nil:
			return err
		case ctx.Err() != nil:
			if lastTries++; lastTries > triesAfterStop {
				return err
			}
		case time.Since(received) > s.config.maxHold:
			s.stuck = b
			return errHeldTooLong
		}
		select {
		case <-time.After(wait.NextBackOff()):
		case <-lost.Done():
			return context.Cause(lost)
		}
	}
}

// try tries once to store a batch. If that takes long, the database counts as failing meanwhile: a commit may wait for a standby without
// end.
func (s *stream) try(ctx context.Context, b *batch) (outcome, error) {
	reported := make(chan struct{})
	slow := time.AfterFunc(s.config.slowAfter, func() {
		s.postgres.fail(s.name, fmt.Errorf("a transaction has not ended within %v", s.config.slowAfter))
		close(reported)
	})
	defer func() {
		if !slow.Stop() {
			<-reported // the caller reports how it ended, and that must come later
		}
	}()
	if err := s.home.check(b.segments); err != nil {
		return outcome{}, err
	}
	conn, err := s.link.Open(ctx)
	if err != nil {
		return outcome{}, err
	}
	out, err := store(ctx, conn, s.parts, s.rule, b.segments, b.dead, nil)
	if pg.CodeOf(err) == pg.ReadOnlyTransaction {
		s.link.Drop() // a session stays read only after the server's default has changed
	}
	return out, err
}

// count counts a batch that was stored.
func (s *stream) count(b *batch, out outcome, took time.Duration) {
	m := s.metrics
	m.rowsStored.Add(float64(out.rows))
	m.rowsDuplicate.Add(float64(out.duplicates))
	m.batchRows.Observe(float64(b.rows))
	m.commitSeconds.Observe(took.Seconds())
	s.load.busy.Add(int64(took))
	m.redelivered.Add(float64(b.redelivered))
	now := time.Now()
	for _, segment := range out.stored {
		at := frame.Time(segment.Base)
		m.lagSeconds.Observe(max(now.Sub(at), 0).Seconds())
		s.parts.Touch(at)
	}
	for result, n := range out.times.results {
		m.eventTimes.WithLabelValues(eventtime.Result(result).String()).Add(float64(n))
	}
	m.eventDelays.add(&out.times.delays)
	for reason, n := range out.dead {
		m.deadLetters.WithLabelValues(reason).Add(float64(n))
		s.log.Warn("dead letters written: see millrace dead list", "reason", reason, "letters", n, "stream", s.name)
	}
}
