package partition

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// IntervalsAhead is how many partitions follow the current one.
const IntervalsAhead = 2

// makeAhead makes the table's partitions from now on, without a gap, until IntervalsAhead follow the current one.
func (k *Keeper) makeAhead(ctx context.Context, conn *pgx.Conn, t table) error {
	if err := k.Partitions.refresh(ctx, conn, t); err != nil {
		return err
	}
	at := k.Now()
	for last := at.Add(IntervalsAhead * t.interval); !at.After(last); {
		r, err := k.Partitions.ensure(ctx, conn, t, at)
		if err != nil {
			return err
		}
		at = r.to
	}
	return nil
}

// Ahead returns how far from now the known partitions of logs reach without a gap.
func (s *Set) Ahead(now time.Time) time.Duration {
	end := now
	for {
		r, ok := s.lookup(s.logs, end)
		if !ok {
			return end.Sub(now)
		}
		end = r.to
	}
}
