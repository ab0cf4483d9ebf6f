package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"millrace/internal/config"
	"millrace/internal/retry"
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

// OpenStore returns the store that the settings name, nil if they name none. It does not look for the store, which may be out of reach for
// a while. cacheBytes is how much of a distant store's files is kept in memory.
func OpenStore(settings config.Archive, cacheBytes int64) (Store, error) {
	if settings.ArchiveURL == "" {
		return nil, nil
	}
	place, err := config.PlaceOf(settings.ArchiveURL)
	if err != nil {
		return nil, fmt.Errorf("ARCHIVE_URL: %w", err)
	}
	if place.Folder != "" {
		return Folder(place.Folder), nil
	}
	bucket, err := OpenBucket(place, settings)
	if err != nil {
		return nil, err
	}
	return newCachedStore(bucket, cacheBytes), nil
}

// watched is a store that may be away for a while.
type watched interface {
	look(ctx context.Context) error
	current() *AwayError
}

// Away returns since when a store has been out of reach, and why; nil if it is not.
func Away(store Store) *AwayError {
	if w, ok := store.(watched); ok {
		return w.current()
	}
	return nil
}

// CheckReadable returns an error that says why no file can be read from the store, as far as that is known without reading one. An AwayError
// may pass by itself. Of a folder nothing is known.
func CheckReadable(ctx context.Context, store Store) error {
	w, ok := store.(watched)
	if !ok {
		return nil
	}
	if err := w.look(ctx); err != nil {
		return fmt.Errorf("ARCHIVE_URL: %w", err)
	}
	return nil
}

// CheckWritable returns an error if no file can be written to the store. An AwayError may pass by itself.
func CheckWritable(ctx context.Context, store Store) error {
	const name = "v1/writable"
	if err := store.Create(ctx, name, func(w io.Writer) error {
		_, err := io.WriteString(w, "Millrace can write here.\n")
		return err
	}); err != nil {
		return fmt.Errorf("ARCHIVE_URL: no file can be written: %w", withoutPath(err))
	}
	if err := store.Delete(ctx, name); err != nil {
		return fmt.Errorf("ARCHIVE_URL: no file can be deleted: %w", err)
	}
	return nil
}

// watchInterval is how often Watch looks at a store.
const watchInterval = 5 * time.Second

// Watch looks whether a store that is away has come back, until ctx is done, and logs both. It returns at once if the store can't be away.
func Watch(ctx context.Context, store Store, log *slog.Logger) {
	w, ok := store.(watched)
	if !ok {
		return
	}
	var away *AwayError
	for retry.Sleep(ctx, watchInterval) == nil {
		now := w.current()
		if now != nil {
			if away == nil {
				log.Warn("the archive's store is away", "since", now.Since, "error", now.Reason)
			}
			_ = w.look(ctx) // what it finds is what current says next
		} else if away != nil {
			log.Info("the archive's store is back", "after", time.Since(away.Since).Round(time.Second))
		}
		away = now
	}
}

// withoutPath returns what the system says of a file, with the file's name.
func withoutPath(err error) error {
	var at *fs.PathError
	if errors.As(err, &at) && errors.Is(at.Err, os.ErrPermission) {
		return fmt.Errorf("%w; the folder must belong to the user that the worker runs as", err)
	}
	return err
}
