package api

import (
	"bufio"
	"bytes"
	"compress/flate"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/valyala/fasthttp"
)

// snappyEncoding is the encoding whose bodies are one block of snappy, as Loki's and Prometheus' clients send them.
const snappyEncoding = "snappy"

// contentEncoding returns the request's one encoding, "" for none. implied is what a request without Content-Encoding has.
func contentEncoding(ctx *fasthttp.RequestCtx, implied string) (string, *refusal) {
	lines := ctx.Request.Header.PeekAll(fasthttp.HeaderContentEncoding)
	if len(lines) == 0 {
		return implied, nil
	}
	name := strings.ToLower(strings.TrimSpace(string(bytes.Join(lines, []byte(", ")))))
	switch name {
	case "", "identity":
		return "", nil
	case "x-gzip":
		return "gzip", nil
	case "gzip", "zstd", "deflate", snappyEncoding:
		return name, nil
	}
	return "", refuse(fasthttp.StatusUnsupportedMediaType, "Content-Encoding: got %q, takes gzip, zstd, deflate, snappy or identity", name)
}

var gzipReaders, zstdReaders sync.Pool

// zstdWindow is the largest window a zstd body may ask for: 8 MiB, what RFC 8878 wants every decoder to take.
const zstdWindow = 8 << 20

// encodedSlack returns by how much the encoded form of n bytes may exceed n. The formats store what they can't compress in
// blocks, each with a header of a few bytes.
func encodedSlack(n int64) int64 { return n/512 + 1<<10 }

// decoderBytes returns about how much memory the decoder of an encoded body takes. For zstd it depends on the largest
// window that one of the body's frames asks for.
func decoderBytes(encoding string, encoded []byte) int64 {
	const tables = 64 << 10 // this includes the window of 32 KiB of gzip and DEFLATE
	if encoding == snappyEncoding {
		return 0
	}
	if encoding != "zstd" {
		return tables
	}
	window := largestWindow(encoded)
	return tables + window + 3*min(window, 128<<10) // zstd holds a block in three forms
}

// snappyLength returns the length that a block of snappy says it has decoded. It refuses one that says more than it can hold, so
// that a few bytes can't have much memory taken for them.
func snappyLength(encoded []byte) (int64, error) {
	// Three bytes copy at most 64.
	const mostBytes, mostPer = 64, 3
	n, err := s2.DecodedLen(encoded)
	switch {
	case bytes.HasPrefix(encoded, []byte("\xff\x06\x00\x00sNaPpY")):
		return 0, errors.New("it is in the framing format")
	case err != nil:
		return 0, err
	case int64(n) > int64(len(encoded))*mostBytes/mostPer:
		return 0, fmt.Errorf("it has %d bytes and says that they hold %d", len(encoded), n)
	}
	return int64(n), nil
}

// largestWindow returns the largest window that a zstd body's frames ask for, up to zstdWindow. It stops where it can't
// find the next frame, as the decoder does.
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

// afterBlocks returns what follows the blocks of a zstd frame, nil if the last block is not there. See RFC 8878, 3.1.1.2.
func afterBlocks(rest []byte) []byte {
	for len(rest) >= 3 {
		header := int(rest[0]) | int(rest[1])<<8 | int(rest[2])<<16
		size := header >> 3
		if header>>1&3 == 1 { // the block is one byte, repeated
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

// decoder returns a reader of the decoded body, and a function that gives the decoder back to its pool.
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
			// One goroutine a decoder is enough, because requests run side by side.
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

// deflateReader returns a reader for zlib's format, which RFC 9110 means by deflate, or for bare DEFLATE, which some
// clients send. The first two bytes tell them apart: RFC 1950 makes a zlib header a multiple of 31 with 8 in its low four
// bits.
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

// wholeReader returns an error if anything follows the end of a compressed stream.
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

// zstdNotTaken returns the refusal of a zstd body that needs a dictionary or too large a window. begin is the body's first
// bytes, err the decoder's error. It returns nil for other bodies and other errors.
func zstdNotTaken(begin []byte, err error) *refusal {
	var header zstd.Header
	if header.Decode(begin) != nil {
		return nil
	}
	window := header.WindowSize
	if header.SingleSegment {
		window = header.FrameContentSize // the window is the whole frame
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
