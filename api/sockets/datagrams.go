package sockets

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"millrace/api/protocol"
)

// Unpacker finds the messages in packets. One goroutine uses it.
type Unpacker interface {
	// Unpack calls yield with each message that is whole with a packet. Messages are valid until yield returns. It returns false if yield does.
	Unpack(packet protocol.Message, yield func(protocol.Message) bool) bool
}

// Datagrams takes messages over UDP.
type Datagrams struct {
	o    Options
	conn *net.UDPConn
	batch

	mu      sync.Mutex // guards what follows
	arrived sync.Cond  // signalled when there is a packet, or no more will come
	queue   []*packets
	waiting int // bytes of packets in queue
	ended   bool
}

// packets are packets that came one after another.
type packets struct {
	text []byte
	each []packet
	next int // index of the first that is not taken
}

// packet is one of them.
type packet struct {
	end  int // where its text ends; it begins where the one before ends
	peer netip.Addr
	came time.Time
}

const (
	// packetsBytes is how many bytes of packets are published together.
	packetsBytes = 256 << 10

	// perPacket is what a packet costs beside its text.
	perPacket = 64

	// largestPacket is more than the largest packet of UDP.
	largestPacket = 64 << 10

	// receiveBuffer is the kernel's room for packets while none is read. The kernel may give less: see net.core.rmem_max.
	receiveBuffer = 8 << 20
)

// NewDatagrams returns Datagrams for a socket of UDP. Run closes the socket.
func NewDatagrams(conn *net.UDPConn, o Options) *Datagrams {
	d := &Datagrams{o: o, conn: conn, batch: o.batch()}
	d.arrived.L = &d.mu
	return d
}

// Run takes messages until ctx is done, and then what the kernel still holds. What was read is published, for as long as flush lasts. Run returns an error if the
// socket fails.
func (d *Datagrams) Run(ctx, flush context.Context) error {
	if err := d.conn.SetReadBuffer(receiveBuffer); err != nil {
		d.log.Warn("the kernel's buffer for packets stays small", "error", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = d.conn.SetReadDeadline(time.Now().Add(d.o.Times.Quiet)) })
	defer stop()
	var workers sync.WaitGroup
	for range d.o.Workers {
		workers.Go(func() { d.publish(flush) })
	}
	endExpiry := d.o.Chunks.keepTime(d.isIdle)
	err := d.read(ctx)
	d.mu.Lock()
	d.ended = true
	d.arrived.Broadcast()
	d.mu.Unlock()
	workers.Wait()
	endExpiry()
	return errors.Join(err, d.conn.Close())
}

// isIdle reports whether no packet waits to be published.
func (d *Datagrams) isIdle() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.waiting == 0
}

// read reads packets until ctx is done and none has come for a moment.
func (d *Datagrams) read(ctx context.Context) error {
	buf := make([]byte, largestPacket)
	refused := d.o.Metrics.Refused(Address)
	var stopBy time.Time
	for {
		n, from, err := d.conn.ReadFromUDPAddrPort(buf)
		now := time.Now()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil:
			continue // an ICMP message of a peer; the socket goes on
		}
		if peer := plain(from.Addr()); d.o.Admission.Admits(peer) {
			d.add(buf[:n], peer, now)
		} else {
			refused.Inc()
		}
		if ctx.Err() == nil {
			continue
		}
		if stopBy.IsZero() {
			stopBy = now.Add(d.o.Times.Stop)
		}
		if now.After(stopBy) {
			return nil
		}
		_ = d.conn.SetReadDeadline(now.Add(d.o.Times.Quiet)) // an error comes from the next read
	}
}

// add puts a packet into the queue, or drops it if that is full.
func (d *Datagrams) add(text []byte, peer netip.Addr, came time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	size := len(text) + perPacket
	if d.waiting+size > d.o.QueueBytes {
		d.o.Metrics.Dropped(Full).Inc()
		return
	}
	d.waiting += size
	last := len(d.queue) - 1
	if last < 0 || len(d.queue[last].text)+len(text) > packetsBytes || len(d.queue[last].each) == packetsBytes/perPacket {
		d.queue = append(d.queue, packetsPool.Get().(*packets))
		last++
	}
	p := d.queue[last]
	p.text = append(p.text, text...)
	p.each = append(p.each, packet{len(p.text), peer, came})
	if len(p.each) == 1 {
		d.arrived.Signal()
	}
}

var packetsPool = sync.Pool{New: func() any { return new(packets) }}

// publish publishes packets until no more will come.
func (d *Datagrams) publish(flush context.Context) {
	unpacker := d.o.Unpacker()
	for {
		d.mu.Lock()
		for len(d.queue) == 0 && !d.ended {
			d.arrived.Wait()
		}
		if len(d.queue) == 0 {
			d.mu.Unlock()
			return
		}
		p := d.queue[0]
		d.queue[0] = nil
		d.queue = d.queue[1:]
		d.mu.Unlock()
		size := len(p.text) + len(p.each)*perPacket
		about := size
		if d.o.Chunks != nil {
			about = packetsBytes + d.o.MessageBytes // that is the most, however far they were compressed
		}
		for p.next < len(p.each) {
			d.take(flush, about, p.messages(unpacker))
		}

		// They count until they are confirmed.
		d.mu.Lock()
		d.waiting -= size
		d.mu.Unlock()
		p.text, p.each, p.next = p.text[:0], p.each[:0], 0
		packetsPool.Put(p)
	}
}

// messages are the messages of the packets that are not taken yet. When they have come to packetsBytes, the packets behind them are left for another call.
func (p *packets) messages(unpacker Unpacker) iter.Seq[protocol.Message] {
	return func(yield func(protocol.Message) bool) {
		bytes := 0
		count := func(m protocol.Message) bool {
			bytes += len(m.Text)
			return yield(m)
		}
		for p.next < len(p.each) && bytes < packetsBytes {
			begin := 0
			if p.next > 0 {
				begin = p.each[p.next-1].end
			}
			one := p.each[p.next]
			p.next++
			if !unpacker.Unpack(protocol.Message{Text: p.text[begin:one.end], Peer: one.peer, Came: one.came}, count) {
				return
			}
		}
	}
}

// syslogPackets takes packets of syslog apart in which some devices put several messages, with newlines between them. A line that does not begin with a priority
// belongs to the message before.
type syslogPackets struct{}

// NewSyslogUnpacker returns an Unpacker of syslog's packets.
func NewSyslogUnpacker() Unpacker { return syslogPackets{} }

// Unpack implements Unpacker.
func (syslogPackets) Unpack(packet protocol.Message, yield func(protocol.Message) bool) bool {
	rest := packet.Text
	for len(rest) > 0 {
		end := nextPriority(rest)
		packet.Text = rest[:end]
		rest = rest[end:]
		if !yield(packet) {
			return false
		}
	}
	return true
}

// nextPriority returns where the second message of a packet begins, its length if there is only one.
func nextPriority(b []byte) int {
	for at := 0; ; {
		end := bytes.IndexByte(b[at:], '\n')
		if end < 0 {
			return len(b)
		}
		at += end + 1
		digits := at + 1
		for digits < len(b) && digits <= at+3 && b[digits]-'0' <= 9 {
			digits++
		}
		if at < len(b) && b[at] == '<' && digits > at+1 && digits < len(b) && b[digits] == '>' {
			return at
		}
	}
}
