package tail

import (
	"context"
	"slices"
	"time"
)

const snapshotSQL = `SELECT pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint,
		ARRAY(SELECT x::text::bigint FROM pg_snapshot_xip(s) AS x ORDER BY 1), clock_timestamp() FROM pg_current_snapshot() AS s`

// snapshot knows which transactions are visible. Transaction ids have 64 bits.
type snapshot struct {
	xmin, xmax int64     // every transaction before xmin is visible, none from xmax on
	pending    []int64   // transactions before xmax that are not visible, as far as the server tells
	at         time.Time // by the database's clock
}

// takeSnapshot returns the snapshot of a transaction.
func takeSnapshot(ctx context.Context, db querier) (*snapshot, error) {
	s := new(snapshot)
	err := db.QueryRow(ctx, snapshotSQL).Scan(&s.xmin, &s.xmax, &s.pending, &s.at)
	return s, err
}

// sees reports whether what a transaction wrote is visible.
func (s *snapshot) sees(x int64) bool { return x < s.xmax && !slices.Contains(s.pending, x) }

// full returns all 64 bits of a transaction id before xmax. A row keeps only the lower 32.
func (s *snapshot) full(x uint32) int64 {
	full := s.xmax&^0xffffffff | int64(x)
	if full >= s.xmax {
		full -= 1 << 32
	}
	return full
}
