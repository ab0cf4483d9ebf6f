package cells

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/internal/hotfile"
)

// setting is the setting that names the file.
const setting = "CELLS_FILE"

// File is the map that a file describes now. Any number of goroutines may call Map at once, but only one may call Watch and Reload.
type File struct {
	name string
	hot  *hotfile.File
	now  func() time.Time
	m    atomic.Pointer[Map]

	reloads *hotfile.Reloads
}

// Open reads a file of cells. An empty name gives a nil File: there is one database, and no map is asked.
func Open(name string) (*File, error) {
	if name == "" {
		return nil, nil
	}
	f := &File{
		name: name, hot: hotfile.New(setting, name), now: time.Now,
		reloads: hotfile.NewReloads(prometheus.CounterOpts{
			Name: "millrace_cells_reload_errors_total",
			Help: "Times CELLS_FILE could not be taken; the map of before stays.",
		}, prometheus.GaugeOpts{
			Name: "millrace_cells_last_reload_success",
			Help: "1 when CELLS_FILE could be taken the last time it was read, else 0.",
		}),
	}
	m, err := read(f.hot, name)
	if err != nil {
		return nil, err
	}
	f.m.Store(m)
	f.reloads.Note(nil)
	return f, nil
}

// ReadFile returns the map that a file describes. Its error names the file, and is a Mistake within if the file could be read.
func ReadFile(name string) (*Map, error) { return read(hotfile.New(setting, name), name) }

// read does what ReadFile does, for a file that may be watched.
func read(hot *hotfile.File, name string) (*Map, error) {
	text, err := hot.Read(maxFileBytes + 1)
	if err != nil {
		return nil, err
	}
	m, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", setting, name, err)
	}
	return m, nil
}

// Map returns the map as it is now, nil for a nil File.
func (f *File) Map() *Map {
	if f == nil {
		return nil
	}
	return f.m.Load()
}

// Reload reads the file again. It fails, and the map stays as it was, if the file has a mistake or may not follow what was there before:
// with LeastNotice, and with ids that are needed for as long as the map of before says. A service that is started anew takes any file.
func (f *File) Reload() error {
	m, err := read(f.hot, f.name)
	if err == nil {
		before := f.m.Load()
		refusals := m.Follows(before, f.now(), Rules{Notice: LeastNotice, Keep: before.Keep()})
		if err = errors.Join(refusals...); err != nil {
			err = fmt.Errorf("%s %s: %s", setting, f.name, strings.ReplaceAll(err.Error(), "\n", "; "))
		}
	}
	f.reloads.Note(err)
	if err != nil {
		return err
	}
	f.m.Store(m)
	return nil
}

// Watch reads the file again when it changes, and at once for each signal, until ctx is done. It logs each reload and why one failed.
func (f *File) Watch(ctx context.Context, signals <-chan os.Signal, log *slog.Logger) {
	if f == nil {
		return
	}
	f.hot.Watch(ctx, signals, func() {
		if err := f.Reload(); err != nil {
			log.Error("the cells stay as they were", "error", err)
			return
		}
		m := f.Map()
		log.Info("read the cells again", "file", f.name, "cells", len(m.cells), "map", m.Fingerprint())
	})
}

// Register adds the metrics of reloads to a service's. For a nil File it adds nothing.
func (f *File) Register(r prometheus.Registerer) error {
	if f == nil {
		return nil
	}
	return f.reloads.Register(r)
}
