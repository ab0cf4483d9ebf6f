package query

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
)

// The web page is the files of web/. They are served without a key, since they hold nothing but the page, and as they are but for
// comments and indentation, which are a fifth of the bytes. Lines keep their numbers. Their addresses have a hash of all files in them. So a browser may keep them for good, and a page never meets modules of
// another version.

// web holds the page. Its modules import each other by relative paths.
//
//go:embed web
var web embed.FS

const (
	// assetsPath is where the files are, under a hash.
	assetsPath = "/assets/"

	// pagePolicy lets the page load its own files and talk to this service, and nothing else. If text from a log ever became
	// markup, no script in it would run and nothing would leave.
	pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; " +
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

// contentTypes are written out, because the mime package asks the machine's files, which differ.
var contentTypes = map[string]string{
	".css": "text/css; charset=utf-8", ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml",
}

// page is the web page as it is served.
type page struct {
	version string            // a hash of all files
	files   map[string][]byte // by name; index.html refers to the others at their addresses
	zipped  map[string][]byte // the same, in gzip, which every browser takes from every address
}

// dropped is what files are served without: the white space that a line begins with, and a comment that is the rest of a line. A comment
// behind code that has a quote in it stays, because it may be none: what looks so may be within a text. No text of the page has lines.
var dropped = regexp.MustCompile("(?m)^[ \\t]+(?://.*)?$|^[ \\t]+|^//.*$|[ \\t]+// [^'\"`\\n]*$")

// thePage returns the web page, which the first call makes.
var thePage = sync.OnceValue(func() page {
	p := page{files: make(map[string][]byte), zipped: make(map[string][]byte)}
	hash := sha256.New()
	entries, err := fs.ReadDir(web, "web") // sorted
	if err != nil {
		panic(err) // embedded: it can't be missing
	}
	for _, entry := range entries {
		body, err := web.ReadFile("web/" + entry.Name())
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(hash, "%s %d\n%s", entry.Name(), len(body), body)
		p.files[entry.Name()] = dropped.ReplaceAllLiteral(body, nil)
	}
	p.version = hex.EncodeToString(hash.Sum(nil)[:8])
	// Relative, for the sake of a proxy that serves the page under a prefix.
	assets := strings.TrimPrefix(assetsPath, "/") + p.version
	// All modules are asked for at once. Else each would wait for the one that imports it.
	var preload strings.Builder
	for _, entry := range entries {
		if name := entry.Name(); path.Ext(name) == ".js" && name != "app.js" && name != "theme.js" {
			fmt.Fprintf(&preload, "<link rel=\"modulepreload\" href=\"%s/%s\">\n", assets, name)
		}
	}
	p.files["index.html"] = []byte(strings.NewReplacer("{{assets}}", assets, "{{preload}}", preload.String()).Replace(string(p.files["index.html"])))
	for name, body := range p.files {
		var b bytes.Buffer
		zip, _ := gzip.NewWriterLevel(&b, gzip.BestCompression) // the level is one
		_, _ = zip.Write(body)                                  // a buffer takes everything
		_ = zip.Close()
		p.zipped[name] = b.Bytes()
	}
	return p
})

// isPage reports whether a path is one of the page's, which need no key.
func isPage(path string) bool { return path == "/" || strings.HasPrefix(path, assetsPath) }

// index answers GET /.
func (p page) index(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Cache-Control", "no-cache") // kept, and asked for anew by its ETag
	p.serve(w, r, "index.html")
	return nil
}

// asset answers GET /assets/{version}/{name}.
func (p page) asset(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("name")
	if p.files[name] == nil || name == "index.html" || r.PathValue("version") != p.version {
		return &failure{http.StatusNotFound, fmt.Sprintf("no such path: %.64q", r.URL.Path)}
	}
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	p.serve(w, r, name)
	return nil
}

// serve answers with a file, compressed if the client takes that.
func (p page) serve(w http.ResponseWriter, r *http.Request, name string) {
	h := w.Header()
	h.Set("Content-Type", contentTypes[path.Ext(name)])
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Referrer-Policy", "no-referrer") // searches are in the address
	h.Set("X-Content-Type-Options", "nosniff")
	h.Add("Vary", "Accept-Encoding")
	body, tag := p.files[name], p.version
	if accepts(r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		body, tag = p.zipped[name], tag+"-gzip"
	}
	h.Set("ETag", `"`+tag+`"`)
	http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(body))
}
