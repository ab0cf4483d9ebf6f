package frame

import (
	"fmt"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

const (
	// leastCompressed is the size from which a body is compressed: one or two records alone gain nothing.
	leastCompressed = 1 << 10

	// keptBuffer is the size of the largest buffer that is used again: the buffer of a rare huge frame should not stay for
	// ever.
	keptBuffer = 1 << 20

	// maxDecompressed is the most bytes that a body may decompress to: twice the largest frame that an API makes.
	maxDecompressed = 32 << 20
)

// Compressor compresses the bodies of frames. Only one goroutine at a time may use it. A nil Compressor leaves bodies as
// they are.
type Compressor struct {
	encoding string
	encode   func(dst, src []byte) []byte
	buf      []byte
}

// NewCompressor returns the compressor that the setting names: s2, zstd, or none, for which it is nil.
func NewCompressor(name string) (*Compressor, error) {
	switch name {
	case "none":
		return nil, nil
	case "s2":
		return &Compressor{encoding: name, encode: func(dst, src []byte) []byte { return s2.Encode(dst[:cap(dst)], src) }}, nil
	case "zstd":
		// One goroutine a compressor is enough, because lanes run side by side.
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return &Compressor{encoding: name, encode: func(dst, src []byte) []byte { return e.EncodeAll(src, dst[:0]) }}, nil
	}
	return nil, fmt.Errorf("no compression is named %q", name)
}

// Compress returns the bytes to send for a body, valid until the next call, and their content encoding, "" if they are the
// body itself.
func (c *Compressor) Compress(body []byte) ([]byte, string) {
	if c == nil || len(body) < leastCompressed {
		return body, ""
	}
	if cap(c.buf) > keptBuffer {
		c.buf = nil
	}
	c.buf = c.encode(c.buf, body)
	if len(c.buf) >= len(body) {
		return body, ""
	}
	return c.buf, c.encoding
}

var zstdDecoder = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxDecompressed))
})

// Decompress returns the plain body of a frame that came with a content encoding. If encoding is "", that is body itself.
func Decompress(encoding string, body []byte) ([]byte, error) {
	switch encoding {
	case "":
		return body, nil
	case "s2":
		n, err := s2.DecodedLen(body)
		if err == nil && n > maxDecompressed {
			err = fmt.Errorf("it would be %d bytes, at most %d are taken", n, maxDecompressed)
		}
		if err == nil {
			body, err = s2.Decode(nil, body)
		}
		if err != nil {
			return nil, fmt.Errorf("the body is not s2, as the content encoding says: %w", err)
		}
		return body, nil
	case "zstd":
		d, err := zstdDecoder()
		if err != nil {
			return nil, err
		}
		if body, err = d.DecodeAll(body, nil); err != nil {
			return nil, fmt.Errorf("the body is not zstd, as the content encoding says: %w", err)
		}
		return body, nil
	}
	return nil, fmt.Errorf("the content encoding %.32q is not known", encoding)
}
