package worker

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/archive"
	"millrace/internal/frame"
	"millrace/worker/partition"
)

// archivedData is the records that files of the archive have under ids, as PostgreSQL writes them.
type archivedData map[[16]byte][]byte

// archivedRecords returns what published files have under the ids of segments. The rows of the segments may be in files alone.
func archivedRecords(ctx context.Context, conn *pgx.Conn, store archive.Store, segments []segment) (archivedData, error) {
	var found archivedData
	var first, last time.Time
	var ranges [][2][16]byte
	for _, s := range segments {
		at := frame.Time(s.Base)
		if first.IsZero() || at.Before(first) {
			first = at
		}
		if at.After(last) {
			last = at
		}
		for _, r := range s.idRanges() {
			ranges = append(ranges, [2][16]byte{r[0], r[1]})
		}
	}
	if len(ranges) == 0 {
		return nil, nil
	}
	files, err := partition.PublishedFiles(ctx, conn, first, last)
	if err != nil || len(files) == 0 {
		return nil, err
	}
	err = archive.FindRows(ctx, store, files, ranges, func(r *archive.Row) error {
		if found == nil {
			found = make(archivedData)
		}
		found[r.ID] = bytes.Clone(r.Data)
		return nil
	})
	return found, err
}

// unreadable returns the segments whose records may be in files alone, for a worker that has no archive.
func unreadable(ctx context.Context, conn *pgx.Conn, segments []segment) ([]segment, error) {
	times := make([]time.Time, len(segments))
	for i, s := range segments {
		times[i] = frame.Time(s.Base)
	}
	rows, err := conn.Query(ctx, `SELECT (i - 1)::int FROM unnest($1::timestamptz[]) WITH ORDINALITY AS t (at, i)
		WHERE EXISTS (SELECT FROM archive_ranges WHERE files_only AND from_at <= at AND to_at > at) ORDER BY 1`, times)
	if err != nil {
		return nil, err
	}
	places, err := pgx.CollectRows(rows, pgx.RowTo[int])
	var found []segment
	for _, i := range places {
		found = append(found, segments[i])
	}
	return found, err
}

// lookUpInArchive finds what files have under the ids of segments. It accounts for segments that it can't look for because the worker has no
// archive, and returns the others.
func (t *transaction) lookUpInArchive(ctx context.Context, segments []segment) (rest []segment, err error) {
	if t.parts.Files != nil {
		t.archived, err = archivedRecords(ctx, t.conn, t.parts.Files, segments)
		return segments, err
	}
	hidden, err := unreadable(ctx, t.conn, segments)
	if err != nil || len(hidden) == 0 {
		return segments, err
	}
	for _, s := range hidden {
		t.reused++
		t.letters = append(t.letters, s.reusedLetter("its records may be in the archive, and this worker has none (ARCHIVE_URL): replay the letter with one"))
	}
	return slices.DeleteFunc(slices.Clone(segments), func(s segment) bool {
		return slices.ContainsFunc(hidden, func(h segment) bool { return h.Base == s.Base })
	}), nil
}

// hasAny reports whether one of a segment's ids is there.
func (d archivedData) hasAny(s segment) bool {
	if len(d) == 0 {
		return false
	}
	for k := range s.Records {
		if _, ok := d[frame.ID(s.Base, k)]; ok {
			return true
		}
	}
	return false
}

// compare adds to what is known of records what files tell about them. The records are segments of one record each.
func (d archivedData) compare(ctx context.Context, conn *pgx.Conn, records []segment, known []knownRecord) error {
	for i, r := range records {
		data, ok := d[r.Base]
		if !ok || known[i].inLogs != nil {
			continue
		}
		equal, err := isSameRecord(ctx, conn, data, bytes.TrimSuffix(r.Body, []byte("\n")))
		if err != nil {
			return err
		}
		known[i].inLogs = &equal
	}
	return nil
}

// isSameRecord reports whether a record is equal to one that PostgreSQL has written. A record that PostgreSQL does not take is equal to none.
func isSameRecord(ctx context.Context, conn *pgx.Conn, stored, record []byte) (same bool, err error) {
	err = conn.QueryRow(ctx, "SELECT millrace_same_record($1::text::jsonb, $2)", string(stored), record).Scan(&same)
	return same, err
}

// inArchive adds to what is known of a record what files tell about it. It fails if files may have it and there is no store.
func inArchive(ctx context.Context, conn *pgx.Conn, store archive.Store, record segment, known []knownRecord) error {
	if store == nil {
		hidden, err := unreadable(ctx, conn, []segment{record})
		if err == nil && len(hidden) > 0 {
			err = errors.New("it may be there, and ARCHIVE_URL is not set")
		}
		return err
	}
	archived, err := archivedRecords(ctx, conn, store, []segment{record})
	if err != nil {
		return err
	}
	return archived.compare(ctx, conn, []segment{record}, known)
}
