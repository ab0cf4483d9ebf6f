package api

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/api/front"
	"millrace/api/publish"
	"millrace/internal/broker"
	"millrace/internal/config"
	"millrace/internal/frame"
	"millrace/internal/testenv"
)

// testAPI is a running API and what tests need of it.
type testAPI struct {
	encodings []string // content encodings of the frames that were read
	url       string
	broker    config.Broker
	client    *http.Client
	stop      func() error // stops the API and waits for it; may be called again
}

// start runs an API on the real broker, with a queue prefix of its own, and waits until it is ready. mend changes the
// settings.
func start(t *testing.T, mend func(*Config)) *testAPI {
	t.Helper()
	return startOn(t, testenv.Broker(t, 2), mend)
}

// startOn is start with a broker of the test's own choice.
func startOn(t *testing.T, b config.Broker, mend func(*Config)) *testAPI {
	t.Helper()
	a := listenOn(t, b, mend)
	testenv.Eventually(t, 30*time.Second, "the API is ready", func() bool { return a.get(t, "/ready").status == http.StatusOK })
	return a
}

// listenOn is startOn for an API that need not become ready.
func listenOn(t *testing.T, b config.Broker, mend func(*Config)) *testAPI {
	t.Helper()
	c := defaults(t)
	c.Broker = b
	if mend != nil {
		mend(&c)
	}
	listening := make(chan net.Addr, 1)
	c.OnListen = func(a net.Addr) { listening <- a }
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, c) }()
	transport := &http.Transport{DisableCompression: true}
	a := &testAPI{broker: c.Broker, client: &http.Client{Transport: transport}, stop: sync.OnceValue(func() error {
		cancel()
		transport.CloseIdleConnections()
		return <-done
	})}
	t.Cleanup(func() {
		if err := a.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	select {
	case addr := <-listening:
		a.url = "http://" + addr.String()
	case err := <-done:
		done <- err // for stop
		t.Fatalf("Run: %v", err)
	}
	return a
}

// defaults returns the default settings, with a quiet log and an address of the kernel's choice.
func defaults(t testing.TB) Config {
	t.Helper()
	var c Config
	if err := config.LoadFrom(nil, &c); err != nil {
		t.Fatal(err)
	}
	c.Addr = "127.0.0.1:0"
	c.ShutdownDelay = 0
	c.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	return c
}

type response struct {
	status int
	header http.Header
	body   string
}

func (a *testAPI) get(t testing.TB, path string) response {
	t.Helper()
	return a.do(t, http.MethodGet, path, nil, nil)
}

func (a *testAPI) post(t testing.TB, path string, body []byte, header http.Header) response {
	t.Helper()
	return a.do(t, http.MethodPost, path, bytes.NewReader(body), header)
}

func (a *testAPI) do(t testing.TB, method, path string, body io.Reader, header http.Header) response {
	t.Helper()
	req, err := http.NewRequest(method, a.url+path, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header.Clone()
	if req.Header == nil {
		req.Header = http.Header{}
	}
	resp, err := a.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() // read to its end
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response{resp.StatusCode, resp.Header, string(b)}
}

// published empties the queues and returns their records by id.
func (a *testAPI) published(t testing.TB) map[uuid.UUID]string {
	t.Helper()
	records := make(map[uuid.UUID]string)
	for _, s := range a.spans(t) {
		for k, line := range strings.Split(strings.TrimSuffix(string(s.Body), "\n"), "\n") {
			id := frame.ID(s.Base, k)
			if _, there := records[id]; there {
				t.Errorf("two records have the id %s", id)
			}
			records[id] = line
		}
	}
	return records
}

// spans empties the queues and returns the segments that were in them. Nothing may be published meanwhile.
func (a *testAPI) spans(t testing.TB) []frame.Span {
	t.Helper()
	ch := testenv.Channel(t, a.broker)
	topology := broker.NewTopology(a.broker)
	var spans []frame.Span
	take := func(d amqp.Delivery) {
		if d.Type == "" && string(d.Body) == publish.ProbeBody {
			return
		}
		if d.Type != frame.Type || d.ContentType != frame.ContentType || d.DeliveryMode != amqp.Persistent {
			t.Errorf("a message has type %q, content type %q, delivery mode %d", d.Type, d.ContentType, d.DeliveryMode)
		}
		body, err := frame.Decompress(d.ContentEncoding, d.Body)
		if err == nil {
			spans, err = frame.Parse(spans, d.Headers, body)
		}
		if err != nil {
			t.Errorf("frame: %v", err)
		}
		a.encodings = append(a.encodings, d.ContentEncoding)
	}
	for i := range topology.Shards() {
		for {
			// A queue counts no messages if its leader is slow to answer. A Get waits for the leader.
			d, ok, err := ch.Get(topology.Queue(i), true)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			take(d)
			q, err := ch.QueueDeclarePassive(topology.Queue(i), true, false, false, false, nil)
			if err != nil {
				t.Fatal(err)
			}
			// A consumer takes many at a time: a busy machine needs minutes for thousands of Gets.
			deliveries, err := ch.Consume(q.Name, t.Name(), true, false, false, false, nil)
			if err != nil {
				t.Fatal(err)
			}
			for range q.Messages {
				take(<-deliveries)
			}
			if err := ch.Cancel(t.Name(), false); err != nil {
				t.Fatal(err)
			}
			for d := range deliveries {
				take(d)
			}
		}
	}
	return spans
}

func TestFramesAreCompressedAsTheSettingSays(t *testing.T) {
	for _, how := range []string{"none", "s2", "zstd"} {
		a := start(t, func(c *Config) { c.FrameCompression = how })
		line := `{"level":"info","message":"` + strings.Repeat("again ", 20) + `"}`
		if got := a.post(t, "/log/batch", []byte(strings.Repeat(line+"\n", 100)), nil); got.status != http.StatusAccepted {
			t.Fatalf("%s: got %d %s", how, got.status, got.body)
		}
		records := a.published(t)
		for id, record := range records {
			if record != line {
				t.Errorf("%s: %s is %s", how, id, record)
			}
		}
		want := []string{strings.TrimPrefix(how, "none")}
		if diff := cmp.Diff(want, a.encodings); diff != "" || len(records) != 100 {
			t.Errorf("%s: %d records, encodings (-want +got):\n%s", how, len(records), diff)
		}
	}
}

func encode(t testing.TB, encoding string, body []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	var err error
	switch encoding {
	case "gzip":
		w = gzip.NewWriter(&b)
	case "zstd":
		w, err = zstd.NewWriter(&b)
	case "snappy":
		return s2.EncodeSnappy(nil, body)
	case "deflate":
		w = zlib.NewWriter(&b)
	case "raw deflate":
		w, err = flate.NewWriter(&b, flate.DefaultCompression)
	default:
		return body
	}
	if err == nil {
		_, err = w.Write(body)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestOneRecordIsPublishedUnderTheIDThatTheClientGets(t *testing.T) {
	a := start(t, nil)
	before := time.Now().Add(-time.Millisecond)
	got := a.post(t, "/log", []byte(" {\"level\": \"info\",\n \"message\": \"a b\"} "), nil)
	if got.status != http.StatusAccepted || got.header.Get("Content-Type") != "application/json" {
		t.Fatalf("got %d %s %s, want 202 and JSON", got.status, got.header.Get("Content-Type"), got.body)
	}
	var answer struct{ ID uuid.UUID }
	if err := json.Unmarshal([]byte(got.body), &answer); err != nil {
		t.Fatal(err)
	}
	if at := frame.Time(answer.ID); !frame.IsV7(answer.ID) || at.Before(before) || at.After(time.Now()) {
		t.Errorf("id %s is of %v, want a UUIDv7 of now", answer.ID, at)
	}
	want := map[uuid.UUID]string{answer.ID: `{"level":"info","message":"a b"}`}
	if diff := cmp.Diff(want, a.published(t)); diff != "" {
		t.Errorf("published (-want +got):\n%s", diff)
	}
}

func TestABatchIsTakenInAllFormsAndEncodings(t *testing.T) {
	a := start(t, nil)
	var objects []string
	for i := range 700 { // several segments of 64 KiB
		objects = append(objects, fmt.Sprintf(`{"n":%d,"text":%q}`, i, strings.Repeat("x", 300)))
	}
	forms := map[string]string{
		"NDJSON":           strings.Join(objects, "\n") + "\n",
		"NDJSON, CRLF":     strings.Join(objects, "\r\n\r\n"),
		"array":            "[" + strings.Join(objects, " , ") + "]",
		"concatenated":     strings.Join(objects, ""),
		"over many lines":  strings.ReplaceAll(strings.Join(objects, "\n"), ",", ",\n  "),
		"gzip":             strings.Join(objects, "\n"),
		"zstd":             strings.Join(objects, "\n"),
		"deflate":          strings.Join(objects, "\n"),
		"snappy":           strings.Join(objects, "\n"),
		"raw deflate":      strings.Join(objects, "\n"),
		"small deflate":    strings.Join(objects[:1], "\n"),
		"identity":         strings.Join(objects, "\n"),
		"two gzip members": strings.Join(objects, "\n"),
	}
	for name, text := range forms {
		t.Run(name, func(t *testing.T) {
			body, header := []byte(text), http.Header{}
			switch name {
			case "gzip", "zstd", "deflate", "raw deflate", "snappy", "identity":
				body = encode(t, name, body)
				header.Set("Content-Encoding", strings.TrimPrefix(name, "raw "))
			case "small deflate": // zlib with a window of 512 bytes, as its header says
				body = encode(t, "deflate", body)
				body[0], body[1] = 0x18, 0x19
				header.Set("Content-Encoding", "deflate")
			case "two gzip members":
				half := bytes.IndexByte(body, '\n')
				body = append(encode(t, "gzip", body[:half]), encode(t, "gzip", body[half:])...)
				header.Set("Content-Encoding", "gzip")
			}
			got := a.post(t, "/log/batch?ids=true", body, header)
			var answer struct {
				Accepted, Rejected int
				IDs                []uuid.UUID
			}
			if err := json.Unmarshal([]byte(got.body), &answer); err != nil {
				t.Fatalf("%v: %s", err, got.body)
			}
			sent := len(objects)
			if name == "small deflate" {
				sent = 1
			}
			if got.status != http.StatusAccepted || answer.Accepted != sent || answer.Rejected != 0 {
				t.Fatalf("got %d %.100s, want 202 with %d accepted", got.status, got.body, sent)
			}
			want := make(map[uuid.UUID]string)
			for i, id := range answer.IDs {
				want[id] = objects[i]
			}
			if diff := cmp.Diff(want, a.published(t)); diff != "" {
				t.Errorf("published (-want +got):\n%.2000s", diff)
			}
		})
	}
}

func TestWhatIsRefusedIsRefusedWithStatusReasonAndPlace(t *testing.T) {
	a := start(t, nil)
	gz := http.Header{"Content-Encoding": {"gzip"}}
	bomb := bytes.Repeat(encode(t, "gzip", bytes.Repeat([]byte(" "), 1<<20)), 1<<10) // 1 MiB that decodes to 1 GiB
	tests := []struct {
		name   string
		path   string
		body   string
		header http.Header
		status int
		want   []string
	}{
		{"truncated JSON", "/log", `{"a":"b`, nil, 400, []string{"end of body", "at byte 7"}},
		{"NUL", "/log", `{"a":"x\u0000"}`, nil, 400, []string{`\\u0000`, "at byte 7"}},
		{"lone surrogate", "/log", `{"a":"\ud800"}`, nil, 400, []string{"surrogate", "at byte 6"}},
		{"invalid UTF-8", "/log", "{\"a\":\"\xff\"}", nil, 400, []string{"UTF-8", "at byte 6"}},
		{"number too large", "/log", `{"a":1e400000}`, nil, 400, []string{"1e400000", "numeric", "at byte 5"}},
		{"depth 129", "/log", strings.Repeat(`{"a":`, 129) + "1" + strings.Repeat("}", 129), nil, 400, []string{"128", "at byte 640"}},
		{"bare number", "/log", `42`, nil, 400, []string{"not an object", "at byte 0"}},
		{"array for one record", "/log", `[{"a":1}]`, nil, 400, []string{"not an object", "at byte 0"}},
		{"two for one", "/log", `{"a":1}{"a":2}`, nil, 400, []string{"at byte 7"}},
		{"empty", "/log", ``, nil, 400, []string{"empty"}},
		{"empty batch", "/log/batch", "\n \n", nil, 400, []string{"empty"}},
		{"UTF-16", "/log/batch", "\xff\xfe{\x00}\x00", nil, 400, []string{"looks like UTF-16", "send UTF-8"}},
		{"gzip that is not said to be", "/log/batch", string(encode(t, "gzip", []byte(`{"a":1}`))), nil, 400, []string{"looks like gzip", "Content-Encoding: gzip"}},
		{"zstd that is not said to be", "/log", string(encode(t, "zstd", []byte(`{"a":1}`))), nil, 400, []string{"looks like zstd", "Content-Encoding: zstd"}},
		{"zlib that is not said to be", "/log", string(encode(t, "deflate", []byte(`{"a":1}`))), nil, 400, []string{"looks like zlib", "Content-Encoding: deflate"}},
		{"17 MiB", "/log", `{"a":"` + strings.Repeat("x", 17<<20) + `"}`, nil, 413, []string{"16777216"}},
		{"record too large", "/log", `{"a":"` + strings.Repeat("x", 1<<20) + `"}`, nil, 413, []string{"1048576"}},
		{"decodes to 1 GiB", "/log/batch", string(bomb), gz, 413, []string{"16777216"}},
		{"unknown encoding", "/log", `{}`, http.Header{"Content-Encoding": {"br"}}, 415, []string{`\"br\"`, "gzip, zstd, deflate"}},
		{"two encodings", "/log", `{}`, http.Header{"Content-Encoding": {"gzip, zstd"}}, 415, []string{"gzip, zstd"}},
		{"not gzip", "/log", `{"a":1}`, gz, 400, []string{"not gzip"}},
		{"not zstd", "/log", `{"a":1}`, http.Header{"Content-Encoding": {"zstd"}}, 400, []string{"not zstd"}},
		{"not deflate", "/log", `{"a":1}`, http.Header{"Content-Encoding": {"deflate"}}, 400, []string{"not deflate"}},
		{"not snappy", "/log", `{"a":1}`, http.Header{"Content-Encoding": {"snappy"}}, 400, []string{"not snappy"}},
		{"snappy of 1 GiB", "/log", "\x80\x80\x80\x80\x04" + strings.Repeat("x", 100), http.Header{"Content-Encoding": {"snappy"}}, 400, []string{"says that they hold 1073741824"}},
		{"more after deflate", "/log", string(encode(t, "deflate", []byte(`{}`))) + "x", http.Header{"Content-Encoding": {"deflate"}}, 400, []string{"follows its end"}},
		{"two encodings in two lines", "/log", `{}`, http.Header{"Content-Encoding": {"gzip", "identity"}}, 415, []string{"gzip, identity"}},
		{"truncated gzip", "/log", string(encode(t, "gzip", []byte(`{"a":1}`))[:20]), gz, 400, []string{"not gzip"}},
		{"broken array", "/log/batch", `[{"a":1},{"a":2]`, nil, 400, []string{"at byte 15"}},
		{"key of another version", "/log", `{}`, http.Header{"Idempotency-Key": {"6ba7b810-9dad-11d1-80b4-00c04fd430c8"}}, 400, []string{"UUIDv7"}},
		{"key that is no UUID", "/log", `{}`, http.Header{"Idempotency-Key": {"abc"}}, 400, []string{"abc", "UUIDv7"}},
		{"key of 25 h ago", "/log", `{}`, http.Header{"Idempotency-Key": {keyAt(-25 * time.Hour)}}, 400, []string{"24 h"}},
		{"key of tomorrow", "/log", `{}`, http.Header{"Idempotency-Key": {keyAt(24 * time.Hour)}}, 400, []string{"future"}},
		{"unknown parameter", "/log/batch?id=true", `{}`, nil, 400, []string{`\"id\"`}},
		{"ids=maybe", "/log/batch?ids=maybe", `{}`, nil, 400, []string{"maybe", "true or false"}},
		{"unknown path", "/logs", `{}`, nil, 404, []string{"/logs", "POST /log"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := a.post(t, tt.path, []byte(tt.body), tt.header)
			if got.status != tt.status || !json.Valid([]byte(got.body)) || !strings.HasPrefix(got.body, `{"error":"`) {
				t.Fatalf("got %d %s, want %d and an error in JSON", got.status, got.body, tt.status)
			}
			for _, want := range tt.want {
				if !strings.Contains(got.body, want) {
					t.Errorf("got %s, want it to say %s", got.body, want)
				}
			}
		})
	}
	if left := a.published(t); len(left) > 0 {
		t.Errorf("of the refused requests %d records were published", len(left))
	}
}

func keyAt(ago time.Duration) string {
	id := frame.NewBase()
	ms := time.Now().Add(ago).UnixMilli()
	for i := range 6 {
		id[i] = byte(ms >> (8 * (5 - i)))
	}
	return id.String()
}

func TestABadRecordHarmsNoOther(t *testing.T) {
	a := start(t, nil)
	for name, body := range map[string]string{
		"NDJSON": "{\"n\":1}\n{\"n\":\"\\u0000\"}\n{\"n\":2,}\n5\n{\"n\":3}\n",
		"array":  `[{"n":1},{"n":"\u0000"},[2],5,{"n":3}]`,
	} {
		t.Run(name, func(t *testing.T) {
			got := a.post(t, "/log/batch", []byte(body), nil)
			var answer struct {
				Accepted, Rejected int
				Errors             []struct {
					Index int
					Error string
				}
			}
			if err := json.Unmarshal([]byte(got.body), &answer); err != nil {
				t.Fatal(err)
			}
			if got.status != http.StatusMultiStatus || answer.Accepted != 2 || answer.Rejected != 3 || len(answer.Errors) != 3 {
				t.Fatalf("got %d %s, want 207, 2 accepted and 3 rejected", got.status, got.body)
			}
			for i, e := range answer.Errors {
				if e.Index != i+1 || e.Error == "" {
					t.Errorf("error %d is %+v, want index %d and a reason", i, e, i+1)
				}
			}
			stored := a.published(t)
			for _, want := range []string{`{"n":1}`, `{"n":3}`} {
				found := 0
				for _, record := range stored {
					if record == want {
						found++
					}
				}
				if found != 1 {
					t.Errorf("%s was published %d times", want, found)
				}
			}
			if len(stored) != 2 {
				t.Errorf("%d records were published, want 2", len(stored))
			}
		})
	}
	t.Run("all bad", func(t *testing.T) {
		got := a.post(t, "/log/batch", []byte("1\n2\n"), nil)
		if got.status != http.StatusBadRequest || !strings.HasPrefix(got.body, `{"accepted":0,"rejected":2,"errors":[{"index":0,`) {
			t.Errorf("got %d %s, want 400 in the form of a batch", got.status, got.body)
		}
	})
	t.Run("none at all", func(t *testing.T) {
		got := a.post(t, "/log/batch", []byte("[ ]"), nil)
		if got.status != http.StatusAccepted || got.body != `{"accepted":0,"rejected":0}` {
			t.Errorf("got %d %s, want 202 with nothing accepted", got.status, got.body)
		}
	})
}

func TestAKeyedRequestMakesTheSameSegmentsEveryTime(t *testing.T) {
	var objects []string
	for i := range 1000 {
		objects = append(objects, fmt.Sprintf(`{"n":%d,"text":%q}`, i, strings.Repeat("x", i%700)))
	}
	key := keyAt(-time.Hour)
	segments := func(frameBytes config.Bytes, path, body string) []frame.Span {
		a := start(t, func(c *Config) { c.FrameBytes = frameBytes })
		var others sync.WaitGroup
		for range 4 { // requests that share its frames
			others.Go(func() { a.post(t, "/log", []byte(`{"other":true}`), nil) })
		}
		got := a.post(t, path, []byte(body), http.Header{"Idempotency-Key": {key}})
		others.Wait()
		if got.status != http.StatusAccepted {
			t.Fatalf("got %d %s", got.status, got.body)
		}
		var own []frame.Span
		for _, s := range a.spans(t) {
			if !strings.HasPrefix(string(s.Body), `{"other":true}`) {
				own = append(own, s)
			}
		}
		return own
	}
	byBase := cmp.Transformer("byBase", func(spans []frame.Span) map[string]string {
		m := make(map[string]string)
		for _, s := range spans {
			m[s.Base.String()] = fmt.Sprintf("%d records, %d bytes", s.Records, len(s.Body))
		}
		return m
	})
	first := segments(64<<10, "/log/batch", strings.Join(objects, "\n"))
	again := segments(1<<10, "/log/batch?ids=true", "[ "+strings.Join(objects, " ,\n")+" ]")
	if diff := cmp.Diff(first, again, byBase); diff != "" {
		t.Errorf("segments of the second try (-first +second):\n%s", diff)
	}
	if len(first) < 3 {
		t.Errorf("the request made %d segments, want several", len(first))
	}
	if base := frame.BaseOfKey(uuid.MustParse(key)).String(); !strings.Contains(fmt.Sprint(first), base) {
		t.Errorf("no segment starts at %s, the base of the key %s", base, key)
	}
}

// TestNeighbouringKeysNeverShareAnID sends keys that differ by one, as generators of UUIDv7 make them within a
// millisecond.
func TestNeighbouringKeysNeverShareAnID(t *testing.T) {
	a := start(t, nil)
	key := uuid.MustParse(keyAt(-time.Hour))
	next := frame.ID(key, 1)
	post := func(key uuid.UUID, body string) []uuid.UUID {
		t.Helper()
		var got struct{ IDs []uuid.UUID }
		r := a.post(t, "/log/batch?ids=true", []byte(body), http.Header{"Idempotency-Key": {key.String()}})
		if err := json.Unmarshal([]byte(r.body), &got); err != nil || r.status != http.StatusAccepted {
			t.Fatalf("got %d %s", r.status, r.body)
		}
		return got.IDs
	}
	body := strings.Repeat("{}\n", 5)
	first, second := post(key, body), post(next, body)
	for _, id := range second {
		if slices.Contains(first, id) {
			t.Errorf("a record of %s and one of %s have the id %s", key, next, id)
		}
	}
	if again := post(key, body); !slices.Equal(again, first) {
		t.Errorf("sent again, the records have the ids %s, not %s", again, first)
	}
}

// raw sends a request that net/http would not send, ends its side of the connection, and returns the answer.
func (a *testAPI) raw(t testing.TB, request string) string {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(a.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() // read to its end
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestABodyCutShortIsRefused(t *testing.T) {
	a := start(t, nil)
	lines := strings.Repeat(`{"a":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"}`+"\n", 1000)
	for name, request := range map[string]string{
		"plain":   fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(lines)+20_000, lines),
		"chunked": fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", len(lines), lines),
		"gzip":    fmt.Sprintf("Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", 1<<20, encode(t, "gzip", []byte(lines))),
	} {
		got := a.raw(t, "POST /log/batch HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"+request)
		if !strings.HasPrefix(got, "HTTP/1.1 400 ") {
			t.Errorf("%s: got %.200s, want 400", name, got)
		}
	}
	if n := len(a.published(t)); n > 0 {
		t.Errorf("%d records of bodies cut short were published", n)
	}
}

func TestAnUploadMayTakeLongerThanConfirms(t *testing.T) {
	a := start(t, func(c *Config) { c.ConfirmTimeout = 200 * time.Millisecond })
	body, send := io.Pipe()
	go func() {
		for range 30 {
			_, _ = io.WriteString(send, `{"a":"`+strings.Repeat("x", 10_000)+`"}`+"\n")
			time.Sleep(20 * time.Millisecond) // the slow client
		}
		_ = send.Close()
	}()
	if got := a.do(t, http.MethodPost, "/log/batch", body, nil); got.status != http.StatusAccepted {
		t.Errorf("got %d %s, want 202", got.status, got.body)
	}
}

func TestExpectIsAnsweredBeforeTheBody(t *testing.T) {
	a := start(t, nil)
	for request, want := range map[string]string{
		"POST /log HTTP/1.1\r\nContent-Length: 20000000": "HTTP/1.1 413 ",
		"PUT /log HTTP/1.1\r\nContent-Length: 2":         "HTTP/1.1 405 ",
		"POST /nowhere HTTP/1.1\r\nContent-Length: 2":    "HTTP/1.1 404 ",
	} {
		if got := a.raw(t, request+"\r\nHost: x\r\nExpect: 100-continue\r\n\r\n"); !strings.HasPrefix(got, want) {
			t.Errorf("%s: got %.100s, want %s", request, got, want)
		}
	}
	got := a.raw(t, "POST /log HTTP/1.1\r\nContent-Length: 7\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\n\r\n{\"a\":1}")
	if !strings.HasPrefix(got, "HTTP/1.1 100 ") || !strings.Contains(got, "HTTP/1.1 202 ") {
		t.Errorf("got %s, want 100 and 202", got)
	}
}

func TestARequestThatCantBeReadIsNotQuoted(t *testing.T) {
	a := start(t, nil)
	got := a.raw(t, "POST /log HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer mr_SECRET\r\nContent-Length: x\r\n\r\n{}")
	if !strings.HasPrefix(got, "HTTP/1.1 400 ") || strings.Contains(got, "SECRET") {
		t.Errorf("got %s, want 400 without the request's own header", got)
	}
}

func TestMethodsAndLengths(t *testing.T) {
	a := start(t, nil)
	for path, want := range map[string]string{"/log": "POST", "/log/batch": "POST, PUT"} {
		got := a.get(t, path)
		if got.status != http.StatusMethodNotAllowed || got.header.Get("Allow") != want {
			t.Errorf("GET %s: got %d, Allow %q, want 405, %s", path, got.status, got.header.Get("Allow"), want)
		}
	}
	if got := a.do(t, http.MethodPut, "/log/batch", strings.NewReader(`{"a":1}`), nil); got.status != http.StatusAccepted {
		t.Errorf("PUT /log/batch: got %d %s, want 202", got.status, got.body)
	}
	got := a.do(t, http.MethodDelete, "/health", nil, nil)
	if got.status != http.StatusMethodNotAllowed || got.header.Get("Allow") != "GET, HEAD" {
		t.Errorf("DELETE /health: got %d, Allow %q, want 405", got.status, got.header.Get("Allow"))
	}
	if got := a.raw(t, "POST /log HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 411 ") {
		t.Errorf("no length: got %s, want 411", got)
	}
	chunked := "POST /log HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"a\":\r\n2\r\n1}\r\n0\r\n\r\n"
	if got := a.raw(t, chunked); !strings.HasPrefix(got, "HTTP/1.1 202 ") {
		t.Errorf("chunked: got %s, want 202", got)
	}
	if got := a.raw(t, "POST /log HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", front.HeaderBytes)+"\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 431 ") {
		t.Errorf("large header: got %.100s, want 431", got)
	}
}

func TestHealthReadyAndMetricsTellTheTruth(t *testing.T) {
	a := start(t, nil)
	a.post(t, "/log", []byte(`{"a":1}`), nil)
	a.post(t, "/log", []byte(`[1]`), nil)
	if got := a.get(t, "/health"); got.status != http.StatusOK {
		t.Errorf("/health: got %d %s", got.status, got.body)
	}
	got := a.get(t, "/metrics")
	for _, want := range []string{
		`millrace_api_requests_total{code="202",intake="native",route="/log"} 1`,
		`millrace_api_requests_total{code="400",intake="native",route="/log"} 1`,
		`millrace_api_records_accepted_total{intake="native"} 1`,
		`millrace_api_records_rejected_total{intake="native",reason="not_object"} 1`,
		`millrace_api_inflight_bytes 0`,
		`millrace_api_request_seconds_count{route="/log"} 2`,
		`millrace_api_publish_confirm_seconds_count 1`,
		`millrace_api_frame_records_sum 1`,
		`millrace_broker_connected 1`,
		`millrace_broker_blocked 0`,
		`go_goroutines`,
	} {
		if !strings.Contains(got.body, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
}

func TestAMessageThatIsNotRoutedIsNotAcked(t *testing.T) {
	a := start(t, func(c *Config) { c.Shards, c.PublishConnections = 1, 1 })
	topology := broker.NewTopology(a.broker)
	ch := testenv.Channel(t, a.broker)
	if _, err := ch.QueueDelete(topology.Queue(0), false, false, false); err != nil {
		t.Fatal(err)
	}
	got := a.post(t, "/log", []byte(`{"a":1}`), nil)
	if got.status != http.StatusAccepted {
		t.Fatalf("got %d %s, want 202 after the queue was declared anew", got.status, got.body)
	}
	if n := len(a.published(t)); n != 1 {
		t.Errorf("%d records were published, want 1", n)
	}
}

// If the queue that workers read is gone, somebody's tap must not count as a queue. RabbitMQ returns only messages that no
// queue at all took.
func TestWhatAnotherProgramsQueueTakesIsNotAcked(t *testing.T) {
	for name, tap := range map[string]func(t *testing.T, ch *amqp.Channel, exchange, queue string){
		"a queue bound to the exchange": func(t *testing.T, ch *amqp.Channel, exchange, queue string) {
			q, err := ch.QueueDeclare("", false, true, true, false, nil)
			if err == nil {
				err = ch.QueueBind(q.Name, queue, exchange, false, nil)
			}
			if err != nil {
				t.Fatal(err)
			}
		},
		"an exchange bound to the exchange": func(t *testing.T, ch *amqp.Channel, exchange, queue string) {
			q, err := ch.QueueDeclare("", false, true, true, false, nil)
			if err == nil {
				fan := testenv.Name() // goes with its last queue
				err = errors.Join(ch.ExchangeDeclare(fan, amqp.ExchangeFanout, false, true, false, false, nil),
					ch.QueueBind(q.Name, "", fan, false, nil), ch.ExchangeBind(fan, queue, exchange, false, nil))
			}
			if err != nil {
				t.Fatal(err)
			}
		},
	} {
		for what, lose := range map[string]func(ch *amqp.Channel, exchange, queue string) error{
			"unbound": func(ch *amqp.Channel, exchange, queue string) error {
				return ch.QueueUnbind(queue, queue, exchange, nil)
			},
			"deleted": func(ch *amqp.Channel, _, queue string) error {
				_, err := ch.QueueDelete(queue, false, false, false)
				return err
			},
		} {
			t.Run(name+", ours "+what, func(t *testing.T) {
				a := start(t, func(c *Config) { c.Shards, c.PublishConnections = 1, 1 })
				topology := broker.NewTopology(a.broker)
				ch := testenv.Channel(t, a.broker)
				tap(t, ch, topology.Exchange(), topology.Queue(0))
				if err := lose(ch, topology.Exchange(), topology.Queue(0)); err != nil {
					t.Fatal(err)
				}
				got := a.post(t, "/log", []byte(`{"a":1}`), nil)
				if got.status != http.StatusAccepted {
					t.Fatalf("got %d %s, want 202", got.status, got.body)
				}
				if n := len(a.published(t)); n != 1 {
					t.Errorf("%d records are on the queue that was acked for, want 1", n)
				}
			})
		}
	}
}

// RabbitMQ confirms what a queue of that name takes, whatever kind of queue it is and however short its life.
func TestAQueueOfAnotherKindInThePlaceOfOursIsNoticed(t *testing.T) {
	for name, declare := range map[string]func(ch *amqp.Channel, queue string) error{
		"a transient classic queue": func(ch *amqp.Channel, queue string) error {
			_, err := ch.QueueDeclare(queue, false, false, false, false, nil)
			return err
		},
		"a durable classic queue": func(ch *amqp.Channel, queue string) error {
			_, err := ch.QueueDeclare(queue, true, false, false, false, nil)
			return err
		},
		"a queue for one connection": func(ch *amqp.Channel, queue string) error {
			_, err := ch.QueueDeclare(queue, false, false, true, false, nil)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := start(t, func(c *Config) { c.Shards, c.PublishConnections = 1, 2 })
			queue := broker.NewTopology(a.broker).Queue(0)
			ch := testenv.Channel(t, a.broker)
			remove := func() {
				if _, err := ch.QueueDelete(queue, false, false, false); err != nil {
					t.Fatal(err)
				}
			}
			remove()
			if err := declare(ch, queue); err != nil {
				t.Fatal(err)
			}
			testenv.Eventually(t, 30*time.Second, "nothing is accepted", func() bool {
				return a.post(t, "/log", []byte(`{"a":1}`), nil).status == http.StatusServiceUnavailable
			})
			testenv.Eventually(t, 30*time.Second, "/ready names the queue", func() bool {
				got := a.get(t, "/ready")
				return got.status == http.StatusServiceUnavailable && strings.Contains(got.body, queue)
			})
			remove()
			testenv.Eventually(t, 30*time.Second, "records are accepted again", func() bool {
				return a.post(t, "/log", []byte(`{"a":1}`), nil).status == http.StatusAccepted
			})
			if len(a.published(t)) == 0 {
				t.Error("what was accepted last is not on our queue")
			}
		})
	}
}

// Frames do not need the exchange, which is for other programs' messages.
func TestAnExchangeThatIsGoneStopsNothing(t *testing.T) {
	a := start(t, func(c *Config) { c.Shards, c.PublishConnections = 1, 1 })
	topology := broker.NewTopology(a.broker)
	ch := testenv.Channel(t, a.broker)
	if err := ch.ExchangeDelete(topology.Exchange(), false, false); err != nil {
		t.Fatal(err)
	}
	if got := a.post(t, "/log", []byte(`{"a":1}`), nil); got.status != http.StatusAccepted {
		t.Errorf("got %d %s, want 202", got.status, got.body)
	}
	if n := len(a.published(t)); n != 1 {
		t.Errorf("%d records were published, want 1", n)
	}
}

func TestBindingsThatWereTakenAwayAreMadeAgainForOtherPrograms(t *testing.T) {
	a := start(t, func(c *Config) { c.Shards = 2 })
	topology := broker.NewTopology(a.broker)
	ch := testenv.Channel(t, a.broker)
	for i := range 2 {
		if err := ch.QueueUnbind(topology.Queue(i), topology.Queue(i), topology.Exchange(), nil); err != nil {
			t.Fatal(err)
		}
	}
	startOn(t, a.broker, nil) // connects anew
	returned := ch.NotifyReturn(make(chan amqp.Return, 1))
	for i := range 2 {
		testenv.Eventually(t, 30*time.Second, "a message of another program is routed", func() bool {
			if err := ch.Publish(topology.Exchange(), topology.Queue(i), true, false, amqp.Publishing{}); err != nil {
				t.Fatal(err)
			}
			if _, err := ch.QueueDeclarePassive(topology.Queue(i), true, false, false, false, nil); err != nil {
				t.Fatal(err) // what was returned has come before the answer
			}
			select {
			case <-returned:
				return false
			default:
				return true
			}
		})
	}
}

func TestAStopBeforeTheStartEnds(t *testing.T) {
	c := defaults(t)
	c.URLs = config.BrokerURLs{"amqp://127.0.0.1:1/"}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for range 20 { // whatever the order of what happens
		if err := Run(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAFullQueueIsAnsweredAtOnce(t *testing.T) {
	a := start(t, func(c *Config) { c.Shards, c.MaxBytes, c.FrameCompression = 1, 1<<10, "none" })
	record := []byte(`{"a":"` + strings.Repeat("x", 2000) + `"}`)
	var got response
	for range 20 { // the limit is approximate
		if got = a.post(t, "/log", record, nil); got.status != http.StatusAccepted {
			break
		}
	}
	if got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") == "" || !strings.Contains(got.body, "queue is full") {
		t.Errorf("got %d %s %s, want 503 with Retry-After", got.status, got.header, got.body)
	}
	a.unavailable(t, "refused")
	a.published(t)
	if got := a.post(t, "/log", record, nil); got.status != http.StatusAccepted {
		t.Errorf("after the queue was emptied: got %d %s, want 202", got.status, got.body)
	}
}

// unavailable checks that the metrics count one request answered 503 for a reason.
func (a *testAPI) unavailable(t *testing.T, reason string) {
	t.Helper()
	if want := fmt.Sprintf("\nmillrace_api_unavailable_total{reason=%q} 1\n", reason); !strings.Contains(a.get(t, "/metrics").body, want) {
		t.Errorf("the metrics lack %q", want)
	}
}

func TestBytesUnderWayAreBounded(t *testing.T) {
	a := start(t, func(c *Config) { c.MaxInflightBytes, c.MaxBodyBytes = 1<<20+64<<10, 1<<20 })
	// One request holds a buffer of 1 MiB while the end of its body is still to come.
	hold, send := io.Pipe()
	held := make(chan response)
	go func() {
		held <- a.do(t, http.MethodPost, "/log", hold, nil)
	}()
	if _, err := send.Write(append([]byte(`{"a":1`), bytes.Repeat([]byte(" "), 900<<10)...)); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 5*time.Second, "the bytes are taken", func() bool {
		m := regexp.MustCompile(`(?m)^millrace_api_inflight_bytes (\S+)$`).FindStringSubmatch(a.get(t, "/metrics").body)
		n, err := strconv.ParseFloat(m[1], 64)
		return err == nil && n == 1<<20
	})
	record := []byte(`{"a":"` + strings.Repeat("x", 200<<10) + `"}`)
	got := a.post(t, "/log", record, nil)
	if got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") == "" || !strings.Contains(got.body, "MAX_INFLIGHT_BYTES") {
		t.Errorf("got %d %s %s, want 503, Retry-After and the setting's name", got.status, got.header, got.body)
	}
	a.unavailable(t, "inflight")
	if got := a.post(t, "/log", []byte(`{"a":1}`), nil); got.status != http.StatusAccepted {
		t.Errorf("a small record beside: got %d %s, want 202", got.status, got.body)
	}
	if _, err := send.Write([]byte("}")); err != nil {
		t.Fatal(err)
	}
	if err := send.Close(); err != nil {
		t.Error(err)
	}
	if got := <-held; got.status != http.StatusAccepted {
		t.Errorf("the slow one: got %d, want 202", got.status)
	}
	if got := a.post(t, "/log", record, nil); got.status != http.StatusAccepted {
		t.Errorf("afterwards: got %d %s, want 202", got.status, got.body)
	}
}

func TestStoppingAnswersWhatIsUnderWay(t *testing.T) {
	a := start(t, nil)
	var clients sync.WaitGroup
	var mu sync.Mutex
	acked := 0
	stopping := make(chan struct{})
	for range 16 {
		clients.Go(func() {
			for {
				resp, err := a.client.Post(a.url+"/log", "application/json", strings.NewReader(`{"a":1}`))
				if err != nil {
					return // the listener is closed
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode == http.StatusAccepted {
					mu.Lock()
					acked++
					if acked == 200 {
						close(stopping)
					}
					mu.Unlock()
				}
			}
		})
	}
	<-stopping
	if err := a.stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	clients.Wait()
	if n := len(a.published(t)); n != acked {
		t.Errorf("%d records were published, %d acked", n, acked)
	}
}

func TestWithoutABrokerTheAPISaysSo(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := ln.Addr().String()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	c := defaults(t)
	c.URLs = config.Brokers("amqp://" + nobody + "/")
	listening := make(chan net.Addr, 1)
	c.OnListen = func(a net.Addr) { listening <- a }
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, c) }()
	a := &testAPI{url: "http://" + (<-listening).String(), client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
	for _, got := range []response{a.get(t, "/ready"), a.post(t, "/log", []byte(`{}`), nil)} {
		if got.status != http.StatusServiceUnavailable || !strings.Contains(got.body, "no connection to RabbitMQ") {
			t.Errorf("got %d %s, want 503 and the reason", got.status, got.body)
		}
	}
	a.unavailable(t, "no_broker")
	if got := a.get(t, "/health"); got.status != http.StatusOK {
		t.Errorf("/health: got %d, want 200", got.status)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}
