package direct_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"regexp"
	"sync"
	"testing"
	"time"

	"millrace/internal/direct"
)

// pair returns the two ends of a TCP connection. The first is the listener's, as accept returns it.
func pair(t *testing.T, accept func(net.Conn) net.Conn) (near net.Conn, far *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close() // the test may have closed it
		_ = accepted.Close()
	})
	return accept(accepted), conn.(*net.TCPConn)
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	near, far := pair(t, direct.New)
	sent := make([]byte, 10<<20) // more than sockets buffer, so that both wait
	if _, err := rand.Read(sent); err != nil {
		t.Fatal(err)
	}
	var sending sync.WaitGroup
	sending.Go(func() {
		if n, err := near.Write(sent); n != len(sent) || err != nil {
			t.Errorf("wrote %d of %d bytes: %v", n, len(sent), err)
		}
	})
	sending.Go(func() {
		if _, err := far.Write(sent); err != nil {
			t.Error(err)
		}
		if err := far.CloseWrite(); err != nil {
			t.Error(err)
		}
	})
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(far, got); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("what was written did not arrive: %v", err)
	}
	if got, err := io.ReadAll(near); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d of %d bytes were read as they were sent: %v", len(got), len(sent), err)
	}
	sending.Wait()
	if n, err := near.Read(nil); n != 0 || err != nil {
		t.Errorf("a Read of nothing: %d, %v", n, err)
	}
}

func TestTryWritesWhatGoesAtOnce(t *testing.T) {
	accepted, far := pair(t, direct.New)
	near := accepted.(*direct.Conn)
	if n := near.Try([]byte("hello")); n != 5 {
		t.Errorf("wrote %d of 5 bytes to an empty socket", n)
	}
	sent := []byte("hello")
	block := make([]byte, 1<<20)
	for {
		n := near.Try(block)
		sent = append(sent, block[:n]...)
		if n == 0 {
			break // and nobody reads: a Write would wait
		}
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		got, err := io.ReadAll(far)
		if want := string(sent) + "end"; err != nil || string(got) != want {
			t.Errorf("read %d of %d bytes: %v", len(got), len(want), err)
		}
	})
	if _, err := near.Write([]byte("end")); err != nil {
		t.Error(err)
	}
	if err := near.Close(); err != nil {
		t.Error(err)
	}
	reading.Wait()
	if n := near.Try([]byte("hello")); n != 0 {
		t.Errorf("wrote %d bytes to a closed connection", n)
	}
}

// Errors are reported as the connections of package net report them.
func TestErrorsAreThoseOfNet(t *testing.T) {
	soon := func(conn net.Conn) {
		if err := conn.SetDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
	}
	closed := func(conn net.Conn) {
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
	reset := func(conn *net.TCPConn) {
		if err := conn.SetLinger(0); err != nil {
			t.Fatal(err)
		}
		closed(conn)
		time.Sleep(10 * time.Millisecond)
	}
	flood := func(conn net.Conn) (int, error) {
		for block := make([]byte, 1<<20); ; {
			if _, err := conn.Write(block); err != nil {
				return 0, err
			}
		}
	}
	read := func(conn net.Conn) (int, error) { return conn.Read(make([]byte, 1)) }
	ports := regexp.MustCompile(`:\d+`)
	for _, c := range []struct {
		name string
		do   func(near net.Conn, far *net.TCPConn) (int, error)
		is   error // what the error also is, when that matters to anyone
	}{
		{"end", func(near net.Conn, far *net.TCPConn) (int, error) { closed(far); return read(near) }, io.EOF},
		{"read reset", func(near net.Conn, far *net.TCPConn) (int, error) { reset(far); return read(near) }, nil},
		{"write reset", func(near net.Conn, far *net.TCPConn) (int, error) { reset(far); return flood(near) }, nil},
		{"read late", func(near net.Conn, _ *net.TCPConn) (int, error) { soon(near); return read(near) }, os.ErrDeadlineExceeded},
		{"write late", func(near net.Conn, _ *net.TCPConn) (int, error) { soon(near); return flood(near) }, os.ErrDeadlineExceeded},
		{"read closed", func(near net.Conn, _ *net.TCPConn) (int, error) { closed(near); return read(near) }, net.ErrClosed},
		{"write closed", func(near net.Conn, _ *net.TCPConn) (int, error) { closed(near); return flood(near) }, net.ErrClosed},
		{"closed while reading", func(near net.Conn, _ *net.TCPConn) (int, error) {
			time.AfterFunc(10*time.Millisecond, func() { closed(near) })
			return read(near)
		}, net.ErrClosed},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, want := c.do(pair(t, func(conn net.Conn) net.Conn { return conn }))
			_, got := c.do(pair(t, direct.New))
			if got == nil || ports.ReplaceAllString(got.Error(), "") != ports.ReplaceAllString(want.Error(), "") {
				t.Errorf("got %v, want %v", got, want)
			}
			if c.is != nil && !errors.Is(got, c.is) {
				t.Errorf("got %v, which is not %v", got, c.is)
			}
			var timeout, wantTimeout net.Error
			if errors.As(want, &wantTimeout) && (!errors.As(got, &timeout) || timeout.Timeout() != wantTimeout.Timeout()) {
				t.Errorf("got %#v, want %#v", got, want)
			}
		})
	}
}

func TestOnlyTCPIsDirect(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if got := direct.New(a); got != a {
		t.Errorf("of a pipe it made a %T", got)
	}
	near, _ := pair(t, direct.New)
	if _, ok := near.(*direct.Conn); !ok {
		t.Errorf("of a TCP connection it made a %T", near)
	}
}

// The race detector must see the same order as with package net. The test runs it over the system calls
// that are shipped.
func TestWhatIsSentHappensBeforeItIsReceived(t *testing.T) {
	near, far := pair(t, direct.New)
	for _, way := range []struct{ from, to net.Conn }{{near, far}, {far, near}} {
		shared := 0
		var sending sync.WaitGroup
		sending.Go(func() {
			shared = 1
			if _, err := way.from.Write([]byte("x")); err != nil {
				t.Error(err)
			}
		})
		if _, err := io.ReadFull(way.to, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if shared != 1 {
			t.Errorf("got %d, want 1", shared)
		}
		sending.Wait()
	}
}
