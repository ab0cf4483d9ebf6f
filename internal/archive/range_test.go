package archive_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"millrace/internal/archive"
)

// faultyStore has files whose reads fail, or wait for their context, before their end.
type faultyStore struct {
	archive.Folder
	fault error // nil: reads wait
}

func (s faultyStore) Open(ctx context.Context, name string, size int64) (archive.Object, error) {
	object, err := s.Folder.Open(ctx, name, size)
	return faultyObject{object, s, size}, err
}

type faultyObject struct {
	archive.Object
	store faultyStore
	size  int64
}

func (o faultyObject) ReadAt(ctx context.Context, b []byte, at int64) (int, error) {
	switch {
	case at+int64(len(b)) == o.size: // the end, which is read when the file is opened
		return o.Object.ReadAt(ctx, b, at)
	case o.store.fault != nil:
		return 0, o.store.fault
	}
	<-ctx.Done()
	return 0, ctx.Err()
}

// copied returns a file in a store's folder.
func copied(t *testing.T, folder archive.Folder) archive.Stored {
	t.Helper()
	entries, err := archive.Copy(t.Context(), folder, named, archive.NewRegistry(nil), rowsOf(3000, nil))
	if err != nil {
		t.Fatal(err)
	}
	e := entries[0]
	return archive.Stored{Name: e.Name, Bytes: e.Bytes, TailBytes: e.TailBytes}
}

func TestAReadEndsWithItsContextWhateverTheStoreDoes(t *testing.T) {
	folder := archive.Folder(t.TempDir())
	stored := copied(t, folder)
	f, object, err := archive.OpenStored(t.Context(), faultyStore{Folder: folder}, stored)
	if err != nil {
		t.Fatal(err)
	}
	defer object.Close() // read alone
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := f.Verify(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, archive.ErrCorrupt) {
		t.Errorf("got %v, want that the context was cancelled", err)
	}
}

// TestAReadThatFailsIsNoDamage has failures that look like the end of a file too, as those of a cut connection may.
func TestAReadThatFailsIsNoDamage(t *testing.T) {
	folder := archive.Folder(t.TempDir())
	stored := copied(t, folder)
	for _, fault := range []error{errors.New("no route"), fmt.Errorf("the connection: %w", io.EOF), io.ErrUnexpectedEOF} {
		f, object, err := archive.OpenStored(t.Context(), faultyStore{folder, fault}, stored)
		if err != nil {
			t.Fatal(err)
		}
		defer object.Close() // read alone
		if _, err := f.Verify(t.Context()); !errors.Is(err, fault) || errors.Is(err, archive.ErrCorrupt) {
			t.Errorf("got %v, want %v and no damage", err, fault)
		}
	}
	f, object, err := archive.OpenStored(t.Context(), folder, stored)
	if err != nil {
		t.Fatal(err)
	}
	defer object.Close() // read alone
	if rows, err := f.Verify(t.Context()); err != nil || rows != 3000 {
		t.Errorf("got %d rows, %v", rows, err)
	}
}

func TestAFileOfAnotherSizeIsDamaged(t *testing.T) {
	folder := archive.Folder(t.TempDir())
	if err := folder.Create(t.Context(), "a", func(w io.Writer) error { _, err := io.Copy(w, bytes.NewReader(make([]byte, 9))); return err }); err != nil {
		t.Fatal(err)
	}
	if _, err := folder.Open(t.Context(), "a", 10); !errors.Is(err, archive.ErrCorrupt) {
		t.Errorf("got %v, want %v", err, archive.ErrCorrupt)
	}
}

func TestAFileWithAnotherBeginningIsDamaged(t *testing.T) {
	folder := archive.Folder(t.TempDir())
	stored := copied(t, folder)
	file, err := os.OpenFile(filepath.Join(string(folder), stored.Name), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteAt([]byte("Q"), 0); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	f, object, err := archive.OpenStored(t.Context(), folder, stored)
	if err != nil {
		t.Fatal(err)
	}
	defer object.Close() // read alone
	if _, err := f.Verify(t.Context()); !errors.Is(err, archive.ErrCorrupt) {
		t.Errorf("got %v, want %v", err, archive.ErrCorrupt)
	}
}
