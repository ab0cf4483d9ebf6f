package archive_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"testing"

	"millrace/internal/archive"
	"millrace/internal/archive/archivetest"
)

// rowsOf returns n rows, and fails after them with an error if it is not nil.
func rowsOf(n int, fault error) iter.Seq2[*archive.Row, error] {
	return func(yield func(*archive.Row, error) bool) {
		maker := archivetest.NewRows(6)
		for range n {
			if !yield(maker.Row(maker.Messy()), nil) {
				return
			}
		}
		if fault != nil {
			yield(nil, fault)
		}
	}
}

// files returns the paths of all files in a folder.
func files(t *testing.T, folder string) (all []string) {
	t.Helper()
	if err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all = append(all, path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

func named(n int) (string, error) {
	return fmt.Sprintf("v1/logs/date=2026-11-23/hour=09/%d.parquet", n), nil
}

func TestACopyIsAllRowsInVerifiedFiles(t *testing.T) {
	store := archive.Folder(t.TempDir())
	entries, err := archive.Copy(t.Context(), store, named, archive.NewRegistry(nil), rowsOf(3000, nil))
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for _, e := range entries {
		f, object, err := archive.OpenStored(t.Context(), store, archive.Stored{Name: e.Name, Bytes: e.Bytes, TailBytes: e.TailBytes})
		if err != nil {
			t.Fatal(err)
		}
		defer object.Close() // read alone
		n, err := f.Verify(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		rows += n
	}
	if rows != 3000 {
		t.Errorf("%d rows in the files, want 3000", rows)
	}
	if got := files(t, string(store)); len(got) != len(entries) {
		t.Errorf("files %v, want those of %d entries", got, len(entries))
	}
}

func TestACopyThatFailsLeavesNoFile(t *testing.T) {
	fault := errors.New("the snapshot is gone")
	for name, rows := range map[string]iter.Seq2[*archive.Row, error]{"no row": rowsOf(0, fault), "some rows": rowsOf(2000, fault)} {
		store := archive.Folder(t.TempDir())
		if _, err := archive.Copy(t.Context(), store, named, archive.NewRegistry(nil), rows); !errors.Is(err, fault) {
			t.Errorf("%s: got %v, want %v", name, err, fault)
		}
		if got := files(t, string(store)); len(got) > 0 {
			t.Errorf("%s: files %v are left", name, got)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	store := archive.Folder(t.TempDir())
	if _, err := archive.Copy(ctx, store, named, archive.NewRegistry(nil), rowsOf(2000, nil)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	if got := files(t, string(store)); len(got) > 0 {
		t.Errorf("files %v are left", got)
	}
}

func TestACopyOfNoRowsIsNoFile(t *testing.T) {
	store := archive.Folder(t.TempDir())
	entries, err := archive.Copy(t.Context(), store, named, archive.NewRegistry(nil), rowsOf(0, nil))
	if err != nil || len(entries) > 0 {
		t.Errorf("got %v, %v, want nothing", entries, err)
	}
}

// badStore damages what is written.
type badStore struct{ archive.Folder }

func (s badStore) Create(ctx context.Context, name string, write func(io.Writer) error) error {
	return s.Folder.Create(ctx, name, func(w io.Writer) error {
		var b bytes.Buffer
		if err := write(&b); err != nil {
			return err
		}
		b.Bytes()[b.Len()/2] ^= 1
		_, err := w.Write(b.Bytes())
		return err
	})
}

func TestAFileThatTheStoreDamagesIsNoCopy(t *testing.T) {
	store := badStore{archive.Folder(t.TempDir())}
	if _, err := archive.Copy(t.Context(), store, named, archive.NewRegistry(nil), rowsOf(2000, nil)); err == nil {
		t.Error("the damage was not found")
	}
	if got := files(t, string(store.Folder)); len(got) > 0 {
		t.Errorf("files %v are left", got)
	}
}

func TestAFolderHasWhatWasWrittenWhole(t *testing.T) {
	store := archive.Folder(t.TempDir())
	fault := errors.New("half")
	if err := store.Create(t.Context(), "a/b", func(w io.Writer) error {
		if _, err := io.WriteString(w, "half"); err != nil {
			return err
		}
		return fault
	}); !errors.Is(err, fault) {
		t.Errorf("got %v, want %v", err, fault)
	}
	if _, err := store.Open(t.Context(), "a/b", 5); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want %v", err, fs.ErrNotExist)
	}
	for _, name := range []string{"", ".", "../x", "/etc/x", "a//b", "x.unfinished"} {
		if err := store.Create(t.Context(), name, func(io.Writer) error { return nil }); err == nil {
			t.Errorf("%q was taken as a name", name)
		}
	}
	if err := store.Create(t.Context(), "a/b", func(w io.Writer) error { _, err := io.WriteString(w, "whole"); return err }); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(string(store), "a", "b")); err != nil || string(got) != "whole" {
		t.Errorf("got %q, %v", got, err)
	}
	for range 2 {
		if err := store.Delete(t.Context(), "a/b"); err != nil {
			t.Error(err)
		}
	}
}
