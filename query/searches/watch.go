package searches

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/internal/hotfile"
)

// Watch is the file of searches as it is now. A nil Watch has none.
type Watch struct {
	name  string
	hot   *hotfile.File
	terms Terms
	log   *slog.Logger

	mu     sync.Mutex
	file   *File     // nil: none was taken yet
	taken  time.Time // when it was
	wrong  error     // why the file as it is now is not taken; nil if it is
	change chan struct{}

	reloads *hotfile.Reloads
}

// Open reads a file of searches. A mistake in it is logged, and told by Status. An empty name gives a nil Watch.
func Open(name string, terms Terms, log *slog.Logger) *Watch {
	if name == "" {
		return nil
	}
	w := &Watch{
		name: name, hot: newHotFile(name), terms: terms, log: log, change: make(chan struct{}),
		reloads: hotfile.NewReloads(prometheus.CounterOpts{
			Name: "millrace_searches_reload_errors_total",
			Help: "Times SEARCHES_FILE could not be taken; the searches of before stay.",
		}, prometheus.GaugeOpts{
			Name: "millrace_searches_last_reload_success",
			Help: "1 when SEARCHES_FILE could be taken the last time it was read, else 0.",
		}),
	}
	w.reload()
	return w
}

func newHotFile(name string) *hotfile.File { return hotfile.New("SEARCHES_FILE", name) }

// ReadFile returns what a file says. Its error names the file, and is of the type Mistakes within.
func ReadFile(name string, terms Terms) (*File, error) {
	return readFile(newHotFile(name), name, terms)
}

// readFile does what ReadFile does, for a file that may be watched.
func readFile(hot *hotfile.File, name string, terms Terms) (*File, error) {
	text, err := hot.Read(maxFileBytes + 1)
	if err != nil {
		return nil, err
	}
	file, err := Parse(text, filepath.Dir(name), terms)
	if err != nil {
		return nil, fmt.Errorf("SEARCHES_FILE %s: %w", name, err)
	}
	return file, nil
}

// reload reads the file again.
func (w *Watch) reload() {
	file, err := readFile(w.hot, w.name, w.terms)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wrong = err
	w.reloads.Note(err)
	if err != nil {
		if w.file == nil {
			w.log.Error("there are no searches: the file is not taken", "error", err)
		} else {
			w.log.Error("the searches stay as they were", "error", err)
		}
		return
	}
	w.file, w.taken = file, time.Now()
	close(w.change)
	w.change = make(chan struct{})
	w.log.Info("read the searches", "file", w.name, "searches", len(file.Searches))
}

// Run reads the file again when it changes, until ctx is done. It logs each reload and why one failed.
func (w *Watch) Run(ctx context.Context) { w.hot.Watch(ctx, nil, w.reload) }

// File returns the file that was taken last, or nil, and a channel that is closed when another one is taken.
func (w *Watch) File() (*File, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.file, w.change
}

// Status returns when the file was taken that is in force, and why the file as it is now is not.
func (w *Watch) Status() (taken time.Time, wrong error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.taken, w.wrong
}

// Register adds the metrics of reloads to a service's. For a nil Watch it adds nothing.
func (w *Watch) Register(r prometheus.Registerer) error {
	if w == nil {
		return nil
	}
	return w.reloads.Register(r)
}
