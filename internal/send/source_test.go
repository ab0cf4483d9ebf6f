package send

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

// cutAll cuts a stream to its end and checks that the blocks follow one another.
func cutAll(t *testing.T, r io.Reader, size int) (blocks []block, err error) {
	t.Helper()
	c := cutter{r: r, read: func() int64 { return 0 }}
	for {
		b := block{}
		err := c.next(&b, size)
		if errors.Is(err, errIdle) {
			continue
		}
		if err != nil {
			return blocks, err
		}
		if n := len(blocks); n > 0 && blocks[n-1].end != b.start || n == 0 && b.start != 0 {
			t.Errorf("block %d begins at %d", n, b.start)
		}
		if !b.tooLong && b.end-b.start != int64(len(b.raw)) {
			t.Errorf("a block of %d bytes goes from %d to %d", len(b.raw), b.start, b.end)
		}
		blocks = append(blocks, b)
	}
}

// idles says errIdle now and then.
type idles struct{ r io.Reader }

func (i idles) Read(p []byte) (int, error) {
	if rand.IntN(3) == 0 {
		return 0, errIdle
	}
	return i.r.Read(p[:1+rand.IntN(len(p))])
}

func TestBlocksAreWholeLinesOfTheStream(t *testing.T) {
	for range 300 {
		var text bytes.Buffer
		for range rand.IntN(60) {
			text.WriteString(strings.Repeat("x", rand.IntN(90)) + "\n")
		}
		if rand.IntN(2) == 0 {
			text.WriteString("the end")
		}
		want, lines := text.Bytes(), int64(0)
		blocks, err := cutAll(t, idles{bytes.NewReader(want)}, 128)
		if err != io.EOF {
			t.Fatal(err)
		}
		var got []byte
		for i, b := range blocks {
			if b.line != lines || len(b.raw) > 128 || i < len(blocks)-1 && !bytes.HasSuffix(b.raw, newline) {
				t.Errorf("block %q has line %d, want %d", b.raw, b.line, lines)
			}
			got, lines = append(got, b.raw...), lines+int64(bytes.Count(b.raw, newline))
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
}

func TestLinesMayBeLongButNotTooLong(t *testing.T) {
	long := strings.Repeat("x", 3<<20)
	tooLong := strings.Repeat("y", maxLine+blockBytes*3)
	blocks, err := cutAll(t, strings.NewReader("a\n"+long+"\nb\n"+tooLong+"\nc\n"), blockBytes)
	if err != io.EOF {
		t.Fatal(err)
	}
	seen := map[string]int64{}
	for _, b := range blocks {
		if b.tooLong {
			seen["too long"] = b.line
			if b.end-b.start != int64(len(tooLong)+1) {
				t.Errorf("it has %d bytes", b.end-b.start)
			}
			continue
		}
		for i, line := range strings.Split(strings.TrimSuffix(string(b.raw), "\n"), "\n") {
			seen[line] = b.line + int64(i)
		}
	}
	for i, want := range []string{"a", long, "b", "too long", "c"} {
		if at, ok := seen[want]; !ok || at != int64(i) {
			t.Errorf("%.10s is at line %d (%v), want %d", want, at, ok, i)
		}
	}
}

func TestWhatWasReadBeforeAnErrorIsCut(t *testing.T) {
	broken := errors.New("broken")
	blocks, err := cutAll(t, io.MultiReader(strings.NewReader("a\nb\nhalf"), iotest.ErrReader(broken)), 100)
	if err != broken || len(blocks) != 1 || string(blocks[0].raw) != "a\nb\n" {
		t.Errorf("got %v, %v", blocks, err)
	}
}

func TestFilesThatCannotBeReadSayHow(t *testing.T) {
	dir := t.TempDir()
	for content, want := range map[string]string{"\xfd7zXZ\x00": "xz -dc", "PK\x03\x04": "unzip", "\xff\xfea\x00": "iconv", "\x1f\x8bxx": "gzip"} {
		name := filepath.Join(dir, "file")
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := openFile(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", content, err, want)
		}
	}
	if _, err := openFile(dir); err == nil || !strings.Contains(err.Error(), "no regular file") {
		t.Errorf("a folder: got %v", err)
	}
}

func TestAPositionIsThatOfOneFile(t *testing.T) {
	folder, id := t.TempDir(), fileID{1, 2}
	open := func(head string, size int64) (*position, *state) {
		t.Helper()
		p, before, err := openPosition(folder, "/app.log", id, []byte(head), size)
		if err != nil {
			t.Fatal(err)
		}
		return p, before
	}
	p, _ := open("", 0)
	b := newBatch()
	b.raw, b.end = []byte("{\"a\":1}\n"), 8
	b.build(formats["auto"], p.state.Identity, sentAt)
	if err := p.begin(b, []byte("{\"a\":1}\n")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := openPosition(folder, "/app.log", id, nil, 0); err == nil || !strings.Contains(err.Error(), "another") {
		t.Errorf("it was had twice: %v", err)
	}
	p.close()

	p, before := open("{\"a\":1}\n{\"a\":2}\n", 16) // it has grown
	if held := p.held(); before != nil || p.state.Next != 8 || p.state.Line != 1 || len(held) != 1 || held[0] != b.pending() {
		t.Errorf("got %+v", p.state)
	}
	p.settle(b.key)
	if err := p.save(); err != nil || len(p.held()) != 0 {
		t.Errorf("got %v, %v", p.held(), err)
	}
	p.close()
	for name, other := range map[string]struct {
		head string
		size int64
	}{"truncated": {"{\"a\":1}\n", 7}, "another": {"{\"b\":1}\n", 100}, "empty": {"", 0}} {
		p, before := open(other.head, other.size)
		if before == nil || before.Next != 8 || p.state.Next != 0 {
			t.Errorf("%s: got %+v after %+v", name, p.state, before)
		}
		p.close()
	}
	if err := os.WriteFile(p.name, []byte(`{"next":5,"pending":[{"start":4,"end":9}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := openPosition(folder, "/app.log", id, nil, 10); err == nil || !strings.Contains(err.Error(), p.name) {
		t.Errorf("a position that can't be: got %v", err)
	}
}
