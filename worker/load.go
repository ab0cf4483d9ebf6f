package worker

import (
	"context"
	"sync/atomic"
	"time"

	"millrace/internal/retry"
)

// loadWindow is how long calm watches the streams.
const loadWindow = 2 * time.Second

// load knows how busy the streams are.
type load struct {
	streams int
	busy    atomic.Int64 // nanoseconds that the streams have spent storing batches
}

// calm watches the streams for loadWindow and reports whether they could do twice as much. It reports false if ctx is done.
func (l *load) calm(ctx context.Context) bool {
	before := l.busy.Load()
	if retry.Sleep(ctx, loadWindow) != nil {
		return false
	}
	return time.Duration(l.busy.Load()-before) < loadWindow*time.Duration(l.streams)/2
}
