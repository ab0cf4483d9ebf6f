// Package load sends HTTP requests over keep-alive connections as cheaply as a program can: one thread, one epoll
// set, requests that were made beforehand. So the cores are left to what is measured. Each connection has one
// request under way, as a client that waits for its answer does.
//
// A Client is for one goroutine at a time. It starts none.
package load

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net"
	"runtime"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// drainTime is how long the answers to the last requests of a run may take.
const drainTime = 15 * time.Second

// Client holds the connections to one server.
type Client struct {
	poll     int
	conns    []*conn
	requests [][]byte
	next     int
	buf      []byte
}

// conn is one connection, with the request and the answer under way.
type conn struct {
	fd     int
	unsent []byte
	answer []byte // what has come so far, when it came in parts
	sent   time.Time
}

// Result is what came of one run.
type Result struct {
	Elapsed   time.Duration
	Status    map[int]int     // answers by HTTP status
	Latencies []time.Duration // of the answers, ascending
	CPU       time.Duration   // what sending and receiving took
}

// Answers returns the number of answers of any status.
func (r Result) Answers() int { return len(r.Latencies) }

// Rate returns the number of 2xx answers a second.
func (r Result) Rate() float64 {
	n := 0
	for status, count := range r.Status {
		if status/100 == 2 {
			n += count
		}
	}
	return float64(n) / r.Elapsed.Seconds()
}

// Quantile returns the latency within which the share q of the answers came. It is the latency of one of them (the nearest
// rank), or 0 if there are none.
func (r Result) Quantile(q float64) time.Duration {
	if len(r.Latencies) == 0 {
		return 0
	}
	return r.Latencies[max(0, int(math.Ceil(q*float64(len(r.Latencies))))-1)]
}

// Post returns a POST request with a body, as it goes over the wire.
func Post(path string, body []byte) []byte { return PostAs(path, "application/json", body) }

// PostAs returns a POST request with a body of a type.
func PostAs(path, contentType string, body []byte) []byte {
	return fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: millrace\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", path, contentType, len(body), body)
}

// Dial opens so many connections to a TCP address. Each run sends the requests in turn.
func Dial(addr string, connections int, requests ...[]byte) (*Client, error) {
	tcp, err := net.ResolveTCPAddr("tcp4", addr)
	if err != nil {
		return nil, err
	}
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	c := &Client{poll: poll, requests: requests, buf: make([]byte, 64<<10)}
	to := &unix.SockaddrInet4{Port: tcp.Port, Addr: [4]byte(tcp.IP.To4())}
	for i := range connections {
		fd, err := connect(to)
		if err == nil {
			c.conns = append(c.conns, &conn{fd: fd})
			err = unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)})
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("connection %d to %s: %w", i, addr, err), c.Close())
		}
	}
	return c, nil
}

// connect returns the descriptor of a new connection.
func connect(to unix.Sockaddr) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := errors.Join(unix.Connect(fd, to), unix.SetNonblock(fd, true),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// Close closes the connections.
func (c *Client) Close() error {
	err := unix.Close(c.poll)
	for _, cn := range c.conns {
		err = errors.Join(err, unix.Close(cn.fd))
	}
	return err
}

// Run keeps one request under way on each connection for d, then waits for the last answers.
func (c *Client) Run(d time.Duration) (Result, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r := Result{Status: make(map[int]int)}
	before, err := threadTime()
	if err != nil {
		return r, err
	}
	start := time.Now()
	end := start.Add(d)
	for _, cn := range c.conns {
		if err := c.send(cn); err != nil {
			return r, err
		}
	}
	events := make([]unix.EpollEvent, 512)
	for busy := len(c.conns); busy > 0; {
		n, err := unix.EpollWait(c.poll, events, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return r, fmt.Errorf("epoll_wait: %w", err)
		}
		now := time.Now()
		if now.After(end.Add(drainTime)) {
			return r, fmt.Errorf("%d requests have no answer %v after the end", busy, drainTime)
		}
		for _, e := range events[:max(n, 0)] {
			cn := c.conns[e.Fd]
			if e.Events&unix.EPOLLOUT != 0 {
				if err := c.flush(cn); err != nil {
					return r, err
				}
			}
			if e.Events&^unix.EPOLLOUT == 0 {
				continue
			}
			status, err := c.receive(cn)
			if err != nil {
				return r, err
			}
			if status == 0 {
				continue
			}
			answered := time.Now()
			r.Status[status]++
			r.Latencies = append(r.Latencies, answered.Sub(cn.sent))
			if answered.After(end) {
				busy--
				continue
			}
			if err := c.send(cn); err != nil {
				return r, err
			}
		}
	}
	r.Elapsed = time.Since(start)
	after, err := threadTime()
	r.CPU = after - before
	slices.Sort(r.Latencies)
	return r, err
}

// threadTime returns the processor time that the calling thread has taken.
func threadTime() (time.Duration, error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		return 0, fmt.Errorf("getrusage: %w", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

// send sends the connection's next request, or as much of it as the socket takes.
func (c *Client) send(cn *conn) error {
	cn.unsent = c.requests[c.next%len(c.requests)]
	c.next++
	cn.sent = time.Now()
	n, err := unix.Write(cn.fd, cn.unsent)
	if err != nil && !errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("write: %w", err)
	}
	cn.unsent = cn.unsent[max(n, 0):]
	if len(cn.unsent) > 0 {
		return c.watch(cn, unix.EPOLLIN|unix.EPOLLOUT)
	}
	return nil
}

// flush sends more of a request that did not fit into the socket's buffer.
func (c *Client) flush(cn *conn) error {
	n, err := unix.Write(cn.fd, cn.unsent)
	if err != nil && !errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("write: %w", err)
	}
	cn.unsent = cn.unsent[max(n, 0):]
	if len(cn.unsent) == 0 {
		return c.watch(cn, unix.EPOLLIN)
	}
	return nil
}

// watch sets the events of a connection that the epoll set reports.
func (c *Client) watch(cn *conn, events uint32) error {
	i := slices.Index(c.conns, cn)
	if err := unix.EpollCtl(c.poll, unix.EPOLL_CTL_MOD, cn.fd, &unix.EpollEvent{Events: events, Fd: int32(i)}); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// receive reads what has come and returns the status of the answer, or 0 while it is not whole.
func (c *Client) receive(cn *conn) (int, error) {
	n, err := unix.Read(cn.fd, c.buf)
	switch {
	case errors.Is(err, unix.EAGAIN):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("read: %w", err)
	case n == 0:
		return 0, errors.New("the server closed a connection")
	}
	answer := c.buf[:n]
	if len(cn.answer) > 0 {
		cn.answer = append(cn.answer, answer...)
		answer = cn.answer
	}
	status, whole, err := parse(answer)
	if err != nil {
		return 0, err
	}
	if !whole {
		if len(cn.answer) == 0 {
			cn.answer = append(cn.answer, answer...)
		}
		return 0, nil
	}
	cn.answer = cn.answer[:0]
	return status, nil
}

// parse returns an answer's status, and reports whether its body has come whole.
func parse(answer []byte) (status int, whole bool, err error) {
	head, body, ok := bytes.Cut(answer, []byte("\r\n\r\n"))
	if !ok {
		return 0, false, nil
	}
	if len(head) < len("HTTP/1.1 202") {
		return 0, false, fmt.Errorf("not an HTTP answer: %q", head)
	}
	if status, err = strconv.Atoi(string(head[9:12])); err != nil {
		return 0, false, fmt.Errorf("not an HTTP answer: %q", head)
	}
	_, rest, ok := bytes.Cut(head, []byte("\r\nContent-Length: "))
	if !ok && status == 204 { // it has no body
		return status, true, nil
	}
	if !ok {
		return 0, false, fmt.Errorf("an answer without Content-Length: %q", head)
	}
	number, _, _ := bytes.Cut(rest, []byte("\r\n"))
	length, err := strconv.Atoi(string(number))
	if err != nil {
		return 0, false, fmt.Errorf("an answer's Content-Length: %q", number)
	}
	return status, len(body) >= length, nil
}
