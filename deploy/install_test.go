package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestWhatIsInstalled runs make install into a folder, and has systemd check the units.
func TestWhatIsInstalled(t *testing.T) {
	if _, err := os.Stat("bin/millrace"); err != nil {
		t.Skip("bin/millrace is not there: make build")
	}
	root := t.TempDir()
	if out, err := exec.Command("make", "install", "PREFIX=/usr", "DESTDIR="+root).CombinedOutput(); err != nil {
		t.Fatalf("make install: %v: %s", err, out)
	}
	for name, mode := range map[string]os.FileMode{
		"usr/bin/millrace": 0o755, "etc/millrace/millrace.env": 0o640, "usr/lib/sysusers.d/millrace.conf": 0o644,
	} {
		if info, err := os.Stat(filepath.Join(root, name)); err != nil {
			t.Error(err)
		} else if info.Mode().Perm() != mode {
			t.Errorf("%s has mode %v, want %v", name, info.Mode().Perm(), mode)
		}
	}
	// A second make install keeps settings that were changed.
	mine := filepath.Join(root, "etc/millrace/millrace.env")
	if err := os.WriteFile(mine, []byte("LOG_LEVEL=debug\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("make", "install", "PREFIX=/usr", "DESTDIR="+root).CombinedOutput(); err != nil {
		t.Fatalf("make install, again: %v: %s", err, out)
	}
	if text := must(os.ReadFile(mine)); string(text) != "LOG_LEVEL=debug\n" {
		t.Errorf("make install has overwritten the settings with %s", text)
	}

	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed: the units are not judged")
	}
	var hardening string
	for _, name := range []string{"api", "worker", "query"} {
		unit := filepath.Join(root, "usr/lib/systemd/system/millrace-"+name+".service")
		text := string(must(os.ReadFile(unit)))
		if !strings.Contains(text, "\nExecStart=/usr/bin/millrace "+name+"\n") {
			t.Errorf("%s does not start the service", unit)
		}
		// The later file wins. The dash lets it be missing.
		var files []string
		for _, m := range regexp.MustCompile(`(?m)^EnvironmentFile=(.*)$`).FindAllStringSubmatch(text, -1) {
			files = append(files, m[1])
		}
		if diff := cmp.Diff([]string{"/etc/millrace/millrace.env", "-/etc/millrace/" + name + ".env"}, files); diff != "" {
			t.Errorf("%s: settings (-want +got):\n%s", unit, diff)
		}
		_, rest, _ := strings.Cut(text, "\nLimitNOFILE=")
		if hardening == "" {
			hardening = rest
		} else if hardening != rest {
			t.Errorf("%s is hardened in another way than the others", unit)
		}
		// systemd-analyze wants the program to be where the unit says.
		here := strings.Replace(text, "/usr/bin/millrace", filepath.Join(root, "usr/bin/millrace"), 1)
		judged := filepath.Join(t.TempDir(), filepath.Base(unit))
		if err := os.WriteFile(judged, []byte(here), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(analyze, "verify", "--man=no", "--recursive-errors=no", judged).CombinedOutput()
		if err != nil || regexp.MustCompile(`(?m)^`+regexp.QuoteMeta(judged)).Match(out) {
			t.Errorf("systemd-analyze verify: %v: %s", err, out)
		}
		// systemd's score goes from 10, no protection, to 0; the threshold is in tenths.
		if out, err := exec.Command(analyze, "security", "--offline=true", "--no-pager", "--threshold=20", judged).CombinedOutput(); err != nil {
			t.Errorf("systemd-analyze security: %v: %s", err, out)
		}
	}
}
