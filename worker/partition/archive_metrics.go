package partition

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
)

// ArchiveMetrics are what the worker that copies to the archive tells of it. The others leave them at zero, but for Away. Incomplete is told by the keeper that leads.
type ArchiveMetrics struct {
	Away          prometheus.Gauge   // 1 while the store can't be used
	BehindSeconds prometheus.Gauge   // since the oldest partition that is not in the archive was due
	BehindRows    prometheus.Gauge   // in partitions that are due, as PostgreSQL estimates
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
		if !a.isDue(p, now) {
			continue
		}
		ranges, err := archivedRanges(ctx, conn, p.timeRange, "")
		if err != nil {
			return
		}
		lacking := p.to.Add(max(a.After, leastArchiveAfter))
		if len(gaps(p.timeRange, ranges)) == 0 {
			if upToDate(ranges) {
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
