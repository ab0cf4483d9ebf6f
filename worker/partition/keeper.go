package partition

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/internal/pg"
)

// Keeper makes partitions ahead of time and drops old ones. Every worker has one. The one that leads does the work, and the others
// only look how far the partitions reach. A keeper whose user does not own the tables never leads. It makes partitions ahead all the
// same, because there may be nobody else.
type Keeper struct {
	Link       pg.Link // as the user who owns the tables
	Partitions *Set
	Retention  time.Duration // age at which partitions of logs are dropped; zero: they are kept
	// Archived says that there is an archive: partitions that it does not have are not dropped, unless they are older than ArchiveRetention,
	// zero for never.
	Archived         bool
	ArchiveRetention time.Duration
	Remember         time.Duration // how long the ledger remembers a segment, from the end of its partition; see LedgerKeep
	TimeRule         string        // what the table settings has under that name, for replays; empty: it is left as it is
	Log              *slog.Logger
	Now              func() time.Time
	Due              *prometheus.GaugeVec // by table, how many partitions are left for later rounds to drop; may be nil
	Incomplete       prometheus.Counter   // partitions that were kept because files lacked rows that nothing had noted; may be nil

	leader     leader
	toldNoLead bool // the log has said that the user does not own the tables

	hoursRead time.Time               // see forgetHours
	goneSince map[time.Time]time.Time // by the beginning of a range that late_hours has and no partition: since when
}

// Run works until ctx is done. It owns the link.
func (k *Keeper) Run(ctx context.Context) {
	rounds(ctx, &k.Link, k.Log, "partitions could not be looked after", k.Round)
}

// Round makes one round of all steps. If one fails, the next ones follow all the same, and Round returns the error at the end.
func (k *Keeper) Round(ctx context.Context) error {
	conn, leads, err := k.leader.lead(ctx, &k.Link, keeperLock)
	if err != nil {
		return err
	}
	if !leads && k.leader.owns {
		return k.Partitions.refresh(ctx, conn, k.Partitions.logs)
	}
	var failed []error
	step := func(name string, err error) {
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", name, err))
		}
	}
	for _, t := range []table{k.Partitions.logs, k.Partitions.ledger} {
		step("make ahead", k.makeAhead(ctx, conn, t))
	}
	if leads {
		now, err := earlierClock(ctx, conn, k.Now())
		if err != nil {
			return errors.Join(append(failed, err)...)
		}
		step("retention", k.dropExpired(ctx, conn, now))
		step("ledger", k.dropForgotten(ctx, conn, now))
		step("late hours", k.forgetHours(ctx, conn, now))
		if k.TimeRule != "" {
			_, err := conn.Exec(ctx, noteSQL, "time_rule", k.TimeRule)
			step("note", err)
		}
	} else if !k.toldNoLead {
		k.toldNoLead = true
		k.Log.Info("the database user does not own the tables: partitions are dropped and indexed by workers whose user does (POSTGRES_OWNER_URL)")
	}
	return errors.Join(failed...)
}
