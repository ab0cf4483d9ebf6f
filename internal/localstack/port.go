package localstack

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
)

// freePort returns a port of the loopback interface that nobody uses. If the kernel tells which ports it gives to connections, the
// port lies below those, so that a server that is down for a moment finds it free again. On Linux no other process that asks
// freePort gets the port while this process lives, and this process gets it once. Any other program may take the port before the
// server does: see portTries.
func freePort() (int, error) {
	const lowest, tries = 20000, 50
	if end := firstEphemeral(); end > lowest+tries {
		for range tries {
			port := lowest + rand.IntN(end-lowest)
			if !reserve(port) {
				continue
			}
			if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
				return port, l.Close()
			}
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close() // taken by a server next
	return l.Addr().(*net.TCPAddr).Port, nil
}

// reservations are the sockets of reserve. The process holds them until it ends.
var reservations struct {
	sync.Mutex
	sockets []net.Listener
}

// reserve reports whether port was not reserved yet, by this process or another one, and reserves it until this process ends. The
// reservation is a socket with a name outside the file system, which only Linux has; elsewhere reserve always reports true. Without
// it, tests that run side by side give one port to two servers: each is seconds away from listening there.
func reserve(port int) bool {
	if runtime.GOOS != "linux" {
		return true
	}
	socket, err := net.Listen("unix", fmt.Sprintf("@millrace-port-%d", port))
	if err != nil {
		return false
	}
	reservations.Lock()
	defer reservations.Unlock()
	reservations.sockets = append(reservations.sockets, socket)
	return true
}

// FreeAddress returns a loopback address with a port from freePort, for a process that must have the same address after a restart.
func FreeAddress() (string, error) {
	port, err := freePort()
	return fmt.Sprintf("127.0.0.1:%d", port), err
}

// firstEphemeral returns the first of the ports that Linux gives to connections, or 0 if nothing tells it.
func firstEphemeral() int {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return 0
	}
	first := 0
	_, _ = fmt.Sscan(string(text), &first) // or it stays 0
	return first
}
