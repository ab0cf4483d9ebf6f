package worker

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"millrace/internal/frame"
	"millrace/worker/partition"
)

// attemptTimeout bounds one transaction. A batch takes tens of milliseconds; this is for a network that
// went silent, and far from the worst stall of a busy disk.
const attemptTimeout = 2 * time.Minute

// lateSQL notes the hours of rows that are no longer new when they are stored, by the database's clock.
var lateSQL = partition.NoteChangesSQL(`SELECT date_trunc('hour', at) FROM unnest($1::timestamptz[]) AS t (at)
	WHERE at < clock_timestamp() - interval '30 seconds' ORDER BY 1`)

// outcome is what a transaction did.
type outcome struct {
	stored     []segment // that were not in the ledger; some of their records may be dead letters
	rows       int       // that logs has got
	duplicates int       // rows that were stored before
	reused     int       // segments whose id stands for other records
	dead       map[string]int
}

// store stores segments and dead letters in one transaction, each once. final, unless nil, runs last and can
// refuse the commit. After an error nothing is stored, unless it was the answer to the commit that was lost, and
// the connection may be in a failed transaction or closed. store sorts segments.
func store(ctx context.Context, conn *pgx.Conn, parts *partition.Set, segments []segment, dead []DeadLetter, final func(outcome) error) (outcome, error) {
	ctx, w := watch(ctx, attemptTimeout)
	defer w.stop()
	apart, err := parts.Provide(ctx, conn, bases(segments))
	if err != nil {
		return outcome{}, err
	}
	slices.SortStableFunc(segments, func(a, b segment) int { return bytes.Compare(a.Base[:], b.Base[:]) })
	t := transaction{conn: conn, parts: parts, letters: dead, apart: apart, watchdog: w}
	err = t.run(ctx, segments, final)
	if class := classify(err); err != nil && (class == badRecord || class == doubtful) && !conn.IsClosed() {
		// Savepoints cost every batch a little; only one that has a bad record pays for them.
		if _, err := conn.Exec(ctx, "ROLLBACK"); err != nil {
			return outcome{}, err
		}
		t = transaction{conn: conn, parts: parts, letters: dead, apart: apart, careful: true, doubtful: class == doubtful, watchdog: w}
		err = t.run(ctx, segments, final)
	}
	return t.outcome, err
}

// bases goes over the segments' base ids.
func bases(segments []segment) iter.Seq[uuid.UUID] {
	return func(yield func(uuid.UUID) bool) {
		for i := range segments {
			if !yield(segments[i].Base) {
				return
			}
		}
	}
}

// watchdog ends a context when nothing has moved for a while.
type watchdog struct {
	timer  *time.Timer
	within time.Duration
	cancel context.CancelFunc
}

func watch(ctx context.Context, within time.Duration) (context.Context, watchdog) {
	ctx, cancel := context.WithCancel(ctx)
	return ctx, watchdog{time.AfterFunc(within, cancel), within, cancel}
}

// moved starts the while anew.
func (w watchdog) moved() { w.timer.Reset(w.within) }

func (w watchdog) stop() {
	w.timer.Stop()
	w.cancel()
}

// transaction is one try of store.
type transaction struct {
	outcome
	conn     *pgx.Conn
	parts    *partition.Set
	letters  []DeadLetter
	apart    map[uuid.UUID]partition.Misplaced // segments that become dead letters, because they have no partition
	careful  bool                              // search for bad records
	doubtful bool                              // if an empty record is taken, what is refused is bad whatever the reason
	watchdog watchdog
}

func (t *transaction) run(ctx context.Context, segments []segment, final func(outcome) error) error {
	t.letters = slices.Clip(t.letters) // the caller's, for another try
	if err := t.begin(ctx, segments); err != nil {
		return err
	}
	placed := t.setApart(t.stored)
	t.rows = records(placed)
	var err error
	switch {
	case len(placed) == 0:
	case t.careful:
		if t.doubtful {
			if err := t.copyCanary(ctx, placed[0]); err != nil {
				return err
			}
		}
		err = t.copyGood(ctx, placed)
	default:
		err = copyRows(ctx, t.conn, placed)
	}
	if err != nil {
		return err
	}
	if err := t.insertDead(ctx); err != nil {
		return err
	}
	if final != nil {
		if err := final(t.outcome); err != nil {
			return err
		}
	}
	return t.commit(ctx)
}

// setApart makes dead letters of the segments that have no partition and returns the others.
func (t *transaction) setApart(segments []segment) []segment {
	if len(t.apart) == 0 {
		return segments
	}
	var placed []segment
	for _, s := range segments {
		if m, ok := t.apart[s.Base]; ok {
			t.letters = append(t.letters, s.letters(reasonNoPartition, m.Err)...)
		} else {
			placed = append(placed, s)
		}
	}
	return placed
}

func records(segments []segment) int {
	n := 0
	for _, s := range segments {
		n += s.Records
	}
	return n
}

// commit notes the hours that are no longer new, and commits.
func (t *transaction) commit(ctx context.Context) error {
	var b pgx.Batch
	var hours []time.Time // one time in each; the segments are in order
	for _, s := range t.stored {
		at := frame.Time(s.Base)
		if n := len(hours); n == 0 || !at.Truncate(time.Hour).Equal(hours[n-1].Truncate(time.Hour)) {
			hours = append(hours, at)
		}
	}
	if len(hours) > 0 {
		b.Queue(lateSQL, hours)
	}
	if len(t.stored) == 0 {
		// What was there before may have been committed by a transaction that was cut short while it waited for a
		// standby. A commit that has written something waits for all that came before it.
		b.Queue("SELECT pg_logical_emit_message(true, 'millrace', '')")
	}
	b.Queue("COMMIT").Exec(func(tag pgconn.CommandTag) error {
		if tag.String() != "COMMIT" {
			return fmt.Errorf("the server answered %s", tag)
		}
		return nil
	})
	if err := t.conn.SendBatch(ctx, &b).Close(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}
