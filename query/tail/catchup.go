package tail

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/internal/frame"
	"millrace/query/language"
)

const (
	// resumeReach is how long after its last event a follower can go on where it was, resumeRows how many rows
	// it may have missed.
	resumeReach = 10 * time.Minute
	resumeRows  = 10_000
	// aheadReach is how far beyond the database's clock a follower that comes back is given rows: they carry the API's
	// clock, or the client's in an Idempotency-Key.
	aheadReach = time.Hour
)

// Why a follower can't be told what it missed. The texts are for it to read.
var (
	ErrTooLongAgo    = errors.New("the last event is too long ago to go on from it")
	ErrOtherDatabase = errors.New("the database is another one, or was set back")
)

// CatchUp calls give with the rows that a follower missed since its place, from a snapshot of its own. missed is how
// many there are beyond those that it gives. Take leaves out what CatchUp gave.
func (f *Follower) CatchUp(ctx context.Context, q language.Query, from *Place, give func(Row) error) (missed int64, err error) {
	if time.Since(from.at) > resumeReach {
		return 0, ErrTooLongAgo
	}
	f.caught = make(map[uuid.UUID]bool)
	given := int64(0)
	err = f.tail.options.Read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off"); err != nil {
			return err
		}
		now := new(snapshot)
		if err := tx.QueryRow(ctx, snapshotSQL).Scan(&now.xmin, &now.xmax, &now.pending, &now.at); err != nil {
			return err
		}
		f.caughtUntil = f.tail.begun.Load()
		if now.xmax < from.before.xmax {
			return ErrOtherDatabase
		}
		// What ran at the last event may have written rows of before it.
		reach := unnoted
		if len(from.before.pending) > 0 {
			reach = resumeReach
		}
		low := from.at.Add(-reach)
		oldest := strconv.FormatInt(from.before.xmin&0xffffffff, 10)
		condition, args := q.SQL([]any{oldest, low})
		sql := "SELECT id, xmin::text::bigint, data::text FROM logs WHERE inserted_at >= $2" + newSQL + " AND (" + condition + ") ORDER BY id"
		prefix := placePrefix(from.before, now)
		// The ledger tells which segments were missed: its rows carry the transaction itself, records perhaps a
		// subtransaction, which the positions don't know.
		var old, young []segment // before low, which are looked up one by one, and after it
		look := func(into *[]segment, start, end time.Time) error {
			found, err := newSegments(ctx, tx, oldest, []string{}, start, end)
			for _, s := range found {
				if from.missed(frame.ID(s.first, s.records-1), now.full(s.xid)) {
					*into = append(*into, s)
				}
			}
			return err
		}
		if err := look(&young, low, now.at.Add(aheadReach)); err != nil {
			return err
		}
		hours, err := newHours(ctx, tx, oldest, []string{}, now.at)
		if err != nil {
			return err
		}
		for _, hour := range hours {
			end := hour.Add(time.Hour)
			if end.After(low) {
				end = low
			}
			if err := look(&old, hour, end); err != nil {
				return err
			}
		}
		segmentOf := func(all []segment, id uuid.UUID) (segment, bool) { // all is sorted, as hours are
			i, found := slices.BinarySearchFunc(all, id, func(s segment, id uuid.UUID) int { return bytes.Compare(s.first[:], id[:]) })
			if !found {
				i--
			}
			if i < 0 {
				return segment{}, false
			}
			last := frame.ID(all[i].first, all[i].records-1)
			return all[i], bytes.Compare(id[:], last[:]) <= 0
		}
		var rec language.Record
		match := q.Matcher()
		giveRows := func(all []segment) func(pgx.Rows) error {
			return func(rows pgx.Rows) error {
				defer rows.Close()
				for rows.Next() {
					raw := rows.RawValues()
					id := uuid.UUID(raw[0])
					var xid int64
					if err := rows.Scan(nil, &xid, nil); err != nil {
						return err
					}
					x := now.full(uint32(xid))
					if s, found := segmentOf(all, id); found {
						x = now.full(s.xid)
					}
					if !from.missed(id, x) {
						continue
					}
					if err := rec.Read(raw[2]); err != nil {
						return err
					}
					if !match(&rec) {
						continue
					}
					if given++; given > resumeRows {
						continue
					}
					f.caught[id] = true
					if err := give(Row{ID: id, Data: raw[2], placePrefix: prefix}); err != nil {
						return err
					}
				}
				return rows.Err()
			}
		}
		if err := eachRecord(ctx, tx, old, giveRows(old)); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		return giveRows(young)(rows)
	})
	if err != nil {
		f.caught = nil
		return 0, err
	}
	return max(0, given-resumeRows), nil
}
