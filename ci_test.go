//go:build linux

package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"millrace/internal/testenv"
)

// TestActionsArePinnedByCommit holds that no action is named by a tag: whoever can move the tag could run what they like with
// the workflow's rights.
func TestActionsArePinnedByCommit(t *testing.T) {
	files, err := filepath.Glob(".github/workflows/*")
	if err != nil || len(files) == 0 {
		t.Fatalf("no workflows: %v", err)
	}
	uses := regexp.MustCompile(`(?m)^[ -]*uses:.*$`)
	pinned := regexp.MustCompile(`uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$`)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		lines := uses.FindAllString(string(text), -1)
		if len(lines) == 0 {
			t.Errorf("%s: found no uses", file)
		}
		for _, line := range lines {
			if !pinned.MatchString(line) {
				t.Errorf("%s: %q, want OWNER/NAME@COMMIT # vVERSION", file, strings.TrimSpace(line))
			}
		}
	}
}

// TestAptIsWaitedFor locks apt's package lists, in a folder of its own, and wants the script to wait for the lock.
func TestAptIsWaitedFor(t *testing.T) {
	if _, err := exec.LookPath("apt-get"); err != nil || os.Getuid() != 0 {
		t.Skip("takes apt-get and root")
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "lists", "partial"), 0o755); err != nil {
		t.Fatal(err)
	}
	// Without sources apt-get fetches nothing.
	lock, err := os.Create(filepath.Join(dir, "lists", "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.FcntlFlock(lock.Fd(), syscall.F_SETLK, &syscall.Flock_t{Type: syscall.F_WRLCK, Whence: io.SeekStart}); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(".ci/apt.sh", "-o", "Dir::State::Lists="+filepath.Join(dir, "lists"), "-o", "Dir::Etc::sourcelist=/dev/null",
		"-o", "Dir::Etc::sourceparts=/dev/null", "-o", "Dir::Cache="+dir, "update")
	out := new(testenv.Output)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	testenv.Eventually(t, 30*time.Second, "it says that it waits", func() bool {
		select {
		case err := <-done:
			t.Fatalf("it ended while the lock was held: %v\n%s", err, out)
		default:
		}
		return strings.Contains(out.String(), "waiting")
	})
	if err := lock.Close(); err != nil { // releases it
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("after the lock was free: %v\n%s", err, out)
		}
	case <-time.After(time.Minute):
		_ = cmd.Process.Kill() // the test has failed
		t.Errorf("still waiting\n%s", out)
	}
	entries, err := os.ReadDir(filepath.Join(dir, "lists"))
	if err != nil || len(entries) == 0 {
		t.Errorf("the lists are gone: %v", err)
	}
}
