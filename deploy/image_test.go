package deploy

import (
	"bytes"
	"debug/buildinfo"
	"debug/elf"
	goversion "go/version"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// instructions reads a Dockerfile into its instructions: the keyword and what follows it, continued lines joined.
func instructions(t *testing.T, name string) [][2]string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	text = regexp.MustCompile(`(?m)^#.*\n`).ReplaceAll(text, nil)
	var all [][2]string
	for line := range strings.Lines(strings.ReplaceAll(string(text), "\\\n", " ")) {
		if keyword, rest, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			all = append(all, [2]string{keyword, strings.TrimSpace(rest)})
		}
	}
	return all
}

// buildContext copies to dir what docker build is sent: the repository's files without those that .dockerignore names.
func buildContext(t *testing.T, dir string) {
	t.Helper()
	file, err := os.Open(".dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	patterns, err := ignorefile.ReadAll(file)
	if err != nil {
		t.Fatal(err)
	}
	ignored, err := patternmatcher.New(patterns)
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path == ".git" || path == "bin" || path == ".millrace" {
				return filepath.SkipDir
			}
			return nil
		}
		if skip, err := ignored.MatchesOrParentMatches(path); skip || err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o755); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, path), content, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestTheImagesStepsMakeItsProgram does the Dockerfile's steps in an empty folder, with this machine's Go instead of the
// image's.
func TestTheImagesStepsMakeItsProgram(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program")
	}
	from, src, built := t.TempDir(), t.TempDir(), ""
	buildContext(t, from)
	const version = "v1.2.3-test"
	args := map[string]string{"VERSION": version, "TARGETARCH": runtime.GOARCH}
	stage := 0
	for _, in := range instructions(t, "Dockerfile") {
		keyword, rest := in[0], in[1]
		if keyword == "FROM" {
			stage++
			image := strings.Fields(strings.TrimPrefix(rest, "--platform=$BUILDPLATFORM "))[0]
			if image != "scratch" && !regexp.MustCompile(`^golang:\d+\.\d+\.\d+$`).MatchString(image) {
				t.Errorf("image %s is not pinned by its version", image)
			}
			if need := regexp.MustCompile(`(?m)^go (\S+)$`).FindSubmatch(must(os.ReadFile("go.mod")))[1]; image != "scratch" && goversion.Compare("go"+strings.TrimPrefix(image, "golang:"), "go"+string(need)) < 0 {
				t.Errorf("%s builds what needs Go %s", image, need)
			}
			continue
		}
		switch {
		case keyword == "WORKDIR" && stage == 1:
			if rest != "/src" {
				t.Fatalf("WORKDIR %s, which this test takes for %s", rest, src)
			}
		case keyword == "ARG" && stage == 1:
			name, value, _ := strings.Cut(rest, "=")
			if args[name] == "" {
				args[name] = value
			}
		case keyword == "COPY" && stage == 1:
			paths := strings.Fields(rest)
			for _, path := range paths[:len(paths)-1] {
				copyAll(t, filepath.Join(from, path), filepath.Join(src, paths[len(paths)-1], strings.TrimPrefix(path, ".")))
			}
		case keyword == "RUN" && stage == 1:
			cmd := exec.Command("sh", "-c", regexp.MustCompile(`^--mount=type=cache,\S+ `).ReplaceAllString(rest, ""))
			cmd.Dir = src
			cmd.Env = append(os.Environ(), "GOFLAGS=-mod=readonly", "GOTOOLCHAIN=local")
			for name, value := range args {
				cmd.Env = append(cmd.Env, name+"="+value)
			}
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("RUN %s: %v: %s", rest, err, out)
			}
		case keyword == "COPY":
			if path, ok := strings.CutPrefix(strings.Fields(rest)[1], "/src/"); ok {
				built = filepath.Join(src, path)
			}
		case keyword == "USER":
			if regexp.MustCompile(`^(0|root)\b`).MatchString(rest) {
				t.Errorf("the image runs as %s", rest)
			}
		}
	}
	if stage != 2 || built == "" {
		t.Fatalf("%d stages, and %q is copied into the last", stage, built)
	}

	program, err := elf.Open(built)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	libraries, err := program.ImportedLibraries()
	if err != nil || len(libraries) > 0 || program.Section(".interp") != nil {
		t.Errorf("the program is not static: %v, %v", libraries, err)
	}
	if program.Section(".symtab") != nil {
		t.Error("the program has its symbols, which nobody reads in a container")
	}
	const most = 40 << 20
	if info := must(os.Stat(built)); info.Size() > most {
		t.Errorf("the program has %d MiB", info.Size()>>20)
	}
	info, err := buildinfo.ReadFile(built)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range info.Deps {
		if regexp.MustCompile(`docker|moby|testcontainers`).MatchString(m.Path) {
			t.Errorf("the program has %s in it, which only tests use", m.Path)
		}
	}
	cmd := exec.Command(built, "version")
	cmd.Dir, cmd.Env = t.TempDir(), []string{} // a container has no more
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.HasPrefix(out, []byte("millrace "+version)) {
		t.Errorf("millrace version: %v, %s", err, out)
	}
}

func copyAll(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		target := filepath.Join(to, must(filepath.Rel(from, path)))
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		return os.WriteFile(target, must(os.ReadFile(path)), 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}
