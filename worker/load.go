package worker

import (
	"context"
	"sync/atomic"
	"time"

	"millrace/internal/retry"
)

// loadWindow is how long the streams are watched before they are said to be busy or not.
const loadWindow = 2 * time.Second

// load tells how busy the streams are.
type load struct {
	streams int
	busy    atomic.Int64 // nanoseconds of all streams in which a batch was being stored
}

// calm watches the streams for a while and says whether they could do twice as much.
func (l *load) calm(ctx context.Context) bool {
	before := l.busy.Load()
	if retry.Sleep(ctx, loadWindow) != nil {
		return false
	}
	return time.Duration(l.busy.Load()-before) < loadWindow*time.Duration(l.streams)/2
}
