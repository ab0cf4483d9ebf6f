// Package hotfile reads a file that a setting names, and tells when it has to be read again.
package hotfile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"millrace/internal/config"
)

// pollPeriod is how often Watch looks at the file. A change is read one look later, so that a file that is being written in place is not
// read half-written.
const pollPeriod = 500 * time.Millisecond

// File is a file that is read again when it changes. Only one goroutine may call its methods.
type File struct {
	setting, name string
	lastRead      os.FileInfo // the file as it was when it was read last; nil if there was none
}

// New returns the file of a name. setting is what its errors begin with.
func New(setting, name string) *File { return &File{setting: setting, name: name} }

// Read returns what the file holds, most bytes of it at most. It refuses a file that is not regular: a pipe could be read only once, and the
// next read would never end.
func (f *File) Read(most int64) ([]byte, error) {
	info, err := os.Stat(f.name)
	f.lastRead = info // noted before the content is read, so that a later write is seen as a change
	if err != nil {
		return nil, f.unread(err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s %s: not a regular file", f.setting, f.name)
	}
	file, err := os.Open(f.name)
	if err != nil {
		return nil, f.unread(err)
	}
	text, err := io.ReadAll(io.LimitReader(file, most))
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, f.unread(err)
	}
	return text, nil
}

// unread returns the error for a file that can't be read. It does not repeat a name that may be a secret, such as a URL in the place of a
// file.
func (f *File) unread(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) && (config.MayHoldSecret(f.name) || strings.Contains(f.name, "=")) {
		return fmt.Errorf("%s: takes the name of a file, got something that may hold a secret: %w", f.setting, path.Err)
	}
	return fmt.Errorf("%s: %w", f.setting, err)
}

// Watch calls reload when the file has changed since Read, and at once for each signal, until ctx is done. reload is to call Read.
func (f *File) Watch(ctx context.Context, signals <-chan os.Signal, reload func()) {
	tick := time.NewTicker(pollPeriod)
	defer tick.Stop()
	changed := false
	for {
		select {
		case <-signals:
			reload()
			changed = false
		case <-tick.C:
			if changed {
				reload()
			}
			changed = f.changed() // a change while the file was read counts too
		case <-ctx.Done():
			return
		}
	}
}

// changed reports whether the name leads to another file than the one read last, or whether that file was written to or has other
// permissions.
func (f *File) changed() bool {
	info, err := os.Stat(f.name)
	if err != nil || f.lastRead == nil {
		return (err == nil) != (f.lastRead != nil)
	}
	return !os.SameFile(info, f.lastRead) || info.Size() != f.lastRead.Size() || !info.ModTime().Equal(f.lastRead.ModTime()) || info.Mode() != f.lastRead.Mode()
}
