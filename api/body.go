package api

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/flate"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/valyala/fasthttp"
)

// refusal is an answer other than 2xx: its status and what was wrong.
type refusal struct {
	status int
	msg    string
}

func (r *refusal) Error() string { return r.msg }

func refuse(status int, format string, args ...any) *refusal {
	return &refusal{status, fmt.Sprintf(format, args...)}
}

var errBusy = refuse(fasthttp.StatusServiceUnavailable, "too many bytes are under way (MAX_INFLIGHT_BYTES)")

// inflight bounds the memory of requests under way: a body's buffer while it is read, its decoder, then its records in
// frames until they are confirmed. Bodies that are still to come share three quarters of it, so that slow uploads leave
// room for what has arrived.
type inflight struct {
	limit     int64
	used      atomic.Int64
	awaited   atomic.Int64 // of it by bodies of which more is to come
	mostAwait int64        // 0 is limit
}

// newInflight returns a bound of limit bytes, under which a body of largest bytes can come.
func newInflight(limit, largest int64) *inflight {
	return &inflight{limit: limit, mostAwait: max(limit/4*3, min(largest, limit))}
}

// await is reserve for a body of which more is to come. settled gives the bytes back to those that are awaited.
func (b *inflight) await(n int64) bool {
	if b.awaited.Add(n) > cmp.Or(b.mostAwait, b.limit) || !b.reserve(n) {
		b.awaited.Add(-n)
		return false
	}
	return true
}

func (b *inflight) settled(n int64) { b.awaited.Add(-n) }

// reserve takes n bytes, or says that they are not to be had.
func (b *inflight) reserve(n int64) bool {
	if b.used.Add(n) > b.limit {
		b.used.Add(-n)
		return false
	}
	return true
}

// Release gives n bytes back.
func (b *inflight) Release(n int64) { b.used.Add(-n) }

// bodyReader reads and decodes request bodies into memory that it accounts for.
type bodyReader struct {
	maxBytes    int64
	inflight    *inflight
	stepTimeout time.Duration    // for each step of a body
	decoding    chan struct{}    // holds one for each body that is being decoded; nil is no bound
	buffers     [sizes]sync.Pool // of *[]byte, by size
	free        sync.Pool        // of *body
}

// Buffers of bodies are kept for the next request in sizes from 1 KiB that double up to maxPooled: a small body must not
// sit in a large one's memory, and a rare large one should not stay for ever.
const (
	maxPooled = minBuffer << (sizes - 1)
	minBuffer = 1 << 10
	sizes     = 11
)

// size returns the index of the smallest size that holds n bytes, for n from 1 to maxPooled.
func size(n int64) int { return bits.Len64(uint64(n-1) / minBuffer) }

// get returns an empty buffer for n bytes.
func (r *bodyReader) get(n int64) *[]byte {
	if n > maxPooled {
		b := make([]byte, 0, n)
		return &b
	}
	i := size(n)
	if b, ok := r.buffers[i].Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 0, minBuffer<<i)
	return &b
}

func (r *bodyReader) put(b *[]byte) {
	if n := int64(cap(*b)); n <= maxPooled {
		*b = (*b)[:0]
		r.buffers[size(n)].Put(b)
	}
}

// body is a decoded request body. close gives back what it holds, and the body itself.
type body struct {
	reader   *bodyReader
	wire     countingReader
	buf      *[]byte // nil once dropped
	reserved int64
	awaited  int64 // of it while more of the body is to come
}

func (b *body) bytes() []byte { return *b.buf }

// shrink gives the buffer back, for n bytes of records are all that is left of the request.
func (b *body) shrink(n int64) {
	b.drop()
	b.reader.inflight.Release(b.reserved - n)
	b.reserved = n
}

func (b *body) drop() {
	if b.buf != nil {
		b.reader.put(b.buf)
		b.buf = nil
	}
}

// reservation is bytes that a request holds.
type reservation struct {
	of    *inflight
	bytes int64
}

func (r reservation) release() { r.of.Release(r.bytes) }

// hand returns the bytes that b holds, which then are no longer b's.
func (b *body) hand() reservation {
	r := reservation{b.reader.inflight, b.reserved}
	b.reserved = 0
	return r
}

func (b *body) close() {
	b.drop()
	b.arrived()
	b.hand().release()
	b.wire = countingReader{}
	b.reader.free.Put(b)
}

// read returns the decoded body of a request, in memory reserved before it is read.
func (r *bodyReader) read(ctx *fasthttp.RequestCtx) (*body, *refusal) {
	encoding, err := contentEncoding(ctx)
	if err != nil {
		return nil, err
	}
	wire := ctx.RequestBodyStream()
	length := int64(ctx.Request.Header.ContentLength()) // -1 is chunked
	switch {
	case wire == nil:
		return nil, refuse(fasthttp.StatusLengthRequired, "neither Content-Length nor Transfer-Encoding: chunked")
	case length > r.maxBytes:
		return nil, r.tooLarge()
	}
	b := r.newBody()
	extend := func() error { return ctx.Conn().SetReadDeadline(time.Now().Add(r.stepTimeout)) }
	if err := b.fill(wire, encoding, length, extend); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

// newBody returns a body that holds nothing.
func (r *bodyReader) newBody() *body {
	if b, ok := r.free.Get().(*body); ok {
		return b
	}
	return &body{reader: r}
}

func (r *bodyReader) tooLarge() *refusal {
	return refuse(fasthttp.StatusRequestEntityTooLarge, "the body is larger than %d bytes (MAX_BODY_BYTES, decoded)", r.maxBytes)
}

const (
	// step is how much of a body the client has timeouts.step for.
	step = 64 << 10

	// arrivedBytes is how much of a body with a Content-Length fasthttp has read before it calls the handler.
	arrivedBytes = 8 << 10

	// firstBytes is the buffer that other bodies begin with.
	firstBytes = 4 << 10
)

// fill reads the body into memory that is reserved before, and decodes it when it is whole: a decoder takes up to 8 MiB,
// which must not wait for a client. wire has length bytes, or -1 for as many as come. extend gives the client time for
// another step.
func (b *body) fill(wire io.Reader, encoding string, length int64, extend func() error) *refusal {
	b.wire = countingReader{r: wire, length: length}
	if bad := b.receive(encoding, length, extend); bad != nil {
		return bad
	}
	b.arrived()
	if encoding == "" {
		return nil
	}
	return b.decode(encoding)
}

// receive reads the body as it comes. Its buffer grows as it fills up, four times at first and then twice, so that nobody
// holds much more than what was sent.
func (b *body) receive(encoding string, length int64, extend func() error) *refusal {
	most := b.reader.maxBytes
	first := int64(firstBytes)
	switch {
	case length >= 0:
		most = length
		if first = length; length > arrivedBytes {
			first = 2 * arrivedBytes
		}
	case encoding != "":
		most += encodedSlack(most)
	}
	if !b.grow(max(1, min(first, most)), length < 0 || length > arrivedBytes) {
		return errBusy
	}
	var beyond [1]byte
	for end := int64(step); ; {
		have := int64(len(*b.buf))
		if have == length {
			return nil
		}
		if have == end {
			end += step
			if err := extend(); err != nil {
				return b.unreadable(encoding, err)
			}
		}
		if have == int64(cap(*b.buf)) && have < most {
			larger := 4 * have
			if have >= step {
				larger = 2 * have
			}
			if !b.grow(min(larger, most), true) {
				return errBusy
			}
		}
		room := (*b.buf)[have:min(end, most, int64(cap(*b.buf)))]
		if have == most {
			room = beyond[:]
		}
		n, err := b.wire.Read(room)
		if have == most && n > 0 {
			return b.reader.tooLarge()
		}
		*b.buf = (*b.buf)[:have+int64(n)]
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return b.unreadable(encoding, err)
		}
	}
}

// encodedSlack is how much larger than n the encoded form of n bytes may be: the formats store what they can't compress in
// blocks with a header of a few bytes each.
func encodedSlack(n int64) int64 { return n/512 + 1<<10 }

// arrived tells that no more of the body is to come.
func (b *body) arrived() {
	if b.awaited > 0 {
		b.reader.inflight.settled(b.awaited)
		b.awaited = 0
	}
}

// decode takes the body, which came encoded, for what it decodes to. Few bodies are decoded at once, and none of them waits
// for its client.
func (b *body) decode(encoding string) *refusal {
	if b.reader.decoding != nil {
		b.reader.decoding <- struct{}{}
		defer func() { <-b.reader.decoding }()
	}
	inflight := b.reader.inflight
	encoded := *b.buf
	held := reservation{inflight, decoderBytes(encoding, encoded)}
	if !inflight.reserve(held.bytes) {
		return b.noRoom(held.bytes + b.reserved)
	}
	// The encoded form is kept, and counted, until the end.
	encodedBuf := b.buf
	held.bytes += b.reserved
	b.buf, b.reserved = nil, 0
	defer func() {
		b.reader.put(encodedBuf)
		held.release()
	}()
	b.wire = countingReader{r: bytes.NewReader(encoded), length: -1}
	src, closeDecoder, err := decoder(encoding, &b.wire)
	if err != nil {
		return b.unreadable(encoding, err)
	}
	defer closeDecoder()
	most := b.reader.maxBytes
	if first := max(1, min(step, most, 4*int64(len(encoded)))); !b.grow(first, false) {
		return b.noRoom(held.bytes + first)
	}
	var beyond [1]byte
	for {
		have := int64(len(*b.buf))
		if larger := min(2*have, most); have == int64(cap(*b.buf)) && have < most && !b.grow(larger, false) {
			return b.noRoom(held.bytes + larger)
		}
		room := (*b.buf)[have:min(most, int64(cap(*b.buf)))]
		if have == most {
			room = beyond[:]
		}
		n, err := src.Read(room)
		if have == most && n > 0 {
			return b.reader.tooLarge()
		}
		*b.buf = (*b.buf)[:have+int64(n)]
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return b.unreadable(encoding, err)
		}
	}
}

// noRoom refuses an encoded body that needs some bytes at once: for now, or for good if they are never to be had.
func (b *body) noRoom(needs int64) *refusal {
	if limit := b.reader.inflight.limit; needs > limit {
		return refuse(fasthttp.StatusRequestEntityTooLarge, "to decode the body takes %d bytes at once, and all requests may hold %d (MAX_INFLIGHT_BYTES)", needs, limit)
	}
	return errBusy
}

// grow moves the body to a buffer for n bytes, or says that they are not to be had. awaited says that more of the body is to
// come.
func (b *body) grow(n int64, awaited bool) bool {
	if n <= maxPooled {
		n = minBuffer << size(n)
	}
	more := n - b.reserved
	if awaited {
		if !b.reader.inflight.await(more) {
			return false
		}
		b.awaited += more
	} else if !b.reader.inflight.reserve(more) {
		return false
	}
	b.reserved = n
	larger := b.reader.get(n)
	if b.buf != nil {
		*larger = append(*larger, *b.buf...)
		b.drop()
	}
	b.buf = larger
	return true
}

// cut lets go of the first n bytes, and of the memory that the rest can do without.
func (b *body) cut(n int) {
	b.arrived() // the rest has, and what is to come is counted as the buffer grows
	rest := (*b.buf)[n:]
	if len(rest) == 0 {
		b.shrink(0)
		return
	}
	if smaller := int64(len(rest)); smaller <= maxPooled && minBuffer<<size(smaller) < cap(*b.buf) {
		smaller = minBuffer << size(smaller)
		buf := b.reader.get(smaller)
		*buf = append(*buf, rest...)
		b.shrink(smaller)
		b.buf = buf
		return
	}
	*b.buf = (*b.buf)[:copy(*b.buf, rest)]
}

// unreadable tells apart what the client sent wrongly and what it did not send in time.
func (b *body) unreadable(encoding string, err error) *refusal {
	wire := &b.wire
	var timeout interface{ Timeout() bool }
	switch {
	case errors.As(wire.err, &timeout) && timeout.Timeout():
		return refuse(fasthttp.StatusRequestTimeout, "the body did not arrive in time: %d bytes came", wire.n)
	case wire.err != nil && wire.err != io.EOF && wire.n < wire.length:
		return refuse(fasthttp.StatusBadRequest, "the body ends after %d of %d bytes", wire.n, wire.length)
	case wire.err != nil && wire.err != io.EOF:
		return refuse(fasthttp.StatusBadRequest, "the body breaks off after %d bytes: %v", wire.n, wire.err)
	}
	if encoding == "zstd" {
		if bad := zstdNotTaken(wire.begin[:min(wire.n, int64(len(wire.begin)))], err); bad != nil {
			return bad
		}
	}
	return refuse(fasthttp.StatusBadRequest, "the body is not %s, as Content-Encoding says: %v after %d bytes", encoding, err, wire.n)
}

// zstdNotTaken returns why a body is not taken that is zstd, as its first bytes tell and err, nil for other bodies.
func zstdNotTaken(begin []byte, err error) *refusal {
	var header zstd.Header
	if header.Decode(begin) != nil {
		return nil
	}
	window := header.WindowSize
	if header.SingleSegment {
		window = header.FrameContentSize // all of it is the window
	}
	switch {
	case errors.Is(err, zstd.ErrUnknownDictionary):
		return refuse(fasthttp.StatusBadRequest, "the body was compressed with a zstd dictionary, number %d; takes zstd without one", header.DictionaryID)
	case !errors.Is(err, zstd.ErrWindowSizeExceeded) && !errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return nil
	case window > zstdWindow:
		return refuse(fasthttp.StatusBadRequest, "the body's zstd window is %d MiB, takes at most %d MiB: compress it without --long and --ultra", (window+1<<20-1)>>20, zstdWindow>>20)
	}
	return nil
}

// countingReader remembers how far the wire was read and how that ended. To fasthttp a connection that ends before
// Content-Length bytes have come is an ordinary end; here it is an error.
type countingReader struct {
	r      io.Reader
	length int64 // -1 when not known
	n      int64
	err    error
	begin  [zstd.HeaderMaxSize]byte // the first bytes
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.n < int64(len(c.begin)) {
		copy(c.begin[c.n:], p[:n])
	}
	c.n += int64(n)
	if err == io.EOF && c.n < c.length {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		c.err = err
	}
	return n, err
}

// contentEncoding returns the request's one encoding, "" for none.
func contentEncoding(ctx *fasthttp.RequestCtx) (string, *refusal) {
	lines := ctx.Request.Header.PeekAll(fasthttp.HeaderContentEncoding)
	if len(lines) == 0 {
		return "", nil
	}
	name := strings.ToLower(strings.TrimSpace(string(bytes.Join(lines, []byte(", ")))))
	switch name {
	case "", "identity":
		return "", nil
	case "x-gzip":
		return "gzip", nil
	case "gzip", "zstd", "deflate":
		return name, nil
	}
	return "", refuse(fasthttp.StatusUnsupportedMediaType, "Content-Encoding: got %q, takes gzip, zstd, deflate or identity", name)
}

var gzipReaders, zstdReaders sync.Pool

// zstdWindow is the largest window a zstd body may ask for: 8 MiB, what RFC 8878 wants every decoder to take.
const zstdWindow = 8 << 20

// decoderBytes is about what the decoder of an encoded body takes. For zstd it depends on the largest window that one of
// the body's frames asks for.
func decoderBytes(encoding string, encoded []byte) int64 {
	const tables = 64 << 10 // gzip's and DEFLATE's window of 32 KiB included
	if encoding != "zstd" {
		return tables
	}
	window := largestWindow(encoded)
	return tables + window + 3*min(window, 128<<10) // and what holds one block in its three forms
}

// largestWindow returns the largest window that a zstd body's frames ask for, up to zstdWindow. It goes as far as it can
// tell one from the next, as the decoder does.
func largestWindow(encoded []byte) int64 {
	var largest uint64
	for rest := encoded; ; {
		var h zstd.Header
		var err error
		if rest, err = h.DecodeAndStrip(rest); err != nil {
			break
		}
		if h.Skippable {
			if uint64(h.SkippableSize) > uint64(len(rest)) {
				break
			}
			rest = rest[h.SkippableSize:]
			continue
		}
		window := h.WindowSize
		if h.SingleSegment {
			window = max(h.FrameContentSize, zstd.MinWindowSize)
		}
		largest = max(largest, min(window, zstdWindow))
		if rest = afterBlocks(rest); rest == nil {
			break
		}
		if h.HasCheckSum {
			rest = rest[min(4, len(rest)):]
		}
	}
	return int64(largest)
}

// afterBlocks returns what follows the blocks of a zstd frame, nil if they don't end. RFC 8878, 3.1.1.2.
func afterBlocks(rest []byte) []byte {
	for len(rest) >= 3 {
		header := int(rest[0]) | int(rest[1])<<8 | int(rest[2])<<16
		size := header >> 3
		if header>>1&3 == 1 { // one byte, repeated
			size = 1
		}
		if rest = rest[3:]; size > len(rest) {
			return nil
		}
		rest = rest[size:]
		if header&1 != 0 {
			return rest
		}
	}
	return nil
}

// decoder returns a reader of the decoded body. The second result gives it back.
func decoder(encoding string, wire io.Reader) (io.Reader, func(), error) {
	switch encoding {
	case "gzip":
		r, ok := gzipReaders.Get().(*gzip.Reader)
		if !ok {
			r = new(gzip.Reader)
		}
		if err := r.Reset(wire); err != nil {
			return nil, nil, err
		}
		return r, func() { gzipReaders.Put(r) }, nil
	case "zstd":
		r, ok := zstdReaders.Get().(*zstd.Decoder)
		if !ok {
			var err error
			// One goroutine's worth of work: requests are what runs side by side.
			if r, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdWindow)); err != nil {
				return nil, nil, err
			}
		}
		if err := r.Reset(wire); err != nil {
			return nil, nil, err
		}
		return r, func() {
			_ = r.Reset(nil) // lets go of the wire; always nil for a nil reader
			zstdReaders.Put(r)
		}, nil
	case "deflate":
		return deflateReader(wire)
	}
	return wire, func() {}, nil
}

// deflateReader reads zlib's format, which is what RFC 9110 means by deflate, and bare DEFLATE, which some clients
// send. The first two bytes tell: RFC 1950 makes a zlib header a multiple of 31 with 8 in its low four bits.
func deflateReader(wire io.Reader) (io.Reader, func(), error) {
	buffered := bufio.NewReader(wire) // an io.ByteReader: the decoders read no byte more than they need
	header, err := buffered.Peek(2)
	if err != nil {
		return nil, nil, err
	}
	var r io.Reader
	if header[0]&0x0f == 8 && (int(header[0])<<8|int(header[1]))%31 == 0 {
		r, err = zlib.NewReader(buffered)
	} else {
		r = flate.NewReader(buffered)
	}
	return &wholeReader{r, buffered}, func() {}, err
}

// wholeReader makes anything that follows the end of a compressed stream an error.
type wholeReader struct {
	r    io.Reader
	wire *bufio.Reader
}

func (w *wholeReader) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if err == io.EOF {
		if _, more := w.wire.ReadByte(); more == nil {
			err = errors.New("data follows its end")
		} else if more != io.EOF {
			err = more
		}
	}
	return n, err
}
