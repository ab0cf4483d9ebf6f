package worker

import (
	"bytes"
	"context"
	"errors"
	"regexp"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"

	"millrace/internal/frame"
)

// copyCanary copies an empty record and takes it back. It fails if the table refuses even that.
func (t *transaction) copyCanary(ctx context.Context, canary segment) error {
	canary.Records, canary.Body = 1, []byte("{}\n")
	if _, err := t.conn.Exec(ctx, "SAVEPOINT canary"); err != nil {
		return err
	}
	if err := copyRows(ctx, t.conn, []segment{canary}, newRecordTimes(t.times.rule, t.parts)); err != nil {
		return err
	}
	_, err := t.conn.Exec(ctx, "ROLLBACK TO SAVEPOINT canary; RELEASE SAVEPOINT canary")
	return err
}

// copyGood copies the segments' records except the bad ones, which become dead letters. PostgreSQL mostly names the row that it
// refused. Then the rows before it are copied, and it becomes the first of the rest. If it is refused again, it is bad. If PostgreSQL
// names no row, the batch is halved. Then a bad record costs about two COPYs for each halving.
func (t *transaction) copyGood(ctx context.Context, segments []segment) error {
	for len(segments) > 0 {
		refusal, err := t.copySaved(ctx, segments)
		if refusal == nil {
			return err
		}
		n, row := records(segments), refusedRow(refusal)
		switch {
		case n == 1 || row == 1:
			bad, after := split(segments, 1)
			t.rows--
			t.letters = append(t.letters, bad[0].letter(reasonData, refusal))
			segments = after
		case row > 1 && row <= n:
			before, rest := split(segments, row-1)
			if err := t.copyGood(ctx, before); err != nil {
				return err
			}
			segments = rest
		default:
			first, second := split(segments, n/2)
			if err := t.copyGood(ctx, first); err != nil {
				return err
			}
			segments = second
		}
	}
	return nil
}

// copySaved copies the segments' records, or none of them if one is refused. It returns the refusal, or another error.
func (t *transaction) copySaved(ctx context.Context, segments []segment) (refusal, err error) {
	t.watchdog.moved()
	if _, err := t.conn.Exec(ctx, "SAVEPOINT bisect"); err != nil {
		return nil, err
	}
	err = copyRows(ctx, t.conn, segments, t.times)
	if err == nil {
		_, err = t.conn.Exec(ctx, "RELEASE SAVEPOINT bisect")
		return nil, err
	}
	if class := classify(err); class != badRecord && !(t.doubtful && class == doubtful) || t.conn.IsClosed() {
		return nil, err
	}
	refusal = err
	_, err = t.conn.Exec(ctx, "ROLLBACK TO SAVEPOINT bisect; RELEASE SAVEPOINT bisect")
	if err != nil {
		return nil, err
	}
	return refusal, nil
}

// copyContext finds the number of the row in what PostgreSQL says about an error of COPY, in any of its languages.
var copyContext = regexp.MustCompile(`(?m)^COPY logs, \D*(\d+)`)

// refusedRow returns the number of the row that a COPY failed at, counted from 1. It returns 0 if err names no row.
func refusedRow(err error) int {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return 0
	}
	m := copyContext.FindStringSubmatch(pg.Where)
	if m == nil {
		return 0
	}
	row, err := strconv.Atoi(m[1])
	if err != nil {
		return 0
	}
	return row
}

// split returns the segments' first n records, and the others.
func split(segments []segment, n int) (first, second []segment) {
	for i, s := range segments {
		if n == 0 {
			return segments[:i], segments[i:]
		}
		if n >= s.Records {
			n -= s.Records
			continue
		}
		end := 0
		for range n {
			end += bytes.IndexByte(s.Body[end:], '\n') + 1
		}
		a, b := s, s
		a.Records, a.Body = n, s.Body[:end]
		b.Base, b.Records, b.Body = frame.ID(s.Base, n), s.Records-n, s.Body[end:]
		return slices.Concat(segments[:i], []segment{a}), slices.Concat([]segment{b}, segments[i+1:])
	}
	return segments, nil
}
