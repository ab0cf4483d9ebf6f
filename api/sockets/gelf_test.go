package sockets

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"millrace/api/protocol"
)

func TestMessagesOfGELFAreFoundInBothFramings(t *testing.T) {
	long := `{"a":"` + strings.Repeat("x", 30) + `"}`
	for _, tt := range []struct {
		name, in string
		want     []string
	}{
		{"nothing", "", nil},
		{"NULs", "{\"a\":1}\x00{\"b\":2}\x00", []string{`{"a":1}`, `{"b":2}`}},
		{"the last without a NUL", "{\"a\":1}\x00{\"b\":2}", []string{`{"a":1}`, `{"b":2}`}},
		{"NULs and newlines behind them", "{\"a\":1}\x00\n{\"b\":2}\x00\n", []string{`{"a":1}`, "\n" + `{"b":2}`}},
		{"newlines in an object", "{\n\"a\":\n{}\n}\x00{\n}\x00", []string{"{\n\"a\":\n{}\n}", "{\n}"}},
		{"lines", "{\"a\":1}\n{\"b\":2}\r\n\n{\"c\":3}\n", []string{`{"a":1}`, "{\"b\":2}\r", `{"c":3}`}},
		{"lines, then NULs", "{\"a\":1}\n{\"b\":2}\x00{\"c\":3}\x00", []string{`{"a":1}`, `{"b":2}`, `{"c":3}`}},
		{"brackets and quotes in a string", "{\"a\":\"}\\\"\\\\\"}\n{\"b\":2}\n", []string{`{"a":"}\"\\"}`, `{"b":2}`}},
		{"lines, the first of which is cut", "{\"a\":\"x\n{\"b\":2}\n", []string{`{"a":"x`, `{"b":2}`}},
		{"no object", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", []string{"GET / HTTP/1.1\r", "Host: a\r"}},
		{"too long", long + "\x00{\"b\":2}\x00", []string{long[:20] + "…", `{"b":2}`}},
		{"too long, as the first of lines", long + "\n{\"b\":2}\n", []string{long[:20] + "…", `{"b":2}`}},
		{"too long, later", "{\"a\":1}\n" + long + "\n{\"b\":2}\n", []string{`{"a":1}`, long[:20] + "…", `{"b":2}`}},
		{"too long, and no end", "{\"a\":1}\x00" + long, []string{`{"a":1}`, long[:20] + "…"}},
		{"as long as may be", "{\"a\":1}\x00" + long[:20] + "\x00", []string{`{"a":1}`, long[:20]}},
	} {
		for _, part := range []int{1, 2, 3, 7, 1000} {
			got, err := framed(NewGELFFramer(20), []byte(tt.in), part)
			if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
				t.Errorf("%s, in parts of %d: %v (-want +got)\n%s", tt.name, part, err, diff)
			}
		}
	}
}

// Messages of a few bytes each take a walk over each of them, and not over all that came. (Else this takes a minute.)
func TestVeryShortLinesAreFoundInOneWalk(t *testing.T) {
	f := NewGELFFramer(1 << 20)
	b := append([]byte("{}\n"), bytes.Repeat([]byte("\n"), 4<<20)...)
	for len(b) > 0 {
		_, n, cut, err := f.Next(b, false)
		if n == 0 || cut || err != nil {
			t.Fatalf("%d bytes are left: %d, %v, %v", len(b), n, cut, err)
		}
		b = b[n:]
	}
}

// While packets wait, chunks that came in time may be among them: add alone gives up messages then.
func TestChunksAreNotGivenUpWhilePacketsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewChunks(1<<20, 1<<20, NewMetrics(prometheus.NewRegistry()).Of("gelf", "udp"))
		var isIdle atomic.Bool
		end := c.keepTime(isIdle.Load)
		defer end()
		packets := chunked(1, []byte(`{"short_message":"x"}`), chunkHeader+12)
		add := func(packet []byte, came time.Time) bool {
			t.Helper()
			_, isWhole, err := c.add(nil, protocol.Message{Text: packet, Came: came})
			if err != nil {
				t.Fatal(err)
			}
			return isWhole
		}
		came := time.Now()
		add(packets[0], came)
		time.Sleep(2 * chunkTime)
		if !add(packets[1], came) {
			t.Error("the second chunk, which came in time, does not make the message whole")
		}
		add(packets[0], time.Now())
		isIdle.Store(true)
		time.Sleep(2 * chunkTime)
		synctest.Wait() // the chunks' own clock may strike at the same instant
		if c.held != 0 {
			t.Errorf("%d bytes are held", c.held)
		}
	})
}

// FuzzGELFFraming cuts any bytes into messages: the same ones, however they come, and none longer than the bound.
func FuzzGELFFraming(f *testing.F) {
	f.Add([]byte("{\"a\":1}\x00{\"b\":[\"\\\"\"]}\x00\n"), uint8(3))
	f.Add([]byte("{\"a\":1}\n{\"b\":2}\r\nx\x00{{{{{{{{{{{{{{{{{{{{{{{{{\n"), uint8(1))
	f.Fuzz(func(t *testing.T, text []byte, part uint8) {
		const most = 20
		whole, err := framed(NewGELFFramer(most), text, len(text)+1)
		if err != nil {
			t.Fatal(err)
		}
		parts, _ := framed(NewGELFFramer(most), text, int(part)+1)
		if diff := cmp.Diff(whole, parts); diff != "" {
			t.Errorf("%q, in parts of %d (-whole +parts)\n%s", text, int(part)+1, diff)
		}
		for _, one := range whole {
			if len(strings.TrimSuffix(one, "…")) > most {
				t.Errorf("%q has a message of %d bytes", text, len(one))
			}
		}
	})
}

// gzipped returns text as Docker's log driver compresses it by default.
func gzipped(t testing.TB, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	writeAll(t, w, text)
	return b.Bytes()
}

func zlibbed(t testing.TB, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	writeAll(t, zlib.NewWriter(&b), text)
	return b.Bytes()
}

func writeAll(t testing.TB, w io.WriteCloser, text string) {
	t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// chunked returns the packets of a message in chunks of so many bytes, as Docker's log driver and Log4j send them.
func chunked(id uint64, message []byte, size int) (packets [][]byte) {
	parts := slices.Collect(slices.Chunk(message, size-chunkHeader))
	for i, part := range parts {
		packet := binary.BigEndian.AppendUint64([]byte{0x1e, 0x0f}, id)
		packets = append(packets, append(append(packet, byte(i), byte(len(parts))), part...))
	}
	return packets
}

// docker returns a message as Docker's log driver makes it.
func docker(n int, line string) string {
	return fmt.Sprintf(`{"version":"1.1","host":"node1","short_message":%q,"timestamp":1795860000.%03d,"level":6,"_command":"sh -c run","_container_id":"4f0c","_container_name":"shop",`+
		`"_created":"2026-11-28T10:00:00Z","_image_id":"sha256:1","_image_name":"shop:1","_tag":"4f0c"}`, line, n%1000)
}

// runGELF runs a socket of GELF. mend changes its options; bytes bounds its chunks.
func runGELF(t *testing.T, transport string, bytes int, mend func(o *Options)) *running {
	t.Helper()
	return run(t, transport, func(o *Options) {
		o.Protocol, o.Framer, o.Metrics = protocol.GELF{}, NewGELFFramer, NewMetrics(prometheus.NewRegistry()).Of("gelf", transport)
		if mend != nil {
			mend(o)
		}
		if transport == "udp" {
			o.Chunks = NewChunks(o.MessageBytes, bytes, o.Metrics)
			o.Unpacker = o.Chunks.NewUnpacker
		}
	})
}

func TestGELFIsTakenOverTCP(t *testing.T) {
	r := runGELF(t, "tcp", 0, nil)
	conn := r.dial(t, "tcp")
	write(t, conn, docker(1, "one")+"\x00"+docker(2, "two")+"\x00{\"short_message\":\"cut off")
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	lines := r.dial(t, "tcp")
	write(t, lines, docker(3, "three")+"\nno GELF\n"+docker(4, "four")+"\n")
	all := strings.Join(r.await(t, 5), "\n")
	for _, want := range []string{
		`"message":"one"`, `"message":"two"`, `"message":"three"`, `"message":"four"`, `"message":"{\"short_message\":\"cut off"`, `"container_name":"shop"`, `"level":"info"`,
		`"host":{"name":"node1"}`, `"time":"2026-11-28T10:00:00.001Z"`, `"gelf":{"peer":"127.0.0.1"}`,
	} {
		if !strings.Contains(all, want) {
			t.Errorf("there is no %s in\n%s", want, all)
		}
	}
	if strings.Contains(all, "no GELF") {
		t.Errorf("what is no GELF is stored: %s", all)
	}
}

func TestGELFIsTakenOverUDPInEveryForm(t *testing.T) {
	r := runGELF(t, "udp", 1<<20, nil)
	conn := r.dial(t, "udp")
	send := func(packets ...[]byte) {
		t.Helper()
		for _, p := range packets {
			write(t, conn, string(p))
		}
	}
	random := make([]byte, 20_000)
	for i := range random {
		random[i] = 'a' + byte(rand.N(26)) // so that it is long compressed, too
	}
	long := string(random)
	send([]byte(docker(0, "plain 0")+"\x00"), gzipped(t, docker(1, "gzip 1")), zlibbed(t, docker(2, "zlib 2")))
	send(chunked(3, []byte(docker(3, "chunks 3 "+long)), 1420)...)
	turned := chunked(4, gzipped(t, docker(4, "gzip in chunks 4 "+long)), 1420)
	slices.Reverse(turned)
	send(turned...)
	twice := chunked(5, zlibbed(t, docker(5, "zlib in chunks 5 "+long)), 8192)
	send(twice[0], twice[0])
	send(twice[1:]...)
	send(chunked(6, []byte(docker(6, "one chunk 6")), 1420)...)
	got := r.await(t, 7)
	slices.Sort(got)
	all := strings.Join(got, "\n")
	for _, want := range []string{"plain 0", "gzip 1", "zlib 2", "chunks 3 " + long, "gzip in chunks 4 " + long, "zlib in chunks 5 " + long, "one chunk 6"} {
		if n := strings.Count(all, `"message":"`+want+`"`); n != 1 {
			t.Errorf("%.20s is there %d times", want, n)
		}
	}
	// What is no GELF is counted, and harms nothing.
	first := chunked(7, []byte(docker(7, long)), 8192)[0]
	tooMany, beyond, none, other := slices.Clone(first), slices.Clone(first), slices.Clone(first), slices.Clone(first)
	tooMany[11], beyond[10], none[11], other[11] = 129, 3, 0, 4
	refused := r.metrics.Refused(Framing)
	send(first[:11], tooMany, beyond, none, []byte{0x1f, 0x8b, 8}, gzipped(t, docker(8, "x"))[:30], []byte{0x78, 0x9c, 1, 2}, first, other)
	awaitCount(t, "refused", refused, 8)
	send([]byte("no GELF"), []byte(`{"short_message":"after"}`))
	r.await(t, 8)
	// Of 7 only one chunk has come.
	r.stop()
	awaitCount(t, "dropped", r.metrics.Dropped(Incomplete), 1)
}

// A few bytes that say very much take no more memory than messages may have, and a record is made of what fits.
func TestPacketsThatAreSmallOnlyOnTheirWayAreBounded(t *testing.T) {
	const most = 100_000
	r := runGELF(t, "udp", 1<<20, func(o *Options) { o.MessageBytes, o.Workers = most, 1 })
	r.sink.held.Lock()
	conn := r.dial(t, "udp")
	bomb := gzipped(t, `{"short_message":"`+strings.Repeat("x", 10_000_000)+`"}`)
	const bombs = 50
	for range bombs {
		write(t, conn, string(bomb))
		time.Sleep(time.Millisecond) // they are 10 KB each, and the kernel's buffer is small
	}
	r.sink.held.Unlock()
	for _, record := range r.await(t, bombs) {
		if n := strings.Count(record, "x"); n < most-100 || n > most {
			t.Errorf("%d bytes are left", n)
		}
	}
	awaitCount(t, "cut", r.metrics.Cut(TooLong), bombs)
	if r.sink.largest > packetsBytes+2*most {
		t.Errorf("records of %d bytes are published at once", r.sink.largest)
	}
}

// newChunks returns chunks, and a function that adds a packet of a peer that comes so many milliseconds after the first.
func newChunks(t *testing.T, messageBytes, bytes int) (c *Chunks, m *Metrics, add func(peer byte, ms int, packet []byte) string) {
	m = NewMetrics(prometheus.NewRegistry()).Of("gelf", "udp")
	c = NewChunks(messageBytes, bytes, m)
	began := time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)
	return c, m, func(peer byte, ms int, packet []byte) string {
		t.Helper()
		message, isWhole, err := c.add(nil, protocol.Message{Text: packet, Peer: netip.AddrFrom4([4]byte{10, 0, 0, peer}), Came: began.Add(time.Duration(ms) * time.Millisecond)})
		if err != nil {
			t.Errorf("%v", err)
		}
		if isWhole != (message != nil) {
			t.Errorf("whole: %v, %q", isWhole, message)
		}
		return string(message)
	}
}

func TestChunksOfAMessageMustComeWithinFiveSecondsOfTheFirst(t *testing.T) {
	c, m, add := newChunks(t, 1000, 1<<20)
	p := chunked(1, []byte("abc"), chunkHeader+1)
	add(1, 0, p[0])
	add(1, 4_000, p[1])
	if got := add(1, 5_000, p[2]); got != "abc" {
		t.Errorf("got %q", got)
	}
	add(1, 10_000, p[0])
	add(1, 14_999, p[1])
	if got := add(1, 15_001, p[2]); got != "" {
		t.Errorf("got %q", got)
	}
	awaitCount(t, "incomplete", m.Dropped(Incomplete), 1)
	// The last chunk began a message anew. Another peer's chunks of the same id are another message's.
	for i := range p {
		if got := add(2, 15_002+i, p[i]); (got == "abc") != (i == 2) {
			t.Errorf("chunk %d: got %q", i, got)
		}
	}
	c.keepTime(func() bool { return true })()
	awaitCount(t, "incomplete", m.Dropped(Incomplete), 2)
	if c.held != 0 || len(c.sets) > 0 {
		t.Errorf("%d bytes are held for %d messages", c.held, len(c.sets))
	}
}

func TestChunksAreBoundedAndTheOldestGo(t *testing.T) {
	const bytes = 64 << 10
	c, m, add := newChunks(t, 10_000, bytes)
	part := []byte(strings.Repeat("x", 2000))
	const sets = 100
	for id := range uint64(sets) {
		add(1, int(id), chunked(id, part, 1000+chunkHeader)[0])
		if c.held > bytes {
			t.Fatalf("%d bytes are held, %d may be", c.held, bytes)
		}
	}
	left := len(c.sets)
	if left < 40 || left > 60 {
		t.Errorf("%d messages wait", left)
	}
	awaitCount(t, "full", m.Dropped(Full), float64(sets-left))
	if add(1, sets, chunked(0, part, 1000+chunkHeader)[1]) != "" || add(1, sets, chunked(sets-1, part, 1000+chunkHeader)[1]) == "" {
		t.Error("it is not the oldest that went")
	}
	// A message that is too long is counted once, and holds nothing.
	for _, p := range chunked(1000, []byte(strings.Repeat("x", 50_000)), 1000+chunkHeader) {
		add(2, sets, p)
	}
	awaitCount(t, "too long", m.Dropped(TooLong), 1)
	if cost := c.order.Back().Value.(*chunkSet).cost(); cost != perSet {
		t.Errorf("it holds %d bytes", cost)
	}
}

// FuzzGELFPackets takes any packets. What is held is what the sets hold, within the bound; all messages are within theirs.
func FuzzGELFPackets(f *testing.F) {
	var seed []byte
	for _, p := range append(chunked(1, gzipped(f, docker(1, "x")), 60), []byte(docker(2, "y")), zlibbed(f, docker(3, "z"))) {
		seed = append(append(seed, byte(len(p))), p...)
	}
	f.Add(seed)
	f.Add([]byte("\x0e\x1e\x0f\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02ab\x0d\x1e\x0f\x00\x00\x00\x00\x00\x00\x00\x00\x01\x02c"))
	f.Fuzz(func(t *testing.T, text []byte) {
		const most, bytes = 200, 2000
		c := NewChunks(most, bytes, NewMetrics(prometheus.NewRegistry()).Of("gelf", "udp"))
		u := c.NewUnpacker()
		now := time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)
		for len(text) > 0 {
			n := min(int(text[0]), len(text)-1)
			packet := protocol.Message{Text: text[1 : 1+n], Peer: netip.AddrFrom4([4]byte{10, 0, 0, byte(n % 3)}), Came: now}
			text = text[1+n:]
			now = now.Add(time.Duration(n) * 10 * time.Millisecond)
			before := string(packet.Text)
			u.Unpack(packet, func(m protocol.Message) bool {
				if len(m.Text) > most {
					t.Errorf("a message of %d bytes", len(m.Text))
				}
				return true
			})
			if string(packet.Text) != before {
				t.Errorf("%q became %q", before, packet.Text)
			}
			held := 0
			for e := c.order.Front(); e != nil; e = e.Next() {
				set := e.Value.(*chunkSet)
				held += set.cost()
				missing, parts := 0, 0
				for _, part := range set.parts {
					if parts += len(part); part == nil {
						missing++
					}
				}
				if !set.isLost && (missing != set.missing || missing == 0) || parts != set.text {
					t.Errorf("%d are missing, it says %d; it has %d bytes and says %d", missing, set.missing, parts, set.text)
				}
			}
			if held != c.held || held > bytes || c.order.Len() != len(c.sets) {
				t.Fatalf("%d bytes are held, it says %d, %d may be; %d sets, %d in order", held, c.held, bytes, len(c.sets), c.order.Len())
			}
		}
	})
}
