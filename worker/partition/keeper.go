package partition

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/internal/pg"
)

// Keeper looks after the partitions. Every worker has one, and the one that leads does the work; the others only
// look how far the partitions reach. One whose user does not own the tables never leads, and makes partitions ahead
// all the same: there may be nobody else.
type Keeper struct {
	Link       pg.Link // as the user who owns the tables
	Partitions *Set
	Retention  time.Duration // zero: keep
	Remember   time.Duration // how long the ledger remembers a segment, from the end of its partition
	Log        *slog.Logger
	Now        func() time.Time
	Due        *prometheus.GaugeVec // partitions of a table that are left to be dropped by later rounds; may be nil

	leader leader
	told   bool // that the user does not own the tables
}

// Run works until ctx is done. It owns the link.
func (k *Keeper) Run(ctx context.Context) {
	rounds(ctx, &k.Link, k.Log, "partitions could not be looked after", k.Round)
}

// Round is one round. The steps don't need each other: one that fails doesn't keep the next from its turn.
func (k *Keeper) Round(ctx context.Context) error {
	conn, leads, err := k.leader.lead(ctx, &k.Link, keeperLock)
	if err != nil {
		return err
	}
	if !leads && k.leader.owns {
		return k.Partitions.refresh(ctx, conn, k.Partitions.logs)
	}
	var failed []string
	step := func(name string, err error) {
		if err != nil {
			failed = append(failed, name+": "+err.Error())
		}
	}
	for _, t := range []table{k.Partitions.logs, k.Partitions.ledger} {
		step("make ahead", k.makeAhead(ctx, conn, t))
	}
	if leads {
		now, err := earlierClock(ctx, conn, k.Now())
		if err != nil {
			return err
		}
		step("retention", k.retain(ctx, conn, now))
		step("ledger", k.forget(ctx, conn, now))
	} else if !k.told {
		k.told = true
		k.Log.Info("the database user does not own the tables: partitions are dropped and indexed by workers whose user does (POSTGRES_OWNER_URL)")
	}
	if len(failed) > 0 {
		return fmt.Errorf("%s", strings.Join(failed, "; "))
	}
	return nil
}
