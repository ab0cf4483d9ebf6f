package chaos

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/frame"
)

// latecomer is the client number of records that come weeks after their time.
const latecomer = poisoner + 1

// lateFrom is how old the records of the first strike are; each further strike's are a day older, so that each has a
// partition of its own. No client's clock goes back so far.
const lateFrom = 20 * 24 * time.Hour

// late publishes frames of records of a day long past, before and while that day's partition is being detached. PostgreSQL
// can't end the detaching before every older transaction has ended, and takes no row for the partition meanwhile.
type late struct {
	*maker
	binary string // of millrace, for its command dead replay

	mu   sync.Mutex
	sent []*sent // by number; each was confirmed
}

// find returns a late request, or nil.
func (c *late) find(number int) *sent {
	c.mu.Lock()
	defer c.mu.Unlock()
	if number < 0 || number >= len(c.sent) {
		return nil
	}
	return c.sent[number]
}

// publish publishes the next frame, with the time at, to the first queue, and returns it once it is confirmed.
func (c *late) publish(ctx context.Context, s *system, at time.Time) (*sent, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	number := len(c.sent)
	q := &sent{base: keyAt(at), keyed: true}
	shape := c.shape(latecomer, number)
	var body []byte
	for i := range shape.records {
		body = append(c.appendRecord(body, latecomer, number, i, false), '\n')
	}
	err := again(ctx, func() error {
		return s.onChannel(ctx, func(ch *amqp.Channel) error {
			if err := ch.Confirm(false); err != nil {
				return err
			}
			confirm, err := ch.PublishWithDeferredConfirm("", s.topology.Queue(0), true, false, amqp.Publishing{
				DeliveryMode: amqp.Persistent, Type: frame.Type, ContentType: frame.ContentType, MessageId: q.base.String(),
				Headers: frame.Headers([]frame.Segment{{Base: q.base, Records: shape.records}}), Body: body,
			})
			if err != nil {
				return err
			}
			if acked, err := confirm.WaitContext(ctx); err != nil || !acked {
				return errors.Join(err, errors.New("a late frame was not confirmed"))
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	q.acked = true
	c.sent = append(c.sent, q)
	return q, nil
}

// strike publishes late records beside a slow export. What the clients send meanwhile must be stored as ever. In the end the
// partition is attached again, and what was set aside is replayed. That must be stored too.
func (c *late) strike(ctx context.Context, s *system, l *load, hold time.Duration) error {
	broken, cancel := context.WithTimeout(ctx, healTimeout)
	defer cancel()
	at := time.Now().Add(-lateFrom - time.Duration(len(c.sent)/2)*24*time.Hour)
	first, err := c.publish(broken, s, at)
	if err != nil {
		return err
	}
	if !s.allStored(broken, []uuid.UUID{first.base}) {
		return errors.New("the first of the late records was not stored")
	}
	export, err := s.connect(broken)
	if err != nil {
		return err
	}
	defer export.Close(context.WithoutCancel(ctx)) // which ends the transaction
	if _, err := export.Exec(broken, "BEGIN ISOLATION LEVEL REPEATABLE READ; DECLARE slow CURSOR FOR SELECT * FROM logs ORDER BY inserted_at, id; FETCH 1 FROM slow"); err != nil {
		return err
	}
	name, bounds, err := s.partitionOf(broken, first.base)
	if err != nil {
		return err
	}
	detached := make(chan error, 1)
	go func() {
		detached <- s.sql(broken, "ALTER TABLE logs DETACH PARTITION "+pgx.Identifier{name}.Sanitize()+" CONCURRENTLY")
	}()
	if err := s.awaitTrue(broken, "SELECT bool_or(inhdetachpending) FROM pg_inherits WHERE inhparent = 'logs'::regclass"); err != nil {
		return err
	}
	second, err := c.publish(broken, s, at.Add(time.Second))
	if err != nil {
		return err
	}
	pause(ctx, hold)
	if newest := l.newest(); ctx.Err() == nil && !s.allStored(broken, newest) && ctx.Err() == nil {
		l.report(stuck, "what is new is not stored beside a late record whose partition is being detached")
	}

	ctx, heal := healing(ctx)
	defer heal()
	if err := export.Close(ctx); err != nil {
		return err
	}
	if err := <-detached; err != nil {
		err = again(ctx, func() error {
			return s.sql(ctx, "ALTER TABLE logs DETACH PARTITION "+pgx.Identifier{name}.Sanitize()+" FINALIZE")
		})
		if err != nil {
			return err
		}
	}
	if err := s.attachAgain(ctx, name, bounds); err != nil {
		return err
	}
	return c.replay(ctx, s, second)
}

// partitionOf returns the partition of logs that holds a record, and its bounds as SQL.
func (s *system) partitionOf(ctx context.Context, id uuid.UUID) (name, bounds string, err error) {
	conn, err := s.connect(ctx)
	if err != nil {
		return "", "", err
	}
	defer conn.Close(ctx) // nothing to lose
	err = conn.QueryRow(ctx, `SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) FROM logs l JOIN pg_class c ON c.oid = l.tableoid
		WHERE l.id = $1 AND l.inserted_at = $2 LIMIT 1`, [16]byte(id), frame.Time(id)).Scan(&name, &bounds)
	return name, bounds, err
}

// awaitTrue waits until a query of one boolean returns true.
func (s *system) awaitTrue(ctx context.Context, query string) error {
	for {
		var holds *bool
		conn, err := s.connect(ctx)
		if err == nil {
			err = conn.QueryRow(ctx, query).Scan(&holds)
			_ = conn.Close(ctx) // nothing to lose
		}
		switch {
		case err == nil && holds != nil && *holds:
			return nil
		case ctx.Err() != nil:
			return errors.Join(fmt.Errorf("never true: %s", query), err)
		}
		pause(ctx, 20*time.Millisecond)
	}
}

// attachAgain makes a detached table a partition again. If a worker has made another partition in its place, it moves the rows there.
func (s *system) attachAgain(ctx context.Context, name, bounds string) error {
	table := pgx.Identifier{name}.Sanitize()
	return again(ctx, func() error {
		err := s.sql(ctx, "ALTER TABLE logs ATTACH PARTITION "+table+" "+bounds)
		if err == nil || !strings.Contains(err.Error(), "would overlap") {
			return err
		}
		return s.sql(ctx, "BEGIN; INSERT INTO logs SELECT * FROM "+table+"; DROP TABLE "+table+"; COMMIT")
	})
}

// replay replays the dead letters of late requests until the records of one request are stored.
func (c *late) replay(ctx context.Context, s *system, q *sent) error {
	for {
		conn, err := s.connect(ctx)
		var letters []string
		if err == nil {
			rows, _ := conn.Query(ctx, `SELECT id::text FROM dead_letters WHERE record_id IS NOT NULL AND convert_from(payload, 'UTF8') LIKE $1
				OR record_id IS NULL AND payload LIKE convert_to($1, 'UTF8')`, fmt.Sprintf(`{"c": %d,%%`, latecomer))
			letters, err = pgx.CollectRows(rows, pgx.RowTo[string])
			_ = conn.Close(ctx) // nothing to lose
		}
		if err == nil && len(letters) > 0 {
			var out string
			if out, err = s.millrace(ctx, c.binary, append([]string{"dead", "replay"}, letters...)...); err != nil {
				err = fmt.Errorf("dead replay: %w: %s", err, out)
			}
		}
		stored, cancel := context.WithTimeout(ctx, time.Second)
		if s.allStored(stored, []uuid.UUID{q.base}) {
			cancel()
			return nil
		}
		cancel()
		if ctx.Err() != nil {
			return errors.Join(errors.New("late records are not stored after their partition is back"), err)
		}
	}
}
