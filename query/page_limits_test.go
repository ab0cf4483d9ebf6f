package query

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"

	"millrace/internal/testenv"
)

// network has the tab's network be as slow as told, or not there at all.
func (p *tab) network(conditions network.Conditions) {
	p.t.Helper()
	rules := network.EmulateNetworkConditionsByRuleParams{MatchedNetworkConditions: []*network.Conditions{&conditions}}
	if _, err := chromedp.Call(p.ctx, network.EmulateNetworkConditionsByRule, rules); err != nil {
		p.t.Fatal(err)
	}
	state := network.OverrideNetworkStateParams{Offline: conditions.Offline, Latency: conditions.Latency, DownloadThroughput: -1, UploadThroughput: -1}
	if _, err := chromedp.Call(p.ctx, network.OverrideNetworkState, state); err != nil {
		p.t.Fatal(err)
	}
}

// TestThePageOnASlowNetwork counts what the page asks for where each answer takes 400 ms and a second brings 50 KB.
func TestThePageOnASlowNetwork(t *testing.T) {
	testenv.Database(t) // no server, no browser
	f, p := pageFixture(t, newBrowser(t), nil)
	insert(t, f.db, ago(10*time.Minute), 0, doc("info", "one", ""), doc("error", "two", ""))
	p.network(network.Conditions{Latency: 400, DownloadThroughput: 50 << 10, UploadThroughput: 50 << 10})
	p.open("/")
	p.is(messages, []string{"two", "one"})
	p.is(total, "2")
	p.until(`document.querySelector("#field-list summary")`)
	const assets = `performance.getEntriesByType("resource").filter((e) => e.name.includes("/assets/") && !e.name.endsWith(".svg"))`
	const answers = `performance.getEntriesByType("resource").filter((e) => !e.name.includes("/assets/")).map((e) => new URL(e.name).pathname).slice(0, 3).sort()` // a slow machine may need more of each
	files := eval[[]string](p, assets+`.map((e) => e.name.split("/").at(-1)).sort()`)
	if len(files) != len(thePage().files)-2 { // without itself and its icon
		t.Errorf("%d files are asked for: %q", len(files), files)
	}
	for i := range files[1:] {
		if files[i] == files[i+1] {
			t.Errorf("%s is asked for twice", files[i])
		}
	}
	if late := eval[[]string](p, `((all) => all.filter((e) => e.startTime > Math.min(...all.map((e) => e.responseEnd))).map((e) => e.name))(`+assets+`)`); len(late) > 0 {
		t.Errorf("asked for only once another one was there: %q", late)
	}
	size := eval[int](p, `[...performance.getEntriesByType("navigation"), ...`+assets+`].reduce((sum, e) => sum + e.encodedBodySize, 0)`)
	if size > pageBudget {
		t.Errorf("the page takes %d bytes", size)
	}
	p.is(answers, []string{"/logs", "/logs/fields", "/logs/histogram"})

	// Who comes again loads no file again.
	p.open("/?q=level:error")
	p.is(messages, []string{"two"})
	p.until(`document.querySelector("#field-list summary")`)
	if again := eval[int](p, assets+`.reduce((sum, e) => sum + e.transferSize, 0)`); again != 0 {
		t.Errorf("a second visit loads %d bytes of files", again)
	}
	p.is(answers, []string{"/logs", "/logs/fields", "/logs/histogram"})

	// While an answer is on its way the page says so, and what was asked before it is dropped.
	eval[chromedp.Void](p, `{ window.said = 0; new MutationObserver(() => { window.said += !document.getElementById("busy").hidden; }).observe(document.getElementById("busy"), { attributes: true }); }`)
	p.search("level:debug")
	p.search("level:info")
	p.is(messages, []string{"one"})
	p.is(total, "1")
	p.is("window.said > 0", true)
	p.until(`document.getElementById("busy").hidden`)

	// Without a network what is there stays, and the page comes back with it.
	p.network(network.Conditions{Offline: true})
	p.search("level:error")
	p.until(`document.getElementById("problem").innerText.includes("can’t be reached")`)
	p.is(messages, []string{"one"})
	p.network(network.Conditions{DownloadThroughput: -1, UploadThroughput: -1})
	p.is(messages, []string{"two"})
	p.until(`!document.getElementById("problem").checkVisibility()`)
}

// lostTailFlow follows the tail over a network that goes away and comes back.
func lostTailFlow(t *testing.T, browser context.Context) {
	f, p := pageFixture(t, browser, nil)
	line, base := newWire(t, f.base)
	p.base = base
	insert(t, f.db, ago(10*time.Minute), 0, doc("info", "before", ""))
	p.open("/?live=1")
	p.until(`document.body.classList.contains("live")`)
	p.is(messages, []string{"before"})
	// The tail has given no record yet, and goes on from where it began.
	line.cut()
	p.until(`document.getElementById("live-state").textContent.startsWith("Connecting…")`)
	insert(t, f.db, ago(0), 0, doc("info", "one", ""))
	line.mend()
	p.is(messages, []string{"one", "before"})
	p.until(`document.body.classList.contains("live")`)

	// It has, and goes on behind the last.
	insert(t, f.db, ago(0), 5, doc("info", "tailed", ""))
	p.is(messages, []string{"tailed", "one", "before"})
	line.cut()
	p.until(`document.getElementById("live-state").textContent.startsWith("Connecting…")`)
	insert(t, f.db, ago(0), 10, doc("info", "two", ""), doc("info", "three", ""))
	line.mend()
	p.is(messages, []string{"three", "two", "tailed", "one", "before"})
	p.until(`document.body.classList.contains("live")`)
}

// largeFlow has records as large as any, and letters of all kinds.
func largeFlow(t *testing.T, browser context.Context) {
	f, p := pageFixture(t, browser, nil)
	var fields strings.Builder
	var columns []string
	for i := range 2000 {
		fmt.Fprintf(&fields, `, "f%04d": %d`, i, i)
		if i < 100 {
			columns = append(columns, fmt.Sprintf("f%04d", i))
		}
	}
	const mixed = "שלום עולם 🙂 مرحبا بالعالم 👩‍👩‍👧 Ω"
	// A sample takes little from each part of the window: they are in parts of their own.
	for i, record := range []string{doc("warn", mixed, ""), doc("error", strings.Repeat("0123456789abcdef", 1<<16), ""), doc("info", "many fields", fields.String())} {
		insert(t, f.db, ago(time.Duration(i+1)*10*time.Minute), 0, record)
	}
	p.open("/")
	p.is(messages+`.map((text) => text.length)`, []int{len([]rune(mixed)) + 4, 600, 11}) // four of its letters take two of JavaScript's characters
	p.is(messages+`[0]`, mixed)
	// On a slow machine the fields may not be read in time, which the page says.
	p.until(`document.querySelectorAll("#field-list summary").length === 1000 || document.getElementById("field-sample").textContent.includes("in time") && document.getElementById("reload").click()`)
	bounded := func(what string, elements, characters int) {
		t.Helper()
		got := eval[[2]int](p, `[document.getElementsByTagName("*").length, document.getElementById("rows").textContent.length]`)
		if got[0] > elements || got[1] > characters {
			t.Errorf("%s: the page has %d elements, and %d characters in its rows", what, got[0], got[1])
		}
		t.Logf("%s: %d elements, %d characters", what, got[0], got[1])
		if wide := eval[int](p, "document.documentElement.scrollWidth - document.documentElement.clientWidth"); wide > 0 {
			t.Errorf("%s: the page is %d px wider than the screen", what, wide)
		}
	}
	bounded("rows", 6000, 2000)
	// The record of many fields, 200 at first.
	p.click("#rows li:last-child .line")
	p.is(`document.querySelectorAll(".leaf").length`, 200)
	bounded("200 of 2,002 fields", 12_000, 10_000)
	p.clickOn(`document.querySelector(".tree > .more")`)
	p.is(`document.querySelectorAll(".leaf").length`, 2002)
	p.is(`[...document.querySelectorAll(".leaf .value.number")].at(-1).textContent`, "1999")
	p.press("\x1b")
	eval[chromedp.Void](p, `document.getElementById("field-find").focus()`)
	p.write("F0123")
	p.is(`[...document.querySelectorAll("#field-list summary")].map((e) => e.title)`, []string{"f0123"})
	// The one of a megabyte.
	p.click("#rows li:nth-child(2) .line")
	p.until(`document.querySelector(".leaf .more")?.textContent === "1046576 more characters"`)
	bounded("a megabyte, folded", 6000, 10_000)
	p.until(button("message", "This value is too long") + ".disabled")
	p.clickOn(`document.querySelector(".leaf .more")`)
	p.until(`[...document.querySelectorAll(".leaf .value")].some((e) => e.textContent === "0123456789abcdef".repeat(65536))`)
	p.press("\x1b")
	// A hundred columns.
	p.open("/?q=f0001:1&cols=" + strings.Join(columns, ","))
	p.is(`[...document.querySelectorAll("#rows .cell")].map((e) => Number(e.textContent))`, func() (list []int) {
		for i := range columns {
			list = append(list, i)
		}
		return list
	}())
	p.is(`document.querySelectorAll(".head-cell").length`, 100)
	bounded("100 columns", 9000, 2000)
}
