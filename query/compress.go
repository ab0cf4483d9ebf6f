package query

import (
	"bytes"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const (
	// leastCompressed is the shortest answer that is compressed. A shorter one fits into one packet either way.
	leastCompressed = 1 << 10
	// zstdWindow is how far back zstd looks, which bounds its memory.
	zstdWindow = 1 << 20
)

// compressor compresses answers. At most half of the processors are at it at once: what comes while they are busy is sent as it is.
type compressor struct {
	places chan struct{}
	zips   sync.Pool // of *gzip.Writer
	zstd   func() *zstd.Encoder
}

// newCompressor returns a compressor.
func newCompressor() *compressor {
	n := max(1, runtime.GOMAXPROCS(0)/2)
	return &compressor{
		places: make(chan struct{}, n),
		zstd: sync.OnceValue(func() *zstd.Encoder {
			e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(n), zstd.WithWindowSize(zstdWindow), zstd.WithLowerEncoderMem(true))
			if err != nil {
				panic(err) // the options are right
			}
			return e
		}),
	}
}

// compress returns an answer in an encoding that the client's Accept-Encoding admits, and the encoding's name, which is empty if it is as it
// was. zstd must be asked for by its name.
func (c *compressor) compress(accept string, body []byte) (out []byte, encoding string) {
	switch {
	case len(body) < leastCompressed || accept == "":
		return body, ""
	case accepts(accept, "zstd") && strings.Contains(strings.ToLower(accept), "zstd"):
		encoding = "zstd"
	case accepts(accept, "gzip"):
		encoding = "gzip"
	default:
		return body, ""
	}
	select {
	case c.places <- struct{}{}:
		defer func() { <-c.places }()
	default:
		return body, ""
	}
	if encoding == "zstd" {
		return c.zstd().EncodeAll(body, make([]byte, 0, len(body)/4)), encoding
	}
	var b bytes.Buffer
	zip, _ := c.zips.Get().(*gzip.Writer)
	if zip == nil {
		zip, _ = gzip.NewWriterLevel(&b, gzip.BestSpeed) // the level is one
	} else {
		zip.Reset(&b)
	}
	_, _ = zip.Write(body) // a buffer takes everything
	_ = zip.Close()
	c.zips.Put(zip)
	return b.Bytes(), encoding
}

// write answers with a body, compressed if the client takes that.
func (c *compressor) write(w http.ResponseWriter, r *http.Request, contentType string, body []byte) error {
	body, encoding := c.compress(r.Header.Get("Accept-Encoding"), body)
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Add("Vary", "Accept-Encoding")
	if encoding != "" {
		h.Set("Content-Encoding", encoding)
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body) // the client may be gone: nobody is left to tell
	return nil
}
