package send

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// sentAt is when the lines of these tests are sent first.
var sentAt = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// recordsOf returns the records of lines in a format, and how many lines are not of it.
func recordsOf(t *testing.T, format, lines string) (records []map[string]any, b *batch) {
	t.Helper()
	b = newBatch()
	b.raw = []byte(lines)
	b.build(formats[format], "identity", sentAt)
	for line := range bytes.Lines(b.records.NDJSON) {
		var r map[string]any
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		records = append(records, r)
	}
	if len(records) != b.records.Accepted || len(records) != len(b.lines) {
		t.Errorf("%d records, %d accepted, %d lines", len(records), b.records.Accepted, len(b.lines))
	}
	return records, b
}

func TestEachFormatReadsItsLines(t *testing.T) {
	defer func(zone *time.Location) { time.Local = zone }(time.Local)
	time.Local = time.FixedZone("", 3600)
	for _, tt := range []struct{ format, line, want string }{
		{"auto", `{"a":1}`, `{"a":1}`},
		{"auto", ` {"a": 1} ` + "\r", `{"a":1}`},
		{"auto", "\ufeff{\"a\":1}", `{"a":1}`},
		{"auto", `{"a":1`, `{"message":"{\"a\":1"}`},
		{"auto", `[1]`, `{"message":"[1]"}`},
		{"auto", "  at x\x00\xff", `{"message":"  at x\ufffd\ufffd"}`},
		{"text", `{"a":1}`, `{"message":"{\"a\":1}"}`},
		{"json", `{"a":1}`, `{"a":1}`},

		{"nginx", `203.0.113.7 - - [04/Mar/2026:06:06:07 +0100] "GET /a?b=c HTTP/1.1" 200 612 "-" "curl/8.5"`,
			`{"time":"2026-03-04T05:06:07Z","message":"GET /a?b=c HTTP/1.1","remote_addr":"203.0.113.7","status":200,"method":"GET","path":"/a?b=c","protocol":"HTTP/1.1","bytes":612,"user_agent":"curl/8.5"}`},
		{"nginx", `::1 - anna b [04/Mar/2026:06:06:07 +0100] "\x16\x03\x01 \x22" 400 0 "https://e.example/" "a \"b\"" "10.0.0.1" 0.003`,
			`{"time":"2026-03-04T05:06:07Z","message":"\u0016\u0003\u0001 \"","remote_addr":"::1","status":400,"bytes":0,"user":"anna b","referer":"https://e.example/","user_agent":"a \"b\"","rest":"\"10.0.0.1\" 0.003"}`},
		{"nginx", `2026/03/04 06:06:07 [error] 12#13: *14 open() "/x" failed (2: No such file or directory), client: 203.0.113.7`,
			`{"time":"2026-03-04T05:06:07Z","level":"error","message":"open() \"/x\" failed (2: No such file or directory), client: 203.0.113.7","pid":12,"connection":14}`},
		{"nginx", `2026/03/04 06:06:07 [notice] 1#1: start worker processes`, `{"time":"2026-03-04T05:06:07Z","level":"notice","message":"start worker processes","pid":1}`},
		{"apache", `h.example:443 203.0.113.7 - - [04/Mar/2026:06:06:07 +0100] "POST / HTTP/2.0" 204 - "-" "-"`,
			`{"time":"2026-03-04T05:06:07Z","message":"POST / HTTP/2.0","remote_addr":"203.0.113.7","status":204,"method":"POST","path":"/","protocol":"HTTP/2.0","bytes":0,"vhost":"h.example:443"}`},
		{"apache", `127.0.0.1 - frank [10/Oct/2000:13:55:36 -0700] "GET /apache_pb.gif HTTP/1.0" 200 2326`,
			`{"time":"2000-10-10T20:55:36Z","message":"GET /apache_pb.gif HTTP/1.0","remote_addr":"127.0.0.1","status":200,"method":"GET","path":"/apache_pb.gif","protocol":"HTTP/1.0","bytes":2326,"user":"frank"}`},
		{"apache", `[Wed Mar 04 06:06:07.123456 2026] [core:error] [pid 35708:tid 4328636416] [client 72.15.99.187:1234] File does not exist: /x`,
			`{"time":"2026-03-04T05:06:07.123456Z","level":"error","message":"File does not exist: /x","pid":35708,"module":"core","client":"72.15.99.187:1234"}`},

		{"syslog", `<34>Oct 11 22:14:15 mymachine su: 'su root' failed for lonvick on /dev/pts/8`,
			`{"level":"crit","syslog":{"facility":"auth","severity":2},"time":"2025-10-11T21:14:15Z","host":"mymachine","service":"su","message":"'su root' failed for lonvick on /dev/pts/8"}`},
		{"syslog", `Mar  4 06:06:07 web1 sshd[812]: Accepted publickey for anna`,
			`{"time":"2026-03-04T05:06:07Z","host":"web1","service":"sshd","syslog":{"pid":812},"message":"Accepted publickey for anna"}`},
		{"syslog", `Feb 29 00:00:00 web1 x: leap`, `{"time":"2024-02-28T23:00:00Z","host":"web1","service":"x","message":"leap"}`},
		{"syslog", `2026-03-04T06:06:07.5+01:00 web1 kernel: [12.3] up`, `{"time":"2026-03-04T05:06:07.5Z","host":"web1","service":"kernel","message":"[12.3] up"}`},
		{"syslog", `<78>Mar  4 06:06:07 cron[9]: no host`, `{"level":"info","time":"2026-03-04T05:06:07Z","service":"cron","syslog":{"facility":"cron","severity":6,"pid":9},"message":"no host"}`},
		{"syslog", `<13>1 yesterday - - - - - x`, `{"level":"notice","syslog":{"facility":"user","severity":5},"message":"1 yesterday - - - - - x"}`},
		{"syslog", `<165>1 2003-10-11T22:14:15.003Z mymachine.example.com evntslog - ID47 [exampleSDID@32473 iut="3" eventSource="App \"x\" [1\]" eventID="1011"][b@1 c=""] ` + "\ufeffAn event",
			`{"level":"notice","time":"2003-10-11T22:14:15.003Z","host":"mymachine.example.com","service":"evntslog","syslog":{"facility":"local4","severity":5,"msgid":"ID47","structured_data":{"exampleSDID@32473":{"iut":"3","eventSource":"App \"x\" [1]","eventID":"1011"},"b@1":{"c":""}}},"message":"An event"}`},
		{"syslog", `<13>1 - - - - - -`, `{"level":"notice","syslog":{"facility":"user","severity":5},"message":""}`},

		{"logfmt", `ts=2026-03-04T05:06:07Z level=info msg="a \"b\"" took=1.5 n=007 big=12345678901234567890 ok=true flag e=1e400`,
			`{"ts":"2026-03-04T05:06:07Z","level":"info","msg":"a \"b\"","took":1.5,"n":"007","big":"12345678901234567890","ok":true,"flag":true,"e":"1e400"}`},
	} {
		got, b := recordsOf(t, tt.format, tt.line+"\n")
		var want map[string]any
		if err := json.Unmarshal([]byte(tt.want), &want); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]map[string]any{want}, got); diff != "" || b.unparsed != 0 || len(b.refused) != 0 {
			t.Errorf("%s: %s: %d unparsed, %v\n%s", tt.format, tt.line, b.unparsed, b.refused, diff)
		}
	}
}

func TestALineOfAnotherFormatIsKeptWhole(t *testing.T) {
	for _, tt := range []struct{ format, line string }{
		{"nginx", "free text"},
		{"nginx", `203.0.113.7 - - [34/Mar/2026:06:06:07 +0100] "GET / HTTP/1.1" 200 612`},
		{"syslog", "free text"},
		{"syslog", "<999>Mar  4 06:06:07 web1 x: y"},
		{"syslog", "Feb 31 06:06:07 web1 x: y"},
		{"logfmt", "free text"},
		{"logfmt", `a="b`},
	} {
		got, b := recordsOf(t, tt.format, tt.line)
		if want := []map[string]any{{"message": tt.line}}; !cmp.Equal(got, want) || b.unparsed != 1 {
			t.Errorf("%s: got %v and %d unparsed, want %v", tt.format, got, b.unparsed, want)
		}
	}
}

func TestBlankLinesArePassedOverAndRefusedOnesNamed(t *testing.T) {
	got, b := recordsOf(t, "json", "\n{\"a\":1}\n \t\r\nx\n"+strings.Repeat("[]\n", 150)+"{\"a\":2}")
	if len(got) != 2 || len(b.refused) != 151 || b.lineEnds != 154 {
		t.Fatalf("got %v, %d refused, %d line ends", got, len(b.refused), b.lineEnds)
	}
	for i, want := range map[int]string{0: "x", 1: "[]", 150: "[]"} {
		text, number := b.textAt(b.refused[i].at)
		if string(text) != want || number != int64(i)+4 || b.refused[i].reason == "" {
			t.Errorf("got %q at line %d because %q, want %q at line %d", text, number, b.refused[i].reason, want, i+4)
		}
	}
}

func TestTheKeyIsThatOfFilePlaceBytesAndTime(t *testing.T) {
	key := func(change func(b *batch, identity *string, at *time.Time)) string {
		b, identity, at := newBatch(), "identity", sentAt
		b.raw, b.start, b.end = []byte("{\"a\":1}\n"), 8, 16
		change(b, &identity, &at)
		b.build(formats["auto"], identity, at)
		return b.key.String()
	}
	first := key(func(*batch, *string, *time.Time) {})
	if again := key(func(_ *batch, _ *string, at *time.Time) { *at = at.In(time.FixedZone("", 60)).Add(time.Microsecond) }); again != first {
		t.Errorf("got %s and %s for the same", first, again)
	}
	for name, change := range map[string]func(b *batch, identity *string, at *time.Time){
		"file":  func(_ *batch, identity *string, _ *time.Time) { *identity = "other" },
		"start": func(b *batch, _ *string, _ *time.Time) { b.start = 7 },
		"end":   func(b *batch, _ *string, _ *time.Time) { b.end = 17 },
		"bytes": func(b *batch, _ *string, _ *time.Time) { b.raw = []byte("{\"a\":2}\n") },
		"time":  func(_ *batch, _ *string, at *time.Time) { *at = at.Add(time.Millisecond) },
	} {
		if key(change) == first {
			t.Errorf("another %s has the same key", name)
		}
	}
}

// FuzzFormats holds that every line becomes one record that can be stored, or is refused, in every format, and the same ones twice.
func FuzzFormats(f *testing.F) {
	for _, line := range []string{`{"a":1}`, "x", `a=b c`, `<34>Oct 11 22:14:15 m su: x`, `<165>1 - h s - - [a@1 b="c"] m`,
		`::1 - - [04/Mar/2026:06:06:07 +0100] "GET /a HTTP/1.1" 200 6 "-" "c"`, `2026/03/04 06:06:07 [error] 12#13: *14 x`} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, text string) {
		lines := 0
		for line := range strings.Lines(text) {
			if strings.TrimSpace(strings.TrimPrefix(strings.TrimRight(line, "\r\n"), "\ufeff")) != "" {
				lines++
			}
		}
		for name := range formats {
			records, b := recordsOf(t, name, text)
			if n := len(records) + len(b.refused); n > lines+1 || n < lines-1 {
				t.Errorf("%s: %d records and %d refused of %d lines", name, len(records), len(b.refused), lines)
			}
			if name != "json" && len(b.refused) > 0 {
				t.Errorf("%s refuses %v", name, b.refused)
			}
			first := b.key
			if b.build(formats[name], "identity", sentAt); b.key != first {
				t.Errorf("%s: the key differs", name)
			}
		}
	})
}
