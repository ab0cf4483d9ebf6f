package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"
)

const (
	// MaxFileRows and MaxFileBytes bound a file. What is larger takes long to verify again, and to merge.
	MaxFileRows  = 4 << 20
	MaxFileBytes = 256 << 20
	// cleanupTime is how long Copy tries to remove what it wrote when it has failed. A stop waits for it.
	cleanupTime = 5 * time.Second
)

// Entry is a file that has been written and verified.
type Entry struct {
	Name string
	Summary
}

// Copy writes rows to files of a store, and reads each file back before it counts. name returns the name of the n-th file, from 0 on, just
// before the file is begun. It must be one that no other call uses. If Copy fails, it removes what it wrote, as far as it can: files that nobody has published are in no
// answer. It holds a row group in memory, whatever the number of rows. The registry gets the columns that are new: they must be kept before
// the files are published.
func Copy(ctx context.Context, store Store, name func(n int) (string, error), registry *Registry, rows iter.Seq2[*Row, error]) (entries []Entry, err error) {
	next, stop := iter.Pull2(rows)
	defer stop()
	var begun []string
	defer func() {
		if err == nil {
			return
		}
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		for _, file := range begun {
			err = errors.Join(err, store.Delete(cleanup, file))
		}
		entries = nil
	}()
	row, err, more := next()
	for more {
		if err != nil {
			return nil, err
		}
		file, err := name(len(begun))
		if err != nil {
			return nil, err
		}
		begun = append(begun, file)
		var summary Summary
		if err := store.Create(ctx, file, func(out io.Writer) (err error) {
			w := NewWriter(out, registry)
			for more && w.Rows() < MaxFileRows && w.Bytes() < MaxFileBytes {
				if w.Rows()%batchRows == 0 && ctx.Err() != nil {
					return ctx.Err()
				}
				if err := w.Add(row); err != nil {
					return err
				}
				var failed error
				if row, failed, more = next(); more && failed != nil {
					return failed
				}
			}
			summary, err = w.Close()
			return err
		}); err != nil {
			return nil, fmt.Errorf("write %s: %w", file, err)
		}
		if err := verifyStored(ctx, store, file, summary); err != nil {
			return nil, fmt.Errorf("verify %s: %w", file, err)
		}
		entries = append(entries, Entry{file, summary})
	}
	return entries, nil
}

// verifyStored reads a file and compares it with what was written: the rows of each group by the hash that the writer made of them.
func verifyStored(ctx context.Context, store Store, name string, summary Summary) (err error) {
	f, object, err := OpenStored(ctx, store, Stored{Name: name, Bytes: summary.Bytes, TailBytes: summary.TailBytes})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, object.Close()) }()
	if len(f.Groups) != len(summary.Groups) {
		return fmt.Errorf("%w: %d row groups, %d were written", ErrCorrupt, len(f.Groups), len(summary.Groups))
	}
	for i, g := range summary.Groups {
		if f.Groups[i].Hash != g.Hash || !bytes.Equal(f.Groups[i].MinID, g.MinID) {
			return fmt.Errorf("%w: row group %d is another one", ErrCorrupt, i)
		}
	}
	rows, err := f.Verify(ctx)
	if err == nil && rows != summary.Rows {
		err = fmt.Errorf("%w: %d rows, %d were written", ErrCorrupt, rows, summary.Rows)
	}
	return err
}
