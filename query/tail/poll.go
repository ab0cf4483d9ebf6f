package tail

import (
	"context"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/internal/frame"
	"millrace/query/language"
)

// deadLettersWatched is how many of the latest dead letters are watched for being replayed.
const deadLettersWatched = 10_000

const (
	sweepSQL       = `SELECT id, xmin::text::bigint, ` + language.TimeSQL + `, data::text FROM logs WHERE inserted_at >= $3` + newSQL + unseenSQL + ` ORDER BY id`
	deadLettersSQL = `SELECT record_id FROM dead_letters WHERE record_id IS NOT NULL ORDER BY dead_at DESC LIMIT $1`
)

// poll is one look of the reader at the database.
type poll struct {
	reader  *reader
	find    *finder
	last    *snapshot // a row is new if this does not show it
	isFirst bool      // nothing is new: this poll only remembers what is there

	placePrefix string
	record      language.Record
	writers     map[int64]bool // transactions whose rows this poll has seen
	givenOut    []uuid.UUID    // rows
}

// newPoll returns a poll that looks at a snapshot.
func newPoll(r *reader, now *snapshot) *poll {
	p := &poll{reader: r, last: r.last, isFirst: r.last == nil, writers: make(map[int64]bool)}
	if p.isFirst {
		p.last = now
		r.seen, r.history = make(map[int64]bool), []moment{{now.at.Add(-sweepMax), now.xmin}}
	}
	p.find = newFinder(r.conn, p.last, now, r.seen)
	p.placePrefix = placePrefix(p.last, now)
	return p
}

// run gives out what is new. The rows come by id over the whole poll: a place holds the last id that a follower has had.
func (p *poll) run(ctx context.Context) error {
	edge := sweepFrom(p.find.now.at, p.last.at, p.reader.sweepReach)
	old, err := p.oldSegments(ctx, edge)
	if err != nil {
		return err
	}
	if err := p.find.records(ctx, old, p.giveOut); err != nil {
		return err
	}
	return p.sweep(ctx, edge)
}

// sweepFrom returns the time from which on a poll looks at all rows: reach before now, and sweepMin before the last poll, however
// long that took. Else a row without a segment in the ledger would be missed between two slow polls. Beyond sweepMax only the
// ledger tells.
func sweepFrom(now, last time.Time, reach time.Duration) time.Time {
	reach = max(reach, min(now.Sub(last)+sweepMin, sweepMax))
	return now.Add(-reach)
}

// sweep gives out what is new among all rows from edge on.
func (p *poll) sweep(ctx context.Context, edge time.Time) error {
	began := time.Now()
	if err := p.find.rows(ctx, p.giveOut, sweepSQL, p.find.oldest, p.find.seen, edge); err != nil {
		return err
	}
	p.reader.adaptSweep(time.Since(began))
	return nil
}

// oldSegments returns what is new and older than edge, by id: what the ledger tells, what was stored late, and dead letters
// that were replayed.
func (p *poll) oldSegments(ctx context.Context, edge time.Time) ([]segment, error) {
	reach := p.reader.ledgerReach(p.last)
	recent, err := p.find.ledger(ctx, reach, edge)
	if err != nil {
		return nil, err
	}
	if edge.Before(reach) {
		reach = edge
	}
	late, hours, err := p.find.lateSegments(ctx, reach)
	if err != nil {
		return nil, err
	}
	all := slices.Concat(recent, late)
	for _, s := range all {
		p.writers[s.writer] = true
	}
	replayed, err := p.replayedDeadLetters(ctx, edge, hours > 0)
	if err != nil {
		return nil, err
	}
	all = append(all, replayed...)
	slices.SortFunc(all, segment.compare)
	return all, nil
}

// replayedDeadLetters returns the records older than edge that were dead letters at the last look and are none any more.
// They have been replayed, or dropped. It looks only if something changed late, or if the last look is deadLettersEvery ago.
func (p *poll) replayedDeadLetters(ctx context.Context, edge time.Time, changedLate bool) (replayed []segment, err error) {
	r := p.reader
	if !p.isFirst && !changedLate && time.Since(r.deadLettersAt) <= deadLettersEvery {
		return nil, nil
	}
	rows, err := r.conn.Query(ctx, deadLettersSQL, deadLettersWatched)
	if err != nil {
		return nil, err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[[16]byte])
	if err != nil {
		return nil, err
	}
	dead := make(map[uuid.UUID]bool, len(ids))
	for _, id := range ids {
		dead[id] = true
	}
	for id := range r.deadLetters {
		if !dead[id] && frame.Time(id).Before(edge) {
			replayed = append(replayed, segment{first: id, records: 1})
		}
	}
	r.deadLetters, r.deadLettersAt = dead, time.Now()
	return replayed, nil
}

// giveOut gives a row to the followers whose query it satisfies, unless it is not new.
func (p *poll) giveOut(found foundRow) error {
	r := p.reader
	p.writers[found.writer] = true
	if p.isFirst || r.seen[found.writer] || r.givenOut[found.id] {
		return nil
	}
	row := Row{ID: found.id, Time: found.time, Data: found.data, placePrefix: p.placePrefix}
	if err := r.tail.giveOut(&p.record, row, r.lastNumber); err != nil {
		return err
	}
	p.givenOut = append(p.givenOut, found.id)
	r.lastRows++
	return nil
}
