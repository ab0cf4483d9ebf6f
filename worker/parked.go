package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/broker"
	"millrace/internal/config"
	"millrace/internal/pg"
	"millrace/internal/retry"
	"millrace/worker/partition"
)

const (
	// parkedInterval is how often the messages that are parked are counted.
	parkedInterval = 15 * time.Second

	// streamSettles is how long the stream is read before the first look at the parked queue, which may cost the connection.
	streamSettles = time.Second

	// parkedIdle is how long a pass over the parked queue waits for the next message, and how long the first message of the stream
	// is waited for.
	parkedIdle = 2 * time.Second

	// parkedDeaths is how many connections may be lost over a message before it is left alone. Before that, a hundred and twenty
	// readers have not survived it.
	parkedDeaths = 5

	// parkedBatch is how many messages are stored in one transaction. parkedWindow is how many messages of the parked queue are held at
	// once, most of which go back. A message may have any size.
	parkedBatch  = 10
	parkedWindow = 50

	// renewAfter is how long a worker waits before it replaces the parked queue of an earlier version. By then a rolling upgrade should
	// be over: an API of that version refuses the new queue when it connects.
	renewAfter = 10 * time.Minute

	// parkedLock is held by the worker that replaces the parked queue, "mrparked" in ASCII.
	parkedLock = 0x6d727061726b6564
)

// errAnew ends a session because another one must begin. It is no failure.
var errAnew = errors.New("to be begun anew")

// parkedReader stores what RabbitMQ has set aside twice: messages that expired or overflowed in the dead queue while no worker read it.
// They are in the parked queue. If they expired or overflowed there too, they are in the stream behind it. A message that no reader
// survives stays where it is, and is counted.
//
// Every worker has a parkedReader. The database has the place up to which the stream was read. Whoever moves that place on stores the
// messages.
type parkedReader struct {
	urls     config.BrokerURLs
	topology broker.Topology
	link     pg.Link
	parts    *partition.Set
	metrics  *metrics
	broker   *condition
	gauge    prometheus.Gauge
	log      *slog.Logger
	renewAt  time.Time // see renewAfter

	// Of the parked queue: how many messages the last pass left there, and how many passes in a row have cost the connection while
	// there were deathsAt messages.
	left, deaths, deathsAt int

	// Of the stream: how many connections in a row were lost over the message at the offset streamDeathsAt.
	streamDeaths   int
	streamDeathsAt int64
}

// place is how far the stream was read.
type place struct {
	first   uuid.NullUUID // digest of the stream's first message; not valid if that was not read
	next    int64         // offset of the next message to read
	skipped int64         // messages that were stepped over, because no reader survives them
}

// run reads until ctx is done. It owns the link.
func (r *parkedReader) run(ctx context.Context) {
	defer r.link.Drop()
	wait := retry.NewBackoff()
	for ctx.Err() == nil {
		began := time.Now()
		err := r.session(ctx)
		if ctx.Err() != nil {
			return
		}
		r.link.Rollback(ctx)
		r.parts.MarkStale()
		if !errors.Is(err, errAnew) {
			r.broker.fail("parked", err)
		}
		if time.Since(began) > time.Minute {
			wait.Reset()
		}
		if retry.Sleep(ctx, wait.NextBackOff()) != nil {
			return
		}
	}
}

// session opens one connection to RabbitMQ and reads until the connection or the database fails.
func (r *parkedReader) session(ctx context.Context) error {
	conn, err := broker.Dial(ctx, r.urls, "millrace worker parked")
	if err != nil {
		return err
	}
	defer conn.End(brokerCloseTimeout)
	stop := context.AfterFunc(ctx, func() { conn.End(brokerCloseTimeout) })
	defer stop()
	if err := r.topology.Ensure(conn.Connection); err != nil {
		return err
	}
	old, err := r.renew(ctx, conn)
	if err != nil {
		return err
	}
	at, err := r.place(ctx)
	if err != nil {
		return err
	}
	from, err := r.sameStream(ctx, conn, at)
	if err != nil {
		return err
	}
	ch, deliveries, there, err := r.consumeStream(conn, from)
	if err != nil {
		return err
	}
	closed := conn.NotifyClose(make(chan *amqp.Error, 1))
	r.broker.hold("parked")
	received, heard, lagged := false, false, false // heard: received since the last look; lagged: there was a lag at that look
	look := time.NewTimer(streamSettles)
	defer look.Stop()
	for {
		select {
		case d, ok := <-deliveries:
			if !ok {
				if there && from == at.next && !received {
					return errors.Join(r.countDeath(ctx, at.next), closeReason(closed))
				}
				return errors.Join(fmt.Errorf("RabbitMQ ended the consumer of %s", r.topology.LastStream()), closeReason(closed))
			}
			received, heard, r.streamDeaths = true, true, 0
			batch := batchFrom(d, deliveries)
			if at, err = r.storeStream(ctx, at, batch); err != nil {
				return err
			}
			if err := ch.Ack(batch[len(batch)-1].DeliveryTag, true); err != nil {
				return err
			}
		case <-look.C:
			// RabbitMQ may have forgotten the consumer, or its queue: see consumer.
			lags, err := r.lags(ch, at.next)
			if err != nil {
				return err
			}
			if lags && lagged && !heard {
				return fmt.Errorf("RabbitMQ delivers nothing from %s, and gave no notice", r.topology.LastStream())
			}
			lagged, heard = lags, false
			if err := r.lookAtParked(ctx, conn, old, at.skipped); err != nil {
				return err
			}
			look.Reset(parkedInterval)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// closeReason returns why the connection has ended, or nil if it has not.
func closeReason(closed <-chan *amqp.Error) error {
	select {
	case reason := <-closed:
		if reason != nil {
			return reason
		}
	case <-time.After(time.Second): // only the channel has ended
	}
	return nil
}

// batchFrom returns a delivery and those that have already come after it, at most parkedBatch together.
func batchFrom(d amqp.Delivery, deliveries <-chan amqp.Delivery) []amqp.Delivery {
	batch := []amqp.Delivery{d}
	for len(batch) < parkedBatch {
		select {
		case d, ok := <-deliveries:
			if !ok {
				return batch
			}
			batch = append(batch, d)
		default:
			return batch
		}
	}
	return batch
}

// renew replaces the parked queue of an earlier version, which has no stream behind it, once it is empty and renewAt has come. It
// reports whether the old queue is still there. Only one worker at a time may replace the queue.
func (r *parkedReader) renew(ctx context.Context, conn *broker.Connection) (old bool, err error) {
	if time.Now().Before(r.renewAt) {
		return r.topology.ParkedIsOld(conn.Connection)
	}
	db, err := r.link.Open(ctx)
	if err != nil {
		return false, err
	}
	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", parkedLock); err != nil {
			return err
		}
		old, err = r.topology.RenewParked(conn.Connection)
		return err
	})
	if old {
		r.log.Warn("the parked queue is that of an earlier version and not empty: messages that expire in it are lost. "+
			"Take out what you need, then purge it, and it is made anew", "queue", r.topology.ParkedQueue())
	}
	return old, err
}

// place returns how far the workers have read the stream.
func (r *parkedReader) place(ctx context.Context) (at place, err error) {
	db, err := r.link.Open(ctx)
	if err != nil {
		return at, err
	}
	if _, err := db.Exec(ctx, "INSERT INTO last_stream (name) VALUES ($1) ON CONFLICT DO NOTHING", r.topology.LastStream()); err != nil {
		return at, fmt.Errorf("place in the stream: %w", err)
	}
	err = db.QueryRow(ctx, "SELECT first, next, skipped FROM last_stream WHERE name = $1", r.topology.LastStream()).Scan(&at.first, &at.next, &at.skipped)
	if err != nil {
		return at, fmt.Errorf("place in the stream: %w", err)
	}
	return at, nil
}

// sameStream finds out whether somebody has deleted the stream and it was made anew. It returns the offset to read from, which is the
// start for a new stream.
func (r *parkedReader) sameStream(ctx context.Context, conn *broker.Connection, at place) (from int64, err error) {
	if at.next == 0 || !at.first.Valid {
		return at.next, nil
	}
	ch, deliveries, _, err := r.consumeStream(conn, 0)
	if err != nil {
		return 0, err
	}
	select {
	case d, ok := <-deliveries:
		if ok && offsetOf(&d) == 0 && digest(&d) != at.first.UUID {
			return 0, errors.Join(r.restart(ctx, at), ch.Close())
		}
	case <-time.After(parkedIdle):
		// It is empty, so it is a new one. Whoever read from at.next would miss its first messages.
		return 0, ch.Close()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	return at.next, ch.Close()
}

// restart notes that the stream must be read from its start, and returns errAnew.
func (r *parkedReader) restart(ctx context.Context, at place) error {
	db, err := r.link.Open(ctx)
	if err != nil {
		return err
	}
	if _, err := db.Exec(ctx, "UPDATE last_stream SET first = NULL, next = 0, skipped = 0 WHERE name = $1 AND next = $2",
		r.topology.LastStream(), at.next); err != nil {
		return err
	}
	return errAnew
}

// consumeStream starts a consumer of the stream at an offset, and returns its channel and deliveries. It reports whether there is a
// message at that offset.
func (r *parkedReader) consumeStream(conn *broker.Connection, from int64) (_ *amqp.Channel, _ <-chan amqp.Delivery, there bool, err error) {
	ch, err := conn.Channel()
	if err != nil {
		return nil, nil, false, err
	}
	if there, err = r.lags(ch, from); err != nil {
		return nil, nil, false, err
	}
	if err := ch.Qos(parkedBatch, 0, false); err != nil {
		return nil, nil, false, err
	}
	deliveries, err := ch.Consume(r.topology.LastStream(), "", false, false, false, false, amqp.Table{"x-stream-offset": from})
	if err != nil {
		return nil, nil, false, fmt.Errorf("consume %s: %w", r.topology.LastStream(), err)
	}
	return ch, deliveries, there, nil
}

// lags reports whether the stream has messages from an offset on.
func (r *parkedReader) lags(ch *amqp.Channel, from int64) (bool, error) {
	q, err := ch.QueueDeclarePassive(r.topology.LastStream(), true, false, false, false, nil)
	return int64(q.Messages) > from, err
}

// countDeath counts a connection that was lost before the message at an offset of the stream had come. After parkedDeaths of them in a
// row it steps over that message.
func (r *parkedReader) countDeath(ctx context.Context, offset int64) error {
	if r.streamDeathsAt != offset {
		r.streamDeaths, r.streamDeathsAt = 0, offset
	}
	if r.streamDeaths++; r.streamDeaths < parkedDeaths {
		return nil
	}
	db, err := r.link.Open(ctx)
	if err != nil {
		return err
	}
	tag, err := db.Exec(ctx, "UPDATE last_stream SET next = next + 1, skipped = skipped + 1 WHERE name = $1 AND next = $2",
		r.topology.LastStream(), offset)
	if err != nil || tag.RowsAffected() == 0 { // another worker has got over it
		return err
	}
	r.log.Warn("a message that no reader survives was stepped over", "stream", r.topology.LastStream(), "offset", offset)
	return nil
}

// offsetOf returns the offset of a message in the stream, or -1 if the message has none.
func offsetOf(d *amqp.Delivery) int64 {
	n, ok := d.Headers["x-stream-offset"].(int64)
	if !ok {
		return -1
	}
	return n
}

// digest returns an id that is made of all that a message has, so that different messages have different ones.
func digest(d *amqp.Delivery) uuid.UUID {
	from := originOf(d, "")
	delete(from.headers, "x-stream-offset")
	properties, err := from.properties()
	if err != nil { // it never is: jsonValue has made the properties something that JSON can hold
		properties = nil
	}
	return uuid.NewSHA1(uuid.NameSpaceOID, append(properties, d.Body...))
}

// storeStream stores messages of the stream as dead letters, and returns the place behind them. One transaction stores both.
func (r *parkedReader) storeStream(ctx context.Context, at place, batch []amqp.Delivery) (place, error) {
	behind := at
	var letters []DeadLetter
	for i := range batch {
		d := &batch[i]
		offset := offsetOf(d)
		if offset < behind.next {
			return at, errAnew // it is a new stream: sameStream will see that
		}
		if offset == 0 {
			behind.first = uuid.NullUUID{UUID: digest(d), Valid: true}
		}
		behind.next = offset + 1
		letters = append(letters, r.letter(d))
	}
	err := r.store(ctx, letters, func(db *pgx.Conn) error {
		tag, err := db.Exec(ctx, "UPDATE last_stream SET first = $3, next = $4 WHERE name = $1 AND next = $2",
			r.topology.LastStream(), at.next, behind.first, behind.next)
		if err == nil && tag.RowsAffected() == 0 {
			err = errAnew // another worker has stored them, and the place must be read again
		}
		return err
	})
	return behind, err
}

// letter returns the dead letter of a message of the stream or of the parked queue.
func (r *parkedReader) letter(d *amqp.Delivery) DeadLetter {
	delete(d.Headers, "x-stream-offset")
	return decodeDead(d, r.topology.ParkedQueue(), time.Now()).dead[0]
}

// store stores dead letters in one transaction, in which final runs last if it is not nil.
func (r *parkedReader) store(ctx context.Context, letters []DeadLetter, final func(*pgx.Conn) error) error {
	db, err := r.link.Open(ctx)
	if err != nil {
		return err
	}
	out, err := store(ctx, db, r.parts, nil, nil, letters, func(outcome) error {
		if final == nil {
			return nil
		}
		return final(db)
	})
	if err != nil {
		return err
	}
	for reason, n := range out.dead {
		r.metrics.deadLetters.WithLabelValues(reason).Add(float64(n))
		r.log.Warn("dead letters written: see millrace dead list", "reason", reason, "letters", n, "stream", "parked")
	}
	return nil
}

// lookAtParked counts the parked messages. If their number has changed, it makes a pass over the queue. skipped is the number of the
// stream's messages that were stepped over.
func (r *parkedReader) lookAtParked(ctx context.Context, conn *broker.Connection, old bool, skipped int64) error {
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	name := r.topology.ParkedQueue()
	q, err := ch.QueueDeclarePassive(name, true, false, false, false, nil)
	if err != nil {
		return err
	}
	parked := q.Messages
	switch {
	case old && parked == 0 && time.Now().After(r.renewAt):
		return errAnew // which makes the queue of this version
	case old, parked == 0, parked == r.left, parked == r.deathsAt && r.deaths >= parkedDeaths:
		// An old queue may have a delivery limit, which passes would use up. In the other cases a pass would find nothing new.
	default:
		if parked != r.deathsAt {
			r.deaths, r.deathsAt = 0, parked
		}
		r.deaths++
		if err := r.pass(ctx, ch, parked); err != nil {
			return err
		}
		r.deaths = 0
		if ch, err = conn.Channel(); err != nil {
			return err
		}
		if q, err = ch.QueueDeclarePassive(name, true, false, false, false, nil); err != nil {
			return err
		}
		parked = q.Messages
		r.left = parked
	}
	if r.gauge.Set(float64(parked) + float64(skipped)); parked > 0 {
		r.log.Warn("messages are parked that no reader survives", "queue", name, "messages", parked)
	}
	return ch.Close()
}

// pass reads the parked queue until so many messages have come, or none comes for parkedIdle. It stores the messages that had expired or
// overflowed. It gives the others back by closing the channel.
func (r *parkedReader) pass(ctx context.Context, ch *amqp.Channel, messages int) error {
	if err := ch.Qos(min(messages, parkedWindow), 0, false); err != nil {
		return err
	}
	deliveries, err := ch.Consume(r.topology.ParkedQueue(), "", false, false, false, false, nil)
	if err != nil {
		return err
	}
	for messages > 0 {
		select {
		case d, ok := <-deliveries:
			if !ok {
				return fmt.Errorf("RabbitMQ ended the consumer of %s", r.topology.ParkedQueue())
			}
			batch := batchFrom(d, deliveries)
			messages -= len(batch)
			var letters []DeadLetter
			var stored []amqp.Delivery
			for i := range batch {
				if letter := r.letter(&batch[i]); letter.Reason != reasonDeliveryLimit {
					letters, stored = append(letters, letter), append(stored, batch[i])
				}
			}
			if len(letters) == 0 {
				continue
			}
			if err := r.store(ctx, letters, nil); err != nil {
				return err
			}
			for d := range slices.Values(stored) {
				if err := d.Ack(false); err != nil {
					return err
				}
			}
		case <-time.After(parkedIdle):
			return ch.Close()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return ch.Close()
}
