package sockets

import (
	"bytes"
	"container/list"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zlib"

	"millrace/api/protocol"
)

// gelfFraming is how GELF goes over TCP: each message has a NUL behind it. Some senders put a newline in its place. The end of a connection's first message tells which.
// Messages that are longer than most are cut.
type gelfFraming struct {
	most    int
	way     gelfWay
	scanned int  // how many bytes at the beginning of the next message have no end of a message
	isRest  bool // what comes up to the next end is the rest of a message that was cut

	// Where the bytes that were scanned leave off, while the way is not known.
	begun, inString, isEscaped bool
	depth                      int // how many objects and arrays are open
}

type gelfWay uint8

const (
	gelfUnknown gelfWay = iota
	gelfNULs
	gelfLines // ended by newlines; by NULs as well
)

// NewGELFFramer returns a Framer of GELF's messages, of at most so many bytes.
func NewGELFFramer(most int) Framer { return &gelfFraming{most: most} }

// Next implements Framer.
func (f *gelfFraming) Next(b []byte, ended bool) (message []byte, n int, cut bool, err error) {
	end := f.end(b)
	switch {
	case end > f.most, end < 0 && len(b) > f.most:
		message, n, cut = b[:f.most], f.most, true
		f.scanned -= f.most
	case end >= 0:
		message, n = b[:end], end+1
		f.scanned = 0
	case ended && len(b) > 0:
		message, n = b, len(b)
		f.scanned = 0
	default:
		return nil, 0, false, nil
	}
	wasRest := f.isRest
	f.isRest = cut
	if wasRest || len(bytes.TrimSpace(message)) == 0 {
		return nil, n, false, nil
	}
	return message, n, cut, nil
}

// end returns where the first message of b ends, and leaves scanned there. It returns -1 if the end has not come.
func (f *gelfFraming) end(b []byte) int {
	if f.way == gelfUnknown {
		return f.firstEnd(b)
	}
	var end int
	if f.way == gelfLines { // in one walk: a search for each of them would go over the whole buffer for every message
		end = bytes.IndexAny(b[f.scanned:], "\x00\n")
	} else {
		end = bytes.IndexByte(b[f.scanned:], 0)
	}
	if end < 0 {
		f.scanned = len(b)
		return -1
	}
	f.scanned += end
	return f.scanned
}

// firstEnd is end while the way is not known. A newline in an object does not end it, unless it stands in a string, where JSON has none.
func (f *gelfFraming) firstEnd(b []byte) int {
	for ; f.scanned < len(b); f.scanned++ {
		c := b[f.scanned]
		switch {
		case c == 0:
			f.way = gelfNULs
			return f.scanned
		case c == '\n' && f.begun && (f.depth == 0 || f.inString):
			f.way = gelfLines
			return f.scanned
		case f.isEscaped:
			f.isEscaped = false
		case f.inString:
			f.isEscaped = c == '\\'
			f.inString = c != '"'
		case c == '"':
			f.inString = f.depth > 0
		case c == '{', c == '[':
			f.depth++
		case c == '}', c == ']':
			f.depth = max(0, f.depth-1)
		}
		f.begun = f.begun || c > ' '
	}
	return -1
}

const (
	// chunkHeader is the length of what stands before the bytes of a chunk: two magic bytes, eight of the message's id, the chunk's number, and how many there are.
	chunkHeader = 12

	// mostChunks is how many chunks a message may have, by the format's specification.
	mostChunks = 128

	// chunkTime is how long a message's chunks may take to come, from the first to come on. It is the specification's.
	chunkTime = 5 * time.Second

	// perChunk and perSet are what a chunk that waits and a message of which chunks wait cost beside the bytes.
	perChunk = 24
	perSet   = 256
)

// Chunks are the chunks of GELF's messages that wait for others. Many goroutines use them at once.
type Chunks struct {
	messageBytes int
	bytes        int
	metrics      *Metrics

	mu    sync.Mutex // guards what follows
	sets  map[chunkKey]*list.Element
	order list.List // of *chunkSet, by when they began
	held  int       // bytes of all sets
}

// chunkKey tells the chunks of one message from all others.
type chunkKey struct {
	peer netip.Addr
	id   uint64
}

// chunkSet are the chunks of a message that have come.
type chunkSet struct {
	key     chunkKey
	began   time.Time
	parts   [][]byte // by their numbers; nil for those that have not come
	missing int
	text    int  // bytes of parts
	isLost  bool // the message is too long, and was counted as lost; the chunks that still come are passed over
}

// cost returns how many bytes a set holds.
func (s *chunkSet) cost() int { return perSet + perChunk*len(s.parts) + s.text }

// NewChunks returns Chunks that hold so many bytes at most. When there are more, the messages that wait longest are given up. A message has at most messageBytes, before and
// after its compression is undone.
func NewChunks(messageBytes, bytes int, m *Metrics) *Chunks {
	m.Dropped(Incomplete)
	m.Dropped(TooLong)
	m.Refused(Framing)
	return &Chunks{messageBytes: messageBytes, bytes: bytes, metrics: m, sets: make(map[chunkKey]*list.Element)}
}

// isChunk reports whether a packet is a chunk.
func isChunk(packet []byte) bool { return len(packet) > 1 && packet[0] == 0x1e && packet[1] == 0x0f }

// errChunk says that a chunk is not well-formed, or contradicts the others of its message.
var errChunk = errors.New("no chunk of GELF")

// add takes a chunk. It appends the message to dst if it has come whole, and reports whether it has.
func (c *Chunks) add(dst []byte, packet protocol.Message) (message []byte, isWhole bool, err error) {
	text := packet.Text
	if len(text) < chunkHeader {
		return dst, false, errChunk
	}
	key := chunkKey{packet.Peer, binary.BigEndian.Uint64(text[2:])}
	number, count := int(text[10]), int(text[11])
	text = text[chunkHeader:]
	if count == 0 || count > mostChunks || number >= count {
		return dst, false, errChunk
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expire(packet.Came)
	e := c.sets[key]
	if e == nil {
		e = c.order.PushBack(&chunkSet{key: key, began: packet.Came, parts: make([][]byte, count), missing: count})
		c.sets[key] = e
		c.held += perSet + perChunk*count
	}
	set := e.Value.(*chunkSet)
	switch {
	case set.isLost:
		return dst, false, nil
	case count != len(set.parts):
		return dst, false, errChunk
	case set.parts[number] != nil:
		return dst, false, nil // it came twice
	}
	set.parts[number] = append(make([]byte, 0, len(text)), text...) // never nil
	set.missing--
	set.text += len(text)
	c.held += len(text)
	switch {
	case set.text > c.messageBytes:
		c.metrics.Dropped(TooLong).Inc()
		c.held -= set.cost()
		set.parts, set.text, set.isLost = nil, 0, true
		c.held += set.cost()
	case set.missing == 0:
		for _, part := range set.parts {
			dst = append(dst, part...)
		}
		c.remove(e)
		return dst, true, nil
	}
	for c.held > c.bytes {
		c.lose(c.order.Front(), Full)
	}
	return dst, false, nil
}

// remove forgets a set.
func (c *Chunks) remove(e *list.Element) {
	set := c.order.Remove(e).(*chunkSet)
	delete(c.sets, set.key)
	c.held -= set.cost()
}

// lose forgets a set whose message is lost, and counts it.
func (c *Chunks) lose(e *list.Element, why string) {
	if !e.Value.(*chunkSet).isLost {
		c.metrics.Dropped(why).Inc()
	}
	c.remove(e)
}

// expire gives up the messages that did not come whole in time. The caller holds c.mu.
func (c *Chunks) expire(now time.Time) {
	for e := c.order.Front(); e != nil && now.Sub(e.Value.(*chunkSet).began) > chunkTime; e = c.order.Front() {
		c.lose(e, Incomplete)
	}
}

// keepTime gives up, from now on, messages that do not come whole in time, also while no packet comes. It leaves that to add while isIdle reports that packets
// wait: they may have chunks that came in time. The caller must call end when no more will come; it gives up all. c may be nil.
func (c *Chunks) keepTime(isIdle func() bool) (end func()) {
	if c == nil {
		return func() {}
	}
	ended := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		ticker := time.NewTicker(chunkTime / 5)
		defer ticker.Stop()
		for {
			select {
			case now := <-ticker.C:
				if !isIdle() {
					continue
				}
				c.mu.Lock()
				c.expire(now)
				c.mu.Unlock()
			case <-ended:
				return
			}
		}
	})
	return func() {
		close(ended)
		running.Wait()
		c.mu.Lock()
		defer c.mu.Unlock()
		for e := c.order.Front(); e != nil; e = c.order.Front() {
			c.lose(e, Incomplete)
		}
	}
}

// gelfPackets puts chunks together, and undoes compression.
type gelfPackets struct {
	chunks   *Chunks
	joined   []byte
	inflated bytes.Buffer
	source   bytes.Reader
	gzip     *gzip.Reader
	zlib     io.ReadCloser
}

// NewUnpacker returns an Unpacker of GELF's packets. All Unpackers of a socket share its Chunks.
func (c *Chunks) NewUnpacker() Unpacker { return &gelfPackets{chunks: c} }

// mostKept is the size of the largest buffer that is kept for further packets.
const mostKept = 256 << 10

// Unpack implements Unpacker.
func (g *gelfPackets) Unpack(packet protocol.Message, yield func(protocol.Message) bool) bool {
	if cap(g.joined) > mostKept {
		g.joined = nil
	}
	if g.inflated.Cap() > mostKept {
		g.inflated = bytes.Buffer{}
	}
	if isChunk(packet.Text) {
		var isWhole bool
		var err error
		g.joined, isWhole, err = g.chunks.add(g.joined[:0], packet)
		if err != nil {
			g.chunks.metrics.Refused(Framing).Inc()
		}
		if !isWhole {
			return true
		}
		packet.Text = g.joined
	}
	text, err := g.inflate(packet.Text)
	if err != nil {
		g.chunks.metrics.Refused(Framing).Inc()
		return true
	}
	if most := g.chunks.messageBytes; len(text) > most {
		g.chunks.metrics.Cut(TooLong).Inc()
		text = text[:most]
	}
	packet.Text = text
	return yield(packet)
}

// inflate returns what text says, one byte more than a message may have at most. It returns text itself if it is not compressed.
func (g *gelfPackets) inflate(text []byte) ([]byte, error) {
	var r io.Reader
	g.source.Reset(text)
	switch {
	case len(text) > 1 && text[0] == 0x1f && text[1] == 0x8b:
		if g.gzip == nil {
			g.gzip = new(gzip.Reader)
		}
		if err := g.gzip.Reset(&g.source); err != nil {
			return nil, err
		}
		r = g.gzip
	case len(text) > 1 && text[0]&0x0f == 8 && binary.BigEndian.Uint16(text)%31 == 0: // RFC 1950, 2.2
		var err error
		if g.zlib == nil {
			g.zlib, err = zlib.NewReader(&g.source)
		} else {
			err = g.zlib.(zlib.Resetter).Reset(&g.source, nil)
		}
		if err != nil {
			return nil, err
		}
		r = g.zlib
	default:
		return text, nil
	}
	g.inflated.Reset()
	_, err := g.inflated.ReadFrom(io.LimitReader(r, int64(g.chunks.messageBytes)+1))
	return g.inflated.Bytes(), err
}
