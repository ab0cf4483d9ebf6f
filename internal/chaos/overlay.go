package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Edit replaces some text of a source file, once, for one build of the binary. The file itself stays as it is. If Old is
// empty, New is a file that the module does not have.
type Edit struct {
	File     string // from the module's top, or absolute
	Old, New string
}

// Build builds millrace from the module at top with some edits, by go build's -overlay. It fails when the text to be
// replaced is not there exactly once.
func Build(ctx context.Context, top, out string, edits ...Edit) error {
	top, err := filepath.Abs(top)
	if err != nil {
		return err
	}
	replace := make(map[string]string)
	texts := make(map[string]string)
	var files []string
	for _, e := range edits {
		file := e.File
		if !filepath.IsAbs(file) {
			file = filepath.Join(top, file)
		}
		text, seen := texts[file]
		if e.Old == "" {
			if _, err := os.Stat(file); seen || !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%s should not be there yet: %v", e.File, err)
			}
			texts[file] = e.New
			files = append(files, file)
			continue
		}
		if !seen {
			b, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			text = string(b)
			files = append(files, file)
		}
		if n := strings.Count(text, e.Old); n != 1 {
			return fmt.Errorf("%s has %d times the text to be replaced, want once: %q", e.File, n, e.Old)
		}
		texts[file] = strings.Replace(text, e.Old, e.New, 1)
	}
	if len(files) == 0 {
		return gobuild(ctx, top, out)
	}
	for i, file := range files {
		edited := fmt.Sprintf("%s.overlay%d.go", out, i)
		if err := os.WriteFile(edited, []byte(texts[file]), 0o600); err != nil {
			return err
		}
		defer os.Remove(edited)
		replace[file] = edited
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return err
	}
	overlay := out + ".overlay.json"
	if err := os.WriteFile(overlay, b, 0o600); err != nil {
		return err
	}
	defer os.Remove(overlay)
	return gobuild(ctx, top, out, "-overlay", overlay)
}

// gobuild builds millrace with go build, as make build does.
func gobuild(ctx context.Context, top, out string, flags ...string) error {
	cmd := exec.CommandContext(ctx, "go", slices.Concat([]string{"build", "-trimpath"}, flags, []string{"-o", out, "."})...)
	cmd.Dir = top
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, b)
	}
	return nil
}

// clockVariable names the file with the offset of the clock that ids are made by.
const clockVariable = "CHAOS_CLOCK"

// steppedClock gives the package that makes the ids another clock than time.Now.
const steppedClock = `package frame

import (
	"os"
	"sync/atomic"
	"time"
)

var offset atomic.Int64

func init() {
	clock = func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }
	go func() {
		for {
			b, err := os.ReadFile(os.Getenv("` + clockVariable + `"))
			d, err2 := time.ParseDuration(string(b))
			if err == nil && err2 == nil {
				offset.Store(int64(d))
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
}
`

// BuildClock builds millrace with some edits, and with a clock that can be stepped in the package that makes the ids. That
// package has a variable for it. There is no other way to step the clock of one process: the system's is everybody's, Linux'
// time namespaces leave the wall clock alone, and Go does not ask libc.
func BuildClock(ctx context.Context, top, out string, edits ...Edit) error {
	return Build(ctx, top, out, append(slices.Clip(edits), Edit{File: "internal/frame/stepped.go", New: steppedClock})...)
}
