package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"millrace/internal/config"
)

// Store keeps files by their names, which have slashes between their parts. Many goroutines may use one at once.
type Store interface {
	// Create makes a file of what write writes. The file is there, whole and durable, when Create has returned nil, and else not.
	Create(ctx context.Context, name string, write func(w io.Writer) error) error
	// Open opens a file of a size. Its error is fs.ErrNotExist if there is none, and ErrCorrupt if the file has another size. A store that
	// does not look for the file yet returns these when the file is read.
	Open(ctx context.Context, name string, size int64) (Object, error)
	// Delete removes a file. It is no error if there is none.
	Delete(ctx context.Context, name string) error
}

// RangeReader reads parts of a file.
type RangeReader interface {
	// ReadAt does what io.ReaderAt says, until ctx has ended. Then it returns soon, with the context's error.
	ReadAt(ctx context.Context, b []byte, at int64) (int, error)
}

// Object is a file that is open. Many goroutines may read it at once.
type Object interface {
	RangeReader
	io.Closer
}

// OpenStore returns the store that a URL names. It does not look for it: a store may be out of reach for a while.
func OpenStore(url config.ArchiveURL) (Store, error) {
	if err := url.Check(); err != nil {
		return nil, fmt.Errorf("ARCHIVE_URL: %w", err)
	}
	bucket, location, err := config.SplitArchiveURL(url)
	switch {
	case err != nil:
		return nil, fmt.Errorf("ARCHIVE_URL: %w", err)
	case bucket != "":
		return nil, errors.New("ARCHIVE_URL: this version keeps files in folders alone (file:///…)")
	}
	return Folder(location), nil
}

// OpenStoreIfSet does what OpenStore does. It returns nil for an empty URL.
func OpenStoreIfSet(url config.ArchiveURL) (Store, error) {
	if url == "" {
		return nil, nil
	}
	return OpenStore(url)
}

// CheckWritable returns an error if no file can be written to the store.
func CheckWritable(ctx context.Context, store Store) error {
	const name = "v1/writable"
	if err := store.Create(ctx, name, func(w io.Writer) error {
		_, err := io.WriteString(w, "Millrace can write here.\n")
		return err
	}); err != nil {
		return fmt.Errorf("ARCHIVE_URL: no file can be written: %w", withoutPath(err))
	}
	return store.Delete(ctx, name)
}

// withoutPath returns what the system says of a file, with the file's name.
func withoutPath(err error) error {
	var at *fs.PathError
	if errors.As(err, &at) && errors.Is(at.Err, os.ErrPermission) {
		return fmt.Errorf("%w; the folder must belong to the user that the worker runs as", err)
	}
	return err
}
