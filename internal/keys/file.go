package keys

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math"
	"os"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/internal/hotfile"
)

// File is the keys that a file lists now. A nil File lets everybody in. Many goroutines may call its methods at
// once, but only one may call Watch and Reload.
type File struct {
	name string
	set  atomic.Pointer[Set]
	file *hotfile.File

	reloads *hotfile.Reloads
}

// Open reads a keys file. An empty name gives a nil File.
func Open(name string) (*File, error) {
	if name == "" {
		return nil, nil
	}
	f := &File{
		name: name,
		file: hotfile.New("KEYS_FILE", name),
		reloads: hotfile.NewReloads(prometheus.CounterOpts{
			Name: "millrace_keys_reload_errors_total",
			Help: "Times KEYS_FILE could not be read again; the keys read before stay.",
		}, prometheus.GaugeOpts{
			Name: "millrace_keys_last_reload_success",
			Help: "1 when KEYS_FILE could be read the last time it was, else 0.",
		}),
	}
	set, err := f.read()
	if err != nil {
		return nil, err
	}
	f.set.Store(set)
	f.reloads.Note(nil)
	return f, nil
}

// read reads the file.
func (f *File) read() (*Set, error) {
	text, err := f.file.Read(math.MaxInt64)
	if err != nil {
		return nil, err
	}
	set, err := Parse(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("KEYS_FILE %s: %w", f.name, err)
	}
	return set, nil
}

// Reload reads the file again, for every later Check. After an error the keys stay as they were.
func (f *File) Reload() error {
	set, err := f.read()
	f.reloads.Note(err)
	if err != nil {
		return err
	}
	ended := set.inherit(f.set.Load())
	f.set.Store(set)
	for _, k := range ended { // after the store, so that a client that comes again meets the new keys
		close(k.gone)
	}
	return nil
}

// Watch reads the file again when it changes, and at once for each signal, until ctx is done. It logs each reload
// and why one failed.
func (f *File) Watch(ctx context.Context, signals <-chan os.Signal, log *slog.Logger) {
	if f == nil {
		return
	}
	f.file.Watch(ctx, signals, func() {
		if err := f.Reload(); err != nil {
			log.Error("the keys stay as they were", "error", err)
			return
		}
		log.Info("read the keys again", "file", f.name, "keys", len(f.set.Load().keys))
	})
}

// Set returns the keys as they are now, nil for a nil File.
func (f *File) Set() *Set {
	if f == nil {
		return nil
	}
	return f.set.Load()
}

// Check is Set.Check for the keys as they are now. A nil File allows everything.
func (f *File) Check(h Header, scope string) (*Key, Verdict) {
	if f == nil {
		return nil, Allowed
	}
	return f.set.Load().Check(h, scope)
}

// Register adds the metrics of reloads to a service's. For a nil File it adds nothing.
func (f *File) Register(r prometheus.Registerer) error {
	if f == nil {
		return nil
	}
	return f.reloads.Register(r)
}
