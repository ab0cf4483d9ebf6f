package api

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/valyala/fasthttp"

	"millrace/api/protocol"
	"millrace/internal/cells"
	"millrace/internal/config"
	"millrace/internal/eventtime"
	"millrace/internal/frame"
	"millrace/internal/keys"
	"millrace/internal/record"
	"millrace/internal/scan"
	"millrace/internal/testenv"
)

func newRule(t testing.TB) *eventtime.Rule {
	t.Helper()
	rule, err := eventtime.New(eventtime.DefaultFields, nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return rule
}

// A record that has a name is known by it when it comes again, however old it has become meanwhile, within the clock's hour at least.
func TestARecordWithANameKeepsItsKey(t *testing.T) {
	key := func(came, now time.Time) uuid.UUID {
		return *baseOfName(nil, protocol.Request{Path: []byte("/upload")}, protocol.RecordName{Name: "s=1;i=1", At: came.UnixMilli()}, []byte("{}\n"), now)
	}
	hour := time.Date(2026, 11, 29, 10, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name          string
		came          time.Time
		first, second time.Duration // of the tries, since the hour began
		isSame        bool
	}{
		{"new", hour.Add(time.Minute), 2 * time.Minute, 20 * time.Hour, true},
		{"a day old between two tries of an hour", hour.Add(30*time.Minute - maxKeyAge), 29 * time.Minute, 31 * time.Minute, true},
		{"old", hour.Add(-7 * 24 * time.Hour), 0, time.Hour - 1, true},
		{"old, in another hour", hour.Add(-7 * 24 * time.Hour), 0, time.Hour, false},
		{"ahead", hour.Add(48 * time.Hour), 0, time.Hour - 1, true},
	} {
		if got := key(c.came, hour.Add(c.first)) == key(c.came, hour.Add(c.second)); got != c.isSame {
			t.Errorf("%s: the same key: %v", c.name, got)
		}
	}
}

// fields is a request's header.
type fields map[string]string

func (f fields) Peek(name string) []byte { return []byte(f[name]) }

func TestTheKeyOfABodyIsThatOfItsBytes(t *testing.T) {
	s := &server{times: newRule(t)}
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	at := func(d time.Duration) string { return now.Add(d).Format(time.RFC3339Nano) }
	body := `{"time":"` + at(-time.Minute) + `"}` + "\n" + `{"n":1}` + "\n" + `{"time":"` + at(-1500*time.Microsecond) + `"}` + "\n" + `{"time":"` + at(-time.Hour) + `"}` + "\n"
	one, two := &keys.Key{Name: "one"}, &keys.Key{Name: "two"}
	base := func(key *keys.Key, path, query string, h fields, body string) *uuid.UUID {
		t.Helper()
		records := &record.List{Limits: scan.Limits{RecordBytes: 1 << 10, PieceBytes: 1 << 10}}
		if err := records.Split([]byte(body)); err != nil {
			t.Fatal(err)
		}
		return s.keyOfBody(key, protocol.Request{Path: []byte(path), Query: []byte(query), Header: h}, []byte(body), records, now)
	}
	first := base(one, "/v1/logs", "", nil, body)
	if first == nil || !frame.IsV7(*first) || !frame.Time(*first).Equal(now.Add(-2*time.Millisecond)) {
		t.Fatalf("got %v, want the newest time, cut to milliseconds", first)
	}
	if again := base(one, "/v1/logs", "", nil, body); again == nil || *again != *first {
		t.Errorf("the same body again: got %v, want %v", again, first)
	}
	seen := map[uuid.UUID]string{*first: "the first"}
	for name, other := range map[string]*uuid.UUID{
		"another key":    base(two, "/v1/logs", "", nil, body),
		"no key":         base(nil, "/v1/logs", "", nil, body),
		"another path":   base(one, "/otlp/v1/logs", "", nil, body),
		"a query string": base(one, "/v1/logs", "fields=a=b", nil, body),
		"a field":        base(one, "/v1/logs", "", fields{"X-Fields": "a=b"}, body),
		"another body":   base(one, "/v1/logs", "", nil, body+"\n"),
	} {
		if other == nil || seen[*other] != "" {
			t.Errorf("%s: got %v, which is that of %s", name, other, seen[*other])
			continue
		}
		seen[*other] = name
	}
	for name, tt := range map[string]struct {
		body string
		want bool
	}{
		"no times":                {`{"message":"alive"}`, false},
		"times of no fields":      {`{"at":"` + at(0) + `"}`, false},
		"unreadable ones":         {`{"time":"now"}`, false},
		"nothing":                 {`{}`, false},
		"24 h ago":                {`{"time":"` + at(-24*time.Hour) + `"}`, true},
		"a millisecond more":      {`{"time":"` + at(-24*time.Hour-time.Millisecond) + `"}`, false},
		"5 minutes ahead":         {`{"time":"` + at(5*time.Minute) + `"}`, true},
		"a millisecond further":   {`{"time":"` + at(5*time.Minute+time.Millisecond) + `"}`, false},
		"one of them too far":     {`{"time":"` + at(0) + `"}{"time":"` + at(time.Hour) + `"}`, false},
		"one of them has a time":  {`{"a":1}{"ts":` + fmt.Sprint(now.Unix()) + `}`, true},
		"only the refused has it": {"{\"a\":1}\n{\"a\":\"\\u0000\",\"time\":\"" + at(0) + "\"}", false},
	} {
		if got := base(one, "/log/batch", "", nil, tt.body); (got != nil) != tt.want {
			t.Errorf("%s: got %v, want a key: %v", name, got, tt.want)
		}
	}
}

// sent is an answer to a request over a connection of a fuzzedAPI.
type sent struct {
	status int
	header http.Header
	body   string
}

// post sends a request to an API without servers.
func (a *fuzzedAPI) post(t *testing.T, path string, header http.Header, body string) sent {
	t.Helper()
	var wire bytes.Buffer
	fmt.Fprintf(&wire, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n", path, len(body))
	if err := header.Write(&wire); err != nil {
		t.Fatal(err)
	}
	wire.WriteString("\r\n" + body)
	conn := &written{in: bytes.NewReader(wire.Bytes())}
	_ = a.ServeConn(conn) // it says why the connection ended
	resp, err := http.ReadResponse(bufio.NewReader(&conn.out), nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return sent{resp.StatusCode, resp.Header, string(text)}
}

// ids returns the ids of an answer.
func (s sent) ids(t *testing.T) []uuid.UUID {
	t.Helper()
	var answer struct{ IDs []uuid.UUID }
	if err := json.Unmarshal([]byte(s.body), &answer); err != nil || len(answer.IDs) == 0 {
		t.Fatalf("got %d %s, want ids", s.status, s.body)
	}
	return answer.IDs
}

func TestABodyThatIsSentAgainHasTheSameIDs(t *testing.T) {
	a := newFuzzedAPI(t)
	a.api.derive(nil, newRule(t))
	body := fmt.Sprintf("{\"time\":%d}\n{\"a\":1}\n", time.Now().UnixMilli())
	one, other := http.Header{"X-Api-Key": {a.secret}}, http.Header{"X-Api-Key": {a.secret + "slow"}}
	same := func(path, body string, first, second http.Header) bool {
		t.Helper()
		return slices.Equal(a.post(t, path, first, body).ids(t), a.post(t, path, second, body).ids(t))
	}
	if !same("/log/batch?ids=true&dedupe=body", body, one, one) {
		t.Error("asked for in the query string: other ids")
	}
	asking := http.Header{"X-Api-Key": {a.secret}, "X-Dedupe": {"body"}}
	if !same("/log/batch?ids=true", body, asking, asking) {
		t.Error("asked for in a header: other ids")
	}
	if same("/log/batch?ids=true&dedupe=body", body, one, other) {
		t.Error("another key's client gets the same ids")
	}
	if same("/log/batch?ids=true&dedupe=body", "{\"a\":1}\n", one, one) {
		t.Error("bodies without times are merged")
	}
	if same("/log/batch?ids=true", body, one, one) {
		t.Error("bodies are merged though nobody asks for it")
	}
	a.api.derive([]string{"native"}, newRule(t))
	if !same("/log/batch?ids=true", body, one, one) {
		t.Error("DERIVE_KEYS has the protocol: other ids")
	}
	if same("/log/batch?ids=true&dedupe=none", body, one, one) {
		t.Error("bodies are merged though the client asks for the contrary")
	}
	key := frame.NewBase().String()
	keyed := http.Header{"X-Api-Key": {a.secret}, "Idempotency-Key": {key}}
	if got := a.post(t, "/log/batch?ids=true", keyed, body).ids(t)[0]; got != frame.BaseOfKey(uuid.MustParse(key)) {
		t.Errorf("the client's own key: got %s", got)
	}
	if got := a.post(t, "/log/batch?dedupe=maybe", one, body); got.status != 400 || got.body != `{"error":"dedupe: got \"maybe\", takes body or none"}` {
		t.Errorf("got %d %s", got.status, got.body)
	}
}

// requestNamed is an exchange that says what its request is called, and when it was made.
type requestNamed struct {
	protocol.Exchange
	id   string
	made time.Time
}

func (r requestNamed) Key() (string, int64) { return r.id, r.made.UnixMilli() }

func TestARequestWithANameHasTheKeyOfItsRecordsAndName(t *testing.T) {
	s := &server{times: newRule(t)}
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	base := func(id string, made time.Duration, query, records string) *uuid.UUID {
		t.Helper()
		list := &record.List{Limits: scan.Limits{RecordBytes: 1 << 10, PieceBytes: 1 << 10}}
		if err := list.Split([]byte(records)); err != nil {
			t.Fatal(err)
		}
		return s.keyOfRequest(nil, protocol.Request{Path: []byte("/firehose"), Query: []byte(query), Header: fields{}}, requestNamed{id: id, made: now.Add(made)}, list, now)
	}
	timed := `{"time":"` + now.Add(-time.Minute).Format(time.RFC3339Nano) + `"}`
	first := base("a", -time.Second, "", timed)
	if first == nil || !frame.Time(*first).Equal(now.Add(-time.Minute)) {
		t.Fatalf("got %v, want the newest time of the records", first)
	}
	if again := base("a", 0, "", timed); again == nil || *again != *first {
		t.Errorf("with another time of the request: got %v, want %v", again, first)
	}
	if plain := base("a", -time.Second, "", `{"a":1}`); plain == nil || !frame.Time(*plain).Equal(now.Add(-time.Second)) {
		t.Errorf("without times of the records: got %v, want the request's", plain)
	}
	if old := base("a", -time.Second, "", `{"time":"2025-01-01T00:00:00Z"}`); old == nil || !frame.Time(*old).Equal(now.Add(-time.Second)) {
		t.Errorf("with old records: got %v, want the request's time", old)
	}
	for name, other := range map[string]*uuid.UUID{"another name": base("b", -time.Second, "", timed), "other records": base("a", -time.Second, "", timed+timed)} {
		if other == nil || *other == *first {
			t.Errorf("%s: got %v", name, other)
		}
	}
	for name, none := range map[string]*uuid.UUID{
		"no name": base("", 0, "", timed), "dedupe=none": base("a", 0, "dedupe=none", timed), "25 h ago": base("a", -25*time.Hour, "", `{}`), "6 minutes ahead": base("a", 6*time.Minute, "", `{}`),
	} {
		if none != nil {
			t.Errorf("%s: got %v, want no key", name, none)
		}
	}
}

func TestAKeyIsTakenInEveryForm(t *testing.T) {
	a := newFuzzedAPI(t)
	encoded := func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
	for _, header := range []http.Header{
		{"Authorization": {"Bearer " + a.secret}}, {"Authorization": {"Splunk " + a.secret}}, {"Authorization": {"APIKey " + encoded("id:"+a.secret)}},
		{"Authorization": {"ApiKey " + a.secret}}, {"Authorization": {"Basic " + encoded("x:"+a.secret)}}, {"Authorization": {"Basic " + encoded(a.secret+":")}},
		{"X-API-Key": {a.secret}}, {"DD-API-KEY": {a.secret}}, {"X-Amz-Firehose-Access-Key": {a.secret}}, {"Authorization": {"Splunk x"}, "x-api-key": {a.secret}},
	} {
		if got := a.post(t, "/log", header, "{}"); got.status != http.StatusAccepted {
			t.Errorf("%v: got %d %s", header, got.status, got.body)
		}
	}
	for _, header := range []http.Header{{}, {"Authorization": {"Basic " + encoded("x:y")}}, {"Authorization": {"Digest " + a.secret}}} {
		got := a.post(t, "/log?api_key="+a.secret, header, "{}")
		if got.status != http.StatusUnauthorized || got.header.Get("WWW-Authenticate") != `Basic realm="millrace", Bearer` || strings.Contains(got.body, a.secret) {
			t.Errorf("%v: got %d %v %s", header, got.status, got.header, got.body)
		}
	}
}

func TestWhatShippersAskForIsAnsweredOverHTTP(t *testing.T) {
	a := newFuzzedAPI(t)
	for _, tt := range []struct {
		path, content, body string
		status              int
		begins              string
	}{
		{"/log/batch?ok=200", "", "{}\n5\n", 200, `{"accepted":1,"rejected":1,`},
		{"/log/batch", "text/plain", "one\ntwo\n", 202, `{"accepted":2,"rejected":0}`},
		{"/log/batch?repair=true", "", `{"a":NaN}`, 202, `{"accepted":1,"rejected":0}`},
		{"/log/batch?unwrap=true", "", `{"logs":[{},{}]}`, 202, `{"accepted":2,"rejected":0}`},
		{"/log?ok=200&repair=true", "", `{"a":"\u0000"}`, 200, `{"id":"`},
		{"/log?unwrap=true", "", `{}`, 400, `{"error":"unknown query parameter \"unwrap\""}`},
	} {
		got := a.post(t, tt.path, http.Header{"X-Api-Key": {a.secret}, "Content-Type": {tt.content}}, tt.body)
		if got.status != tt.status || !strings.HasPrefix(got.body, tt.begins) {
			t.Errorf("%s: got %d %s, want %d %s…", tt.path, got.status, got.body, tt.status, tt.begins)
		}
	}
	if n := a.api.endpoints.find([]byte("POST"), []byte("/log/batch")).metrics.intake; n.name != "native" || n.repaired[scan.NUL] == nil || n.repaired[scan.Syntax] != nil {
		t.Errorf("the metrics are those of %s", n.name)
	}
}

func TestDERIVE_KEYSNamesProtocols(t *testing.T) {
	for value, want := range map[string]string{"otlp,loki": "", "none": "", "false": "", "native, otlp": "", "otlp,lokki": `DERIVE_KEYS: got "lokki", takes some of otlp, loki, native`} {
		c := defaults(t)
		c.DeriveKeys = ""
		if err := config.LoadFrom(map[string]string{"DERIVE_KEYS": value}, &c); err != nil {
			t.Fatal(err)
		}
		if err := c.checkDeriveKeys(); (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", value, err, want)
		}
	}
	c := defaults(t)
	for _, value := range []string{"otlp,", "OTLP", "a b"} {
		if err := config.LoadFrom(map[string]string{"DERIVE_KEYS": value}, &c); err == nil {
			t.Errorf("%q is taken", value)
		}
	}
}

func TestRecordsThatTakeMoreThanTheirBodyAreBounded(t *testing.T) {
	a := newFuzzedAPI(t)
	header := http.Header{"X-Api-Key": {a.secret}, "X-Fields": {"a=" + strings.Repeat("x", 400)}}
	body := strings.Repeat("{}\n", 10_000)
	if got := a.post(t, "/log/batch", header, body); got.status != http.StatusServiceUnavailable || !strings.Contains(got.body, "MAX_INFLIGHT_BYTES") {
		t.Errorf("4 MB of records where 1 MiB may be under way: got %d %.200s", got.status, got.body)
	}
	a.api.limits.TotalBytes = 1 << 20
	if got := a.post(t, "/log/batch", header, body); got.status != http.StatusRequestEntityTooLarge || !strings.Contains(got.body, "more than 1048576 bytes (MAX_INFLIGHT_BYTES)") {
		t.Errorf("more than all requests may hold: got %d %.200s", got.status, got.body)
	}
	if got := a.post(t, "/log/batch", header, "{}\n"); got.status != http.StatusAccepted {
		t.Errorf("the next: got %d %s", got.status, got.body)
	}
	if used := a.api.bodies.inflight.used.Load(); used != 0 {
		t.Errorf("%d bytes are still reserved", used)
	}
}

func TestAGlanceFindsWhatIsAskedFor(t *testing.T) {
	for _, name := range append([]string{"Idempotency-Key", "Accept-Encoding", "X-Other"}, protocol.OptionFields...) {
		var h fasthttp.RequestHeader
		h.Set("Host", "x")
		h.Set(strings.ToLower(name), "x")
		hasKey, hasOptions := glance(&h)
		if hasKey != (name == "Idempotency-Key") || hasOptions != slices.Contains(protocol.OptionFields, name) {
			t.Errorf("%s: a key %v, options %v", name, hasKey, hasOptions)
		}
	}
}

func BenchmarkAGlanceAtAHeader(b *testing.B) {
	var h fasthttp.RequestHeader
	for _, name := range []string{"Host", "Content-Type", "User-Agent", "Accept", "Authorization", "Accept-Encoding"} {
		h.Set(name, "x")
	}
	b.ReportAllocs()
	for b.Loop() {
		glance(&h)
	}
}

// What Firehose sends again has the same ids, also when it says another time.
func TestARequestOfFirehoseThatIsSentAgainIsStoredOnce(t *testing.T) {
	a := startOn(t, testenv.Broker(t, 2), nil)
	now := time.Now()
	stored := make(map[uuid.UUID]string)
	send := func(id string, made time.Time, texts ...string) {
		t.Helper()
		var data []string
		for _, text := range texts {
			data = append(data, `{"data":"`+base64.StdEncoding.EncodeToString([]byte(text))+`"}`)
		}
		body := fmt.Sprintf(`{"requestId":%q,"timestamp":%d,"records":[%s]}`, id, made.UnixMilli(), strings.Join(data, ","))
		req, err := http.NewRequest("POST", a.url+"/firehose", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Amz-Firehose-Request-Id", id)
		resp, err := a.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close() // read to its end
		answer, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK || !strings.HasPrefix(string(answer), `{"requestId":"`+id+`","timestamp":`) {
			t.Fatalf("got %d %s, %v", resp.StatusCode, answer, err)
		}
		maps.Copy(stored, a.published(t))
	}
	timed := fmt.Sprintf(`{"messageType":"DATA_MESSAGE","logGroup":"g","logEvents":[{"id":"1","timestamp":%d,"message":"a"},{"id":"2","timestamp":%d,"message":"b"}]}`, now.UnixMilli(), now.UnixMilli())
	for i := range 3 {
		send("timed", now.Add(time.Duration(i)*time.Second), timed) // two records
		send("plain", now, "c", "d\ne")                             // three
	}
	send("another", now, "c", "d\ne") // three more
	if len(stored) != 8 {
		t.Errorf("%d records have ids of their own, want 8: %v", len(stored), stored)
	}
}

// TestCellsKnowHowFarKeysAreAhead holds the notice of a change of cells to what the API takes.
func TestCellsKnowHowFarKeysAreAhead(t *testing.T) {
	if cells.KeyAhead != maxKeyAhead {
		t.Errorf("cells.KeyAhead is %v, and keys may be %v ahead", cells.KeyAhead, maxKeyAhead)
	}
}
