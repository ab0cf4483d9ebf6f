package partition

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/archive"
)

// refusal is the name of the trigger that refuses rows for a partition that is about to be detached.
const refusal = "millrace_refuse_row"

// olderSnapshotSQL reports whether somebody still reads in a snapshot that may be from before the ranges' last change.
var olderSnapshotSQL = `SELECT EXISTS (SELECT FROM pg_stat_activity a, archive_ranges r
	WHERE ` + archive.TouchesSQL("$1", "$2") + ` AND a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.backend_xmin IS NOT NULL
	AND age(a.backend_xmin) >= age(r.xmin))`

// release makes a partition one whose rows may go: with an archive, published files have all of them, and everybody who reads logs knows that
// the files alone have them from now on. It returns why it could not, or "" if it has. A later round tries again.
//
// There are four steps. First the ranges become those of files alone, which changes no answer. Then nobody must be left who does not
// see that. Then, under a lock that keeps writers out, the sums of changes are compared once more, and a trigger keeps further rows out until the
// partition is detached. Last, the rows are counted, and files must have them all. They are counted before the first step, too, when nobody waits.
func (k *Keeper) release(ctx context.Context, conn *pgx.Conn, p partition, now time.Time) (obstacle string, err error) {
	ranges, err := archivedRanges(ctx, conn, p.timeRange, "")
	if err != nil {
		return "", err
	}
	for _, r := range ranges {
		if r.keptUntil.After(now) {
			return "its rows were restored, to be kept until " + r.keptUntil.UTC().Format(time.RFC3339), nil
		}
	}
	required := k.Archived && !expired(p.to, k.ArchiveRetention, now)
	if !required && (len(ranges) == 0 || !upToDate(ranges)) {
		return "", nil
	}
	if required && (len(gaps(p.timeRange, ranges)) > 0 || !upToDate(ranges)) {
		if p.marked() { // rows have come since; the archiver leaves out what is marked
			err = unmark(ctx, conn, p)
		}
		return "the archive does not have all of its rows yet", err
	}
	count := func() (obstacle string, err error) {
		if !required { // its rows go whether or not files have them
			return "", nil
		}
		return k.keepIfLacking(ctx, conn, p, ranges)
	}
	if !p.marked() || !filesOnly(ranges) {
		if obstacle, err = count(); err != nil || obstacle != "" {
			return obstacle, err
		}
		if obstacle, err = k.leaveToFiles(ctx, conn, p); err != nil || obstacle != "" {
			return obstacle, err
		}
	}
	var older bool
	if err := conn.QueryRow(ctx, olderSnapshotSQL, p.from, p.to).Scan(&older); err != nil {
		return "", err
	}
	if older {
		return "a transaction reads that began before the files alone had its rows", nil
	}
	if obstacle, err = k.refuseRows(ctx, conn, p); err != nil || obstacle != "" {
		return obstacle, err
	}
	return count() // once more: from now on no row comes
}

const newRows = "rows have come since it was copied"

// leaveToFiles marks a partition, and its ranges become those of files alone.
func (k *Keeper) leaveToFiles(ctx context.Context, conn *pgx.Conn, p partition) (obstacle string, err error) {
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		ranges, err := archivedRanges(ctx, conn, p.timeRange, forUpdate)
		if err != nil {
			return err
		}
		if !upToDate(ranges) {
			obstacle = newRows
			return nil
		}
		if _, err := tx.Exec(ctx, "UPDATE archive_ranges SET files_only = true WHERE "+archive.TouchesSQL("$1", "$2")+" AND NOT files_only AND generation > 0", p.from, p.to); err != nil {
			return err
		}
		return mark(ctx, conn, p)
	})
	return obstacle, err
}

// refuseRows puts the trigger on a partition that refuses rows, if files have all of its rows. Writers that are at it end first.
func (k *Keeper) refuseRows(ctx context.Context, conn *pgx.Conn, p partition) (obstacle string, err error) {
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '2s'"); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "LOCK TABLE ONLY "+p.quoted()+" IN SHARE ROW EXCLUSIVE MODE"); err != nil {
			return err
		}
		ranges, err := archivedRanges(ctx, conn, p.timeRange, forUpdate)
		if err != nil {
			return err
		}
		if !upToDate(ranges) {
			obstacle = newRows
			_, err := tx.Exec(ctx, "COMMENT ON TABLE "+p.quoted()+" IS NULL") // so that it is copied again
			return err
		}
		_, err = tx.Exec(ctx, "CREATE OR REPLACE TRIGGER "+refusal+" BEFORE INSERT ON "+p.quoted()+" FOR EACH ROW EXECUTE FUNCTION millrace_refuse_row()")
		return err
	})
	if err != nil {
		err = fmt.Errorf("close %s to new rows: %w", p.name, err)
	}
	return obstacle, err
}

// upToDate reports whether the files of all ranges have all of their rows.
func upToDate(ranges []archivedRange) bool {
	for _, r := range ranges {
		if !r.upToDate {
			return false
		}
	}
	return true
}

// filesOnly reports whether files alone have the rows of all ranges.
func filesOnly(ranges []archivedRange) bool {
	for _, r := range ranges {
		if !r.filesOnly {
			return false
		}
	}
	return true
}

// mark writes down at a partition that retention is about to detach and drop it.
func mark(ctx context.Context, conn *pgx.Conn, p partition) error {
	text := dropMark + p.from.Format(time.RFC3339) + "/" + p.to.Format(time.RFC3339)
	if _, err := conn.Exec(ctx, "COMMENT ON TABLE "+p.quoted()+" IS '"+text+"'"); err != nil {
		return fmt.Errorf("mark %s: %w", p.name, err)
	}
	return nil
}
