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

// leaveToArchive copies closed partitions to an archive and drops them.
func leaveToArchive(t *testing.T, db *pgx.Conn, newConn func() *pgx.Conn, store archive.Store) {
	t.Helper()
	link := func(conn *pgx.Conn) pg.Link {
		return pg.NewLink(func(context.Context) (*pgx.Conn, error) { return conn, nil }, nil)
	}
	quiet := slog.New(slog.DiscardHandler)
	parts := partition.New(24 * time.Hour)
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
				want(t, db, 1, "SELECT count(*) FROM dead_letters WHERE reason = 'key_reused' AND payload = $1", []byte(payload))
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
