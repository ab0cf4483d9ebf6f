package frame

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

func TestWhatWasCompressedComesBack(t *testing.T) {
	text := []byte(strings.Repeat(`{"level":"info","message":"request served"}`+"\n", 1500))
	noise := make([]byte, 4<<10)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	for _, name := range []string{"none", "s2", "zstd"} {
		c, err := NewCompressor(name)
		if err != nil {
			t.Fatal(err)
		}
		for what, tt := range map[string]struct {
			body  []byte
			plain bool // it goes as it is
		}{
			"text":  {text, name == "none"},
			"short": {text[:leastCompressed-1], true},
			"noise": {noise, true},
		} {
			sent, encoding := c.Compress(tt.body)
			if got := encoding == ""; got != tt.plain {
				t.Errorf("%s of %s: encoding %q, want it plain: %v", name, what, encoding, tt.plain)
			}
			got, err := Decompress(encoding, bytes.Clone(sent))
			if err != nil || !bytes.Equal(got, tt.body) {
				t.Errorf("%s of %s: %d bytes for %d, error %v", name, what, len(got), len(tt.body), err)
			}
		}
	}
}

func TestWhatIsNotAsItsEncodingSaysIsRefused(t *testing.T) {
	huge := make([]byte, maxDecompressed+1)
	e, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for what, tt := range map[string]struct {
		encoding string
		body     []byte
		want     string
	}{
		"unknown":        {"gzip", []byte("x"), `the content encoding "gzip" is not known`},
		"not s2":         {"s2", []byte("{}\n"), "not s2"},
		"not zstd":       {"zstd", []byte("{}\n"), "not zstd"},
		"s2 too large":   {"s2", s2.Encode(nil, huge), "at most"},
		"zstd too large": {"zstd", e.EncodeAll(huge, nil), "exceeds"},
	} {
		if _, err := Decompress(tt.encoding, tt.body); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got error %v, want one with %q", what, err, tt.want)
		}
	}
	if _, err := NewCompressor("lzma"); err == nil {
		t.Error("NewCompressor takes lzma")
	}
}

func FuzzDecompress(f *testing.F) {
	text := []byte(strings.Repeat(`{"level":"info"}`+"\n", 100))
	f.Add(true, s2.Encode(nil, text))
	f.Add(false, []byte{0x28, 0xb5, 0x2f, 0xfd})
	f.Fuzz(func(t *testing.T, isS2 bool, body []byte) {
		encoding := "zstd"
		if isS2 {
			encoding = "s2"
		}
		if got, err := Decompress(encoding, body); err == nil && len(got) > maxDecompressed {
			t.Errorf("%d bytes", len(got))
		}
	})
}
