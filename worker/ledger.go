package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/internal/frame"
	"millrace/worker/partition"
)

// The ledger has a row for each segment that was stored or set aside: its base id, how many records it has, and their checksum.
// Exactly-once rests on these rules:
//
//  1. A segment's row in the ledger commits in one transaction with the segment's records, stored or set aside.
//  2. Only the transaction that has inserted the segment's row stores its records. Another one that inserts it at the same time waits
//     until the first one has ended, and then finds the row or inserts it.
//  3. The API decides a segment's base id, number of records and bytes before it publishes them the first time. A redelivery and a
//     client's retry under the same key have the same ones.
//  4. A segment that the ledger may have forgotten, or has no partition for, is looked for among rows and dead letters (known.go).
//     The keeper notes what the ledger is about to forget before it drops a partition. A transaction reads that note after it has
//     inserted its segments.
//
// internal/model shows what is lost or stored twice if one of them is broken. How they are kept may change: the length of the ledger's
// partitions, how long they are kept (partition.LedgerKeep), further columns. The live tail of query/tail reads the ledger too, and its
// lateReach is a day more than LedgerKeep. What a checksum is made of may not change: a segment that is delivered again would look like
// another one under its id.

const (
	// ledgerInsertSQL inserts in order: two transactions that insert the same keys in different orders deadlock.
	ledgerInsertSQL = `INSERT INTO ledger (id, records, checksum)
		SELECT * FROM unnest($1::uuid[], $2::int[], $3::bigint[]) ORDER BY 1 ON CONFLICT DO NOTHING RETURNING id`

	ledgerSelectSQL = `SELECT id, records, checksum FROM ledger WHERE id = ANY($1::uuid[])`

	// doubtMargin is added to the time before which segments are looked for among the rows. That time moves with the clock, and
	// without a margin it might have moved again at the next try.
	doubtMargin = time.Minute
)

// forgottenSQL returns the time before which the ledger may have forgotten a segment. It is what the keepers have noted, or a day less
// than partition.LedgerKeep ago if that is later: somebody may drop partitions by hand.
var forgottenSQL = fmt.Sprintf(`SELECT greatest(now() - interval '%d hours', (SELECT max(value::timestamptz) FROM settings WHERE name = 'ledger_forgotten'))`,
	(partition.LedgerKeep-24*time.Hour)/time.Hour)

// enterAll starts the transaction and enters the segments in the ledger. Afterwards t.stored has the segments that are new.
func (t *transaction) enterAll(ctx context.Context, segments []segment) error {
	started := *t
	for forgotten := t.parts.ForgottenUntil(); ; {
		until, err := t.enter(ctx, segments, forgotten)
		if err != nil {
			return err
		}
		t.parts.LearnForgotten(until)
		// Is there a segment that was not looked for among the rows, although the ledger may have forgotten it?
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

// enter makes one try of enterAll. forgotten is the time before which the ledger may have forgotten segments, as far as is known. enter
// returns that time as it is after the segments were entered: a keeper moves it before it drops a partition of the ledger.
func (t *transaction) enter(ctx context.Context, segments []segment, forgotten time.Time) (until time.Time, err error) {
	fresh := make([]segment, 0, len(segments))
	for _, s := range segments {
		if n := len(fresh); n > 0 && fresh[n-1].Base == s.Base { // delivered twice within one batch
			t.accountKnown(s, fresh[n-1].Records, fresh[n-1].sum)
			continue
		}
		fresh = append(fresh, s)
	}
	fresh, unledgered := t.unledgered(fresh)
	var b pgx.Batch
	// Under a stricter level, a row that another transaction has just inserted would be an error and not a conflict to skip. The
	// statement does not say READ WRITE, because somebody may have made the database read only.
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
		// The ledger does not know about these. Rows and dead letters tell whether they came before.
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

// unledgered returns the segments that the ledger has a partition for, and those that it has none for.
func (t *transaction) unledgered(segments []segment) (ledgered, without []segment) {
	if len(t.apart) == 0 {
		return segments, nil
	}
	for _, s := range segments {
		if m, ok := t.apart[s.Base]; ok && !m.HasLedger {
			without = append(without, s)
		} else {
			ledgered = append(ledgered, s)
		}
	}
	return ledgered, without
}

// sortOut returns the segments that were entered in the ledger now. It accounts for those that the ledger had before.
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

// inLedger accounts for the segments that the ledger has, and takes them out of the map.
func (t *transaction) inLedger(ctx context.Context, segments map[uuid.UUID]segment, ids [][16]byte) error {
	rows, err := t.conn.Query(ctx, ledgerSelectSQL, ids)
	if err != nil {
		return err
	}
	var id [16]byte
	var count int
	var sum int64
	_, err = pgx.ForEachRow(rows, []any{&id, &count, &sum}, func() error {
		t.accountKnown(segments[id], count, uint64(sum))
		delete(segments, id)
		return nil
	})
	return err
}

// accountKnown accounts for a segment under whose id the ledger has so many records, with that checksum. It is a duplicate, or another
// segment under the same id.
func (t *transaction) accountKnown(s segment, count int, sum uint64) {
	if s.Records == count && s.sum == sum {
		t.duplicates += s.Records
		return
	}
	t.reused++
	t.letters = append(t.letters, s.reusedLetter(fmt.Sprintf(
		"the ledger has %d other records under the id of these %d: their Idempotency-Key or message_id was used before", count, s.Records)))
}
