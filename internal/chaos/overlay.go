package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Edit replaces some text of a source file, once, for one build of the binary. The file itself stays as it is.
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

// steppedClock takes the place of time.Now in the library that makes the ids.
const steppedClock = `package uuid

import (
	"os"
	"sync/atomic"
	"time"
)

var offset atomic.Int64

func init() {
	timeNow = func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }
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

// BuildClock builds millrace with another clock in the library that makes its ids, which has a variable for that.
// Nobody can step the clock of one process: the system's is everybody's, Linux' time namespaces leave the wall clock
// alone, and Go does not ask libc.
func BuildClock(ctx context.Context, top, out string) error {
	const module = "github.com/google/uuid"
	top, err := filepath.Abs(top)
	if err != nil {
		return err
	}
	list := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module)
	list.Dir = top
	dir, err := list.Output()
	if err != nil {
		return fmt.Errorf("go list: %w", err)
	}
	stepped := out + ".uuid"
	defer os.RemoveAll(stepped)
	if err := os.CopyFS(stepped, os.DirFS(strings.TrimSpace(string(dir)))); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(stepped, "stepped.go"), []byte(steppedClock), 0o600); err != nil {
		return err
	}
	mod, err := os.ReadFile(filepath.Join(top, "go.mod"))
	if err != nil {
		return err
	}
	sum, err := os.ReadFile(filepath.Join(top, "go.sum"))
	if err != nil {
		return err
	}
	defer os.Remove(out + ".mod")
	defer os.Remove(out + ".sum")
	err = errors.Join(
		os.WriteFile(out+".mod", fmt.Appendf(mod, "\nreplace %s => %s\n", module, stepped), 0o600),
		os.WriteFile(out+".sum", sum, 0o600),
	)
	if err != nil {
		return err
	}
	return gobuild(ctx, top, out, "-modfile", out+".mod")
}
