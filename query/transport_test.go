package query

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// send sends a request with headers: name, value, …
func (c *client) send(method, path, body string, headers ...string) *http.Response {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.base+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := c.http.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func TestAFormMayBePostedInPlaceOfAURL(t *testing.T) {
	f := newFixture(t, nil)
	at := time.Now().Add(-time.Minute)
	partition(t, f.db, at)
	insert(t, f.db, at, 0, `{"a": 1}`, `{"a": 2}`)
	const form = "application/x-www-form-urlencoded"
	for _, tt := range []struct {
		path, body, kind string
		want             int
		answer           string
	}{
		{"/logs/count", url.Values{"q": {"a:1"}}.Encode(), form, 200, `{"count":1}`},
		{"/logs/count?from=now-1h", "q=a:2", form + "; charset=utf-8", 200, `{"count":1}`},
		{"/logs/count?q=a:1", "", form, 200, `{"count":1}`},
		{"/logs/count?q=a:1", "q=a:2", form, 400, "given 2 times"},
		{"/logs/count", "x=1", form, 400, "unknown parameter"},
		{"/logs/count", strings.Repeat("x", formBytes+1), form, 413, "more than"},
		{"/logs/count", `{"q":"a:1"}`, "application/json", 415, "application/json"},
		{"/openapi.json", "", form, 405, "not allowed"},
	} {
		resp := f.send("POST", tt.path, tt.body, "Content-Type", tt.kind)
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != tt.want || !strings.Contains(string(body), tt.answer) {
			t.Errorf("POST %s %.40s: got %d %s, %v", tt.path, tt.body, resp.StatusCode, body, err)
		}
	}
	if resp := f.send("DELETE", "/logs/count", ""); resp.StatusCode != 405 || resp.Header.Get("Allow") != "GET, HEAD, POST" {
		t.Errorf("got %d, Allow %q", resp.StatusCode, resp.Header.Get("Allow"))
	}
}

func TestAnswersAreCompressedWhereThatIsAskedFor(t *testing.T) {
	f := newFixture(t, nil)
	at := time.Now().Add(-time.Minute)
	partition(t, f.db, at)
	insert(t, f.db, at, 0, slices.Repeat([]string{`{"a": "some text that is there again and again"}`}, 100)...)
	path := with("/logs", "from", ms(at.Add(-time.Minute)), "to", ms(at.Add(time.Minute)))
	want, err := io.ReadAll(f.send("GET", path, "", "Accept-Encoding", "identity").Body)
	if err != nil {
		t.Fatal(err)
	}
	for accept, encoding := range map[string]string{"zstd": "zstd", "gzip": "gzip", "gzip, deflate, br, zstd": "zstd", "zstd;q=0, gzip": "gzip", "*": "gzip", "br": "", "identity": ""} {
		resp := f.send("GET", path, "", "Accept-Encoding", accept)
		if resp.Header.Get("Content-Encoding") != encoding || resp.Header.Get("Vary") != "Accept-Encoding" {
			t.Fatalf("%s: got %v", accept, resp.Header)
		}
		if encoding != "" && resp.ContentLength > int64(len(want))/4 {
			t.Errorf("%s: %d bytes of %d", accept, resp.ContentLength, len(want))
		}
		var plain io.Reader = resp.Body
		switch encoding {
		case "zstd":
			z, err := zstd.NewReader(resp.Body, zstd.WithDecoderConcurrency(1))
			if err != nil {
				t.Fatal(err)
			}
			defer z.Close()
			plain = z
		case "gzip":
			if plain, err = gzip.NewReader(resp.Body); err != nil {
				t.Fatal(err)
			}
		}
		got, err := io.ReadAll(plain)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != string(want) {
			t.Errorf("%s: another answer", accept)
		}
	}
	if resp := f.send("GET", "/logs/count", "", "Accept-Encoding", "gzip"); resp.Header.Get("Content-Encoding") != "" {
		t.Errorf("a short answer is compressed")
	}
	// While all places are taken, answers are sent as they are.
	c := newCompressor()
	for range cap(c.places) {
		c.places <- struct{}{}
	}
	if out, encoding := c.compress("gzip", want); encoding != "" || string(out) != string(want) {
		t.Errorf("got %q", encoding)
	}
}

func TestAnExportHasTheColumnsThatAreAskedFor(t *testing.T) {
	f := newFixture(t, nil)
	at := time.Now().UTC().Truncate(time.Second).Add(-time.Minute)
	partition(t, f.db, at)
	ids := insert(t, f.db, at, 0, `{"level": "info", "text": "a, \"b\"\nc", "http": {"status": 200}, "time": "mine"}`, `{"level": null, "http.status": "500", "text": ["x"]}`, `{"text": "=1+1"}`)
	stamp := at.Format(timeFormat)
	window := []string{"from", ms(at), "to", ms(at.Add(time.Second))}
	r := f.get(with("/logs/export", append(window, "format", "csv", "fields", `id,time,"time",level,text,http.status`)...))
	if r.header.Get("Content-Type") != "text/csv; charset=utf-8" || !strings.Contains(r.header.Get("Content-Disposition"), "logs.csv") {
		t.Errorf("got %v", r.header)
	}
	for name, want := range map[string]string{"logs_level-error.csv": "logs_level-error.csv", `a "b" ärger.csv`: `a "b" ärger.csv`} {
		named := f.get(with("/logs/export", append(window, "name", name)...))
		if _, got, err := mime.ParseMediaType(named.header.Get("Content-Disposition")); err != nil || got["filename"] != want {
			t.Errorf("the name %q comes as %q", name, named.header.Get("Content-Disposition"))
		}
	}
	for _, name := range []string{"../x", `a\b`, "a\r\nb: c", strings.Repeat("x", 256)} {
		if refused := f.get(with("/logs/export", append(window, "name", name)...)); refused.status != 400 || !strings.Contains(refused.body, "name: ") {
			t.Errorf("the name %.20q: got %d %s", name, refused.status, refused.body)
		}
	}
	lines, err := csv.NewReader(strings.NewReader(r.body)).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	want := [][]string{{"id", "time", `"time"`, "level", "text", "http.status"}, {ids[0], stamp, "mine", "info", "a, \"b\"\nc", "200"}, {ids[1], stamp, "", "", `["x"]`, "500"}, {ids[2], stamp, "", "", "=1+1", ""}}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	r = f.get(with("/logs/export", append(window, "fields", "level,http.status,inserted_at", "limit", "2")...))
	if want := `{"level":"info","http.status":200,"inserted_at":"` + stamp + `"}` + "\n" + `{"level":null,"http.status":"500","inserted_at":"` + stamp + `"}` + "\n"; r.body != want {
		t.Errorf("got\n%swant\n%s", r.body, want)
	}
	r = f.get(with("/logs/export", append(window, "format", "csv", "order", "desc", "limit", "1")...))
	if lines, err = csv.NewReader(strings.NewReader(r.body)).ReadAll(); err != nil || len(lines) != 2 || lines[1][0] != ids[2] || lines[1][3] != `{"text": "=1+1"}` {
		t.Errorf("got %q, %v", r.body, err)
	}
	if r = f.get(with("/logs/export", append(window, "q", "none", "format", "csv")...)); r.body != "id,time,inserted_at,data\r\n" {
		t.Errorf("got %q", r.body)
	}
	for _, bad := range []string{"format=xml", "fields=a:", "fields=a,,b", "limit=0", "limit=x", "order=up"} {
		if r := f.get("/logs/export?" + bad); r.status != 400 {
			t.Errorf("%s: got %d %s", bad, r.status, r.body)
		}
	}
}

// TestALimitedExportHasThatManyRows has more rows than a slice of an export has.
func TestALimitedExportHasThatManyRows(t *testing.T) {
	f := newFixture(t, nil)
	day := time.Now().UTC().Truncate(24 * time.Hour)
	partition(t, f.db, day)
	f.exec(`INSERT INTO logs (id, inserted_at, data) SELECT gen_random_uuid(), $1::timestamptz + n * interval '700 ms', jsonb_build_object('n', n) FROM generate_series(0, 9999) n`, day)
	for _, limit := range []string{"1", "4", "7000", "10000", "20000"} {
		for _, order := range []string{"asc", "desc"} {
			r := f.get(with("/logs/export", "from", ms(day), "to", ms(day.Add(24*time.Hour)), "limit", limit, "order", order, "fields", "n"))
			lines := strings.Split(strings.TrimSuffix(r.body, "\n"), "\n")
			want := map[string]int{"1": 1, "4": 4, "7000": 7000, "10000": 10000, "20000": 10000}[limit]
			first := map[string]string{"asc": `{"n":0}`, "desc": `{"n":9999}`}[order]
			if len(lines) != want || lines[0] != first {
				t.Errorf("limit %s, %s: %d lines, the first %s", limit, order, len(lines), lines[0])
			}
		}
	}
}

func TestTheTailComesAsLinesWhereThatIsAskedFor(t *testing.T) {
	f := ledgerFixture(t, nil)
	resp := f.send("GET", with("/logs/tail", "q", "n:*"), "", "Accept", ndjson)
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != ndjson {
		t.Fatalf("got %s, %v", resp.Status, resp.Header)
	}
	lines := bufio.NewScanner(resp.Body)
	if !lines.Scan() || lines.Text() != "" { // it has begun
		t.Fatalf("got %q, %v", lines.Text(), lines.Err())
	}
	ids := insert(t, f.db, time.Now(), 0, `{"n": "1\ndata: x"}`, `{"other": 1}`, `{"n": "2"}`)
	var got []string
	for len(got) < 2 && lines.Scan() {
		if lines.Text() == "" {
			continue
		}
		var l struct{ ID string }
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			t.Fatalf("%v in %s", err, lines.Bytes())
		}
		got = append(got, l.ID)
	}
	if diff := cmp.Diff([]string{ids[0], ids[2]}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	var s eventStream
	s.isLines = true
	if err := s.addMissed(3); err != nil || string(s.gathered) != `{"missed":3}`+"\n" {
		t.Errorf("got %q, %v", s.gathered, err)
	}
}
