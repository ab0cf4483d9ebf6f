package protocol

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"

	"millrace/internal/frame"
	"millrace/internal/record"
	"millrace/internal/scan"
)

// header is a request's header with a content type.
type header string

func (h header) Peek(name string) []byte {
	if name == "Content-Type" {
		return []byte(h)
	}
	return nil
}

// headers is a request's header.
type headers map[string]string

func (h headers) Peek(name string) []byte { return []byte(h[name]) }

func newRecords() *record.List {
	return &record.List{Limits: scan.Limits{RecordBytes: 1 << 12, PieceBytes: 1 << 10}}
}

// exchange returns a protocol's answer to a request whose records are confirmed.
func exchange(p Protocol, r Request, body []byte, records *record.List) (Answer, *Refusal) {
	e, bad := p.Open(r)
	if bad == nil {
		bad = e.Decode(r, body, records)
	}
	if bad != nil {
		return p.Refuse(nil, r, bad), bad
	}
	var ids []frame.Segment
	for _, piece := range records.Pieces {
		ids = append(ids, frame.Segment{Base: frame.NewBase(), Records: piece.Records})
	}
	return e.Answer(nil, r, Outcome{Records: records, IDs: ids, Body: body}), nil
}

// sent returns an answer's body as a client gets it.
func (a Answer) sent(t *testing.T) []byte {
	t.Helper()
	if a.Stream == nil {
		return a.Body
	}
	b, err := io.ReadAll(a.Stream)
	if err != nil || len(b) != a.StreamBytes {
		t.Errorf("a stream of %d bytes, %v, said to be %d", len(b), err, a.StreamBytes)
	}
	return b
}

func TestNativeAnswers(t *testing.T) {
	many := strings.Repeat("{\"a\":1}\n", 300)
	for _, tt := range []struct {
		name, path, query, content, body string
		status                           int
		begins, has                      string
	}{
		{"one", "/log", "", "", ` {"a":1}`, 202, `{"id":"0`, ""},
		{"a batch", "/log/batch", "", "", "{}\n{}", 202, `{"accepted":2,"rejected":0}`, ""},
		{"some refused", "/log/batch", "", "", "{}\n5", 207, `{"accepted":1,"rejected":1,"errors":[{"index":1,"error":"not an object`, ""},
		{"all refused", "/log/batch", "", "application/msgpack", "no\n", 400, `{"accepted":0,"rejected":1,`, `"error":"the body is application/msgpack,`},
		{"refused whole", "/log/batch", "", "", "[{}", 400, `{"error":"unexpected end of body`, ""},
		{"too large", "/log", "", "", `{"a":"` + strings.Repeat("x", 1<<12) + `"}`, 413, `{"error":"record of `, "MAX_RECORD_BYTES"},
		{"ids", "/log/batch", "ids=true", "", many, 202, `{"accepted":300,"rejected":0,"ids":["0`, ""},
		{"no ids after all", "/log/batch", "ids=true&ids=0", "", "{}", 202, `{"accepted":1,"rejected":0}`, ""},
		{"ids of one", "/log", "ids=true", "", "{}", 400, `{"error":"unknown query parameter \"ids\"`, ""},
		{"a long query", "/log", strings.Repeat("a", maxQuery+1), "", "{}", 400, `{"error":"the query string has 2049 bytes`, ""},
	} {
		a, bad := exchange(Native{}, Request{Path: []byte(tt.path), Query: []byte(tt.query), Header: header(tt.content)}, []byte(tt.body), newRecords())
		got := string(a.sent(t))
		if a.Status != tt.status || a.ContentType != "application/json" || !json.Valid([]byte(got)) || !strings.HasPrefix(got, tt.begins) || !strings.Contains(got, tt.has) {
			t.Errorf("%s: got %d %s %s, want %d %s… %s", tt.name, a.Status, a.ContentType, got, tt.status, tt.begins, tt.has)
		}
		if counted := bad != nil && bad.Body != nil; counted != (bad != nil && tt.query == "") {
			t.Errorf("%s: its body is to blame: %v", tt.name, counted)
		}
	}
}

func TestPartsOfABatchAreWholeLines(t *testing.T) {
	e, bad := Native{}.Open(Request{Path: []byte("/log/batch"), Header: headers{}})
	if bad != nil {
		t.Fatal(bad)
	}
	parts := e.(Parts)
	for text, want := range map[string]int{"": 0, "{}": 0, "{}\n": 3, "{}\n{}\n{": 6, "\n": 1} {
		if got := parts.Complete([]byte(text)); got != want {
			t.Errorf("of %q %d bytes are complete, want %d", text, got, want)
		}
	}
	records, spare := newRecords(), newRecords()
	if !parts.First([]byte("{\"a\":1}\n5\n"), records, spare) || records.Accepted != 1 || records.Rejected != 1 {
		t.Errorf("of NDJSON %d are accepted and %d rejected", records.Accepted, records.Rejected)
	}
	if parts.First([]byte("[\n{}\n"), records, spare) {
		t.Error("an array is said to be taken in parts")
	}
	if err := parts.Part([]byte("\n \n"), records); err != nil || records.Accepted+records.Rejected > 0 {
		t.Errorf("blank lines: %v", err)
	}
	if err := parts.Part([]byte("{\n}\n"), records); err == nil {
		t.Error("a later part that is no NDJSON is taken")
	}
	total := &record.List{Body: scan.Body{Accepted: 2}}
	if a := parts.AnswerParts(nil, Request{}, total, nil); a.Status != http.StatusAccepted || string(a.Body) != `{"accepted":2,"rejected":0}` {
		t.Errorf("got %d %s", a.Status, a.Body)
	}
	if a := parts.AnswerParts(nil, Request{}, total, Refuse(408, "slow")); a.Status != 408 || string(a.Body) != `{"accepted":2,"rejected":0,"error":"slow"}` {
		t.Errorf("got %d %s", a.Status, a.Body)
	}
}

// FuzzNative sends any body to any path: the answer is JSON of a known status, and says of every record what became of it.
func FuzzNative(f *testing.F) {
	f.Add(false, "", "", []byte(`{"a":1}`))
	f.Add(true, "ids=true", "text/plain", []byte("{}\n{\"a\":\"\\u0000\"}\n[\n{}"))
	f.Add(true, "ids=1&ids=%66", "application/x-www-form-urlencoded", []byte("a=b&c=%7B"))
	f.Add(true, "", "multipart/form-data", []byte("--x"))
	f.Add(true, "ok=200&repair=1&fields=a=b,c=d&time_field=x,y&ids=1", "", []byte("{\"x\":1795822841,\"time\":\"\u0000\",\"a\":NaN}\n{\"y\":\"2026-11-28T10:00:00Z\"}\nno\n"))
	f.Add(true, "unwrap=true&fields=a=b", "", []byte(`{"logs":[{"a":1},5,{"b":[}],"host":"x"}[{"metrics":[{"name":"n","fields":{"f":1,"t":2},"tags":{"t":"x"},"timestamp":1795822841}]}]`))
	f.Add(true, "parse=false&time_field=message", "text/plain", []byte("a\r\n\n{\"b\":1}\n\xff\x00"))
	f.Add(false, "ok=200&repair=true&fields=a=b", "", []byte(`{"a":"\u0000"}`))
	f.Fuzz(func(t *testing.T, isBatch bool, query, content string, body []byte) {
		r := Request{Path: []byte(singlePath), Query: []byte(query), Header: header(content)}
		if isBatch {
			r.Path = []byte(batchPath)
		}
		records := newRecords()
		a, bad := exchange(Native{}, r, body, records)
		sent := a.sent(t)
		var answer struct {
			ID                 *uuid.UUID
			Accepted, Rejected int
			Errors             []struct{ Index int }
			IDs                []uuid.UUID
			Error              string
		}
		if err := json.Unmarshal(sent, &answer); err != nil || a.ContentType != "application/json" {
			t.Fatalf("got %s, %v", sent, err)
		}
		o, _, _ := ReadOptions(r)
		switch {
		case bad != nil:
			if a.Status != 400 && a.Status != 413 || answer.Error == "" {
				t.Errorf("refused with %d %s", a.Status, sent)
			}
		case !isBatch:
			if want := map[bool]int{true: 200, false: 202}[o.Status200]; a.Status != want || answer.ID == nil || records.Accepted != 1 {
				t.Errorf("got %d %s for %d records", a.Status, sent, records.Accepted)
			}
		default:
			want := map[bool]int{true: 202, false: 207}[records.Rejected == 0]
			if records.Accepted == 0 && records.Rejected > 0 {
				want = 400
			}
			if o.Status200 {
				want = 200
			}
			if a.Status != want || answer.Accepted != records.Accepted || answer.Rejected != records.Rejected ||
				len(answer.Errors) != min(records.Rejected, scan.MaxErrors) || len(answer.IDs) != 0 && len(answer.IDs) != records.Accepted {
				t.Errorf("got %d %s for %d accepted and %d rejected", a.Status, sent, records.Accepted, records.Rejected)
			}
		}
		for line := range bytes.Lines(records.NDJSON) {
			if line[0] != '{' || !json.Valid(line) {
				t.Errorf("accepted %q", line)
			}
		}
	})
}
