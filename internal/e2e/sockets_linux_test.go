package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace/internal/testenv"
)

// counted returns the sum of the series of a metric, whose labels contain some text.
func counted(t *testing.T, addr, name, labels string) (sum int) {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() // read to its end
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^`+name+`\{(.*)\} (\S+)$`).FindAllStringSubmatch(string(text), -1) {
		if strings.Contains(m[1], labels) {
			value, err := strconv.ParseFloat(m[2], 64)
			if err != nil {
				t.Fatal(err)
			}
			sum += int(value)
		}
	}
	return sum
}

// residentOf returns the most memory that a process has had at once, in KiB.
func residentOf(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(text)
	n, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// kernelDropped returns how many packets the kernel has dropped that were sent to a UDP port of this machine, for lack of room.
func kernelDropped(t *testing.T, port int) int {
	t.Helper()
	file, err := os.Open("/proc/net/udp")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close() // only read
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 12 && strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", port)) {
			n, err := strconv.Atoi(fields[12])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("nobody listens at port %d", port)
	return 0
}

// backlogDropped returns how many packets this machine has dropped before it looked whose they are, for lack of time.
func backlogDropped(t *testing.T) (sum int) {
	t.Helper()
	text, err := os.ReadFile("/proc/net/softnet_stat")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		n, err := strconv.ParseInt(strings.Fields(line)[1], 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += int(n)
	}
	return sum
}

// TestSocketsAtSize holds 10,000 connections of syslog open, of which each sends, and then has packets come as fast as one process sends them. Each message is a row, or was counted as
// dropped, by the API or by the kernel.
func TestSocketsAtSize(t *testing.T) {
	if os.Getenv("MILLRACE_AT_SIZE") == "" {
		t.Skip("it takes minutes: make size runs it")
	}
	const connections, each, packets = 10_000, 20, 1_000_000
	tcp, udp := testenv.FreeAddress(t), testenv.FreeAddress(t)
	s := newSendStack(t, "SYSLOG_TCP_ADDR="+tcp, "SYSLOG_UDP_ADDR="+udp, "MAX_CONNECTIONS=100")
	pid := s.services["api"].Process.Pid
	idle := residentOf(t, pid)

	began := time.Now()
	conns := make([]net.Conn, connections)
	for i := range conns {
		conn, err := net.Dial("tcp", tcp)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		defer conn.Close() // all was written
		conns[i] = conn
	}
	var senders sync.WaitGroup
	for part := range 8 {
		senders.Go(func() {
			for n := range each {
				for i := part; i < connections; i += 8 {
					if _, err := fmt.Fprintf(conns[i], "<13>1 - tcp app - - - connection %d, message %d %s\n", i, n, strings.Repeat("x", 150)); err != nil {
						t.Errorf("connection %d: %v", i, err)
						return
					}
				}
			}
		})
	}
	senders.Wait()
	testenv.Eventually(t, 5*time.Minute, "all rows are there", func() bool {
		return testenv.Count(t, s.conn, `SELECT count(*) FROM logs`) >= connections*each
	})
	if rows := testenv.Count(t, s.conn, `SELECT count(DISTINCT data->>'message') FROM logs`); rows != connections*each {
		t.Errorf("%d different rows, want %d", rows, connections*each)
	}
	if open := counted(t, s.addr, "millrace_api_socket_connections", `transport="tcp"`); open != connections {
		t.Errorf("%d connections are open", open)
	}
	if lost := counted(t, s.addr, "millrace_api_socket_dropped_total", "") + counted(t, s.addr, "millrace_api_socket_refused_total", ""); lost != 0 {
		t.Errorf("%d messages or connections were not taken", lost)
	}
	t.Logf("TCP: %d messages over %d connections in %v; resident memory %d KiB before, at most %d KiB", connections*each, connections, time.Since(began).Round(time.Second), idle, residentOf(t, pid))

	began = time.Now()
	_, port, err := net.SplitHostPort(udp)
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	before := backlogDropped(t)
	for part := range 2 {
		senders.Go(func() {
			conn, err := net.Dial("udp", udp)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close() // all was written
			for n := part; n < packets; n += 2 {
				if _, err := fmt.Fprintf(conn, "<13>1 - udp app - - - packet %d %s", n, strings.Repeat("x", 150)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	senders.Wait()
	sent := time.Since(began)
	var taken, dropped, kernel, backlog int
	testenv.Eventually(t, 5*time.Minute, "each packet is accounted for", func() bool {
		taken = counted(t, s.addr, "millrace_api_socket_messages_total", `transport="udp"`)
		dropped = counted(t, s.addr, "millrace_api_socket_dropped_total", `transport="udp"`)
		kernel = kernelDropped(t, number)
		// Others on this machine may have dropped packets, too.
		backlog = packets - taken - dropped - kernel
		return backlog >= 0 && backlog <= backlogDropped(t)-before
	})
	testenv.Eventually(t, 5*time.Minute, "what was taken is stored", func() bool {
		return testenv.Count(t, s.conn, `SELECT count(*) FROM logs`) >= connections*each+taken
	})
	if rows := testenv.Count(t, s.conn, `SELECT count(*) FROM logs`); rows != connections*each+taken {
		t.Errorf("%d rows, want %d", rows, connections*each+taken)
	}
	t.Logf("UDP: %d packets in %v: %d stored, %d dropped by the API, %d by the kernel for lack of room, %d before; resident memory at most %d KiB", packets, sent.Round(time.Millisecond), taken, dropped, kernel, backlog, residentOf(t, pid))
}
