package partition

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/archive"
	"millrace/internal/testenv"
)

func testArchiver(conn, source *pgx.Conn, p *Set, store archive.Store) *Archiver {
	return &Archiver{
		Link: linkTo(conn), Source: linkTo(source), Partitions: p, Store: store, After: 10 * time.Minute,
		Calm: func(context.Context) bool { return true }, Log: slog.New(slog.DiscardHandler), Now: time.Now,
	}
}

// archived reads the rows of the published files.
func archived(t *testing.T, conn *pgx.Conn, store archive.Store) map[[16]byte]archive.Row {
	t.Helper()
	rows, err := conn.Query(t.Context(), "SELECT name, rows, bytes, tail_bytes FROM archive_files WHERE state = 'published'")
	if err != nil {
		t.Fatal(err)
	}
	type file struct {
		Name                   string
		Rows, Bytes, TailBytes int64
	}
	files, err := pgx.CollectRows(rows, pgx.RowToStructByPos[file])
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[[16]byte]archive.Row)
	for _, f := range files {
		of, object, err := archive.OpenStored(t.Context(), store, archive.Stored{Name: f.Name, Bytes: f.Bytes, TailBytes: f.TailBytes})
		if err != nil {
			t.Fatal(err)
		}
		defer object.Close() // read alone
		before := len(all)
		for i := range of.Groups {
			g := of.Group(i)
			if err := g.Records(t.Context(), archive.AllBits(g.Rows), func(r *archive.Row) error {
				if _, twice := all[r.ID]; twice {
					t.Errorf("the row %x is in the archive twice", r.ID)
				}
				all[r.ID] = archive.Row{ID: r.ID, InsertedAt: r.InsertedAt, Time: r.Time, Data: bytes.Clone(r.Data)}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		if int64(len(all)-before) != f.Rows {
			t.Errorf("%s: %d rows, the catalog has %d", f.Name, len(all)-before, f.Rows)
		}
	}
	return all
}

// compareArchive compares the archive with the rows of a range.
func compareArchive(t *testing.T, conn *pgx.Conn, store archive.Store, before time.Time) {
	t.Helper()
	got := archived(t, conn, store)
	rows, err := conn.Query(t.Context(), "SELECT id, inserted_at, time, data::text FROM logs WHERE inserted_at < $1", before)
	if err != nil {
		t.Fatal(err)
	}
	var id [16]byte
	var came, when time.Time
	var data string
	n := 0
	if _, err := pgx.ForEachRow(rows, []any{&id, &came, &when, &data}, func() error {
		n++
		r, ok := got[id]
		if !ok || r.InsertedAt != came.UnixMicro() || r.Time != when.UnixMicro() || string(r.Data) != data {
			t.Errorf("row %x %v %v %s: the archive has %+v", id, came, when, data, r)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if n != len(got) {
		t.Errorf("%d rows in the archive, %d in the table", len(got), n)
	}
}

// fill stores records of all kinds, minutes apart.
func fill(t *testing.T, conn *pgx.Conn, p *Set, from time.Time, n int) {
	t.Helper()
	var times []time.Time
	for i := range n {
		times = append(times, from.Add(time.Duration(i)*20*time.Minute/time.Duration(n)))
	}
	put(t, conn, p, times...)
	exec(t, conn, `UPDATE logs SET data = ('{"n": ' || extract(epoch FROM inserted_at)::bigint % 1000 || ', "message": "row \"' || id || '\"\n", "tags": ["a", null], "f": 1.50, "big": 1e30, "at": "' ||
		to_char(inserted_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') || '"}')::jsonb, time = CASE WHEN extract(epoch FROM inserted_at)::bigint % 3 = 0 THEN inserted_at - interval '5 ms' ELSE time END
		WHERE data = '{}'`)
}

func TestClosedPartitionsAreArchivedRowForRow(t *testing.T) {
	url := testenv.Schema(t)
	db := workerConn(t, url)
	p := New(time.Hour)
	open := time.Now().UTC().Truncate(time.Hour)
	fill(t, db, p, open.Add(-5*time.Hour), 500)
	fill(t, db, p, open.Add(-3*time.Hour), 300)
	fill(t, db, p, open, 1)
	exec(t, db, "DELETE FROM late_changes")
	store := archive.Folder(t.TempDir())
	a := testArchiver(workerConn(t, url), workerConn(t, url), p, store)
	if err := a.Round(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, db, 2, "SELECT count(*) FROM archive_files WHERE state = 'published'")
	compareArchive(t, db, store, open)
	var kind string
	if err := db.QueryRow(t.Context(), "SELECT kind FROM archive_fields WHERE name = 'at'").Scan(&kind); err != nil || kind != "micros" {
		t.Errorf("the kind of the field at: %q, %v", kind, err)
	}

	// Nothing has changed: nothing is copied.
	if err := a.Round(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, db, 2, "SELECT count(*) FROM archive_files")

	// A row comes late, and one goes. Each is noted.
	late := open.Add(-3 * time.Hour)
	put(t, db, p, late.Add(time.Minute))
	exec(t, db, "DELETE FROM logs WHERE id = (SELECT id FROM logs WHERE inserted_at >= $1 ORDER BY inserted_at LIMIT 1)", late)
	exec(t, db, NoteChangesSQL("SELECT date_trunc('hour', $1::timestamptz)"), late)
	if err := a.Round(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, db, 2, "SELECT count(*) FROM archive_files WHERE state = 'published'")
	want(t, db, 1, "SELECT count(*) FROM archive_files WHERE state = 'superseded'")
	want(t, db, 1, "SELECT count(*) FROM archive_ranges WHERE generation = 2")
	compareArchive(t, db, store, open)

	// What is superseded and what was given up goes.
	exec(t, db, "INSERT INTO archive_files (name, from_at, to_at, generation, state_at) VALUES ('v1/given-up', $1, $1, 1, now() - interval '25 hours')", late)
	if err := store.Create(t.Context(), "v1/given-up", func(io.Writer) error { return nil }); err != nil {
		t.Fatal(err)
	}
	exec(t, db, "UPDATE archive_files SET state_at = now() - interval '61 minutes' WHERE state = 'superseded'")
	if err := a.Round(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, db, 2, "SELECT count(*) FROM archive_files")
	if _, err := store.Open(t.Context(), "v1/given-up", 1); err == nil {
		t.Error("a file that was given up is still there")
	}
	compareArchive(t, db, store, open)
}

// failingStore fails at the n-th file.
type failingStore struct {
	archive.Folder
	left int
}

func (s *failingStore) Create(ctx context.Context, name string, write func(io.Writer) error) error {
	if s.left--; s.left < 0 {
		return errors.New("the disk is full")
	}
	return s.Folder.Create(ctx, name, write)
}

func TestAPartitionThatCanNotBeCopiedIsCopiedLater(t *testing.T) {
	url := testenv.Schema(t)
	db := workerConn(t, url)
	p := New(time.Hour)
	open := time.Now().UTC().Truncate(time.Hour)
	fill(t, db, p, open.Add(-5*time.Hour), 50)
	fill(t, db, p, open.Add(-3*time.Hour), 50)
	store := &failingStore{archive.Folder(t.TempDir()), 1}
	a := testArchiver(workerConn(t, url), workerConn(t, url), p, store)
	if err := a.Round(t.Context()); err == nil {
		t.Fatal("the disk was full, and nothing said so")
	}
	want(t, db, 1, "SELECT count(*) FROM archive_ranges WHERE generation > 0")
	want(t, db, 1, "SELECT count(*) FROM archive_files WHERE state = 'published'")
	store.left = 9
	if err := a.Round(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, db, 2, "SELECT count(*) FROM archive_ranges")
	compareArchive(t, db, store, open)
}

func TestOnlyTheLeaderArchives(t *testing.T) {
	url := testenv.Schema(t)
	db := workerConn(t, url)
	p := New(time.Hour)
	fill(t, db, p, time.Now().UTC().Truncate(time.Hour).Add(-5*time.Hour), 5)
	exec(t, db, "SELECT pg_advisory_lock($1)", int64(archiverLock))
	a := testArchiver(workerConn(t, url), workerConn(t, url), p, archive.Folder(t.TempDir()))
	if err := a.Round(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, db, 0, "SELECT count(*) FROM archive_files")
}
