package query

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
)

// pageClient asks a service that never reaches its database, which the page does not need.
func pageClient(t *testing.T) *client {
	return start(t, map[string]string{"POSTGRES_URL": "postgres://nobody@127.0.0.1:1/none"})
}

// conditional asks for a path under a condition on its ETag.
func conditional(t *testing.T, c *client, path, etag string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), "GET", c.base+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("If-None-Match", etag)
	resp, err := c.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

func TestThePageAndItsFilesAreServedToBeKept(t *testing.T) {
	c := pageClient(t)
	index := c.get("/")
	refs := regexp.MustCompile(`(?:src|href)="(assets/[^"]+)"`).FindAllStringSubmatch(index.body, -1)
	if index.status != 200 || len(refs) < 4 || strings.Contains(index.body, "{{") {
		t.Fatalf("GET /: got %d, referring to %v", index.status, refs)
	}
	all := map[string]reply{"/": index}
	base := ""
	for _, ref := range refs {
		path := "/" + ref[1]
		all[path] = c.get(path)
		base = path[:strings.LastIndex(path, "/")+1]
	}
	// What the modules import, from app.js on.
	imports := regexp.MustCompile(`(?m)^(?:import|export).* from '\./([^']+)';$`)
	for todo := []string{"app.js"}; len(todo) > 0; todo = todo[1:] {
		for _, m := range imports.FindAllStringSubmatch(c.get(base+todo[0]).body, -1) {
			if _, seen := all[base+m[1]]; !seen {
				all[base+m[1]] = c.get(base + m[1])
				todo = append(todo, m[1])
			}
		}
	}
	if got, want := len(all), len(thePage().files); got != want {
		t.Errorf("%d files are referred to, %d are embedded", got, want)
	}
	for path, r := range all {
		cached := "public, max-age=31536000, immutable"
		if path == "/" {
			cached = "no-cache"
		}
		etag := r.header.Get("ETag")
		if r.status != 200 || r.header.Get("Cache-Control") != cached || len(etag) < 10 {
			t.Errorf("GET %s: got %d, Cache-Control %q, ETag %s", path, r.status, r.header.Get("Cache-Control"), etag)
		}
		for name, want := range map[string]string{
			"Content-Security-Policy": pagePolicy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
		} {
			if got := r.header.Get(name); got != want {
				t.Errorf("GET %s: %s is %q, want %q", path, name, got, want)
			}
		}
		if got := conditional(t, c, path, etag); got != http.StatusNotModified {
			t.Errorf("GET %s with its ETag: got %d, want 304", path, got)
		}
		if got := conditional(t, c, path, `"other"`); got != 200 {
			t.Errorf("GET %s with another ETag: got %d, want 200", path, got)
		}
	}
	for _, path := range []string{base + "index.html", base + "none.js", base, base + "app.js/", "/assets/0123456789abcdef/app.js", "/assets", "/app.js"} {
		if r := c.get(path); r.status != 404 {
			t.Errorf("GET %s: got %d, want 404", path, r.status)
		}
	}
}

// The policy would block it anyway: this tells at once which line is in vain.
func TestThePageHasNoInlineCodeAndNoForeignAddress(t *testing.T) {
	inline := regexp.MustCompile(`(?i)\sstyle=|\son[a-z]+=|<style|<script(?:[^>]*)>[^<]|javascript:|\.innerHTML|\.outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function`)
	foreign := regexp.MustCompile(`https?://[^\s"'<>)]+`)
	for name, body := range thePage().files {
		for i, line := range strings.Split(string(body), "\n") {
			if m := inline.FindString(line); m != "" {
				t.Errorf("%s:%d has %q", name, i+1, m)
			}
			for _, m := range foreign.FindAllString(line, -1) {
				if m != "http://www.w3.org/2000/svg" && m != "http://localhost:8080/log`" {
					t.Errorf("%s:%d names %s", name, i+1, m)
				}
			}
		}
	}
}

// pageBudget is what all files of the page may have together as they are sent, compressed. It was 60 KB until searches of before, histograms
// of fields and columns to resize came; they took 3.5 KB, of which files without the comments behind code gave 1.5 back.
const pageBudget = 64 << 10

func TestThePageIsSmall(t *testing.T) {
	c := pageClient(t)
	total := 0
	for name, body := range thePage().files {
		path := "/"
		if name != "index.html" {
			path = "/assets/" + thePage().version + "/" + name
		}
		req, err := http.NewRequestWithContext(t.Context(), "GET", c.base+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept-Encoding", "gzip, deflate, br, zstd") // as browsers do; net/http unpacks only what it asked for itself
		resp, err := c.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		sent, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.Header.Get("Content-Encoding") != "gzip" {
			t.Fatalf("%s: %v, Content-Encoding %q", path, err, resp.Header.Get("Content-Encoding"))
		}
		total += len(sent)
		unpacked, err := gzip.NewReader(bytes.NewReader(sent))
		if err != nil {
			t.Fatal(err)
		}
		if whole, err := io.ReadAll(unpacked); err != nil || !bytes.Equal(whole, body) {
			t.Errorf("%s: what is sent compressed is not the file (%v)", path, err)
		}
	}
	if total > pageBudget {
		t.Errorf("the page has %d bytes compressed, more than %d", total, pageBudget)
	}
	t.Logf("%d bytes in %d files", total, len(thePage().files))
}

// Comments and indentation are taken off line by line: a text over several lines would lose what it has of them.
func TestNoTextOfThePageHasLines(t *testing.T) {
	entries, err := web.ReadDir("web")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		body, err := web.ReadFile("web/" + entry.Name())
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(body), "\n") {
			if strings.HasSuffix(entry.Name(), ".js") && strings.Count(strings.ReplaceAll(line, "\\`", ""), "`")%2 != 0 {
				t.Errorf("%s:%d has a text that goes on in the next line", entry.Name(), i+1)
			}
		}
		if got, want := bytes.Count(thePage().files[entry.Name()], []byte("\n")), bytes.Count(body, []byte("\n")); entry.Name() != "index.html" && got != want {
			t.Errorf("%s is served with %d lines, and has %d", entry.Name(), got, want)
		}
	}
}

// The page finds a record's message where the patterns do.
func TestThePageAndPatternsKnowTheSameMessages(t *testing.T) {
	levels, err := web.ReadFile("web/levels.js")
	if err != nil {
		t.Fatal(err)
	}
	list := regexp.MustCompile(`(?s)const messageFields = \[(.*?)\];`).FindSubmatch(levels)
	var got, want []string
	for _, m := range regexp.MustCompile(`'([^']+)'`).FindAllSubmatch(list[1], -1) {
		got = append(got, string(m[1]))
	}
	for _, names := range messageFields {
		want = append(want, strings.Join(names, "."))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-patterns.go +levels.js):\n%s", diff)
	}
}
