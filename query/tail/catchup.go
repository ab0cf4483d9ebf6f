package tail

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/internal/frame"
	"millrace/query/language"
)

const (
	// resumeReach is how long after its last event a follower can go on where it was.
	resumeReach = 10 * time.Minute
	// resumeRows is how many rows it is given then. The rows beyond are counted as missed.
	resumeRows = 10_000
	// aheadReach is how far beyond the database's clock a follower that comes back is given rows. Rows carry the API's
	// clock, or the client's in an Idempotency-Key.
	aheadReach = time.Hour
)

// Why nobody can tell what a follower missed. The follower is told the text.
var (
	ErrTooLongAgo    = errors.New("the last event is too long ago to go on from it")
	ErrOtherDatabase = errors.New("the database is another one, or was set back")
)

// CatchUp calls give with the rows that a follower of q missed since a place, from a snapshot of its own. It returns how
// many rows were missed beyond those that it gave. Take leaves out what CatchUp gave.
//
// The error is ErrTooLongAgo or ErrOtherDatabase if nobody can tell what was missed. Else it is give's or the database's.
func (f *Follower) CatchUp(ctx context.Context, q language.Query, from *Place, give func(Row) error) (missed int64, err error) {
	if time.Since(from.at) > resumeReach {
		return 0, ErrTooLongAgo
	}
	c := &catchUp{from: from, match: q.Matcher(), give: give, caught: make(map[uuid.UUID]bool)}
	polls := int64(0)
	err = f.tail.options.Read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; "+byIndexes); err != nil {
			return err
		}
		now, err := takeSnapshot(ctx, tx)
		if err != nil {
			return err
		}
		if now.xmax < from.before.xmax {
			return ErrOtherDatabase
		}
		polls = f.tail.pollsBegun.Load() // after the snapshot: nothing that becomes visible to later polls alone is in it
		return c.run(ctx, newFinder(tx, from.before, now, nil), q)
	})
	if err != nil {
		return 0, err
	}
	f.caught, f.caughtUntil = c.caught, polls
	return max(0, c.found-resumeRows), nil
}

// catchUp is the state of one call of CatchUp.
type catchUp struct {
	from  *Place
	match language.Matcher
	give  func(Row) error

	record      language.Record
	placePrefix string
	found       int64              // rows
	caught      map[uuid.UUID]bool // rows that were given
}

// run gives the rows. The ledger tells which segments were missed: its rows carry the transaction itself, whereas a record
// may carry a subtransaction, which snapshots don't know.
func (c *catchUp) run(ctx context.Context, find *finder, q language.Query) error {
	c.placePrefix = placePrefix(c.from.before, find.now)
	// A transaction that ran at the last event may have written rows that are older than it.
	reach := unnotedAge
	if len(c.from.before.pending) > 0 {
		reach = resumeReach
	}
	edge := c.from.at.Add(-reach)
	recent, err := find.ledger(ctx, edge, find.now.at.Add(aheadReach))
	if err != nil {
		return err
	}
	late, _, err := find.lateSegments(ctx, edge)
	if err != nil {
		return err
	}
	late = c.lacking(late)
	if err := find.records(ctx, late, c.giver(late)); err != nil {
		return err
	}
	args := language.Args{find.oldest, edge}
	sql := "SELECT id, xmin::text::bigint, " + language.TimeSQL + ", data::text FROM logs WHERE inserted_at >= $2" + newSQL + " AND (" + q.SQL(&args, nil) + ") ORDER BY id"
	return find.rows(ctx, c.giver(c.lacking(recent)), sql, args...)
}

// lacking returns the segments that the follower has not had whole.
func (c *catchUp) lacking(segments []segment) []segment {
	return slices.DeleteFunc(segments, func(s segment) bool { return !c.from.lacks(s.last(), s.writer) })
}

// giver returns a function that gives the rows which the follower lacks. If a row is in one of the segments, the segment's writer
// counts, and not the row's. The segments must be in the order of their ids.
func (c *catchUp) giver(segments []segment) giveFunc {
	return func(r foundRow) error {
		if s, found := segmentOf(segments, r.id); found {
			r.writer = s.writer
		}
		if !c.from.lacks(r.id, r.writer) {
			return nil
		}
		c.record.ID, c.record.Time, c.record.InsertedAt = r.id, r.time, frame.Time(r.id)
		if err := c.record.Read(r.data); err != nil {
			return err
		}
		if !c.match(&c.record) {
			return nil
		}
		if c.found++; c.found > resumeRows {
			return nil
		}
		c.caught[r.id] = true
		return c.give(Row{ID: r.id, Time: r.time, Data: r.data, placePrefix: c.placePrefix})
	}
}

// segmentOf returns the segment that holds a record, and reports whether one does. The segments must be in the order of their ids.
func segmentOf(segments []segment, id uuid.UUID) (segment, bool) {
	i, found := slices.BinarySearchFunc(segments, segment{first: id}, segment.compare)
	if !found {
		i--
	}
	if i < 0 {
		return segment{}, false
	}
	last := segments[i].last()
	return segments[i], bytes.Compare(id[:], last[:]) <= 0
}
