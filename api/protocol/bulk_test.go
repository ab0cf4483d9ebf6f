package protocol

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"millrace/internal/eventtime"
	"millrace/internal/record"
	"millrace/internal/scan"
)

func TestBulkAnswersEachAction(t *testing.T) {
	for _, tt := range []struct{ name, path, body, stored, answer string }{
		{"nothing", "/_bulk", "", "", `{"took":0,"errors":false,"items":[]}`},
		{"blank lines only", "/_bulk", "\r\n \n", "", `{"took":0,"errors":false,"items":[]}`},
		{"Fluent Bit's form", "/_bulk",
			`{"create":{"_index":"fluent-bit","_type":"_doc"}}` + "\n" + `{"n":1}` + "\n" + `{"create":{"_index":"fluent-bit","_type":"_doc"}}` + "\n" + `{"n":2}` + "\n",
			`{"_index":"fluent-bit","n":1}` + "\n" + `{"_index":"fluent-bit","n":2}` + "\n",
			`{"took":0,"errors":false,"items":[{"create":{"_index":"fluent-bit","status":201}},{"create":{"_index":"fluent-bit","status":201}}]}`},
		{"winston's form", "/_bulk", `{"index":{"_index":"logs","pipeline":null},"attempts":0}` + "\n" + `{"n":1}` + "\n",
			`{"_index":"logs","n":1}` + "\n", `{"took":0,"errors":false,"items":[{"index":{"_index":"logs","status":201}}]}`},
		{"rsyslog's form: blank lines, \\r\\n, no last newline", "/_bulk", "\n{\"index\":{\"_index\": \"s\" } }\r\n{\"n\" : 1}\r\n\r\n \r\n{\"index\":{\"_index\": \"s\" } }\r\n\r\n{\"n\":2}",
			`{"_index":"s","n":1}` + "\n" + `{"_index":"s","n":2}` + "\n",
			`{"took":0,"errors":false,"items":[{"index":{"_index":"s","status":201}},{"index":{"_index":"s","status":201}}]}`},
		{"the path's index", "/logs/_bulk", "{\"create\":{}}\n{}\n{\"create\":{\"_index\":\"other\"}}\n{}\n{\"create\":{}}\n{}\n",
			`{"_index":"logs"}` + "\n" + `{"_index":"other"}` + "\n" + `{"_index":"logs"}` + "\n",
			`{"took":0,"errors":false,"items":[{"create":{"_index":"logs","status":201}},{"create":{"_index":"other","status":201}},{"create":{"_index":"logs","status":201}}]}`},
		{"no index", "/_bulk", "{\"create\":{}}\n{\"a\":1}\n", `{"a":1}` + "\n", `{"took":0,"errors":false,"items":[{"create":{"_index":"","status":201}}]}`},
		{"ids", "/es/x/_bulk", "{\"index\":{\"_id\":\"a\"}}\n{}\n{\"index\":{\"_id\":\"b\"}}\n{}\n{\"index\":{\"_id\":7}}\n{}\n{\"index\":{\"_id\":null}}\n{}\n",
			`{"_index":"x","_id":"a"}` + "\n" + `{"_index":"x","_id":"b"}` + "\n" + `{"_index":"x","_id":"7"}` + "\n" + `{"_index":"x"}` + "\n",
			`{"took":0,"errors":false,"items":[{"index":{"_index":"x","_id":"a","status":201}},{"index":{"_index":"x","_id":"b","status":201}},{"index":{"_index":"x","_id":"7","status":201}},{"index":{"_index":"x","status":201}}]}`},
		{"names that jsonb does not take", "/_bulk", `{"index":{"_index":"a\u0000é\ud800","_id":"\n"}}` + "\n{}\n", `{"_index":"a` + "\ufffdé\ufffd" + `","_id":"\n"}` + "\n",
			`{"took":0,"errors":false,"items":[{"index":{"_index":"a` + "\ufffdé\ufffd" + `","_id":"\n","status":201}}]}`},
		{"a bad document costs itself", "/x/_bulk", "{\"create\":{}}\n{\"n\":1}\n{\"create\":{}}\nno\n{\"create\":{}}\n[1]\n{\"create\":{}}\n{\"n\":2}\n",
			`{"_index":"x","n":1}` + "\n" + `{"_index":"x","n":2}` + "\n",
			`{"took":0,"errors":true,"items":[{"create":{"_index":"x","status":201}},` +
				`{"create":{"_index":"x","status":400,"error":{"type":"mapper_parsing_exception","reason":"unexpected 'o', want null at byte 37"}}},` +
				`{"create":{"_index":"x","status":400,"error":{"type":"mapper_parsing_exception","reason":"not an object at byte 53"}}},` +
				`{"create":{"_index":"x","status":201}}]}`},
		{"what can be repaired is", "/x/_bulk", "{\"create\":{}}\n{\"a\":\"\xff\",\"b\":NaN,\"time\":1,\"@timestamp\":2}\n",
			`{"_index":"x","time":2,"a":"` + "\ufffd" + `","b":"NaN","time":1,"@timestamp":2,"_repaired":["a","b"]}` + "\n",
			`{"took":0,"errors":false,"items":[{"create":{"_index":"x","status":201}}]}`},
		{"delete has no document", "/x/_bulk", "{\"delete\":{\"_id\":\"1\"}}\n{\"delete\":{\"_id\":\"1\"}}\n{\"index\":{}}\n{}\n", `{"_index":"x"}` + "\n",
			`{"took":0,"errors":false,"items":[{"delete":{"_index":"x","_id":"1","result":"not_found","status":404}},{"delete":{"_index":"x","_id":"1","result":"not_found","status":404}},{"index":{"_index":"x","status":201}}]}`},
		{"update has a doc", "/x/_bulk", "{\"update\":{\"_id\":\"1\"}}\n{\"doc_as_upsert\":true, \"doc\" : {\"a\": 1} }\n{\"update\":{}}\n{\"script\":\"x\"}\n{\"update\":{}}\n{\"doc\":5}\n",
			`{"_index":"x","_id":"1","a":1}` + "\n",
			`{"took":0,"errors":true,"items":[{"update":{"_index":"x","_id":"1","status":201}},` +
				`{"update":{"_index":"x","status":400,"error":{"type":"mapper_parsing_exception","reason":"takes an object whose member doc is an object"}}},` +
				`{"update":{"_index":"x","status":400,"error":{"type":"mapper_parsing_exception","reason":"takes an object whose member doc is an object"}}}]}`},
		{"no document follows", "/x/_bulk", "{\"index\":{}}\n{\"a\":1}\n{\"index\":{}}\n", `{"_index":"x","a":1}` + "\n",
			`{"took":0,"errors":true,"items":[{"index":{"_index":"x","status":201}},{"index":{"_index":"x","status":400,"error":{"type":"mapper_parsing_exception","reason":"no line with a document follows"}}}]}`},
		{"byte-order marks of files", "/x/_bulk", "{\"index\":{}}\n\ufeff{\"a\":1}\n", `{"_index":"x","a":1}` + "\n", `{"took":0,"errors":false,"items":[{"index":{"_index":"x","status":201}}]}`},
	} {
		a, answer, stored := elastic(t, "POST", tt.path, tt.body)
		if a.Status != 200 || answer != tt.answer || stored != tt.stored || !json.Valid([]byte(answer)) {
			t.Errorf("%s: got %d\n%s\n%s\nwant\n%s\n%s", tt.name, a.Status, answer, stored, tt.answer, tt.stored)
		}
	}
}

func TestALineThatIsNoActionRefusesTheBody(t *testing.T) {
	for _, line := range []string{
		`no`, `5`, `[]`, `{}`, `{"index"`, `{"index":`, `{"index":{`, `{"index":{}`, `{"index":{}}}`, `{"index":{}} {}`, `{"index":{},}`, `{"index":null}`, `{"index":[]}`,
		`{"insert":{}}`, `{"message":"a document"}`, `{"index":{"_index":{}}}`, `{"index":{"_id":[1]}}`, `{"index":{"_index":"\x"}}`, `{"index":{"_index":"a}}`, `{"index":{"a"}}`,
	} {
		a, answer, stored := elastic(t, "POST", "/x/_bulk", "{\"create\":{}}\n{\"n\":1}\n\n"+line+"\n{\"n\":2}\n")
		want := `{"error":{"type":"illegal_argument_exception","reason":"Malformed action/metadata line [4], expected`
		if a.Status != 400 || !strings.HasPrefix(answer, want) || !strings.HasSuffix(answer, `}]},"status":400}`) || stored != "" || !json.Valid([]byte(answer)) {
			t.Errorf("%s: got %d %s and %q", line, a.Status, answer, stored)
		}
	}
	records := newRecords()
	_, bad := exchange(Elastic{}, Request{Path: []byte("/x/_bulk"), Header: header("")}, []byte("{\"create\":{}}\n{\"n\":1}\nno\n"), records)
	if bad == nil || bad.Body == nil || bad.Body.Reason != scan.Syntax || bad.Body.Offset != 22 || records.Accepted != 0 || len(records.NDJSON) != 0 {
		t.Errorf("refused with %+v, and %d records are left", bad, records.Accepted)
	}
}

func TestTheTimestampOfADocumentIsItsTime(t *testing.T) {
	rule, err := eventtime.New(eventtime.DefaultFields, nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	const at = `"@timestamp":"2026-11-27T20:00:01.123Z"`
	for _, tt := range []struct{ document, stored string }{
		{`{` + at + `,"n":1}`, `{"_index":"x",` + at + `,"n":1}`},
		{`{` + at + `,"time":"2025-11-27T20:00:01Z"}`, `{"_index":"x","time":"2026-11-27T20:00:01.123Z",` + at + `,"time":"2025-11-27T20:00:01Z"}`},
		{`{"timestamp":1,` + at + `}`, `{"_index":"x","timestamp":"2026-11-27T20:00:01.123Z","timestamp":1,` + at + `}`},
	} {
		_, _, stored := elastic(t, "POST", "/x/_bulk", "{\"create\":{}}\n"+tt.document+"\n")
		if stored != tt.stored+"\n" {
			t.Errorf("%s: stored %s, want %s", tt.document, stored, tt.stored)
		}
		want := time.Date(2026, 11, 27, 20, 0, 1, 123e6, time.UTC).UnixMicro()
		if got, is := rule.Find([]byte(stored)); got != want || is != eventtime.Own {
			t.Errorf("%s: its time is %v, %v", stored, got, is)
		}
		// What jsonb keeps of two members with one key is the last.
		var before, after map[string]any
		if json.Unmarshal([]byte(tt.document), &before) != nil || json.Unmarshal([]byte(stored), &after) != nil {
			t.Fatalf("%s or %s is no JSON", tt.document, stored)
		}
		before["_index"] = "x"
		if fmt.Sprint(before) != fmt.Sprint(after) {
			t.Errorf("%s is kept as %s", tt.document, stored)
		}
	}
}

func TestALongAnswerIsMadeAsItIsSent(t *testing.T) {
	var body strings.Builder
	const actions = 5000
	want := []byte(`{"took":0,"errors":true,"items":[`)
	for i := range actions {
		if i > 0 {
			want = append(want, ',')
		}
		switch i % 3 {
		case 0:
			body.WriteString("{\"create\":{}}\n{}\n")
			want = append(want, `{"create":{"_index":"x","status":201}}`...)
		case 1:
			fmt.Fprintf(&body, "{\"index\":{\"_id\":\"%d\"}}\n{}\n", i)
			want = fmt.Appendf(want, `{"index":{"_index":"x","_id":"%d","status":201}}`, i)
		case 2:
			at := body.Len() + len("{\"create\":{}}\n")
			body.WriteString("{\"create\":{}}\n7\n")
			why := "not an object"
			if i/3 < scan.MaxErrors { // later ones are told without their place
				why += fmt.Sprint(" at byte ", at)
			}
			want = fmt.Appendf(want, `{"create":{"_index":"x","status":400,"error":{"type":"mapper_parsing_exception","reason":"%s"}}}`, why)
		}
	}
	want = append(want, `]}`...)
	a, answer, _ := elastic(t, "POST", "/x/_bulk", body.String())
	if a.Stream == nil || answer != string(want) {
		t.Errorf("got %d bytes, want %d", len(answer), len(want))
	}
	e := newBulk([]byte(`"x"`), nil)
	records := newRecords()
	if bad := e.Decode(Request{}, []byte(body.String()), records); bad != nil {
		t.Fatal(bad)
	}
	a = e.Answer([]byte(nil), Request{}, Outcome{Records: records})
	records.Clear() // it goes to the next request before the answer is read
	if err := iotest.TestReader(a.Stream, want); err != nil {
		t.Error(err)
	}
}

func TestALongIndexDoesNotMakeMuchOfLittle(t *testing.T) {
	records := newRecords()
	records.Limits.TotalBytes = 1 << 20
	index := strings.Repeat("i", maxIndexName)
	body := strings.Repeat("{\"create\":{}}\n{}\n", 1<<16)
	_, bad := exchange(Elastic{}, Request{Path: []byte("/" + index + "/_bulk"), Header: header("")}, []byte(body), records)
	if bad != nil || !records.Overflow || len(records.NDJSON) > 2<<20 {
		t.Errorf("%v, and %d bytes of records", bad, len(records.NDJSON))
	}
}

func TestDocumentsAreChangedAsTheClientAsks(t *testing.T) {
	const body = "{\"create\":{}}\n {\"time\":1795809601,\"@timestamp\":\"2026-01-01T00:00:00Z\",\"ts\":1795809602}\n"
	for query, want := range map[string]string{
		"refresh=true":                  `{"_index":"x","time":"2026-01-01T00:00:00Z","time":1795809601,"@timestamp":"2026-01-01T00:00:00Z","ts":1795809602}`,
		"time_field=time":               `{"_index":"x","time":1795809601,"@timestamp":"2026-01-01T00:00:00Z","ts":1795809602}`,
		"time_field=none,ts&fields=a=b": `{"_index":"x","time":1795809602,"a":"b","time":1795809601,"@timestamp":"2026-01-01T00:00:00Z","ts":1795809602}`,
		"fields=a=b,ts=c,time=d":        `{"_index":"x","time":"2026-01-01T00:00:00Z","a":"b","time":1795809601,"@timestamp":"2026-01-01T00:00:00Z","ts":1795809602}`,
	} {
		records := newRecords()
		r := Request{Path: []byte("/x/_bulk"), Query: []byte(query), Header: header("")}
		if _, bad := exchange(Elastic{}, r, []byte(body), records); bad != nil || string(records.NDJSON) != want+"\n" {
			t.Errorf("%s: %v, got %s want %s", query, bad, records.NDJSON, want)
		}
		r.Path = []byte("/x/_doc")
		_, document, _ := strings.Cut(body, "\n")
		if _, bad := exchange(Elastic{}, r, []byte(document), records); bad != nil || string(records.NDJSON) != want+"\n" {
			t.Errorf("%s of a document: %v, got %s want %s", query, bad, records.NDJSON, want)
		}
	}
	if _, bad := exchange(Elastic{}, Request{Path: []byte("/x/_bulk"), Query: []byte("fields=x"), Header: header("")}, nil, newRecords()); bad == nil || bad.Status != 400 {
		t.Errorf("a mistake in the options: %v", bad)
	}
}

// bulkOf returns a bulk request of n documents, and the same documents as NDJSON.
func bulkOf(n int, action string) (bulk, lines []byte) {
	for i := range n {
		line := fmt.Sprintf(`{"@timestamp":"2026-11-27T20:%02d:%02d.123Z","level":"info","service":{"name":"checkout"},"message":"GET /api/orders/%d took 12 ms","http":{"method":"GET","status":200,"path":"/api/orders/%d"},"trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","host":"web-%d","n":%d}`+"\n", i/60%60, i%60, i, i, i%7, i)
		bulk = append(append(append(bulk, action...), '\n'), line...)
		lines = append(lines, line...)
	}
	return bulk, lines
}

func TestABulkRequestAllocatesLittle(t *testing.T) {
	body, _ := bulkOf(500, `{"create":{"_index":"logs"}}`)
	records := &record.List{Limits: scan.Limits{RecordBytes: 1 << 20, PieceBytes: 64 << 10}}
	dst := make([]byte, 0, 64<<10)
	allocs := testing.AllocsPerRun(10, func() {
		records.Clear()
		e := newBulk(nil, nil)
		if bad := e.Decode(Request{}, body, records); bad != nil {
			t.Fatal(bad)
		}
		e.Answer(dst, Request{}, Outcome{Records: records})
	})
	if allocs > 4 {
		t.Errorf("%.0f allocations for 500 documents", allocs)
	}
}

// FuzzBulk checks that a body of any bytes has an item for each of its actions, and that the accepted ones are stored.
func FuzzBulk(f *testing.F) {
	f.Add([]byte("{\"create\":{}}\n{\"n\":1}\n{\"delete\":{\"_id\":\"1\"}}\n{\"update\":{}}\n{\"doc\":{}}\n"))
	f.Add([]byte("\ufeff\r\n{\"index\":{\"_index\":\"\\u0000\"}}\r\n5\r\n{\"index\":{\"_index\":7}}\r\n{\"time\":1,\"@timestamp\":2}"))
	f.Add([]byte("{\"index\":{}}\nno\n{\"index\":{}}"))
	f.Fuzz(func(t *testing.T, body []byte) {
		records := newRecords()
		r := Request{Method: []byte("POST"), Path: []byte("/p/_bulk"), Header: header("")}
		a, bad := exchange(Elastic{}, r, body, records)
		answer := a.sent(t)
		if bad != nil {
			var refused struct{ Status int }
			if err := json.Unmarshal(answer, &refused); err != nil || refused.Status != bad.Status || bad.Status != 400 && bad.Status != 413 {
				t.Errorf("got %s, %v for %v", answer, err, bad)
			}
			return
		}
		var got struct {
			Errors bool
			Items  []map[string]struct {
				Index  string `json:"_index"`
				ID     string `json:"_id"`
				Status int
				Error  struct{ Reason string }
			}
		}
		if err := json.Unmarshal(answer, &got); err != nil || !bytes.HasPrefix(answer, fmt.Appendf(nil, `{"took":0,"errors":%v,"items":[`, got.Errors)) {
			t.Fatalf("got %s, %v", answer, err)
		}
		// The actions, found in another way.
		var want []string
		var documents []string
		lines := strings.Split(string(body), "\n")
		next := func() (string, bool) {
			for len(lines) > 0 {
				line := lines[0]
				lines = lines[1:]
				if strings.Trim(line, " \t\r") != "" {
					return line, true
				}
			}
			return "", false
		}
		for line, ok := next(); ok; line, ok = next() {
			d := json.NewDecoder(strings.NewReader(line))
			_, _ = d.Token()
			name, _ := d.Token()
			want = append(want, fmt.Sprint(name))
			if name != "delete" {
				document, _ := next()
				documents = append(documents, document)
			}
		}
		if len(got.Items) != len(want) || records.Accepted+records.Rejected != len(documents) {
			t.Fatalf("%d items and %d records for %d actions and %d documents", len(got.Items), records.Accepted+records.Rejected, len(want), len(documents))
		}
		stored := bytes.Split(records.NDJSON, []byte("\n"))
		failed := false
		for i, item := range got.Items {
			one, ok := item[want[i]]
			if !ok || len(item) != 1 {
				t.Fatalf("item %d of %s is no %s", i, answer, want[i])
			}
			if want[i] == "delete" {
				if one.Status != 404 {
					t.Errorf("item %d has the status %d", i, one.Status)
				}
				continue
			}
			document := documents[0]
			documents = documents[1:]
			if one.Status == 400 && one.Error.Reason != "" {
				failed = true
				continue
			}
			if one.Status != 201 {
				t.Errorf("item %d has the status %d", i, one.Status)
			}
			checkStored(t, want[i], document, stored[0], one.Index, one.ID)
			stored = stored[1:]
		}
		if failed != got.Errors || len(stored) != 1 {
			t.Errorf("errors is %v; %d records are too many", got.Errors, len(stored)-1)
		}
	})
}

// checkStored checks that a record is the document that was sent, with its index and id.
func checkStored(t *testing.T, action, document string, stored []byte, index, id string) {
	t.Helper()
	var got, want map[string]json.RawMessage
	if err := json.Unmarshal(stored, &got); err != nil {
		t.Fatalf("%s: %v", stored, err)
	}
	if _, repaired := got["_repaired"]; repaired {
		return // scan's tests say how
	}
	document = strings.TrimPrefix(strings.TrimLeft(document, " \t\r"), "\ufeff")
	err := json.Unmarshal([]byte(document), &want)
	if action == "update" {
		var outer struct{ Doc map[string]json.RawMessage }
		if err := json.Unmarshal([]byte(document), &outer); err != nil || outer.Doc == nil {
			return // what is beside doc need not be right, and encoding/json takes DOC for doc
		}
		want = outer.Doc
	} else if err != nil {
		t.Fatalf("%q was stored: %v", document, err)
	}
	for key, value := range map[string]string{"_index": index, "_id": id} {
		if _, own := want[key]; own || value == "" {
			continue
		}
		quoted, _ := json.Marshal(value)
		want[key] = quoted
	}
	if action == "update" {
		return
	}
	x, errX := json.Marshal(want)
	y, errY := json.Marshal(got)
	if errX != nil || errY != nil || !sameJSON(x, y) {
		t.Errorf("%q was stored as %s", document, stored)
	}
}

// sameJSON reports whether two texts are the same to a reader.
func sameJSON(x, y []byte) bool {
	read := func(text []byte) (v any) {
		d := json.NewDecoder(bytes.NewReader(text))
		d.UseNumber()
		_ = d.Decode(&v)
		return v
	}
	return fmt.Sprint(read(x)) == fmt.Sprint(read(y))
}

// FuzzAction checks that a line that encoding/json reads as an action is one.
func FuzzAction(f *testing.F) {
	f.Add([]byte(`{"index":{"_index":"a","_id":"b"}}`))
	f.Add([]byte(` {"create" : { "x":[{"}":"]"}],"_id":7 } , "attempts":0 } `))
	f.Add([]byte(`{"delete":{"_index":null,"_id":"\ud800\u0000"}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		a, ok := parseAction(line)
		for _, name := range [][]byte{a.index, a.id} {
			if ok && len(name) > 0 {
				var l record.List
				l.Limits = scan.Limits{RecordBytes: 1 << 20, PieceBytes: 1 << 20}
				l.Begin()
				if !l.Add(append(append([]byte(`{"a":`), name...), '}'), 0) {
					t.Fatalf("%s has the name %s", line, name)
				}
			}
		}
		d := json.NewDecoder(bytes.NewReader(line))
		open, _ := d.Token()
		name, _ := d.Token()
		var whole map[string]json.RawMessage
		if json.Unmarshal(line, &whole) != nil || open != json.Delim('{') {
			return
		}
		first, isText := name.(string)
		var does map[string]any
		switch first {
		case "index", "create", "update", "delete":
		default:
			isText = false
		}
		d = json.NewDecoder(bytes.NewReader(line))
		_, _ = d.Token()
		_, _ = d.Token()
		if !isText || d.Decode(&does) != nil || does == nil {
			if ok && !bytes.Contains(line, []byte(`\`)) {
				t.Errorf("%s was taken for %+v", line, a)
			}
			return
		}
		for _, key := range []string{"_index", "_id"} {
			switch does[key].(type) {
			case map[string]any, []any:
				return // no name
			}
		}
		if !ok && !bytes.Contains(line, []byte(`\`)) { // escaped keys are not looked for
			t.Errorf("%s was not taken", line)
		}
	})
}

func BenchmarkBulk(b *testing.B) {
	body, lines := bulkOf(500, `{"create":{"_index":"logs-app-prod"}}`)
	ids, _ := bulkOf(500, `{"create":{"_index":"logs-app-prod","_id":"TkYhq5MB8xVzq0a1bcde"}}`)
	other := bytes.ReplaceAll(ids, []byte("abcde\"}}\n{"), []byte("abcdf\"}}\n{"))
	records := &record.List{Limits: scan.Limits{RecordBytes: 1 << 20, PieceBytes: 64 << 10}}
	answer := make([]byte, 0, 128<<10)
	run := func(name string, text []byte, decode func([]byte)) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(lines)))
			b.ReportAllocs()
			for b.Loop() {
				records.Clear()
				decode(text)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/500, "ns/record")
		})
	}
	bulk := func(text []byte) {
		e := newBulk(nil, nil)
		if bad := e.Decode(Request{}, text, records); bad != nil {
			b.Fatal(bad)
		}
		e.Answer(answer, Request{}, Outcome{Records: records})
	}
	run("split", lines, func(text []byte) {
		if err := records.Split(text); err != nil {
			b.Fatal(err)
		}
	})
	run("bulk", body, bulk)
	run("bulk with ids", other, bulk)
}
