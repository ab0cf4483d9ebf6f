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
	// unnotedAge is the age up to which a worker stores rows without a note in late_changes, and some time for the
	// clocks.
	unnotedAge = 35 * time.Second
	// lateReach is how old the hours in late_changes are that are looked at: the ledger remembers 7 days (partition.LedgerKeep of the worker).
	lateReach = 8 * 24 * time.Hour
	// segmentsApart is how far the times of neighbouring segments may lie apart for one look to read the records of both.
	segmentsApart = time.Second
)

const (
	// newSQL keeps rows that no transaction before $1 wrote. age counts back from the present, so that it does not
	// matter when 32 bits have gone round.
	newSQL = ` AND age(xmin) <= (SELECT age($1::text::xid))`
	// unseenSQL leaves out the rows of the transactions $2.
	unseenSQL = ` AND NOT xmin = ANY($2::text[]::xid[])`

	ledgerSQL = `SELECT id, records, xmin::text::bigint FROM ledger WHERE id >= $3 AND id < $4` + newSQL + unseenSQL + ` ORDER BY id`
	hoursSQL  = `SELECT DISTINCT hour FROM late_changes WHERE hour > $3` + newSQL + unseenSQL

	recordsSQL = `SELECT id, xmin::text::bigint, ` + language.TimeSQL + `, data::text FROM logs WHERE inserted_at >= $2 AND inserted_at <= $3` + newSQL + ` ORDER BY id`
)

// segment is a row of the ledger, or a single record in the place of one.
type segment struct {
	first   uuid.UUID // the id of its first record
	records int
	writer  int64 // the transaction that entered it; 0 for a single record
}

// last returns the id of its last record.
func (s segment) last() uuid.UUID { return frame.ID(s.first, s.records-1) }

// compare orders segments by their ids.
func (s segment) compare(other segment) int { return bytes.Compare(s.first[:], other.first[:]) }

// querier is a connection or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// finder finds in a snapshot what transactions wrote that an earlier snapshot does not show.
type finder struct {
	db     querier
	now    *snapshot
	oldest string   // no transaction before it can have written anything new; its low 32 bits
	seen   []string // transactions that wrote nothing new; their low 32 bits. Never nil: to SQL that is NULL
}

// newFinder returns a finder of what is in now and not in last. db must read in the snapshot now. What the transactions of
// seen wrote counts as not new.
func newFinder(db querier, last, now *snapshot, seen map[int64]bool) *finder {
	f := &finder{db: db, now: now, oldest: low32(last.xmin), seen: make([]string, 0, len(seen))}
	for x := range seen {
		f.seen = append(f.seen, low32(x))
	}
	return f
}

// low32 writes the 32 bits of a transaction id that PostgreSQL's type xid has.
func low32(x int64) string { return strconv.FormatInt(x&0xffffffff, 10) }

// ledger returns the new segments from a time on and before another, by id.
func (f *finder) ledger(ctx context.Context, from, to time.Time) ([]segment, error) {
	if !from.Before(to) {
		return nil, nil
	}
	rows, err := f.db.Query(ctx, ledgerSQL, f.oldest, f.seen, firstID(from), firstID(to))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (s segment, err error) {
		var (
			id  [16]byte
			xid int64
		)
		err = row.Scan(&id, &s.records, &xid)
		s.first, s.writer = id, f.now.full(uint32(xid))
		return s, err
	})
}

// lateSegments returns the new segments of the hours that late_changes newly tells of, as far as they are before a time, by
// id. hours is how many such hours there are.
func (f *finder) lateSegments(ctx context.Context, before time.Time) (segments []segment, hours int, err error) {
	rows, err := f.db.Query(ctx, hoursSQL, f.oldest, f.seen, f.now.at.Add(-lateReach))
	if err != nil {
		return nil, 0, err
	}
	changed, err := pgx.CollectRows(rows, pgx.RowTo[time.Time])
	if err != nil {
		return nil, 0, err
	}
	slices.SortFunc(changed, time.Time.Compare)
	for _, hour := range changed {
		end := hour.Add(time.Hour)
		if end.After(before) {
			end = before
		}
		found, err := f.ledger(ctx, hour, end)
		if err != nil {
			return nil, 0, err
		}
		segments = append(segments, found...)
	}
	return segments, len(changed), nil
}

// records calls give with the records of segments, by id. The index on inserted_at is over ranges of pages, so one look at
// a span of time costs less than one for each segment.
func (f *finder) records(ctx context.Context, segments []segment, give giveFunc) error {
	segments = slices.SortedFunc(slices.Values(segments), segment.compare)
	for len(segments) > 0 {
		n := 1
		for n < len(segments) && frame.Time(segments[n].first).Sub(frame.Time(segments[n-1].first)) <= segmentsApart {
			n++
		}
		run := segments[:n]
		segments = segments[n:]
		mine := func(r foundRow) error {
			if _, found := segmentOf(run, r.id); !found {
				return nil
			}
			return give(r)
		}
		if err := f.rows(ctx, mine, recordsSQL, f.oldest, frame.Time(run[0].first), frame.Time(run[n-1].first)); err != nil {
			return err
		}
	}
	return nil
}

// foundRow is a row of logs that a finder has found.
type foundRow struct {
	id     uuid.UUID
	writer int64 // the transaction that wrote it
	time   time.Time
	data   []byte
}

// giveFunc takes a row. The row's data is good until it returns.
type giveFunc func(foundRow) error

// rows calls give with the rows of a statement that selects id, xmin, the time and data.
func (f *finder) rows(ctx context.Context, give giveFunc, sql string, args ...any) error {
	rows, err := f.db.Query(ctx, sql, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		raw := rows.RawValues()
		var xid int64
		r := foundRow{id: uuid.UUID(raw[0]), data: raw[3]}
		if err := rows.Scan(nil, &xid, &r.time, nil); err != nil {
			return err
		}
		r.writer = f.now.full(uint32(xid))
		if err := give(r); err != nil {
			return err
		}
	}
	return rows.Err()
}

// firstID returns the least of all ids of a time.
func firstID(at time.Time) [16]byte {
	var id [16]byte
	ms := uint64(at.UnixMilli())
	for i := range 6 {
		id[5-i] = byte(ms >> (8 * i))
	}
	return id
}
