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
	"strings"
	"sync"
	"time"
)

// The web page is the files of web/. They are served as they are and without a key, since they hold nothing but the page.
// Their addresses have a hash of all files in them. So a browser may keep them for good, and a page never meets modules of
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
}

// thePage returns the web page, which the first call makes.
var thePage = sync.OnceValue(func() page {
	p := page{files: make(map[string][]byte)}
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
		p.files[entry.Name()] = body
	}
	p.version = hex.EncodeToString(hash.Sum(nil)[:8])
	// Relative, for the sake of a proxy that serves the page under a prefix.
	p.files["index.html"] = bytes.ReplaceAll(p.files["index.html"], []byte("{{assets}}"), []byte(strings.TrimPrefix(assetsPath, "/")+p.version))
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

// serve answers with a file.
func (p page) serve(w http.ResponseWriter, r *http.Request, name string) {
	h := w.Header()
	h.Set("Content-Type", contentTypes[path.Ext(name)])
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Referrer-Policy", "no-referrer") // searches are in the address
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("ETag", `"`+p.version+`"`)
	http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(p.files[name]))
}
