package tail

import (
	"context"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/internal/frame"
)

const (
	// unnoted is the age up to which a worker stores rows without a note in late_changes, and some time for the
	// clocks.
	unnoted = 35 * time.Second
	// lateReach is how old the hours in late_changes are that are looked at: the ledger remembers 7 days.
	lateReach = 8 * 24 * time.Hour
	// deadWatched is how many of the latest dead letters are watched for being replayed.
	deadWatched = 10_000
	// segmentsAtOnce is how many segments of the ledger one query reads the records of.
	segmentsAtOnce = 200
)

const (
	// newSQL keeps rows that no transaction before $1 wrote. age counts back from the present, so that it does not
	// matter when 32 bits have gone round.
	newSQL = ` AND age(xmin) <= (SELECT age($1::text::xid))`
	// unseenSQL leaves out those of $2.
	unseenSQL = ` AND NOT xmin = ANY($2::text[]::xid[])`

	sweepSQL  = `SELECT id, xmin::text::bigint, data::text FROM logs WHERE inserted_at >= $3` + newSQL + unseenSQL + ` ORDER BY id`
	ledgerSQL = `SELECT id, records, xmin::text::bigint FROM ledger WHERE id >= $3 AND id < $4` + newSQL + unseenSQL + ` ORDER BY id`
	lateSQL   = `SELECT DISTINCT hour FROM late_changes WHERE hour > $3` + newSQL + unseenSQL
	deadSQL   = `SELECT record_id FROM dead_letters WHERE record_id IS NOT NULL ORDER BY dead_at DESC LIMIT $1`

	recordsSQL = `SELECT l.id, l.xmin::text::bigint, l.data::text FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[]) AS s (first, last, at)
		JOIN logs l ON l.inserted_at = s.at AND l.id BETWEEN s.first AND s.last
		WHERE l.inserted_at >= $4 AND l.inserted_at <= $5 ORDER BY l.id`
)

// firstID is before all ids of a time.
func firstID(at time.Time) [16]byte {
	var id [16]byte
	ms := uint64(at.UnixMilli())
	for i := range 6 {
		id[5-i] = byte(ms >> (8 * i))
	}
	return id
}

// segment is a row of the ledger that is new, or a record in the place of one.
type segment struct {
	first   uuid.UUID
	records int
	xid     uint32
}

// querier is a connection or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// newSegments returns the segments of a time that no transaction before oldest entered, and none of those seen.
func newSegments(ctx context.Context, db querier, oldest string, seen []string, from, to time.Time) ([]segment, error) {
	if !from.Before(to) {
		return nil, nil
	}
	rows, err := db.Query(ctx, ledgerSQL, oldest, seen, firstID(from), firstID(to))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (s segment, err error) {
		var (
			id  [16]byte
			xid int64
		)
		err = row.Scan(&id, &s.records, &xid)
		s.first, s.xid = id, uint32(xid)
		return s, err
	})
}

// newHours returns the hours in which such transactions changed something late.
func newHours(ctx context.Context, db querier, oldest string, seen []string, now time.Time) ([]time.Time, error) {
	rows, err := db.Query(ctx, lateSQL, oldest, seen, now.Add(-lateReach))
	if err != nil {
		return nil, err
	}
	hours, err := pgx.CollectRows(rows, pgx.RowTo[time.Time])
	slices.SortFunc(hours, time.Time.Compare)
	return hours, err
}

// eachRecord calls give with the records of segments: id, xmin, data.
func eachRecord(ctx context.Context, db querier, segments []segment, give func(pgx.Rows) error) error {
	for chunk := range slices.Chunk(segments, segmentsAtOnce) {
		var firsts, lasts [][16]byte
		var times []time.Time
		for _, s := range chunk {
			firsts = append(firsts, s.first)
			lasts = append(lasts, frame.ID(s.first, s.records-1))
			times = append(times, frame.Time(s.first))
		}
		rows, err := db.Query(ctx, recordsSQL, firsts, lasts, times, slices.MinFunc(times, time.Time.Compare), slices.MaxFunc(times, time.Time.Compare))
		if err == nil {
			err = give(rows)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
