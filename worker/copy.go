package worker

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"sync"

	"github.com/jackc/pgx/v5"

	"millrace/internal/frame"
)

// The rows of a batch are written as PostgreSQL's binary COPY format by hand, straight from the frames' bytes
// into the buffer that pgconn sends. pgx's own CopyFrom would box four values a row. Worse, an error of its
// encoders in mid-COPY comes back as SQLSTATE 57014, query cancelled. That looks like an outage, although the
// record is at fault.
//
// Format: https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format".

const (
	copySQL = "COPY logs (id, inserted_at, time, data) FROM STDIN WITH (FORMAT binary)"

	// copyHeader is the signature, no flags, no extension.
	copyHeader = "PGCOPY\n\xff\r\n\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00"

	// copyTrailer stands where a row's number of fields would.
	copyTrailer = "\xff\xff"

	// rowHeadSize is the length of a row's head, which is all that precedes the text of data: the number of fields,
	// then length and value of id, of inserted_at and of time, the length of data and jsonb's version.
	rowHeadSize = 2 + 4 + 16 + 4 + 8 + 4 + 8 + 4 + 1

	// postgresEpoch is 2000-01-01 in microseconds of Unix time; timestamps count microseconds from there.
	postgresEpoch = 946_684_800_000_000
)

// copyReader reads segments as the body of a binary COPY. It copies each byte once and allocates nothing per
// record.
//
// pgconn reads it in a goroutine of its own. If the connection breaks, that goroutine may still run after CopyFrom has returned. The
// lock and close keep it from the frames' memory, which is the broker client's again by then.
type copyReader struct {
	mu       sync.Mutex
	closed   bool
	segments []segment // those after the current one
	current  segment   // Body is what is left of the segment's
	left     int       // records that are left of the current segment
	index    int       // of the current segment's next record, from 0
	times    *recordTimes
	head     [rowHeadSize]byte
	fixed    []byte // what Read returns first: the rest of the header, of the trailer, or of a row's head
	text     []byte // what Read returns next: the rest of the record
	ended    bool   // fixed is the trailer, or was
}

func newCopyReader(segments []segment, times *recordTimes) *copyReader {
	r := &copyReader{segments: segments, times: times, fixed: []byte(copyHeader)}
	binary.BigEndian.PutUint16(r.head[0:], 4)
	binary.BigEndian.PutUint32(r.head[2:], 16)
	binary.BigEndian.PutUint32(r.head[22:], 8)
	binary.BigEndian.PutUint32(r.head[34:], 8)
	r.head[50] = 1
	return r
}

// Read implements io.Reader.
func (r *copyReader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return 0, io.ErrClosedPipe
	}
	n := 0
	for {
		c := copy(p[n:], r.fixed)
		r.fixed = r.fixed[c:]
		n += c
		c = 0
		if len(r.fixed) == 0 {
			c = copy(p[n:], r.text)
			r.text = r.text[c:]
			n += c
		}
		if len(r.fixed)+len(r.text) > 0 {
			return n, nil // p is full
		}
		if r.ended {
			if n > 0 {
				return n, nil
			}
			return 0, io.EOF
		}
		r.next()
	}
}

// next takes up the next row, or the trailer after the last row. The caller holds mu.
func (r *copyReader) next() {
	for r.left == 0 {
		if len(r.segments) == 0 {
			r.fixed, r.ended = []byte(copyTrailer), true
			return
		}
		r.current, r.segments = r.segments[0], r.segments[1:]
		r.left, r.index = r.current.Records, 0
		came := frame.Time(r.current.Base)
		r.times.begin(came)
		binary.BigEndian.PutUint64(r.head[26:], uint64(came.UnixMicro()-postgresEpoch))
	}
	end := bytes.IndexByte(r.current.Body, '\n') // frame.Parse has counted them
	r.text = r.current.Body[:end]
	r.current.Body = r.current.Body[end+1:]
	id := frame.ID(r.current.Base, r.index)
	copy(r.head[6:], id[:])
	binary.BigEndian.PutUint64(r.head[38:], uint64(r.times.of(r.text)-postgresEpoch))
	binary.BigEndian.PutUint32(r.head[46:], uint32(end+1))
	r.fixed = r.head[:]
	r.index++
	r.left--
}

// close ends the reading. The bytes that Read has returned stay valid.
func (r *copyReader) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.segments, r.current, r.text = nil, segment{}, nil
}

// copyRows copies the segments' records into logs. times learns the times of what was copied. Nothing was if it returns an error.
func copyRows(ctx context.Context, conn *pgx.Conn, segments []segment, times *recordTimes) error {
	r := newCopyReader(segments, newRecordTimes(times.rule, times.parts))
	defer r.close()
	if _, err := conn.PgConn().CopyFrom(ctx, r, copySQL); err != nil {
		return copyError{fmt.Errorf("copy: %w", err)}
	}
	times.add(r.times)
	return nil
}
