package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/internal/archive"
	"millrace/internal/frame"
	"millrace/worker/partition"
)

// archivedData is the records that files of the archive have under ids, as PostgreSQL writes them.
type archivedData map[[16]byte][]byte

// lookTime is how long a look into files may take while a transaction waits for it. A look takes a second where a store is slow.
const lookTime = 10 * time.Second

// unreadFile is a file of the archive that could not be read, and why.
type unreadFile struct {
	archive.Stored
	err error
}

// mayHave reports whether the file may have one of a segment's ids.
func (f unreadFile) mayHave(s segment) bool {
	return slices.ContainsFunc(s.idRanges(), func(r [2]uuid.UUID) bool {
		return bytes.Compare(r[0][:], f.LastID[:]) <= 0 && bytes.Compare(r[1][:], f.FirstID[:]) >= 0
	})
}

// archivedRecords returns what published files have under the ids of segments, and which of the files it could not read. The rows of the segments
// may be in files alone. The error is the database's or ctx's.
func archivedRecords(ctx context.Context, conn *pgx.Conn, store archive.Store, segments []segment) (found archivedData, unread []unreadFile, err error) {
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
		return nil, nil, nil
	}
	files, err := partition.PublishedFiles(ctx, conn, first, last)
	if err != nil || len(files) == 0 {
		return nil, nil, err
	}
	looking, cancel := context.WithTimeoutCause(ctx, lookTime, fmt.Errorf("the look took longer than %v", lookTime))
	defer cancel()
	for _, file := range files {
		// A store that is away is not asked again: archive.Watch does that, and no transaction waits for it.
		var failed error
		if away := archive.Away(store); away != nil {
			failed = away
		} else {
			failed = archive.FindRows(looking, store, []archive.Stored{file}, ranges, func(r *archive.Row) error {
				if found == nil {
					found = make(archivedData)
				}
				found[r.ID] = bytes.Clone(r.Data)
				return nil
			})
		}
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		if failed != nil {
			if looking.Err() != nil {
				failed = context.Cause(looking)
			}
			unread = append(unread, unreadFile{file, failed})
		}
	}
	return found, unread, nil
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

// lookUpInArchive finds what files have under the ids of segments, and returns the segments. It leaves out those that a file may have which it
// can't read, because the worker has no archive or the store is away, and accounts for them: they become dead letters, so that no others wait for
// the store.
func (t *transaction) lookUpInArchive(ctx context.Context, segments []segment) (rest []segment, err error) {
	var hidden []segment
	var reasons []error // of each that is hidden
	if t.parts.Files == nil {
		hidden, err = unreadable(ctx, t.conn, segments)
		reasons = slices.Repeat([]error{errors.New("this worker has none (ARCHIVE_URL)")}, len(hidden))
	} else {
		var unread []unreadFile
		t.archived, unread, err = archivedRecords(ctx, t.conn, t.parts.Files, segments)
		t.watchdog.moved()
		for _, s := range segments {
			if i := slices.IndexFunc(unread, func(f unreadFile) bool { return f.mayHave(s) }); i >= 0 {
				hidden, reasons = append(hidden, s), append(reasons, unread[i].err)
			}
		}
	}
	if err != nil || len(hidden) == 0 {
		return segments, err
	}
	for i, s := range hidden {
		why := fmt.Errorf("its records may be in the archive, which can't be read: %w", reasons[i])
		if t.unread == nil {
			t.unread = why
		}
		t.letters = append(t.letters, s.frameLetter(reasonNoArchive, why.Error()+": replay the letter when it can"))
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
	archived, unread, err := archivedRecords(ctx, conn, store, []segment{record})
	if err != nil {
		return err
	}
	for _, f := range unread {
		if f.mayHave(record) {
			return f.err
		}
	}
	return archived.compare(ctx, conn, []segment{record}, known)
}
