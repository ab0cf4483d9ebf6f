package worker

import (
	"bytes"
	"context"
	"errors"
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

const (
	// Sorted, because two transactions that insert the same keys in different orders deadlock.
	ledgerInsertSQL = `INSERT INTO ledger (id, records, checksum)
		SELECT * FROM unnest($1::uuid[], $2::int[], $3::bigint[]) ORDER BY 1 ON CONFLICT DO NOTHING RETURNING id`

	ledgerSelectSQL = `SELECT id, records, checksum FROM ledger WHERE id = ANY($1::uuid[])`

	// forgottenSQL is the time before which the ledger may have forgotten a segment: what the keepers have noted, or by
	// the database's clock, for partitions that somebody drops by hand, a day less than partition.LedgerKeep.
	forgottenSQL = `SELECT greatest(now() - interval '6 days', (SELECT max(value::timestamptz) FROM settings WHERE name = 'ledger_forgotten'))`

	// doubtMargin is added to the time before which segments are looked for among the rows, so that a limit that moves
	// with the clock is not asked for again at once.
	doubtMargin = time.Minute

	// attemptTimeout bounds one transaction. A batch takes tens of milliseconds; this is for a network that
	// went silent, and far from the worst stall of a busy disk.
	attemptTimeout = 2 * time.Minute
)

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

// begin starts the transaction and enters the segments in the ledger. Those that are new are then in t.stored.
func (t *transaction) begin(ctx context.Context, segments []segment) error {
	started := *t
	for forgotten := t.parts.ForgottenUntil(); ; {
		until, err := t.enter(ctx, segments, forgotten)
		if err != nil {
			return err
		}
		t.parts.LearnForgotten(until)
		// A segment that is new to the ledger, and was not looked for elsewhere, must be one that it can't have forgotten.
		if !slices.ContainsFunc(t.stored, func(s segment) bool {
			at := frame.Time(s.Base)
			return !at.Before(forgotten) && at.Before(until)
		}) {
			return nil
		}
		if _, err := t.conn.Exec(ctx, "ROLLBACK"); err != nil {
			return err
		}
		*t, forgotten = started, until.Add(doubtMargin)
	}
}

// enter is begin, given the time before which the ledger may have forgotten segments. It returns that time as it was
// after the segments were entered: the keeper that drops a partition of the ledger moves it first.
func (t *transaction) enter(ctx context.Context, segments []segment, forgotten time.Time) (until time.Time, err error) {
	fresh := make([]segment, 0, len(segments))
	for _, s := range segments {
		if n := len(fresh); n > 0 && fresh[n-1].Base == s.Base { // delivered twice within one batch
			t.known(s, fresh[n-1].Records, fresh[n-1].sum)
			continue
		}
		fresh = append(fresh, s)
	}
	fresh, unledgered := t.unledgered(fresh)
	var b pgx.Batch
	// Under the stricter levels a row that another transaction has just inserted would be an error instead of a
	// conflict to skip. Whether it may write is left to the database, which somebody may have made read only.
	const begin = "BEGIN ISOLATION LEVEL READ COMMITTED"
	old, _ := slices.BinarySearchFunc(fresh, forgotten, func(s segment, limit time.Time) int {
		return frame.Time(s.Base).Compare(limit)
	})
	if old == 0 && len(unledgered) == 0 {
		b.Queue(begin)
	} else {
		if _, err := t.conn.Exec(ctx, begin); err != nil {
			return until, err
		}
		// Without a place in the ledger, rows and dead letters alone tell what a segment was before.
		unknown, err := t.lookUp(ctx, slices.Concat(fresh[:old], unledgered))
		if err != nil {
			return until, fmt.Errorf("look for old segments: %w", err)
		}
		unknown, unledgered = t.unledgered(unknown)
		fresh = append(unknown, fresh[old:]...)
	}
	ids := make([][16]byte, len(fresh))
	counts := make([]int32, len(fresh))
	sums := make([]int64, len(fresh))
	for i, s := range fresh {
		ids[i], counts[i], sums[i] = s.Base, int32(s.Records), int64(s.sum)
	}
	var entered [][16]byte
	if len(fresh) > 0 {
		b.Queue(ledgerInsertSQL, ids, counts, sums).Query(func(rows pgx.Rows) (err error) {
			entered, err = pgx.CollectRows(rows, pgx.RowTo[[16]byte])
			return err
		})
	}
	b.Queue(forgottenSQL).QueryRow(func(row pgx.Row) error { return row.Scan(&until) })
	if err := t.conn.SendBatch(ctx, &b).Close(); err != nil {
		return until, fmt.Errorf("ledger: %w", err)
	}
	if len(entered) < len(fresh) {
		if fresh, err = t.sortOut(ctx, fresh, entered); err != nil {
			return until, err
		}
	}
	t.stored = append(fresh, unledgered...)
	slices.SortStableFunc(t.stored, func(a, b segment) int { return bytes.Compare(a.Base[:], b.Base[:]) })
	return until, nil
}

// unledgered parts the segments that the ledger has no partition for from the others.
func (t *transaction) unledgered(segments []segment) (ledgered, without []segment) {
	if len(t.apart) == 0 {
		return segments, nil
	}
	for _, s := range segments {
		if m, ok := t.apart[s.Base]; ok && !m.Ledgered {
			without = append(without, s)
		} else {
			ledgered = append(ledgered, s)
		}
	}
	return ledgered, without
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

// sortOut returns the segments that were entered in the ledger, and accounts for those that it had.
func (t *transaction) sortOut(ctx context.Context, segments []segment, entered [][16]byte) ([]segment, error) {
	isNew := make(map[uuid.UUID]bool, len(entered))
	for _, id := range entered {
		isNew[id] = true
	}
	had := make(map[uuid.UUID]segment)
	var ids [][16]byte
	fresh := make([]segment, 0, len(entered))
	for _, s := range segments {
		if isNew[s.Base] {
			fresh = append(fresh, s)
			continue
		}
		had[s.Base] = s
		ids = append(ids, s.Base)
	}
	if err := t.inLedger(ctx, had, ids); err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	if len(had) > 0 {
		return nil, errors.New("ledger: rows in conflict have vanished, their partition was dropped")
	}
	return fresh, nil
}

// inLedger accounts for those of the segments that the ledger has, and takes them out of the map.
func (t *transaction) inLedger(ctx context.Context, segments map[uuid.UUID]segment, ids [][16]byte) error {
	rows, err := t.conn.Query(ctx, ledgerSelectSQL, ids)
	if err != nil {
		return err
	}
	var id [16]byte
	var count int
	var sum int64
	_, err = pgx.ForEachRow(rows, []any{&id, &count, &sum}, func() error {
		t.known(segments[id], count, uint64(sum))
		delete(segments, id)
		return nil
	})
	return err
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
