package worker

import (
	"context"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/archive"
	"millrace/internal/frame"
	"millrace/internal/pg"
	"millrace/internal/testenv"
	"millrace/worker/partition"
)

// leaveToArchive copies closed partitions to an archive and drops them.
func leaveToArchive(t *testing.T, db *pgx.Conn, newConn func() *pgx.Conn, store archive.Store) {
	t.Helper()
	link := func(conn *pgx.Conn) pg.Link {
		return pg.NewLink(func(context.Context) (*pgx.Conn, error) { return conn, nil }, nil)
	}
	quiet := slog.New(slog.DiscardHandler)
	parts := partition.New(24 * time.Hour)
	parts.Files = store
	a := &partition.Archiver{
		Link: link(newConn()), Source: link(newConn()), Partitions: parts, Store: store,
		Calm: func(context.Context) bool { return true }, Log: quiet, Now: time.Now,
	}
	if err := a.Round(t.Context()); err != nil {
		t.Fatal(err)
	}
	k := &partition.Keeper{Link: link(newConn()), Partitions: parts, Retention: 2 * 24 * time.Hour, Archived: true, Remember: partition.LedgerKeep, Log: quiet, Now: time.Now}
	// One round need not do: the keeper waits for the end of any transaction in the database that is older than the files' turn.
	testenv.Eventually(t, time.Minute, "the partitions are dropped", func() bool {
		if err := k.Round(t.Context()); err != nil {
			t.Fatal(err)
		}
		return testenv.Count(t, db, allLogs) == 0
	})
}

// TestWhatTheLedgerForgotIsLookedForInTheArchive: rows that files alone have are not stored again, and others under their ids are set aside.
func TestWhatTheLedgerForgotIsLookedForInTheArchive(t *testing.T) {
	for name, c := range map[string]struct {
		before, after []string
		duplicates    int
		letters       []string // payloads
		without       bool     // the worker has no archive
	}{
		"the same":          {[]string{`{"a":1}`, `{"b":2}`}, []string{`{"a":1}`, `{"b":2}`}, 2, nil, false},
		"written otherwise": {[]string{`{"a":1,"b":1.0}`}, []string{`{"b":1.0,"a":1}`}, 1, nil, false},
		"others":            {[]string{`{"a":1}`, `{"b":2}`}, []string{`{"a":1}`, `{"c":3}`}, 0, []string{"{\"a\":1}\n{\"c\":3}\n"}, false},
		"more":              {[]string{`{"a":1}`}, []string{`{"a":1}`, `{"b":2}`}, 2, []string{"{\"b\":2}\n"}, false},
		"no JSON":           {[]string{`{"a":1}`}, []string{`{"a":nonsense}`}, 0, []string{"{\"a\":nonsense}\n"}, false},
		"no archive":        {[]string{`{"a":1}`}, []string{`{"a":1}`}, 0, []string{"{\"a\":1}\n"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			url := testenv.Schema(t)
			db := workerConn(t, url)
			files := archive.Folder(t.TempDir())
			base := frame.BaseAt(time.Now().Add(-8 * 24 * time.Hour))
			if _, err := store(t.Context(), db, partition.New(24*time.Hour), testRule, []segment{segmentOf(base, c.before...)}, nil, nil); err != nil {
				t.Fatal(err)
			}
			leaveToArchive(t, db, func() *pgx.Conn { return workerConn(t, url) }, files)
			parts := partition.New(24 * time.Hour)
			if !c.without {
				parts.Files = files
			}
			another := frame.BaseAt(time.Now().Add(-8 * 24 * time.Hour)) // of the same time, and new
			for again := range 2 {
				forgotten(t, db)
				segments := []segment{segmentOf(base, c.after...)}
				if again == 0 && !c.without {
					segments = append(segments, segmentOf(another, `{"z":1}`))
				}
				out, err := store(t.Context(), db, parts, testRule, segments, nil, nil)
				if err != nil {
					t.Fatal(err)
				}
				if again == 0 && out.duplicates != c.duplicates {
					t.Errorf("%d duplicates, want %d", out.duplicates, c.duplicates)
				}
			}
			stored := 1
			if c.without {
				stored = 0
			}
			want(t, db, stored, allLogs)
			for _, payload := range c.letters {
				want(t, db, 1, "SELECT count(*) FROM dead_letters WHERE reason = $2 AND payload = $1", []byte(payload), map[bool]string{false: reasonKeyReused, true: reasonNoArchive}[c.without])
			}
			want(t, db, len(c.letters), "SELECT count(*) FROM dead_letters")
			if !c.without {
				return
			}
			// With the archive, the letter is known to be stored.
			done, err := ReplayDeadWithin(t.Context(), db, nil, 0, files)
			if err != nil || len(done) != 1 || done[0].Err != nil || done[0].Rows != 0 {
				t.Errorf("replay: got %+v, %v", done, err)
			}
			want(t, db, 0, allLogs)
			want(t, db, 0, "SELECT count(*) FROM dead_letters")
		})
	}
}

// TestALetterNamesTheFileThatItWaitsFor: where several files can't be read, each letter has the error of one that may have its records.
func TestALetterNamesTheFileThatItWaitsFor(t *testing.T) {
	url := testenv.Schema(t)
	db := workerConn(t, url)
	folder := t.TempDir()
	files := archive.Folder(folder)
	var segments []segment
	for _, days := range []time.Duration{10, 8} {
		segments = append(segments, segmentOf(frame.BaseAt(time.Now().Add(-days*24*time.Hour)), `{"a":1}`))
	}
	if _, err := store(t.Context(), db, partition.New(24*time.Hour), testRule, segments, nil, nil); err != nil {
		t.Fatal(err)
	}
	leaveToArchive(t, db, func() *pgx.Conn { return workerConn(t, url) }, files)
	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	forgotten(t, db)
	parts := partition.New(24 * time.Hour)
	parts.Files = files
	if _, err := store(t.Context(), db, parts, testRule, segments, nil, nil); err != nil {
		t.Fatal(err)
	}
	want(t, db, 2, "SELECT count(*) FROM dead_letters WHERE reason = 'no_archive'")
	want(t, db, 2, "SELECT count(DISTINCT error) FROM dead_letters")
}

// TestOldSegmentsWaitAsideWhileTheArchiveIsAway: segments that files may have become dead letters while the store can't be read. All others are
// stored. When the store is back, replaying the letters stores what was not stored.
func TestOldSegmentsWaitAsideWhileTheArchiveIsAway(t *testing.T) {
	s3 := testenv.StartS3(t)
	proxy := testenv.StartFaultyProxy(t, s3.Addr)
	open := func() archive.Store {
		files, err := archive.OpenStore(s3.Archive(proxy.Addr), archiveCacheBytes)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { archive.CloseIdle(files) })
		return files
	}
	url := testenv.Schema(t)
	db := workerConn(t, url)
	at := time.Now().Add(-8 * 24 * time.Hour)
	first, between, last, after, fresh := frame.BaseAt(at), frame.BaseAt(at.Add(time.Second)), frame.BaseAt(at.Add(2*time.Second)), frame.BaseAt(at.Add(3*time.Second)), frame.NewBase()
	if _, err := store(t.Context(), db, partition.New(24*time.Hour), testRule, []segment{segmentOf(first, `{"a":1}`), segmentOf(last, `{"b":2}`)}, nil, nil); err != nil {
		t.Fatal(err)
	}
	leaveToArchive(t, db, func() *pgx.Conn { return workerConn(t, url) }, open())
	for _, fault := range []testenv.Fault{testenv.Cuts, testenv.SlowDown, testenv.Denies, testenv.Truncates, testenv.Hangs} {
		t.Run(fault.String(), func(t *testing.T) {
			parts := partition.New(24 * time.Hour)
			parts.Files = open()
			proxy.SpoilAll(fault)
			segments := func() []segment {
				return []segment{segmentOf(first, `{"a":1}`), segmentOf(between, `{"c":3}`), segmentOf(after, `{"d":4}`), segmentOf(fresh, `{"e":5}`, `{"f":6}`)}
			}
			for again := range 2 {
				testenv.Exec(t, db, "DELETE FROM ledger WHERE id <> $1", [16]byte(fresh)) // as it is a week later
				out, err := store(t.Context(), db, parts, testRule, segments(), nil, nil)
				if err != nil {
					t.Fatal(err)
				}
				if got, want := out.rows, map[int]int{0: 3}[again]; got != want {
					t.Errorf("delivery %d: %d rows stored, want %d", again+1, got, want)
				}
				want(t, db, 3, allLogs)
				want(t, db, 2, "SELECT count(*) FROM dead_letters WHERE reason = 'no_archive'")
			}
			files := open() // one for both replays: it comes back by itself
			if done, err := ReplayDeadWithin(t.Context(), db, nil, 0, files); err != nil || len(done) != 2 || done[0].Err == nil || done[1].Err == nil {
				t.Errorf("replay while the archive is away: got %+v, %v", done, err)
			}
			want(t, db, 2, "SELECT count(*) FROM dead_letters")
			proxy.SpoilAll(testenv.NoFault)
			done, err := ReplayDeadWithin(t.Context(), db, nil, 0, files)
			if err != nil || len(done) != 2 || done[0].Err != nil || done[1].Err != nil || done[0].Rows+done[1].Rows != 1 {
				t.Errorf("replay: got %+v, %v, want one row", done, err)
			}
			want(t, db, 0, "SELECT count(*) FROM dead_letters")
			want(t, db, 4, allLogs)
			want(t, db, 1, "SELECT count(*) FROM logs WHERE data = '{\"c\":3}'")
			testenv.Exec(t, db, "DELETE FROM logs")
			testenv.Exec(t, db, "DELETE FROM ledger")
		})
	}
}
