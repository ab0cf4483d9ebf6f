package query

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace/internal/testenv"
)

type histogramAnswer struct {
	Interval string
	Buckets  []struct {
		Start  time.Time
		Count  int
		Groups map[string]int
	}
}

func ms(t time.Time) string { return fmt.Sprint(t.UnixMilli()) }

func TestAHistogramFillsItsGapsAndGroups(t *testing.T) {
	f := newFixture(t, nil)
	hour := time.Now().UTC().Truncate(time.Hour).Add(-3 * time.Hour)
	partition(t, f.db, hour)
	partition(t, f.db, hour.Add(time.Hour))
	for i := range 15 {
		insert(t, f.db, hour.Add(time.Second), 10*i, slices.Repeat([]string{fmt.Sprintf(`{"a": {"b": "v%02d"}}`, i)}, 15-i)...)
	}
	insert(t, f.db, hour.Add(59*time.Minute), 0, `{"a": {"b": null}}`, `{"a": 5}`, `{"a": {"b": true}}`, `{"x": 1}`)
	var got histogramAnswer
	f.ok(with("/logs/histogram", "from", ms(hour), "to", ms(hour.Add(time.Hour)), "by", "a.b", "interval", "10m"), &got)
	if got.Interval != "10m" || len(got.Buckets) != 6 {
		t.Fatalf("got %+v", got)
	}
	want := map[string]int{"other": 5 + 4 + 3 + 2 + 1}
	for i := range 10 {
		want[fmt.Sprintf("v%02d", i)] = 15 - i
	}
	if diff := cmp.Diff(want, got.Buckets[0].Groups); diff != "" || got.Buckets[0].Count != 120 || !got.Buckets[0].Start.Equal(hour) {
		t.Errorf("first bucket: %d from %v (-want +got):\n%s", got.Buckets[0].Count, got.Buckets[0].Start, diff)
	}
	if diff := cmp.Diff(map[string]int{"(none)": 3, "other": 1}, got.Buckets[5].Groups); diff != "" || got.Buckets[3].Count != 0 {
		t.Errorf("last bucket (-want +got):\n%s", diff)
	}
	// No window of 120 intervals of the ladder: those are 121 buckets, or 120 when the window begins with one.
	for q, want := range map[string]string{
		"from=now-15m": "10s", "from=now-90m": "1m", "from=now-24h": "15m", "from=now-7d": "2h", "from=now-52w": "5d", "from=0": "180d",
		"interval=1w&from=now-52w": "7d", "interval=90s&from=now-1h": "90s",
	} {
		var got histogramAnswer
		f.ok("/logs/histogram?"+q, &got)
		if got.Interval != want || len(got.Buckets) > maxBuckets {
			t.Errorf("%s: got %s, %d buckets, want %s", q, got.Interval, len(got.Buckets), want)
		}
	}
	for _, q := range []string{"interval=0s", "interval=1", "interval=-1m", "interval=1s", "interval=9223372036854775807w", "interval=1ms", "by=a.", "by=a*", "by=a:b", "by=%00", "by=" + strings.Repeat("a.", 200) + "a", "limit=5"} {
		if r := f.get("/logs/histogram?" + q); r.status != 400 {
			t.Errorf("%s: got %d %s, want 400", q, r.status, r.body)
		}
	}
}

func TestAHistogramThatWaitsForAnotherIsNoOlderThanItsRequest(t *testing.T) {
	f := newFixture(t, map[string]string{"REDIS_URL": string(testenv.Redis(t)), "QUERY_TIMEOUT": "1m"})
	hour := time.Now().UTC().Truncate(time.Hour).Add(-5 * time.Hour)
	path := with("/logs/histogram", "from", ms(hour), "to", ms(hour.Add(3*time.Hour)), "interval", "10m")
	look := testenv.Connect(t, f.url)
	unlock := f.lock()
	var asking sync.WaitGroup
	defer asking.Wait()
	defer unlock()
	ask := func() {
		asking.Go(func() {
			if r, err := f.do(t.Context(), "GET", path); err != nil || r.status != 200 {
				t.Errorf("got %d %s, %v", r.status, r.body, err)
			}
		})
	}
	ask()
	testenv.Eventually(t, 10*time.Second, "the first waits", func() bool { return f.waiting(look) == 1 })
	// Rows appear in an hour that holds neither the first bucket nor the last.
	if _, err := look.Exec(t.Context(), "INSERT INTO late_changes (hour) VALUES ($1)", hour.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	ask()
	testenv.Eventually(t, 10*time.Second, "the second counts for itself", func() bool { return f.waiting(look) == 2 })
}

func TestTimesBeforeTheYear0AreNotWritten(t *testing.T) {
	f := newFixture(t, nil)
	var got histogramAnswer
	f.ok("/logs/histogram?from=0000-01-01T00:00:00Z&to=9999-12-31T23:59:59Z", &got)
	if start := got.Buckets[0].Start; start.Year() != 0 {
		t.Errorf("got %s", start)
	}
}

func TestACachedHistogramIsByteForByteTheSame(t *testing.T) {
	f := newFixture(t, map[string]string{"REDIS_URL": string(testenv.Redis(t))})
	plain := start(t, map[string]string{"POSTGRES_URL": string(f.url)})
	hour := time.Now().UTC().Truncate(time.Hour).Add(-3 * time.Hour)
	partition(t, f.db, hour)
	partition(t, f.db, hour.Add(3*time.Hour))
	for i := range 200 {
		insert(t, f.db, hour.Add(time.Duration(i*i)*time.Second/4), i, fmt.Sprintf(`{"level": "l%d"}`, i*i%17), `{"x": 1}`)
	}
	from, to := hour.Add(7*time.Minute+time.Second), hour.Add(2*time.Hour+3*time.Minute)
	for _, by := range []string{"", "level"} {
		path := with("/logs/histogram", "from", ms(from), "to", ms(to), "interval", "5m", "by", by, "q", "-x:2")
		want := plain.get(path)
		first, second := f.cached(path, "miss"), f.cached(path, "hit")
		if first.body != want.body || second.body != want.body {
			t.Errorf("by %q: got\n%s\ncached\n%s\nwithout a cache\n%s", by, first.body, second.body, want.body)
		}
	}
	// Another window reuses the buckets they share, and counts the others: rows that nobody noted are seen in those alone.
	f.exec("INSERT INTO logs SELECT gen_random_uuid(), at, '{}' FROM unnest($1::timestamptz[]) AS at", []time.Time{hour.Add(20 * time.Minute), hour.Add(150 * time.Minute)})
	wider := with("/logs/histogram", "from", ms(from), "to", ms(hour.Add(170*time.Minute)), "interval", "5m", "q", "-x:2")
	var old, all histogramAnswer
	if got := f.cached(wider, "miss"); json.Unmarshal([]byte(got.body), &old) != nil {
		t.Fatal(got.body)
	}
	plain.ok(wider, &all)
	differing := 0
	for i := range all.Buckets {
		if all.Buckets[i].Count != old.Buckets[i].Count {
			differing++
		}
	}
	if differing != 1 {
		t.Errorf("%d buckets differ, want the one that was kept", differing)
	}
	// A note makes the hour's buckets new.
	f.exec("INSERT INTO late_changes (hour) VALUES ($1)", hour)
	if got, want := f.cached(wider, "miss"), plain.get(wider); got.body != want.body {
		t.Errorf("after the note: got\n%s\nwant\n%s", got.body, want.body)
	}
}

func TestFieldsAndValues(t *testing.T) {
	f := newFixture(t, nil)
	at := time.Now().Add(-time.Minute)
	partition(t, f.db, at)
	insert(t, f.db, at, 0, `{"level": "error", "http": {"status": 500}, "a.b": [{"c": true}, {"c": null}]}`, `{"level": "info", "http": {"status": "500"}}`, `{"level": "info", "http": null, "tags": ["x", "y", "x"]}`)
	type field struct {
		Path  string
		Count int
		Types []string
	}
	var got struct {
		Sampled int
		Fields  []field
	}
	f.ok("/logs/fields", &got)
	want := []field{{"http", 3, []string{"null", "object"}}, {"level", 3, []string{"string"}}, {"http.status", 2, []string{"number", "string"}},
		{`"a.b"`, 1, []string{"array"}}, {`"a.b".c`, 1, []string{"boolean", "null"}}, {"tags", 1, []string{"array"}}}
	if diff := cmp.Diff(want, got.Fields); diff != "" || got.Sampled != 3 {
		t.Errorf("sampled %d (-want +got):\n%s", got.Sampled, diff)
	}
	for path, want := range map[string]string{
		"level":       `{"path":"level","sampled":3,"values":[{"value":"info","count":2},{"value":"error","count":1}]}`,
		"http.status": `{"path":"http.status","sampled":3,"values":[{"value":"500","count":1},{"value":500,"count":1}]}`,
		`"a.b".c`:     `{"path":"\"a.b\".c","sampled":3,"values":[{"value":true,"count":1}]}`,
		"tags":        `{"path":"tags","sampled":3,"values":[{"value":"x","count":2},{"value":"y","count":1}]}`,
		"none":        `{"path":"none","sampled":0,"values":[]}`,
	} {
		if got := f.get("/logs/fields/" + url.PathEscape(path) + "/values"); got.status != 200 || got.body != want+"\n" {
			t.Errorf("%s: got %d %s, want %s", path, got.status, got.body, want)
		}
	}
	for _, path := range []string{"a%2A", "a..b", "%00", "a:b", "%ff"} {
		if got := f.get("/logs/fields/" + path + "/values"); got.status != 400 {
			t.Errorf("%s: got %d %s, want 400", path, got.status, got.body)
		}
	}
}

func TestALargeRecordCostsTheListOfFieldsLittle(t *testing.T) {
	f := newFixture(t, nil)
	at := time.Now().Add(-time.Minute)
	partition(t, f.db, at)
	var deep, wide strings.Builder
	for i := range 2 * fieldsKept {
		fmt.Fprintf(&wide, `,"k%d":0`, i)
	}
	for range 100 {
		fmt.Fprintf(&deep, `{"%0500d":`, 0)
	}
	insert(t, f.db, at, 0, `{"level": "info", "deep": `+deep.String()+`{"x":0`+wide.String()+`}`+strings.Repeat("}", 100)+`}`,
		`{"level": "info", "wide": {"x":0`+wide.String()+`}}`)
	var got struct{ Fields []struct{ Path string } }
	if r := f.ok("/logs/fields", &got); len(r.body) > maxFields*(fieldBytes+100) {
		t.Errorf("got %d bytes", len(r.body))
	}
	if len(got.Fields) != maxFields || got.Fields[0].Path != "level" {
		t.Errorf("got %d fields, the first %+v", len(got.Fields), got.Fields[:1])
	}
}

func TestAnExportIsTheWholeWindowInOrder(t *testing.T) {
	f := newFixture(t, nil)
	at := time.Now().UTC().Add(-30 * time.Hour).Truncate(time.Second)
	var want []string
	for i := range 40 {
		at := at.Add(time.Duration(i) * 40 * time.Minute)
		partition(t, f.db, at)
		want = append(want, insert(t, f.db, at, 0, slices.Repeat([]string{`{"a": 1, "long": "` + strings.Repeat("x", 500) + `"}`}, 50)...)...)
	}
	insert(t, f.db, at, 5000, `{"a": 2}`)
	path := with("/logs/export", "from", ms(at), "q", "a:1")
	ids := func(body io.Reader) (ids []string) {
		for lines := bufio.NewScanner(body); lines.Scan(); {
			var l struct{ ID string }
			if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
				t.Fatalf("%v in %s", err, lines.Bytes())
			}
			ids = append(ids, l.ID)
		}
		return ids
	}
	plain := f.get(path)
	if plain.header.Get("Content-Type") != "application/x-ndjson" {
		t.Errorf("got %v", plain.header)
	}
	if diff := cmp.Diff(want, ids(strings.NewReader(plain.body))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", f.base+path+"&order=desc", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept-Encoding", "br, gzip;q=0.5")
	resp, err := f.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	z, err := gzip.NewReader(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(want)
	if diff := cmp.Diff(want, ids(z)); diff != "" {
		t.Errorf("zipped, newest first (-want +got):\n%s", diff)
	}
	if r := f.get("/logs/export?limit=5"); r.status != 400 {
		t.Errorf("got %d %s", r.status, r.body)
	}
}

func TestAnExportEndsWhenItsClientGoesAndInItsTime(t *testing.T) {
	f := newFixture(t, map[string]string{"EXPORT_TIMEOUT": "100ms"})
	unlock := f.lock()
	if r := f.get("/logs/export"); r.status != 504 || !strings.Contains(r.body, "longer than 100ms") {
		t.Errorf("got %d %s, want 504", r.status, r.body)
	}
	unlock()
	g := newFixture(t, nil)
	look := testenv.Connect(t, g.url)
	unlock = g.lock()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if r, err := g.do(ctx, "GET", "/logs/export"); err == nil {
			t.Errorf("got %d %s", r.status, r.body)
		}
	}()
	testenv.Eventually(t, 10*time.Second, "the export waits", func() bool { return g.waiting(look) == 1 })
	cancel()
	<-done
	testenv.Eventually(t, 10*time.Second, "the export is gone", func() bool { return g.waiting(look) == 0 })
	unlock()
}

func TestOriginsAreLetInByTheSettingAlone(t *testing.T) {
	db := string(testenv.Schema(t))
	ask := func(c *client, method, origin string) reply {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, c.base+"/logs", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Origin", origin)
		if method == "OPTIONS" {
			req.Header.Set("Access-Control-Request-Method", "GET")
		}
		resp, err := c.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return reply{status: resp.StatusCode, header: resp.Header}
	}
	const here, there = "https://grafana.example.com", "https://evil.example.com"
	for setting, want := range map[string][2]string{"": {"", ""}, here: {here, ""}, "http://localhost:3000, " + here: {here, ""}, "*": {"*", "*"}} {
		c := start(t, map[string]string{"POSTGRES_URL": db, "CORS_ORIGINS": setting})
		for i, origin := range []string{here, there} {
			got, pre := ask(c, "GET", origin), ask(c, "OPTIONS", origin)
			if h := got.header.Get("Access-Control-Allow-Origin"); got.status != 200 || h != want[i] {
				t.Errorf("%q, GET from %s: got %d, %q, want %q", setting, origin, got.status, h, want[i])
			}
			if (pre.status == 204) != (want[i] != "") || pre.header.Get("Access-Control-Allow-Origin") != want[i] {
				t.Errorf("%q, preflight from %s: got %d, %v", setting, origin, pre.status, pre.header)
			}
		}
	}
	for _, bad := range []string{"example.com", "ftp://x", "https://x/", "https://x,", "null"} {
		if _, err := parseOrigins(bad); err == nil || !strings.HasPrefix(err.Error(), "CORS_ORIGINS: got ") {
			t.Errorf("%s: got %v", bad, err)
		}
	}
}

func TestTheOpenAPIDocumentIsThatOfTheHandlers(t *testing.T) {
	var doc struct {
		OpenAPI string
		Paths   map[string]map[string]struct {
			Parameters []struct {
				Ref string `json:"$ref"`
			}
			Responses map[string]any
		}
		Components struct {
			Parameters map[string]struct{ Name, In, Description string }
		}
	}
	f := newFixture(t, nil)
	f.ok("/openapi.json", &doc)
	routes := []string{"/health", "/ready", "/metrics"}
	for _, e := range new(server).endpoints() {
		routes = append(routes, e.route)
		var got []string
		for _, p := range doc.Paths[e.route]["get"].Parameters {
			at := doc.Components.Parameters[strings.TrimPrefix(p.Ref, "#/components/parameters/")]
			if at.Description == "" {
				t.Errorf("%s: %s is not described", e.route, p.Ref)
			}
			switch at.In {
			case "query":
				got = append(got, at.Name)
			case "path":
				if !strings.Contains(e.route, "{"+at.Name+"}") {
					t.Errorf("%s has no %s", e.route, at.Name)
				}
			}
		}
		if diff := cmp.Diff(slices.Sorted(slices.Values(e.takes)), slices.Sorted(slices.Values(got))); diff != "" {
			t.Errorf("parameters of %s (-handler +document):\n%s", e.route, diff)
		}
		if doc.Paths[e.route]["get"].Responses["200"] == nil {
			t.Errorf("%s has no answer", e.route)
		}
	}
	if diff := cmp.Diff(slices.Sorted(slices.Values(routes)), slices.Sorted(maps.Keys(doc.Paths))); diff != "" || doc.OpenAPI != "3.1.0" {
		t.Errorf("OpenAPI %s, routes (-handlers +document):\n%s", doc.OpenAPI, diff)
	}
	// The help's examples are queries.
	help := doc.Components.Parameters["q"].Description
	if parts := strings.Split(help, "`"); len(parts) < 20 {
		t.Errorf("no help of the language: %s", help)
	}
}

func TestHostileQueriesAreAnsweredInTime(t *testing.T) {
	f := newFixture(t, map[string]string{"QUERY_TIMEOUT": "2s"})
	at := time.Now().Add(-time.Minute)
	partition(t, f.db, at)
	insert(t, f.db, at, 0, slices.Repeat([]string{`{"a": "` + strings.Repeat("ab", 2000) + `"}`}, 200)...)
	for _, q := range []string{
		`"'; DROP TABLE logs; --"`, "a:'%'", `a:%*_`, `a:*ab*ab*ab*ab*abc`, "ab*ab*ab*ab*ab*ab*abc", strings.Repeat("é", 256), `"(.*)*$^[]{}|+?\\"`, `a.b:"\" || true"`,
		`a:"$.** ? (@ > 1)"`, `"$.a":1`, strings.Repeat("(", 60) + "a" + strings.Repeat(")", 60), strings.Repeat("NOT ", 63) + "a:b",
		strings.Repeat("x OR ", 63) + "x", strings.Repeat("a:>=2026-03-04T12:00:00Z ", 64), `a:>=1e131000`, `"\u0001\ud83d\ude00"`, "(a\\*)",
	} {
		for _, path := range []string{"/logs", "/logs/count", "/logs/histogram", "/logs/fields", "/logs/fields/a/values", "/logs/export"} {
			began := time.Now()
			r := f.get(with(path, "q", q))
			if r.status != 200 && r.status != 504 && r.status != 400 || time.Since(began) > 10*time.Second+testenv.Patience {
				t.Errorf("%s, q=%s: got %d after %v: %.200s", path, q, r.status, time.Since(began), r.body)
			}
		}
	}
	for _, bad := range []string{"q=" + strings.Repeat("x", 100_000), "q=" + strings.Repeat("(", 10_000), "from=now&to=now-1h", "q=a:["} {
		for _, path := range []string{"/logs", "/logs/count", "/logs/histogram", "/logs/fields", "/logs/fields/a/values", "/logs/export", "/logs/tail"} {
			if r := f.get(path + "?" + bad); r.status != 400 {
				t.Errorf("%s?%.40s: got %d %.200s, want 400", path, bad, r.status, r.body)
			}
		}
	}
	var page logsPage
	f.ok("/logs", &page)
}
