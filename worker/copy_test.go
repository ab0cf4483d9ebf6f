package worker

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"millrace/internal/frame"
	"millrace/internal/testenv"
	"millrace/worker/partition"
)

func segmentOf(base uuid.UUID, records ...string) segment {
	return segment{
		Span: frame.Span{Segment: frame.Segment{Base: base, Records: len(records)}, Body: []byte(strings.Join(records, "\n") + "\n")},
		from: &origin{queue: "logs.0"},
	}
}

// rows reads a binary COPY back, as "id inserted_at time data".
func rows(t *testing.T, b []byte) []string {
	t.Helper()
	rest, ok := bytes.CutPrefix(b, []byte(copyHeader))
	if !ok {
		t.Fatalf("no header: %x", b[:min(len(b), 19)])
	}
	var out []string
	for len(rest) > 2 {
		if n := binary.BigEndian.Uint16(rest); n != 4 {
			t.Fatalf("a row of %d fields", n)
		}
		rest = rest[2:]
		var field [4][]byte
		for i := range field {
			n := binary.BigEndian.Uint32(rest)
			field[i], rest = rest[4:4+n], rest[4+n:]
		}
		if field[3][0] != 1 {
			t.Fatalf("jsonb version %d", field[3][0])
		}
		out = append(out, fmt.Sprint(uuid.UUID(field[0]), " ", int64(binary.BigEndian.Uint64(field[1])), " ", int64(binary.BigEndian.Uint64(field[2])), " ", string(field[3][1:])))
	}
	if string(rest) != copyTrailer {
		t.Fatalf("trailer: %x", rest)
	}
	return out
}

func TestRowsAreWrittenInTheBinaryFormat(t *testing.T) {
	a := uuid.MustParse("01900000-0000-7000-bfff-fffffffffffe") // counts up over the end of the low 62 bits
	b := uuid.MustParse("01900000-0001-7000-8000-000000000000")
	long := `{"long":"` + strings.Repeat("x", 5000) + `"}`
	segments := []segment{segmentOf(a, `{}`, `{"time":"2000-01-01T00:00:01.5Z"}`, ``), segmentOf(b, long)}
	micros := func(id uuid.UUID) int64 { return frame.Time(id).UnixMicro() - postgresEpoch }
	want := []string{
		fmt.Sprint(a, " ", micros(a), " ", micros(a), " {}"),
		fmt.Sprint("01900000-0000-7000-bfff-ffffffffffff ", micros(a), ` 1500000 {"time":"2000-01-01T00:00:01.5Z"}`),
		fmt.Sprint("01900000-0000-7000-8000-000000000000 ", micros(a), " ", micros(a), ` `),
		fmt.Sprint(b, " ", micros(b), " ", micros(b), " ", long),
	}
	for name, wrap := range map[string]func(io.Reader) io.Reader{
		"at once": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader, "halves": iotest.HalfReader,
	} {
		got, err := io.ReadAll(wrap(newCopyReader(segments, testTimes())))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, rows(t, got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestReadingARowAllocatesNothing(t *testing.T) {
	const records = 10_000
	s := segmentOf(frame.NewBase(), strings.Split(strings.Repeat(`{"a":1}`+"\n", records-1)+`{"a":1}`, "\n")...)
	buf := make([]byte, 64<<10)
	allocs := testing.AllocsPerRun(10, func() {
		r := newCopyReader([]segment{s}, testTimes())
		for {
			if _, err := r.Read(buf); err != nil {
				return
			}
		}
	})
	if allocs > 12 { // the reader itself, what it notes of times, header and trailer
		t.Errorf("got %v allocations for %d records", allocs, records)
	}
}

func TestAClosedReaderTouchesNothing(t *testing.T) {
	r := newCopyReader([]segment{segmentOf(frame.NewBase(), `{}`)}, testTimes())
	r.close()
	if n, err := r.Read(make([]byte, 100)); n != 0 || !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %d, %v", n, err)
	}
}

func TestSplitKeepsIdsAndRecords(t *testing.T) {
	base, other := frame.NewBase(), frame.NewBase()
	segments := []segment{segmentOf(base, "a", "b", "c"), segmentOf(other, "d", "e")}
	all := rowsOf(segments)
	for n := range 6 {
		first, second := split(segments, n)
		if got := records(first); got != n {
			t.Errorf("split at %d: got %d records", n, got)
		}
		if diff := cmp.Diff(all, append(rowsOf(first), rowsOf(second)...)); diff != "" {
			t.Errorf("split at %d (-want +got):\n%s", n, diff)
		}
	}
}

func rowsOf(segments []segment) []string {
	var out []string
	for _, s := range segments {
		for k, line := range strings.Split(strings.TrimSuffix(string(s.Body), "\n"), "\n") {
			out = append(out, frame.ID(s.Base, k).String()+" "+line)
		}
	}
	return out
}

// TestPostgresReadsTheBinaryFormat checks that the server reads what the writer has written.
func TestPostgresReadsTheBinaryFormat(t *testing.T) {
	db := testenv.Connect(t, testenv.Schema(t))
	base := frame.NewBase()
	s := segmentOf(base, `{"a":1}`, `{"b":"ü€😀"}`)
	if _, err := store(context.Background(), db, partition.New(testInterval), testRule, []segment{s}, nil, nil); err != nil {
		t.Fatal(err)
	}
	if got := count(t, db, `SELECT count(*) FROM logs WHERE id = $1 AND inserted_at = $2 AND data = '{"b":"ü€😀"}'`, frame.ID(base, 1), frame.Time(base)); got != 1 {
		t.Error("the row is not there as it was sent")
	}
}

const testInterval = 24 * time.Hour
