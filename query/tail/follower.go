package tail

import (
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"millrace/query/language"
)

const (
	// followerEvents and followerBytes bound what waits for a follower. What comes on top is counted as missed.
	followerEvents = 20_000
	followerBytes  = 4 << 20
)

// Row is a row that became visible.
type Row struct {
	ID   uuid.UUID
	Time time.Time // when its event happened, as the record tells
	Data []byte    // the record as PostgreSQL writes it, without line breaks; good until the function that got the row returns

	placePrefix string
}

// AppendPlace appends the place behind the row, which ParsePlace reads.
func (r Row) AppendPlace(out []byte) []byte {
	return append(append(out, r.placePrefix...), r.ID.String()...)
}

// Event is a row on its way to followers. They share it.
type Event struct {
	Text []byte // as Options.Encode made it

	id       uuid.UUID
	lastPoll int64 // the last poll that did not show it
}

// Counter counts rows.
type Counter interface{ Inc() }

// Follower holds what waits for one client.
type Follower struct {
	tail     *Tail
	audience *audience
	counter  Counter       // nil: the follower is sent events
	ready    chan struct{} // holds one when something waits
	start    string        // the place of a follower that has had nothing yet

	mu     sync.Mutex
	events []*Event
	bytes  int
	missed int64

	caught      map[uuid.UUID]bool // rows that CatchUp gave; polls up to caughtUntil may give them too
	caughtUntil int64
}

// Ready returns a channel that has a value when something waits.
func (f *Follower) Ready() <-chan struct{} { return f.ready }

// Start returns the place of a follower that has had nothing yet. Whoever goes on from it gets all that became visible after
// Join had returned, and perhaps rows that became visible shortly before.
func (f *Follower) Start() string { return f.start }

// push adds an event. If too much waits, it counts the event as missed instead, and reports that.
func (f *Follower) push(e *Event) (missed bool) {
	f.mu.Lock()
	if missed = len(f.events) >= followerEvents || f.bytes+len(e.Text) > followerBytes; missed {
		f.missed++
	} else {
		f.events, f.bytes = append(f.events, e), f.bytes+len(e.Text)
	}
	f.mu.Unlock()
	select {
	case f.ready <- struct{}{}:
	default:
	}
	return missed
}

// Take returns what waits, and how many rows were missed after that. Only one goroutine may call Take and CatchUp.
func (f *Follower) Take() (events []*Event, missed int64) {
	f.mu.Lock()
	events, missed = f.events, f.missed
	f.events, f.bytes, f.missed = nil, 0, 0
	f.mu.Unlock()
	if f.caught != nil {
		events = slices.DeleteFunc(events, func(e *Event) bool {
			if e.lastPoll > f.caughtUntil {
				f.caught = nil
			}
			return f.caught[e.id]
		})
	}
	return events, missed
}

// IsIdle reports whether nothing waits.
func (f *Follower) IsIdle() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.events) == 0 && f.missed == 0
}

// audience holds the followers of one query.
type audience = language.Entry[map[*Follower]bool]
