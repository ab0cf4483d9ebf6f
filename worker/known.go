package worker

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/internal/frame"
)

const (
	// takenSQL finds the segments with ids that rows or dead letters have. It is a UNION because Citus, if it distributes logs, does
	// not take one EXISTS OR the other.
	takenSQL = `SELECT s.base FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::timestamptz[]) AS s (base, first, last, at)
		JOIN logs l ON l.inserted_at = s.at AND l.ID BETWEEN s.first AND s.last
		UNION SELECT s.base FROM unnest($1::uuid[], $2::uuid[], $3::uuid[]) AS s (base, first, last)
		WHERE EXISTS (SELECT FROM dead_letters d WHERE d.record_id BETWEEN s.first AND s.last)`

	// knownSQL tells for each record whether a row and a dead letter have its id, and whether they are equal to it.
	knownSQL = `SELECT place, in_logs, in_letters FROM millrace_known_records('logs', $1, $2, $3)`
)

// lookUp returns the segments whose ids neither rows, nor files of the archive, nor dead letters have. All of them are so old that the ledger may have forgotten
// them. lookUp accounts for the other segments. Such a segment was stored before, say in a frame whose acknowledgement was lost a
// week before the worker runs again. Or its ids stand for other records.
func (t *transaction) lookUp(ctx context.Context, segments []segment) ([]segment, error) {
	var bases, first, last [][16]byte
	var times []time.Time
	for _, s := range segments {
		for _, r := range s.idRanges() {
			bases, first, last, times = append(bases, s.Base), append(first, r[0]), append(last, r[1]), append(times, frame.Time(s.Base))
		}
	}
	rows, err := t.conn.Query(ctx, takenSQL, bases, first, last, times)
	if err != nil {
		return nil, err
	}
	taken, err := pgx.CollectRows(rows, pgx.RowTo[[16]byte])
	if err != nil {
		return nil, err
	}
	// After logs: what logs has no longer, published files have.
	if segments, err = t.lookUpInArchive(ctx, segments); err != nil {
		return nil, fmt.Errorf("look into the archive: %w", err)
	}
	for _, s := range segments {
		if t.archived.hasAny(s) && !slices.Contains(taken, [16]byte(s.Base)) {
			taken = append(taken, [16]byte(s.Base))
		}
	}
	if len(taken) == 0 {
		return segments, nil
	}
	var unknown []segment
	doubtful := make(map[uuid.UUID]segment)
	for _, s := range segments {
		if slices.Contains(taken, [16]byte(s.Base)) {
			doubtful[s.Base] = s
		} else {
			unknown = append(unknown, s)
		}
	}
	if err := t.inLedger(ctx, doubtful, taken); err != nil { // the ledger may remember them all the same
		return nil, err
	}
	for _, s := range doubtful {
		if err := t.compare(ctx, s); err != nil {
			return nil, err
		}
	}
	return unknown, nil
}

// compare accounts for a segment that the ledger does not have, and some of whose ids are taken. The segment was stored if all records
// that have its ids are equal to its own. A record whose id is free was set aside at that time and its dead letter dropped since, or
// it never came. It becomes a dead letter now, so that it is not lost.
func (t *transaction) compare(ctx context.Context, s segment) error {
	t.watchdog.moved()
	each := s.each()
	known, err := knownRecords(ctx, t.conn, each)
	if err == nil {
		err = t.archived.compare(ctx, t.conn, each, known)
	}
	if err != nil {
		return err
	}
	var absent []segment
	for k, found := range known {
		switch {
		case found.takenBy(true):
		case found.takenBy(false):
			t.reused++
			t.letters = append(t.letters, s.reusedLetter(fmt.Sprintf("another record is stored under the id %s, the %dth of these %d: "+
				"their Idempotency-Key or message_id was used before", each[k].Base, k+1, s.Records)))
			return nil
		default:
			absent = append(absent, each[k])
		}
	}
	t.duplicates += s.Records
	for _, record := range absent {
		t.letters = append(t.letters, record.reusedLetter(fmt.Sprintf("others of its segment %s are stored and this one is not: "+
			"its dead letter was dropped, or the key was used before for less", s.Base)))
	}
	return nil
}

// knownRecord is what rows and dead letters tell about a record's id: nil if none has it, true if an equal record has it, false if
// only other records have it. A row may be in logs or in a file of the archive.
type knownRecord struct{ inLogs, inLetters *bool }

// takenBy reports whether an equal record has the record's id (true), or only other records have it (false).
func (k knownRecord) takenBy(equal bool) bool {
	found, same := false, false
	for _, b := range []*bool{k.inLogs, k.inLetters} {
		found, same = found || b != nil, same || b != nil && *b
	}
	return found && same == equal
}

// knownRecords returns what the database knows of each record. The records are segments of one record each.
func knownRecords(ctx context.Context, conn *pgx.Conn, records []segment) ([]knownRecord, error) {
	ids, times, texts := make([][16]byte, len(records)), make([]time.Time, len(records)), make([][]byte, len(records))
	for i, r := range records {
		ids[i], times[i], texts[i] = r.Base, frame.Time(r.Base), bytes.TrimSuffix(r.Body, []byte("\n"))
	}
	rows, err := conn.Query(ctx, knownSQL, ids, times, texts)
	if err != nil {
		return nil, err
	}
	known := make([]knownRecord, len(records))
	var place int
	var found knownRecord
	_, err = pgx.ForEachRow(rows, []any{&place, &found.inLogs, &found.inLetters}, func() error {
		known[place-1] = found
		return nil
	})
	return known, err
}

// each returns a segment's records as segments of their own.
func (s segment) each() []segment {
	all := make([]segment, s.Records)
	for k := range all {
		end := bytes.IndexByte(s.Body, '\n') + 1
		all[k] = segment{Span: frame.Span{Segment: frame.Segment{Base: frame.ID(s.Base, k), Records: 1}, Body: s.Body[:end]}, from: s.from}
		s.Body = s.Body[end:]
	}
	return all
}

// idRanges returns the first and the last id of each run of a segment's ids. There are two runs if the ids wrap around. Those that an
// API makes never do.
func (s segment) idRanges() [][2]uuid.UUID {
	first, last := s.Base, frame.ID(s.Base, s.Records-1)
	if bytes.Compare(first[:], last[:]) <= 0 {
		return [][2]uuid.UUID{{first, last}}
	}
	lowest, highest := first, first
	copy(lowest[8:], []byte{0x80, 0, 0, 0, 0, 0, 0, 0})
	copy(highest[8:], []byte{0xbf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	return [][2]uuid.UUID{{first, highest}, {lowest, last}}
}
