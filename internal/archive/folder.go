package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Folder is a store in a folder of this machine.
type Folder string

// unfinished ends the names of files that are being written. No name of a file ends so.
const unfinished = ".unfinished"

// path returns where a file is.
func (f Folder) path(name string) (string, error) {
	if !fs.ValidPath(name) || name == "." || strings.HasSuffix(name, unfinished) {
		return "", fmt.Errorf("%q is no name of a file", name)
	}
	return filepath.Join(string(f), filepath.FromSlash(name)), nil
}

// Create is that of Store.
func (f Folder) Create(ctx context.Context, name string, write func(w io.Writer) error) (err error) {
	path, err := f.path(name)
	if err != nil {
		return err
	}
	folder := filepath.Dir(path)
	if err := os.MkdirAll(folder, 0o750); err != nil {
		return err
	}
	file, err := os.OpenFile(path+unfinished, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(path+unfinished))
		}
	}()
	if err := errors.Join(writeSynced(file, write), file.Close()); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := os.Rename(path+unfinished, path); err != nil {
		return err
	}
	for at := folder; ; at = filepath.Dir(at) { // folders that are new too
		if err := syncFolder(at); err != nil {
			return err
		}
		if at == filepath.Clean(string(f)) || at == filepath.Dir(at) {
			return nil
		}
	}
}

func writeSynced(file *os.File, write func(w io.Writer) error) error {
	if err := write(file); err != nil {
		return err
	}
	return file.Sync()
}

func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// Open is that of Store.
func (f Folder) Open(_ context.Context, name string, size int64) (Object, error) {
	path, err := f.path(name)
	if err != nil {
		return nil, err
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	if info.Size() != size {
		return nil, errors.Join(otherSize(info.Size(), size), file.Close())
	}
	return localObject{file}, nil
}

// Delete is that of Store.
func (f Folder) Delete(_ context.Context, name string) error {
	path, err := f.path(name)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// otherSize returns the error for a file that has another size than it was written with.
func otherSize(has, written int64) error {
	return fmt.Errorf("%w: %d bytes, %d were written", ErrCorrupt, has, written)
}

type localObject struct{ file *os.File }

// ReadAt is that of RangeReader.
func (o localObject) ReadAt(ctx context.Context, b []byte, at int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return o.file.ReadAt(b, at)
}

// Close is that of Object.
func (o localObject) Close() error { return o.file.Close() }
