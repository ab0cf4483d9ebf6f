package protocol

import (
	"iter"
	"net/netip"
	"time"

	"millrace/internal/record"
)

// Message is a message that comes without a request, over a socket that nobody answers on.
type Message struct {
	Text []byte     // it is not changed until its record is made
	Peer netip.Addr // who sent it
	Came time.Time
}

// Messages is a protocol of such messages. It is pure, as a Protocol is. Any goroutine may call its methods.
type Messages interface {
	// Name returns the protocol's name: the metrics' label intake.
	Name() string

	// Take makes records of messages. What can't be stored as it is gets repaired; what is no message of the protocol at all is noted in records as
	// refused.
	Take(records *record.List, messages iter.Seq[Message])
}
