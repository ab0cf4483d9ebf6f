package tail

import (
	"bytes"
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/internal/frame"
	"millrace/query/language"
)

const (
	// pollEvery is the pause between two polls, and the longest that a row waits when a poll takes no time.
	pollEvery = 100 * time.Millisecond
	// busyPoll is how many rows make a poll one of a busy table, after which the next follows without more of a pause: the
	// longer that would be, the longer it would take.
	busyPoll = 1000
	// pollTimeout is the longest one statement of the reader may take.
	pollTimeout = 10 * time.Second

	// sweepMin and sweepMax bound how far back all rows are looked at. It doubles while a poll takes less than
	// sweepCheap and halves when it takes more than sweepDear.
	sweepMin, sweepMax    = 2 * time.Second, 10 * time.Minute
	sweepCheap, sweepDear = 5 * time.Millisecond, 25 * time.Millisecond
)

// reader is what goes from one poll to the next.
type reader struct {
	*Tail
	conn *pgx.Conn

	last    *snapshot          // of the last poll that succeeded; nil at first
	number  int64              // of that poll
	given   map[uuid.UUID]bool // rows that polls gave out which failed afterwards
	seen    map[int64]bool     // transactions that are not before last.xmin, and whose rows have been seen
	history []moment           // of polls, oldest first, as far as it is needed
	gave    int                // rows, in the last poll
	sweep   time.Duration
	dead    map[uuid.UUID]bool // records that are dead letters
	looked  time.Time          // when dead was read
}

// moment is a time at which no transaction from xmax on had begun.
type moment struct {
	at   time.Time
	xmax int64
}

func (r *reader) close(ctx context.Context) {
	if r.conn == nil {
		return
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = r.conn.Close(closing) // it was read from only, and may be broken
	r.conn = nil
}

const (
	beginTail = `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL jit = off; SET LOCAL enable_seqscan = off;
		SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL statement_timeout = `
)

// poll takes a snapshot and gives out what is new in it. The first one only remembers what is there.
func (r *reader) poll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*pollTimeout)
	defer cancel()
	if r.conn == nil {
		conn, err := r.options.Connect(ctx)
		if err != nil {
			return err
		}
		r.conn = conn
	}
	number := r.begun.Add(1)
	r.gave = 0
	if _, err := r.conn.Exec(ctx, beginTail+strconv.FormatInt(pollTimeout.Milliseconds(), 10)); err != nil {
		return err
	}
	next, err := r.read(ctx)
	if err != nil {
		return err
	}
	r.last, r.number = next, number // also when the connection breaks now: what is new has been given out
	position := next.place()
	r.position.Store(&position)
	r.mu.Lock()
	select {
	case <-r.based:
	default:
		close(r.based)
	}
	r.mu.Unlock()
	_, err = r.conn.Exec(ctx, "ROLLBACK")
	return err
}

// read is what poll does within its snapshot.
func (r *reader) read(ctx context.Context) (_ *snapshot, err error) {
	now := new(snapshot)
	if err := r.conn.QueryRow(ctx, snapshotSQL).Scan(&now.xmin, &now.xmax, &now.pending, &now.at); err != nil {
		return nil, err
	}
	before := r.last
	if before != nil && now.xmax < before.xmax {
		r.options.Log.Warn("the tail begins anew: the database is another one, or was set back")
		before = nil
	}
	first := before == nil
	if first {
		before = now
		r.seen, r.history = make(map[int64]bool), []moment{{now.at.Add(-sweepMax), now.xmin}}
	}
	oldest := strconv.FormatInt(before.xmin&0xffffffff, 10)
	seen := make([]string, 0, len(r.seen))
	for x := range r.seen {
		seen = append(seen, strconv.FormatInt(x&0xffffffff, 10))
	}
	prefix := placePrefix(before, now)
	var (
		rec  language.Record
		gave []uuid.UUID
	)
	defer func() {
		if err == nil {
			r.given = nil
			return
		}
		for _, id := range gave { // the next poll finds them again
			if r.given == nil {
				r.given = make(map[uuid.UUID]bool)
			}
			r.given[id] = true
		}
	}()
	fresh := make(map[int64]bool)
	give := func(rows pgx.Rows) error {
		defer rows.Close()
		for rows.Next() {
			raw := rows.RawValues()
			var xid int64
			e := &Event{id: uuid.UUID(raw[0]), poll: r.number}
			if err := rows.Scan(nil, &xid, nil); err != nil {
				return err
			}
			x := now.full(uint32(xid))
			fresh[x] = true
			if first || r.seen[x] || r.given[e.id] {
				continue
			}
			if err := r.dispatch(&rec, e, raw[2], prefix); err != nil {
				return err
			}
			gave = append(gave, e.id)
			r.gave++
		}
		return rows.Err()
	}

	edge := now.at.Add(-r.sweep)
	var segments []segment
	look := func(from, to time.Time) error {
		if to.After(edge) {
			to = edge
		}
		found, err := newSegments(ctx, r.conn, oldest, seen, from, to)
		for _, s := range found {
			fresh[now.full(s.xid)] = true
		}
		segments = append(segments, found...)
		return err
	}
	// No transaction that ran at the last poll had begun at this moment.
	for len(r.history) > 1 && r.history[1].xmax <= before.xmin {
		r.history = r.history[1:]
	}
	back := r.history[0].at.Add(-unnoted)
	if err := look(back, now.at); err != nil {
		return nil, err
	}
	hours, err := newHours(ctx, r.conn, oldest, seen, now.at)
	if err != nil {
		return nil, err
	}
	for _, hour := range hours {
		end := hour.Add(time.Hour)
		if end.After(back) {
			end = back
		}
		if err := look(hour, end); err != nil {
			return nil, err
		}
	}

	// Dead letters that are gone have been replayed, or dropped.
	if first || len(hours) > 0 || time.Since(r.looked) > time.Second {
		rows, err := r.conn.Query(ctx, deadSQL, deadWatched)
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
		for id := range r.dead {
			if !dead[id] && frame.Time(id).Before(edge) {
				segments = append(segments, segment{first: id, records: 1})
			}
		}
		r.dead, r.looked = dead, time.Now()
	}
	// By id over the whole poll: that is how far a follower that comes back has had it.
	slices.SortFunc(segments, func(a, b segment) int { return bytes.Compare(a.first[:], b.first[:]) })
	if err := eachRecord(ctx, r.conn, segments, give); err != nil {
		return nil, err
	}
	began := time.Now()
	rows, err := r.conn.Query(ctx, sweepSQL, oldest, seen, edge)
	if err == nil {
		err = give(rows)
	}
	if err != nil {
		return nil, err
	}
	took := time.Since(began)

	for x := range fresh {
		r.seen[x] = true
	}
	for x := range r.seen {
		if x < now.xmin {
			delete(r.seen, x)
		}
	}
	r.history = append(r.history, moment{now.at, now.xmax})
	switch {
	case took < sweepCheap:
		r.sweep = min(2*r.sweep, sweepMax)
	case took > sweepDear:
		r.sweep = max(r.sweep/2, sweepMin)
	}
	return now, nil
}
