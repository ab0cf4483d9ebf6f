package api

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"millrace/api/front"
	"millrace/api/protocol"
	"millrace/internal/keys"
	"millrace/internal/record"
	"millrace/internal/testenv"
)

// longUpload is a request whose body the test sends bit by bit.
type longUpload struct {
	t    *testing.T
	conn net.Conn
}

// upload begins a request. Each line of header ends in CRLF.
func (a *testAPI) upload(t *testing.T, method, header string) *longUpload {
	t.Helper()
	return a.uploadTo(t, method, "/log/batch", header)
}

// uploadTo is upload for any path.
func (a *testAPI) uploadTo(t *testing.T, method, path, header string) *longUpload {
	t.Helper()
	u := &longUpload{t, dial(t, strings.TrimPrefix(a.url, "http://"))}
	if _, err := fmt.Fprintf(u.conn, "%s %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n%s\r\n", method, path, header); err != nil {
		t.Fatal(err)
	}
	return u
}

func (u *longUpload) send(text string) {
	u.t.Helper()
	if _, err := fmt.Fprintf(u.conn, "%x\r\n%s\r\n", len(text), text); err != nil {
		u.t.Fatal(err)
	}
}

func (u *longUpload) end() {
	u.t.Helper()
	if _, err := io.WriteString(u.conn, "0\r\n\r\n"); err != nil {
		u.t.Fatal(err)
	}
}

type uploadAnswer struct {
	status             int
	Accepted, Rejected int
	Errors             []struct {
		Index int
		Error string
	}
	Error string
}

func (u *longUpload) answer() uploadAnswer {
	u.t.Helper()
	resp, b := u.read()
	got := uploadAnswer{status: resp.StatusCode}
	if err := json.Unmarshal(b, &got); err != nil {
		u.t.Fatalf("%v: %s", err, b)
	}
	return got
}

// read reads the answer and its body.
func (u *longUpload) read() (*http.Response, []byte) {
	u.t.Helper()
	if err := u.conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		u.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(u.conn), nil)
	if err != nil {
		u.t.Fatal(err)
	}
	defer resp.Body.Close() // read to its end
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		u.t.Fatalf("%v: %s", err, b)
	}
	return resp, b
}

// collect returns a function that returns the records that were published since the test began.
func (a *testAPI) collect(t *testing.T) func() []string {
	var records []string
	return func() []string {
		for _, s := range a.spans(t) {
			records = append(records, strings.Split(strings.TrimSuffix(string(s.Body), "\n"), "\n")...)
		}
		return records
	}
}

// startForUploads runs an API that takes parts after a short time.
func startForUploads(t *testing.T, mend func(*Config)) *testAPI {
	return start(t, func(c *Config) {
		limits := defaultTimeouts
		limits.part = 50 * time.Millisecond
		c.timeouts = &limits
		if mend != nil {
			mend(c)
		}
	})
}

func (a *testAPI) heldBytes(t *testing.T) string {
	return regexp.MustCompile(`(?m)^millrace_api_inflight_bytes (\S+)$`).FindStringSubmatch(a.get(t, "/metrics").body)[1]
}

func TestALongUploadIsStoredWhileItLasts(t *testing.T) {
	a := startForUploads(t, nil)
	published := a.collect(t)
	u := a.upload(t, http.MethodPut, "")
	want := 0
	sent := 0
	send := func(text string) {
		u.send(text)
		sent += len(text)
	}
	arrives := func(what string) {
		t.Helper()
		testenv.Eventually(t, 30*time.Second, what, func() bool { return len(published()) == want })
		testenv.Eventually(t, 30*time.Second, "no memory is held", func() bool { return a.heldBytes(t) == "0" })
	}
	for i := range 10 {
		send(fmt.Sprintf(`{"n":%d}`+"\n", i))
		want++
	}
	arrives("the lines of a client that then is silent")
	send(`{"n":10}` + "\n" + `{"n":`)
	want++
	testenv.Eventually(t, 30*time.Second, "a line before half a line", func() bool { return len(published()) == want })
	send("11}\n")
	want++
	arrives("both halves")
	broken := sent + len(`{"n":`)
	send(`{"n":}` + "\n" + `{"n":12}` + "\n")
	want++
	arrives("the line after a broken one")
	send(strings.Repeat(`{"pad":"`+strings.Repeat("x", 990)+`"}`+"\n", 4000)) // a chunk of 4 MB
	want += 4000
	send("\ufeff" + `{"last":true}`) // without a newline
	want++
	u.end()
	got := u.answer()
	if got.status != http.StatusMultiStatus || got.Accepted != want || got.Rejected != 1 || len(got.Errors) != 1 || got.Error != "" ||
		got.Errors[0].Index != 12 || !strings.HasSuffix(got.Errors[0].Error, fmt.Sprintf(" at byte %d", broken)) {
		t.Errorf("got %+v, want 207 with %d accepted and one error, index 12 at byte %d", got, want, broken)
	}
	if n := len(published()); n != want {
		t.Errorf("%d records were published, want %d", n, want)
	}
	// The connection goes on.
	if _, err := io.WriteString(u.conn, "POST /log HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"); err != nil {
		t.Fatal(err)
	}
	if got := u.answer(); got.status != http.StatusAccepted {
		t.Errorf("the next request: got %d, want 202", got.status)
	}
}

func TestWhatEndsALongUploadIsToldWithWhatIsStored(t *testing.T) {
	const line = `{"n":1}` + "\n"
	tests := map[string]struct {
		then   func(u *longUpload, a *testAPI)
		status int
		stored int
		want   string
	}{
		"silence":              {func(*longUpload, *testAPI) {}, 408, 1, "nothing more came"},
		"half a line":          {func(u *longUpload, _ *testAPI) { u.send(line + `{"n":`) }, 408, 2, "did not arrive in time"},
		"what is no NDJSON":    {func(u *longUpload, _ *testAPI) { u.send("{\n\"n\": 1\n}\n") }, 400, 1, "unexpected end of line inside an object at byte 9"},
		"a line that is large": {func(u *longUpload, _ *testAPI) { u.send(line + `{"n":"` + strings.Repeat("x", 1<<16) + `"}`) }, 413, 2, "MAX_BODY_BYTES"},
		"a broken chunk":       {func(u *longUpload, _ *testAPI) { u.send(line); _, _ = io.WriteString(u.conn, "oops\r\n") }, 400, 2, "breaks off"},
		"the API's end":        {func(u *longUpload, a *testAPI) { u.send(line + `{"n":`); go func() { _ = a.stop() }() }, 503, 2, "shutting down"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			a := startForUploads(t, func(c *Config) {
				c.MaxBodyBytes = 1 << 15
				c.timeouts.pause, c.timeouts.step = 2*time.Second, 2*time.Second
			})
			published := a.collect(t)
			u := a.upload(t, http.MethodPost, "")
			u.send(line)
			testenv.Eventually(t, 30*time.Second, "the first line", func() bool { return len(published()) == 1 })
			tt.then(u, a)
			got := u.answer()
			if got.status != tt.status || got.Accepted != tt.stored || !strings.Contains(got.Error, tt.want) || !strings.Contains(got.Error, "are stored") {
				t.Errorf("got %+v, want %d with %d accepted and %s", got, tt.status, tt.stored, tt.want)
			}
			if n := len(published()); n != tt.stored {
				t.Errorf("%d records were published, want %d", n, tt.stored)
			}
		})
	}
}

func TestTheCompleteLinesOfAnUploadThatIsCutOffAreStored(t *testing.T) {
	a := startForUploads(t, nil)
	published := a.collect(t)
	u := a.upload(t, http.MethodPut, "")
	u.send("{\"n\":1}\n")
	testenv.Eventually(t, 30*time.Second, "the first line", func() bool { return len(published()) == 1 })
	u.send("{\"n\":2}\n{\"n\":3}")
	if err := u.conn.Close(); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 30*time.Second, "the second line", func() bool { return len(published()) == 2 })
	testenv.Eventually(t, 30*time.Second, "no memory is held", func() bool { return a.heldBytes(t) == "0" })
}

// A body that can't be shown to be NDJSON, or must not be cut, is taken whole, however long it takes.
func TestOtherBodiesAreTakenWholeHoweverLongTheyTake(t *testing.T) {
	a := startForUploads(t, nil)
	for name, tt := range map[string]struct {
		header       string
		first, later string
		status       int
		stored       int
	}{
		"an array":                   {"", "[{\"n\":1},\n", "{\"n\":2}]", 202, 2},
		"an array that breaks":       {"", "[{\"n\":1},\n", "{\"n\":}]", 400, 0},
		"records over lines":         {"", "{\n\"n\":1\n}\n{\n", "\"n\":2\n}", 202, 2},
		"records over lines, broken": {"", "{\n\"n\":1\n}\n{\n", "\"n\":\n}", 400, 0},
		"with a key":                 {"Idempotency-Key: " + keyAt(0) + "\r\n", "{\"n\":1}\n", "}", 400, 0},
		"a line that may go on":      {"", "{\"n\":1}\n{\"n\":\n", "2}\n", 202, 2},
	} {
		t.Run(name, func(t *testing.T) {
			published := a.collect(t)
			u := a.upload(t, http.MethodPost, tt.header)
			u.send(tt.first)
			time.Sleep(200 * time.Millisecond) // long enough for a part
			if n := len(published()); n != 0 {
				t.Errorf("%d records were published before the end", n)
			}
			u.send(tt.later)
			u.end()
			if got := u.answer(); got.status != tt.status || got.Accepted != tt.stored {
				t.Errorf("got %+v, want %d with %d accepted", got, tt.status, tt.stored)
			}
			if n := len(published()); n != tt.stored {
				t.Errorf("%d records were published, want %d", n, tt.stored)
			}
		})
	}
}

func TestAnUploadMayBeLargerThanABodyIfItIsNDJSON(t *testing.T) {
	a := start(t, func(c *Config) {
		c.MaxBodyBytes, c.MaxInflightBytes = 1<<20, 2<<20
		limits := defaultTimeouts
		limits.part = time.Hour // only size makes parts
		c.timeouts = &limits
	})
	published := a.collect(t)
	line := `{"pad":"` + strings.Repeat("x", 990) + `"}` + "\n"
	for name, tt := range map[string]struct {
		body   string
		status int
		stored int
	}{
		"NDJSON":        {strings.Repeat(line, 5000), 202, 5000},
		"an array":      {"[" + strings.ReplaceAll(strings.Repeat(line, 2000), "}\n", "},") + "{}]", 413, 0},
		"one long line": {strings.ReplaceAll(strings.Repeat(line, 2000), "\n", ""), 413, 0},
	} {
		before := len(published())
		body := struct{ io.Reader }{strings.NewReader(tt.body)} // of a length that nobody knows
		if got := a.do(t, http.MethodPost, "/log/batch", body, nil); got.status != tt.status {
			t.Errorf("%s: got %d %s, want %d", name, got.status, got.body, tt.status)
		}
		if n := len(published()) - before; n != tt.stored {
			t.Errorf("%s: %d records were published, want %d", name, n, tt.stored)
		}
	}
}

func TestALongUploadWaitsForItsKeysLimit(t *testing.T) {
	secret := "mr_SECRET"
	file := newKeyFile(t, keys.Key{Name: "slow", Hash: sha256.Sum256([]byte(secret)), Scopes: []string{keys.Write}, Rate: 50, Burst: 50}.String())
	a := startForUploads(t, func(c *Config) { c.KeysFile = file.name })
	published := a.collect(t)
	u := a.upload(t, http.MethodPut, "X-API-Key: "+secret+"\r\n")
	for i := range 3 {
		u.send(strings.Repeat("{}\n", 40))
		testenv.Eventually(t, 30*time.Second, "its records", func() bool { return len(published()) == 40*(i+1) })
	}
	u.end()
	if got := u.answer(); got.status != http.StatusAccepted || got.Accepted != 120 {
		t.Errorf("got %+v, want 202 with 120 accepted", got)
	}
}

func TestARevokedKeysUploadEnds(t *testing.T) {
	secret := "mr_SECRET"
	key := func(s string) string {
		return keys.Key{Name: strings.TrimPrefix(s, "mr_"), Hash: sha256.Sum256([]byte(s)), Scopes: []string{keys.Write}}.String()
	}
	file := newKeyFile(t, key(secret), key("other"))
	a := startForUploads(t, file.use)
	published := a.collect(t)
	u := a.upload(t, http.MethodPut, "X-API-Key: "+secret+"\r\n")
	u.send("{}\n")
	testenv.Eventually(t, 30*time.Second, "the first line", func() bool { return len(published()) == 1 })
	file.rewrite(key("other"))
	if got := u.answer(); got.status != http.StatusUnauthorized || got.Accepted != 1 {
		t.Errorf("got %+v, want 401 with 1 accepted", got)
	}
}

// People type this. The file grows while curl sends it.
func TestCurlSendsAGrowingFile(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("curl is not installed")
	}
	a := startForUploads(t, nil)
	published := a.collect(t)
	cmd := exec.Command(curl, "--silent", "--show-error", "-T", "-", a.url+"/log/batch")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if _, err := io.WriteString(in, "{\"a\":1}\n{\"a\":2}\n"); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, 30*time.Second, "its lines", func() bool { return len(published()) == 2*(i+1) })
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || out.String() != `{"accepted":6,"rejected":0}` {
		t.Errorf("curl: %v, %s", err, out.String())
	}
}

// halting is a connection on which bytes stop for a while at each of its cuts.
type halting struct {
	written
	wire []byte
	cuts []byte // bytes up to each
}

type haltError struct{}

func (haltError) Error() string   { return "nothing came" }
func (haltError) Timeout() bool   { return true }
func (haltError) Temporary() bool { return true }

func (c *halting) Read(p []byte) (int, error) {
	n := len(c.wire)
	if len(c.cuts) > 0 {
		if n = min(n, int(c.cuts[0])); n == 0 {
			c.cuts = c.cuts[1:]
			return 0, haltError{}
		}
	}
	if len(c.wire) == 0 {
		return 0, io.EOF
	}
	n = copy(p, c.wire[:n])
	c.wire = c.wire[n:]
	if len(c.cuts) > 0 {
		c.cuts[0] -= byte(n)
	}
	return n, nil
}

// FuzzUpload sends a body with pauses anywhere. If all of it is NDJSON, the answer must be the same as without
// pauses.
func FuzzUpload(f *testing.F) {
	a := newFuzzedAPI(f)
	a.api.timeouts.part = time.Nanosecond
	f.Add([]byte("{\"a\":1}\n{\"b\":}\n\ufeff{\"c\":3}"), []byte{200, 3, 1, 1, 9, 0, 5}, uint16(7))
	f.Add([]byte("{\"a\":1}\n{\"b\":\n2}\n{\"c\":3}\n}\n"), []byte{180, 9, 9}, uint16(9))
	f.Add([]byte(strings.Repeat("{\"a\":\"bbbbbbbbbbbbbbbbb\"}\n5\n", 5000)), []byte{255, 255, 255, 0}, uint16(8192))
	f.Add([]byte("[{\"a\":1},\n{}]\n[5]"), []byte{180, 20}, uint16(4))
	f.Fuzz(func(t *testing.T, body, cuts []byte, chunk uint16) {
		wire := []byte("POST /log/batch HTTP/1.1\r\nHost: x\r\nX-API-Key: " + a.secret + "\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
		for rest := body; len(rest) > 0; {
			n := min(len(rest), max(1, int(chunk)))
			wire = fmt.Appendf(wire, "%x\r\n%s\r\n", n, rest[:n])
			rest = rest[n:]
		}
		wire = append(wire, "0\r\n\r\n"...)
		head := bytes.Index(wire, []byte("\r\n\r\n")) + 4 // fasthttp itself waits for it
		conn := &halting{wire: wire, cuts: bytes.Clone(cuts)}
		if len(cuts) > 0 {
			conn.cuts[0] = byte(max(int(cuts[0]), head))
		}
		a.answers = a.answers[:0]
		_ = a.ServeConn(front.NewListener(nil, front.Options{Limit: 1, Deadline: 16 * time.Millisecond}).Track(conn))
		resp, err := http.ReadResponse(bufio.NewReader(&conn.out), nil)
		if err != nil {
			t.Fatalf("no answer: %v", err)
		}
		answer, err := io.ReadAll(resp.Body)
		if err != nil || !json.Valid(answer) {
			t.Fatalf("answer %q, %v", answer, err)
		}
		if used := a.api.bodies.inflight.used.Load(); used != 0 {
			t.Fatalf("%d bytes are still reserved", used)
		}
		lines, whole := record.List{Limits: a.api.limits}, record.List{Limits: a.api.limits}
		if len(body) > 1<<16 || !lines.IsLines(&whole, body) {
			return
		}
		request := protocol.Request{Path: []byte("/log/batch"), Header: fields{}}
		exchange, bad := protocol.Native{}.Open(request)
		if bad != nil {
			t.Fatal(bad)
		}
		inParts, atOnce := exchange.Answer(nil, request, protocol.Outcome{Records: &lines}), exchange.Answer(nil, request, protocol.Outcome{Records: &whole})
		if resp.StatusCode != atOnce.Status || !bytes.Equal(answer, inParts.Body) && !bytes.Equal(answer, atOnce.Body) {
			t.Errorf("got %d %s, want %d %s", resp.StatusCode, answer, atOnce.Status, inParts.Body)
		}
	})
}
