package query

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	cdpbrowser "github.com/chromedp/cdproto/browser"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/google/go-cmp/cmp"

	"millrace/internal/keys"
	"millrace/internal/testenv"
)

// TestThePage goes through what people do with the page, in Chromium, on the real service. Each flow has a database and
// a tab of its own; a script's error or a violation of the policy in any of them fails it.
func TestThePage(t *testing.T) {
	testenv.Database(t) // no server, no browser
	browser := newBrowser(t)
	for _, flow := range []struct {
		name string
		run  func(*testing.T, context.Context)
	}{
		{"a search shows what matches, and where it can't be read", searchFlow},
		{"a drag over the histogram zooms, and zooming out undoes it", zoomFlow},
		{"a row opens to the whole record, whose values narrow the search", recordFlow},
		{"live shows what is stored, and holds still when paused", tailFlow},
		{"the address brings all of it back", addressFlow},
		{"scrolling loads all rows in either order", scrollFlow},
		{"rows that share an id are all shown", twinsFlow},
		{"completions are of what is there", completionFlow},
		{"a key is asked for where one is needed", keyFlow},
		{"markup in logs stays text", markupFlow},
		{"an export is the range", exportFlow},
		{"the histogram's values are whole, and each finds what it counts", valuesFlow},
		{"what another clock dated ahead is shown", aheadFlow},
		{"bars of days are as long as the days", daysFlow},
		{"a search that takes long shows how far it came, stops and goes on", progressFlow},
		{"what is found stays when the network is lost, and the page comes back", lostFlow},
		{"facets are of the search: several values, without one, taken off again", facetsFlow},
		{"the records around one unfold in place, more at both ends", aroundFlow},
		{"columns, wrapped lines, hits and colours of terminals", viewFlow},
		{"spellings of a level are one group", levelsFlow},
		{"times are typed as people write them", whenFlow},
		{"live goes on where it was when the network comes back", lostTailFlow},
		{"live shows what comes while its first search is under way, and before it follows", slowTailFlow},
		{"records of 2,000 fields and of a megabyte are whole, and the page stays small", largeFlow},
		{"searches of before are suggested, kept in the browser alone, and forgotten", pastFlow},
	} {
		t.Run(flow.name, func(t *testing.T) { flow.run(t, browser) })
	}
}

// pageFixture returns a service whose database takes rows of the last hours and the next, and a tab.
func pageFixture(t *testing.T, browser context.Context, settings map[string]string) (fixture, *tab) {
	t.Helper()
	f := newFixture(t, settings)
	for _, ahead := range []time.Duration{-24 * time.Hour, 0, time.Hour} {
		partition(t, f.db, time.Now().Add(ahead))
	}
	return f, newTab(t, browser, f.base)
}

func ago(d time.Duration) time.Time { return time.Now().Add(-d).Truncate(time.Millisecond) }

func doc(level, message, more string) string {
	return fmt.Sprintf(`{"level": %q, "message": %q%s}`, level, message, more)
}

func searchFlow(t *testing.T, browser context.Context) {
	f, p := pageFixture(t, browser, nil)
	insert(t, f.db, ago(10*time.Minute), 0, doc("info", "one", ""), doc("error", "two", `, "http": {"status": 500}`), doc("warn", "three", ""))
	p.open("/")
	p.is(messages, []string{"three", "two", "one"})
	p.is(total, "3")
	p.is(`[...document.querySelectorAll("#legend li")].map((e) => e.innerText.replace(/\s+/g, " "))`, []string{"error 1", "warn 1", "info 1"})
	p.search("http.status:>=500")
	p.is(messages, []string{"two"})
	p.is(total, "1")
	p.is(parameter("q"), "http.status:>=500")
	p.is("document.title", "http.status:>=500 · Millrace")

	p.search("ärger (level:error")
	p.until(errorBar + `.includes("at 7")`)
	p.is(`document.querySelector("#mirror mark").textContent`, "(")
	p.is(messages, []string{"two"}) // what was found stays, and the page says so
	p.until(`document.getElementById("problem").checkVisibility() && document.getElementById("problem").innerText.includes("from before")`)
	p.search(`level:error ) x`)
	p.until(errorBar + `.includes("at 13")`)
	p.is(`document.querySelector("#mirror mark").textContent`, ")")

	p.search("nothing:here")
	p.until(`document.querySelector("#notice").innerText.includes("No logs here")`)
	p.is(errorBar, "")
	p.click("#notice button:last-child") // Clear the search
	p.is(messages, []string{"three", "two", "one"})
	p.is("document.getElementById('q').value", "")
}

func zoomFlow(t *testing.T, browser context.Context) {
	f, p := pageFixture(t, browser, nil)
	insert(t, f.db, ago(50*time.Minute), 0, doc("info", "early", ""))
	insert(t, f.db, ago(5*time.Minute), 0, doc("info", "late", ""))
	p.open("/")
	p.is(messages, []string{"late", "early"})
	p.is(total, "2")
	p.drag("#chart", 0.1, 0.5)
	p.is(messages, []string{"early"})
	p.is(total, "1")
	var span [2]time.Time
	for i, name := range []string{"from", "to"} {
		var err error
		if span[i], err = time.Parse(time.RFC3339, eval[string](p, parameter(name))); err != nil {
			t.Fatal(err)
		}
	}
	if d := span[1].Sub(span[0]); d < 15*time.Minute || d > 35*time.Minute {
		t.Errorf("0.4 of an hour is zoomed to %s", d)
	}
	p.key("z")
	p.key("z")
	p.is(messages, []string{"late", "early"})
	p.walk("info")
	p.press("\r")
	p.is(messages, []string{"late"})
	eval[chromedp.Void](p, "history.back()")
	p.is(messages, []string{"late", "early"})
}

// walk goes along the bars of the histogram, without a mouse, to the last one that has a group.
func (p *tab) walk(group string) {
	p.t.Helper()
	eval[chromedp.Void](p, `document.getElementById("chart").focus()`)
	for range 130 {
		if eval[bool](p, `document.getElementById("tip").innerText.includes(`+strconv.Quote(group)+`)`) {
			return
		}
		p.key(kb.ArrowLeft)
	}
	p.t.Fatalf("no bar has %s", group)
}

// button returns the expression of a button in the line of a value, in the record that is open.
func button(key, title string) string {
	return fmt.Sprintf(`[...document.querySelectorAll(".leaf")].find((e) => e.querySelector(".key")?.textContent === %q).querySelector('button[title^=%q]')`, key, title)
}

func recordFlow(t *testing.T, browser context.Context) {
	f, p := pageFixture(t, browser, nil)
	insert(t, f.db, ago(10*time.Minute), 0,
		doc("info", "a", `, "service": "web shop", "n": 12345678901234567890, "price": 1.50, "tags": ["x", "y"], "http": {"status": 200}`),
		doc("info", "b", `, "service": "api", "n": 12345678901234567891, "http": {"status": 200}`),
		doc("info", "c", `, "service": "web shop", "http": {"status": "200"}`))
	p.open("/")
	p.is(messages, []string{"c", "b", "a"})
	p.key("j")
	p.key("j")
	p.key("j")
	p.press("\r")
	p.is(`[...document.querySelectorAll(".detail .value.number")].map((e) => e.textContent)`, []string{"12345678901234567890", "200", "1.50"})
	p.is(`[...document.querySelectorAll(".detail summary")].map((e) => e.textContent)`, []string{"http{1}", "tags[2]"})
	p.is(parameter("id")+" !== null", true)
	p.press("\x1b")
	p.is(`document.querySelectorAll(".detail").length`, 0)
	p.key("k")
	p.key("j")
	p.press("\r")
	click := func(key, title string) { eval[chromedp.Void](p, button(key, title)+".click()") }
	p.until(`document.querySelector(".detail")`)
	click("service", "Only")
	p.is(messages, []string{"c", "a"})
	p.is("document.getElementById('q').value", `service:"web shop"`)
	p.click("#rows li:last-child .line")
	p.until(`document.querySelector(".detail")`)
	click("status", "Without")
	p.is(messages, []string{})
	p.is("document.getElementById('q').value", `service:"web shop" -http.status:200`)
}

func tailFlow(t *testing.T, browser context.Context) {
	f, p := pageFixture(t, browser, nil)
	insert(t, f.db, ago(10*time.Minute), 0, doc("info", "before", ""))
	p.open("/?q=level:info")
	p.is(messages, []string{"before"})
	p.key("l")
	p.until(`document.body.classList.contains("live")`)
	p.is(parameter("live"), "1")
	insert(t, f.db, ago(0), 0, doc("info", "one", ""), doc("debug", "not wanted", ""))
	p.is(messages, []string{"one", "before"})
	p.click("#pause")
	insert(t, f.db, ago(0), 10, doc("info", "two", ""), doc("info", "three", ""))
	p.until(`document.getElementById("live-state").textContent === "Paused, 2 new"`)
	p.is(messages, []string{"one", "before"})
	p.key("p")
	p.is(messages, []string{"three", "two", "one", "before"})
	p.key("l")
	p.is(parameter("live"), nil)
	p.is(messages, []string{"three", "two", "one", "before"})
}

func addressFlow(t *testing.T, browser context.Context) {
	f, p := pageFixture(t, browser, nil)
	for i := range 5 {
		insert(t, f.db, ago(time.Duration(10+i)*time.Minute), 0, doc("error", strconv.Itoa(i), `, "host": "h`+strconv.Itoa(i%2)+`"`))
	}
	p.open("/")
	p.is(messages, []string{"0", "1", "2", "3", "4"})
	p.search("level:error host:h0")
	p.is(messages, []string{"0", "2", "4"})
	p.press("\x1b")
	eval[chromedp.Void](p, "document.activeElement.blur()")
	p.key("o")
	p.is(messages, []string{"4", "2", "0"})
	p.until(`[...document.getElementById("by").options].some((o) => o.value === "host")`)
	eval[chromedp.Void](p, `{ const by = document.getElementById("by"); by.value = "host"; by.dispatchEvent(new Event("change")); }`)
	p.is(`[...document.querySelectorAll("#legend li")].map((e) => e.innerText.replace(/\s+/g, " "))`, []string{"h0 3"})
	p.drag("#chart", 0.5, 0.95)
	p.is(messages, []string{"4", "2", "0"})
	p.click("#rows li:nth-child(2) .line")
	p.until(`document.querySelector("#rows li:nth-child(2) .detail")`)

	const shown = `JSON.stringify([location.href, document.getElementById("q").value, document.getElementById("range-name").textContent, ` +
		`document.getElementById("by").value, document.getElementById("order").innerText, document.getElementById("total").textContent, ` +
		`[...document.querySelectorAll("#rows li")].map((e) => e.innerText), document.getElementById("legend").innerText])`
	p.until(`document.querySelectorAll("#legend li").length === 1 && !document.querySelector("#overview.loading")`)
	want := eval[string](p, shown)
	address := eval[string](p, "location.pathname + location.search")
	for name, other := range map[string]*tab{"the same tab": p, "another browser": newTab(t, browser, f.base)} {
		other.open(address)
		other.until(`document.querySelector("#rows li:nth-child(2) .detail") && document.querySelector("#field-list summary") && ` +
			`!document.querySelector(".loading")`)
		// Rows have no innerText before the browser has drawn them.
		other.until(`document.querySelector("#legend li") && [...document.querySelectorAll("#rows li")].every((e) => e.innerText)`)
		if diff := cmp.Diff(want, eval[string](other, shown)); diff != "" {
			t.Errorf("%s (-first +again):\n%s", name, diff)
		}
	}
	p.open("/")
	p.is(messages, []string{"0", "1", "2", "3", "4"})
	eval[chromedp.Void](p, "history.back()")
	p.is(messages, []string{"4", "2", "0"})
}

func scrollFlow(t *testing.T, browser context.Context) {
	f, p := pageFixture(t, browser, nil)
	var docs []string
	for i := range 350 {
		docs = append(docs, doc("info", strconv.Itoa(i), ""))
	}
	insert(t, f.db, ago(10*time.Minute), 0, docs...)
	p.open("/")
	want := make([]string, len(docs))
	for i := range want {
		want[i] = strconv.Itoa(len(docs) - 1 - i)
	}
	for range 2 {
		p.until(`(scrollTo(0, document.body.scrollHeight), document.querySelectorAll("#rows li").length === 350)`)
		p.is(messages, want)
		p.until(`!document.getElementById("end-note").hidden`)
		slices.Reverse(want)
		p.key("o")
		p.until(messages + "[0] === " + strconv.Quote(want[0]))
	}
}

func twinsFlow(t *testing.T, browser context.Context) {
	f, p := pageFixture(t, browser, nil)
	at := ago(10 * time.Minute)
	var want []string
	for i := range 250 { // the first page ends between two of them
		insert(t, f.db, at, i/3, doc("info", fmt.Sprintf("%03d", i), ""))
		want = append(want, fmt.Sprintf("%03d", i))
	}
	slices.Reverse(want)
	p.open("/")
	p.until(`(scrollTo(0, document.body.scrollHeight), !document.getElementById("end-note").hidden)`)
	p.is(messages, want)
}

func completionFlow(t *testing.T, browser context.Context) {
	f, p := pageFixture(t, browser, nil)
	insert(t, f.db, ago(10*time.Minute), 0, doc("info", "a", `, "service": "web shop"`), doc("info", "b", `, "service": "api"`))
	p.open("/")
	p.until(`document.querySelectorAll("#field-list summary").length === 3`)
	p.key("/")
	p.press("serv")
	const options = `[...document.querySelectorAll("#completions:not([hidden]) li span")].map((e) => e.textContent)`
	p.is(options, []string{"service"})
	p.press("\t")
	p.is("document.getElementById('q').value", "service:")
	p.until(options + ".length === 2")
	p.press("we")
	p.is(options, []string{`"web shop"`})
	p.press("\t")
	p.press("\r")
	p.is(messages, []string{"a"})
	p.is(parameter("q"), `service:"web shop"`)
	// The panel has the same values.
	eval[chromedp.Void](p, `[...document.querySelectorAll("#field-list summary")].find((e) => e.title === "service").click()`)
	p.until(`document.querySelectorAll(".values .one").length === 2`)
	eval[chromedp.Void](p, `[...document.querySelectorAll(".values .one")].find((e) => e.innerText.includes("api")).click()`)
	p.is(parameter("q"), `service:("web shop" OR api)`)
	p.is(messages, []string{"b", "a"})
}

func keyFlow(t *testing.T, browser context.Context) {
	key, secret, err := keys.New("reader", []string{keys.Read})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte(key.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	f, p := pageFixture(t, browser, map[string]string{"KEYS_FILE": file})
	insert(t, f.db, ago(10*time.Minute), 0, doc("info", "for readers", ""))
	p.open("/?live=1")
	p.is(`document.getElementById("key-box").open`, true)
	p.is(`document.activeElement.id`, "key")
	p.press("\x1b") // leaves no blank page
	p.until(`document.getElementById("notice").innerText.includes("A key is needed")`)
	p.click("#notice button")
	p.is(`document.activeElement.id`, "key")
	p.press("wrong\r")
	p.is(`document.querySelector("#key-error:not([hidden])")?.textContent`, "This key is not taken.")
	p.is(messages, []string{})
	eval[chromedp.Void](p, `document.getElementById("key").select()`)
	p.press(secret + "\r")
	p.is(messages, []string{"for readers"})
	p.is(`document.getElementById("key-box").open`, false)
	p.until(`document.body.classList.contains("live")`)
	insert(t, f.db, ago(0), 0, doc("info", "as they come", ""))
	p.is(messages, []string{"as they come", "for readers"})
	p.is("Object.keys(localStorage).length", 0)
	p.open("/")
	p.is(messages, []string{"as they come", "for readers"})
	p.click("#key-forget")
	p.is(`document.getElementById("key-box").open`, true)
	p.is("Object.keys(sessionStorage).length", 0)
}

func markupFlow(t *testing.T, browser context.Context) {
	f, p := pageFixture(t, browser, nil)
	const script = `<script>window.pwned = 1</script>`
	const image = `<img src=x onerror="window.pwned = 2"><b>`
	const link = `javascript:window.pwned=3//"><svg onload=window.pwned=4>`
	quoted := func(s string) string { return strconv.Quote(s) }
	insert(t, f.db, ago(10*time.Minute), 0, `{"level": `+quoted(script)+`, "message": `+quoted(image)+`, `+quoted(script)+`: `+quoted(image)+
		`, `+quoted(image)+`: {`+quoted(link)+`: [`+quoted(script)+`, {`+quoted(image)+`: `+quoted(link)+`}]}, "__proto__": {"pwned": 5}, "constructor": `+quoted(link)+`}`)
	p.open("/")
	p.is(messages, []string{image})
	p.is(`document.querySelector("#rows .level").textContent`, script[:12])
	p.is(`document.querySelector("#legend li")?.innerText.includes("<script>")`, true)
	p.click("#rows .line")
	p.until(`document.querySelectorAll(".detail .leaf").length >= 6`)
	p.until(`document.querySelector("#field-list").innerText.includes("<script>")`)
	eval[chromedp.Void](p, `for (const e of document.querySelectorAll("#field-list summary")) e.click()`)
	p.until(`[...document.querySelectorAll(".values")].some((e) => e.innerText.includes("<script>"))`)
	p.walk("<script>")
	// The names and values as they are make searches that find the record, and its address brings it back.
	eval[chromedp.Void](p, button(script, "Only")+".click()")
	p.is(messages, []string{image})
	p.is(`document.getElementById("q").value`, quoted(script)+":"+quoted(image))
	p.open(eval[string](p, "location.pathname + location.search"))
	p.is(messages, []string{image})
	p.is(`document.title`, quoted(script)+":"+quoted(image)+" · Millrace")
	if got := eval[int](p, `document.querySelectorAll("#rows :is(script, img, b, a), #field-list :is(script, img, b, a), #legend :is(script, img, b), `+
		`#mirror :is(script, img, b), #tip :is(script, img, b), body > script, body > img").length`); got != 0 {
		t.Errorf("%d elements were made of what a log holds", got)
	}
	p.is("typeof window.pwned + typeof ({}).pwned", "undefinedundefined")
}

// downloads returns the folder that the tab's downloads go to.
func (p *tab) downloads() string {
	p.t.Helper()
	dir := p.t.TempDir()
	where := cdpbrowser.SetDownloadBehaviorParams{
		Behavior: cdpbrowser.SetDownloadBehaviorBehaviorAllow, DownloadPath: dir, BrowserContextID: chromedp.FromContext(p.ctx).BrowserContextID,
	}
	if _, err := chromedp.CallBrowser(p.ctx, cdpbrowser.SetDownloadBehavior, where); err != nil {
		p.t.Fatal(err)
	}
	return dir
}

// download waits for a file whose name has a pattern, and returns its name and text.
func download(t *testing.T, dir, pattern string) (name, text string) {
	t.Helper()
	testenv.Eventually(t, browserWait, "the file is there", func() bool {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(files) != 1 {
			return false
		}
		body, err := os.ReadFile(files[0])
		name, text = filepath.Base(files[0]), string(body)
		return err == nil && strings.HasSuffix(text, "\n")
	})
	return name, text
}

func exportFlow(t *testing.T, browser context.Context) {
	f, p := pageFixture(t, browser, nil)
	insert(t, f.db, ago(10*time.Minute), 0, doc("info", "one", ""), doc("error", "two", ""), doc("error", "three", ""))
	insert(t, f.db, ago(61*time.Minute), 0, doc("error", "of the bar in which the range begins", ""))
	dir := p.downloads()
	p.open("/?q=level:error")
	p.is(messages, []string{"three", "two"})
	p.is(total, "2")
	p.click("#save")
	p.until(`document.getElementById("save-what").innerText.startsWith("2 logs from")`)
	p.click("#save-form button[type=submit]")
	name, text := download(t, dir, "logs_level-error_*.ndjson")
	if strings.Count(text, "\n") != 2 || !strings.Contains(text, "three") || strings.Contains(text, "one") {
		t.Errorf("%s has\n%s", name, text)
	}
	// The same in other tools' words.
	eval[chromedp.Void](p, `navigator.clipboard.writeText = async (text) => { window.copied = text; }`)
	p.click("#save")
	p.click("#copy-sql")
	p.until(`window.copied?.includes("FROM logs") || window.copied?.startsWith("SELECT")`)
	p.click("#copy-curl")
	p.until(`window.copied.startsWith("curl ")`)
	command := exec.Command("sh", "-c", eval[string](p, "window.copied"))
	if out, err := command.Output(); err != nil || strings.Count(string(out), "\n") != 2 {
		t.Errorf("%s: %v\n%s", command, err, out)
	}
	p.click("#copy-cli")
	p.until(`window.copied.includes("millrace logs -n all") && window.copied.endsWith("-- level:error")`)
}

const legend = `[...document.querySelectorAll("#legend li")].map((e) => e.innerText.replace(/\s+/g, " "))`

func valuesFlow(t *testing.T, browser context.Context) {
	f, p := pageFixture(t, browser, nil)
	start := "https://shop.example/" + strings.Repeat("x", 200)
	with := func(message, more string) string { return `{"message": ` + strconv.Quote(message) + more + `}` }
	insert(t, f.db, ago(10*time.Minute), 0,
		with("a", `, "url": "`+start+`?a"`), with("a", `, "url": "`+start+`?a"`), with("a", `, "url": "`+start+`?a"`), with("b", `, "url": "`+start+`?b"`), with("b", `, "url": "`+start+`?b"`),
		with("other", `, "url": "other"`), with("constructor", `, "url": "constructor"`), with("array", `, "url": ["other"]`),
		with("too long", `, "url": "`+strings.Repeat("y", 5000)+`"`), with("null", `, "url": null`), with("none", ""), with("text", `, "url": "null"`))
	p.open("/?by=url")
	p.is(total, "12")
	cut := start[:80] + "…"
	p.is(legend, []string{cut + " 3", cut + " 2", `["other"] 1`, "constructor 1", "null 1", "other 1", "all other values 1", "without the field 2"})
	pick := func(n int) {
		eval[chromedp.Void](p, fmt.Sprintf(`document.querySelector("#legend li:nth-child(%d) button").click()`, n))
	}
	p.is(`document.querySelectorAll("#legend button").length`, 6) // neither the array nor the rest
	p.until(`document.querySelector("#legend button").title.startsWith("` + start + `?a")`)
	pick(1)
	p.is(messages, []string{"a", "a", "a"})
	p.is(total, "3")
	eval[chromedp.Void](p, "history.back()")
	p.is(total, "12")
	p.is(`document.querySelectorAll("#legend button").length`, 6)
	pick(5)
	p.is(messages, []string{"text"})
	eval[chromedp.Void](p, "history.back()")
	p.is(total, "12")
	p.is(`document.querySelectorAll("#legend button").length`, 6)
	pick(8)
	p.is(messages, []string{"none", "null"})
	p.is(total, "2")
	eval[chromedp.Void](p, "history.back()")
	p.is(total, "12")
	p.until(`document.querySelectorAll("#field-list summary").length === 2`)
	eval[chromedp.Void](p, `[...document.querySelectorAll("#field-list summary")].find((e) => e.title === "url").click()`)
	p.until(`document.querySelectorAll(".values li").length === 6`)
	p.is(`[...document.querySelectorAll(".values button .name")].map((e) => e.textContent)`, []string{start[:200] + "…", start[:200] + "…", "other", "constructor", "null"})
	eval[chromedp.Void](p, `document.querySelectorAll(".values .one")[1].click()`)
	p.is(messages, []string{"b", "b"})
}

func aheadFlow(t *testing.T, browser context.Context) {
	f, p := pageFixture(t, browser, nil)
	insert(t, f.db, ago(-4*time.Minute), 0, doc("info", "from tomorrow", ""))
	for _, address := range []string{"/", "/?order=asc"} {
		p.open(address)
		p.is(messages, []string{"from tomorrow"})
		p.is(total, "1")
		p.until(`document.querySelectorAll("#field-list summary").length === 2`)
	}
	p.open("/")
	p.is(messages, []string{"from tomorrow"})
	p.is(total, "1")
	p.walk("info")
	p.press("\r") // zooms into its bar
	p.is(messages, []string{"from tomorrow"})
	p.is(total, "1")
}

func daysFlow(t *testing.T, browser context.Context) {
	f, p := pageFixture(t, browser, nil) // in Europe/Berlin
	day := time.Date(2026, 10, 24, 22, 0, 0, 0, time.UTC)
	for n := range 3 {
		partition(t, f.db, day.Add(time.Duration(n-1)*24*time.Hour))
	}
	insert(t, f.db, day, 0, doc("info", "first", ""))
	insert(t, f.db, day.Add(25*time.Hour-time.Millisecond), 0, doc("info", "last", ""))
	insert(t, f.db, day.Add(25*time.Hour), 0, doc("info", "next", ""))
	p.open("/?from=2026-09-01T00:00:00Z&to=2026-12-25T00:00:00z")
	p.is(total, "3")
	p.walk("info")
	p.until(`document.getElementById("tip").innerText.includes("Mon 26 Oct")`)
	p.key(kb.ArrowLeft)
	p.until(`document.getElementById("tip").innerText.includes("Sun 25 Oct")`)
	p.press("\r")
	p.is(messages, []string{"last", "first"})
	p.is(total, "2")
	p.is(parameter("from"), "2026-10-24T22:00:00.000Z")
	p.is(parameter("to"), "2026-10-25T23:00:00.000Z")
	// Times in the address are read as the service reads them.
	p.open("/?from=2016-12-31t15:59:60.000000001-08:00&to=2017-01-01T01:00:00z")
	p.is(`document.getElementById("range-name").textContent`, "Sun 1 Jan, 01:00 – 02:00")
	p.is(total, "0")
}

// progressFlow has yesterday's partition locked. A search within a budget can't pass it, until it is free.
func progressFlow(t *testing.T, browser context.Context) {
	f, p := pageFixture(t, browser, nil)
	day := time.Date(2026, 10, 20, 0, 0, 0, 0, time.UTC)
	locked := partition(t, f.db, day)
	partition(t, f.db, day.Add(24*time.Hour))
	insert(t, f.db, day.Add(12*time.Hour), 0, doc("error", "the day before", ""))
	insert(t, f.db, day.Add(36*time.Hour), 0, doc("info", "the day", ""), doc("error", "the same day", ""))
	tx, err := f.db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "LOCK TABLE "+locked+" IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	p.open("/?from=2026-10-20T00:00:00Z&to=2026-10-22T00:00:00Z")
	p.is(messages, []string{"the same day", "the day"})
	p.until(`document.getElementById("progress").checkVisibility() && / back to Wed 21 Oct, .*, going on$/.test(document.getElementById("progress-text").textContent)`)
	p.until(`document.querySelector("#chart .unreached")?.getAttribute("width") > 100`)
	p.is(total, "2")
	p.is(`document.getElementById("total-unit").textContent`, "logs so far")
	p.clickOn(`document.getElementById("progress-stop")`)
	p.is(`document.getElementById("progress-stop").textContent`, "Continue")
	p.until(`!document.getElementById("progress-text").textContent.includes("going on")`)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.is(messages, []string{"the same day", "the day"}) // stopped is stopped
	p.clickOn(`document.getElementById("progress-stop")`)
	p.is(messages, []string{"the same day", "the day", "the day before"})
	p.is(total, "3")
	p.is(`document.getElementById("total-unit").textContent`, "logs")
	p.is(legend, []string{"error 2", "info 1"})
	p.until(`!document.getElementById("progress").checkVisibility() && !document.querySelector("#chart .unreached")`)
}

func lostFlow(t *testing.T, browser context.Context) {
	f, p := pageFixture(t, browser, nil)
	line, base := newWire(t, f.base)
	p.base = base
	insert(t, f.db, ago(10*time.Minute), 0, doc("info", "one", ""), doc("error", "two", ""))
	p.open("/")
	p.is(messages, []string{"two", "one"})
	p.is(total, "2")
	line.cut()
	p.search("level:error")
	p.until(`document.getElementById("problem").innerText.includes("can’t be reached")`)
	p.is(messages, []string{"two", "one"})
	p.is(total, "2")
	line.mend()
	p.is(messages, []string{"two"}) // by itself
	p.until(`!document.getElementById("problem").checkVisibility()`)
	p.is(total, "1")
}

// pick clicks a button of a value in the panel, one or not, once the panel is of the search that the page shows: until then it has what was there before,
// which is about to go.
func (p *tab) pick(value, class string) {
	p.t.Helper()
	button := fmt.Sprintf(`[...document.querySelectorAll(".values li")].find((e) => e.querySelector(".name")?.textContent === %q)?.querySelector(".%s")`, value, class)
	p.until(`!document.getElementById("fields").classList.contains("old") && ` + button)
	p.clickOn(button)
}

// unfold opens a field in the panel.
func (p *tab) unfold(field string) {
	p.t.Helper()
	p.clickOn(fmt.Sprintf(`[...document.querySelectorAll("#field-list summary")].find((e) => e.title === %q)`, field))
}

func facetsFlow(t *testing.T, browser context.Context) {
	f, p := pageFixture(t, browser, nil)
	var docs []string
	for i := range 40 {
		docs = append(docs, doc([]string{"info", "error"}[i%2], strconv.Itoa(i), fmt.Sprintf(`, "service": %q, "ms": %d`, []string{"api", "shop", "auth", "db"}[i/2%4], i+1)))
	}
	insert(t, f.db, ago(10*time.Minute), 0, docs...)
	p.open("/?q=level:error")
	p.is(total, "20")
	p.until(`document.getElementById("field-sample").textContent === "exact: of all 20 records"`)
	p.unfold("service")
	p.until(`document.querySelectorAll(".values .one").length === 4 && document.querySelector(".inside").innerText.includes("exact, 20 records")`)
	p.pick("api", "one")
	p.is(parameter("q"), "level:error service:api")
	p.is(total, "5")
	p.until(`document.querySelectorAll(".values .one").length === 4`) // the others are there to be chosen too
	p.pick("db", "one")
	p.is(parameter("q"), "level:error service:(api OR db)")
	p.is(total, "10")
	p.is(`[...document.querySelectorAll(".values .wanted .name")].map((e) => e.textContent).sort()`, []string{"api", "db"})
	p.pick("api", "one")
	p.is(parameter("q"), "level:error service:db")
	p.pick("auth", "not")
	p.is(parameter("q"), "level:error service:db -service:auth")
	p.is(`[...document.querySelectorAll("#active span")].map((e) => e.textContent)`, []string{"level:error", "service:db", "-service:auth"})
	p.clickOn(`document.querySelectorAll("#active button")[1]`)
	p.is(parameter("q"), "level:error -service:auth")
	p.is(total, "15")
	p.unfold("ms")
	p.until(`document.querySelector(".numbers")?.innerText.replace(/\s+/g, " ") === "min 2 median 20 p95 37.2 max 40"`)
	// The numbers have a histogram, whose bars are walked along and asked for.
	p.is(`document.querySelectorAll(".spread rect").length`, 20)
	p.is(`document.querySelector(".spread + p").textContent`, "mostly 2 to 4: 1 (7%)") // even ones are without an error
	p.tabTo(`e.className === "spread"`)
	for range 4 {
		p.key(kb.ArrowRight)
	}
	p.is(`document.querySelector(".spread + p").textContent`, "8 to 10: 1 (7%)")
	p.press("\r")
	p.is(parameter("q"), "level:error -service:auth ms:>=8 ms:<10")
	p.is(total, "1")
	p.is(`document.querySelector("#active").innerText.includes("ms:>=8")`, true)
	// A sample says that it is one.
	f.exec(`INSERT INTO logs (id, inserted_at, data) SELECT gen_random_uuid(), $1::timestamptz - n * interval '500 ms', jsonb_build_object('level', 'warn', 'n', n) FROM generate_series(1, 3000) n`, ago(5*time.Minute))
	p.search("level:warn")
	p.until(`/^of a sample of [\d,]+ records$/.test(document.getElementById("field-sample").textContent)`)
}

func aroundFlow(t *testing.T, browser context.Context) {
	f, p := pageFixture(t, browser, nil)
	at := ago(30 * time.Minute)
	var docs []string
	for i := range 100 { // of one millisecond
		docs = append(docs, doc("info", fmt.Sprintf("%02d", i), fmt.Sprintf(`, "service": "s%d", "trace_id": "t%d"`, i%2, i%10)))
	}
	docs[50] = doc("error", "50", `, "service": "s0", "trace_id": "t0"`)
	insert(t, f.db, at, 0, docs...)
	p.open("/?q=level:error")
	p.is(messages, []string{"50"})
	p.key("j")
	p.key("c")
	want := func(from, to, step int) (list []string) {
		for i := from; i >= to; i -= step {
			list = append(list, fmt.Sprintf("%02d", i))
		}
		return list
	}
	p.is(messages, want(70, 30, 1))
	p.is(parameter("around"), "all")
	p.clickOn(`document.querySelector(".context.above > .more")`)
	p.is(messages, want(90, 30, 1))
	p.clickOn(`document.querySelector(".context.below > .more")`)
	p.is(messages, want(90, 10, 1))
	p.clickOn(`document.querySelector(".context.above > .more")`)
	p.is(messages, want(99, 10, 1))
	p.until(`!document.querySelector(".context.above > .more").checkVisibility()`)
	chip := func(text string) {
		p.clickOn(`[...document.querySelectorAll(".chip")].find((e) => e.textContent.startsWith("` + text + `"))`)
	}
	chip("Same service")
	p.is(messages, want(90, 10, 2))
	chip("Same trace")
	p.is(messages, want(90, 0, 10))
	// A link to it shows it so, also where the search does not find it.
	other := newTab(t, browser, f.base)
	other.open(strings.Replace(eval[string](p, "location.pathname + location.search"), "level:error", "nothing:here", 1))
	other.is(messages, want(90, 0, 10))
	chip("Close")
	p.is(messages, []string{"50"})
	p.is(parameter("around"), nil)
}

func viewFlow(t *testing.T, browser context.Context) {
	f, p := pageFixture(t, browser, nil)
	insert(t, f.db, ago(10*time.Minute), 0,
		`{"level": "error", "message": "\u001b[31mred\u001b[0m Timeout of \u001b]0;title\u0007db", "service": "api", "a.b": {"c": 1}, "stack": "E: x\n`+strings.Repeat(`  at f (g.js:1)\n`, 30)+`end"}`,
		`{"level": "info", "message": "<b>timeout</b> again", "service": "shop", "a": {"b.c": 2}}`)
	p.open("/?q=timeout")
	p.is(messages, []string{"<b>timeout</b> again", "red Timeout of db"})
	p.is(`[...document.querySelectorAll("#rows .message mark")].map((e) => e.textContent)`, []string{"timeout", "Timeout"})
	p.is(`document.querySelector("#rows .ansi-1").textContent`, "red")
	p.click("#view")
	p.click("#ansi")
	p.is(`document.querySelector("#rows .ansi-1")`, nil)
	p.is(messages, []string{"<b>timeout</b> again", "red Timeout of db"})
	eval[chromedp.Void](p, `document.getElementById("column").focus()`)
	p.write("service, a.b.c, message")
	p.press("\r")
	const cells = `[...document.querySelectorAll("#rows .line")].map((line) => [...line.querySelectorAll(".cell")].map((e) => e.textContent))`
	p.is(cells, [][]string{{"shop", "2", "<b>timeout</b> again"}, {"api", "1", "red Timeout of db"}})
	p.is(parameter("cols"), "service,a.b.c,message")
	p.clickOn(`document.querySelectorAll("#column-list .earlier")[2]`)
	p.is(parameter("cols"), "service,message,a.b.c")
	p.clickOn(`document.querySelectorAll("#column-list .away")[0]`)
	p.is(cells, [][]string{{"<b>timeout</b> again", "2"}, {"red Timeout of db", "1"}})
	p.press("\x1b")
	// A column is resized, by the mouse and by keys, and keeps its width where it goes.
	const width = `Math.round(document.querySelector(".head-cell").getBoundingClientRect().width / (document.getElementById("heads").firstChild.getBoundingClientRect().width / 13))`
	before := eval[int](p, width)
	p.dragBy(`document.querySelector(".grip")`, 100)
	p.until(parameter("widths")) // once the button is let go
	after := eval[int](p, "Number("+parameter("widths")+")")
	if after < before+8 {
		t.Errorf("100 px to the right of %d characters are %d", before, after)
	}
	p.is(width, after)
	p.is(`document.querySelector(".grip").ariaValueNow`, strconv.Itoa(after))
	p.tabTo(`e.className === "grip"`)
	p.key(kb.ArrowLeft)
	p.is(parameter("widths"), strconv.Itoa(after-1))
	p.is("document.activeElement.className", "grip")
	p.is(`document.querySelectorAll("#rows .cell")[1].getBoundingClientRect().x === document.querySelectorAll(".head-cell")[1].getBoundingClientRect().x`, true)
	p.open(eval[string](p, "location.pathname + location.search"))
	p.is(cells, [][]string{{"<b>timeout</b> again", "2"}, {"red Timeout of db", "1"}})
	p.is(width, after-1)
	p.clickOn(`document.querySelectorAll(".head-cell .earlier")[0]`)
	p.is(parameter("widths"), ","+strconv.Itoa(after-1))
	p.tabTo(`e.ariaLabel === "Width of message"`)
	p.press("\r")
	p.is(parameter("widths"), nil)
	p.clickOn(`document.querySelectorAll(".head-cell .earlier")[0]`)
	p.is(cells, [][]string{{"<b>timeout</b> again", "2"}, {"red Timeout of db", "1"}})
	eval[chromedp.Void](p, "document.activeElement.blur()")
	p.key("w")
	p.is(parameter("wrap"), "1")
	p.is(`getComputedStyle(document.querySelector("#rows .cell")).whiteSpace`, "pre-wrap")
	// A stack trace is folded, and this value alone is searched for.
	p.click("#rows li:last-child .line")
	p.until(`document.querySelector(".detail")`)
	const stack = `[...document.querySelectorAll(".leaf")].find((e) => e.querySelector(".key").textContent === "stack")`
	p.is(stack+`.querySelector(".value").textContent.split("\n").length`, 4)
	p.clickOn(stack + `.querySelector(".more")`)
	p.is(stack+`.querySelector(".value").textContent.split("\n").length`, 32)
	eval[chromedp.Void](p, button("service", "Search for this alone")+".click()")
	p.is(parameter("q"), "service:api")
	// What would not fit is said, and not asked for.
	f.exec(`INSERT INTO logs (id, inserted_at, data) VALUES ($1, $2, jsonb_build_object('message', 'long', 'long', repeat('x', 5000)))`, [16]byte(idAt(ago(9*time.Minute), 0)), ago(9*time.Minute))
	p.open("/?q=message:long")
	p.click("#rows .line")
	p.until(button("long", "This value is too long") + ".disabled")
}

func levelsFlow(t *testing.T, browser context.Context) {
	f, p := pageFixture(t, browser, nil)
	insert(t, f.db, ago(10*time.Minute), 0, doc("error", "a", ""), doc("ERROR", "b", ""), doc("info", "c", ""), `{"level": 50, "msg": "d"}`, `{"level": "Information", "MESSAGE": "e"}`, `{"level": 30, "short_message": "f"}`)
	p.open("/")
	p.is(total, "6")
	p.is(`[...document.querySelectorAll("#legend li")].map((e) => e.innerText.toLowerCase().replace(/\d+ (?=\d)/, "").split(/\s+/).at(-1))`, []string{"3", "3"})
	p.clickOn(`document.querySelector("#legend button")`)
	p.is(messages, []string{"d", "b", "a"})
	eval[chromedp.Void](p, "history.back()")
	p.is(messages, []string{"f", "e", "d", "c", "b", "a"})
	// A name with a dot in it is found as a level, too.
	f.exec("TRUNCATE logs")
	insert(t, f.db, ago(10*time.Minute), 0, `{"log.level": "error", "message": "a"}`, `{"log.level": "info", "message": "b"}`)
	p.key("r")
	p.is(messages, []string{"b", "a"})
	p.is(`document.getElementById("by").value`, "log.level")
	p.is(legend, []string{"error 1", "info 1"})
}

func whenFlow(t *testing.T, browser context.Context) {
	f, p := pageFixture(t, browser, nil) // in Europe/Berlin
	day := time.Date(2026, 10, 25, 0, 0, 0, 0, time.UTC)
	partition(t, f.db, day)
	// The clocks show 02:30 twice in that night.
	insert(t, f.db, day.Add(30*time.Minute), 0, doc("info", "first", ""))
	insert(t, f.db, day.Add(90*time.Minute), 0, doc("info", "second", ""))
	p.open("/")
	fill := func(from, to string) {
		t.Helper()
		eval[chromedp.Void](p, "document.activeElement.blur()")
		p.key("d")
		p.is("document.activeElement.id", "range-from")
		p.write(from)
		p.key(kb.Tab)
		p.is("document.activeElement.id", "range-to")
		eval[chromedp.Void](p, "document.activeElement.select()")
		p.write(to)
	}
	fill("2026-10-25 02:30", "02:31")
	p.is(`document.getElementById("range-from-note").textContent`, "Sun 25 Oct, 02:30:00, UTC+2: the clocks show it twice; this is the first")
	p.is(`document.getElementById("range-to-note").textContent`, "Sun 25 Oct, 02:31:00, UTC+1: the clocks show it twice; this is the second")
	p.press("\r")
	p.is(messages, []string{"second", "first"})
	p.is(`document.getElementById("range-name").textContent`, "Sun 25 Oct, 02:30 (UTC+2) – 02:31 (UTC+1)")
	p.is(`[...document.querySelectorAll("#rows time")].map((e) => e.title)`, []string{"2026-10-25 02:30:00 (UTC+1)", "2026-10-25 02:30:00 (UTC+2)"})
	p.key("u")
	p.is(`[...document.querySelectorAll("#rows time")].map((e) => e.textContent.slice(-12))`, []string{"01:30:00.000", "00:30:00.000"})
	p.is(parameter("zone"), "utc")
	fill("2026-10-25T01:00:00.000Z", "soon")
	p.is(`document.getElementById("range-to").validity.valid`, false)
	p.press("\r")
	p.until(`document.getElementById("range-box").matches(":popover-open")`)
	eval[chromedp.Void](p, `document.getElementById("range-to").select()`)
	p.write("25/Oct/2026:02:00:00 +0000")
	p.press("\r")
	p.is(messages, []string{"second"})
	// By arrival, which is another time than the event's.
	f.exec("UPDATE logs SET time = '2026-10-24T12:00:00Z' WHERE data->>'message' = 'second'")
	p.key("r")
	p.is(messages, []string{})
	p.key("d")
	p.click("#arrival")
	p.is(messages, []string{"second"})
	p.is(parameter("clock"), "inserted_at")
}

func pastFlow(t *testing.T, browser context.Context) {
	f, p := pageFixture(t, browser, nil)
	insert(t, f.db, ago(10*time.Minute), 0, doc("error", "one", `, "service": "api"`), doc("info", "two", `, "service": "shop"`), doc("info", "three", `, "service": "auth"`))
	p.open("/")
	p.is(messages, []string{"three", "two", "one"})
	p.search("level:error")
	p.is(messages, []string{"one"})
	p.search("service:shop")
	p.is(messages, []string{"two"})
	p.search("service:(") // can't be read, and is not kept
	p.until(errorBar + `.includes("at")`)
	p.search("level:info")
	p.is(messages, []string{"three", "two"})
	const suggested = `[...document.querySelectorAll("#suggestions:not([hidden]) li")].map((e) => e.firstChild.textContent)`
	until := func(want ...string) { t.Helper(); p.is(suggested, want) }
	p.press("\x1b")
	// All of them by a key, the latest first. Enter runs one.
	p.key("h")
	until("service:shop", "level:error")
	p.key(kb.ArrowDown)
	p.key(kb.ArrowDown)
	p.is(`document.querySelector("#completions [aria-selected=true]").id === document.getElementById("q").getAttribute("aria-activedescendant")`, true)
	p.press("\r")
	p.is(messages, []string{"one"})
	p.is(parameter("q"), "level:error")
	// Those that have what is typed, beneath the completions. Tab takes the completion, and a search only to go on writing.
	p.press("\x1b")
	p.key("/")
	p.press("serv")
	until("service", "service:shop")
	p.key(kb.ArrowUp)
	p.press("\t")
	p.is(`document.getElementById("q").value`, "service:shop")
	p.is(parameter("q"), "level:error")
	p.press("\x1b")
	// Another tab has them, and so has the page when it comes back. No request has them.
	p.open("/")
	p.is(messages, []string{"three", "two", "one"})
	p.click("#q")
	until("level:error", "level:info", "service:shop")
	p.is(`performance.getEntriesByType("resource").filter((e) => e.name.includes("error")).length`, 0)
	p.is(`Object.keys(localStorage)`, []string{"millrace.searches"})
	// One is forgotten by a key, all by a click.
	p.key(kb.ArrowDown)
	p.key(kb.ArrowDown)
	p.key(kb.Delete)
	until("level:error", "service:shop")
	p.is(`document.querySelector("#completions [aria-selected=true]").title`, "service:shop")
	p.click("#past-forget")
	p.is(`Object.keys(localStorage)`, []string{})
	p.is("document.activeElement.id", "q")
	p.key("\x1b")
	p.key("h")
	p.is(suggested, []string{})
	// What is kept is little, and what others wrote there does no harm.
	eval[chromedp.Void](p, `localStorage.setItem("millrace.searches", '{"no": "list"}')`)
	p.search(strings.Repeat("x", 200) + " " + strings.Repeat("y", 200) + " " + strings.Repeat("z", 200))
	p.is(messages, []string{})
	p.until(`!document.querySelector(".loading") && document.getElementById("notice").innerText.includes("No logs here")`)
	p.search("level:error")
	p.is(messages, []string{"one"})
	p.is(`localStorage.getItem("millrace.searches")`, `["level:error"]`)
	kept := modules[int](p, "past.js", `(past, n) => { for (let i = 0; i < n; i++) past.add("n:" + i); return past.list().length; }`, 80)
	if kept != 50 {
		t.Errorf("%d searches are kept", kept)
	}
}
