package bench

import (
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"millrace/bench/ceiling"
	"millrace/bench/load"
)

// BenchmarkSlowloris posts to an API that 200 connections send to at a byte a second, half of them headers, half
// bodies, again and again as they are cut off. The ceiling is the same API without them.
func BenchmarkSlowloris(b *testing.B) {
	const connections, slow = 64, 200
	var requests [][]byte
	for _, body := range bodies(256, 1) {
		requests = append(requests, load.Post("/log", body))
	}
	q := newQueues(b)
	attacked := startServer(b, "api", q.Name, "API_ADDR=127.0.0.1:0")
	product := attacked.dial(b, connections, requests...)
	alone := startServer(b, "api", q.Name, "API_ADDR=127.0.0.1:0").dial(b, connections, requests...)
	waitReady(b, product)
	waitReady(b, alone)
	header := "POST /log HTTP/1.1\r\nHost: millrace\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	body := "POST /log HTTP/1.1\r\nHost: millrace\r\nContent-Length: 1000000\r\n\r\n"
	stop := make(chan struct{})
	var attackers sync.WaitGroup
	for i := range slow {
		attackers.Go(func() {
			if i%2 == 0 {
				trickle(attacked.addr, "", header, stop)
			} else {
				trickle(attacked.addr, body, "                                                                                          ", stop)
			}
		})
	}
	defer attackers.Wait()
	defer close(stop)

	t := ceiling.NewTurns("req/s")
	for b.Loop() {
		q.purge(b)
		p := run(b, product, ceiling.Round)
		q.purge(b)
		t.Add(p.Rate(), run(b, alone, ceiling.Round).Rate())
	}
	t.Report(b)
}

// trickle sends first at once and rest a byte a second, on a new connection whenever the server ends one.
func trickle(addr, first, rest string, stop <-chan struct{}) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			_, err = fmt.Fprint(conn, first)
		}
		for i := 0; err == nil; i = (i + 1) % len(rest) {
			select {
			case <-tick.C:
				_, err = conn.Write([]byte{rest[i]})
			case <-stop:
				conn.Close() // nobody is left to tell
				return
			}
		}
		if conn != nil {
			conn.Close() // the server has ended it
		}
		select {
		case <-tick.C:
		case <-stop:
			return
		}
	}
}
