package protocol

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace/internal/record"
	"millrace/internal/scan"
)

// firehoseBody returns a body with records of data.
func firehoseBody(data ...string) string {
	var b strings.Builder
	b.WriteString(`{"requestId":"ed4acda5-034f-9f42-bba1-f29aea6d7d8f","timestamp":1795860000000,"records":[`)
	for i, one := range data {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"data":%q}`, base64.StdEncoding.EncodeToString([]byte(one)))
	}
	return b.String() + "]}"
}

func gzipOf(t testing.TB, text string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

const cloudwatchLogs = `{"messageType":"DATA_MESSAGE","owner":"123456789012","logGroup":"/aws/lambda/shop","logStream":"2026/11/28/[$LATEST]1","subscriptionFilters":["all"],` +
	`"logEvents":[{"id":"3195310660696698337880902507980421114328961542429","timestamp":1795860000123,"message":"START RequestId: 1"},` +
	`{"id":"2","timestamp":1795860000456,"message":"{\"level\":\"error\",\"owner\":\"me\",\"n\":1}"}]}`

func TestRecordsOfFirehoseBecomeRecords(t *testing.T) {
	const stream = `"log_group":"/aws/lambda/shop","log_stream":"2026/11/28/[$LATEST]1",`
	events := `{"event_id":"3195310660696698337880902507980421114328961542429",` + stream + `"message":"START RequestId: 1","owner":"123456789012","subscription_filters":["all"],"time":"2026-11-28T10:00:00.123Z"}
{"cloudwatch":{"owner":"123456789012"},"event_id":"2","level":"error",` + stream + `"n":1,"owner":"me","subscription_filters":["all"],"time":"2026-11-28T10:00:00.456Z"}`
	common := headers{"X-Amz-Firehose-Common-Attributes": `{"commonAttributes":{"env":"prod","level":"none"}}`}
	for _, tt := range []struct {
		name   string
		header headers
		in     string
		status int
		want   string
	}{
		{"objects and lines", headers{}, firehoseBody(`{"a":1}`, `{"a":2}{"a":3}`+"\n"+`{"a":4}`, "one\r\ntwo\n\n", "", "[not JSON"), 200,
			"{\"a\":1}\n{\"a\":2}\n{\"a\":3}\n{\"a\":4}\n{\"message\":\"one\"}\n{\"message\":\"two\"}\n{\"message\":\"[not JSON\"}"},
		{"CloudWatch Logs", headers{}, firehoseBody(gzipOf(t, cloudwatchLogs)), 200, events},
		{"CloudWatch Logs, several messages in one record", headers{}, firehoseBody(gzipOf(t, `{"messageType":"CONTROL_MESSAGE","owner":"x","logEvents":[{"message":"CWL CONTROL MESSAGE"}]}`) + gzipOf(t, cloudwatchLogs)), 200, events},
		{"CloudWatch Logs, which Firehose has decompressed", headers{}, firehoseBody(cloudwatchLogs + "\n"), 200, events},
		{"gzip of anything else", headers{}, firehoseBody(gzipOf(t, "{\"a\":1}\ntext")), 200, "{\"a\":1}\n{\"message\":\"text\"}"},
		{"common attributes", common, firehoseBody(`{"a":1,"level":"info"}`, "text"), 200,
			`{"a":1,"attributes":{"level":"none"},"env":"prod","level":"info"}` + "\n" + `{"env":"prod","level":"none","message":"text"}`},
		{"an object that is cut", headers{}, firehoseBody(`{"a":1}{"b":`, `{"c":`+"\n"+`{"d":1}`), 200, "{\"a\":1}\n{\"message\":\"{\\\"b\\\":\"}\n{\"message\":\"{\\\"c\\\":\"}\n{\"d\":1}"},
		{"NaN", headers{}, firehoseBody(`{"a":NaN,"b":1}`), 200, `{"a":"NaN","b":1}`},
		{"no base64 beside what is", headers{}, `{"records":[{"data":"?"},{"data":"e30K"},{"data":"eA=="},{},1]}`, 200, "{}\n{\"message\":\"x\"}"},
		{"base64 with escapes", headers{}, `{"records":[{"data":"` + strings.ReplaceAll(base64.StdEncoding.EncodeToString([]byte("x ÿÿÿ???")), "/", `\/`) + `"}]}`, 200, `{"message":"x ÿÿÿ???"}`},
		{"no records", headers{}, firehoseBody(), 200, ""},
		{"nothing but what is refused", headers{}, `{"records":[{"data":"?"}]}`, 400, ""},
		{"no JSON", headers{}, `x`, 400, ""},
		{"no array", headers{}, `{"records":{}}`, 400, ""},
		{"cut off", headers{}, firehoseBody("x")[:100], 400, ""},
	} {
		got, a, bad := made(t, Firehose{}, "/firehose", "", tt.header, tt.in)
		if bad != nil {
			a = Firehose{}.Refuse(nil, Request{Header: tt.header}, bad)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" || a.Status != tt.status {
			t.Errorf("%s: %d %s (-want +got)\n%s", tt.name, a.Status, a.Body, diff)
		}
		var answer struct {
			RequestID    string
			Timestamp    int64
			ErrorMessage string
		}
		if err := json.Unmarshal(a.Body, &answer); err != nil || answer.Timestamp == 0 || (answer.ErrorMessage == "") != (a.Status == 200) || a.ContentType != "application/json" {
			t.Errorf("%s: the answer is %s, %v", tt.name, a.Body, err)
		}
		if want := strings.Contains(tt.in, "ed4acda5"); tt.status == 200 && (answer.RequestID != "") != want {
			t.Errorf("%s: the answer is to %q", tt.name, answer.RequestID)
		}
	}
}

func TestAFirehoseRequestHasAKey(t *testing.T) {
	x, bad := Firehose{}.Open(Request{Header: headers{}})
	if bad != nil {
		t.Fatal(bad)
	}
	if bad := x.Decode(Request{Header: headers{}}, []byte(firehoseBody("x")), newRecords()); bad != nil {
		t.Fatal(bad)
	}
	if id, at := x.(Keyed).Key(); id != "ed4acda5-034f-9f42-bba1-f29aea6d7d8f" || at != 1795860000000 {
		t.Errorf("got %q, %d", id, at)
	}
}

// A few bytes that say very much take no more memory than records may.
func TestDataThatIsLongOnceItIsDecompressedIsRefused(t *testing.T) {
	records := newRecords()
	records.Limits.TotalBytes = 128 << 20
	line := strings.Repeat("x", 1000) + "\n"
	_, bad := exchange(Firehose{}, Request{Header: headers{}}, []byte(firehoseBody(gzipOf(t, strings.Repeat(line, mostInflated/1000)), "{}")), records)
	if bad != nil || records.Accepted != 1 || records.RejectedBy[scan.TooLarge] != 1 {
		t.Errorf("%d records, refused: %v, %v", records.Accepted, records.RejectedBy, bad)
	}
	records = newRecords()
	records.Limits.TotalBytes = 32 << 20
	if exchange(Firehose{}, Request{Header: headers{}}, []byte(firehoseBody(gzipOf(t, strings.Repeat(line, 20_000)))), records); !records.Overflow {
		t.Errorf("a body whose records take %d bytes is taken", len(records.NDJSON))
	}
}

// What looks like the beginnings of very many objects, and a message of very many members, take no more time than their bytes do. (Else this takes hours.)
func TestFirehoseDataThatIsMadeToBeSlow(t *testing.T) {
	for name, text := range map[string]string{
		"objects without an end": strings.Repeat("{\"a\":[\n", 1<<20),
		"members for each event": `{"messageType":"DATA_MESSAGE",` + strings.Repeat(`"a":1,`, 100_000) + `"logEvents":[` + strings.Repeat("{},", 1<<20) + `{}]}`,
		"a value for each event": `{"messageType":"DATA_MESSAGE","a":"` + strings.Repeat("x", 1<<20) + `","logEvents":[` + strings.Repeat("{},", 1<<20) + `{}]}`,
	} {
		records := newRecords()
		if _, bad := exchange(Firehose{}, Request{Header: headers{}}, []byte(firehoseBody(gzipOf(t, text))), records); bad != nil && bad.Status >= 500 {
			t.Errorf("%s: %v", name, bad)
		}
		if records.Accepted+records.Rejected == 0 && !records.Overflow {
			t.Errorf("%s: no record", name)
		}
	}
}

// FuzzFirehose sends any bodies and any data. What is accepted jsonb takes, and a request that is sent again becomes the same records.
func FuzzFirehose(f *testing.F) {
	f.Add([]byte(firehoseBody("x")), []byte(cloudwatchLogs), `{"commonAttributes":{"a":"b"}}`)
	f.Add([]byte(`{"records":[{"data":"e30K"},{"data":null},{}],"timestamp":"x"}`), []byte(gzipOf(f, cloudwatchLogs)), `{`)
	f.Add([]byte(`{"records":[`), []byte("{\"a\":\"\\ud800\\u0000\"}{\"messageType\":\"DATA_MESSAGE\",\"logEvents\":[{\"message\":1,\"timestamp\":\"x\"},2]}\x00"), `{"commonAttributes":{"message":1,"time":{}}}`)
	f.Fuzz(func(t *testing.T, body, data []byte, attributes string) {
		for _, text := range []string{string(body), firehoseBody(string(data), "x")} {
			r := Request{Method: []byte("POST"), Path: []byte("/firehose"), Header: headers{"X-Amz-Firehose-Common-Attributes": attributes}}
			records, second := newRecords(), newRecords()
			_, bad := exchange(Firehose{}, r, []byte(text), records)
			exchange(Firehose{}, r, []byte(text), second)
			if string(second.NDJSON) != string(records.NDJSON) {
				t.Errorf("%s becomes %s, and then %s", text, records.NDJSON, second.NDJSON)
			}
			if bad != nil || records.Accepted == 0 {
				continue
			}
			again := record.List{Limits: scan.Limits{RecordBytes: 1 << 20, PieceBytes: 64 << 10}}
			if err := again.Split(records.NDJSON); err != nil || again.Accepted != records.Accepted || string(again.NDJSON) != string(records.NDJSON) {
				t.Errorf("the scanner makes of %s %s, %v", records.NDJSON, again.NDJSON, err)
			}
		}
	})
}
