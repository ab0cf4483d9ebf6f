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

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

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

// CloseIdle closes the connections to a store that are not in use. nil has none.
func CloseIdle(store Store) {
	if c, ok := store.(interface{ closeIdle() }); ok {
		c.closeIdle()
	}
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

// checkTime is how long the answers to the requests of a check may take together.
const checkTime = 15 * time.Second

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
	if err := CheckReadable(ctx, store); err != nil {
		return err
	}
	began := time.Now()
	checking, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	failure := func(what string, err error) error {
		if checking.Err() != nil && ctx.Err() == nil {
			err = &AwayError{began, fmt.Sprintf("it has not answered within %v", checkTime)}
		}
		return fmt.Errorf("ARCHIVE_URL: no file can be %s: %w", what, withoutPath(err))
	}
	name := "v1/writable-" + uuid.NewString() // workers that start at once make one each
	if err := store.Create(checking, name, func(w io.Writer) error {
		_, err := io.WriteString(w, "Millrace can write here.\n")
		return err
	}); err != nil {
		return failure("written", err)
	}
	if err := store.Delete(checking, name); err != nil {
		return failure("deleted", err)
	}
	return nil
}

// NewAwayGauge returns the metric that Watch sets, which is 0.
func NewAwayGauge() prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "millrace_archive_away",
		Help: "1 while the archive's S3 store can't be reached, can't answer, or refuses. Of a folder nothing is known: 0.",
	})
}

const (
	// watchInterval is how often Watch looks at a store that can't be used, and idleInterval at one that can.
	watchInterval = 5 * time.Second
	idleInterval  = time.Minute
)

// Watch looks whether a store can be used, until ctx is done. It logs when that changes, and sets away to 1 while it can't and else to 0. A store
// that is away comes back by these looks at the latest. Watch returns at once if store is nil or can't be away.
func Watch(ctx context.Context, store Store, away prometheus.Gauge, log *slog.Logger) {
	w, ok := store.(watched)
	if !ok {
		return
	}
	var since time.Time // since when the store can't be used; zero: it can
	for looked := time.Now(); retry.Sleep(ctx, watchInterval) == nil; {
		if since.IsZero() && w.current() == nil && time.Since(looked) < idleInterval {
			continue
		}
		looked = time.Now()
		err := w.look(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && since.IsZero():
			since = looked
			away.Set(1)
			log.Error("the archive's store can't be used", "error", err)
		case err == nil && !since.IsZero():
			away.Set(0)
			log.Info("the archive's store can be used again", "after", time.Since(since).Round(time.Second))
			since = time.Time{}
		}
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
