package archive

import (
	"fmt"
	"sync"
	"time"
)

// AwayError is the error of a store that can't be reached, or that is not able to answer. It may come back.
type AwayError struct {
	Since  time.Time // of the first failure after which nothing succeeded
	Reason string
}

func (e *AwayError) Error() string {
	return fmt.Sprintf("the archive's store has been away since %s: %s", e.Since.UTC().Format(time.RFC3339), e.Reason)
}

// againAfter is how long a store that is away is left alone. Those who ask meanwhile are told at once, so that they don't hold what others
// need.
const againAfter = 2 * time.Second

// outage is what is known of a store that is away. The zero value is a store that is not.
type outage struct {
	mu   sync.Mutex
	away *AwayError // nil: it is not away
	next time.Time  // when one may try again
}

// refusal returns the error for who asks while the store is away, or nil if the store is to be tried. One tries at a time.
func (o *outage) refusal(now time.Time) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.away == nil:
		return nil
	case now.Before(o.next):
		return o.away
	}
	o.next = now.Add(againAfter)
	return nil
}

// fail notes that the store could not be reached, and returns the error.
func (o *outage) fail(now time.Time, reason string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	since := now
	if o.away != nil {
		since = o.away.Since
	}
	o.away = &AwayError{since, reason}
	o.next = now.Add(againAfter)
	return o.away
}

// succeed notes that the store has answered.
func (o *outage) succeed() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.away = nil
}

// current returns since when the store has been away, and why; nil if it is not.
func (o *outage) current() *AwayError {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.away
}
