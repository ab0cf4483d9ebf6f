package query

import (
	"context"
	"fmt"
	"os"
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
	p.is(messages, []string{})
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
		other.until(`document.querySelector("#legend li")`)
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
	p.until(`document.querySelectorAll(".values button").length === 2`)
	eval[chromedp.Void](p, `[...document.querySelectorAll(".values button")].find((e) => e.innerText.includes("api")).click()`)
	p.is(parameter("q"), `service:"web shop" service:api`)
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

func exportFlow(t *testing.T, browser context.Context) {
	f, p := pageFixture(t, browser, nil)
	insert(t, f.db, ago(10*time.Minute), 0, doc("info", "one", ""), doc("error", "two", ""), doc("error", "three", ""))
	dir := t.TempDir()
	p.open("/?q=level:error")
	p.is(messages, []string{"three", "two"})
	where := cdpbrowser.SetDownloadBehaviorParams{
		Behavior: cdpbrowser.SetDownloadBehaviorBehaviorAllow, DownloadPath: dir, BrowserContextID: chromedp.FromContext(p.ctx).BrowserContextID,
	}
	if _, err := chromedp.CallBrowser(p.ctx, cdpbrowser.SetDownloadBehavior, where); err != nil {
		t.Fatal(err)
	}
	p.click("#save")
	testenv.Eventually(t, browserWait, "the file is there", func() bool {
		files, err := filepath.Glob(filepath.Join(dir, "logs*.ndjson"))
		if err != nil || len(files) != 1 {
			return false
		}
		text, err := os.ReadFile(files[0])
		return err == nil && strings.Count(string(text), "\n") == 2 && strings.Contains(string(text), "three") && !strings.Contains(string(text), "one")
	})
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
	eval[chromedp.Void](p, `document.querySelectorAll(".values button")[1].click()`)
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
