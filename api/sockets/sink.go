package sockets

import (
	"context"
	"iter"
	"log/slog"
	"time"

	"golang.org/x/sync/semaphore"

	"millrace/api/protocol"
	"millrace/internal/record"
)

// Sink takes records. Many goroutines use it at once.
type Sink interface {
	// NewRecords returns an empty list, to be given back with FreeRecords.
	NewRecords() *record.List
	FreeRecords(records *record.List)

	// Publish returns nil once the records are confirmed. It tries for as long as ctx lasts, and returns why it failed after that. bytes is the length of
	// the messages that the records were made of.
	Publish(ctx context.Context, records *record.List, bytes int) error
}

// Budget bounds the bytes that all sockets of a process hold. Buffers and records have a half each: so records always come to their confirm, which makes room, however many
// buffers wait.
type Budget struct {
	buffers, records *semaphore.Weighted
	half             int64
}

// NewBudget returns a budget of so many bytes.
func NewBudget(bytes int64) *Budget {
	half := bytes / 2
	return &Budget{semaphore.NewWeighted(half), semaphore.NewWeighted(half), half}
}

const (
	// recordBytesPerByte is about how much memory the records of a text take: the text in JSON, what stands beside it, and the frame.
	recordBytesPerByte = 4

	// mostShare is the part of the records' half that one batch takes at most, so that a few large ones go side by side.
	mostShare = 4
)

// forRecords waits until there is room for the records of a text of n bytes. It reports false if ctx ends before. The caller must call release with what it returns.
func (b *Budget) forRecords(ctx context.Context, n int) (taken int64, ok bool) {
	taken = min(int64(n)*recordBytesPerByte, b.half/mostShare)
	return taken, b.records.Acquire(ctx, taken) == nil
}

// batch turns messages into records and has them confirmed.
type batch struct {
	protocol protocol.Messages
	sink     Sink
	budget   *Budget
	metrics  *Metrics
	log      *slog.Logger
}

// take publishes the records of messages, which have about so many bytes. It returns when they are confirmed, or when flush has ended; what is lost then is counted and logged.
func (b *batch) take(flush context.Context, about int, messages iter.Seq[protocol.Message]) {
	taken, ok := b.budget.forRecords(flush, about)
	if !ok {
		b.lost(messages, flush.Err())
		return
	}
	defer b.budget.records.Release(taken)
	records := b.sink.NewRecords()
	defer b.sink.FreeRecords(records)
	n, bytes := 0, 0
	b.protocol.Take(records, func(yield func(protocol.Message) bool) {
		for m := range messages {
			n++
			bytes += len(m.Text)
			if !yield(m) {
				return
			}
		}
	})
	b.metrics.Messages.Add(float64(n))
	if records.Accepted+records.Rejected == 0 {
		return
	}
	if err := b.sink.Publish(flush, records, bytes); err != nil {
		b.metrics.Dropped(Unconfirmed).Add(float64(records.Accepted))
		b.log.Error("messages were read and are lost, because they were not confirmed before the service stopped", "messages", records.Accepted, "error", err)
	}
}

// lost counts messages for which there was no room before flush ended.
func (b *batch) lost(messages iter.Seq[protocol.Message], err error) {
	n := 0
	for range messages {
		n++
	}
	b.metrics.Messages.Add(float64(n))
	b.metrics.Dropped(Unconfirmed).Add(float64(n))
	b.log.Error("messages were read and are lost, because there was no room for them before the service stopped", "messages", n, "error", err)
}

// Times bound how long things take.
type Times struct {
	Handshake time.Duration // of TLS
	Message   time.Duration // from a message's first byte to its last
	Quiet     time.Duration // for which nothing comes, before a socket is closed at the stop
	Stop      time.Duration // for which a socket is still read at the stop
}

// DefaultTimes are the times of a service.
var DefaultTimes = Times{Handshake: 10 * time.Second, Message: 30 * time.Second, Quiet: 100 * time.Millisecond, Stop: time.Second}
