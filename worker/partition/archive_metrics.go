package partition

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
)

// ArchiveMetrics are what the worker that copies to the archive tells of it. The others leave them at zero, but for Away. Incomplete is told by the keeper that leads.
type ArchiveMetrics struct {
	Away          prometheus.Gauge   // 1 while the store can't be used
	BehindSeconds prometheus.Gauge   // since the oldest partition that is not in the archive was due
	BehindRows    prometheus.Gauge   // that are due: of closed partitions as PostgreSQL estimates, of the open one as the ledger has them
	Files         prometheus.Gauge   // published
	FileBytes     prometheus.Gauge   // of published files
	Failures      prometheus.Counter // of copies
	Incomplete    prometheus.Counter // see Keeper.Incomplete
	Rows          prometheus.Counter // copied
	Bytes         prometheus.Counter // written
}

func (m *ArchiveMetrics) countFailure() {
	if m != nil {
		m.Failures.Inc()
	}
}

func (m *ArchiveMetrics) countCopy(rows int, bytes int64) {
	if m != nil {
		m.Rows.Add(float64(rows))
		m.Bytes.Add(float64(bytes))
	}
}

// reportBehind tells how far copying is behind. What can't be read is told by a later round.
func (m *ArchiveMetrics) reportBehind(ctx context.Context, conn *pgx.Conn, a *Archiver, all []partition, now time.Time) {
	if m == nil {
		return
	}
	since, rows := now, 0.0
	late := make(map[time.Time]time.Time)
	for _, p := range all {
		if a.isOpen(p, now) {
			waiting, lacking, err := a.openBehind(ctx, conn, p, now)
			if err != nil {
				return
			}
			rows += float64(waiting)
			if lacking.Before(since) {
				since = lacking
			}
			continue
		}
		if !a.isDue(p, now) {
			continue
		}
		ranges, err := archivedRanges(ctx, conn, p.timeRange, "")
		if err != nil {
			return
		}
		lacking := p.to.Add(a.after())
		if len(keptGaps(p.timeRange, ranges, a.Retention, now)) == 0 {
			waits, err := a.waitsForCopyAnew(ctx, conn, p, ranges, now)
			if err != nil {
				return
			}
			if !waits {
				continue
			}
			if known, ok := a.late[p.from]; ok {
				lacking = known
			} else {
				lacking = now
			}
			late[p.from] = lacking
		}
		if lacking.Before(since) {
			since = lacking
		}
		var estimate float64
		if err := conn.QueryRow(ctx, "SELECT greatest(reltuples, pg_stat_get_live_tuples(oid), 0) FROM pg_class WHERE oid = to_regclass($1)", p.quoted()).Scan(&estimate); err != nil {
			return
		}
		rows += estimate
	}
	a.late = late
	m.BehindSeconds.Set(now.Sub(since).Seconds())
	m.BehindRows.Set(rows)
}

// openBehind returns how many rows of an open partition are old enough and not copied, and since when there are more than may wait. That is now if there are not.
func (a *Archiver) openBehind(ctx context.Context, conn *pgx.Conn, p partition, now time.Time) (waiting int64, since time.Time, err error) {
	ranges, err := archivedRanges(ctx, conn, p.timeRange, "")
	if err != nil {
		return 0, now, err
	}
	pieces, err := a.pieces(ctx, conn, p, ranges, now)
	if err != nil {
		return 0, now, err
	}
	since = now
	for _, piece := range slices.Backward(pieces) {
		waiting += piece.rows
		if waiting > a.mostRows() {
			since = piece.to.Add(a.after())
		}
	}
	return waiting, since, nil
}

// waitsForCopyAnew reports whether a range of a closed partition is out of date and may be copied anew.
func (a *Archiver) waitsForCopyAnew(ctx context.Context, conn *pgx.Conn, p partition, ranges []archivedRange, now time.Time) (bool, error) {
	for _, r := range ranges {
		if r.upToDate {
			continue
		}
		may, _, err := a.mayCopyAnew(ctx, conn, p, r, now)
		if may || r.filesOnly || err != nil {
			return true, err
		}
	}
	return false, nil
}

// reportFiles tells how many files there are.
func (m *ArchiveMetrics) reportFiles(ctx context.Context, conn *pgx.Conn) {
	if m == nil {
		return
	}
	var files, bytes float64
	if err := conn.QueryRow(ctx, "SELECT count(*), coalesce(sum(bytes), 0)::float8 FROM archive_files WHERE state = 'published'").Scan(&files, &bytes); err == nil {
		m.Files.Set(files)
		m.FileBytes.Set(bytes)
	}
}
