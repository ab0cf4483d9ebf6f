package protocol

import (
	"bytes"
	"iter"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace/internal/record"
	"millrace/internal/scan"
)

// came is about when the messages of the tests came.
var came = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

// messagesOf are messages of one peer.
func messagesOf(texts ...string) iter.Seq[Message] {
	return func(yield func(Message) bool) {
		for _, text := range texts {
			if !yield(Message{Text: []byte(text), Peer: netip.MustParseAddr("192.0.2.7"), Came: came}) {
				return
			}
		}
	}
}

// recordsOf returns what a protocol makes of messages, a record a line.
func recordsOf(p Messages, messages iter.Seq[Message]) *record.List {
	records := &record.List{Limits: scan.Limits{RecordBytes: 1 << 20, PieceBytes: 64 << 10}}
	p.Take(records, messages)
	return records
}

func TestMessagesOfSyslogBecomeRecords(t *testing.T) {
	const peer = `"peer":"192.0.2.7"`
	for _, tt := range []struct{ name, in, want string }{
		{"RFC 5424", `<165>1 2003-10-11T22:14:15.003Z web1.example.com shop 8710 ID47 [a@1 x="1" y="\"q\""] charged`,
			`{"message":"charged","time":"2003-10-11T22:14:15.003Z","level":"notice","host":{"name":"web1.example.com"},"service":{"name":"shop"},` +
				`"syslog":{"facility":"local4","severity":5,"pid":8710,"msgid":"ID47","structured_data":{"a@1":{"x":"1","y":"\"q\""}},` + peer + `}}`},
		{"RFC 3164", "<38>Nov 28 10:00:00 bastion sshd[2211]: Accepted publickey\n",
			`{"message":"Accepted publickey","time":"2026-11-28T10:00:00Z","level":"info","host":{"name":"bastion"},"service":{"name":"sshd"},"syslog":{"facility":"auth","severity":6,"pid":2211,` + peer + `}}`},
		{"no syslog", "x", `{"message":"x","syslog":{` + peer + `}}`},
		{"JSON", `<14>1 2026-11-28T10:00:00.123456789Z - shop web.1 - - {"level":"warning","msg":"x","time":"2026-11-28T09:59:59Z"}`,
			`{"@timestamp":"2026-11-28T10:00:00.123456789Z","header":{"level":"info"},"level":"warning","msg":"x","service":{"name":"shop"},"syslog":{"facility":"user","pid":"web.1","severity":6,` + peer + `},"time":"2026-11-28T09:59:59Z"}`},
		{"@cee", `<14>Nov 28 10:00:00 h a: @cee: {"a":1}`, `{"a":1,"host":{"name":"h"},"level":"info","service":{"name":"a"},"syslog":{"facility":"user","severity":6,` + peer + `},"time":"2026-11-28T10:00:00Z"}`},
		{"@cee and no JSON", `<14>Nov 28 10:00:00 h a: @cee: {"a":`, `{"host":{"name":"h"},"level":"info","message":"@cee: {\"a\":","service":{"name":"a"},"syslog":{"facility":"user","severity":6,` + peer + `},"time":"2026-11-28T10:00:00Z"}`},
		{"a trace", `<14>1 - - - - - [opentelemetry trace_id="4BF92F3577B34DA6A3CE929D0E0E4736" span_id="0000000000000000" trace_flags="01"] x`,
			`{"level":"info","message":"x","syslog":{"facility":"user","severity":6,"structured_data":{"opentelemetry":{"span_id":"0000000000000000","trace_flags":"01","trace_id":"4BF92F3577B34DA6A3CE929D0E0E4736"}},` + peer + `},` +
				`"trace_flags":"01","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736"}`},
		{"several parameters of a name", `<14>1 - - - - - [origin ip="192.0.2.1" x="y" ip="192.0.2.2"] x`,
			`{"level":"info","message":"x","syslog":{"facility":"user","severity":6,"structured_data":{"origin":{"ip":["192.0.2.1","192.0.2.2"],"x":"y"}},` + peer + `}}`},
		{"bytes that can't be stored", "<14>a\x00b\xff\x00", `{"_repaired":["message"],"level":"info","message":"a�b�","syslog":{"facility":"user","severity":6,` + peer + `}}`},
	} {
		got := recordsOf(Syslog{}, messagesOf(tt.in))
		if diff := cmp.Diff(sortedLines(t, []byte(tt.want+"\n")), sortedLines(t, got.NDJSON)); diff != "" || got.Rejected > 0 {
			t.Errorf("%s: %d refused (-want +got)\n%s", tt.name, got.Rejected, diff)
		}
	}
	if got := recordsOf(Syslog{}, messagesOf("", "\r\n", "\x00", "a", "\n")); got.Accepted != 1 || got.Rejected > 0 {
		t.Errorf("of blank messages and one more %d are taken, %d refused", got.Accepted, got.Rejected)
	}
}

func TestManyParametersOfOneNameAreKept(t *testing.T) {
	var in strings.Builder
	in.WriteString("<14>1 - - - - - [a")
	for i := range 50 {
		in.WriteString([]string{` x="1"`, ` y="2"`}[i%2])
	}
	in.WriteString(` z="3"] text`)
	got := string(recordsOf(Syslog{}, messagesOf(in.String())).NDJSON)
	if strings.Count(got, `"1"`) != 25 || strings.Count(got, `"2"`) != 25 || !strings.Contains(got, `"z":"3"`) || strings.Count(got, `"x"`) != 1 {
		t.Errorf("got %s", got)
	}
}

func TestATimeWithoutZoneIsInTheZoneThatIsSet(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{
		"<14>Nov 28 10:00:00 h a: x":             `"time":"2026-11-28T09:00:00Z"`,
		"<14>Jul  1 10:00:00 h a: x":             `"time":"2026-07-01T08:00:00Z"`,
		"<14>Nov 28 10:00:00 UTC h a: x":         `"time":"2026-11-28T10:00:00Z"`,
		"<14>1 2026-11-28T10:00:00Z h a - - - x": `"time":"2026-11-28T10:00:00Z"`,
	} {
		if got := string(recordsOf(Syslog{Zone: berlin}, messagesOf(in)).NDJSON); !strings.Contains(got, want) {
			t.Errorf("%s: got %s", in, got)
		}
	}
}

// Messages are made records alike, whatever came before them.
func TestARecordOfSyslogDependsOnItsMessageAlone(t *testing.T) {
	text, err := os.ReadFile("../../internal/syslog/testdata/lines.txt")
	if err != nil {
		t.Fatal(err)
	}
	lines := slices.DeleteFunc(strings.Split(strings.TrimSpace(string(text)), "\n"), func(line string) bool { return strings.HasPrefix(line, "# ") })
	together := recordsOf(Syslog{}, messagesOf(lines...))
	if together.Accepted != len(lines) || together.Rejected > 0 {
		t.Errorf("of %d messages %d are taken, %d refused", len(lines), together.Accepted, together.Rejected)
	}
	var alone bytes.Buffer
	for _, line := range lines {
		alone.Write(recordsOf(Syslog{}, messagesOf(line)).NDJSON)
	}
	if diff := cmp.Diff(strings.Split(alone.String(), "\n"), strings.Split(string(together.NDJSON), "\n")); diff != "" {
		t.Errorf("-alone +together\n%s", diff)
	}
}

// FuzzSyslog makes records of anything. Each message that is not blank is one, and jsonb takes it.
func FuzzSyslog(f *testing.F) {
	f.Add([]byte("<34>1 2003-10-11T22:14:15.003Z h su - ID47 [a b=\"c\\\"\"] x"), []byte("{\"time\":1}"))
	f.Add([]byte("<13>Feb  5 17:32:18 10.0.0.99 @cee: {\"syslog\":{\"peer\":1},\"level\":3}"), []byte("\x00\xff"))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		records := recordsOf(Syslog{}, messagesOf(string(one), string(two)))
		want := 0
		for _, text := range [][]byte{one, two} {
			if len(bytes.TrimRight(text, "\r\n\x00")) > 0 {
				want++
			}
		}
		if records.Accepted != want || records.Rejected > 0 {
			t.Fatalf("%q, %q: %d records, %d refused", one, two, records.Accepted, records.Rejected)
		}
		var again record.List
		again.Limits = scan.Limits{RecordBytes: 1 << 20, PieceBytes: 64 << 10}
		if want == 0 {
			return
		}
		if err := again.Split(records.NDJSON); err != nil || again.Accepted != want || !bytes.Equal(again.NDJSON, records.NDJSON) {
			t.Fatalf("%q, %q: the scanner makes of %s %s, %v", one, two, records.NDJSON, again.NDJSON, err)
		}
	})
}

func BenchmarkSyslog(b *testing.B) {
	messages := slices.Collect(messagesOf(slices.Repeat([]string{
		"<38>Nov 28 10:00:00 bastion sshd[2211]: Failed password for invalid user admin from 203.0.113.7 port 40022 ssh2",
		`<165>1 2003-10-11T22:14:15.003Z mymachine.example.com evntslog 1 ID47 [exampleSDID@32473 iut="3" eventSource="Application" eventID="1011"] An application event log entry`,
	}, 500)...))
	records := &record.List{Limits: scan.Limits{RecordBytes: 1 << 20, PieceBytes: 64 << 10}}
	b.ReportAllocs()
	for b.Loop() {
		records.Clear()
		Syslog{}.Take(records, slices.Values(messages))
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(messages)), "ns/message")
}
