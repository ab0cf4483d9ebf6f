package api

import (
	"bytes"
	"errors"
	"io"
	"math/bits"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/valyala/fasthttp"

	"millrace/api/protocol"
)

// refusal is why a request is not taken.
type refusal = protocol.Refusal

// refuse returns a refusal with a status of HTTP.
func refuse(status int, format string, args ...any) *refusal {
	return protocol.Refuse(status, format, args...)
}

// bodyReader reads and decodes request bodies. Their memory is reserved from inflight.
type bodyReader struct {
	maxBytes    int64
	inflight    *inflight
	stepTimeout time.Duration    // for each step of a body
	decoding    chan struct{}    // holds one for each body that is being decoded; nil means no bound
	buffers     [sizes]sync.Pool // of *[]byte, by size
	free        sync.Pool        // of *body
}

// Buffers of bodies are kept for the next requests. Their sizes double from 1 KiB to maxPooled: a small body must not occupy
// a large buffer, and a rare larger buffer should not stay for ever.
const (
	maxPooled = minBuffer << (sizes - 1)
	minBuffer = 1 << 10
	sizes     = 11
)

// sizeIndex returns the index of the smallest size that holds n bytes, for n from 1 to maxPooled.
func sizeIndex(n int64) int { return bits.Len64(uint64(n-1) / minBuffer) }

// get returns an empty buffer that has room for n bytes.
func (r *bodyReader) get(n int64) *[]byte {
	if n > maxPooled {
		b := make([]byte, 0, n)
		return &b
	}
	i := sizeIndex(n)
	if b, ok := r.buffers[i].Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 0, minBuffer<<i)
	return &b
}

// put takes a buffer back. The caller must not use it any more.
func (r *bodyReader) put(b *[]byte) {
	if n := int64(cap(*b)); n <= maxPooled {
		*b = (*b)[:0]
		r.buffers[sizeIndex(n)].Put(b)
	}
}

// body is a decoded request body. close gives back what it holds, and the body itself.
type body struct {
	reader   *bodyReader
	wire     countingReader
	buf      *[]byte // nil once dropped
	reserved int64   // bytes reserved from inflight for the request
	awaited  int64   // the part of reserved that inflight counts as awaited, while more of the body is to come
	beyond   [1]byte // see readOnce
}

func (b *body) bytes() []byte { return *b.buf }

// shrink gives the buffer back, and the reservation except for n bytes, which the request's records still hold.
func (b *body) shrink(n int64) {
	b.drop()
	b.reader.inflight.Release(b.reserved - n)
	b.reserved = n
}

// drop gives the buffer back.
func (b *body) drop() {
	if b.buf != nil {
		b.reader.put(b.buf)
		b.buf = nil
	}
}

// handOver returns b's reservation. It is then the caller's to release.
func (b *body) handOver() reservation {
	r := reservation{b.reader.inflight, b.reserved}
	b.reserved = 0
	return r
}

// close gives back the buffer and the reservation, and then b itself.
func (b *body) close() {
	b.drop()
	b.arrived()
	b.handOver().release()
	b.wire = countingReader{}
	b.reader.free.Put(b)
}

// read returns the decoded body of a request. It reserves memory before it reads. The caller must close the body.
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
	// step is how many bytes of a body the client must send within timeouts.step.
	step = 64 << 10

	// arrivedBytes is how much fasthttp reads of a body with a Content-Length before it calls the handler.
	arrivedBytes = 8 << 10

	// firstBytes is the size of the buffer that other bodies begin with.
	firstBytes = 4 << 10
)

// fill reads the body and decodes it once it is whole: a decoder takes up to 8 MiB, which must not wait for a client. Memory
// is reserved before it is used. wire has length bytes; -1 means as many as come. extend gives the client time for another
// step.
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

// receive reads the body as it comes. Its buffer grows as it fills up, fourfold at first and then twofold, so that nobody
// holds much more memory than was sent.
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
		if ended, bad := b.readOnce(&b.wire, end, most, encoding); ended || bad != nil {
			return bad
		}
	}
}

// readOnce reads from src once into the room that the buffer has before end, and reports whether src has ended. The body may have most bytes;
// one more is too many.
func (b *body) readOnce(src io.Reader, end, most int64, encoding string) (ended bool, _ *refusal) {
	have := int64(len(*b.buf))
	room := (*b.buf)[have:min(end, most, int64(cap(*b.buf)))]
	if have == most {
		room = b.beyond[:]
	}
	n, err := src.Read(room)
	if have == most && n > 0 {
		return false, b.reader.tooLarge()
	}
	*b.buf = (*b.buf)[:have+int64(n)]
	if err != nil && err != io.EOF {
		return false, b.unreadable(encoding, err)
	}
	return err == io.EOF, nil
}

// arrived notes that no more of the body is to come.
func (b *body) arrived() {
	if b.awaited > 0 {
		b.reader.inflight.arrived(b.awaited)
		b.awaited = 0
	}
}

// decode replaces the encoded body by the decoded one. Few bodies are decoded at once, and none of them waits for its client.
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
	for {
		have := int64(len(*b.buf))
		if larger := min(2*have, most); have == int64(cap(*b.buf)) && have < most && !b.grow(larger, false) {
			return b.noRoom(held.bytes + larger)
		}
		if ended, bad := b.readOnce(src, most, most, encoding); ended || bad != nil {
			return bad
		}
	}
}

// noRoom returns the refusal of an encoded body that needs that many bytes at once. It is errBusy, or, if inflight can never
// hold so many, 413.
func (b *body) noRoom(needs int64) *refusal {
	if limit := b.reader.inflight.limit; needs > limit {
		return refuse(fasthttp.StatusRequestEntityTooLarge, "to decode the body takes %d bytes at once, and all requests may hold %d (MAX_INFLIGHT_BYTES)", needs, limit)
	}
	return errBusy
}

// grow moves the body to a buffer with room for n bytes. It reports false, and does nothing, if the bytes can't be reserved.
// awaited tells it that more of the body is to come.
func (b *body) grow(n int64, awaited bool) bool {
	if n <= maxPooled {
		n = minBuffer << sizeIndex(n)
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

// cut removes the first n bytes, and gives back the memory that the rest does not need.
func (b *body) cut(n int) {
	b.arrived() // the rest is here, and what is still to come is counted as the buffer grows
	rest := (*b.buf)[n:]
	if len(rest) == 0 {
		b.shrink(0)
		return
	}
	if smaller := int64(len(rest)); smaller <= maxPooled && minBuffer<<sizeIndex(smaller) < cap(*b.buf) {
		smaller = minBuffer << sizeIndex(smaller)
		buf := b.reader.get(smaller)
		*buf = append(*buf, rest...)
		b.shrink(smaller)
		b.buf = buf
		return
	}
	*b.buf = (*b.buf)[:copy(*b.buf, rest)]
}

// unreadable returns the refusal of a body whose reading or decoding failed with err: 408 if it did not come in time, else
// 400.
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

// countingReader counts the bytes read from the wire, and keeps the error that ended it. If a connection ends before
// Content-Length bytes have come, fasthttp reports an ordinary end; countingReader makes that an error.
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
