package query

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"millrace/internal/testenv"
)

// TestThePageShowsSavedSearches has searches in all states that can be had at once, opens them by keys, and has axe-core look at them.
func TestThePageShowsSavedSearches(t *testing.T) {
	testenv.Database(t) // no server, no browser
	browser := newBrowser(t)
	file := filepath.Join(t.TempDir(), "searches.yaml")
	const text = `searches:
  - {name: counted, q: level:info}
  - {name: calm, q: level:info, when: count > 100 in 1h, every: 1s, delay: 0s}
  - {name: errors by host, q: level:error, when: count > 1 in 1h, by: host, every: 1s, delay: 0s, summary: Somebody look}
  - {name: nothing, q: level:fatal, when: count > 1 in 1h, every: 1s, delay: 0s}
  - {name: soon, q: level:error, when: count > 0 in 1h, for: 1d, every: 1s, delay: 0s}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, p := pageFixture(t, browser, map[string]string{"SEARCHES_FILE": file})
	insert(t, f.db, ago(5*time.Minute), 0, doc("error", "one", `, "host": "web-1"`), doc("error", "two", `, "host": "web-1"`), doc("error", "three", `, "host": "web-2"`), doc("info", "four", ""))
	p.open("/?q=level:info&tab=patterns")
	p.until(`document.getElementById("pattern-list").childElementCount > 0`)
	p.key("a")
	states := `[...document.querySelectorAll("#alerts-list > li")].map((e) => e.querySelector(".alert-state").innerText + " " + e.querySelector(".opens").innerText)`
	p.is(states, []string{"firing errors by host", "pending soon", "no data nothing", "ok calm", "counted counted"})
	p.until(`document.getElementById("alerts-note").innerText.includes("5 searches, 1 firing.")`)
	p.is(`[...document.querySelectorAll("#alerts-list ul .opens")].map((e) => e.textContent)`, []string{"host=web-1", "all records"})
	p.until(`document.querySelector("#alerts-list > li:nth-child(4)").innerText.includes("count 1")`)
	if _, err := os.Stat(filepath.Join("..", "bin", "axe")); err == nil {
		script := axe(t)
		for _, width := range []int64{1440, 390} {
			p.do(chromedp.EmulateViewport(width, 900))
			p.noFindings(script)
		}
		p.do(chromedp.EmulateViewport(1440, 900))
	}

	// By keys: the history unfolds and stays so, the group opens, and the search is that of the group at the window that was looked at.
	p.tabTo(`e.tagName === "SUMMARY" && e.innerText.includes("errors by host")`)
	p.press("\r")
	p.until(`document.querySelector("#alerts-list details").open`)
	p.until(`document.querySelector("#alerts-list details li").innerText.includes("fired")`)
	p.tabTo(`e.matches("#alerts-list ul .opens") && e.innerText === "host=web-1"`)
	// Another group comes before it: what has the focus keeps it.
	insert(t, f.db, ago(4*time.Minute), 10, doc("error", "five", `, "host": "web-0"`), doc("error", "six", `, "host": "web-0"`))
	p.until(`document.querySelector("#alerts-list ul .opens").innerText === "host=web-0"`)
	p.is(`document.activeElement.innerText`, "host=web-1")
	p.press("\r")
	p.until(`!document.getElementById("alerts-box").open`)
	p.is(messages, []string{"two", "one"})
	p.is(parameter("q"), `(level:error) AND host:"web-1"`)
	p.is(`Date.parse(new URLSearchParams(location.search).get("to")) - Date.parse(new URLSearchParams(location.search).get("from"))`, 3600_000)

	// By the mouse, and away again.
	p.click("#alerts")
	p.until(`document.querySelector("#alerts-list .opens")`)
	p.key(kb.Escape)
	p.until(`!document.getElementById("alerts-box").open`)

	// A mistake is told with its line, and the searches of before stay.
	if err := os.WriteFile(file, []byte(text+"  - {name: bad, q: \"(\"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.key("a")
	p.until(`document.getElementById("alerts-wrong").innerText.includes("line 7: search bad")`)
	p.is(`document.querySelectorAll("#alerts-list > li").length`, 5)
}
