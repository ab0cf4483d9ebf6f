package send

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// errIdle says that a stream has nothing more for now.
var errIdle = errors.New("nothing more for now")

// decompressed returns the content of r, which may be compressed, as its first bytes tell, and whether it is. The decoder's window is bounded, so that
// a file can't take all memory. close must be called at the end.
func decompressed(r *bufio.Reader) (content io.Reader, compressed bool, closer func(), err error) {
	// A short first line of somebody who types must not wait for more.
	first, err := r.Peek(1)
	if err == nil && bytes.IndexByte([]byte("\x1f\x28B\xfdP\xff\xfe"), first[0]) >= 0 {
		first, err = r.Peek(4)
	}
	if err != nil && err != io.EOF {
		return nil, false, nil, err
	}
	switch {
	case bytes.HasPrefix(first, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, true, nil, fmt.Errorf("gzip: %w", err)
		}
		return z, true, func() { _ = z.Close() }, nil // of a reader: nothing can fail
	case bytes.Equal(first, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(64<<20), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, true, nil, fmt.Errorf("zstd: %w", err)
		}
		return z, true, z.Close, nil
	case bytes.HasPrefix(first, []byte("BZh")):
		return bzip2.NewReader(r), true, func() {}, nil
	case bytes.Equal(first, []byte{0xfd, '7', 'z', 'X'}):
		return nil, true, nil, errors.New("it is compressed by xz: send it by xz -dc FILE | millrace send")
	case bytes.HasPrefix(first, []byte("PK\x03\x04")):
		return nil, true, nil, errors.New("it is a zip archive: send it by unzip -p FILE | millrace send")
	case bytes.HasPrefix(first, []byte{0xff, 0xfe}), bytes.HasPrefix(first, []byte{0xfe, 0xff}):
		return nil, false, nil, errors.New("it is UTF-16: send it by iconv -f UTF-16 -t UTF-8 FILE | millrace send")
	}
	return r, false, func() {}, nil
}

// counter counts what is read through it.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// opened is a data file that is open at its beginning.
type opened struct {
	file       *os.File
	id         fileID
	size       int64 // of the file; bytes
	head       []byte
	content    io.Reader
	count      *counter // how much of the file was read
	compressed bool
	closer     func()
}

// openFile opens a data file.
func openFile(path string) (o *opened, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close() // it was only read
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file: send what comes of it by way of standard input", path)
	}
	o = &opened{file: f, id: idOf(info), size: info.Size()}
	// The head is read by a decoder of its own.
	content, _, closer, err := decompressed(bufio.NewReader(f))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	o.head, err = readHead(content)
	closer()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	o.count = &counter{r: f}
	if o.content, o.compressed, o.closer, err = decompressed(bufio.NewReaderSize(o.count, 64<<10)); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if !o.compressed {
		// What was peeked at is read again.
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
		o.count.n = 0
		o.content = o.count
	}
	return o, nil
}

// seek goes to an offset of the content, which is not before what was read.
func (o *opened) seek(from, to int64) error {
	if from == to {
		return nil
	}
	if !o.compressed {
		_, err := o.file.Seek(to, io.SeekStart)
		o.count.n += to - from
		return err
	}
	n, err := io.CopyN(io.Discard, o.content, to-from)
	if err != nil {
		return fmt.Errorf("the content ends at byte %d, before byte %d, up to which it was sent: %w", from+n, to, err)
	}
	return nil
}

func (o *opened) close() {
	o.closer()
	_ = o.file.Close() // it was only read
}

// cutter cuts a stream into blocks of whole lines.
type cutter struct {
	r    io.Reader
	read func() int64 // how much of the file was read

	buf     []byte // what was read and is in no block yet
	at      int64  // offset of buf in the stream
	line    int64  // lines before at
	counted int64  // what read said before
	ended   error  // of r; io.EOF is its end
}

// next fills b with the next block, which has up to size bytes, or one line. It returns errIdle if the stream has no whole line for now, and io.EOF at its end. The line at the end of a
// stream needs no end of its own.
func (c *cutter) next(b *block, size int) error {
	for {
		cut := bytes.LastIndexByte(c.buf[:min(len(c.buf), size)], '\n') + 1
		if cut == 0 && len(c.buf) > size {
			cut = bytes.IndexByte(c.buf, '\n') + 1
		}
		switch {
		case cut > 0 && (len(c.buf) >= size || c.ended != nil), cut > size:
			c.take(b, cut)
			return nil
		case cut == 0 && len(c.buf) > maxLine:
			return c.skipLine(b)
		case c.ended != nil && !errors.Is(c.ended, errIdle):
			if len(c.buf) > 0 && c.ended == io.EOF {
				c.take(b, len(c.buf))
				return nil
			}
			return c.ended
		case c.ended != nil: // idle
			c.ended = nil
			return errIdle
		}
		c.fill(size)
	}
}

// take moves the first n bytes of buf into b.
func (c *cutter) take(b *block, n int) {
	b.raw = append(b.raw[:0], c.buf[:n]...)
	c.finish(b, int64(n), int64(bytes.Count(b.raw, newline)))
	b.tooLong = false
	c.buf = append(c.buf[:0], c.buf[n:]...)
	if errors.Is(c.ended, errIdle) {
		c.ended = nil
	}
}

// finish sets the place of a block of n bytes.
func (c *cutter) finish(b *block, n, lines int64) {
	read := c.read()
	b.start, b.end, b.line, b.consumed = c.at, c.at+n, c.line, read-c.counted
	c.counted = read
	c.at, c.line = c.at+n, c.line+lines
}

// fill reads more.
func (c *cutter) fill(size int) {
	if cap(c.buf)-len(c.buf) < size/4 {
		c.buf = append(make([]byte, 0, 2*max(cap(c.buf), size)), c.buf...)
	}
	n, err := c.r.Read(c.buf[len(c.buf):min(cap(c.buf), len(c.buf)+size)])
	c.buf, c.ended = c.buf[:len(c.buf)+n], err
}

// skipLine reads up to the end of a line that is too long. b gets its first bytes.
func (c *cutter) skipLine(b *block) error {
	const kept = 1 << 10
	b.raw = append(b.raw[:0], c.buf[:kept]...)
	n := int64(0)
	for {
		if end := bytes.IndexByte(c.buf, '\n'); end >= 0 {
			n += int64(end) + 1
			c.buf = append(c.buf[:0], c.buf[end+1:]...)
			break
		}
		n += int64(len(c.buf))
		c.buf = c.buf[:0]
		if c.ended != nil && !errors.Is(c.ended, errIdle) {
			if c.ended != io.EOF {
				return c.ended
			}
			break
		}
		c.fill(blockBytes)
	}
	c.finish(b, n, 1)
	b.tooLong = true
	c.buf = append(make([]byte, 0, 2*blockBytes), c.buf...) // the large one is given back
	return nil
}

// idleReader reads r in a goroutine of its own, and says errIdle if nothing has come for a while.
type idleReader struct {
	chunks chan []byte
	err    error // of r; set before chunks is closed
	rest   []byte
	wait   time.Duration
	ctx    context.Context // once it is done, the stream has ended
}

// newIdleReader returns a reader of the content of r, which may be compressed. Its goroutine ends with r, or with the process.
func newIdleReader(ctx context.Context, r io.Reader, wait time.Duration) *idleReader {
	i := &idleReader{chunks: make(chan []byte, 4), wait: wait, ctx: ctx}
	go func() {
		defer close(i.chunks)
		content, _, closer, err := decompressed(bufio.NewReaderSize(r, 64<<10))
		if err != nil {
			i.err = err
			return
		}
		defer closer()
		for {
			chunk := make([]byte, 64<<10)
			n, err := content.Read(chunk)
			if n > 0 {
				select {
				case i.chunks <- chunk[:n]:
				case <-ctx.Done():
					return
				}
			}
			if err != nil {
				i.err = err
				return
			}
		}
	}()
	return i
}

// Read waits for something to come. It says errIdle once nothing has come for the reader's time, and io.EOF once ctx is done.
func (i *idleReader) Read(p []byte) (int, error) {
	if len(i.rest) == 0 {
		timer := time.NewTimer(i.wait)
		defer timer.Stop()
		select {
		case chunk, ok := <-i.chunks:
			if !ok {
				if i.err == nil {
					return 0, io.EOF
				}
				return 0, i.err
			}
			i.rest = chunk
		case <-timer.C:
			return 0, errIdle
		case <-i.ctx.Done():
			return 0, io.EOF
		}
	}
	n := copy(p, i.rest)
	i.rest = i.rest[n:]
	return n, nil
}
