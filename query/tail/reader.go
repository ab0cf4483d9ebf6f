package tail

import (
	"context"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/internal/pg"
)

const (
	// pollEvery is the pause between two polls. It is also the longest that a row waits if polls take no time.
	pollEvery = 100 * time.Millisecond
	// busyPoll is how many rows a poll must give out for the table to count as busy. Then the next poll follows after pollEvery,
	// however long this one took: the longer the pause, the more rows the next poll has, and the longer it takes.
	busyPoll = 1000
	// pollTimeout is the longest that one statement of the reader may take.
	pollTimeout = 10 * time.Second

	// sweepMin and sweepMax bound how far back all rows are looked at. The reach doubles while a sweep takes less than
	// sweepCheap, and halves when a sweep takes more than sweepDear.
	sweepMin, sweepMax    = 2 * time.Second, 10 * time.Minute
	sweepCheap, sweepDear = 5 * time.Millisecond, 25 * time.Millisecond

	// deadLettersEvery is the longest time between two looks at the dead letters.
	deadLettersEvery = time.Second
)

// byIndexes keeps the planner to the indexes. Its statistics know nothing of the rows that just came.
const byIndexes = "SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; "

// beginPoll begins a poll's transaction.
var beginPoll = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL jit = off; " + byIndexes +
	"SET LOCAL statement_timeout = " + strconv.FormatInt(pollTimeout.Milliseconds(), 10)

// reader is what one poll leaves for the next.
type reader struct {
	tail *Tail
	conn *pgx.Conn

	last       *snapshot // of the last poll that succeeded; nil before the first
	lastNumber int64     // that poll's number

	seen       map[int64]bool     // transactions whose rows were seen, as far as last.xmin does not tell
	givenOut   map[uuid.UUID]bool // rows that were given out since last by polls which then failed
	lastRows   int                // how many rows the last poll gave out
	history    []moment           // of polls, oldest first, as far back as ledgerReach needs them
	sweepReach time.Duration      // how far back all rows are looked at

	deadLetters   map[uuid.UUID]bool // records that are dead letters
	deadLettersAt time.Time          // when they were read
}

// moment is a time at which no transaction from xmax on had begun.
type moment struct {
	at   time.Time
	xmax int64
}

// close closes the connection, if there is one.
func (r *reader) close(ctx context.Context) {
	if r.conn == nil {
		return
	}
	pg.Close(ctx, r.conn)
	r.conn = nil
}

// poll takes a snapshot and gives out what is new in it. The first poll only remembers what is there.
func (r *reader) poll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*pollTimeout)
	defer cancel()
	if r.conn == nil {
		conn, err := r.tail.options.Connect(ctx)
		if err != nil {
			return err
		}
		r.conn = conn
	}
	number := r.tail.pollsBegun.Add(1)
	r.lastRows = 0
	if _, err := r.conn.Exec(ctx, beginPoll); err != nil {
		return err
	}
	now, err := r.giveOutNew(ctx)
	if err != nil {
		return err
	}
	r.last, r.lastNumber = now, number // even if the connection breaks now: what is new has been given out
	r.tail.reached(now)
	_, err = r.conn.Exec(ctx, "ROLLBACK")
	return err
}

// giveOutNew gives out what is new in the transaction's snapshot, and returns the snapshot.
func (r *reader) giveOutNew(ctx context.Context) (*snapshot, error) {
	now, err := takeSnapshot(ctx, r.conn)
	if err != nil {
		return nil, err
	}
	if r.last != nil && now.xmax < r.last.xmax {
		r.tail.options.Log.Warn("the tail begins anew: the database is another one, or was set back")
		r.last = nil
	}
	p := newPoll(r, now)
	if err := p.run(ctx); err != nil {
		if r.givenOut == nil {
			r.givenOut = make(map[uuid.UUID]bool)
		}
		for _, id := range p.givenOut { // the next poll finds them again
			r.givenOut[id] = true
		}
		return nil, err
	}
	r.givenOut = nil
	for x := range p.writers {
		r.seen[x] = true
	}
	for x := range r.seen {
		if x < now.xmin {
			delete(r.seen, x)
		}
	}
	r.history = append(r.history, moment{now.at, now.xmax})
	return now, nil
}

// ledgerReach returns the time from which on the ledger is looked at: no transaction that ran at the last poll had begun
// then, so none wrote an older row without a note in late_changes.
func (r *reader) ledgerReach(last *snapshot) time.Time {
	for len(r.history) > 1 && r.history[1].xmax <= last.xmin {
		r.history = r.history[1:]
	}
	return r.history[0].at.Add(-unnotedAge)
}

// adaptSweep sets how far back the next sweep goes, by the time that this one took.
func (r *reader) adaptSweep(took time.Duration) {
	switch {
	case took < sweepCheap:
		r.sweepReach = min(2*r.sweepReach, sweepMax)
	case took > sweepDear:
		r.sweepReach = max(r.sweepReach/2, sweepMin)
	}
}
