package partition

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// The sums of changes tell that the files of a range have all of its rows, as long as everybody who stores rows notes them. A drop does not rely on that
// alone: before it, the rows of a partition are counted and compared with those of its files.

// countSQL counts the rows that a partition has of a range, and those that files have of it, and reports whether they seem to be the same: as many, with
// the same first and last id. Ids begin with the time of a row's arrival, so rows that came later than the copy do not go unseen behind others that were deleted.
const countSQL = `WITH files AS (SELECT coalesce(sum(rows), 0) AS rows, min(first_id::text COLLATE "C") AS first, max(last_id::text COLLATE "C") AS last FROM archive_files WHERE from_at = $1 AND state = 'published'),
	partition AS (SELECT count(*) AS rows, min(id::text COLLATE "C") AS first, max(id::text COLLATE "C") AS last FROM ONLY %s WHERE inserted_at >= $1 AND inserted_at < $2)
	SELECT partition.rows, files.rows::bigint, partition.rows = files.rows AND (partition.first, partition.last) IS NOT DISTINCT FROM (files.first, files.last) FROM partition, files`

// lacking describes what the published files of a partition's ranges lack of its rows; "" if they have all. It is exact if no rows come
// meanwhile. As a rule it takes one count of the partition. Where partition and files have different rows, it looks for each row's id in the files: so it is with a
// partition that was made for late rows after another one was dropped, which has few.
func (k *Keeper) lacking(ctx context.Context, conn *pgx.Conn, p partition, ranges []archivedRange) (lack string, err error) {
	for _, r := range ranges {
		whole := !r.from.Before(p.from) && !r.to.After(p.to)
		if whole {
			var rows, inFiles int64
			var same bool
			if err := conn.QueryRow(ctx, fmt.Sprintf(countSQL, p.quoted()), r.from, r.to).Scan(&rows, &inFiles, &same); err != nil {
				return "", fmt.Errorf("count the rows of %s: %w", p.name, err)
			}
			if same {
				continue
			}
		}
		missing, err := k.rowsWithoutFile(ctx, conn, p, r)
		if err != nil {
			return "", fmt.Errorf("compare the rows of %s with files: %w", p.name, err)
		}
		if missing > 0 {
			return fmt.Sprintf("the archive's files of the range from %s to %s lack %d of its rows", r.from.Format(time.RFC3339), r.to.Format(time.RFC3339), missing), nil
		}
	}
	return "", nil
}

// rowsWithoutFile returns how many rows of a partition are of a range and in none of its files.
func (k *Keeper) rowsWithoutFile(ctx context.Context, conn *pgx.Conn, p partition, r archivedRange) (missing int, err error) {
	files, err := published(ctx, conn, "from_at = $1", r.from)
	if err != nil {
		return 0, err
	}
	part := r.timeRange
	if part.from.Before(p.from) {
		part.from = p.from
	}
	if part.to.After(p.to) {
		part.to = p.to
	}
	err = pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		for _, err := range withoutRows(ctx, rangeRows(ctx, tx, part), k.Partitions.Files, files) {
			if err != nil {
				return err
			}
			missing++
		}
		return nil
	})
	return missing, err
}

// keepIfLacking lets a partition stay if files lack rows of it that nothing has noted, and returns what they lack. It notes the rows now: searches find them
// at once, and the archiver copies them.
func (k *Keeper) keepIfLacking(ctx context.Context, conn *pgx.Conn, p partition, ranges []archivedRange) (obstacle string, err error) {
	lack, err := k.lacking(ctx, conn, p, ranges)
	if err != nil || lack == "" {
		return "", err
	}
	noted := false
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		ranges, err := archivedRanges(ctx, conn, p.timeRange, forUpdate)
		if err != nil {
			return err
		}
		if noted = !upToDate(ranges); noted {
			return nil
		}
		if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '2s'; DROP TRIGGER IF EXISTS "+refusal+" ON "+p.quoted()+"; COMMENT ON TABLE "+p.quoted()+" IS NULL"); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, NoteChangesSQL(hoursSQL), p.from, p.to); err != nil {
			return err
		}
		return noteTimes(ctx, tx, p.timeRange)
	})
	switch {
	case err != nil:
		return "", fmt.Errorf("keep %s, because %s: %w", p.name, lack, err)
	case noted:
		return newRows, nil
	}
	if k.Incomplete != nil {
		k.Incomplete.Inc()
	}
	k.Log.Warn("rows were stored in a partition that was copied, and nothing had noted them; it is kept and copied again", "table", p.name, "because", lack)
	return lack, nil
}
