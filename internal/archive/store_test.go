package archive_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"millrace/internal/archive"
	"millrace/internal/config"
	"millrace/internal/testenv"
)

// openStore returns the store that settings name.
func openStore(t *testing.T, settings config.Archive) archive.Store {
	t.Helper()
	store, err := archive.OpenStore(settings, 16<<20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { archive.CloseIdle(store) })
	return store
}

// forEachStore runs a test with a store of each kind, through its settings.
func forEachStore(t *testing.T, test func(t *testing.T, store archive.Store)) {
	t.Run("folder", func(t *testing.T) {
		test(t, openStore(t, config.Archive{ArchiveURL: config.ArchiveURL("file://" + t.TempDir())}))
	})
	t.Run("bucket", func(t *testing.T) {
		s3 := testenv.StartS3(t)
		store := openStore(t, s3.Archive(s3.Addr))
		test(t, store)
		if left := unfinished(t, s3); len(left) > 0 {
			t.Errorf("unfinished uploads are left: %v", left)
		}
	})
}

// unfinished returns the keys of the uploads in a bucket that nobody has finished.
func unfinished(t *testing.T, s3 *testenv.S3) (keys []string) {
	t.Helper()
	for upload := range s3.Client(t).ListIncompleteUploads(context.Background(), s3.Bucket, "", true) {
		if upload.Err != nil {
			t.Fatal(upload.Err)
		}
		keys = append(keys, upload.Key)
	}
	return keys
}

// content returns bytes that are the same for the same number of them.
func content(n int) []byte {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16)})
	rng.Read(b)
	return b
}

// writeIn returns a function that writes data in pieces of a size.
func writeIn(pieces int, data []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		for rest := data; len(rest) > 0; {
			n, err := w.Write(rest[:min(pieces, len(rest))])
			if err != nil {
				return err
			}
			rest = rest[n:]
		}
		return nil
	}
}

// readAll returns what a store has under a name, which is to have a size.
func readAll(ctx context.Context, store archive.Store, name string, size int) (data []byte, err error) {
	object, err := store.Open(ctx, name, int64(size))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, object.Close()) }()
	return io.ReadAll(io.NewSectionReader(bound{ctx, object}, 0, int64(size)))
}

// bound is an io.ReaderAt whose reads end with a context.
type bound struct {
	ctx    context.Context
	object archive.Object
}

func (b bound) ReadAt(p []byte, at int64) (int, error) { return b.object.ReadAt(b.ctx, p, at) }

// isGone reports whether a store has no file under a name.
func isGone(t *testing.T, store archive.Store, name string) bool {
	t.Helper()
	object, err := store.Open(t.Context(), name, 1)
	if err == nil {
		defer object.Close() // read alone
		_, err = object.ReadAt(t.Context(), make([]byte, 1), 0)
	}
	return errors.Is(err, fs.ErrNotExist)
}

const partBytes = 8 << 20 // of an upload in parts

func TestAStoreGivesBackWhatWasWritten(t *testing.T) {
	forEachStore(t, func(t *testing.T, store archive.Store) {
		for _, size := range []int{0, 1, 1 << 20, 1<<20 + 1, partBytes, partBytes + 1} {
			name, data := fmt.Sprintf("v1/logs/date=2026-11-23/hour=09/%d.parquet", size), content(size)
			if err := store.Create(t.Context(), name, writeIn(100_001, data)); err != nil {
				t.Fatalf("%d bytes: %v", size, err)
			}
			if got, err := readAll(t.Context(), store, name, size); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("%d bytes: got %d others, %v", size, len(got), err)
			}
			object, err := store.Open(t.Context(), name, int64(size))
			if err != nil {
				t.Fatal(err)
			}
			var reading sync.WaitGroup
			for seed := range uint64(4) {
				reading.Go(func() {
					rng := rand.New(rand.NewPCG(seed, uint64(size)))
					for range 10 {
						at, p := rng.IntN(size+2), make([]byte, rng.IntN(2<<20))
						n, err := object.ReadAt(t.Context(), p, int64(at))
						want := data[min(at, size):min(at+len(p), size)]
						if !bytes.Equal(p[:n], want) || n < len(p) != errors.Is(err, io.EOF) || n == len(p) && err != nil && !errors.Is(err, io.EOF) {
							t.Errorf("%d bytes at %d of %d: got %d, %v, want %d", len(p), at, size, n, err, len(want))
							return
						}
					}
				})
			}
			reading.Wait()
			if err := object.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestAStoreHasWhatWasWrittenWhole(t *testing.T) {
	forEachStore(t, func(t *testing.T, store archive.Store) {
		fault := errors.New("the snapshot is gone")
		for _, size := range []int{0, partBytes + 10} {
			if err := store.Create(t.Context(), "a/b", func(w io.Writer) error {
				if err := writeIn(1<<20, content(size))(w); err != nil {
					return err
				}
				if !isGone(t, store, "a/b") {
					t.Errorf("after %d bytes: there is a file before it is whole", size)
				}
				return fault
			}); !errors.Is(err, fault) {
				t.Errorf("after %d bytes: got %v, want %v", size, err, fault)
			}
			ctx, cancel := context.WithCancel(t.Context())
			if err := store.Create(ctx, "a/b", func(w io.Writer) error {
				err := writeIn(1<<20, content(size))(w)
				cancel()
				return err
			}); !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled after %d bytes: got %v, want %v", size, err, context.Canceled)
			}
			if !isGone(t, store, "a/b") {
				t.Errorf("after %d bytes: there is a file that was not written whole", size)
			}
		}
		for _, name := range []string{"", ".", "../x", "/etc/x", "a//b"} {
			if err := store.Create(t.Context(), name, func(io.Writer) error { return nil }); err == nil {
				t.Errorf("%q was taken as a name", name)
			}
			if err := store.Delete(t.Context(), name); err == nil {
				t.Errorf("%q was deleted", name)
			}
		}
	})
}

func TestAStoreDeletesAndTellsOtherSizes(t *testing.T) {
	forEachStore(t, func(t *testing.T, store archive.Store) {
		const size = 3 << 20
		if err := store.Create(t.Context(), "a/b", writeIn(1<<20, content(size))); err != nil {
			t.Fatal(err)
		}
		for _, other := range []int{size - 1, size + 1, 1, 9 << 20} {
			if _, err := readAll(t.Context(), store, "a/b", other); !errors.Is(err, archive.ErrCorrupt) {
				t.Errorf("as a file of %d bytes: got %v, want %v", other, err, archive.ErrCorrupt)
			}
		}
		for range 2 {
			if err := store.Delete(t.Context(), "a/b"); err != nil {
				t.Error(err)
			}
		}
		if !isGone(t, store, "a/b") {
			t.Error("the file is there after Delete")
		}
	})
}

func TestAReadOfAStoreEndsWithItsContext(t *testing.T) {
	forEachStore(t, func(t *testing.T, store archive.Store) {
		if err := store.Create(t.Context(), "a", writeIn(1<<20, content(3<<20))); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := readAll(ctx, store, "a", 3<<20); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want %v", err, context.Canceled)
		}
		if got, err := readAll(t.Context(), store, "a", 3<<20); err != nil || !bytes.Equal(got, content(3<<20)) {
			t.Errorf("afterwards: got %d bytes, %v", len(got), err)
		}
	})
}

func TestAStoreIsCheckedAndTakesCopies(t *testing.T) {
	forEachStore(t, func(t *testing.T, store archive.Store) {
		if err := archive.CheckReadable(t.Context(), store); err != nil {
			t.Error(err)
		}
		noted := &notingStore{Store: store}
		if err := archive.CheckWritable(t.Context(), noted); err != nil {
			t.Error(err)
		}
		if len(noted.names) != 1 || !isGone(t, store, noted.names[0]) {
			t.Errorf("the check has made %v, want one file that is gone", noted.names)
		}
		entries, err := archive.Copy(t.Context(), store, named, archive.NewRegistry(nil), rowsOf(3000, nil))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			f, object, err := archive.OpenStored(t.Context(), store, archive.Stored{Name: e.Name, Bytes: e.Bytes, TailBytes: e.TailBytes})
			if err != nil {
				t.Fatal(err)
			}
			if rows, err := f.Verify(t.Context()); err != nil || rows != 3000 {
				t.Errorf("got %d rows, %v", rows, err)
			}
			if err := object.Close(); err != nil {
				t.Error(err)
			}
		}
		if _, err := archive.Copy(t.Context(), store, func(n int) (string, error) { return fmt.Sprint("other/", n), nil }, archive.NewRegistry(nil), rowsOf(2000, errors.New("gone"))); err == nil || !isGone(t, store, "other/0") {
			t.Errorf("a copy that failed: %v", err)
		}
	})
}

// notingStore notes the names of the files that are made.
type notingStore struct {
	archive.Store
	names []string
}

func (s *notingStore) Create(ctx context.Context, name string, write func(io.Writer) error) error {
	s.names = append(s.names, name)
	return s.Store.Create(ctx, name, write)
}

// TestManyCheckAFolderAtOnce has workers that start at the same time look whether they can write.
func TestManyCheckAFolderAtOnce(t *testing.T) {
	store := archive.Folder(t.TempDir())
	errs := make(chan error)
	const workers = 32
	for range workers {
		go func() {
			var failed error
			for range 20 {
				failed = errors.Join(failed, archive.CheckWritable(t.Context(), store))
			}
			errs <- failed
		}()
	}
	for range workers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	left, err := os.ReadDir(filepath.Join(string(store), "v1"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
