package worker

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/archive"
	"millrace/internal/frame"
	"millrace/internal/pg"
	"millrace/internal/testenv"
	"millrace/worker/partition"
)

// TestRowsOfAPublishedRangeAreNotedWhateverTheClockSays: the clocks of the database and of the workers are set back after a partition was copied.
// Rows that are new by these clocks then lie in the range of files that are published.
func TestRowsOfAPublishedRangeAreNotedWhateverTheClockSays(t *testing.T) {
	url := testenv.Schema(t)
	db := workerConn(t, url)
	files := archive.Folder(t.TempDir())
	var shift time.Duration
	now := func() time.Time { return time.Now().Add(shift) }
	sessions := []*pgx.Conn{db}
	link := func() pg.Link {
		conn := workerConn(t, url)
		sessions = append(sessions, conn)
		return pg.NewLink(func(context.Context) (*pgx.Conn, error) { return conn, nil }, nil)
	}
	parts := partition.New(time.Hour)
	parts.Files = files
	archiver := &partition.Archiver{
		Link: link(), Source: link(), Partitions: parts, Store: files,
		Calm: func(context.Context) bool { return true }, Log: slog.New(slog.DiscardHandler), Now: now,
	}
	keeper := &partition.Keeper{
		Link: link(), Partitions: parts, Retention: time.Hour, Archived: true, Remember: partition.LedgerKeep, Log: slog.New(slog.DiscardHandler), Now: now,
	}
	setClock := func(by time.Duration) {
		shift = by
		testenv.ShiftClock(t, by, sessions...)
	}
	round := func(round func(context.Context) error) {
		t.Helper()
		if err := round(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	came := time.Now()
	put := func(record string) {
		t.Helper()
		if _, err := store(t.Context(), db, parts, testRule, []segment{segmentOf(frame.BaseAt(came), record)}, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	const noted = "SELECT coalesce(sum(changes), 0) FROM late_changes"
	put(`{"a":1}`)
	if n := testenv.Count(t, db, noted); n != 0 {
		t.Fatalf("%d changes are noted, want none", n)
	}
	setClock(3 * time.Hour)
	round(archiver.Round)
	want(t, db, 1, "SELECT count(*) FROM archive_files WHERE state = 'published'")
	setClock(0)
	put(`{"a":2}`)
	if n := testenv.Count(t, db, noted); n != 1 {
		t.Fatalf("%d changes are noted, want 1", n)
	}

	// It is copied and dropped as others are, and none is lost.
	setClock(3 * time.Hour)
	testenv.Eventually(t, time.Minute, "the partition is copied and dropped", func() bool {
		round(archiver.Round)
		round(keeper.Round)
		return testenv.Count(t, db, allLogs) == 0
	})
	want(t, db, 2, "SELECT sum(rows) FROM archive_files WHERE state = 'published'")
}
