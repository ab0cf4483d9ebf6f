package worker

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/archive"
	"millrace/internal/cells"
	"millrace/internal/eventtime"
	"millrace/internal/frame"
	"millrace/internal/retry"
	"millrace/internal/scan"
	"millrace/worker/partition"
)

// ListDead returns the youngest dead letters without their payloads, at most limit.
func ListDead(ctx context.Context, conn *pgx.Conn, limit int) ([]DeadLetter, error) {
	return queryDead(ctx, conn, "NULL::bytea", "ORDER BY dead_at DESC, id LIMIT $1", limit)
}

// ShowDead returns the dead letter with that id, or an error if there is none.
func ShowDead(ctx context.Context, conn *pgx.Conn, id uuid.UUID) (DeadLetter, error) {
	all, err := queryDead(ctx, conn, "payload", "WHERE id = $1", [16]byte(id))
	if err != nil {
		return DeadLetter{}, err
	}
	if len(all) == 0 {
		return DeadLetter{}, fmt.Errorf("dead letter %s: %w", id, errGone)
	}
	return all[0], nil
}

// DropDead deletes the dead letters with these ids, or all if ids is nil. It returns how many they were.
func DropDead(ctx context.Context, conn *pgx.Conn, ids []uuid.UUID) (int, error) {
	tag, err := conn.Exec(ctx, "DELETE FROM dead_letters WHERE $1::uuid[] IS NULL OR id = ANY($1)", uuidArray(ids))
	if err != nil {
		return 0, fmt.Errorf("drop dead letters: %w", err)
	}
	return int(tag.RowsAffected()), nil
}

// Replayed is what became of a dead letter that was to be replayed. If Err is not nil, the letter is still there, and Err is the reason.
type Replayed struct {
	ID   uuid.UUID
	Rows int // stored now
	Err  error
}

// ReplayDead tries to store the dead letters with these ids, or all if ids is nil. A record is stored under its own id. A message goes
// through the ledger, as if it were delivered now. One transaction stores the rows and removes the letter, so that a letter that is
// replayed twice, even at the same time, is stored once. A letter stays if its records are older than the retention that the keeper
// has noted: they would be dropped at once. The error is about the replay as a whole. Afterwards the connection's session has the
// time zone UTC.
func ReplayDead(ctx context.Context, conn *pgx.Conn, ids []uuid.UUID) ([]Replayed, error) {
	return ReplayDeadWithin(ctx, conn, ids, 0, nil)
}

// ReplayDeadOfCell does what ReplayDeadWithin does, in the database of a cell of a map. Records are stored if their ids lead to that cell.
func ReplayDeadOfCell(ctx context.Context, conn *pgx.Conn, ids []uuid.UUID, retention time.Duration, files archive.Store, m *cells.Map, cell string) ([]Replayed, error) {
	return replayDead(ctx, conn, ids, retention, files, &home{func() *cells.Map { return m }, cell})
}

// ReplayDeadWithin does what ReplayDead does, with a retention that the caller knows of; zero is none. The shorter of that and the noted one counts:
// a letter that stays can be replayed later, but a row that is dropped is gone. files has those of the archive; nil if there is none. While its
// store is away, letters whose records it may have stay. The next one waits some seconds for it, so that one outage does not make all stay.
func ReplayDeadWithin(ctx context.Context, conn *pgx.Conn, ids []uuid.UUID, retention time.Duration, files archive.Store) ([]Replayed, error) {
	return replayDead(ctx, conn, ids, retention, files, nil)
}

// replayDead does what ReplayDeadWithin does, in a cell, or in the only database.
func replayDead(ctx context.Context, conn *pgx.Conn, ids []uuid.UUID, retention time.Duration, files archive.Store, h *home) ([]Replayed, error) {
	if _, err := conn.Exec(ctx, "SET TimeZone = 'UTC'; SET DateStyle = 'ISO'"); err != nil {
		return nil, fmt.Errorf("replay: %w", err)
	}
	if ids == nil {
		rows, err := conn.Query(ctx, "SELECT id FROM dead_letters ORDER BY id")
		if err != nil {
			return nil, fmt.Errorf("replay: %w", err)
		}
		all, err := pgx.CollectRows(rows, pgx.RowTo[[16]byte])
		if err != nil {
			return nil, fmt.Errorf("replay: %w", err)
		}
		for _, id := range all {
			ids = append(ids, id)
		}
	}
	keep, err := knownRetention(ctx, conn, retention, files != nil)
	if err != nil {
		return nil, fmt.Errorf("replay: %w", err)
	}
	rule, err := readRule(ctx, conn)
	if err != nil {
		return nil, fmt.Errorf("replay: %w", err)
	}
	// If there is no partition for a record, one of a day is made, whatever PARTITION_INTERVAL is.
	parts := partition.New(24 * time.Hour)
	parts.Files = files
	// A store that is away comes back by a look alone.
	watched, stop := context.WithCancel(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer stop()
	watching.Go(func() { archive.Watch(watched, files, archive.NewAwayGauge(), slog.New(slog.DiscardHandler)) })
	isLost := false // the store has not come back in time: it is not waited for again until it has been there
	done := make([]Replayed, 0, len(ids))
	for _, id := range ids {
		if archive.Away(files) == nil {
			isLost = false
		} else if !isLost {
			isLost = !awaitStore(ctx, files)
		}
		r := Replayed{ID: id}
		letter, err := ShowDead(ctx, conn, id)
		switch {
		case err != nil:
			r.Err = err
		case letter.RecordID.Valid:
			r.Rows, r.Err = replayRecord(ctx, conn, parts, rule, letter, keep)
		default:
			r.Rows, r.Err = replayMessage(ctx, conn, parts, rule, letter, keep, h)
		}
		done = append(done, r)
		if conn.IsClosed() {
			return done, fmt.Errorf("replay: %w", r.Err)
		}
		if conn.PgConn().TxStatus() != 'I' {
			if _, err := conn.Exec(ctx, "ROLLBACK"); err != nil {
				return done, fmt.Errorf("replay: %w", err)
			}
		}
	}
	return done, nil
}

// awayTime is how long a replay waits for a store that is away: archive.Watch looks each five seconds.
const awayTime = 10 * time.Second

// awaitStore waits until the store is not away any more, for awayTime at most, and reports whether it is there.
func awaitStore(ctx context.Context, files archive.Store) bool {
	for end := time.Now().Add(awayTime); archive.Away(files) != nil; {
		if time.Now().After(end) || retry.Sleep(ctx, 100*time.Millisecond) != nil {
			return false
		}
	}
	return true
}

// keeping is how long rows are kept.
type keeping struct {
	retention time.Duration // zero: for ever
	from      string        // who says so
	now       time.Time
}

// knownRetention returns the shorter of two retentions: the caller's and the one that the keeper has noted. With an archive, rows that are
// dropped are in files, and the retention is the archive's.
func knownRetention(ctx context.Context, conn *pgx.Conn, retention time.Duration, archived bool) (keeping, error) {
	k := keeping{retention: retention, from: "RETENTION here"}
	if archived {
		noted, err := partition.NotedArchiveRetention(ctx, conn)
		if err == nil {
			err = conn.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&k.now)
		}
		k.retention, k.from = noted, "ARCHIVE_RETENTION of the worker"
		return k, err
	}
	noted, _, err := partition.NotedRetention(ctx, conn)
	if err == nil {
		err = conn.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&k.now)
	}
	if noted > 0 && (retention == 0 || noted < retention) {
		k.retention, k.from = noted, "RETENTION of the worker"
	}
	if now := time.Now(); now.After(k.now) {
		k.now = now // the clock that is ahead refuses too much at worst; the other one might lose records
	}
	return k, err
}

// check returns an error if a row with that time would be dropped at once.
func (k keeping) check(at time.Time) error {
	if k.retention == 0 || at.After(k.now.Add(-k.retention)) {
		return nil
	}
	return fmt.Errorf("it is of %s, and %s, %v, drops what is from before %s: store it under another key, or drop this letter",
		at.UTC().Format(time.RFC3339), k.from, k.retention, k.now.Add(-k.retention).UTC().Format(time.RFC3339))
}

// errGone says that the dead letter is not there, perhaps because somebody else has replayed or dropped it.
var errGone = errors.New("there is no such dead letter")

// replayRecord stores a record without asking the ledger: it was entered there with its whole segment.
func replayRecord(ctx context.Context, conn *pgx.Conn, parts *partition.Set, rule *eventtime.Rule, letter DeadLetter, keep keeping) (int, error) {
	id := letter.RecordID.UUID
	var body scan.Body
	if err := body.Single(letter.Payload, scan.Limits{RecordBytes: scan.MaxRecordBytes, PieceBytes: frame.SegmentBytes}); err != nil {
		return 0, err
	}
	if !frame.IsV7(id) {
		return 0, fmt.Errorf("the record's id %s is not a UUIDv7", id)
	}
	at := frame.Time(id)
	if err := keep.check(at); err != nil {
		return 0, err
	}
	if err := parts.EnsureLogs(ctx, conn, at); err != nil {
		return 0, err
	}
	stored := 0
	record := segment{Span: frame.Span{Segment: frame.Segment{Base: id, Records: 1}, Body: letter.Payload}}
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if err := removeDead(ctx, conn, letter.ID); err != nil {
			return err
		}
		known, err := knownRecords(ctx, conn, []segment{record})
		if err != nil {
			return err
		}
		if err := inArchive(ctx, conn, parts.Files, record, known); err != nil {
			return fmt.Errorf("look into the archive: %w", err)
		}
		if equal := known[0].inLogs; equal != nil {
			if !*equal {
				return fmt.Errorf("another record is stored under its id %s: send it again under another key, then drop this letter", id)
			}
			return nil
		}
		stored = 1
		times := newRecordTimes(rule, parts)
		times.begin(at)
		if _, err := tx.Exec(ctx, "INSERT INTO logs (id, inserted_at, time, data) VALUES ($1, $2, $3, $4::text::jsonb)",
			[16]byte(id), at, time.UnixMicro(times.of(letter.Payload)), string(letter.Payload)); err != nil {
			return err
		}
		var b pgx.Batch
		b.Queue(partition.NoteChangesSQL("SELECT date_trunc('hour', $1::timestamptz)"), at)
		times.queue(&b)
		return tx.SendBatch(ctx, &b).Close()
	})
	if err != nil {
		return 0, err
	}
	return stored, nil
}

// replayMessage stores a message as a worker would if the message were delivered to it now.
func replayMessage(ctx context.Context, conn *pgx.Conn, parts *partition.Set, rule *eventtime.Rule, letter DeadLetter, keep keeping, h *home) (int, error) {
	d, err := letter.delivery()
	if err != nil {
		return 0, err
	}
	it := h.decode(d, letter.Queue, time.Now())
	if len(it.dead) > 0 {
		return 0, errors.New(it.dead[0].Error)
	}
	if err := h.check(it.segments); err != nil {
		return 0, err
	}
	for _, s := range it.segments {
		if err := keep.check(frame.Time(s.Base)); err != nil {
			return 0, err
		}
	}
	out, err := store(ctx, conn, parts, rule, it.segments, nil, func(out outcome) error {
		if out.unread != nil {
			return out.unread
		}
		if out.reused > 0 {
			return errors.New("other records are stored under its ids: send them again under another key, then drop this letter")
		}
		return removeDead(ctx, conn, letter.ID)
	})
	return out.rows, err
}

// removeDead deletes a dead letter within the transaction that replays it. If two transactions replay it at the same time, the second
// one waits here and then finds the letter gone.
func removeDead(ctx context.Context, conn *pgx.Conn, id uuid.UUID) error {
	tag, err := conn.Exec(ctx, "DELETE FROM dead_letters WHERE id = $1", [16]byte(id))
	if err != nil {
		return err
	}
	if tag.RowsAffected() == 0 {
		return errGone
	}
	return nil
}

// delivery returns the message that a dead letter was made of.
func (l DeadLetter) delivery() (*amqp.Delivery, error) {
	var p struct {
		Type            string                     `json:"type"`
		ContentType     string                     `json:"content_type"`
		ContentEncoding string                     `json:"content_encoding"`
		MessageID       string                     `json:"message_id"`
		Headers         map[string]json.RawMessage `json:"headers"`
	}
	if err := json.Unmarshal(l.Properties, &p); err != nil {
		return nil, fmt.Errorf("properties: %w", err)
	}
	d := &amqp.Delivery{Type: p.Type, ContentType: p.ContentType, ContentEncoding: p.ContentEncoding, MessageId: p.MessageID, Headers: amqp.Table{}, Body: l.Payload}
	for name, raw := range p.Headers {
		var encoded struct{ Base64 *string }
		if json.Unmarshal(raw, &encoded) != nil || encoded.Base64 == nil {
			continue // only bytes matter to a frame
		}
		value, err := base64.StdEncoding.DecodeString(*encoded.Base64)
		if err != nil {
			return nil, fmt.Errorf("properties: header %s: %w", name, err)
		}
		d.Headers[name] = value
	}
	return d, nil
}

// queryDead returns dead letters. payload is the column's expression, and rest is what follows the table's name in the statement.
func queryDead(ctx context.Context, conn *pgx.Conn, payload, rest string, args ...any) ([]DeadLetter, error) {
	rows, err := conn.Query(ctx, `SELECT id, dead_at, reason, error, record_id, queue, octet_length(payload), properties, `+payload+` FROM dead_letters `+rest, args...)
	if err != nil {
		return nil, fmt.Errorf("dead letters: %w", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l DeadLetter, err error) {
		var properties []byte
		err = row.Scan(&l.ID, &l.DeadAt, &l.Reason, &l.Error, &l.RecordID, &l.Queue, &l.Bytes, &properties, &l.Payload)
		l.Properties = properties
		return l, err
	})
	if err != nil {
		return nil, fmt.Errorf("dead letters: %w", err)
	}
	return all, nil
}

// uuidArray returns ids as pgx takes them. It returns nil, which is NULL, for nil.
func uuidArray(ids []uuid.UUID) [][16]byte {
	if ids == nil {
		return nil
	}
	out := make([][16]byte, len(ids))
	for i, id := range ids {
		out[i] = id
	}
	return out
}
