package api

import (
	"bufio"
	"bytes"
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

// inflight bounds the memory of requests under way: a body's buffer while it is read, then its records in frames
// until they are confirmed.
type inflight struct {
	limit int64
	used  atomic.Int64
}

// reserve takes n bytes, or says that they are not to be had.
func (b *inflight) reserve(n int64) bool {
	if b.used.Add(n) > b.limit {
		b.used.Add(-n)
		return false
	}
	return true
}

func (b *inflight) release(n int64) { b.used.Add(-n) }

// bodyReader reads and decodes request bodies into memory that it accounts for.
type bodyReader struct {
	maxBytes    int64
	inflight    *inflight
	stepTimeout time.Duration    // for each step of a body
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
}

func (b *body) bytes() []byte { return *b.buf }

// shrink gives the buffer back, for n bytes of records are all that is left of the request.
func (b *body) shrink(n int64) {
	b.drop()
	b.reader.inflight.release(b.reserved - n)
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

func (r reservation) release() { r.of.release(r.bytes) }

// hand returns the bytes that b holds, which then are no longer b's.
func (b *body) hand() reservation {
	r := reservation{b.reader.inflight, b.reserved}
	b.reserved = 0
	return r
}

func (b *body) close() {
	b.drop()
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
	b, ok := r.free.Get().(*body)
	if !ok {
		b = &body{reader: r}
	}
	extend := func() error { return ctx.Conn().SetReadDeadline(time.Now().Add(r.stepTimeout)) }
	if err := b.fill(wire, encoding, length, extend); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

func (r *bodyReader) tooLarge() *refusal {
	return refuse(fasthttp.StatusRequestEntityTooLarge, "the body is larger than %d bytes (MAX_BODY_BYTES, decoded)", r.maxBytes)
}

// step is how much of a body the client has timeouts.step for, and the largest buffer that a body begins with; it doubles
// as it fills up, so that nobody holds much more than what was sent.
const step = 64 << 10

// fill reads the body into memory that is reserved before. wire has length bytes, or -1 for as many as come. extend gives
// the client time for another step.
func (b *body) fill(wire io.Reader, encoding string, length int64, extend func() error) *refusal {
	b.wire = countingReader{r: wire, length: length}
	src, closeDecoder, err := decoder(encoding, &b.wire)
	if err != nil {
		return b.unreadable(encoding, err)
	}
	defer closeDecoder()
	plain := encoding == "" && length >= 0
	most := b.reader.maxBytes
	if plain {
		most = length
	}
	if !b.grow(max(1, min(step, most))) {
		return errBusy
	}
	var beyond [1]byte
	for end := int64(step); ; {
		have := int64(len(*b.buf))
		if plain && have == length {
			return nil // only a plain body's end is known beforehand
		}
		if have == end {
			end += step
			if err := extend(); err != nil {
				return b.unreadable(encoding, err)
			}
		}
		if have == int64(cap(*b.buf)) && have < most && !b.grow(min(2*have, most)) {
			return errBusy
		}
		room := (*b.buf)[have:min(end, most, int64(cap(*b.buf)))]
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

// grow moves the body to a buffer for n bytes, or says that they are not to be had.
func (b *body) grow(n int64) bool {
	if n <= maxPooled {
		n = minBuffer << size(n)
	}
	if !b.reader.inflight.reserve(n - b.reserved) {
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
	return refuse(fasthttp.StatusBadRequest, "the body is not %s, as Content-Encoding says: %v after %d bytes", encoding, err, wire.n)
}

// countingReader remembers how far the wire was read and how that ended. To fasthttp a connection that ends before
// Content-Length bytes have come is an ordinary end; here it is an error.
type countingReader struct {
	r      io.Reader
	length int64 // -1 when not known
	n      int64
	err    error
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
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
