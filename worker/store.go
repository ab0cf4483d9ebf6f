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

	"millrace/internal/eventtime"
	"millrace/internal/frame"
	"millrace/worker/partition"
)

// attemptTimeout is how long a transaction may go without a step forward. A batch takes tens of milliseconds, and the worst stall of
// a busy disk is far shorter. The bound is for a network that went silent.
const attemptTimeout = 2 * time.Minute

// outcome is what a transaction did.
type outcome struct {
	stored     []segment      // segments that were new; some of their records may be dead letters
	rows       int            // rows that were added to logs
	duplicates int            // records that were stored before
	reused     int            // segments under whose ids other records are stored
	unread     error          // why segments became dead letters that files of the archive may have; nil: none did
	dead       map[string]int // dead letters by reason
	times      timeCounts     // of the rows that were added
}

// store stores segments and dead letters in one transaction, each once. It sorts segments. final runs last, if it is not nil, and can
// refuse the commit. After an error nothing is stored, unless the commit succeeded and its answer was lost. The connection may then
// be closed, or in a failed transaction.
func store(ctx context.Context, conn *pgx.Conn, parts *partition.Set, rule *eventtime.Rule, segments []segment, dead []DeadLetter, final func(outcome) error) (outcome, error) {
	ctx, w := watch(ctx, attemptTimeout)
	defer w.stop()
	apart, err := parts.Provide(ctx, conn, bases(segments))
	if err != nil {
		return outcome{}, err
	}
	slices.SortStableFunc(segments, func(a, b segment) int { return bytes.Compare(a.Base[:], b.Base[:]) })
	fresh := transaction{conn: conn, parts: parts, times: newRecordTimes(rule, parts), letters: dead, apart: apart, watchdog: w}
	t := fresh
	err = t.run(ctx, segments, final)
	if class := classify(err); err != nil && (class == badRecord || class == doubtful) && !conn.IsClosed() {
		// Savepoints cost something. Only a batch that has a bad record pays for them.
		if _, err := conn.Exec(ctx, "ROLLBACK"); err != nil {
			return outcome{}, err
		}
		t = fresh
		t.times, t.careful, t.doubtful = newRecordTimes(rule, parts), true, class == doubtful
		err = t.run(ctx, segments, final)
	}
	return t.outcome, err
}

// bases returns the segments' base ids.
func bases(segments []segment) iter.Seq[uuid.UUID] {
	return func(yield func(uuid.UUID) bool) {
		for i := range segments {
			if !yield(segments[i].Base) {
				return
			}
		}
	}
}

// watchdog ends a context if moved is not called for a while.
type watchdog struct {
	timer  *time.Timer
	within time.Duration
	cancel context.CancelFunc
}

// watch returns a context and the watchdog that ends it if moved is not called within a time.
func watch(ctx context.Context, within time.Duration) (context.Context, watchdog) {
	ctx, cancel := context.WithCancel(ctx)
	return ctx, watchdog{time.AfterFunc(within, cancel), within, cancel}
}

// moved tells the watchdog that there was progress.
func (w watchdog) moved() { w.timer.Reset(w.within) }

// stop ends the watch and the context.
func (w watchdog) stop() {
	w.timer.Stop()
	w.cancel()
}

// transaction is one try of store.
type transaction struct {
	outcome
	conn     *pgx.Conn
	parts    *partition.Set
	times    *recordTimes                      // of the rows that were copied
	letters  []DeadLetter                      // to be inserted
	apart    map[uuid.UUID]partition.Misplaced // segments that become dead letters, because they have no partition
	careful  bool                              // search for bad records (bisect.go)
	archived archivedData                      // of the segments that the ledger may have forgotten
	doubtful bool                              // a refusal may be about the table; if the table takes an empty record, it is about a record
	watchdog watchdog
}

// run runs the transaction from its beginning to its commit. The segments are sorted.
func (t *transaction) run(ctx context.Context, segments []segment, final func(outcome) error) error {
	t.letters = slices.Clip(t.letters) // so that append copies them: another try needs the caller's
	if err := t.enterAll(ctx, segments); err != nil {
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
		err = copyRows(ctx, t.conn, placed, t.times)
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

// setApart makes dead letters of the segments that have no partition. It returns the other segments.
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

// records returns how many records the segments have.
func records(segments []segment) int {
	n := 0
	for _, s := range segments {
		n += s.Records
	}
	return n
}

// commit notes the hours whose rows are not new, and commits.
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
		b.Queue(partition.NoteLateSQL, hours)
	}
	noted := t.times.queue(&b)
	if len(t.stored) == 0 {
		// The records were there before. The transaction that stored them may have been cut short while it waited for a standby.
		// This commit waits for that standby too, because it writes something.
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
	t.parts.LearnNoted(noted)
	t.outcome.times = t.times.counts
	return nil
}
