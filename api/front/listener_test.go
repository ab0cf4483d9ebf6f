package front

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http/httptest"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"millrace/internal/testenv"
)

var dial, turnedAway = testenv.Dial, testenv.TurnedAway

func TestATLSClientBeyondTheLimitIsToldSoAndASilentOneHoldsUpNobody(t *testing.T) {
	server := httptest.NewUnstartedServer(nil)
	server.StartTLS() // for its certificate
	config := server.TLS.Clone()
	server.Close()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var turned atomic.Int64
	l := NewListener(tls.NewListener(inner, config), Options{Deadline: time.Minute, OnTurnAway: func() { turned.Add(1) }})
	done := make(chan error)
	go func() {
		_, err := l.Accept()
		done <- err
	}()
	for range 2 * maxPartings {
		dial(t, inner.Addr().String()) // and says nothing
	}
	testenv.Eventually(t, 5*time.Second, "all are accepted", func() bool { return turned.Load() == 2*maxPartings })
	testenv.Eventually(t, 5*time.Second, "those who say nothing are gone", func() bool { return len(l.partings) == 0 })
	conn, err := tls.Dial("tcp", inner.Addr().String(), &tls.Config{InsecureSkipVerify: true}) // its certificate is not the point
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() // read to its end
	turnedAway(t, conn)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
	l.Wait()
}

// exhausted is a listener of a process that has no file descriptor left for a while.
type exhausted struct {
	net.Listener
	times int
}

func (l *exhausted) Accept() (net.Conn, error) {
	if l.times--; l.times >= 0 {
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return l.Listener.Accept()
}

func TestTheAPIOutlivesALackOfFileDescriptors(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := NewListener(&exhausted{inner, 3}, Options{Limit: 1, Deadline: time.Minute})
	dial(t, inner.Addr().String())
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(conn.Close(), l.Close()); err != nil {
		t.Error(err)
	}
}
