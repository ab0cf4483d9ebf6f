package main

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
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

var update = flag.Bool("update", false, "write anew what is made from the settings' structs: the table of deploy/SETTINGS.md, .env.example, and the chart's schema, table and files")

func TestTheSettingsTableIsThatOfTheStructs(t *testing.T) {
	const begin, end = "<!-- settings -->\n", "<!-- /settings -->"
	var table strings.Builder
	table.WriteString(begin + "| setting | default | services | what it is |\n| --- | --- | --- | --- |\n")
	all, services := cli.Settings()
	for _, s := range all {
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", s.Name, s.Default, strings.Join(services[s.Name], ", "), s.Help)
	}
	table.WriteString(end)

	page, err := os.ReadFile("deploy/SETTINGS.md")
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(page), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("deploy/SETTINGS.md lacks %s… %s", begin, end)
	}
	check(t, "deploy/SETTINGS.md", string(page), before+table.String()+after)
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
		t.Errorf("%s is not what it is made from; go test -run %s -update . writes it anew", file, t.Name())
		return
	}
	if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

// goFiles calls f for every Go file, with its path from the repository's top.
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

// documents returns the paths of the Markdown files.
func documents(t *testing.T) (docs []string) {
	t.Helper()
	for _, pattern := range []string{"*.md", "*/*.md", "*/*/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		docs = append(docs, found...)
	}
	docs = slices.DeleteFunc(docs, func(path string) bool { return strings.HasPrefix(path, "bin/") })
	if len(docs) < 20 {
		t.Fatalf("found %d documents", len(docs))
	}
	return docs
}

// anchors returns the names by which a document's headings are linked to.
func anchors(document string) map[string]bool {
	names := make(map[string]bool)
	code := regexp.MustCompile("(?ms)^```.*?^```$")
	other := regexp.MustCompile(`[^\p{L}\p{N} _-]`)
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(code.ReplaceAllString(document, ""), -1) {
		names[strings.ReplaceAll(other.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")] = true
	}
	return names
}

func TestDocumentsNameWhatIsThere(t *testing.T) {
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	link := regexp.MustCompile(`\]\(([^)#:]*)(?:#([^)]*))?\)`)
	target := regexp.MustCompile("(?m)^    make ([a-z-]+)|`make ([a-z-]+)`")
	for _, doc := range documents(t) {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			path := doc
			if m[1] != "" {
				path = filepath.Join(filepath.Dir(doc), m[1])
			}
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s links to %s: %v", doc, m[1], err)
				continue
			}
			if m[2] == "" {
				continue
			}
			linked, err := os.ReadFile(path)
			if err != nil {
				t.Errorf("%s links to %s: %v", doc, m[0], err)
			} else if !anchors(string(linked))[m[2]] {
				t.Errorf("%s links to %s, which has no heading #%s", doc, path, m[2])
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

// TestDocumentsNameCodeThatIsThere holds the paths in the documents, such as `worker/errors.go`, and the tests that they name,
// whole or by their beginning: `TestDuplicatesInTwoWorkers…`. CHANGELOG.md tells of what was.
func TestDocumentsNameCodeThatIsThere(t *testing.T) {
	var tests strings.Builder
	declaration := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	goFiles(t, func(path string) {
		if !strings.HasSuffix(path, "_test.go") {
			return
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range declaration.FindAllSubmatch(text, -1) {
			fmt.Fprintf(&tests, "\n%s\n", m[1])
		}
	})
	path := regexp.MustCompile("`((?:api|worker|query|internal|migrations|bench|loadtest|deploy|terraform)/[A-Za-z0-9_./-]*)`")
	made := []string{"deploy/etc/keys", "deploy/etc/searches.yaml", "loadtest/results/"} // by who runs it
	test := regexp.MustCompile("`(Test[A-Z]\\w+)(…?)`")
	paths, named := 0, 0
	for _, doc := range documents(t) {
		if doc == "CHANGELOG.md" {
			continue
		}
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range path.FindAllSubmatch(text, -1) {
			paths++
			if _, err := os.Stat(string(m[1])); err != nil && !slices.Contains(made, string(m[1])) {
				t.Errorf("%s: %v", doc, err)
			}
		}
		for _, m := range test.FindAllSubmatch(text, -1) {
			named++
			want := "\n" + string(m[1])
			if len(m[2]) == 0 {
				want += "\n"
			}
			if !strings.Contains(tests.String(), want) {
				t.Errorf("%s names %s, which is no test", doc, m[0])
			}
		}
	}
	if paths < 50 || named < 15 {
		t.Errorf("the documents name %d paths and %d tests", paths, named)
	}
}

// TestTheFirstDocumentsStayShort holds the sizes of the documents that a newcomer reads in one go.
func TestTheFirstDocumentsStayShort(t *testing.T) {
	for _, limit := range []struct {
		document     string
		bytes, lines int
	}{{"README.md", 15 << 10, 150}, {"CONTRIBUTING.md", 6 << 10, 100}, {"DESIGN.md", 30 << 10, 300}} {
		text, err := os.ReadFile(limit.document)
		if err != nil {
			t.Fatal(err)
		}
		if lines := bytes.Count(text, []byte("\n")); len(text) > limit.bytes || lines > limit.lines {
			t.Errorf("%s has %d bytes and %d lines, want at most %d and %d: what is longer goes to the README of its folder",
				limit.document, len(text), lines, limit.bytes, limit.lines)
		}
	}
}

// TestTheJourneyNamesFilesAndFunctions holds each row of DESIGN.md's journey to the code: its file declares its function. A
// method is written as Type.method.
func TestTheJourneyNamesFilesAndFunctions(t *testing.T) {
	text, err := os.ReadFile("DESIGN.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, begins := strings.Cut(string(text), "<!-- walk -->")
	walk, _, ends := strings.Cut(rest, "<!-- /walk -->")
	steps := regexp.MustCompile("(?m)^\\| \\d+ \\| `([^`]+)` \\| `([^`]+)` \\| .+ \\|$").FindAllStringSubmatch(walk, -1)
	if !begins || !ends || len(steps) < 40 {
		t.Fatalf("DESIGN.md has %d steps between <!-- walk --> and <!-- /walk -->", len(steps))
	}
	declared := make(map[string][]string) // by file
	for _, step := range steps {
		path, function := step[1], step[2]
		if declared[path] == nil {
			declared[path] = functions(t, path)
		}
		if !slices.Contains(declared[path], function) {
			t.Errorf("%s does not declare %s", path, function)
		}
	}
}

// functions returns the functions that a file declares, methods as Type.method.
func functions(t *testing.T, path string) (names []string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Error(err)
		return nil
	}
	for _, d := range file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		name := f.Name.Name
		if f.Recv != nil {
			receiver := f.Recv.List[0].Type
			if pointer, ok := receiver.(*ast.StarExpr); ok {
				receiver = pointer.X
			}
			if generic, ok := receiver.(*ast.IndexExpr); ok {
				receiver = generic.X
			}
			if typ, ok := receiver.(*ast.Ident); ok {
				name = typ.Name + "." + name
			}
		}
		names = append(names, name)
	}
	return names
}

// TestTheLayoutNamesEveryRoom holds the layout in DESIGN.md to the folders: each folder that it names exists, and it names each
// folder of internal.
func TestTheLayoutNamesEveryRoom(t *testing.T) {
	text, err := os.ReadFile("DESIGN.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "\n## Layout\n")
	layout, _, _ := strings.Cut(rest, "\n## ")
	named := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^    (\S+)`).FindAllStringSubmatch(layout, -1) {
		name := strings.TrimSuffix(m[1], "/")
		named[name] = true
		if _, err := os.Stat(name); err != nil {
			t.Errorf("the layout in DESIGN.md: %v", err)
		}
	}
	rooms, err := filepath.Glob("internal/*")
	if err != nil || len(rooms) < 10 {
		t.Fatalf("found %d folders: %v", len(rooms), err)
	}
	for _, room := range rooms {
		if !named[filepath.ToSlash(room)] {
			t.Errorf("the layout in DESIGN.md lacks %s", room)
		}
	}
}
