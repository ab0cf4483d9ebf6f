package sockets

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"millrace/api/protocol"
	"millrace/internal/record"
	"millrace/internal/scan"
	"millrace/internal/service"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// keeper is a Sink that keeps what it is given. While held is locked for writing, nothing is confirmed.
type keeper struct {
	mu      sync.Mutex
	lines   []string
	largest int // the most bytes of records that came at once
	held    sync.RWMutex
}

func (k *keeper) NewRecords() *record.List {
	return &record.List{Limits: scan.Limits{RecordBytes: 1 << 20, PieceBytes: 64 << 10, TotalBytes: 1 << 30}}
}

func (k *keeper) FreeRecords(*record.List) {}

func (k *keeper) Publish(ctx context.Context, records *record.List, _ int) error {
	for !k.held.TryRLock() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	defer k.held.RUnlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(records.NDJSON) == 0 {
		return nil // all were refused
	}
	k.largest = max(k.largest, len(records.NDJSON))
	k.lines = append(k.lines, strings.Split(strings.TrimSuffix(string(records.NDJSON), "\n"), "\n")...)
	return nil
}

func (k *keeper) records() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]string(nil), k.lines...)
}

// running is a socket that takes messages.
type running struct {
	addr     string
	sink     *keeper
	metrics  *Metrics
	stop     func() // stops it in order, and waits
	endFlush context.CancelFunc
}

// run runs a socket of syslog until the test ends. mend changes its options.
func run(t *testing.T, transport string, mend func(o *Options)) *running {
	t.Helper()
	sink := new(keeper)
	o := Options{
		Protocol:     protocol.Syslog{},
		Sink:         sink,
		Budget:       NewBudget(8 << 20),
		Metrics:      NewMetrics(prometheus.NewRegistry()).Of("syslog", transport),
		Log:          slog.New(slog.NewTextHandler(t.Output(), nil)),
		MessageBytes: 1 << 20,
		Times:        Times{Handshake: time.Second, Message: time.Minute, Quiet: 50 * time.Millisecond, Stop: time.Second},
		Framer:       NewSyslogFramer,
		Places:       service.NewConnections(100),
		QueueBytes:   1 << 20,
		Unpacker:     NewSyslogUnpacker,
		Workers:      2,
	}
	if mend != nil {
		mend(&o)
	}
	r := &running{sink: sink, metrics: o.Metrics}
	ctx, stop := context.WithCancel(context.Background())
	flush, endFlush := context.WithCancel(context.Background())
	r.endFlush = endFlush
	ended := make(chan error, 1)
	if transport == "udp" {
		conn, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		r.addr = conn.LocalAddr().String()
		go func() { ended <- NewDatagrams(conn.(*net.UDPConn), o).Run(ctx, flush) }()
	} else {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		r.addr = ln.Addr().String()
		go func() { ended <- NewStream(ln, o).Run(ctx, flush) }()
	}
	r.stop = sync.OnceFunc(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		endFlush()
	})
	t.Cleanup(r.stop)
	return r
}

// dial opens a connection, which is closed when the test ends.
func (r *running) dial(t *testing.T, network string) net.Conn {
	t.Helper()
	conn, err := net.Dial(network, r.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // most are closed already
	return conn
}

func write(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
}

// await waits until so many records are there.
func (r *running) await(t *testing.T, n int) []string {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if got := r.sink.records(); len(got) >= n {
			if len(got) > n {
				t.Errorf("%d records, want %d", len(got), n)
			}
			return got
		}
		if time.Now().After(end) {
			t.Fatalf("%d records, want %d", len(r.sink.records()), n)
		}
	}
}

// valueOf returns the value of a counter or a gauge.
func valueOf(t *testing.T, c prometheus.Collector) float64 {
	t.Helper()
	alone := prometheus.NewRegistry()
	alone.MustRegister(c)
	families, err := alone.Gather()
	if err != nil {
		t.Fatal(err)
	}
	m := families[0].GetMetric()[0]
	return m.GetCounter().GetValue() + m.GetGauge().GetValue()
}

// awaitCount waits until a counter or a gauge has a value.
func awaitCount(t *testing.T, what string, c prometheus.Collector, want float64) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); valueOf(t, c) != want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: %v, want %v", what, valueOf(t, c), want)
		}
	}
}

func TestMessagesAreTakenInOrderAndInEverySize(t *testing.T) {
	r := run(t, "tcp", nil)
	conn := r.dial(t, "tcp")
	var want []string
	for i := range 200 {
		text := fmt.Sprintf("%d %s", i, strings.Repeat("x", i*i*25))
		want = append(want, text)
		write(t, conn, fmt.Sprintf("<13>1 - - - - - - %s\n", text))
	}
	for i, record := range r.await(t, len(want)) {
		if !strings.HasPrefix(record, `{"message":"`+want[i]+`"`) {
			t.Fatalf("record %d is %.100s", i, record)
		}
	}
	awaitCount(t, "messages", r.metrics.Messages, float64(len(want)))
	awaitCount(t, "connections", r.metrics.connections, 1)
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	awaitCount(t, "connections", r.metrics.connections, 0)
}

func TestWhatWasSentBeforeAConnectionEndsIsTaken(t *testing.T) {
	r := run(t, "tcp", nil)
	conn := r.dial(t, "tcp")
	write(t, conn, "<13>one\n<13>without a newline")
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if got := r.await(t, 2); !strings.Contains(got[1], "without a newline") {
		t.Errorf("got %q", got)
	}
}

func TestAtTheStopWhatWasSentIsTaken(t *testing.T) {
	r := run(t, "tcp", nil)
	r.sink.held.Lock()
	var conns []net.Conn
	for range 10 {
		conn := r.dial(t, "tcp")
		write(t, conn, "<13>before\n")
		conns = append(conns, conn)
	}
	awaitCount(t, "messages", r.metrics.Messages, 10)
	for _, conn := range conns {
		write(t, conn, "<13>while it waits\n<13>the beginning of a line")
	}
	stopped := make(chan struct{})
	go func() {
		r.stop()
		close(stopped)
	}()
	time.Sleep(10 * time.Millisecond) // most often the stop has begun then
	r.sink.held.Unlock()
	<-stopped
	r.await(t, 30)
	// The sender is told that nothing more is taken.
	if _, err := conns[0].Read(make([]byte, 1)); err == nil {
		t.Error("the connection is open")
	}
}

func TestWhatIsNotConfirmedInTimeAtTheStopIsCounted(t *testing.T) {
	r := run(t, "tcp", nil)
	r.sink.held.Lock()
	defer r.sink.held.Unlock()
	write(t, r.dial(t, "tcp"), "<13>a\n<13>b\n")
	awaitCount(t, "messages", r.metrics.Messages, 2)
	r.endFlush()
	r.stop()
	awaitCount(t, "dropped", r.metrics.Dropped(Unconfirmed), 2)
}

// A sender is held back while its messages are not confirmed, and others are not.
func TestASenderIsHeldBackWhileNothingIsConfirmed(t *testing.T) {
	r := run(t, "tcp", nil)
	r.sink.held.Lock()
	conn := r.dial(t, "tcp")
	line := "<13>" + strings.Repeat("x", 1000) + "\n"
	sent := 0
	for {
		if err := conn.SetWriteDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, err := io.WriteString(conn, line)
		sent += n
		if err != nil {
			if timeout, ok := err.(net.Error); !ok || !timeout.Timeout() {
				t.Fatal(err)
			}
			break
		}
		if sent > 64<<20 {
			t.Fatal("the sender is not held back")
		}
	}
	if n := valueOf(t, r.metrics.Messages); n > 1000 {
		t.Errorf("%v messages were read", n)
	}
	r.sink.held.Unlock()
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	r.await(t, (sent+len(line)-1)/len(line))
}

func TestWhoIsNotAdmittedIsNotRead(t *testing.T) {
	r := run(t, "tcp", func(o *Options) { o.Admission.Networks = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} })
	conn := r.dial(t, "tcp")
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is open")
	}
	awaitCount(t, "refused", r.metrics.Refused(Address), 1)
	for _, tt := range []struct {
		admission Admission
		peer      string
		want      bool
	}{
		{Admission{}, "127.0.0.1", true},
		{Admission{}, "::1", true},
		{Admission{}, "192.0.2.1", false},
		{Admission{Others: true}, "192.0.2.1", true},
		{Admission{Others: true, Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, "192.0.2.1", false},
		{Admission{Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")}}, "10.1.2.3", true},
		{Admission{Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")}}, "2001:db8::1", true},
		{Admission{Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, "::ffff:10.1.2.3", true},
	} {
		if got := tt.admission.Admits(plain(netip.MustParseAddr(tt.peer))); got != tt.want {
			t.Errorf("%+v admits %s: %v", tt.admission, tt.peer, got)
		}
	}
}

func TestConnectionsAreBoundedAndThoseThatSendStay(t *testing.T) {
	const most = 4
	r := run(t, "tcp", func(o *Options) { o.Places = service.NewConnections(most) })
	var senders []net.Conn
	for range most {
		conn := r.dial(t, "tcp")
		write(t, conn, "<13>a\n")
		senders = append(senders, conn)
	}
	r.await(t, most)
	for range 3 {
		if _, err := r.dial(t, "tcp").Read(make([]byte, 1)); err == nil {
			t.Error("a connection too many is open")
		}
	}
	awaitCount(t, "refused", r.metrics.Refused(Connections), 3)
	for _, conn := range senders {
		write(t, conn, "<13>b\n")
	}
	r.await(t, 2*most)
}

func TestAMessageThatDoesNotComeWholeInTimeIsCut(t *testing.T) {
	r := run(t, "tcp", func(o *Options) { o.Times.Message = 50 * time.Millisecond })
	conn := r.dial(t, "tcp")
	time.Sleep(100 * time.Millisecond) // a connection may be silent for longer
	write(t, conn, "<13>whole\n<13>half of ")
	if got := r.await(t, 2); !strings.Contains(got[1], "half of") {
		t.Errorf("got %q", got)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is open")
	}
	awaitCount(t, "cut", r.metrics.Cut(Slow), 1)
}

func TestALongMessageIsCutAndTheNextIsWhole(t *testing.T) {
	r := run(t, "tcp", func(o *Options) { o.MessageBytes = 100_000 })
	conn := r.dial(t, "tcp")
	long := "<13>" + strings.Repeat("x", 1_000_000)
	write(t, conn, long+"\n<13>next\n")
	got := r.await(t, 2)
	if n := strings.Count(got[0], "x"); n != 100_000-len("<13>") || !strings.Contains(got[1], `"next"`) {
		t.Errorf("%d bytes, then %s", n, got[1])
	}
	counted := r.dial(t, "tcp")
	write(t, counted, fmt.Sprintf("%d %s%d <13>next", len(long), long, len("<13>next")))
	r.await(t, 4)
	awaitCount(t, "cut", r.metrics.Cut(TooLong), 2)
	write(t, r.dial(t, "tcp"), "5 <13>aoops")
	awaitCount(t, "refused", r.metrics.Refused(Framing), 1)
	r.await(t, 5)
}

// However many connections hold large pieces of messages, others go on.
func TestBuffersAreBoundedAndSmallMessagesGoOn(t *testing.T) {
	r := run(t, "tcp", func(o *Options) {
		o.Budget = NewBudget(2 << 20)
		o.MessageBytes = 256 << 10
		o.Times.Message = 500 * time.Millisecond
	})
	for range 20 {
		conn := r.dial(t, "tcp")
		go func() { _, _ = io.WriteString(conn, "<13>"+strings.Repeat("x", 200<<10)) }() // it is cut off
	}
	conn := r.dial(t, "tcp")
	for i := range 50 {
		write(t, conn, fmt.Sprintf("<13>small %d\n", i))
	}
	small := func() (n int) {
		for _, record := range r.sink.records() {
			if strings.Contains(record, "small") {
				n++
			}
		}
		return n
	}
	for end := time.Now().Add(10 * time.Second); small() < 50; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d of 50 small messages came through", small())
		}
	}
}

func TestHandshakesThatStayHalfOpenAreCut(t *testing.T) {
	r := run(t, "tls", func(o *Options) {
		o.TLS = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errors.New("none") }}
		o.Times.Handshake = 50 * time.Millisecond
	})
	for range 10 {
		if _, err := r.dial(t, "tcp").Read(make([]byte, 1)); err == nil {
			t.Error("the connection is open")
		}
	}
	awaitCount(t, "refused", r.metrics.Refused(Handshake), 10)
	awaitCount(t, "connections", r.metrics.connections, 0)
}

func TestPacketsBecomeMessages(t *testing.T) {
	r := run(t, "udp", nil)
	conn := r.dial(t, "udp")
	for _, packet := range []string{"<13>one\n", "<13>two\n<14>three\nof two lines\n<15>four", "", "<13>five\x00"} {
		write(t, conn, packet)
	}
	all := strings.Join(r.await(t, 5), "\n")
	for _, want := range []string{`"one"`, `"two"`, `"three\nof two lines"`, `"four"`, `"five"`, `"peer":"127.0.0.1"`} {
		if !strings.Contains(all, want) {
			t.Errorf("there is no %s in\n%s", want, all)
		}
	}
}

func TestPacketsThatFindNoRoomAreCounted(t *testing.T) {
	r := run(t, "udp", func(o *Options) { o.QueueBytes = 100 * (1000 + perPacket) })
	r.sink.held.Lock()
	conn := r.dial(t, "udp")
	packet := "<13>" + strings.Repeat("x", 996)
	const sent = 300
	for range sent {
		write(t, conn, packet)
		time.Sleep(50 * time.Microsecond) // the kernel's buffer shall not overflow
	}
	dropped := r.metrics.Dropped(Full)
	awaitCount(t, "dropped", dropped, sent-100)
	r.sink.held.Unlock()
	r.await(t, 100)
	write(t, conn, packet)
	r.await(t, 101)
}

func TestAtTheStopPacketsInTheKernelAreTaken(t *testing.T) {
	r := run(t, "udp", nil)
	conn := r.dial(t, "udp")
	for range 100 {
		write(t, conn, "<13>x")
	}
	r.stop()
	r.await(t, 100)
}
