package protocol

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace/internal/record"
	"millrace/internal/scan"
)

// binaryField returns a field in the form that has its length.
func binaryField(name, value string) string {
	return name + "\n" + string(binary.LittleEndian.AppendUint64(nil, uint64(len(value)))) + value + "\n"
}

func TestEntriesOfAJournalBecomeRecords(t *testing.T) {
	const full = "__CURSOR=s=1;i=2\n__REALTIME_TIMESTAMP=1795860000456789\n__MONOTONIC_TIMESTAMP=5\n_BOOT_ID=6c\nPRIORITY=3\n_HOSTNAME=web1\nSYSLOG_IDENTIFIER=sshd\n_SYSTEMD_UNIT=ssh.service\n_PID=17\n" +
		"_SOURCE_REALTIME_TIMESTAMP=1795860000123456\nMESSAGE=a=b\n\n"
	for _, tt := range []struct {
		name, in string
		status   int
		want     string
	}{
		{"an entry", full, 200,
			`{"host":{"name":"web1"},"journal":{"_BOOT_ID":"6c","cursor":"s=1;i=2"},"level":"error","message":"a=b","pid":17,"service":{"name":"sshd"},"time":"2026-11-28T10:00:00.123456Z","unit":"ssh.service"}`},
		{"without a source's time", "__REALTIME_TIMESTAMP=1795860000456789\nMESSAGE=x\n\n", 200, `{"journal":{},"message":"x","time":"2026-11-28T10:00:00.456789Z"}`},
		{"binary fields", binaryField("MESSAGE", "two\nlines") + binaryField("DATA", "\x00\xff") + "\n", 200, `{"journal":{"DATA":{"base64":"AP8="}},"message":"two\nlines"}`},
		{"a message that is no text", binaryField("MESSAGE", "a\xffb") + "\n", 200, `{"_repaired":["message"],"journal":{},"message":"a` + "�" + `b"}`},
		{"fields that repeat", "MESSAGE=x\nA=1\nB=2\n" + binaryField("A", "\x00") + "A=3\n_PID=1\n_PID=2\n\n", 200, `{"journal":{"A":["1",{"base64":"AA=="},"3"],"B":"2","_PID":"2"},"message":"x","pid":1}`},
		{"a message that is JSON", "MESSAGE={\"level\":\"warn\",\"n\":1,\"journal\":2}\nPRIORITY=6\nX=1\n\n", 200, `{"entry":{"journal":{"X":"1"},"level":"info"},"journal":2,"level":"warn","n":1}`},
		{"names and values that journald would not write", "lower=1\n=2\nPRIORITY=x\n_PID=0x1\n" + strings.Repeat("A", 65) + "=3\nMESSAGE=x\n\n", 200, `{"journal":{"PRIORITY":"x"},"message":"x","pid":"0x1"}`},
		{"several, with blank lines", "\nMESSAGE=a\n\n\n\nMESSAGE=b\n\n", 200, "{\"journal\":{},\"message\":\"a\"}\n{\"journal\":{},\"message\":\"b\"}"},
		{"no blank line at the end", "MESSAGE=a\n\nMESSAGE=b\n", 200, "{\"journal\":{},\"message\":\"a\"}\n{\"journal\":{},\"message\":\"b\"}"},
		{"nothing", "", 200, ""},
		{"cut in a field", "MESSAGE=a\n\nMESSAGE=b", 400, ""},
		{"cut in a binary field", "MESSAGE=a\n\n" + binaryField("MESSAGE", "abc")[:18], 400, ""},
		{"a length that is too large", "A\n\xff\xff\xff\xff\xff\xff\xff\xffx\n\n", 400, ""},
		{"no export", "{\"a\":1}\n", 400, ""},
		{"no lines", strings.Repeat("x", 100), 400, ""},
	} {
		got, a, bad := made(t, Journald{}, "/upload", "", headers{}, tt.in)
		if bad != nil {
			a = Journald{}.Refuse(nil, Request{}, bad)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" || a.Status != tt.status {
			t.Errorf("%s: %d %s (-want +got)\n%s", tt.name, a.Status, a.Body, diff)
		}
	}
}

// inParts returns the records and the names that a journal becomes if it comes in parts of so many bytes, and whether it is taken.
func inParts(t *testing.T, text []byte, part int) (lines string, names []RecordName, isTaken bool) {
	t.Helper()
	x, bad := Journald{}.Open(Request{Header: headers{}})
	if bad != nil {
		t.Fatal(bad)
	}
	j := x.(*journal)
	var out bytes.Buffer
	take := func(text []byte) bool {
		records := newRecords()
		if j.Part(text, records) != nil {
			return false
		}
		out.Write(records.NDJSON)
		for _, name := range j.Names() {
			names = append(names, RecordName{strings.Clone(name.Name), name.At})
		}
		if len(j.Names()) != records.Accepted {
			t.Errorf("%d records have %d names", records.Accepted, len(j.Names()))
		}
		return true
	}
	var buf []byte
	for len(text) > 0 {
		n := min(part, len(text))
		buf, text = append(buf, text[:n]...), text[n:]
		if n := j.Complete(buf); n > 0 {
			if !take(buf[:n]) {
				return "", nil, false
			}
			buf = append([]byte(nil), buf[n:]...)
		}
	}
	if len(buf) > 0 && !take(buf) {
		return "", nil, false
	}
	return out.String(), names, true
}

// randomJournal returns a journal of so many entries.
func randomJournal(n int) []byte {
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintf(&b, "__CURSOR=c%d\n__REALTIME_TIMESTAMP=%d\n", i, 1795860000000000+i*1000)
		for range rand.IntN(5) {
			fmt.Fprintf(&b, "F%d=%s\n", rand.IntN(9), strings.Repeat("v=", rand.IntN(20)))
		}
		if rand.IntN(3) == 0 {
			value := make([]byte, rand.IntN(300))
			for i := range value {
				value[i] = byte(rand.IntN(256))
			}
			b.WriteString(binaryField("BINARY", string(value)))
		}
		fmt.Fprintf(&b, "MESSAGE=line %d\n\n", i)
	}
	return b.Bytes()
}

func TestAJournalIsTheSameInWhateverPartsItComes(t *testing.T) {
	for range 30 {
		text := randomJournal(40)
		whole, names, ok := inParts(t, text, len(text))
		if !ok || strings.Count(whole, "\n") != 40 || len(names) != 40 || names[39] != (RecordName{"c39", 1795860000039}) {
			t.Fatalf("%v: %d records, names %v, of\n%q", ok, strings.Count(whole, "\n"), names, text)
		}
		for _, part := range []int{1, 7, 100, 1000} {
			parts, others, ok := inParts(t, text, part)
			if diff := cmp.Diff(whole, parts) + cmp.Diff(names, others); diff != "" || !ok {
				t.Fatalf("in parts of %d (-whole +parts)\n%s", part, diff)
			}
		}
	}
}

// FuzzJournald uploads anything, whole and in parts. What is accepted jsonb takes.
func FuzzJournald(f *testing.F) {
	f.Add([]byte("__CURSOR=a\n_SOURCE_REALTIME_TIMESTAMP=1795860000123456\nMESSAGE={\"a\":1}\nPRIORITY=3\n_PID=1\n\n"+binaryField("MESSAGE", "\x00\n")+"A=1\nA=2\n\n"), uint16(9))
	f.Add([]byte("A\n\xff\xff\xff\xff\xff\xff\xff\x7f\n\n\n"), uint16(1))
	f.Fuzz(func(t *testing.T, text []byte, part uint16) {
		records := newRecords()
		_, bad := exchange(Journald{}, Request{Header: headers{}}, text, records)
		parts, _, isTaken := inParts(t, text, int(part)+1)
		if bad == nil && (!isTaken || parts != string(records.NDJSON)) {
			t.Errorf("%q: whole %s, in parts of %d %s", text, records.NDJSON, int(part)+1, parts)
		}
		if bad != nil || records.Accepted == 0 {
			return
		}
		again := record.List{Limits: scan.Limits{RecordBytes: 1 << 20, PieceBytes: 64 << 10}}
		if err := again.Split(records.NDJSON); err != nil || again.Accepted != records.Accepted || string(again.NDJSON) != string(records.NDJSON) {
			t.Errorf("the scanner makes of %s %s, %v", records.NDJSON, again.NDJSON, err)
		}
	})
}
