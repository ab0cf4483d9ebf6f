package main

import (
	"bytes"
	"flag"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/joho/godotenv"

	"millrace/api"
	"millrace/internal/cli"
	"millrace/internal/config"
	"millrace/query"
	"millrace/worker"
)

var update = flag.Bool("update", false, "write the settings table of README.md and .env.example anew")

func TestTheSettingsTableIsThatOfTheStructs(t *testing.T) {
	const begin, end = "<!-- settings -->\n", "<!-- /settings -->"
	var table strings.Builder
	table.WriteString(begin + "| setting | default | services | what it is |\n| --- | --- | --- | --- |\n")
	all, services := cli.Settings()
	for _, s := range all {
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", s.Name, s.Default, strings.Join(services[s.Name], ", "), s.Help)
	}
	table.WriteString(end)

	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(readme), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("README.md lacks %s… %s", begin, end)
	}
	check(t, "README.md", string(readme), before+table.String()+after)
}

func TestTheExampleSettingsAreAllOfThemAndLoad(t *testing.T) {
	var want strings.Builder
	want.WriteString("# Settings of Millrace: copy to .env and change what you need. The environment wins over this file.\n" +
		"# Every line shows the default.\n")
	all, services := cli.Settings()
	for _, s := range all {
		fmt.Fprintf(&want, "\n# %s (%s)\n# Takes %s.\n#%s=%s\n", s.Help, strings.Join(services[s.Name], ", "), s.Takes, s.Name, s.Default)
	}
	got, err := os.ReadFile(".env.example")
	if err != nil && !*update {
		t.Fatal(err)
	}
	check(t, ".env.example", string(got), want.String())

	environ, err := godotenv.Unmarshal(regexp.MustCompile(`(?m)^#([A-Z_]+=.+)$`).ReplaceAllString(string(got), "$1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []any{new(api.Config), new(worker.Config), new(query.Config)} {
		if err := config.LoadFrom(environ, c); err != nil {
			t.Errorf("%T: %v", c, err)
		}
	}
}

func check(t *testing.T, file, got, want string) {
	t.Helper()
	if got == want {
		return
	}
	if !*update {
		t.Errorf("%s is not what the settings' structs say; go test -run Settings -update . writes it anew", file)
		return
	}
	if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

// goFiles calls f for every Go file of the module, by its path from the top.
func goFiles(t *testing.T, f func(path string)) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." && strings.HasPrefix(d.Name(), ".") {
			return filepath.SkipDir
		}
		if strings.HasSuffix(path, ".go") {
			f(path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestTheServicesDoNotImportEachOther holds that only the command line and the tests of the whole put services together.
func TestTheServicesDoNotImportEachOther(t *testing.T) {
	services := []string{"api", "worker", "query"}
	together := []string{"internal/cli", "internal/e2e"}
	goFiles(t, func(path string) {
		dir := filepath.ToSlash(filepath.Dir(path))
		top, _, _ := strings.Cut(dir, "/")
		if top != "internal" && !slices.Contains(services, top) || slices.Contains(together, dir) {
			return
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range file.Imports {
			imported, ours := strings.CutPrefix(strings.Trim(i.Path.Value, `"`), "millrace/")
			service, _, _ := strings.Cut(imported, "/")
			if ours && service != top && slices.Contains(services, service) {
				t.Errorf("%s imports %s", path, imported)
			}
		}
	})
}

// TestEveryPackageHasItsComment holds that each package has one package comment. A package of tests alone has it in a
// test file.
func TestEveryPackageHasItsComment(t *testing.T) {
	type comments struct{ inCode, inTests, codeFiles int }
	packages := make(map[string]*comments)
	goFiles(t, func(path string) {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		p := packages[filepath.Dir(path)]
		if p == nil {
			p = new(comments)
			packages[filepath.Dir(path)] = p
		}
		isTest := strings.HasSuffix(path, "_test.go")
		if !isTest {
			p.codeFiles++
		}
		switch {
		case file.Doc == nil:
		case isTest:
			p.inTests++
		default:
			p.inCode++
		}
	})
	for dir, p := range packages {
		if n := p.inCode; p.codeFiles > 0 && n != 1 {
			t.Errorf("package %s has %d package comments, want 1", dir, n)
		}
		if n := p.inTests; p.codeFiles == 0 && n != 1 {
			t.Errorf("package %s, of tests alone, has %d package comments, want 1", dir, n)
		}
	}
}

func TestDocumentsNameWhatIsThere(t *testing.T) {
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	link := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	target := regexp.MustCompile("(?m)^    make ([a-z-]+)|`make ([a-z-]+)`")
	docs := []string{"README.md", "DESIGN.md", "CHANGELOG.md"}
	for _, pattern := range []string{"deploy/*.md", "deploy/*/*.md"} {
		more, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		docs = append(docs, more...)
	}
	for _, doc := range docs {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(doc), string(m[1]))); err != nil {
				t.Errorf("%s links to %s: %v", doc, m[1], err)
			}
		}
		for _, m := range target.FindAllSubmatch(text, -1) {
			name := append(m[1], m[2]...)
			if !bytes.Contains(makefile, append([]byte("\n"), append(name, ':')...)) {
				t.Errorf("%s names make %s, which the Makefile lacks", doc, name)
			}
		}
	}
}
