package keys

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newKey returns a key and its secret.
func newKey(t testing.TB, name string, scopes ...string) (Key, string) {
	t.Helper()
	k, secret, err := New(name, scopes)
	if err != nil {
		t.Fatal(err)
	}
	return k, secret
}

func parse(t testing.TB, lines ...string) *Set {
	t.Helper()
	s, err := Parse(strings.NewReader(strings.Join(lines, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestANewKeyLetsInForItsScopesOnly(t *testing.T) {
	k, secret := newKey(t, "shipper", Write)
	s := parse(t, "# keys", "", k.String())
	encoded := func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
	tests := []struct {
		header header
		scope  string
		want   Verdict
	}{
		{header{"Authorization": "Bearer " + secret}, Write, Allowed},
		{header{"Authorization": "bearer  " + secret}, Write, Allowed},
		{header{"Authorization": "Splunk " + secret}, Write, Allowed},
		{header{"Authorization": "splunk " + secret}, Write, Allowed},
		{header{"Authorization": "ApiKey " + secret}, Write, Allowed},
		{header{"Authorization": "APIKey " + encoded("id:"+secret)}, Write, Allowed},
		{header{"Authorization": "ApiKey " + strings.TrimRight(encoded("an:"+secret), "=")}, Write, Allowed},
		{header{"Authorization": "Basic " + encoded("user:"+secret)}, Write, Allowed},
		{header{"Authorization": "BASIC " + encoded(secret+":")}, Write, Allowed},
		{header{"Authorization": "Basic " + encoded(secret)}, Write, Allowed},
		{header{"X-Api-Key": secret}, Write, Allowed},
		{header{"Dd-Api-Key": secret}, Write, Allowed},
		{header{"X-Amz-Firehose-Access-Key": secret}, Write, Allowed},
		{header{"Authorization": "Basic eDp5", "X-Api-Key": secret}, Write, Allowed},
		{header{"Authorization": "Splunk x", "X-Api-Key": secret}, Write, Allowed},
		{header{"Authorization": "Bearer " + secret, "X-Api-Key": "x"}, Write, Allowed},
		{header{"X-Api-Key": "x", "Dd-Api-Key": secret}, Write, Allowed},
		{header{"Authorization": "Bearer " + secret}, Read, Forbidden},
		{header{"Authorization": "Basic " + encoded("x:"+secret)}, Read, Forbidden},
		{header{}, Write, Unknown},
		{header{"Authorization": "Bearer "}, Write, Unknown},
		{header{"Authorization": "Bearer " + secret + "x"}, Write, Unknown},
		{header{"Authorization": "Bearer " + hex.EncodeToString(k.Hash[:])}, Write, Unknown},
		{header{"Authorization": "Bearer " + encoded("user:"+secret)}, Write, Unknown},
		{header{"Authorization": secret}, Write, Unknown},
		{header{"Authorization": "Basic " + secret}, Write, Unknown},
		{header{"Authorization": "Basic " + encoded(secret+":x")}, Write, Unknown},
		{header{"Authorization": "Basic " + encoded(":")}, Write, Unknown},
		{header{"Authorization": "Basic ="}, Write, Unknown},
		{header{"Authorization": "Basic " + encoded(strings.Repeat("x", 4000)+":"+secret)}, Write, Unknown},
		{header{"Authorization": "Digest " + secret}, Write, Unknown},
	}
	for _, tt := range tests {
		got, verdict := s.Check(tt.header, tt.scope)
		if verdict != tt.want || (got == nil) != (tt.want == Unknown) || got != nil && got.Name != "shipper" {
			t.Errorf("Check(%q, %s) = %v, %d, want %d", tt.header, tt.scope, got, verdict, tt.want)
		}
	}
}

// header is a request's header.
type header map[string]string

func (h header) Peek(name string) []byte { return []byte(h[name]) }

// authorization is a header with nothing but Authorization.
type authorization []byte

func (a authorization) Peek(name string) []byte {
	if name == "Authorization" {
		return a
	}
	return nil
}

// FuzzCheck sends arbitrary headers. None of them may let in.
func FuzzCheck(f *testing.F) {
	k, _, err := New("a", []string{Write})
	if err != nil {
		f.Fatal(err)
	}
	s := parse(f, k.String())
	f.Add("Basic "+base64.StdEncoding.EncodeToString([]byte("a:b")), "x")
	f.Add("ApiKey ====", "")
	f.Add("Basic "+strings.Repeat("A", 1<<11), "")
	f.Fuzz(func(t *testing.T, authorization, other string) {
		if got, verdict := s.Check(header{"Authorization": authorization, "X-Api-Key": other}, Write); verdict != Unknown {
			t.Errorf("%q and %q are let in as %v", authorization, other, got)
		}
	})
}

func TestOneAmongThousandsIsFound(t *testing.T) {
	var lines, secrets []string
	for i := range 5000 {
		k, secret := newKey(t, fmt.Sprint("key", i), Write)
		lines, secrets = append(lines, k.String()), append(secrets, secret)
	}
	s := parse(t, lines...)
	for i, secret := range secrets {
		if k, verdict := s.Check(header{"X-Api-Key": secret}, Write); verdict != Allowed || k.Name != fmt.Sprint("key", i) {
			t.Fatalf("key %d: got %v, %d", i, k, verdict)
		}
	}
}

// TestHashesThatBeginAlikeAreToldApart uses hashes with the same first 8 bytes, by which find
// looks them up.
func TestHashesThatBeginAlikeAreToldApart(t *testing.T) {
	k, secret := newKey(t, "real", Write)
	other := k
	other.Name, other.Hash[31] = "other", k.Hash[31]^1
	s := parse(t, other.String(), k.String())
	if got, verdict := s.Check(header{"X-Api-Key": secret}, Write); verdict != Allowed || got.Name != "real" {
		t.Errorf("got %v, %d, want the key named real", got, verdict)
	}
	if got, verdict := parse(t, other.String()).Check(header{"X-Api-Key": secret}, Write); verdict != Unknown {
		t.Errorf("got %v, %d, want it unknown", got, verdict)
	}
}

func TestACheckAllocatesNothing(t *testing.T) {
	k, secret := newKey(t, "a", Write)
	s := parse(t, k.String()+" rate=1000000000")
	for _, sent := range []string{
		"Bearer " + secret,
		"ApiKey " + base64.StdEncoding.EncodeToString([]byte("id:"+secret)),
		"Basic " + base64.StdEncoding.EncodeToString([]byte("user:"+secret)),
	} {
		var h Header = authorization(sent)
		if n := testing.AllocsPerRun(100, func() {
			k, verdict := s.Check(h, Write)
			if verdict != Allowed {
				t.Fatal(verdict)
			}
			k.Answered(202, 1)
		}); n != 0 {
			t.Errorf("%.7s: %v allocations", sent, n)
		}
	}
}

func TestWithoutAFileEverybodyIsLetIn(t *testing.T) {
	f, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	k, verdict := f.Check(header{}, Write)
	if f != nil || k != nil || verdict != Allowed {
		t.Errorf("Check = %v, %d, want everybody let in", k, verdict)
	}
	// A nil key must answer like a key without a limit.
	k.Answered(202, 1)
	if k.Gone() != nil {
		t.Error("nobody's key may be revoked")
	}
}

func TestAnEmptyFileLetsNobodyIn(t *testing.T) {
	if _, verdict := parse(t, "# none yet").Check(header{}, Write); verdict != Unknown {
		t.Errorf("got %d, want nobody let in", verdict)
	}
}

func TestALimitIsReadAndWritten(t *testing.T) {
	hash := strings.Repeat("0a", 32)
	for line, want := range map[string][2]int{
		"a " + hash + " write":                      {0, 0},
		"a " + hash + " write rate=1000":            {1000, 1000},
		"a " + hash + " write rate=1000 burst=5000": {1000, 5000},
		"a " + hash + " write burst=1\trate=2":      {2, 1},
	} {
		k := parse(t, line).keys[0]
		if got := [2]int{k.Rate, k.Burst}; got != want {
			t.Errorf("%s: got rate and burst %v, want %v", line, got, want)
		}
		again := parse(t, k.String()).keys[0]
		if diff := cmp.Diff(k, again, cmpopts.IgnoreUnexported(Key{})); diff != "" {
			t.Errorf("%s (-first +again):\n%s", line, diff)
		}
	}
}

func TestAMistakeInTheFileIsNamedWithItsLine(t *testing.T) {
	hash, other := strings.Repeat("0a", 32), strings.Repeat("0b", 32)
	nothing := sha256.Sum256(nil)
	for text, want := range map[string]string{
		"a " + hash:                                           "line 1: 2 words",
		"#\n\na b write":                                      "line 3: the second word",
		"a " + hash + "0a write":                              "line 1: the second word",
		"a " + hash + " admin":                                `line 1: scope "admin"`,
		"a " + hash + " write,":                               `line 1: scope ""`,
		"a " + hash + " read\na " + other + " read":           "line 2: a key named a",
		"a " + hash + " read\n\nb " + hash + " write":         "line 3: the SHA-256 is that of a",
		"a " + hex.EncodeToString(nothing[:]) + " write":      "line 1: the SHA-256 is that of nothing",
		"a " + hash + " write fast":                           `line 1: "fast", want rate=N or burst=N`,
		"a " + hash + " write RATE=1":                         `line 1: "RATE=1"`,
		"a " + hash + " write rate":                           `line 1: rate: got ""`,
		"a " + hash + " write rate=0":                         `line 1: rate: got "0"`,
		"a " + hash + " write rate=-1":                        `line 1: rate: got "-1"`,
		"a " + hash + " write rate=1.5":                       `line 1: rate: got "1.5"`,
		"a " + hash + " write rate=1000000001":                `line 1: rate: got "1000000001"`,
		"a " + hash + " write rate=99999999999999999999":      "line 1: rate: got",
		"a " + hash + " write rate=1 rate=2":                  "line 1: a second rate",
		"a " + hash + " write burst=5":                        "line 1: a burst without a rate",
		"a " + hash + " write rate = 5":                       "line 1: rate: got",
		"\n\xff " + hash + " write":                           "line 2: key name",
		"\ufeffa " + hash + " write":                          "line 1: key name",
		"a\x00 " + hash + " write":                            "line 1: key name",
		"a " + hash + " write\n" + strings.Repeat("x", 1<<17): "line 2: ",
	} {
		if _, err := Parse(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%.200q): got %v, want %q", text, err, want)
		}
	}
	for _, name := range []string{"", "two words", "#x", "\n", "\xff", "\u2028"} {
		if _, _, err := New(name, []string{Read}); err == nil {
			t.Errorf("New(%q) made a key", name)
		}
	}
	if _, _, err := New("a", nil); err == nil {
		t.Error("New without a scope made a key")
	}
}

// FuzzParse reads arbitrary files. Each must be refused with the number of a line, or be read
// as what it says.
func FuzzParse(f *testing.F) {
	hash := strings.Repeat("0a", 32)
	for _, text := range []string{"", "# none\n", "a " + hash + " write", "a " + hash + " read,write rate=5 burst=7\r\n\nb " + strings.Repeat("0b", 32) + " read",
		"a " + hash + " write\nb " + hash + " write", "a " + hash + " write rate=0", "\ufeffa " + hash + " write", "ä " + strings.ToUpper(hash) + " write,write burst=1 rate=1"} {
		f.Add([]byte(text))
	}
	atLine := regexp.MustCompile(`^line [1-9][0-9]*: .`)
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := Parse(bytes.NewReader(text))
		if err != nil {
			if s != nil || !atLine.MatchString(err.Error()) {
				t.Errorf("got %v, %v, want an error that names the line", s, err)
			}
			return
		}
		if _, verdict := s.Check(header{}, Write); verdict != Unknown {
			t.Errorf("who sends no key gets verdict %d", verdict)
		}
		var lines []string
		for k := range s.All() {
			lines = append(lines, k.String())
			if k.Rate > 0 != (k.limit != nil) {
				t.Errorf("%s: rate %d, limit %v", k.Name, k.Rate, k.limit)
			}
			hash := k.Hash
			if s.find(&hash) != k {
				t.Errorf("%s is not found by its hash", k.Name)
			}
		}
		again, err := Parse(strings.NewReader(strings.Join(lines, "\n")))
		if err != nil {
			t.Fatalf("%q was written as %q, which is refused: %v", text, lines, err)
		}
		if diff := cmp.Diff(s.keys, again.keys, cmpopts.IgnoreUnexported(Key{})); diff != "" {
			t.Errorf("read again (-first +again):\n%s", diff)
		}
		if meaningful := slices.ContainsFunc(bytes.Split(text, []byte("\n")), func(line []byte) bool {
			line = bytes.TrimSpace(line)
			return len(line) > 0 && line[0] != '#'
		}); meaningful != (len(s.keys) > 0) {
			t.Errorf("%q gave %d keys", text, len(s.keys))
		}
	})
}

// BenchmarkRequest measures what keys add to a request: the look-up, the limit and the counts.
func BenchmarkRequest(b *testing.B) {
	for _, n := range []int{1, 5000} {
		b.Run(fmt.Sprint(n, " keys"), func(b *testing.B) {
			var lines []string
			var secret string
			for i := range n {
				var k Key
				k, secret = newKey(b, fmt.Sprint("key", i), Write)
				lines = append(lines, k.String()+" rate=1000000000")
			}
			s := parse(b, lines...)
			var h Header = authorization("Bearer " + secret)
			b.ReportAllocs()
			for b.Loop() {
				k, verdict := s.Check(h, Write)
				if now := time.Now(); verdict != Allowed || k.Wait(now) > 0 || k.Take(1, now) > 0 {
					b.Fatal(verdict)
				}
				k.Answered(202, 1)
			}
		})
	}
}

func TestAKeyInTheWrongPlaceIsNotRepeated(t *testing.T) {
	_, secret, err := New("n", []string{Read})
	if err != nil {
		t.Fatal(err)
	}
	hash := strings.Repeat("ab", 32)
	for _, line := range []string{
		secret + " " + hash + " read", "n " + secret + " read", "n " + hash + " " + secret, "n " + hash + " read " + secret, "n " + hash + " read rate=" + secret, secret,
		"n " + hash + " read," + secret,
	} {
		if _, err := Parse(strings.NewReader(line)); err == nil || strings.Contains(err.Error(), secret[3:]) {
			t.Errorf("%s: got %v, want a refusal without the key", line, err)
		}
	}
}
