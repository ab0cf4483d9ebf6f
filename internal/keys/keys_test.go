package keys

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestANewKeyLetsInForItsScopesOnly(t *testing.T) {
	k, secret, err := New("shipper", []string{Write})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte("# keys\n\n"+k.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		authorization, apiKey, scope string
		want                         Verdict
	}{
		{"Bearer " + secret, "", Write, Allowed},
		{"bearer  " + secret, "", Write, Allowed},
		{"", secret, Write, Allowed},
		{"Basic eDp5", secret, Write, Allowed},
		{"Bearer " + secret, "", Read, Forbidden},
		{"", "", Write, Unknown},
		{"Bearer ", "", Write, Unknown},
		{"Bearer x", secret, Write, Unknown}, // Authorization comes first
		{"Bearer " + secret + "x", "", Write, Unknown},
		{secret, "", Write, Unknown},
	}
	for _, tt := range tests {
		if got := s.Check(tt.authorization, tt.apiKey, tt.scope); got != tt.want {
			t.Errorf("Check(%q, %q, %s) = %d, want %d", tt.authorization, tt.apiKey, tt.scope, got, tt.want)
		}
	}
}

func TestWithoutAFileEverybodyIsLetIn(t *testing.T) {
	s, err := Load("")
	if err != nil || s.Check("", "", Write) != Allowed {
		t.Errorf("Load(\"\") = %v, %v, want a set that lets everybody in", s, err)
	}
}

func TestAnEmptyFileLetsNobodyIn(t *testing.T) {
	s, err := Parse(strings.NewReader("# none yet\n"))
	if err != nil || s.Check("", "", Write) != Unknown {
		t.Errorf("got %v, want a set that lets nobody in", err)
	}
}

func TestAMistakeInTheFileIsNamedWithItsLine(t *testing.T) {
	hash := strings.Repeat("0a", 32)
	for text, want := range map[string]string{
		"a " + hash:            "line 1: 2 words",
		"#\n\na b write":       "line 3: the second word",
		"a " + hash + " admin": `line 1: scope "admin"`,
		"a " + hash + " read\na " + hash + " read": "line 2: a key named a",
	} {
		if _, err := Parse(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%q): got %v, want %q", text, err, want)
		}
	}
	if _, err := Load("/does/not/exist"); err == nil || !strings.Contains(err.Error(), "KEYS_FILE") {
		t.Errorf("a missing file: got %v, want the setting's name", err)
	}
	for _, name := range []string{"", "two words", "#x"} {
		if _, _, err := New(name, []string{Read}); err == nil {
			t.Errorf("New(%q) made a key", name)
		}
	}
	if _, _, err := New("a", nil); err == nil {
		t.Error("New without a scope made a key")
	}
}
