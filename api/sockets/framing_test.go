package sockets

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// framed returns the messages that a framer finds in text, which comes in parts of so many bytes, as a connection hands it over. Messages that were cut end in "…".
func framed(f Framer, text []byte, part int) (messages []string, err error) {
	var buf []byte
	for {
		ended := len(text) == 0
		n := min(part, len(text))
		buf, text = append(buf, text[:n]...), text[n:]
		for err == nil {
			message, n, cut, failure := f.Next(buf, ended)
			if err = failure; message != nil {
				text := string(message)
				if cut {
					text += "…"
				}
				messages = append(messages, text)
			}
			buf = buf[n:]
			if message == nil && n == 0 {
				break
			}
		}
		if ended || err != nil {
			return messages, err
		}
	}
}

func TestMessagesAreFoundInBothFramings(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		want     []string
		isError  bool
	}{
		{"nothing", "", nil, false},
		{"lines", "<1>a\n<2>b\r\n<3>c\n", []string{"<1>a", "<2>b\r", "<3>c"}, false},
		{"the last without a newline", "<1>a\n<2>b", []string{"<1>a", "<2>b"}, false},
		{"counted", "4 <1>a5 <2>b\n4 <3>c", []string{"<1>a", "<2>b\n", "<3>c"}, false},
		{"counted, with newlines between", "4 <1>a\n5 <2>b\n\n4 <3>c\n", []string{"<1>a", "<2>b\n", "<3>c"}, false},
		{"counted, cut off", "4 <1>a9 <2>", []string{"<1>a", "<2>…"}, false},
		{"no length where one must be", "4 <1>ax", []string{"<1>a"}, true},
		{"a length of too many digits", "4 <1>a123456789 x", []string{"<1>a"}, true},
		{"a length of 0", "4 <1>a0 ", []string{"<1>a"}, true},
		{"lines that begin with a number", "2026-11-28 x\n45 apples\n<1>a\n4 <1>b\n", []string{"2026-11-28 x", "45 apples", "<1>a", "4 <1>b"}, false},
		{"a number first, then counted", "45 apples\n4 <1>a", []string{"45 apples", "<1>a"}, false},
		{"a long line", "<1>" + strings.Repeat("x", 30) + "\n<2>b\n", []string{"<1>" + strings.Repeat("x", 17) + "…", "<2>b"}, false},
		{"a long counted message", "33 <1>" + strings.Repeat("x", 30) + "4 <2>b", []string{"<1>" + strings.Repeat("x", 17) + "…", "<2>b"}, false},
		{"a line as long as may be", strings.Repeat("x", 20) + "\n", []string{strings.Repeat("x", 20)}, false},
		{"blank lines", "\n\n<1>a\n", []string{"", "", "<1>a"}, false},
		{"a number alone", "123", []string{"123"}, false},
	} {
		for _, part := range []int{1, 2, 3, 7, 1000} {
			got, err := framed(NewSyslogFramer(20), []byte(tt.in), part)
			if diff := cmp.Diff(tt.want, got); diff != "" || (err != nil) != tt.isError {
				t.Errorf("%s, in parts of %d: %v (-want +got)\n%s", tt.name, part, err, diff)
			}
		}
	}
}

// Streams of what frames are made of are cut into the same messages, however they come.
func TestMessagesDoNotDependOnHowAStreamIsCut(t *testing.T) {
	const alphabet = "<<>0123456789 \n\nx\r\x00"
	for range 20_000 {
		text := make([]byte, rand.IntN(120))
		for i := range text {
			text[i] = alphabet[rand.IntN(len(alphabet))]
		}
		part := 1 + rand.IntN(20)
		whole, wholeErr := framed(NewSyslogFramer(20), text, len(text)+1)
		parts, partsErr := framed(NewSyslogFramer(20), text, part)
		if diff := cmp.Diff(whole, parts); diff != "" || (wholeErr == nil) != (partsErr == nil) {
			t.Fatalf("%q in parts of %d: %v, whole: %v (-whole +parts)\n%s", text, part, partsErr, wholeErr, diff)
		}
	}
}

// FuzzSyslogFraming holds that messages do not depend on how a stream is cut, and that what is written in either framing is read again.
func FuzzSyslogFraming(f *testing.F) {
	f.Add([]byte("4 <1>a5 <2>b\n"), 3)
	f.Add([]byte("<1>a\n12 <2>b\n"), 1)
	f.Add([]byte("99999999 <"), 2)
	f.Fuzz(func(t *testing.T, text []byte, part int) {
		const most = 50
		part = 1 + int(uint(part)%100)
		whole, wholeErr := framed(NewSyslogFramer(most), text, len(text)+1)
		parts, partsErr := framed(NewSyslogFramer(most), text, part)
		if diff := cmp.Diff(whole, parts); diff != "" || (wholeErr == nil) != (partsErr == nil) {
			t.Errorf("%q in parts of %d: %v, whole: %v (-whole +parts)\n%s", text, part, partsErr, wholeErr, diff)
		}
		for _, m := range whole {
			if len(strings.TrimSuffix(m, "…")) > most {
				t.Errorf("a message of %d bytes", len(m))
			}
		}
		var counted []byte
		var want []string
		for i, one := range bytes.Split(text, []byte("\n")) {
			one = append([]byte("<13>"), one...)
			one = one[:min(len(one), most)]
			counted = fmt.Appendf(counted, "%d %s", len(one), one)
			if i%2 == 0 {
				counted = append(counted, '\n')
			}
			want = append(want, string(one))
		}
		got, err := framed(NewSyslogFramer(most), counted, part)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("counted: %v (-want +got)\n%s", err, diff)
		}
	})
}
