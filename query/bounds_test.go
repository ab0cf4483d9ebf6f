package query

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"millrace/internal/keys"
	"millrace/internal/testenv"
)

// withKey returns settings with a key file, and the key that it has.
func withKey(t *testing.T, settings map[string]string) (map[string]string, string) {
	t.Helper()
	key, secret, err := keys.New("reader", []string{keys.Read})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte(key.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	settings["KEYS_FILE"] = file
	return settings, secret
}

func (c *client) dial() net.Conn {
	c.t.Helper()
	return testenv.Dial(c.t, strings.TrimPrefix(c.base, "http://"))
}

// TestStrangersKeepNobodyOutOfQueries has clients without a key hold all connections.
func TestStrangersKeepNobodyOutOfQueries(t *testing.T) {
	const most = 20
	settings, secret := withKey(t, map[string]string{"QUERY_MAX_CONNECTIONS": fmt.Sprint(most)})
	f := newFixture(t, settings)
	f.key = secret
	follower := f.dial()
	_, _ = fmt.Fprintf(follower, "GET /logs/tail HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", secret) // the read tells
	followed := bufio.NewReader(follower)
	if line, err := followed.ReadString('\n'); err != nil || !strings.Contains(line, "200") {
		t.Fatalf("the tail: got %q, %v", line, err)
	}
	for name, said := range map[string]string{
		"nothing":               "",
		"no key":                "GET /logs HTTP/1.1\r\nHost: x\r\n\r\n",
		"the page":              "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"half a header":         "GET /logs HTTP/1.1\r\nX-Slow: ",
		"a body that is slow":   "POST /logs HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
		"metrics, never read":   strings.Repeat("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 50),
		"a tail without a key":  "GET /logs/tail HTTP/1.1\r\nHost: x\r\n\r\n",
		"an export without one": "GET /logs/export HTTP/1.0\r\nHost: x\r\n\r\n",
	} {
		for range 2 * most {
			_, _ = io.WriteString(f.dial(), said) // it may be closed by now
		}
		for range most {
			f.http.CloseIdleConnections()
			if got := f.get("/logs?limit=1"); got.status != http.StatusOK {
				t.Fatalf("beside strangers that sent %s: got %d %s, want 200", name, got.status, got.body)
			}
		}
	}
	_ = follower.SetReadDeadline(time.Now().Add(30 * time.Second)) // the read tells
	for {
		line, err := followed.ReadString('\n')
		if err != nil {
			t.Fatalf("the tail of a client with a key was cut: %v", err)
		}
		if strings.HasPrefix(line, ":") { // it is told that it is alive
			break
		}
	}
}

func TestQueriesReadNoBodiesAndBoundHeaders(t *testing.T) {
	settings, _ := withKey(t, map[string]string{})
	f := newFixture(t, settings)
	piece := strings.Repeat("x", 256<<10)
	for _, target := range []string{
		"GET /logs", "POST /logs", "GET /logs/tail", "GET /logs/export", "POST /logs/export", "GET /", "HEAD /", "GET /health", "POST /metrics", "OPTIONS /logs", "GET /nowhere",
	} {
		for _, head := range []string{"HTTP/1.0\r\nContent-Length: 16777216", "HTTP/1.1\r\nContent-Length: 16777216", "HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 16777216"} {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			conn := f.dial()
			_, err := io.WriteString(conn, target+" "+head+"\r\nHost: x\r\n\r\n")
			for i := 0; err == nil && i < 64; i++ {
				_, err = io.WriteString(conn, piece)
			}
			_ = conn.Close() // it may be closed
			runtime.ReadMemStats(&after)
			if took := after.TotalAlloc - before.TotalAlloc; took > 32<<20 { // Go copies the string that is sent
				t.Errorf("%s %q: %d bytes were allocated", target, head, took)
			}
		}
	}
	conn := f.dial()
	_, _ = io.WriteString(conn, "GET /logs HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("y", 40_000)+"\r\n\r\n") // it may be cut off
	_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))                                                 // the read tells
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, "431") {
		t.Errorf("a header of 40 KB: got %q, %v, want 431", line, err)
	}
}

// TestACutExportNeverLooksWhole cuts exports, which a client must see.
func TestACutExportNeverLooksWhole(t *testing.T) {
	const rows = 12_000 // too many for what the kernel keeps for slow readers
	f := newFixture(t, map[string]string{"EXPORT_TIMEOUT": "1s"})
	now := time.Now().UTC().Truncate(time.Millisecond)
	partition(t, f.db, now)
	partition(t, f.db, now.Add(-time.Hour))
	f.exec(`INSERT INTO logs (id, inserted_at, data) SELECT gen_random_uuid(), $1::timestamptz, jsonb_build_object('n', n, 'text', (SELECT string_agg(md5(random()::text || n || i), '') FROM generate_series(1, 100) i)) FROM generate_series(1, $2::int) n`, now.Add(-time.Minute), rows)
	answers, cut := 0, 0
	for _, encoding := range []string{"identity", "gzip"} {
		for _, connection := range []string{"keep-alive", "close"} {
			conn := f.dial()
			fmt.Fprintf(conn, "GET /logs/export HTTP/1.1\r\nHost: x\r\nConnection: %s\r\nAccept-Encoding: %s\r\n\r\n", connection, encoding) // the read tells
			reader := bufio.NewReader(conn)
			_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second)) // so does the read
			got, err := http.ReadResponse(reader, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got.StatusCode == http.StatusGatewayTimeout {
				continue // a busy machine
			}
			answers++
			if len(got.TransferEncoding) == 0 || got.ContentLength >= 0 {
				t.Errorf("%s, %s: sent without chunks: a cut can't be seen", encoding, connection)
			}
			time.Sleep(2 * time.Second) // the slow client, past EXPORT_TIMEOUT
			body := io.Reader(got.Body)
			if encoding == "gzip" {
				if body, err = gzip.NewReader(body); err != nil {
					t.Fatal(err)
				}
			}
			var text bytes.Buffer
			_, err = io.Copy(&text, body)
			if n := bytes.Count(text.Bytes(), []byte("\n")); err == nil && n < rows {
				t.Errorf("%s, %s: the export looks whole after %d of %d rows", encoding, connection, n, rows)
			} else if err != nil {
				cut++
			}
		}
	}
	if answers > 0 && cut == 0 {
		t.Error("no export was cut")
	}
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		conn := f.dial()
		fmt.Fprintf(conn, "%s /logs/export HTTP/1.0\r\n\r\n", method) // the read tells
		_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))    // so does the read
		answer, err := io.ReadAll(io.LimitReader(conn, 4<<10))
		if err != nil && len(answer) == 0 || !strings.Contains(string(answer), " 505 ") || method == http.MethodGet && !strings.Contains(string(answer), "HTTP/1.1:") {
			t.Errorf("%s over HTTP/1.0: got %.300q, %v, want 505 and which version it takes", method, answer, err)
		}
	}
}
