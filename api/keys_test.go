package api

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"millrace/internal/frame"
	"millrace/internal/keys"
)

// keyFile is a keys file that an API reads, and the channel of the signal to read
// it again.
type keyFile struct {
	t      testing.TB
	name   string
	reload chan os.Signal
}

func newKeyFile(t testing.TB, lines ...string) *keyFile {
	f := &keyFile{t, filepath.Join(t.TempDir(), "keys"), make(chan os.Signal)}
	f.write(lines...)
	return f
}

func (f *keyFile) write(lines ...string) {
	f.t.Helper()
	if err := os.WriteFile(f.name, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f *keyFile) use(c *Config) { c.KeysFile, c.Reload = f.name, f.reload }

// rewrite writes the lines to the file and returns when the API has read them.
func (f *keyFile) rewrite(lines ...string) {
	f.t.Helper()
	f.write(lines...)
	f.reload <- syscall.SIGHUP
	f.reload <- syscall.SIGHUP // taken once the first was done
}

// newKey returns a key's line and the header of its client.
func newKey(t testing.TB, name, scope, limit string) (line string, header http.Header) {
	t.Helper()
	k, secret, err := keys.New(name, []string{scope})
	if err != nil {
		t.Fatal(err)
	}
	return k.String() + " " + limit, http.Header{"Authorization": {"Bearer " + secret}}
}

func batchOf(n int) []byte { return []byte(strings.Repeat("{\"a\":1}\n", n)) }

func TestKeysAreAskedForWithTheWriteScope(t *testing.T) {
	writer, mayWrite := newKey(t, "writer", keys.Write, "")
	reader, mayRead := newKey(t, "reader", keys.Read, "")
	f := newKeyFile(t, writer, reader)
	a := start(t, f.use)
	secret := strings.TrimPrefix(mayWrite.Get("Authorization"), "Bearer ")
	inOtherHeader := http.Header{"X-Api-Key": {secret}}
	basic := http.Header{"Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte("shipper:"+secret))}}
	for _, tt := range []struct {
		header http.Header
		want   int
	}{{mayWrite, 202}, {inOtherHeader, 202}, {basic, 202}, {mayRead, 403}, {nil, 401}, {http.Header{"Authorization": {"Bearer x"}}, 401}} {
		for _, path := range []string{"/log", "/log/batch"} {
			got := a.post(t, path, batchOf(1), tt.header)
			if got.status != tt.want || (got.header.Get("WWW-Authenticate") == keys.Challenge) != (tt.want == 401) {
				t.Errorf("POST %s with %v: got %d, WWW-Authenticate %q, want %d", path, tt.header, got.status, got.header.Get("WWW-Authenticate"), tt.want)
			}
		}
	}
	for _, path := range []string{"/health", "/ready", "/metrics"} {
		if got := a.get(t, path); got.status != http.StatusOK {
			t.Errorf("GET %s: got %d, want 200 without a key", path, got.status)
		}
	}
	got := a.raw(t, "POST /log HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n")
	if !strings.HasPrefix(got, "HTTP/1.1 401 ") || !strings.Contains(got, "Www-Authenticate: "+keys.Challenge) {
		t.Errorf("Expect without a key: got %s, want 401 before the body", got)
	}
	if n := len(a.published(t)); n != 6 {
		t.Errorf("%d records were published, want 6", n)
	}
}

func TestARevokedKeyIsRefusedFromTheNextRequestOn(t *testing.T) {
	first, mayFirst := newKey(t, "first", keys.Write, "")
	second, maySecond := newKey(t, "second", keys.Write, "")
	f := newKeyFile(t, first)
	a := start(t, f.use)
	status := func(header http.Header) int {
		t.Helper()
		return a.post(t, "/log", []byte(`{"a":1}`), header).status
	}
	if one, two := status(mayFirst), status(maySecond); one != 202 || two != 401 {
		t.Errorf("at first: got %d and %d, want 202 and 401", one, two)
	}
	f.rewrite(second)
	if one, two := status(mayFirst), status(maySecond); one != 401 || two != 202 {
		t.Errorf("after the change: got %d and %d, want 401 and 202", one, two)
	}
	f.rewrite(first, "second is not what it was")
	if one, two, none := status(mayFirst), status(maySecond), status(nil); one != 401 || two != 202 || none != 401 {
		t.Errorf("after a mistake in the file: got %d, %d and without a key %d, want 401, 202 and 401", one, two, none)
	}
	got := a.get(t, "/metrics").body
	for _, want := range []string{"millrace_keys_reload_errors_total 2", "millrace_keys_last_reload_success 0"} { // two signals
		if !strings.Contains(got, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
}

func TestALimitIsAnsweredWithWhenToComeAgain(t *testing.T) {
	line, header := newKey(t, "slow", keys.Write, "rate=1 burst=20")
	other, mayOther := newKey(t, "other", keys.Write, "")
	f := newKeyFile(t, line, other)
	a := start(t, f.use)
	refused := func(got response, least, most int) {
		t.Helper()
		after, err := strconv.Atoi(got.header.Get("Retry-After"))
		if got.status != http.StatusTooManyRequests || err != nil || after < least || after > most ||
			got.body != `{"error":"the API key slow is limited to 1 records/s, 20 at once"}` {
			t.Errorf("got %d, Retry-After %q, %s, want 429 and %d to %d s", got.status, got.header.Get("Retry-After"), got.body, least, most)
		}
	}
	// Only what is accepted is charged: here 15 of 30.
	if got := a.post(t, "/log/batch", []byte(strings.Repeat("{\"a\":1}\n5\n", 15)), header); got.status != http.StatusMultiStatus {
		t.Fatalf("got %d %s, want 207", got.status, got.body)
	}
	refused(a.post(t, "/log/batch", batchOf(15), header), 1, 10) // 5 are left, 10 more take 10 s, less what has passed
	if got := a.post(t, "/log/batch", batchOf(5), header); got.status != http.StatusAccepted {
		t.Fatalf("got %d %s, want what is refused not to be charged", got.status, got.body)
	}
	if n := len(a.published(t)); n != 20 {
		t.Errorf("%d records were published, want 20", n)
	}
	// The next batch is larger than the burst: a full bucket takes it.
	refused(a.post(t, "/log/batch", batchOf(1000), header), 1, 20)
	f.rewrite(other)
	f.rewrite(line, other)
	if got := a.post(t, "/log/batch", batchOf(1000), header); got.status != http.StatusAccepted {
		t.Fatalf("got %d %s, want a full bucket to take a batch that is larger", got.status, got.body)
	}
	refused(a.post(t, "/log", []byte(`{"a":1}`), header), 900, 981)
	f.rewrite(line, other, "# no change")
	refused(a.post(t, "/log", []byte(`{"a":1}`), header), 900, 981)
	// In debt it is refused before its body is asked for.
	got := a.raw(t, "POST /log HTTP/1.1\r\nHost: x\r\nAuthorization: "+header.Get("Authorization")+"\r\nContent-Length: 10000\r\nExpect: 100-continue\r\n\r\n")
	if !strings.HasPrefix(got, "HTTP/1.1 429 ") || !strings.Contains(got, "\r\nRetry-After: 9") {
		t.Errorf("got %s, want 429 before the body", got)
	}
	if got := a.post(t, "/log/batch", batchOf(2000), mayOther); got.status != http.StatusAccepted {
		t.Errorf("another key: got %d %s, want 202", got.status, got.body)
	}
}

func TestEachKeysUseIsInTheMetrics(t *testing.T) {
	one, mayOne := newKey(t, "one", keys.Write, "rate=1 burst=3")
	two, _ := newKey(t, "tw\"o", keys.Write, "")
	reader, mayRead := newKey(t, "reader", keys.Read, "")
	f := newKeyFile(t, one, two, reader)
	a := start(t, f.use)
	a.post(t, "/log/batch", batchOf(300), mayOne)
	a.post(t, "/log/batch", batchOf(1), mayOne)
	a.post(t, "/log/batch", batchOf(1), mayRead)
	series := func() string {
		return strings.Join(regexp.MustCompile(`(?m)^millrace_(api_key|keys)_.*$`).FindAllString(a.get(t, "/metrics").body, -1), "\n")
	}
	want := `millrace_api_key_records_total{key="one"} 300
millrace_api_key_records_total{key="reader"} 0
millrace_api_key_records_total{key="tw\"o"} 0
millrace_api_key_requests_total{code="202",key="one"} 1
millrace_api_key_requests_total{code="403",key="reader"} 1
millrace_api_key_requests_total{code="429",key="one"} 1
millrace_keys_last_reload_success 1
millrace_keys_reload_errors_total 0`
	if got := series(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	f.rewrite(two)
	want = `millrace_api_key_records_total{key="tw\"o"} 0
millrace_keys_last_reload_success 1
millrace_keys_reload_errors_total 0`
	if got := series(); got != want {
		t.Errorf("after two keys were removed: got\n%s\nwant\n%s", got, want)
	}
	without := start(t, nil)
	if got := without.get(t, "/metrics").body; strings.Contains(got, "millrace_api_key_") || strings.Contains(got, "millrace_keys_") {
		t.Error("without keys there are series of keys")
	}
}

func TestAnIdempotencyKeyIsOneRecentUUIDv7(t *testing.T) {
	a := start(t, nil)
	good := keyAt(-time.Minute)
	for name, tt := range map[string]struct {
		lines []string
		want  string // of the refusal; "" is accepted
	}{
		"now":                        {[]string{keyAt(0)}, ""},
		"upper case":                 {[]string{strings.ToUpper(good)}, ""},
		"a day less a minute ago":    {[]string{keyAt(-24*time.Hour + time.Minute)}, ""},
		"a day and a minute ago":     {[]string{keyAt(-24*time.Hour - time.Minute)}, "24 h"},
		"25 h ago":                   {[]string{keyAt(-25 * time.Hour)}, "24 h"},
		"4 minutes ahead":            {[]string{keyAt(4 * time.Minute)}, ""},
		"6 minutes ahead":            {[]string{keyAt(6 * time.Minute)}, "future"},
		"the last UUIDv7":            {[]string{"ffffffff-ffff-7fff-bfff-ffffffffffff"}, "future"},
		"the first UUIDv7":           {[]string{"00000000-0000-7000-8000-000000000000"}, "24 h"},
		"version 4":                  {[]string{uuid.NewString()}, "takes a UUIDv7"},
		"version 1":                  {[]string{"6ba7b810-9dad-11d1-80b4-00c04fd430c8"}, "takes a UUIDv7"},
		"another variant":            {[]string{good[:19] + "c" + good[20:]}, "takes a UUIDv7"},
		"in braces":                  {[]string{"{" + good + "}"}, "takes a UUIDv7"},
		"a URN":                      {[]string{"urn:uuid:" + good}, "takes a UUIDv7"},
		"without hyphens":            {[]string{strings.ReplaceAll(good, "-", "")}, "takes a UUIDv7"},
		"quoted":                     {[]string{`"` + good + `"`}, "takes a UUIDv7"},
		"one digit short":            {[]string{good[:35]}, "takes a UUIDv7"},
		"one digit long":             {[]string{good + "0"}, "takes a UUIDv7"},
		"not hex":                    {[]string{good[:35] + "g"}, "takes a UUIDv7"},
		"hyphens elsewhere":          {[]string{strings.Replace(good, "-7", "7-", 1)}, "takes a UUIDv7"},
		"garbage":                    {[]string{"\x80\xff\u00e9"}, "takes a UUIDv7"},
		"long garbage":               {[]string{strings.Repeat("x", 4000)}, "takes a UUIDv7"},
		"empty":                      {[]string{""}, "takes a UUIDv7"},
		"two":                        {[]string{good, keyAt(0)}, "2 of them"},
		"the same twice":             {[]string{good, good}, "2 of them"},
		"one and an empty one":       {[]string{good, ""}, "2 of them"},
		"two in one line":            {[]string{good + ", " + good}, "takes a UUIDv7"},
		"white space around the key": {[]string{"  " + good + "\t"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			request := "POST /log HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n"
			for _, line := range tt.lines {
				request += "idempotency-key: " + line + "\r\n"
			}
			got := a.raw(t, request+"\r\n{}")
			status, id := "HTTP/1.1 400 ", `{"error":"Idempotency-Key: `
			if tt.want == "" {
				status, id = "HTTP/1.1 202 ", `{"id":"`+frame.BaseOfKey(uuid.MustParse(strings.TrimSpace(tt.lines[0]))).String()+`"}`
			}
			if !strings.HasPrefix(got, status) || !strings.Contains(got, id) || !strings.Contains(got, tt.want) || len(got) > 1000 {
				t.Errorf("got %s, want %s… %s… %s", got, status, id, tt.want)
			}
		})
	}
}

func TestAnIdempotencyKeysAgeIsTakenToTheMillisecond(t *testing.T) {
	now := time.UnixMilli(time.Now().UnixMilli())
	for ahead, want := range map[time.Duration]bool{
		-24*time.Hour - time.Millisecond: false,
		-24 * time.Hour:                  true,
		0:                                true,
		5 * time.Minute:                  true,
		5*time.Minute + time.Millisecond: false,
	} {
		id := frame.NewBase()
		ms := now.Add(ahead).UnixMilli()
		for i := range 6 {
			id[i] = byte(ms >> (8 * (5 - i)))
		}
		if got, bad := baseOfKey([][]byte{[]byte(id.String())}, now); (bad == nil) != want || want && *got != frame.BaseOfKey(id) {
			t.Errorf("a key made %v from now: got %v, %v, want it taken: %v", ahead, got, bad, want)
		}
	}
}

func TestTheIdsUnderAKeyCountUpFromItsBase(t *testing.T) {
	a := start(t, nil)
	key := keyAt(0)[:19] + "bfff-ffffffffffff"
	got := a.post(t, "/log/batch?ids=true", batchOf(3), http.Header{"Idempotency-Key": {key}})
	base := frame.BaseOfKey(uuid.MustParse(key))
	want := fmt.Sprintf(`"ids":["%s","%s","%s"]`, base, frame.ID(base, 1), frame.ID(base, 2))
	if got.status != http.StatusAccepted || !strings.Contains(got.body, want) {
		t.Errorf("got %d %s, want %s", got.status, got.body, want)
	}
	if n := len(a.published(t)); n != 3 {
		t.Errorf("%d records were published, want 3", n)
	}
}
