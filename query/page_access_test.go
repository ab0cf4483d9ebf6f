package query

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"millrace/internal/testenv"
)

// axe returns axe-core, which finds what keeps people from using a page. If it is not there, the test skips with a pointer.
func axe(t *testing.T) string {
	t.Helper()
	script, err := os.ReadFile(filepath.Join("..", "bin", "axe", "node_modules", "axe-core", "axe.min.js"))
	if err != nil {
		t.Skip("axe-core is not there: run make axe, which needs npm")
	}
	return string(script)
}

// TestAxeFindsNothing looks at all that the page shows, in light and dark, wide and narrow.
func TestAxeFindsNothing(t *testing.T) {
	script := axe(t)
	testenv.Database(t) // no server, no browser
	f, p := pageFixture(t, newBrowser(t), nil)
	taskLogs(t, f)
	loaded := `document.querySelector("#legend li") && document.querySelector("#field-list summary") && !document.querySelector(".loading")`
	views := []struct {
		name, address string
		then          func()
	}{
		{"rows", "/", nil},
		{"a record and those around it", "/?q=level:error", func() {
			p.key("j")
			p.press("\r")
			p.key("c")
			p.until(`document.querySelectorAll(".context .row").length > 20`)
			p.unfold("duration_ms")
			p.until(`document.querySelector(".numbers") && document.querySelector(".values .one")`)
		}},
		{"columns", "/?q=level:(error%20OR%20info)%20-service:auth&cols=level,service,message&wrap=1", func() {
			p.unfold("service")
			p.until(`document.querySelector(".values .excluded")`)
		}},
		{"table", "/?tab=table&calc=count,share(level:error),p95(duration_ms)&group=service&every=lines", func() {
			p.until(`document.querySelectorAll("#over path").length > 2 && document.querySelectorAll("#grid tbody tr").length === 3`)
		}},
		{"patterns", "/?tab=patterns&vs=before", func() { p.until(`document.querySelector("#pattern-list .new")`) }},
		{"a typo", "/?q=(", func() { p.until(`document.getElementById("q-error").checkVisibility()`) }},
		{"nothing found", "/?q=service:SHOP", func() { p.until(`document.querySelector("#notice .hints")`) }},
		{"the range", "/", func() { p.key("d") }},
		{"the view", "/?cols=service,message", func() { p.key("v") }},
		{"the export", "/", func() { p.key("e") }},
		{"the language", "/", func() { p.click("#language") }},
		{"the keys", "/", func() { p.key("?") }},
		{"searches of before", "/?q=level:error", func() { p.key("h"); p.until(`document.getElementById("past").checkVisibility()`) }},
		{"live", "/?live=1", func() { p.until(`document.body.classList.contains("live")`) }},
	}
	for _, scheme := range []string{"light", "dark"} {
		features := []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}}
		if _, err := chromedp.Call(p.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: features}); err != nil {
			t.Fatal(err)
		}
		for _, width := range []int64{1440, 390} {
			p.do(chromedp.EmulateViewport(width, 900))
			for _, view := range views {
				t.Run(fmt.Sprintf("%s/%d px/%s", scheme, width, view.name), func(t *testing.T) {
					p.t = t
					defer func() { p.t = t }()
					p.open(view.address)
					if view.name != "a typo" && view.name != "nothing found" {
						p.until(loaded)
					}
					if view.name == "language" && width < 720 {
						return // its button is not there
					}
					if width == 390 {
						p.key("f")
					}
					if view.then != nil {
						view.then()
					}
					p.noFindings(script)
				})
			}
		}
	}
}

// noFindings has axe-core, whose text script is, find nothing in what is shown.
func (p *tab) noFindings(script string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, browserWait)
	defer cancel()
	found, err := chromedp.Run(ctx, chromedp.Evaluate[[]string](script+`;
		axe.run(document, { resultTypes: ["violations"] }).then(({ violations }) => violations.flatMap(({ id, impact, nodes }) =>
			nodes.map((node) => impact + " " + id + ": " + node.target.join(" ") + " " + node.html.slice(0, 160) + " " + [...node.any, ...node.all, ...node.none].map(({ message }) => message).join("; ").slice(0, 240))))`,
		chromedp.EvalAwaitPromise))
	if err != nil {
		p.t.Fatal(err)
	}
	if len(found) > 0 {
		p.t.Errorf("%d findings:\n%s", len(found), strings.Join(found[:min(len(found), 12)], "\n"))
	}
}
