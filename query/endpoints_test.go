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
	"strconv"
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
		Start          time.Time
		Count          int
		Groups         map[string]int
		Other, Missing int
	}
	End time.Time
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
	want := make(map[string]int)
	for i := range 10 {
		want[fmt.Sprintf("v%02d", i)] = 15 - i
	}
	if diff := cmp.Diff(want, got.Buckets[0].Groups); diff != "" || got.Buckets[0].Count != 120 || got.Buckets[0].Other != 5+4+3+2+1 || got.Buckets[0].Missing != 0 || !got.Buckets[0].Start.Equal(hour) {
		t.Errorf("first bucket: %+v (-want +got):\n%s", got.Buckets[0], diff)
	}
	if last := got.Buckets[5]; len(last.Groups) != 0 || last.Other != 1 || last.Missing != 3 || got.Buckets[3].Count != 0 {
		t.Errorf("last bucket: %+v", last)
	}
	if end := hour.Add(time.Hour); !got.End.Equal(end) {
		t.Errorf("the last bucket ends at %s, want %s", got.End, end)
	}
	// No window of 120 of these intervals: those are 121 buckets, or 120 when the window begins with one.
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
	for _, q := range []string{"interval=0s", "interval=1", "interval=-1m", "interval=1s", "interval=9223372036854775807w", "interval=1ms", "tz=Mars/Olympus", "tz=Local", "tz=..", "by=a.", "by=a*", "by=a:b", "by=%00", "by=" + strings.Repeat("a.", 200) + "a", "limit=5"} {
		if r := f.get("/logs/histogram?" + q); r.status != 400 {
			t.Errorf("%s: got %d %s, want 400", q, r.status, r.body)
		}
	}
}

// TestValuesAreToldApartWhole has values that begin alike, and those that are called as the rest and the missing were.
func TestValuesAreToldApartWhole(t *testing.T) {
	f := newFixture(t, map[string]string{"REDIS_URL": string(testenv.Redis(t))})
	hour := time.Now().UTC().Truncate(time.Hour).Add(-3 * time.Hour)
	partition(t, f.db, hour)
	start := "https://shop.example/" + strings.Repeat("é", 150)
	long := strings.Repeat("x", 100_000)
	atMost := strings.Repeat("y", groupBytes)
	counts := map[string]int{start + "?a": 7, start + "?b": 6, "other": 5, "(none)": 4, "": 3, "constructor": 2, atMost: 2, long + "1": 4, long + "2": 3}
	n := 0
	for value, count := range counts {
		b, err := json.Marshal(map[string]string{"url": value})
		if err != nil {
			t.Fatal(err)
		}
		insert(t, f.db, hour.Add(time.Minute), n, slices.Repeat([]string{string(b)}, count)...)
		n += count
	}
	insert(t, f.db, hour.Add(time.Minute), n, `{}`, `{"url": null}`)
	window := []string{"from", ms(hour), "to", ms(hour.Add(time.Hour))}
	want := maps.Clone(counts)
	delete(want, long+"1")
	delete(want, long+"2")
	for _, cached := range []string{"miss", "hit"} {
		path := with("/logs/histogram", append(window, "by", "url", "interval", "1h")...)
		var got histogramAnswer
		if r := f.cached(path, cached); json.Unmarshal([]byte(r.body), &got) != nil {
			t.Fatal(r.body)
		}
		b := got.Buckets[0]
		if diff := cmp.Diff(want, b.Groups); diff != "" || b.Other != 7 || b.Missing != 2 || b.Count != n+2 {
			t.Errorf("%s: %d records, %d other, %d missing (-want +got):\n%s", cached, b.Count, b.Other, b.Missing, diff)
		}
	}
	type value struct {
		Value string
		Count int
		Cut   bool
	}
	var values struct{ Values []value }
	f.ok(with("/logs/fields/url/values", window...), &values)
	whole, cut := make(map[string]int), []int{}
	for _, v := range values.Values {
		if v.Cut {
			cut = append(cut, v.Count)
			if v.Value != long[:cutCharacters] {
				t.Errorf("a long value is told as %.50s, %d characters", v.Value, len(v.Value))
			}
			continue
		}
		whole[v.Value] = v.Count
	}
	if diff := cmp.Diff(want, whole); diff != "" || !slices.Equal(cut, []int{4, 3}) {
		t.Errorf("values: %v cut (-want +got):\n%s", cut, diff)
	}
	// What a value was counted under finds what was counted.
	for value, count := range whole {
		if len(value) == groupBytes {
			continue // q has no room for the field's name
		}
		var got struct{ Count int }
		f.ok(with("/logs/count", append(window, "q", "url:"+strconv.Quote(value))...), &got)
		if got.Count != count {
			t.Errorf("a value of %d bytes: counted %d, found %d", len(value), count, got.Count)
		}
	}
}

// TestManyLongValuesTakeLittleRoom has more text in the values of a field than an answer may hold.
func TestManyLongValuesTakeLittleRoom(t *testing.T) {
	f := newFixture(t, nil)
	hour := time.Now().UTC().Truncate(time.Hour).Add(-3 * time.Hour)
	partition(t, f.db, hour)
	// 12 values of 4,000 bytes in each of 600 buckets.
	f.exec(`INSERT INTO logs SELECT gen_random_uuid(), $1::timestamptz + b * interval '1 second', jsonb_build_object('v', repeat('v', 3990) || n)
		FROM generate_series(0, 599) b, generate_series(1, 12) n`, hour)
	f.exec("INSERT INTO logs SELECT gen_random_uuid(), $1::timestamptz, jsonb_build_object('v', repeat('w', 1000000) || n) FROM generate_series(1, 20) n", hour)
	var got histogramAnswer
	r := f.ok(with("/logs/histogram", "from", ms(hour), "to", ms(hour.Add(10*time.Minute)), "interval", "1s", "by", "v"), &got)
	if len(r.body) > histogramBytes+100*len(got.Buckets) {
		t.Errorf("got %d bytes", len(r.body))
	}
	for i, b := range got.Buckets {
		sum := b.Other + b.Missing
		for _, n := range b.Groups {
			sum += n
		}
		if want := 12; sum != b.Count || i > 0 && b.Count != want || len(b.Groups) == 0 {
			t.Fatalf("bucket %d: %d records, %d of them told", i, b.Count, sum)
		}
	}
	var values struct {
		Values []struct {
			Count int
			Cut   bool
		}
	}
	r = f.ok(with("/logs/fields/v/values", "from", ms(hour), "to", ms(hour.Add(time.Second))), &values)
	if len(values.Values) != 32 || len(r.body) > maxValues*(groupBytes+100) {
		t.Errorf("%d values in %d bytes, want 32", len(values.Values), len(r.body))
	}
}

// TestDaysAndWeeksAreThoseOfTheZone has the last hour and the first of days, as a zone has them.
func TestDaysAndWeeksAreThoseOfTheZone(t *testing.T) {
	f := newFixture(t, map[string]string{"REDIS_URL": string(testenv.Redis(t))})
	for _, tt := range []struct {
		tz, interval, from, to string
		want                   []string // the beginnings, and the end
		hours                  []int    // rows, one an hour
	}{
		{"", "1w", "2025-12-24T00:00:00Z", "2026-01-07T00:00:00Z", []string{"2025-12-22T00:00:00Z", "2025-12-29T00:00:00Z", "2026-01-05T00:00:00Z", "2026-01-12T00:00:00Z"}, []int{120, 168, 48}},
		{"", "1d", "2025-12-24T12:00:00Z", "2025-12-26T00:00:00Z", []string{"2025-12-24T00:00:00Z", "2025-12-25T00:00:00Z", "2025-12-26T00:00:00Z"}, []int{12, 24}},
		{"Europe/Berlin", "1d", "2026-10-24T00:00:00Z", "2026-10-26T23:00:00Z", []string{"2026-10-23T22:00:00Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z", "2026-10-26T23:00:00Z"}, []int{22, 25, 24}},
		{"Europe/Berlin", "1d", "2026-03-27T23:00:00Z", "2026-03-30T12:00:00Z", []string{"2026-03-27T23:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z", "2026-03-30T22:00:00Z"}, []int{24, 23, 14}},
		{"Europe/Berlin", "1w", "2026-10-19T00:00:00Z", "2026-11-01T23:00:00Z", []string{"2026-10-18T22:00:00Z", "2026-10-25T23:00:00Z", "2026-11-01T23:00:00Z"}, []int{167, 168}},
		{"Australia/Lord_Howe", "1d", "2026-04-03T13:00:00Z", "2026-04-05T13:30:00Z", []string{"2026-04-03T13:00:00Z", "2026-04-04T13:00:00Z", "2026-04-05T13:30:00Z"}, []int{24, 25}},
		{"Pacific/Apia", "1d", "2011-12-29T10:00:00Z", "2011-12-31T10:00:00Z", []string{"2011-12-29T10:00:00Z", "2011-12-30T10:00:00Z", "2011-12-31T10:00:00Z"}, []int{24, 24}},
		{"Europe/Berlin", "12h", "2026-03-28T00:00:00Z", "2026-03-29T00:00:00Z", []string{"2026-03-28T00:00:00Z", "2026-03-28T12:00:00Z", "2026-03-29T00:00:00Z"}, []int{12, 12}},
	} {
		from, err := time.Parse(time.RFC3339, tt.from)
		if err != nil {
			t.Fatal(err)
		}
		to, err := time.Parse(time.RFC3339, tt.to)
		if err != nil {
			t.Fatal(err)
		}
		f.exec("TRUNCATE logs")
		for day := from.Add(-48 * time.Hour); day.Before(to.Add(48 * time.Hour)); day = day.Add(24 * time.Hour) {
			partition(t, f.db, day)
		}
		f.exec(`INSERT INTO logs SELECT gen_random_uuid(), at, '{"level": "info"}' FROM generate_series($1::timestamptz - interval '30 hours', $2::timestamptz + interval '30 hours', interval '1 hour') at`, from.Truncate(time.Hour), to)
		for _, by := range []string{"", "level"} {
			for range 2 { // from the database and from Redis, where days of other zones lie too
				var got histogramAnswer
				f.ok(with("/logs/histogram", "from", tt.from, "to", tt.to, "interval", tt.interval, "tz", tt.tz, "by", by, "q", "-x:"+strings.ReplaceAll(tt.tz+tt.from, ":", "")), &got)
				var starts []string
				var hours []int
				for _, b := range got.Buckets {
					starts, hours = append(starts, b.Start.Format(time.RFC3339)), append(hours, b.Count)
				}
				starts = append(starts, got.End.Format(time.RFC3339))
				if diff := cmp.Diff(tt.want, starts) + cmp.Diff(tt.hours, hours); diff != "" {
					t.Errorf("%s of %s from %s (-want +got):\n%s", tt.interval, tt.tz, tt.from, diff)
				}
			}
		}
	}
	if r := f.get("/logs/histogram?tz=Mars/Olympus"); r.status != 400 || !strings.Contains(r.body, `tz: got \"Mars/Olympus\", takes the name of a time zone such as Europe/Berlin`) {
		t.Errorf("got %d %s", r.status, r.body)
	}
}

// TestARowAheadOfTheClockIsInEveryAnswer has one whose key was made by a clock 4 minutes ahead, which the API takes.
func TestARowAheadOfTheClockIsInEveryAnswer(t *testing.T) {
	f := newFixture(t, nil)
	at := time.Now().Add(4 * time.Minute).Truncate(time.Millisecond)
	partition(t, f.db, at)
	partition(t, f.db, at.Add(-24*time.Hour))
	insert(t, f.db, at, 0, `{"level": "info"}`)
	for _, window := range []string{"", "from=now-1h", "from=now", "from=" + ms(at)} {
		for path, want := range map[string]string{
			"/logs": `"level": "info"`, "/logs/count": `{"count":1}`, "/logs/fields": `"path":"level"`, "/logs/fields/level/values": `"value":"info"`, "/logs/export": `"level": "info"`,
		} {
			if r := f.get(path + "?" + window); r.status != 200 || !strings.Contains(r.body, want) {
				t.Errorf("%s?%s: got %d %s, want %s in it", path, window, r.status, r.body, want)
			}
		}
		for _, more := range []string{"", "&interval=1s", "&interval=1m&by=level", "&interval=1d&tz=Europe/Berlin"} {
			path := "/logs/histogram?" + window + more
			if more == "&interval=1s" && window == "" {
				continue // too many
			}
			var got histogramAnswer
			if r := f.get(path); strings.Contains(more, "1s") && window == "from=now-1h" && r.status == 400 {
				continue
			}
			f.ok(path, &got)
			sum := 0
			for _, b := range got.Buckets {
				sum += b.Count
			}
			if sum != 1 || !got.End.After(at) {
				t.Errorf("%s: got %d records, the end at %s, want one and an end after %s", path, sum, got.End, at)
			}
			if last := got.Buckets[len(got.Buckets)-1]; last.Count == 0 && last.Start.After(time.Now()) {
				t.Errorf("%s: an empty bucket begins ahead of now, at %s", path, last.Start)
			}
		}
	}
	f.exec("TRUNCATE logs")
	var got histogramAnswer
	f.ok("/logs/histogram?from=now-15m", &got)
	if got.End.After(time.Now().Add(time.Minute)) || got.End.Before(time.Now().Add(-time.Minute)) {
		t.Errorf("without rows ahead it ends at %s", got.End)
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
		"level":       `{"path":"level","sampled":3,"values":[{"value":"info","count":2},{"value":"error","count":1}],"distinct":2,"complete":true}`,
		"http.status": `{"path":"http.status","sampled":3,"values":[{"value":"500","count":1},{"value":500,"count":1}],"distinct":2,"numbers":{"count":2,"min":500,"p50":500,"p95":500,"max":500},"complete":true}`,
		`"a.b".c`:     `{"path":"\"a.b\".c","sampled":3,"values":[{"value":true,"count":1}],"distinct":1,"complete":true}`,
		"tags":        `{"path":"tags","sampled":3,"values":[{"value":"x","count":1},{"value":"y","count":1}],"distinct":2,"complete":true}`,
		"none":        `{"path":"none","sampled":3,"values":[],"distinct":0,"complete":true}`,
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
	if r := f.get("/logs/export?cursor=5"); r.status != 400 {
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
		"a:/(a|b|ab)*c/", "a:/((a*)*)*c/", "a:/(a{30}){30}/", "a:/[^a-b]+(a+b+)+$/i", "a~*ab*ab*c", "a:i(ab)", "a:::/0", "a:10.0.0.0/8", "time:>now-1h", "a>1 OR a.b.c.d.e.f.g.h.i.j:1", `a:/\p{Han}/`,
	} {
		for _, path := range []string{"/logs", "/logs/count", "/logs/histogram", "/logs/fields", "/logs/fields/a/values", "/logs/export", "/logs/stats", "/logs/patterns?field=a&vs=1d", "/logs/sql"} {
			began := time.Now()
			r := f.get(with(path, "q", q))
			if r.status != 200 && r.status != 504 && r.status != 400 || time.Since(began) > 10*time.Second+testenv.Patience {
				t.Errorf("%s, q=%s: got %d after %v: %.200s", path, q, r.status, time.Since(began), r.body)
			}
		}
	}
	for _, bad := range []string{"q=" + strings.Repeat("x", 12_000), "q=" + strings.Repeat("(", 10_000), "from=now&to=now-1h", "q=a:["} {
		for _, path := range []string{"/logs", "/logs/count", "/logs/histogram", "/logs/fields", "/logs/fields/a/values", "/logs/export", "/logs/tail"} {
			if r := f.get(path + "?" + bad); r.status != 400 {
				t.Errorf("%s?%.40s: got %d %.200s, want 400", path, bad, r.status, r.body)
			}
		}
	}
	var page logsPage
	f.ok("/logs", &page)
}
