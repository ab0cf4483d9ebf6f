package query

import (
	"fmt"
	"testing"
	"time"

	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"

	"millrace/internal/testenv"
)

// TestNothingOfThePageIsCoveredOrLost looks at what a picture of the page would show and its text would not.
func TestNothingOfThePageIsCoveredOrLost(t *testing.T) {
	testenv.Database(t) // no server, no browser
	f, p := pageFixture(t, newBrowser(t), nil)
	taskLogs(t, f)
	at := ago(3 * time.Minute)
	insert(t, f.db, at, 0, doc("warn", "dated", fmt.Sprintf(`, "@timestamp": %q, "start": %[1]q`, at.UTC().Format(time.RFC3339Nano))))
	loaded := `document.querySelectorAll("#rows li").length > 0 && document.querySelector("#field-list summary") && !document.querySelector(".loading")`
	open := func(address string) {
		t.Helper()
		p.open(address)
		p.until(loaded)
	}

	// A record's own time is not said twice on its line; another field that has it is shown.
	open("/?q=dated")
	p.is(`[...document.querySelectorAll("#rows .pair")].map((e) => e.textContent.split("=")[0])`, []string{"start"})
	open("/?q=dated&clock=inserted_at")
	p.is(`[...document.querySelectorAll("#rows .pair")].map((e) => e.textContent.split("=")[0])`, []string{"start", "@timestamp"})

	// Values that begin alike are told apart by their ends.
	insert(t, f.db, ago(4*time.Minute), 0, doc("info", "of classes", `, "logger": "org.apache.hadoop.mapreduce.v2.app.rm.RMContainerAllocator"`), doc("info", "of classes", `, "logger": "org.apache.hadoop.mapreduce.v2.app.MRAppMaster"`))
	open("/?q=message:%22of%20classes%22")
	p.unfold("logger")
	p.until(`document.querySelectorAll(".values .name").length === 2`)
	p.is(`[...document.querySelectorAll(".values .name")].map((e) => e.textContent).sort()`, []string{"org.apache.hadoop.mapreduce.v2.app.MRAppMaster", "org.apache.hadoop.mapreduce.v2.app.rm.RMContainerAllocator"})
	p.until(`[...document.querySelectorAll(".values .name")].every((e) => e.lastChild.getBoundingClientRect().right <= e.getBoundingClientRect().right + 1 && e.lastChild.getBoundingClientRect().width > 60)`)

	// The records around one have their fields on their lines.
	open("/?q=level:error")
	p.key("j")
	p.press("\r")
	p.key("c")
	p.until(`document.querySelectorAll(".context .row").length >= 20`)
	p.until(`[...document.querySelectorAll(".context .pair")].some((e) => e.checkVisibility() && e.textContent.startsWith("service="))`)
	p.is(`[...document.querySelectorAll(".row.around > .line .pair")].filter((e) => e.checkVisibility()).length`, 0)

	// A table's row is a line high and what is typed looks typed.
	p.open("/?tab=table&calc=count,p95(duration_ms)&group=service")
	p.until(`document.querySelectorAll("#grid tbody tr").length >= 3 && !document.querySelector(".loading")`)
	p.until(`Math.max(...[...document.querySelectorAll("#grid tbody tr")].map((row) => row.offsetHeight)) <= 34`)
	p.is(`getComputedStyle(document.getElementById("group")).color === getComputedStyle(document.getElementById("q-error").parentNode).color`, true)

	// A key right after a popover was closed is a command, not a letter in a box that nobody sees.
	p.key("d")
	p.is("document.activeElement.id", "range-from")
	p.press("\x1b")
	p.key("3")
	p.is(parameter("tab"), "patterns")

	// On a phone the header is two lines, whatever the range is called, and what stays below it is not covered.
	p.do(chromedp.EmulateViewport(390, 844))
	for _, window := range []string{"", "&from=" + ago(100*time.Minute).UTC().Format(time.RFC3339) + "&to=" + ago(time.Minute).UTC().Format(time.RFC3339), "&from=now-1h59m&to=now-1s"} {
		open("/?q=-level:debug" + window)
		eval[chromedp.Void](p, "scrollTo(0, 700)")
		p.until(`scrollY > 200 && document.querySelector("main > .head").getBoundingClientRect().top >= document.querySelector("header").getBoundingClientRect().bottom - 1`)
		p.until(`document.querySelector("#live").getBoundingClientRect().right <= innerWidth && document.querySelector("#range").getBoundingClientRect().bottom <= document.querySelector("#search").getBoundingClientRect().top`)
	}
}

// TestAnAddressThatIsWrongIsSaidSo opens addresses that somebody wrote, or that have become wrong.
func TestAnAddressThatIsWrongIsSaidSo(t *testing.T) {
	testenv.Database(t) // no server, no browser
	f, p := pageFixture(t, newBrowser(t), nil)
	ids := insert(t, f.db, ago(3*time.Minute), 0, doc("info", "there", ""), `{"message": "no level", "s": "blue"}`)

	p.open("/?by=%22")
	p.until(`document.getElementById("chart-error").checkVisibility() && document.getElementById("chart-error").textContent.startsWith("by: ")`)
	p.is(messages, []string{"no level", "there"})
	p.is(`[...document.querySelectorAll("#rows .level")].map((e) => e.textContent)`, []string{"", "info"})

	gone := ids[0][:len(ids[0])-4] + "ffff"
	p.open("/?id=" + gone + "&around=all")
	p.until(`document.getElementById("toast").textContent === "The record of this link is not there any more."`)
	p.open("/?id=x")
	p.until(`document.getElementById("toast").textContent.startsWith("The record of this link can’t be shown: ")`)

	for _, tab := range []string{"tab=table&calc=nonsense", "tab=table&calc=__proto__", "tab=patterns&vs=x"} {
		p.open("/?" + tab)
		p.until(`document.getElementById("problem").checkVisibility()`)
		p.until(`!document.getElementById("problem").textContent.includes("from before")`)
	}
	p.open("/?tab=table")
	p.until(`document.querySelector("#grid tbody tr")`)
	eval[chromedp.Void](p, `history.pushState(null, "", "?tab=table&calc=nonsense"), dispatchEvent(new PopStateEvent("popstate"))`)
	p.until(`document.getElementById("problem").textContent.includes("from before")`)

	for _, address := range []string{"/?live=1&tab=table", "/?live=1&to=" + ago(time.Minute).UTC().Format(time.RFC3339)} {
		p.open(address)
		p.is(`document.getElementById("live").getAttribute("aria-pressed")`, "false")
	}
	p.open("/?from=2005-12-04T04:47:00Z&to=2005-12-05T04:47:00Z")
	p.until(`document.getElementById("zone").textContent.startsWith("2005 · ")`)
	p.open("/?from=2005-12-04T04:47:00Z")
	p.until(`document.getElementById("zone").textContent.startsWith("2005 – ")`)
	p.open("/")
	p.until(`document.getElementById("zone").textContent.startsWith("Europe/Berlin")`)
}

// TestTheFirstSearchIsByTheServicesClock has a browser whose clock is two hours ahead, or behind: its last hour is not ours.
func TestTheFirstSearchIsByTheServicesClock(t *testing.T) {
	testenv.Database(t) // no server, no browser
	browser := newBrowser(t)
	f, _ := pageFixture(t, browser, nil)
	insert(t, f.db, ago(3*time.Minute), 0, doc("info", "just now", ""))
	insert(t, f.db, ago(150*time.Minute), 0, doc("info", "hours ago", ""))
	for _, hours := range []int{2, -2} {
		p := newTab(t, browser, f.base)
		script := fmt.Sprintf("{ const real = Date.now; Date.now = () => real() + %d * 3600e3; }", hours)
		if _, err := chromedp.Call(p.ctx, cdppage.AddScriptToEvaluateOnNewDocument, cdppage.AddScriptToEvaluateOnNewDocumentParams{Source: script}); err != nil {
			t.Fatal(err)
		}
		p.open("/")
		p.is(messages, []string{"just now"})
		p.is(total, "1")
	}
}
