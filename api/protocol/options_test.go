package protocol

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"millrace/internal/scan"
)

// stored returns what Millrace's own protocol makes of a batch.
func stored(t *testing.T, query string, h headers, body string) (records string, a Answer) {
	t.Helper()
	list := newRecords()
	a, _ = exchange(Native{}, Request{Path: []byte(batchPath), Query: []byte(query), Header: h}, []byte(body), list)
	return string(list.NDJSON), a
}

func TestABatchCanBeAnsweredWith200(t *testing.T) {
	for _, tt := range []struct {
		query  string
		prefer string
		body   string
		status int
		begins string
	}{
		{"ok=200", "", "{}", 200, `{"accepted":1,"rejected":0}`},
		{"", "status=200", "{}", 200, `{"accepted":1,"rejected":0}`},
		{"", "respond-async, Status = 200", "{}", 200, `{"accepted":1,"rejected":0}`},
		{"", "status=201", "{}", 202, `{"accepted":1,"rejected":0}`},
		{"ok=200", "", "{}\n5", 200, `{"accepted":1,"rejected":1,"errors":[{"index":1,`},
		{"ok=200", "", "5\n", 200, `{"accepted":0,"rejected":1,"errors":[{"index":0,`},
		{"ok=200", "", "", 200, `{"accepted":0,"rejected":0}`},
		{"ok=200", "", "[{}", 400, `{"error":"unexpected end of body`},
		{"ok=200&ids=true", "", "{}", 200, `{"accepted":1,"rejected":0,"ids":["0`},
		{"ok=202", "", "{}", 400, `{"error":"ok: got \"202\", takes 200"}`},
	} {
		_, a := stored(t, tt.query, headers{"Prefer": tt.prefer}, tt.body)
		if got := string(a.sent(t)); a.Status != tt.status || !strings.HasPrefix(got, tt.begins) {
			t.Errorf("%s, Prefer: %s, %q: got %d %s, want %d %s…", tt.query, tt.prefer, tt.body, a.Status, got, tt.status, tt.begins)
		}
	}
	a, _ := exchange(Native{}, Request{Path: []byte(singlePath), Query: []byte("ok=200"), Header: headers{}}, []byte("{}"), newRecords())
	if a.Status != http.StatusOK || !strings.HasPrefix(string(a.Body), `{"id":"0`) {
		t.Errorf("one record: got %d %s", a.Status, a.Body)
	}
}

func TestRepairsAreMadeOnlyWhereTheyAreAskedFor(t *testing.T) {
	const body = `{"a":"\u0000"}`
	if got, a := stored(t, "", headers{}, body); got != "" || a.Status != 400 {
		t.Errorf("not asked for: got %d %s", a.Status, got)
	}
	if got, a := stored(t, "repair=true", headers{}, body); got != `{"a":"�","_repaired":["a"]}`+"\n" || a.Status != 202 {
		t.Errorf("asked for: got %d %s", a.Status, got)
	}
	list := newRecords()
	a, _ := exchange(Native{}, Request{Path: []byte(singlePath), Query: []byte("repair=1"), Header: headers{}}, []byte(body), list)
	if a.Status != 202 || list.RepairedBy(scan.NUL) != 1 {
		t.Errorf("one record: got %d %s", a.Status, a.Body)
	}
}

func TestRecordsAreTakenOutOfContainers(t *testing.T) {
	const metric = `{"fields":{"usage":1.5,"host":2},"name":"cpu","tags":{"host":"a","cpu":"cpu0"},"timestamp":1795822841}`
	const asRecord = `{"time":"2026-11-27T23:40:41Z","name":"cpu","usage":1.5,"host":2,"cpu":"cpu0","tags":{"host":"a"}}` + "\n"
	for _, tt := range []struct{ name, unwrap, body, want string }{
		{"by name", "logs", `{"logs":[{"a":1},{"a" : 2}]}`, "{\"a\":1}\n{\"a\":2}\n"},
		{"found", "true", ` {"events" : [ {"a":1} , {"a":2} ] } `, "{\"a\":1}\n{\"a\":2}\n"},
		{"several", "true", "\ufeff{\"logs\":[{\"a\":1}]}\n{\"records\":[{\"a\":2}]}", "{\"a\":1}\n{\"a\":2}\n"},
		{"in an array", "logs", `[{"logs":[{"a":1}]},{"b":2}]`, "{\"a\":1}\n{\"b\":2}\n"},
		{"none", "logs", `{"a":[1]}`, `{"a":[1]}` + "\n"},
		{"another name", "logs", `{"events":[{"a":1}]}`, `{"events":[{"a":1}]}` + "\n"},
		{"two arrays", "true", `{"logs":[{}],"x":[]}`, `{"logs":[{}],"x":[]}` + "\n"},
		{"empty", "true", `{"logs":[]}`, ""},
		{"members beside", "true", `{"host":"x","logs":[{"a":1},{"host":"y"}],"n":{"m":1}}`, `{"a":1,"host":"x","n":{"m":1}}` + "\n" + `{"host":"y","n":{"m":1}}` + "\n"},
		{"bad ones between", "logs", `{"logs":[{"a":1},5,{"b":},{"c":3}]}`, "{\"a\":1}\n{\"c\":3}\n"},
		{"metrics", "metrics", `{"metrics":[` + metric + `]}`, asRecord},
		{"metrics, found", "true", `{"metrics":[` + metric + `,{"a":1}]}`, asRecord + "{\"a\":1}\n"},
		{"a metric whose fields have the names", "metrics", `{"metrics":[{"name":"n","fields":{"name":"x","time":1},"timestamp":1795822841123,"more":true}]}`,
			`{"@timestamp":"2026-11-27T23:40:41.123Z","measurement":"n","name":"x","time":1,"more":true}` + "\n"},
	} {
		got, a := stored(t, "unwrap="+tt.unwrap, headers{}, tt.body)
		if got != tt.want || a.Status >= 400 {
			t.Errorf("%s: got %d %s %s, want %s", tt.name, a.Status, a.Body, got, tt.want)
		}
	}
	for _, body := range []string{"", "x", `{"logs":[{}`, `{"logs":[]} x`, "{} \"a\""} {
		if got, a := stored(t, "unwrap=logs", headers{}, body); got != "" || a.Status != 400 {
			t.Errorf("%q: got %d %s", body, a.Status, got)
		}
	}
	if _, a := stored(t, "unwrap=rows", headers{}, "{}"); a.Status != 400 || !strings.Contains(string(a.Body), "takes true, logs, metrics, records, events") {
		t.Errorf("got %d %s", a.Status, a.Body)
	}
}

func TestLinesOfTextAreRecords(t *testing.T) {
	text := headers{"Content-Type": "Text/Plain; charset=utf-8"}
	for _, tt := range []struct{ name, query, body, want string }{
		{"lines", "", "\ufeffone\r\n\n \"two\"\t\n", `{"message":"one"}` + "\n" + `{"message":" \"two\"\t"}` + "\n"},
		{"objects among them", "", "one\n{\"a\": 1}\n{\"a\":}\n", `{"message":"one"}` + "\n" + `{"a":1}` + "\n" + `{"message":"{\"a\":}"}` + "\n"},
		{"objects as text", "parse=false", "{\"a\":1}\n", `{"message":"{\"a\":1}"}` + "\n"},
		{"JSON after all", "", "[{\"a\":1},\n{\"b\":2}]", "{\"a\":1}\n{\"b\":2}\n"},
		{"bytes that are no text", "repair=true", "a\x00\xff\n", `{"message":"a��","_repaired":["message"]}` + "\n"},
	} {
		got, a := stored(t, tt.query, text, tt.body)
		if got != tt.want || a.Status != 202 {
			t.Errorf("%s: got %d %s %s, want %s", tt.name, a.Status, a.Body, got, tt.want)
		}
	}
	if got, a := stored(t, "", text, "{\"a\":1}\n{\"b\":\"\\u0000\"}"); got != "{\"a\":1}\n" || !strings.Contains(string(a.sent(t)), `"rejected":1,"errors":[{"index":1,`) {
		t.Errorf("JSON of which something can't be stored: got %d %s %s, want it told", a.Status, a.Body, got)
	}
	text["X-Parse"] = "False"
	if got, _ := stored(t, "", text, "{}"); got != `{"message":"{}"}`+"\n" {
		t.Errorf("X-Parse: got %s", got)
	}
	if got, a := stored(t, "", text, "\x1f\x8b\x08\x00\xff\n"); got != "" || a.Status != 400 || !strings.Contains(string(a.Body), "looks like gzip") {
		t.Errorf("gzip: got %d %s", a.Status, a.Body)
	}
	if got, a := stored(t, "", text, " \n"); got != "" || a.Status != 400 {
		t.Errorf("nothing: got %d %s", a.Status, got)
	}
}

func TestConstantFieldsAreAdded(t *testing.T) {
	const want = `{"a":1,"env":"prod","x.y":"\"z\""}` + "\n" + `{"env":null,"x.y":"\"z\""}` + "\n"
	const body = "{\"a\":1}\n5\n{\"env\":null}\n"
	for query, h := range map[string]headers{
		"fields=env=prod,x.y=%22z%22":     {},
		"":                                {"X-Fields": ` env = prod , x.y="z"`},
		"fields=env=prod,x.y=\"z\"&ids=1": {"X-Fields": "a=b"},
	} {
		got, a := stored(t, query, h, body)
		if sent := string(a.sent(t)); got != want || a.Status != 207 || !strings.Contains(sent, `"errors":[{"index":1,"error":"not an object at byte 8"}]`) {
			t.Errorf("%s %v: got %d %s %s, want %s", query, h, a.Status, sent, got, want)
		}
	}
	for _, fields := range []string{"a", "=b", "a=b,", "a=%00", strings.Repeat("a=b,", maxFields) + "a=b", "a=" + strings.Repeat("b", maxFieldBytes)} {
		if got, a := stored(t, "fields="+fields, headers{}, "{}"); got != "" || a.Status != 400 || !strings.Contains(string(a.Body), "fields: ") {
			t.Errorf("%s: got %d %s", fields, a.Status, a.Body)
		}
	}
}

func TestTheTimeIsFoundInTheFieldsThatTheClientNames(t *testing.T) {
	for _, tt := range []struct{ names, record, want string }{
		{"a,b", `{"x":1,"a":1795822841,"b":1795822842}`, `{"time":1795822841,"x":1,"a":1795822841,"b":1795822842}`},
		{"a,b", `{"a":"soon","b":"2026-11-28T00:00:00Z"}`, `{"time":"2026-11-28T00:00:00Z","a":"soon","b":"2026-11-28T00:00:00Z"}`},
		{"a", `{"time":1795822840,"a":1795822841}`, `{"time":1795822841,"a":1795822841,"original":{"time":1795822840}}`},
		{"a", `{"time":{"b":1},"a":1795822841,"original":1,"_original":2}`, `{"time":1795822841,"a":1795822841,"original":1,"_original":2,"__original":{"time":{"b":1}}}`},
		{"time,a", `{"time":1795822840,"a":1795822841}`, `{"time":1795822840,"a":1795822841}`},
		{"a", `{"time":1795822840,"a":"no"}`, `{"time":1795822840,"a":"no"}`},
		{"a", `{"a":"no","a":1795822841}`, `{"time":1795822841,"a":"no","a":1795822841}`},
	} {
		if got, a := stored(t, "time_field="+tt.names, headers{}, tt.record); got != tt.want+"\n" {
			t.Errorf("%s of %s: got %s %s, want %s", tt.names, tt.record, a.Body, got, tt.want)
		}
	}
	if got, _ := stored(t, "", headers{"X-Time-Field": "a"}, `{"a":1795822841}`); got != `{"time":1795822841,"a":1795822841}`+"\n" {
		t.Errorf("in the header: got %s", got)
	}
	if got, a := stored(t, "time_field=a,a", headers{}, `{}`); got != "" || a.Status != 400 {
		t.Errorf("twice the same: got %d %s", a.Status, got)
	}
}

func TestARequestSaysWhetherItIsStoredOnce(t *testing.T) {
	for _, tt := range []struct {
		query, header string
		want          Dedupe
		bad           bool
	}{
		{"", "", DedupeAsSet, false}, {"dedupe=body", "", DedupeBody, false}, {"a=b&%64edupe=body", "", DedupeAsSet, false}, {"", "body", DedupeBody, false},
		{"dedupe=none", "body", DedupeNone, false}, {"", "none", DedupeNone, false}, {"dedupe=yes", "", DedupeAsSet, true}, {"", "1", DedupeAsSet, true},
		{"x=dedupe", "", DedupeAsSet, false},
	} {
		got, bad := DedupeOf(Request{Query: []byte(tt.query), Header: headers{"X-Dedupe": tt.header}})
		if got != tt.want || (bad != nil) != tt.bad {
			t.Errorf("%s, X-Dedupe: %s: got %d, %v, want %d", tt.query, tt.header, got, bad, tt.want)
		}
	}
}

func TestATunedBatchCanBeTakenInParts(t *testing.T) {
	open := func(query, content string) Parts {
		t.Helper()
		e, bad := Native{}.Open(Request{Path: []byte(batchPath), Query: []byte(query), Header: headers{"Content-Type": content}})
		if bad != nil {
			t.Fatal(bad)
		}
		parts, _ := e.(Parts)
		return parts
	}
	for _, tt := range []struct{ query, content, first, part, want string }{
		{"fields=a=b&repair=true", "", "{\"x\":NaN}\n", "{\"y\":1}\n", `{"x":"NaN","_repaired":["x"],"a":"b"}` + "\n|" + `{"y":1,"a":"b"}` + "\n"},
		{"", "text/plain", "one\n", "{\"y\":1}\ntwo", `{"message":"one"}` + "\n|" + `{"y":1}` + "\n" + `{"message":"two"}` + "\n"},
	} {
		parts := open(tt.query, tt.content)
		records, spare := newRecords(), newRecords()
		first := parts.First([]byte(tt.first), records, spare)
		got := string(records.NDJSON) + "|"
		records.Clear()
		err := parts.Part([]byte(tt.part), records)
		if got += string(records.NDJSON); !first || err != nil || got != tt.want {
			t.Errorf("%s: got %v, %v, %s, want %s", tt.query, first, err, got, tt.want)
		}
	}
	if open("", "text/plain").First([]byte("[\n"), newRecords(), newRecords()) {
		t.Error("text that may be JSON is taken in parts")
	}
	if parts := open("unwrap=true", ""); parts != nil {
		t.Error("containers are taken in parts")
	}
	total := newRecords()
	total.Accepted, total.Rejected = 1, 1
	if a := open("ok=200", "").AnswerParts(nil, Request{}, total, nil); a.Status != 200 {
		t.Errorf("got %d %s", a.Status, a.Body)
	}
}

// FuzzUnwrap takes whatever bytes apart. What is stored is JSON, and no more than a small multiple of what came.
func FuzzUnwrap(f *testing.F) {
	f.Add([]byte(`{"logs":[{"a":1},5,{"b":[}],"host":"x"}`), "true")
	f.Add([]byte(`[{"metrics":[{"name":"n","fields":{"f":1,"t":2},"tags":{"t":"x"},"timestamp":1795822841}]}]`), "metrics")
	f.Add([]byte("\xef\xbb\xbf{\"records\":[\"\\\"\",[{}],{}]}{"), "records")
	f.Fuzz(func(t *testing.T, body []byte, name string) {
		records := newRecords()
		err := unwrap(records, body, name)
		if err != nil && (records.Accepted+records.Rejected+len(records.NDJSON) > 0 || err.Msg == "" || err.Offset > len(body)) {
			t.Errorf("refused for %v at %d, and left %d records", err, err.Offset, records.Accepted)
		}
		again := newRecords()
		if len(records.NDJSON) > 0 {
			if err := again.Split(records.NDJSON); err != nil || again.Rejected > 0 || string(again.NDJSON) != string(records.NDJSON) {
				t.Errorf("stored %q, of which %v", records.NDJSON, err)
			}
		}
		if most := (len(body) + 1) * (maxBeside + 64); len(records.NDJSON) > most {
			t.Errorf("%d bytes became %d", len(body), len(records.NDJSON))
		}
	})
}

func BenchmarkABatchWithOptions(b *testing.B) {
	var body strings.Builder
	for i := range 500 {
		fmt.Fprintf(&body, `{"time":"2026-11-28T10:00:00.%03dZ","level":"info","message":"%s","n":%d}`+"\n", i, strings.Repeat("word ", 36), i)
	}
	for _, query := range []string{"", "ok=200&repair=true", "fields=env=prod", "time_field=ts,time&fields=env=prod"} {
		b.Run(query, func(b *testing.B) {
			text := []byte(body.String())
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			list := newRecords()
			list.Limits.RecordBytes = 1 << 20
			for b.Loop() {
				list.Clear()
				exchange(Native{}, Request{Path: []byte(batchPath), Query: []byte(query), Header: headers{}}, text, list)
			}
		})
	}
}
